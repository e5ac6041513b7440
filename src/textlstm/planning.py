"""A run planned for a time: the machine and the text are measured, and the rule of `textlstm.autopilot` decides."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from textlstm import autopilot, learning, metrics
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


@dataclass(frozen=True)
class Choice:
    """What was chosen of a run before its steps are counted.

    Attributes:
        corpus: the text to learn from.
        text: what is known of it.
        proposal: what the rule says.
        fixed: settings of the network and of the training that the user made.
        begun: whether the run begins from another model.
        sampled: what is told of a sample; None where all of the text is learnt from.
    """

    corpus: Corpus
    text: autopilot.Text
    proposal: autopilot.Proposal
    fixed: frozenset[str]
    begun: bool
    sampled: str | None

    @property
    def asked(self) -> frozenset[str]:
        """Settings of the network that the user made."""
        return self.fixed & ModelConfig.__dataclass_fields__.keys()


@dataclass(frozen=True)
class Planned:
    """A run whose steps are counted.

    Attributes:
        model, train: its configuration.
        reasons: what was chosen, and why.
        predicted: nats per character of the held-out text that it should end with; None where nobody knows.
        timetable: when it has to end.
    """

    model: ModelConfig
    train: TrainConfig
    reasons: Sequence[str]
    predicted: float | None
    timetable: autopilot.Timetable


class Plan:
    """What `--minutes` decides: `textlstm.autopilot` has the rule, here the machine and the text are measured for it.

    Args:
        minutes: the time asked for.
        started: when it began.
        device: where to train.
        precision: of the training, as in TrainConfig.
        notice: told what takes a while, and what was done differently than asked.
    """

    def __init__(
        self, minutes: float, started: float, device: str, precision: str, notice: Callable[[str], None]
    ) -> None:
        self.minutes, self.device, self.notice = minutes, device, notice
        self._end = started + 60 * minutes
        notice("measuring this machine ...")
        self._peak = planning_peak(device, precision)

    def most_held_out(self, begun: bool) -> int:
        """Characters to hold out at most; they are scored twice where the run begins from a model."""
        return autopilot.most_held_out(60 * self.minutes / (1 + begun), self._peak)

    @property
    def _left(self) -> float:
        """Seconds until the time is over; never so few that nothing could be planned."""
        return max(6 * self.minutes, self._end - time.perf_counter())

    def choose(
        self, corpus: Corpus, for_corpus: dict[str, Any], for_model: dict[str, Any], for_train: dict[str, Any],
        initial: ModelFile | None,
    ) -> Choice:  # fmt: skip
        """Chooses what the user did not.

        Args:
            corpus: the text.
            for_corpus, for_model, for_train: settings of the user and of a preset; what is chosen is put among them.
            initial: the model that the run begins from.
        """
        self.notice("measuring the text ...")
        fixed = frozenset((*for_model, *for_train))
        name = for_train.get("tokenizer", TrainConfig.tokenizer)
        text = appraise(corpus, own=initial is None and name == "bpe", chosen="vocab_size" not in for_model)
        sample, proposal = None, self._proposal(text, for_model, for_train)
        if for_corpus.get("sample_chars") is None:  # `config.json` of another run says null
            sample = self._sample(corpus, proposal, name, initial)
        if sample is not None:
            for_corpus["sample_chars"] = sample
            for_corpus.setdefault("sample_seed", int(for_train.get("seed", TrainConfig.seed)))
            text = replace(text, chars=sample)
            proposal = self._proposal(text, for_model, for_train)
        for chosen, settings in ((proposal.model, for_model), (proposal.train, for_train)):
            for key, value in chosen.items():
                settings.setdefault(key, value)
        if not proposal.development and not for_corpus.keys() & {"dev_fraction", "max_dev_chars"}:
            corpus, for_corpus["dev_fraction"] = corpus.without_dev(), 0.0
        told = None
        if sample is not None:
            whole, corpus = corpus, corpus.sampled(sample, for_corpus["sample_seed"])
            told = (
                f"encoding all {whole.train.num_chars:,} characters would take too much of the time: learning from "
                f"{corpus.train.num_chars:,} of them, more than {self.minutes:g} min can read, in stretches spread "
                f"over the text (seed {for_corpus['sample_seed']}; --sample-chars sets how many)"
            )
            self.notice(told)
        return Choice(corpus, text, proposal, fixed, initial is not None, told)

    def _proposal(
        self, text: autopilot.Text, for_model: Mapping[str, Any], for_train: Mapping[str, Any]
    ) -> autopilot.Proposal:
        return autopilot.propose(0.85 * self._left, text, self._peak, {**for_model, **for_train})

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

    def count_steps(self, choice: Choice, model: ModelConfig, train: TrainConfig, tokenizer: Tokenizer) -> Planned:
        """Measures the machine with this configuration, and completes it by the number of steps that fit.

        What keeps the network from learning the text by heart follows from how often it will be read, as counted now:
        before, the machine's share of its peak was a guess.

        Args:
            choice: what was chosen before.
            model, train: the configuration.
            tokenizer: of the text.
        """
        corpus = choice.corpus
        head, began = corpus.train.head(100_000), time.perf_counter()
        chars = max(1, sum(map(len, head)))
        chars_per_token = chars / max(1, sum(len(tokenizer.encode(text)) + model.boundary for text in head))
        encoding = (time.perf_counter() - began) / chars * corpus.train.num_chars
        train, per_step = self._measured(model, train)
        final, look, save = self._besides(model, corpus, tokenizer, chars_per_token, choice.begun)
        fit = autopilot.steps_within(self._left - encoding, per_step, final, look, save, train.eval_every)
        tokens = int(corpus.train.num_chars / chars_per_token)
        passes = steps_per_epoch(tokens, train.batch_size, train.seq_len, train.jitter)
        most = math.ceil(autopilot.MOST_EPOCHS * passes)
        train = train.replace(steps=min(fit, most))
        if train.eval_every is None and fit <= most:  # else there is time for looks
            train = train.replace(eval_every=autopilot.steps_apart(fit, per_step, look, save))
        timetable = autopilot.Timetable(60 * self.minutes, final + save, train.steps, most)
        model, train = _regularised(choice, model, train, tokenizer, tokens, train.steps / passes)
        predicted = _prediction(choice, model, train, tokenizer, tokens)
        reasons = [
            *([] if choice.sampled is None else [choice.sampled]),
            *self._shape_reasons(choice, model, train, tokenizer, chars_per_token),
            *_step_reasons(model, train, train.steps / passes, per_step),
        ]
        if train.steps < fit:
            reasons.append(
                f"ends early, after about {duration(train.steps * per_step / 60)}: to read a text more than "
                f"{autopilot.MOST_EPOCHS} times teaches no more (--epochs sets how often)"
            )
        if predicted is not None:
            guess = "" if choice.text.has_words else ", a guess: tables and music may end far lower"
            reasons.append(f"predicted: about {predicted:.2f} nats per character of the held-out text{guess}")
        return Planned(model, train, reasons, predicted, timetable)

    def _shape_reasons(
        self, choice: Choice, model: ModelConfig, train: TrainConfig, tokenizer: Tokenizer, chars_per_token: float
    ) -> tuple[str, ...]:
        vocabulary = f"vocabulary {model.vocab_size} ({tokenizer.kind}, {chars_per_token:.2f} characters per token)"
        network = f"{model.num_layers} x {model.hidden_size} LSTM, {model.num_params:,} parameters"
        if choice.begun:
            return (f"{vocabulary} and {network}: those of the model that it begins from",)
        own = train.tokenizer == "bpe"
        size = choice.proposal.why_vocabulary if own else f"that of --tokenizer {train.tokenizer}"
        if choice.asked & {"embed_size", "hidden_size", "num_layers"}:
            width = "as asked"
        elif choice.proposal.text_bounds:
            width = f"as large as suits {choice.corpus.train.num_chars:,} characters"
        else:
            width = f"fits {self.minutes:g} min of this machine ({self._peak / 1e9:.0f} GFLOP/s in matrix products)"
        return f"{vocabulary}: {'as asked' if 'vocab_size' in choice.asked else size}", f"{network}: {width}"

    def _besides(
        self, model: ModelConfig, corpus: Corpus, tokenizer: Tokenizer, chars_per_token: float, begun: bool
    ) -> tuple[float, float, float]:
        """Seconds that a run takes besides its steps: at its end, for each look, and for each checkpoint."""
        device, tokens = self.device, corpus.dev.num_chars / chars_per_token
        final = measure_reading(model, device) * corpus.val.num_chars / chars_per_token
        final *= 1 + begun  # the model that it begins from is scored, too
        final += _statistics_seconds(model, tokenizer)
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


def _regularised(
    choice: Choice, model: ModelConfig, train: TrainConfig, tokenizer: Tokenizer, tokens: int, epochs: float
) -> tuple[ModelConfig, TrainConfig]:
    """The configuration with what suits so many epochs, but for what the user set."""
    kept = autopilot.regularisation(train.steps, epochs, model.num_params / max(1, tokens), choice.text.has_words)
    for_train = dict(kept.train)
    if not choice.corpus.dev.num_chars:  # nothing else could tell which temperature suits the model
        for_train["calibration_temperature"] = autopilot.temperature(epochs, choice.text, choice.fixed)
    if (tokenizer.parts() >= 0).any():
        for_train["merge_dropout"] = autopilot.merge_dropout(epochs, tokens / model.vocab_size)
    return (
        model.replace(**{name: value for name, value in kept.model.items() if name not in choice.fixed}),
        train.replace(**{name: value for name, value in for_train.items() if name not in choice.fixed}),
    )


def _prediction(
    choice: Choice, model: ModelConfig, train: TrainConfig, tokenizer: Tokenizer, tokens: int
) -> float | None:
    """The loss that the run should end with; nobody knows it for a network, penalty or vocabulary of the user's."""
    if (
        choice.asked
        or "activation_penalty" in choice.fixed
        or train.tokenizer != "bpe"
        or not choice.corpus.val.num_chars
    ):
        return None
    operations = model.training_flops(train.steps * train.batch_size * train.seq_len)
    anchor = anchor_of(choice.corpus, tokenizer, model.vocab_size)
    predicted = autopilot.predict(operations, tokens, anchor)
    return predicted if predicted < _FAR * anchor else None


