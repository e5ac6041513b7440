"""The vocabulary as the leaves of a binary tree: to predict a token is to predict the turns on the way to its leaf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TokenTree:
    """A complete binary tree whose leaves are the tokens, in the order of what they write.

    Its nodes are numbered from the root, 1: node n has the children 2n and 2n + 1, so that N inner nodes, N being a
    power of two, come before N leaves. Leaves beyond the vocabulary stand empty.

    Args:
        vocab_size: number V of tokens.
        token_bytes: what each writes, so that tokens that begin alike are near; None takes the order of the ids.
    """

    def __init__(self, vocab_size: int, token_bytes: Sequence[bytes] | None = None) -> None:
        order = range(vocab_size) if token_bytes is None else sorted(range(vocab_size), key=token_bytes.__getitem__)
        self.depth = max(1, (vocab_size - 1).bit_length())
        self.nodes = 1 << self.depth  # N, with node 0, which is not used
        self.leaf_V = np.empty(vocab_size, dtype=np.int64)
        self.leaf_V[np.array(order, dtype=np.int64)] = np.arange(vocab_size)
        self.level_N = np.array([max(n.bit_length() - 1, 0) for n in range(self.nodes)])
        self._shifts_D = np.arange(self.depth, 0, -1)

    def path(self, leaf: NDArray[np.int64] | int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The inner nodes on the way to leaves, shape (..., D), and the turn at each: 0 left, 1 right."""
        numbers = np.asarray(leaf)[..., None] + self.nodes
        return numbers >> self._shifts_D, numbers >> (self._shifts_D - 1) & 1

    def sides(self, weights_XN: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the leaves below each inner node weigh together, on its left and on its right, shape (X, N)."""
        size = self.nodes
        sums = np.zeros((len(weights_XN), 2 * size), dtype=weights_XN.dtype)
        sums[:, size:] = weights_XN
        while size > 2:
            sums[:, size // 2 : size] = sums[:, size : 2 * size : 2] + sums[:, size + 1 : 2 * size : 2]
            size //= 2
        return sums[:, 0::2], sums[:, 1::2]

    def token_logs(self, left_N: NDArray[np.float64], right_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logarithm of each token's probability, shape (V,), from those of the turns."""
        logs, size = np.zeros(1), 1
        while size < self.nodes:
            below = np.empty(2 * size)
            below[0::2] = logs + left_N[size : 2 * size]
            below[1::2] = logs + right_N[size : 2 * size]
            logs, size = below, 2 * size
        logs_V: NDArray[np.float64] = logs[self.leaf_V]
        return logs_V
