"""The one training loop: truncated backpropagation over contiguous lanes, AdamW, averaged weights, exact resume.

The loop knows nothing of files, screens or samples: those reach it as callbacks. Everything that the next step
depends on is in the trainer, and `checkpoint` and `restore` take all of it out and put it back, so that a run which
was stopped anywhere ends in the same bits as one that never was.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textlstm import metrics
from textlstm.config import LEAST_APART, LOOKS, ModelConfig, TrainConfig
from textlstm.corpus import Batch, LaneReader
from textlstm.errors import DivergedError, RunError, UsageError
from textlstm.network import Lanes, RecurrentLM
from textlstm.state import State
from textlstm.trainer.checkpoint import Checkpoint
from textlstm.trainer.device import arithmetic, autocast, to_device
from textlstm.trainer.distributed import Group
from textlstm.trainer.optimizer import AdamW
from textlstm.trainer.spikes import SpikeGuard

Weights = dict[str, NDArray[np.float32]]

_MOST_SECONDS_UNSAVED = 600.0  # else a run of twenty hours could lose two of them; asked for in steps, it is in steps
_MAX_SKIPPED = 10  # steps in a row without finite numbers before the run is given up


@dataclass(frozen=True)
class Development:
    """The text that is scored while training.

    Attributes:
        ids: its tokens, shape (N,).
        context: the tokens before it.
        chars, bytes: its length.
        chooses: whether it picks the best weights; held-out text is only shown, and the last weights are kept.
    """

    ids: NDArray[np.int32]
    context: NDArray[Any]
    chars: int
    bytes: int
    chooses: bool = True


@dataclass(frozen=True)
class StepReport:
    """How one optimizer step went.

    Attributes:
        step: steps done, of `steps`.
        nats: training loss in nats per token of the text; where merges fell apart, all that came of one count as it.
        lr: learning rate.
        tokens: tokens read in this step.
        seconds: time it took.
        epoch: passes over the text begun.
        skipped: why the step was not applied, or None.
    """

    step: int
    steps: int
    nats: float
    lr: float
    tokens: int
    seconds: float
    epoch: int
    skipped: str | None = None


@dataclass(frozen=True)
class Look:
    """A look at the development part.

    Attributes:
        step: steps done.
        dev: its score; None where there is no development part.
        best: whether these weights are the ones to keep so far: the best, or the latest where nothing chooses.
        seconds: time it took.
    """

    step: int
    dev: metrics.Score | None
    best: bool
    seconds: float


@dataclass(frozen=True)
class _Fetched:
    """A batch that is on its way to the device.

    Attributes:
        batch: of all ranks.
        x_BT, y_BT: the lanes of this rank, on the device.
        epoch, stretch: the reader's, with this batch.
        before: where the reader stood before it.
    """

    batch: Batch
    x_BT: torch.Tensor
    y_BT: torch.Tensor
    epoch: int
    stretch: float
    before: Mapping[str, Any]


@dataclass(frozen=True)
class Callbacks:
    """What a run does besides training. Each is called between steps; what a step computes, `recount` alone changes.

    Attributes:
        on_step: after each step.
        on_look: after each look; the weights are the averaged ones.
        save: given a checkpoint when one is due.
        stop: a reason to stop now and save, or None.
        reached: given the averaged network at each look; True ends the run.
        recount: given the steps done, at each look and some times more; how many the whole run shall take, 0 for as
            many as planned.
    """

    on_step: Callable[[StepReport], None] = lambda report: None
    on_look: Callable[[Look, RecurrentLM], None] = lambda look, network: None
    save: Callable[[Checkpoint], None] = lambda checkpoint: None
    stop: Callable[[], str | None] = lambda: None
    reached: Callable[[RecurrentLM], bool] = lambda network: False
    recount: Callable[[int], int] = lambda step: 0


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step: linear warm-up, then a cosine down to `lr_final` times the peak.

    Args:
        config: peak, warm-up, final share and number of steps.
        step: steps done before this one.
    """
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = (step - warmup) / max(1, config.steps - warmup)
    return config.lr * (config.lr_final + (1 - config.lr_final) * 0.5 * (1 + math.cos(math.pi * share)))