# Anchors: the runs that the law was fitted to end at 1.02 at most; of a second it says more than guessing would cost.
_FAR = 1.5


def _step_reasons(model: ModelConfig, train: TrainConfig, epochs: float, per_step: float) -> tuple[str, str]:
    temperature = train.calibration_temperature
    return (
        f"{train.steps:,} steps of {train.batch_size} x {train.seq_len} tokens, {epochs:.1f} "
        f"epochs: {train.batch_size * train.seq_len / per_step:,.0f} tokens/s measured",
        f"dropout {model.input_dropout:g} / {model.layer_dropout:g} / {model.output_dropout:g}, weight drop "
        f"{model.weight_dropout:g}, embedding dropout {model.embed_dropout:g}, activation penalty "
        f"{train.activation_penalty:g}"
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


def _statistics_seconds(model: ModelConfig, tokenizer: Tokenizer) -> float:
    """Seconds that a finished run takes for what `--learn` will go by, told by a fifth of it."""
    network, ids = RecurrentLM(model, torch.Generator().manual_seed(0)), np.zeros(1000, dtype=np.int32)
    file = ModelFile(network.config, tokenizer, weights_of(network), {}, "")
    learning.measure(file, ids, segments=10)  # carries what a process does once
    began = time.perf_counter()
    learning.measure(file, ids, segments=learning.SEGMENTS // 5)
    return 5 * (time.perf_counter() - began)


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
