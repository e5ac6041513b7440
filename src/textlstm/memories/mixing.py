"""The mixer of logits. A probability p stands as its logit, log(p / (1 - p)).

Nothing here calls a library of linear algebra: the order of
its sums may change with the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Logits are held within this: e^-20 a turn is 2e-9.
LIMIT = 20.0

#: Which row of weights each turn takes: one each, or one for all; a slice if they are the rows in turn.
Rows = NDArray[np.int64] | int | slice


def squash(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of logits."""
    result: NDArray[np.float64] = 1 / (1 + np.exp(-logits))
    return result


def log_squash(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of the probabilities of logits."""
    result: NDArray[np.float64] = -np.log1p(np.exp(-logits))
    return result


def logit(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits of probabilities."""
    result: NDArray[np.float64] = np.log(probabilities / (1 - probabilities))
    return result


class Mixer:
    """Logistic mixing in two layers (Mahoney 2005; Mattern 2012, "Mixing strategies in data compression").

    Each set of the first layer holds rows of weights; a small context chooses the row, and its output is the sum of
    the inputs by these weights. The second layer mixes the outputs of the sets, with weights of its own for each
    context of the last set. Both follow the gradient of the coding cost, err times input.

    Args:
        start_K: the weights of the inputs to begin with.
        rows: for each set, how many rows it has.
        final_rows: rows of the second layer.
        rate, final_rate: steps along the gradient, in the two layers.
    """

    def __init__(
        self, start_K: NDArray[np.float64], rows: Sequence[int], final_rows: int, rate: float, final_rate: float
    ) -> None:
        self.weights_S = [np.tile(start_K, (count, 1)) for count in rows]
        self.final_RS = np.full((final_rows, len(rows)), 1 / len(rows))
        self._rate, self._final_rate = rate, final_rate

    def copy(self) -> Mixer:
        """Weights of its own."""
        other = object.__new__(Mixer)
        other.weights_S, other.final_RS = [weights.copy() for weights in self.weights_S], self.final_RS.copy()
        other._rate, other._final_rate = self._rate, self._final_rate
        return other

    def mix(
        self, inputs_NK: NDArray[np.float64], rows_S: Sequence[Rows], final_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The logits of the sets, shape (N, S), and their mixture, shape (N,).

        Args:
            inputs_NK: logits to be mixed, of N turns.
            rows_S: for each set the row of each turn, or one for all.
            final_N: the row of the second layer of each turn.
        """
        sets_NS = np.empty((len(inputs_NK), len(rows_S)))
        for number, (weights, rows) in enumerate(zip(self.weights_S, rows_S, strict=True)):
            sets_NS[:, number] = (weights[rows] * inputs_NK).sum(axis=1)
        np.clip(sets_NS, -LIMIT, LIMIT, out=sets_NS)
        mixed_N = (self.final_RS[final_N] * sets_NS).sum(axis=1)
        return sets_NS, np.clip(mixed_N, -LIMIT, LIMIT)

    def learn(
        self,
        inputs_NK: NDArray[np.float64],
        rows_S: Sequence[Rows],
        final_N: NDArray[np.int64],
        bits_N: NDArray[np.int64],
    ) -> None:
        """One step down the cost of turns that came, all from the weights that predicted them."""
        sets_NS, mixed_N = self.mix(inputs_NK, rows_S, final_N)
        error_NS = bits_N[:, None] - squash(sets_NS)
        for number, (weights, rows) in enumerate(zip(self.weights_S, rows_S, strict=True)):
            at_N = np.broadcast_to(np.arange(len(weights))[rows], len(bits_N))
            np.add.at(weights, at_N, self._rate * error_NS[:, number, None] * inputs_NK)
        np.add.at(self.final_RS, final_N, self._final_rate * (bits_N - squash(mixed_N))[:, None] * sets_NS)
