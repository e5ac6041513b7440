"""A run planned for a time: the machine and the text are measured, and the rule of `textlstm.autopilot` decides."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from textlstm import autopilot, metrics
from textlstm.appraisal import anchor_of, appraise
from textlstm.config import ModelConfig, SamplingConfig, TrainConfig
from textlstm.corpus import Corpus, steps_per_epoch
from textlstm.generation import Limits
from textlstm.model import Model
from textlstm.model_file import ModelFile
from textlstm.network import RecurrentLM
from textlstm.scoring.parts import FITTED_FROM, FITTED_ON, FITTING_READS
from textlstm.tokenizer import Tokenizer, make_tokenizer
from textlstm.trainer import is_out_of_memory, weights_of
from textlstm.trainer.speed import measure_reading, measure_step, planning_peak

SHOWN_TOKENS = 8192  # of the held-out text, scored at each look where there is no development part
SAMPLE_CHARS, SAMPLES = 300, 4  # of each look; the first is shown, of all is told what is copied
_WRITTEN_PER_SECOND = 2e8  # bytes of a checkpoint


class Plan:
    """What `--minutes` decides: `textlstm.autopilot` has the rule, here the machine and the text are measured for it.

    Args:
        minutes: the time asked for.
        started: when it began.
        device: where to train.
        precision: of the training, as in TrainConfig.
        notice: told what takes a while, and what was done differently than asked.

    Attributes:
        reasons: what was chosen, and why, after the steps were counted.
        predicted: nats per character of the held-out text that the run should end with; None where nobody knows.
        timetable: when it has to end, after the steps were counted.
    """

    def __init__(
        self, minutes: float, started: float, device: str, precision: str, notice: Callable[[str], None]
    ) -> None:
        self.minutes, self.device, self.notice = minutes, device, notice
        self._end = started + 60 * minutes
        notice("measuring this machine ...")
        self._peak = planning_peak(device, precision)
        self.reasons: list[str] = []
        self.predicted: float | None = None
        self.timetable: autopilot.Timetable | None = None
        self._begun = self._text_bounds = False
        self._why_vocabulary = ""
        self._asked: frozenset[str] = frozenset()  # settings of the network that the user made
        self._fixed: frozenset[str] = frozenset()  # these and those of the training
        self._text = autopilot.Text(0)

    @property
    def most_held_out(self) -> int:
        """Characters to hold out at most."""
        return autopilot.most_held_out(60 * self.minutes, self._peak)

    @property
    def _left(self) -> float:
        """Seconds until the time is over; never so few that nothing could be planned."""
        return max(6 * self.minutes, self._end - time.perf_counter())

    def choose(
        self, corpus: Corpus, for_corpus: dict[str, Any], for_model: dict[str, Any], for_train: dict[str, Any],
        initial: ModelFile | None,
    ) -> Corpus:  # fmt: skip
        """Chooses what the user did not.

        Args:
            corpus: the text.
            for_corpus, for_model, for_train: settings of the user and of a preset; what is chosen is put among them.
            initial: the model that the run begins from.

        Returns:
            The text to learn from: without a development part, or a sample, if that was chosen.
        """
        fixed = {**for_model, **for_train}
        self._asked, self._fixed = frozenset(for_model), frozenset(fixed)
        self._begun = initial is not None
        name = for_train.get("tokenizer", TrainConfig.tokenizer)
        self._text = appraise(corpus, own=initial is None and name == "bpe")
        proposal = autopilot.propose(0.85 * self._left, self._text, self._peak, fixed)
        sample = None
        if "sample_chars" not in for_corpus:
            sample = self._sample(corpus, proposal, name, initial)
        if sample is not None:
            for_corpus["sample_chars"] = sample
            for_corpus.setdefault("sample_seed", int(for_train.get("seed", TrainConfig.seed)))
            self._text = replace(self._text, chars=sample)
            proposal = autopilot.propose(0.85 * self._left, self._text, self._peak, fixed)
        self._text_bounds, self._why_vocabulary = proposal.text_bounds, proposal.why_vocabulary
        for chosen, settings in ((proposal.model, for_model), (proposal.train, for_train)):
            for key, value in chosen.items():
                settings.setdefault(key, value)
        if not proposal.development and not for_corpus.keys() & {"dev_fraction", "max_dev_chars"}:
            corpus, for_corpus["dev_fraction"] = corpus.without_dev(), 0.0
        if sample is None:
            return corpus
        sampled = corpus.sampled(sample, for_corpus["sample_seed"])
        told = (
            f"encoding all {corpus.train.num_chars:,} characters would take too much of the time: learning from "
            f"{sampled.train.num_chars:,} of them, a quarter more than {self.minutes:g} min can read, in stretches "
            f"spread over the text (seed {for_corpus['sample_seed']}; --sample-chars sets how many)"
        )
        self.notice(told)
        self.reasons.append(told)
        return sampled

    def _sample(
        self, corpus: Corpus, proposal: autopilot.Proposal, name: str, initial: ModelFile | None
    ) -> int | None:
        """How much of a long text to learn from, if not all."""
        if corpus.train.num_chars <= autopilot.LEAST_SAMPLE:
            return None
        head, vocab = "".join(corpus.train.head(200_000)), proposal.model["vocab_size"]
        tokenizer = make_tokenizer(name, head, vocab - 1) if initial is None else initial.tokenizer
        began = time.perf_counter()
        tokens = len(tokenizer.encode(head))
        per_char = (time.perf_counter() - began) / len(head)
        wanted = proposal.tokens_read * len(head) / tokens
        return autopilot.sample_size(corpus.train.num_chars, 60 * self.minutes, per_char, wanted)

    def count_steps(
        self, model: ModelConfig, train: TrainConfig, corpus: Corpus, tokenizer: Tokenizer
    ) -> tuple[ModelConfig, TrainConfig]:
        """Measures the machine with this configuration, and completes it by the number of steps that fit.

        What keeps the network from learning the text by heart follows from how often it will be read, as counted now:
        before, the machine's share of its peak was a guess.

        Args:
            model, train: the configuration.
            corpus, tokenizer: what it learns from.
        """
        head, began = corpus.train.head(100_000), time.perf_counter()
        chars = max(1, sum(map(len, head)))
        chars_per_token = chars / max(1, sum(len(tokenizer.encode(text)) + model.boundary for text in head))
        encoding = (time.perf_counter() - began) / chars * corpus.train.num_chars
        train, per_step = self._measured(model, train)
        final, look, save = self._besides(model, corpus, tokenizer, chars_per_token)
        spacing = () if train.eval_every is None else (1 << 60, train.eval_every)
        fit = autopilot.steps_within(self._left - encoding, per_step, final, look, save, *spacing)
        tokens = int(corpus.train.num_chars / chars_per_token)
        passes = steps_per_epoch(tokens, train.batch_size, train.seq_len, train.jitter)
        most = math.ceil(autopilot.MOST_EPOCHS * passes)
        train = train.replace(steps=min(fit, most))
        self.timetable = autopilot.Timetable(60 * self.minutes, final + save, train.steps, most)
        epochs = train.steps / passes
        model, train = self._regularised(model, train, corpus, tokenizer, epochs, tokens)
        self.predicted = self._prediction(model, train, corpus, tokenizer, tokens)
        self.reasons += [
            *self._shape_reasons(model, train, tokenizer, chars_per_token, corpus.train.num_chars),
            *_step_reasons(model, train, epochs, per_step),
        ]
        if train.steps < fit:
            self.reasons.append(
                f"ends early, after about {duration(train.steps * per_step / 60)}: to read a text more than "
                f"{autopilot.MOST_EPOCHS} times teaches no more (--epochs sets how often)"
            )
        if self.predicted is not None:
            self.reasons.append(f"predicted: about {self.predicted:.2f} nats per character of the held-out text")
        return model, train

    def _regularised(
        self, model: ModelConfig, train: TrainConfig, corpus: Corpus, tokenizer: Tokenizer, epochs: float, tokens: int
    ) -> tuple[ModelConfig, TrainConfig]:
        """The configuration with what suits so many epochs, but for what the user set."""
        kept = autopilot.regularisation(train.steps, epochs, model.num_params / max(1, tokens), self._text.has_words)
        for_train = dict(kept.train)
        if not corpus.dev.num_chars:  # nothing else could tell which temperature suits the model
            for_train["calibration_temperature"] = autopilot.temperature(epochs, self._text, self._fixed)
        if (tokenizer.parts() >= 0).any():
            for_train["merge_dropout"] = autopilot.merge_dropout(epochs, tokens / model.vocab_size)
        return (
            model.replace(**{name: value for name, value in kept.model.items() if name not in self._fixed}),
            train.replace(**{name: value for name, value in for_train.items() if name not in self._fixed}),
        )

    def _prediction(
        self, model: ModelConfig, train: TrainConfig, corpus: Corpus, tokenizer: Tokenizer, tokens: int
    ) -> float | None:
        """The loss that the run should end with; nobody knows it for a network or a vocabulary of the user's."""
        if self._asked or train.tokenizer != "bpe" or not corpus.val.num_chars:
            return None
        operations = 3 * model.flops_per_token * train.steps * train.batch_size * train.seq_len
        return autopilot.predict(operations, tokens, anchor_of(corpus, tokenizer, model.vocab_size))

    def _shape_reasons(
        self, model: ModelConfig, train: TrainConfig, tokenizer: Tokenizer, chars_per_token: float, chars: int
    ) -> tuple[str, ...]:
        vocabulary = f"vocabulary {model.vocab_size} ({tokenizer.kind}, {chars_per_token:.2f} characters per token)"
        network = f"{model.num_layers} x {model.hidden_size} LSTM, {model.num_params:,} parameters"
        if self._begun:
            return (f"{vocabulary} and {network}: those of the model that it begins from",)
        own = train.tokenizer == "bpe"
        size = self._why_vocabulary if own else f"that of --tokenizer {train.tokenizer}"
        if self._asked & {"embed_size", "hidden_size", "num_layers"}:
            width = "as asked"
        elif self._text_bounds:
            width = f"as large as suits {chars:,} characters"
        else:
            width = f"fits {self.minutes:g} min at {self._peak / 1e9:.0f} GFLOP/s peak of products"
        return f"{vocabulary}: {'as asked' if 'vocab_size' in self._asked else size}", f"{network}: {width}"

    def _besides(
        self, model: ModelConfig, corpus: Corpus, tokenizer: Tokenizer, chars_per_token: float
    ) -> tuple[float, float, float]:
        """Seconds that a run takes besides its steps: at its end, for each look, and for each checkpoint."""
        device, tokens = self.device, corpus.dev.num_chars / chars_per_token
        final = measure_reading(model, device) * corpus.val.num_chars / chars_per_token
        reading = measure_reading(model, device, lanes=16, tokens=1024)
        warm_up = 16 * metrics.WARM_UP
        if tokens >= FITTED_FROM:
            fitting, scoring = FITTING_READS * (min(tokens, FITTED_ON) + warm_up), tokens + warm_up
            final += reading * (fitting + scoring)
        look = reading * ((tokens if tokens else SHOWN_TOKENS) + warm_up) + _sample_seconds(model, tokenizer)
        look += 4 * model.num_params / _WRITTEN_PER_SECOND  # the model so far
        save = 16 * model.num_params / _WRITTEN_PER_SECOND  # weights, two moments and the average, four bytes each
        return final, look, save

    def _measured(self, model: ModelConfig, train: TrainConfig) -> tuple[TrainConfig, float]:
        """Seconds per step, and the configuration, its steps in smaller portions where memory runs out."""
        while True:
            try:
                return train, measure_step(model, train, self.device, seconds=min(2.0, 2 * self.minutes))
            except (MemoryError, RuntimeError) as error:
                smaller = lighter(train) if is_out_of_memory(error) else None
                if smaller is None:
                    raise
            train = smaller
            self.notice(f"memory ran out; {portions(train)}")


