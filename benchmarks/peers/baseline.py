"""What the baselines share: a clock that stands still while the held-out text is scored, schedule, training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Shares of the time at which the held-out text is scored, at the next step.
MARKS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1.0)


class Clock:
    """Seconds since a process began, less those it was stopped for.

    Args:
        since: seconds that have passed already.
        now: tells the time.
    """

    def __init__(self, since: float, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._began, self.stopped = now, now() - since, 0.0

    @property
    def seconds(self) -> float:
        """Seconds that count."""
        return self._now() - self._began - self.stopped

    @contextmanager
    def stop(self) -> Iterator[None]:
        """Nothing counts within it."""
        began = self._now()
        yield
        self.stopped += self._now() - began


class Curve:
    """Loss against seconds.

    Args:
        clock: of the process.
        limit: seconds that the contestant has.

    Attributes:
        points: seconds, steps, nats per character.
    """

    def __init__(self, clock: Clock, limit: float) -> None:
        self.clock, self.limit = clock, limit
        self.points: list[tuple[float, int, float]] = []
        self._marks = [share * limit for share in MARKS]

    @property
    def done(self) -> bool:
        """Whether the time is over, and the last score taken."""
        return not self._marks

    def look(self, step: int, score: Callable[[], float]) -> None:
        """Scores if a mark has passed since the last time."""
        seconds = self.clock.seconds
        if self.passed(seconds):
            with self.clock.stop():
                self.points.append((seconds, step, score()))

    def passed(self, seconds: float) -> bool:
        """Takes the marks until now, and tells whether there were any."""
        ahead = [mark for mark in self._marks if mark > seconds]
        any_passed, self._marks = len(ahead) < len(self._marks), ahead
        return any_passed


@dataclass(frozen=True)
class Recipe:
    """How a baseline is trained: Adam with decoupled weight decay, linear warm-up, cosine.

    Attributes:
        lr: highest learning rate.
        lr_final: share of it at the end.
        warmup: share of the training time until the highest.
        beta2: of Adam; beta1 is 0.9.
        weight_decay: of what has two dimensions or more.
        clip: highest norm of the gradient.
        batch, length: sequences in a step, and characters in each.
    """

    lr: float
    lr_final: float
    warmup: float
    beta2: float
    weight_decay: float
    clip: float
    batch: int
    length: int


def learning_rate(recipe: Recipe, share: float) -> float:
    """The learning rate after a share of the training time."""
    if share < recipe.warmup:
        return recipe.lr * share / recipe.warmup
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (share - recipe.warmup) / (1 - recipe.warmup))))
    return recipe.lr * (recipe.lr_final + (1 - recipe.lr_final) * cosine)


def train(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    recipe: Recipe,
    curve: Curve,
    score: Callable[[], float],
) -> None:
    """Trains until the time is over; the schedule goes by the time, so that it ends with it on any machine.

    Args:
        network: `network.loss(x, y, state)` gives the loss, and the state for the next batch.
        batches: without end.
        recipe: how.
        curve: what the time and the losses are kept in.
        score: the loss on the held-out text.
    """
    parameters = list(network.parameters())
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2), fused=True)
    began = curve.clock.seconds
    state: Any = None
    for step, (x, y) in enumerate(batches, 1):
        share = (curve.clock.seconds - began) / max(1e-3, curve.limit - began)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, share)
        loss, state = network.loss(x, y, state)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.look(step, score)
        if curve.done:
            return