def average_decay(config: TrainConfig, step: int) -> float:
    """The decay of the averaged weights at a step: it grows with the run, so that the first weights are forgotten."""
    return min(config.ema, (1 + step) / (10 + step))


class Trainer:
    """A run in progress.

    Args:
        model: the network's shape and regularisation.
        train: how it is trained.
        reader: the training text.
        dev: the text that is scored while training, and may pick the best weights; or None.
        initial: weights to begin from; None draws them.
        device: where to train.
        group: the processes that train together.
        frequencies_V: the share of each token in the training text, for `unigram_bias`.

    Attributes:
        network: what is trained.
        averaged: what comes of it: its averaged weights, and logits divided by `calibration_temperature` where that is
            set (Guo et al. 2017, arXiv 1706.04599).
    """

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        reader: LaneReader,
        dev: Development | None = None,
        initial: Mapping[str, NDArray[np.float32]] | None = None,
        device: str = "cpu",
        group: Group | None = None,
        frequencies_V: NDArray[np.float64] | None = None,
    ) -> None:
        self.config, self.reader, self.dev = train, reader, dev
        self.group = Group() if group is None else group
        seeded = torch.Generator().manual_seed(train.seed)
        self.network = RecurrentLM(model, seeded)
        if initial is not None:
            self.network.load_state_dict({name: torch.from_numpy(array) for name, array in initial.items()})
        elif train.unigram_bias and frequencies_V is not None:
            self.network.predict_frequencies(frequencies_V)
        self.network.to(device)
        self.averaged = copy.deepcopy(self.network) if train.ema else copy.copy(self.network)  # the same weights
        temperature = train.calibration_temperature
        self.averaged.config = model if temperature is None else model.cooled(temperature)
        self._parameters = dict(self.network.named_parameters())
        self._optimizer = AdamW(self._parameters, train.beta1, train.beta2, train.weight_decay)
        self._generator = torch.Generator(device).manual_seed(train.seed + 1)
        if self.group.size > reader.batch_size:
            raise UsageError(
                f"{self.group.size} processes need as many lanes; text and --batch-size give {reader.batch_size}"
            )
        self._rows = self.group.rows(reader.batch_size)
        self._state = self.network.zero_state(self._rows.stop - self._rows.start)
        self._loss = self.group.loss_of(self.network)
        self._ahead: _Fetched | None = None
        self._fetches_ahead = self.network.device.type in ("cuda", "xpu")  # their work goes on after a call returns
        self.step = 0
        self.best: float | None = None
        self._stale = 0
        self._skipped = 0
        self._guard = SpikeGuard(train.spike_sigmas)
        self.finished = False
        self._saved = time.monotonic()

    def recount(self, steps: int) -> None:
        """Lets the run take another number of steps in all, more than are done: schedules go on as if it always had.

        The decay of the averaged weights stays, and so does the number of steps that it spans.

        Args:
            steps: the number.
        """
        self.config = self.config.replace(steps=steps)
        if self._ahead is not None:  # it may be the first of a pass
            self.reader.load_state_dict(self._ahead.before)
            self._ahead = None
        self.reader.recount(steps)

    @property
    def look_every(self) -> int:
        """Steps between looks at the development part."""
        every = self.config.eval_every
        return self._usual_spacing if every is None else every

    @property
    def _usual_spacing(self) -> int:
        return max(self.config.steps // LOOKS, min(self.config.steps, LEAST_APART))

    @property
    def _recount_every(self) -> int:
        """Steps after which they may be counted again: at each look, and between looks that are far apart."""
        return min(self.look_every, self._usual_spacing)

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""
        every = self.config.checkpoint_every
        return 2 * self.look_every if every is None else every

    def run(self, callbacks: Callbacks) -> str | None:
        """Trains to the end, or until told to stop.

        Args:
            callbacks: what happens besides.

        Returns:
            None at the end of the run, else the reason that `callbacks.stop` gave; a checkpoint was saved.

        Raises:
            DivergedError: the numbers stopped being finite.
        """
        self._saved = time.monotonic()
        with self.group.together():
            while not self.finished:
                report = self.advance()
                callbacks.on_step(report)
                if self.step % self.look_every == 0 or self.step == self.config.steps:
                    self._look_with(callbacks)
                recounted = self.step % self._recount_every == 0 and not self.finished and self._recounted(callbacks)
                reason, overdue = self._wishes(callbacks)
                if self.step % self.checkpoint_every == 0 or self.finished or reason or overdue or recounted:
                    checkpoint = self.checkpoint()
                    with self.group.apart():
                        callbacks.save(checkpoint)
                    self._saved = time.monotonic()
                if reason and not self.finished:
                    return reason
        return None

    def _look_with(self, callbacks: Callbacks) -> None:
        """Looks at the development part, and sees whether that ends the run."""
        look = self._look()
        with self.group.apart():
            callbacks.on_look(look, self.averaged)
        early = bool(self.config.patience) and self._stale >= self.config.patience
        reached = bool(self.group.largest(callbacks.reached(self.averaged)))  # asked at the last look too
        self.finished = reached or early or self.step == self.config.steps

    def _recounted(self, callbacks: Callbacks) -> bool:
        """Whether the number of steps was changed; a checkpoint is due then, since it says where that was."""
        steps = int(self.group.largest(callbacks.recount(self.step)))
        if steps in (0, self.config.steps):
            return False
        self.recount(steps)
        return True

    def _wishes(self, callbacks: Callbacks) -> tuple[str | None, bool]:
        """Why to stop, if so, and whether a checkpoint is overdue; what one rank wishes, all do."""
        reason = callbacks.stop()
        overdue = self.config.checkpoint_every is None and time.monotonic() - self._saved > _MOST_SECONDS_UNSAVED
        wish = self.group.largest(2 if reason is not None else int(overdue))
        return ("another rank was told to stop" if wish == 2 and reason is None else reason), wish == 1

    def advance(self) -> StepReport:
        """Takes one optimizer step."""
        started = time.perf_counter()
        config = self.config
        fetched = self._fetch() if self._ahead is None else self._ahead
        batch, state = fetched.batch, self._state
        if batch.fresh_B.any():
            kept = torch.from_numpy(~batch.fresh_B[self._rows]).to(self.network.device)[None, :, None]
            state = State(state.h_LBH * kept, state.c_LBH * kept)
        nats = self._gradients(fetched, state)
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        skipped = None
        if not (math.isfinite(nats) and math.isfinite(float(norm))):
            skipped = "not finite"
            self._skip()
        elif 2 * batch.x_BT.shape[1] >= config.seq_len and self._guard.is_spike(nats, float(norm)):
            # The short segment at the end of a pass has a loss of its own: of 4,159 steps it made three "spikes".
            skipped = "spike"
        else:
            self._apply(norm)
            self._skipped = 0
        self._optimizer.clear_gradients()
        self.step += 1
        return StepReport(
            self.step, config.steps, nats * fetched.stretch, learning_rate(config, self.step - 1), batch.x_BT.size,
            time.perf_counter() - started, fetched.epoch, skipped,
        )  # fmt: skip

    def _fetch(self) -> _Fetched:
        """Reads a batch and sends the lanes of this rank to the device."""
        before, device = self.reader.state_dict(), self.network.device
        batch = next(self.reader)
        x_BT, y_BT = (to_device(ids[self._rows], device) for ids in (batch.x_BT, batch.y_BT))
        return _Fetched(batch, x_BT, y_BT, self.reader.epoch, self.reader.stretch, before)

    def _gradients(self, fetched: _Fetched, state: State) -> float:
        """Adds up the gradients of all portions of the lanes, and takes their states; nats per token of the batch.

        A GPU gets the next batch meanwhile.
        """
        config, device, total = self.config, self.network.device, self.reader.batch_size
        own = self._rows.stop - self._rows.start
        borders = sorted({own * k // config.accumulate for k in range(config.accumulate + 1)})
        drawn = self._generator.get_state()  # every portion draws the masks of the whole batch
        whole = self.group.size == 1 and len(borders) == 2
        costs, states = list[tuple[torch.Tensor, float]](), []
        for start, end in itertools.pairwise(borders):
            self._generator.set_state(drawn)
            x_BT, y_BT = fetched.x_BT[start:end], fetched.y_BT[start:end]
            together = nullcontext() if end == own else self.group.alone(self._loss)
            with together, arithmetic(device, config.precision):
                with autocast(device, config.precision):
                    loss, after = self._loss(
                        x_BT, y_BT, State(state.h_LBH[:, start:end], state.c_LBH[:, start:end]), self._generator,
                        config.label_smoothing, config.activation_penalty, config.temporal_penalty,
                        None if whole else Lanes(self._rows.start + start, total),
                    )  # fmt: skip
                # The ranks' gradients are averaged: each counts by its share of the lanes, times the number of ranks.
                share = (end - start) / total
                objective = loss.objective if whole else loss.objective * (share * self.group.size)
                objective.backward()
            costs.append((loss.nats.detach(), share))
            states.append(after)
        self._ahead = self._fetch() if self._fetches_ahead else None
        self._state = states[0] if whole else State.stack(states)
        nats = math.fsum(float(cost) * share for cost, share in costs)  # waits for a GPU
        return nats if whole else self.group.sum(nats)

    def _apply(self, norm: torch.Tensor) -> None:
        config = self.config
        if config.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), config.clip, norm)
        self._optimizer.step(learning_rate(config, self.step))
        if config.ema:
            pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
            averaged, current = (list(side) for side in zip(*pairs, strict=True))
            with torch.no_grad():
                torch._foreach_lerp_(averaged, current, 1 - average_decay(config, self.step))

    def _skip(self) -> None:
        """A step whose numbers are not finite is not applied; the state it left is dropped too."""
        self._skipped += 1
        self._state = self.network.zero_state(self._state.rows)
        if self._skipped >= _MAX_SKIPPED:
            raise DivergedError(
                f"training diverged at step {self.step}: {_MAX_SKIPPED} steps in a row had numbers that are not "
                f"finite; try a lower --lr than {self.config.lr:g}"
                + (", or --device cpu: mps is known for wrong numbers" if self.network.device.type == "mps" else "")
            )

    def _look(self) -> Look:
        started = time.perf_counter()
        if self.dev is None:
            return Look(self.step, None, self._finite(), time.perf_counter() - started)
        lanes, protocol = metrics.lanes_for(len(self.dev.ids))
        context = self.dev.context[-metrics.WARM_UP :]
        dev = (
            metrics.score(
                self.averaged, self.dev.ids, self.dev.chars, self.dev.bytes, context, protocol, metrics.WARM_UP
            )
            if self.group.size == 1
            else self._score_together(self.dev, context, lanes, protocol)
        )
        if not self.dev.chooses:
            return Look(self.step, dev, self._finite(), time.perf_counter() - started)
        best = math.isfinite(dev.nats) and (self.best is None or dev.nats < self.best)
        if best:
            self.best, self._stale = dev.nats, 0
        else:
            self._stale += 1
        return Look(self.step, dev, best, time.perf_counter() - started)

    def _finite(self) -> bool:
        """Whether these weights are kept where nothing chooses: the latest ones, if they are numbers."""
        return all(bool(p.isfinite().all()) for p in self.averaged.parameters())

    def _score_together(self, dev: Development, context: NDArray[Any], lanes: int, protocol: str) -> metrics.Score:
        """The score of the development part, each rank reading some of its lanes."""
        lanes, length = metrics.lane_shape(len(dev.ids), lanes)
        own = self.group.rows(lanes)
        begin, end = own.start * length, min(own.stop * length, len(dev.ids))
        boundary, nats = self.averaged.config.boundary_id, 0.0
        if end > begin:
            first = [] if boundary is None else [boundary]
            stream = np.concatenate([np.array(first, dtype=np.int64), context, dev.ids.astype(np.int64)])
            warm_up = min(metrics.WARM_UP, len(stream) - len(dev.ids))
            before = len(stream) - len(dev.ids) - warm_up + begin
            filled = np.zeros((own.stop - own.start) * length, dtype=np.int64)
            filled[: end - begin] = dev.ids[begin:end]
            costs = metrics.token_nats(
                self.averaged, filled, stream[before : before + warm_up], f"stream-{own.stop - own.start}", warm_up
            )
            nats = math.fsum(costs[: end - begin])
        tokens = len(dev.ids) if boundary is None else int((dev.ids != boundary).sum())
        return metrics.Score(protocol, dev.chars, dev.bytes, tokens, self.group.sum(nats))

    def checkpoint(self) -> Checkpoint:
        """All that the next step depends on; all ranks have to ask for it."""
        total = self.reader.batch_size
        tensors = {"generator": self._generator.get_state().numpy()}
        for name, part in (("h", self._state.h_LBH), ("c", self._state.c_LBH)):
            tensors[f"state.{name}"] = _numpy(self.group.gather(part, total))
        for name, parameter in self._parameters.items():
            tensors[f"network.{name}"] = _numpy(parameter)
        tensors |= {name: _numpy(moment) for name, moment in self._optimizer.named_moments()}
        if self.config.ema:
            tensors |= {f"averaged.{name}": _numpy(p) for name, p in self.averaged.named_parameters()}
        values = {
            "device": self.network.device.type,
            "reader": self.reader.state_dict() if self._ahead is None else self._ahead.before,
            "best": self.best,
            "stale": self._stale,
            "skipped": self._skipped,
            "spikes": self._guard.state(),
            "finished": self.finished,
            "steps": self.config.steps,
        }
        return Checkpoint(self.step, tensors, values)

    def beginning(self) -> Checkpoint:
        """The checkpoint of before the first step; all ranks have to ask for it."""
        with self.group.together():
            return self.checkpoint()

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes to where a checkpoint was taken.

        Raises:
            RunError: the checkpoint is of another network.
        """
        tensors, values, device = checkpoint.tensors, checkpoint.values, self.network.device
        if (kind := values.get("device", device.type)) != device.type:
            raise RunError(
                f"the checkpoint of step {checkpoint.step} was taken on {kind}, and {device.type} does not have its "
                f"random numbers: go on with --device {kind}, or begin anew from its model with --init-from"
            )
        try:
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(tensors[f"network.{name}"]))
            self._optimizer.restore({name: torch.from_numpy(array) for name, array in tensors.items()})
            if self.config.ema:
                for name, parameter in self.averaged.named_parameters():
                    parameter.copy_(torch.from_numpy(tensors[f"averaged.{name}"]))
            self._generator.set_state(torch.from_numpy(tensors["generator"]))
            arrays = (torch.from_numpy(tensors[f"state.{name}"][:, self._rows].copy()).to(device) for name in "hc")
            self._state = State(*arrays)
            self._ahead = None
            self.recount(values.get("steps", self.config.steps))
            self.reader.load_state_dict(values["reader"])
            self.step, self.best, self._stale = checkpoint.step, values["best"], values["stale"]
            self._skipped, self.finished = values["skipped"], values["finished"]
            self._guard.restore(values.get("spikes", self._guard.state()))
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the checkpoint of step {checkpoint.step} does not fit this run: {error}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the machine's or the device's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and (told in _ONEDNN or any(words in told for words in _OUT_OF_MEMORY))


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
# All that oneDNN tells where it has no memory for a kernel. What it does not support, it names in longer words.
_ONEDNN = ("could not create a primitive", "could not create a memory object", "could not execute a primitive")


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy().copy()
    return array


def weights_of(network: RecurrentLM) -> Weights:
    """The weights of a network as numpy arrays, by name."""
    return {name: _numpy(parameter) for name, parameter in network.named_parameters()}