def _step_reasons(model: ModelConfig, train: TrainConfig, epochs: float, per_step: float) -> tuple[str, str]:
    temperature = train.calibration_temperature
    return (
        f"{train.steps:,} steps of {train.batch_size} x {train.seq_len} tokens, {epochs:.1f} "
        f"epochs: {train.batch_size * train.seq_len / per_step:,.0f} tokens/s measured",
        f"dropout {model.input_dropout:g} / {model.layer_dropout:g} / {model.output_dropout:g}, weight drop "
        f"{model.weight_dropout:g}, embedding dropout {model.embed_dropout:g}"
        + (f", merge dropout {train.merge_dropout:g}" if train.merge_dropout else "")
        + ("" if temperature in (None, 1.0) else f"; logits divided by {temperature:g} at the end"),
    )


def samples_of(network: RecurrentLM, tokenizer: Tokenizer, number: int = SAMPLES) -> list[str]:
    """Some texts of a network in training, written side by side."""
    model = Model(ModelFile(network.config, tokenizer, weights_of(network), {}, ""))
    writers = model.writers(number, SamplingConfig(), Limits(max_chars=SAMPLE_CHARS), seed=0)
    for _ in model.write("", writers):
        pass
    return [writer.text for writer in writers]


def _sample_seconds(model: ModelConfig, tokenizer: Tokenizer) -> float:
    network = RecurrentLM(model, torch.Generator().manual_seed(0))
    began = time.perf_counter()
    samples_of(network, tokenizer)
    return time.perf_counter() - began


def duration(minutes: float) -> str:
    """A time for people: in seconds where it is short."""
    return f"{60 * minutes:.2g} s" if minutes < 1 else f"{minutes:.1f} min"


def lighter(train: TrainConfig) -> TrainConfig | None:
    """The same steps in portions of half as many lanes, which take less memory; None where a portion is one lane."""
    if train.accumulate >= train.batch_size:
        return None
    return train.replace(accumulate=min(train.batch_size, 2 * train.accumulate))


def portions(train: TrainConfig) -> str:
    """What a configuration in portions means, for people."""
    lanes = -(-train.batch_size // train.accumulate)
    return f"each step is computed in {train.accumulate} portions of at most {lanes} lanes from here on"
