"""A run from its first step to its result: looks, samples, checkpoints, log, the model file."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm import autopilot, metrics
from textlstm.config import ModelConfig, TrainConfig
from textlstm.corpus import Corpus, LaneReader, MergeDropout, Part, Tokens, merges_of
from textlstm.corpus.named import HELD_OUT_CHARS
from textlstm.engine.torch import TorchEngine
from textlstm.errors import Interrupted, MissingExtraError, RunError, TextLSTMError
from textlstm.files import append_whole, insist, sync_file, write_atomically
from textlstm.learning import measure
from textlstm.machine import processor, usable_cores
from textlstm.model_file import CALIBRATION, ModelFile, read_model, write_model
from textlstm.network import RecurrentLM
from textlstm.novelty import RUN_LENGTHS, CopyMeter, SuffixIndex
from textlstm.planning import SAMPLE_CHARS, SAMPLES, SHOWN_TOKENS, duration, lighter, portions, samples_of
from textlstm.registry import MODEL_FILE, find_model
from textlstm.run.card import version_of
from textlstm.run.folder import size_of
from textlstm.run.setup import Request, Result, Setup, process_seconds
from textlstm.run.signals import Signals
from textlstm.scoring.parts import fitted_temperature, score_development, score_held_out
from textlstm.tokenizer import Tokenizer, bytes_to_text
from textlstm.trainer import Callbacks, Development, Look, StepReport, Trainer, Weights, is_out_of_memory, weights_of
from textlstm.trainer.checkpoint import Checkpoint, load_newest, save_checkpoint
from textlstm.trainer.distributed import Group
from textlstm.trainer.speed import sgemm_peak
from textlstm.view import Facts, View, loss_svg, novelty_svg

_LATEST = "latest weights of a run that is not over"
GPT2_TOKENS_OF_ORIGINAL_SPLIT = 33_803  # in the last `HELD_OUT_CHARS` characters of Tiny Shakespeare


def lane_reader(tokens: Tokens, tokenizer: Tokenizer, model: ModelConfig, train: TrainConfig) -> LaneReader:
    """The reader of a training text."""
    line_end_V = np.zeros(model.vocab_size, dtype=bool)
    for id in range(tokenizer.vocab_size):
        line_end_V[id] = tokenizer.token_bytes(id).endswith(b"\n")
    lanes, length, jitter, seed = train.batch_size, train.seq_len, train.jitter, train.seed
    dropout = None
    if train.merge_dropout:
        parts_V2 = np.full((model.vocab_size, 2), -1, dtype=np.int32)
        parts_V2[: tokenizer.vocab_size] = merges_of(tokenizer)
        dropout = MergeDropout(parts_V2, train.merge_dropout, train.steps)
    return LaneReader(tokens.train, lanes, length, jitter, seed, model.boundary_id, line_end_V, dropout)


def development(corpus: Corpus, tokens: Tokens) -> Development | None:
    """The part of a text that picks the best weights, or None where there is none."""
    if not len(tokens.dev):
        return None
    return Development(tokens.dev, tokens.train[-metrics.WARM_UP :], corpus.dev.num_chars, corpus.dev.num_bytes)


class Run:
    """A run under way: the trainer, and everything that watches it."""

    def __init__(
        self, folder: Path, setup: Setup, corpus: Corpus, tokenizer: Tokenizer, request: Request, view: View,
        started: float, group: Group, device: str,
    ) -> None:  # fmt: skip
        self.group, self.device = group, device
        self.folder, self.setup, self.corpus, self.tokenizer = folder, setup, corpus, tokenizer
        self.request, self.view, self.started = request, view, started
        self.tokens: Tokens = corpus.encode(tokenizer, setup.model.boundary_id, request.workers, view.notice)
        if losses := tokenizer.losses(corpus.dev.text + corpus.val.text):
            view.notice(f"the text is not scored as it stands: {losses}")
        self.seconds_before = 0.0
        self.seconds_to_loss: float | None = None
        self.train_curve: list[tuple[int, float]] = []
        self.dev_curve: list[tuple[int, float]] = []
        self.copied_curve: list[tuple[int, float, float]] = []  # step, longest run, share of copied characters
        self.chooses = bool(len(self.tokens.dev))  # whether a development part picks the best weights
        whole = len(self.tokens.val) <= SHOWN_TOKENS
        self.shown = "development" if self.chooses else "held-out" if whole else "held-out (begin)"
        self.best_step: int | None = None
        self._signals = Signals(view.notice, hold=group.size > 1)
        self._looks: list[tuple[int, float]] = []  # steps and seconds of the run at each
        self._told_late = False
        self._told_steps: int | None = None  # of those that were counted again
        self._failing: set[str] = set()  # what could not be written the last time
        self._told_skipped: set[str] = set()  # why steps were skipped, as far as it was told
        # A model that the disk has not taken yet.
        self._unwritten: tuple[ModelConfig, Weights, Mapping[str, Any]] | None = None
        self._lightened = False  # memory ran out here, and training went on in smaller portions
        self._unsaved: str | None = None  # why the last checkpoint could not be written

    @property
    def seconds(self) -> float:
        """Seconds spent on the run, earlier ones before an interruption included."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def chars_per_token(self) -> float:
        """Characters of training text per token."""
        return self.corpus.train.num_chars / max(1, len(self.tokens.train))

    def go(self, checkpoint: Checkpoint | None, initial: ModelFile | None) -> Result:
        """Trains to the end, scores, and finishes the run folder."""
        if self.group.size > 1:
            message = {
                "folder": str(self.folder),
                "setup": self.setup.to_dict(),
                "tokenizer": self.tokenizer.to_json(),
            }
            self.group.share(json.dumps({**message, "resumed": checkpoint is not None}).encode())
        while True:
            try:
                trainer, reason = self._trained(checkpoint, initial)
                break
            except (MemoryError, RuntimeError) as error:
                smaller = lighter(self.setup.train) if is_out_of_memory(error) and self.group.size == 1 else None
                if smaller is None:
                    raise
            checkpoint = self._go_on_with(smaller)  # here the failed trainer is gone
        if reason is not None:
            self._interrupted(trainer)
        result = self._finish(trainer)
        self.group.share(json.dumps({"result": result.to_dict()}).encode())
        return result

    def _go_on_with(self, train: TrainConfig) -> Checkpoint | None:
        """Changes the configuration of a run whose memory ran out; the checkpoint to go on from, if there is one.

        The steps stay the same, up to rounding, so that checkpoints of before fit; from here on they follow from
        `config.json` again.
        """
        gc.collect()
        self._lightened = True
        self._set_train(train)
        checkpoint = load_newest(self.folder / "checkpoints", self.view.notice)
        where = "the beginning" if checkpoint is None else f"step {checkpoint.step}"
        self.view.notice(f"memory ran out; going on from {where}: {portions(train)}")
        for curve in (self.train_curve, self.dev_curve, self.copied_curve):
            curve.clear()
        return checkpoint

    def _trained(self, checkpoint: Checkpoint | None, initial: ModelFile | None) -> tuple[Trainer, str | None]:
        """Trains from a checkpoint or the beginning; the trainer, and why it was stopped, if it was."""
        trainer = self._trainer(initial)
        if self.group.size > 1:
            self.group.share_checkpoint(trainer.beginning() if checkpoint is None else checkpoint)
        if checkpoint is None:
            for name in ("log.jsonl", "samples.md", MODEL_FILE):
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)  # what a kill left while it wrote the first
        else:
            trainer.restore(checkpoint)
            if (steps := trainer.config.steps) != self.setup.train.steps:  # they were counted again after it was taken
                again = f"{steps:,} steps again, as at step {checkpoint.step:,}"
                self._set_train(self.setup.train.replace(steps=steps), again)
            self._rewind(checkpoint)
        self.view.begin(self._facts(), trainer.step)
        if (lanes := trainer.reader.batch_size) < self.setup.train.batch_size:
            self.view.notice(f"the text is short: {lanes} lanes instead of {self.setup.train.batch_size}")
        self._looks = []
        callbacks = Callbacks(
            on_step=self._on_step,
            on_look=self._on_look,
            save=self._save,
            stop=self._signals.reason,
            reached=self._reached,
            recount=self._recount,
        )
        with self._signals:
            return trainer, trainer.run(callbacks)

    def follow(self, resumed: bool) -> None:
        """Trains as one of the ranks that write nothing."""
        trainer = self._trainer(None)
        trainer.restore(self.group.share_checkpoint(None if resumed else trainer.beginning()))
        with self._signals:
            reason = trainer.run(Callbacks(stop=self._signals.reason))
        if reason is not None:
            raise Interrupted(
                f"rank {self.group.rank} stopped with the others", self._signals.received or signal.SIGTERM
            )

    def _trainer(self, initial: ModelFile | None) -> Trainer:
        model, train = self.setup.model, self.setup.train
        reader = lane_reader(self.tokens, self.tokenizer, model, train)
        dev = development(self.corpus, self.tokens)
        if dev is None and len(self.tokens.val) and self.corpus.val_follows:
            ids = self.tokens.val[:SHOWN_TOKENS]
            data = self.tokenizer.decode_bytes(ids[ids < self.tokenizer.vocab_size].tolist())
            before = self.tokens.train[-metrics.WARM_UP :]
            dev = Development(ids, before, max(1, len(bytes_to_text(data))), max(1, len(data)), chooses=False)
        weights = None if initial is None else initial.weights
        return Trainer(model, train, reader, dev, weights, self.device, self.group, self._frequencies_V)

    @cached_property
    def _frequencies_V(self) -> NDArray[np.float64]:
        return metrics.frequencies(metrics.token_counts(self.tokens.train, self.setup.model.vocab_size))

    def _without_learning(self) -> tuple[float, float, str]:
        """What guessing evenly and by frequency alone cost, in nats per character, and of which text.

        Of the one that is scored while training; where none is, of the training text.
        """
        ids, chars, text = self.tokens.train, self.corpus.train.num_chars, "training text"
        if self.chooses:
            ids, chars, text = self.tokens.dev, self.corpus.dev.num_chars, "development part"
        elif len(self.tokens.val):
            ids, chars, text = self.tokens.val, self.corpus.val.num_chars, "held-out text"
        tokens_per_char = len(ids) / max(1, chars)
        evenly = math.log(len(self._frequencies_V))
        return evenly * tokens_per_char, metrics.unigram_nats(ids, self._frequencies_V) * tokens_per_char, text

    def _facts(self) -> Facts:
        model = self.setup.model
        uniform, unigram, text = self._without_learning()
        return Facts(
            title=f"{self.corpus.name} -> {self.folder}",
            lines=self.setup.reasons,
            steps=self.setup.train.steps,
            chars_per_token=self.chars_per_token,
            uniform=uniform,
            unigram=unigram,
            costs_of=text,
            flops_per_token=model.training_flops(1),
            # A run waits for it. Each rank has its share of the cores, or a device of its own.
            peak=sgemm_peak(self.device, seconds=0.15) * self.group.size,
            shown=self.shown,
        )

    def _log(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(_finite(record), allow_nan=False) + "\n"
        self._attempt("log.jsonl", lambda: append_whole(self.folder / "log.jsonl", line))

    def _attempt(self, name: str, write: Callable[[], None]) -> None:
        """Writes something that training can do without for a while; a failure is told once."""
        try:
            write()
        except OSError as error:
            if name not in self._failing:
                self.view.notice(f"{name} cannot be written ({error.strerror}); training goes on")
            self._failing.add(name)
        else:
            self._failing.discard(name)

    def _on_step(self, report: StepReport) -> None:
        self.view.step(report.step, report.nats, report.lr, report.epoch, report.tokens, report.seconds)
        if report.skipped is not None and report.skipped not in self._told_skipped:
            self._told_skipped.add(report.skipped)
            why = f"step {report.step} was skipped: {_SKIPPED[report.skipped]}"
            self.view.notice(f"{why}; log.jsonl tells of more, if there are")
        every = max(1, report.steps // 1000)
        if report.step % every == 0 or report.skipped is not None:
            nats = report.nats
            per_char = nats / self.chars_per_token
            if math.isfinite(per_char) and report.skipped is None:
                self.train_curve.append((report.step, per_char))
            self._log(
                {
                    "event": "step", "step": report.step, "nats_per_token": nats, "nats_per_char": per_char,
                    "lr": report.lr, "epoch": report.epoch, "tokens_per_second": report.tokens / report.seconds,
                    **({} if report.skipped is None else {"skipped": report.skipped}),
                }
            )  # fmt: skip

    def _on_look(self, look: Look, network: RecurrentLM) -> None:
        record: dict[str, Any] = {
            "event": "look",
            "step": look.step,
            "best": look.best,
            "seconds": look.seconds,
        }
        if look.dev is not None:
            self.dev_curve.append((look.step, look.dev.nats_per_char))
            record["dev" if self.chooses else "held_out_begin"] = look.dev.to_dict()
        self._log(record)
        if look.best:
            self.best_step = look.step
            self._write_model(network, look.step, {"dev": record.get("dev")})
        self.view.look(look.step, look.dev, look.best)
        every = self.setup.train.sample_every
        finite = look.dev is None or math.isfinite(look.dev.nats)  # else the logits are not, and nothing can be drawn
        if finite and (every is None or look.step % every == 0):
            texts = self._samples(network)
            told, text = self._tell_copied(look.step, texts), texts[0]
            quoted = "".join(f"    {line}\n" for line in text.split("\n"))
            entry = f"## step {look.step}\n\n{quoted}\n" + (f"{told}\n\n" if told else "")
            self._attempt("samples.md", lambda: append_whole(self.folder / "samples.md", entry))
            self.view.sample(look.step, text)
        picture = loss_svg(self.train_curve, self.dev_curve, self.shown).encode()
        self._attempt("loss.svg", lambda: write_atomically(self.folder / "loss.svg", picture))

    def _recount(self, step: int) -> int:
        """Counts again the steps of a run that was planned for a time.

        It says so the first time that their number changes, and when it changes no more. Where it is too late for
        that, a run that falls far behind is told of once.
        """
        timetable, steps, looks = self.setup.timetable, self.setup.train.steps, self._looks
        looks.append((step, self.seconds))
        if timetable is None:
            return steps
        wanted = timetable.recount(looks, steps, self.setup.train.warmup)
        if wanted != steps:
            try:
                reason = f"{wanted:,} steps instead: counted again at step {step:,}"
                self._set_train(self.setup.train.replace(steps=wanted), reason)
            except OSError:  # asked again at the next look; until then the folder and the run agree
                return steps
            if self._told_steps is None:  # a busy machine changes its pace up to six times in half a minute
                self._told_steps, pace = wanted, "faster" if wanted > steps else "slower"
                self.view.notice(
                    f"the machine is {pace} than expected: {wanted:,} steps in all instead of {steps:,}; they are "
                    "counted again until three quarters of them are done"
                )
            self.view.recount(wanted)
            self._log({"event": "recount", "step": step, "steps": wanted})
        if len(looks) < 2 or 2 * step <= wanted:
            return wanted
        if step > autopilot.COUNTED_UNTIL * wanted and self._told_steps not in (None, wanted):
            self._told_steps = wanted
            self.view.notice(f"{wanted:,} steps in all, and no more changes")
        if self._told_late:
            return wanted
        projected, planned = timetable.projected(looks, wanted), timetable.seconds
        if projected > 1.25 * planned:
            self._told_late = True
            self.view.notice(
                f"slower than when this machine was measured: about {duration(projected / 60)} in all instead of "
                f"{duration(planned / 60)}; other programs may be using it (Ctrl-C saves)"
            )
        return wanted

    def _set_train(self, train: TrainConfig, *reasons: str) -> None:
        """Changes how the run goes on, for some reasons; from here on it follows from `config.json` again."""
        setup = dataclasses.replace(self.setup, train=train, reasons=[*self.setup.reasons, *reasons])
        data = json.dumps(setup.to_dict(), indent=1).encode()
        insist(lambda: write_atomically(self.folder / "config.json", data))
        self.setup = setup

    def _samples(self, network: RecurrentLM) -> list[str]:
        return samples_of(network, self.tokenizer, 1 if self._copies is None else SAMPLES)

    @cached_property
    def _copies(self) -> CopyMeter | None:
        """What measures copies, or None: the text is long beside the run, or the extra is not installed."""
        train, config = self.corpus.train, self.setup.train
        flops = self.setup.model.training_flops(config.steps * config.batch_size * config.seq_len)
        if not isinstance(train, Part) or not CopyMeter.pays(train.num_bytes, flops):
            return None
        human = self.corpus.dev.text if self.chooses else self.corpus.val.text
        try:
            return CopyMeter(SuffixIndex.of_texts(d.text for d in train.documents), human, SAMPLE_CHARS)
        except (MissingExtraError, OSError):  # nobody asked for it, and a cache without room stops no run
            return None

    def _tell_copied(self, step: int, texts: Sequence[str]) -> str:
        """Measures, logs and draws what of some samples is copied; returns it in words."""
        written = None if self._copies is None else self._copies.measure(texts)
        if self._copies is None or written is None:
            return ""
        human = self._copies.human
        record = {"event": "novelty", "step": step, "samples": written.to_dict()}
        self._log(record | ({} if human is None else {"people": human.to_dict()}))
        self.copied_curve.append((step, written.longest, written.copied[RUN_LENGTHS[0]]))
        picture = novelty_svg(
            [(at, longest) for at, longest, _ in self.copied_curve],
            [(at, share) for at, _, share in self.copied_curve],
            None if human is None else (human.longest, human.copied[RUN_LENGTHS[0]]), RUN_LENGTHS[0],
        )  # fmt: skip
        self._attempt("novelty.svg", lambda: write_atomically(self.folder / "novelty.svg", picture.encode()))
        told = self._copies.tell(written)
        self.view.copied(told)
        return f"copied word for word: {told}"

    def _reached(self, network: RecurrentLM) -> bool:
        wanted, val = self.setup.asked.get("time_to_loss"), self.tokens.val
        if wanted is None or not len(val):
            return False
        # Several lanes are quick and nearly right; one lane decides. A score that is not a number reaches nothing.
        if not all(
            score_held_out(network, self.corpus, self.tokens, kind).nats_per_char <= wanted
            for kind in ("stream-16", "stream")
        ):
            return False
        self.seconds_to_loss = self.seconds_before + process_seconds()
        self._write_model(network, None, {}, f"first look at which the held-out text cost {wanted} nats per character")
        return True

    def _save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint; where the disk refuses, training goes on and the next one is tried."""
        try:
            self._flush_model()  # a checkpoint promises that the best model so far is there
            insist(lambda: self._write_checkpoint(checkpoint))
            self._unsaved = None
        except OSError as error:
            self._unsaved = error.strerror or str(error)
            self.view.notice(
                f"the checkpoint of step {checkpoint.step} cannot be written ({self._unsaved}); the one before stays, "
                "and training goes on to the next"
            )

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        values = {
            **checkpoint.values,
            "tokenizer": self.tokenizer.to_json(),
            "seconds": self.seconds,
            "best_step": self.best_step,
            "seconds_to_loss": self.seconds_to_loss,
            "sizes": {name: size_of(self.folder / name) for name in ("log.jsonl", "samples.md")},
        }
        for name in ("log.jsonl", "samples.md"):  # the sizes above are a promise
            if (self.folder / name).exists():
                sync_file(self.folder / name)
        save_checkpoint(self.folder / "checkpoints", Checkpoint(checkpoint.step, checkpoint.tensors, values))

    def _rewind(self, checkpoint: Checkpoint) -> None:
        """Cuts log and samples back to where the checkpoint was taken, and takes up the curves."""
        if not self._lightened:  # else the clock of this process has counted them already
            self.seconds_before = checkpoint.values["seconds"]
        self.best_step = checkpoint.values["best_step"]
        self.seconds_to_loss = checkpoint.values.get("seconds_to_loss")
        for name, size in checkpoint.values["sizes"].items():
            if size_of(self.folder / name) > size:
                os.truncate(self.folder / name, size)
        if not size_of(self.folder / "log.jsonl"):  # a long run logs only every so many steps
            return
        for line in (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # torn by a power cut; the checkpoint is whole
                continue
            if record["event"] == "novelty":
                seen = record["samples"]
                self.copied_curve.append((record["step"], seen["longest"], seen[f"copied_{RUN_LENGTHS[0]}"]))
            elif record["event"] == "step" and record["nats_per_char"] is not None:
                self.train_curve.append((record["step"], record["nats_per_char"]))
            elif (seen := record.get("dev") or record.get("held_out_begin")) and seen["nats_per_char"] is not None:
                self.dev_curve.append((record["step"], seen["nats_per_char"]))

    def _write_model(
        self, network: RecurrentLM, step: int | None, scores: Mapping[str, Any], chosen_by: str | None = None
    ) -> None:
        card = self._card(step, scores)
        card["chosen_by"] = card["chosen_by"] if chosen_by is None else chosen_by
        self._unwritten = network.config, weights_of(network), card
        self._attempt(MODEL_FILE, self._flush_model)

    def _flush_model(self) -> None:
        """Writes the model that is waiting to be written, if one is."""
        if self._unwritten is not None:
            config, weights, card = self._unwritten
            path = self.folder / MODEL_FILE
            insist(lambda: write_model(path, config, self.tokenizer, weights, card))
            self._unwritten = None

    def _card(self, step: int | None, scores: Mapping[str, Any]) -> dict[str, Any]:
        corpus, asked = self.corpus, self.setup.train.calibration_temperature
        return {
            "corpus": {
                "name": corpus.name,
                "source": "the user's own text" if "unknown" in corpus.licence.split("; ") else corpus.source,
                "licence": corpus.licence,
                "canonical": corpus.canonical,
                "sha256": corpus.fingerprint,
            },
            "split": {
                "train_chars": corpus.train.num_chars,
                "dev_chars": corpus.dev.num_chars,
                "val_chars": corpus.val.num_chars,
                **({} if corpus.sampled_from is None else {"train_chars_sampled_from": corpus.sampled_from}),
            },
            **({} if self.setup.began_from is None else {"began_from": dict(self.setup.began_from)}),
            "chosen_by": self._chosen_by(step),
            "over": False,  # `_finished` writes the model once more
            **({} if asked is None else {CALIBRATION: asked}),
            "step": step,
            "steps": self.setup.train.steps,
            "train": self._settings,
            "seconds": round(self.seconds, 3),
            "machine": {
                "processor": processor(),
                "cores": usable_cores(),
                "system": platform.system(),
                "device": self.device,
            },
            "versions": {name: version_of(name) for name in ("textlstm", "torch", "numpy", "tokenizers")},
            "date": datetime.now(UTC).date().isoformat(),
            "command": self.request.command if self.setup.command is None else self.setup.command,
            "scores": dict(scores),
        }

    @property
    def _settings(self) -> dict[str, Any]:
        """How it is trained, for the card."""
        return self.setup.train.to_dict() | {"tokenizer": Path(self.setup.train.tokenizer).name}

    def _chosen_by(self, step: int | None) -> str:
        if self.corpus.dev.num_chars:
            return "lowest loss on the development part"
        return "end of the run" if step == self.setup.train.steps else _LATEST

    def _prompt(self) -> str:
        """Words of the user's own text: of what was held out, where there are some."""
        for part in (self.corpus.val, self.corpus.dev, self.corpus.train):
            for number, text in enumerate(part.head(20_000)):
                cut = part.continues and number == 0  # its first line may be
                if words := opening(text.partition("\n")[2] if cut else text):
                    return words
        return ""

    def _interrupted(self, trainer: Trainer) -> None:
        if not self.chooses or not (self.folder / MODEL_FILE).exists():
            self._write_model(trainer.averaged, trainer.step, {}, _LATEST if self.chooses else None)
        if self._unsaved is not None:
            raise RunError(
                f"stopped at step {trainer.step} of {self.setup.train.steps}, but what was done since the last whole "
                f"checkpoint in {self.folder} could not be saved: {self._unsaved}"
            )
        raise Interrupted(
            f"stopped at step {trainer.step} of {self.setup.train.steps}; everything is saved. Go on with: "
            f"textlstm train --resume --out {shlex.quote(str(self.folder))}"
            + (", with the same text on standard input" if "-" in self.setup.sources else ""),
            self._signals.received or signal.SIGTERM,  # another rank got it
        )

    def _finish(self, trainer: Trainer) -> Result:
        try:
            return self._finished(trainer)
        except OSError as error:
            raise RunError(
                f"the run is over, but {self.folder} cannot be written: {error.strerror}. Make room, then finish it "
                f"with: textlstm train --resume --out {shlex.quote(str(self.folder))}"
            ) from error

    def _finished(self, trainer: Trainer) -> Result:
        self._flush_model()
        if not (self.folder / MODEL_FILE).exists():  # no look at the development part gave a finite number
            self._write_model(trainer.averaged, trainer.step, {}, "end of the run: no look gave a finite number")
        file = self._calibrated(self._last_finite(read_model(self.folder / MODEL_FILE), trainer.step))
        val: dict[str, Any] | None = None
        if len(self.tokens.val):
            self.view.notice("scoring the held-out text ...")
            score = score_held_out(TorchEngine(file), self.corpus, self.tokens, "stream")
            val = score.to_dict()
            if is_original_split(self.corpus):
                val["nats_per_gpt2_token"] = score.nats / GPT2_TOKENS_OF_ORIGINAL_SPLIT
            self.view.score(score)
            self._tell_before(score)
            if self.setup.predicted is not None:
                ratio = self.setup.predicted / score.nats_per_char
                off = (
                    f"{abs(ratio - 1):.1%} {'above' if ratio > 1 else 'below'}" if ratio < 2 else f"{ratio:.2g} times"
                )
                self.view.notice(
                    f"predicted before it began: {self.setup.predicted:.3f} nats per character, {off} this score"
                )
        scores = {**file.card["scores"], **({"val": val} if val else {})}
        card = {
            **file.card, "steps": trainer.step, "train": self._settings, "scores": scores,
            "seconds": round(self.seconds, 3), "over": True,
        }  # fmt: skip
        statistics = measure(file, self.tokens.train)  # what `--learn` will go by
        write_model(self.folder / MODEL_FILE, file.config, file.tokenizer, file.weights, card, statistics=statistics)
        values: dict[str, Any] = {
            "steps": trainer.step,
            "seconds": round(self.seconds, 3),
            "train_chars": self.corpus.train.num_chars,
            "params": self.setup.model.num_params,
            "val": val,
            "seconds_to_loss": self.seconds_to_loss,
            "predicted": self.setup.predicted,
            "prompt": self._prompt(),
        }
        append_whole(self.folder / "log.jsonl", json.dumps(_finite({"event": "end", "result": values})) + "\n")
        return Result(self.folder / MODEL_FILE, self.setup.to_dict(), **values)

    def _tell_before(self, after: metrics.Score) -> None:
        """Says what the held-out text cost under the model that the run began from, if that is still there."""
        if self.setup.init_from is None:
            return
        with suppress(TextLSTMError):  # the run is not worth less without it
            initial = read_model(find_model(self.setup.init_from))
            if initial.sha256 == self.setup.init_sha256:
                before = score_held_out(TorchEngine(initial), self.corpus, self.tokens, "stream").nats_per_char
                gained = before - after.nats_per_char
                told = "more: training on helped" if gained > 0 else "less: training on did not help"
                costs = f"the model that it began from costs {before:.4f} nats/char"
                self.view.notice(f"{costs}, {abs(gained):.4f} {told}")

    def _last_finite(self, file: ModelFile, step: int) -> ModelFile:
        """The model, which says and tells so if no later weights were numbers."""
        if file.card["chosen_by"] != _LATEST:
            return file
        kept = f"the last weights that are finite, of step {file.card['step']} of {step}"
        self.view.notice(f"the model has {kept}")
        return dataclasses.replace(file, card={**file.card, "chosen_by": kept})

    def _calibrated(self, file: ModelFile) -> ModelFile:
        """The model with its logits divided by what suits the development part, unless a temperature was asked for."""
        if self.setup.train.calibration_temperature is not None or not self.chooses:
            return file

        def at(temperature: float) -> TorchEngine:
            return TorchEngine(dataclasses.replace(file, config=self.setup.model.cooled(temperature)))

        self.view.notice("calibrating on the development part ...")
        temperature = fitted_temperature(at, self.tokens)
        file = dataclasses.replace(file, card={**file.card, CALIBRATION: temperature})
        if temperature == 1:
            self.view.notice("the logits stay as they are: no temperature is seen to suit it better")
            return file
        engine, protocol = at(temperature), metrics.lanes_for(len(self.tokens.dev))[1]
        dev = score_development(engine, self.corpus, self.tokens, protocol).to_dict()
        self.view.notice(f"logits divided by {temperature:g}: {dev['nats_per_char']:.4f} nats per character of it")
        card = {**file.card, "scores": {**file.card["scores"], "dev": dev}}
        return dataclasses.replace(file, config=engine.config, card=card)


def is_original_split(corpus: Corpus) -> bool:
    """Whether what is held out is the text that the original program was scored on, proved by its hash.

    Args:
        corpus: any; one whose held-out text is a file of its own is not.
    """
    return corpus.canonical and corpus.val_follows and corpus.val.num_chars == HELD_OUT_CHARS


def opening(text: str) -> str:
    """The first words of the first line that begins with some, as a prompt without quotes; "" where none does.

    Args:
        text: any.
    """
    found = (match[0][:_MOST_PROMPT].rstrip() for match in _OPENING.finditer(text))
    shown = (words for words in found if len(words) >= _LEAST_PROMPT and words.isprintable())
    return next((words for words in shown if not set(words) & set("'\"`")), "")  # a shell would want them quoted


_OPENING = re.compile(r"^\w\S*(?: \S+){0,3}", re.MULTILINE)
_LEAST_PROMPT, _MOST_PROMPT = 4, 40  # characters

_SKIPPED = {
    "not finite": "its numbers are not finite",
    "spike": "its loss or gradient stands far out from those before (a guard; --spike-sigmas 0 turns it off)",
}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
