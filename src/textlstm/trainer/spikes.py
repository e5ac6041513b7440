"""Spikes: steps whose loss or gradient stands far out from those before, as a damaged passage of text makes them.

A step is a spike if a value lies more than some standard deviations above the mean of the last 128 (the rule of
OLMo, with 6). What enters the window is cut off at that limit, so that one spike does not blind the guard, and a text
that has truly changed is let through after a few steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

_WINDOW = 128


class SpikeGuard:
    """Watches numbers that come side by side, step by step.

    Args:
        sigmas: standard deviations above the mean that make a spike; 0 sees none.
        series: how many numbers come with each step.
    """

    def __init__(self, sigmas: float, series: int = 2) -> None:
        self._sigmas = sigmas
        self._windows: list[deque[float]] = [deque(maxlen=_WINDOW) for _ in range(series)]

    def is_spike(self, *values: float) -> bool:
        """Takes in the finite numbers of a step and says whether one stands out; never before half a window."""
        found = False
        for window, value in zip(self._windows, values, strict=True):
            if self._sigmas and len(window) >= _WINDOW // 2:
                limit = float(np.mean(window) + self._sigmas * np.std(window))
                found |= value > limit
                value = min(value, limit)
            window.append(value)
        return found

    def state(self) -> list[list[float]]:
        """The windows, as JSON values."""
        return [list(window) for window in self._windows]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Takes up the windows of another guard."""
        self._windows = [deque(values, maxlen=_WINDOW) for values in state]
