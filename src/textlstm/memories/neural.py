"""The neural cache: what came when the network's hidden state was like this one (Grave et al. 2017, 1612.04426)."""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray


class NeuralCache:
    """The last hidden states and the leaf that came after each.

    Args:
        window: how many are kept.
        scale: of the products of two states: theta of equation 2.
    """

    def __init__(self, window: int, scale: float) -> None:
        self._window, self._scale, self._read = window, scale, 0
        self._states_WH: NDArray[np.float32] | None = None
        self._leaf_W = np.empty(window, dtype=np.int64)

    def copy(self) -> NeuralCache:
        """One that goes on by itself."""
        other = copy.copy(self)
        other._leaf_W = self._leaf_W.copy()
        other._states_WH = None if self._states_WH is None else self._states_WH.copy()
        return other

    def look(self, hidden_H: NDArray[np.float32], leaves: int) -> NDArray[np.float64] | None:
        """The share of each leaf, shape (N,), in the cache; None while that is empty.

        Equation 2: each leaf that came has the weight exp(theta h . h_i) of its own state.
        """
        if self._states_WH is None:
            return None
        size = min(self._read, self._window)
        # Not by a library of linear algebra: the order of its sums may depend on the number of threads.
        likeness = np.einsum("wh,h->w", self._states_WH[:size], hidden_H).astype(np.float64)
        weights = np.exp(self._scale * (likeness - likeness.max()))
        shares_N: NDArray[np.float64] = np.bincount(self._leaf_W[:size], weights, leaves) / weights.sum()
        return shares_N

    def push(self, hidden_H: NDArray[np.float32], leaf: int) -> None:
        """Keeps a state and what came after it, in place of the oldest."""
        if self._states_WH is None:
            self._states_WH = np.zeros((self._window, len(hidden_H)), dtype=np.float32)
        place = self._read % self._window
        self._states_WH[place], self._leaf_W[place] = hidden_H, leaf
        self._read += 1
