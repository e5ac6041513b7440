"""Voices: what the memories say about the turns of the tree, as logits, learnt from how often they were right.

A probability p is kept as its logit, log(p / (1 - p)).
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from textlstm.memories.mixing import logit
from textlstm.memories.tree import TokenTree

#: Counts are told apart up to these: none, 1, 2, 3, 4-5, 6-8, 9-13, 14-29, 30-79, more.
_EDGES = (1, 2, 3, 4, 6, 9, 14, 30, 80)
_TYPICAL = np.array([0, 1, 2, 3, 4.5, 7, 11, 20, 50, 120])
_LEVEL_OF = np.searchsorted(_EDGES, np.arange(_EDGES[-1] + 1), side="right")
_LEAST = 1e-5  # a map's probabilities keep this far from 0 and 1


class AdaptiveMap:
    """A table of probabilities, each of which becomes the share of ones among what came in its place.

    The indirect model of PAQ (Mahoney 2005): what a count of 2 against 0 is worth is not assumed but learnt.

    Args:
        start: the probabilities to begin with, any shape; they count as `_PRIOR` observations.
        rate: weight of an observation when there are many: the table follows changes.
    """

    _PRIOR = 7.0

    def __init__(self, start: NDArray[np.float64], rate: float) -> None:
        self._rate, self._shape = rate, start.shape
        self._p = start.reshape(-1).copy()
        self._count = np.full(self._p.size, self._PRIOR)
        self._logit = logit(self._p)

    def copy(self) -> AdaptiveMap:
        """A table of its own."""
        other = object.__new__(AdaptiveMap)
        other._rate, other._shape = self._rate, self._shape
        other._p, other._count, other._logit = self._p.copy(), self._count.copy(), self._logit.copy()
        return other

    def places(self, *indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the table as places in it."""
        place = indices[0]
        for index, size in zip(indices[1:], self._shape[1:], strict=True):
            place = place * size + index
        return place

    def look(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """The logits at some places."""
        return self._logit[places]

    def learn(self, places: NDArray[np.int64], bits: NDArray[np.int64]) -> None:
        """Takes what came at some places; the same place may occur more than once, in any order."""
        seen = np.bincount(places)
        ones = np.bincount(places, bits, len(seen))
        at = np.flatnonzero(seen)
        times = seen[at]
        self._count[at] += times
        weight = times * np.maximum(1 / self._count[at], self._rate / (1 + times * self._rate))
        p = self._p[at] + weight * (ones[at] / times - self._p[at])
        self._p[at] = np.clip(p, _LEAST, 1 - _LEAST)
        self._logit[at] = logit(self._p[at])


class CountVoice:
    """Speaks from how often the text went left and right at each turn, in C contexts.

    Args:
        contexts: their number C.
        rate: of the map from counts to probabilities.
    """

    def __init__(self, contexts: int, rate: float) -> None:
        shares = (_TYPICAL[None, :] + 0.2) / (_TYPICAL[:, None] + _TYPICAL[None, :] + 0.4)
        self._map = AdaptiveMap(np.tile(shares, (contexts, 1, 1)), rate)

    def copy(self) -> CountVoice:
        """One that learns by itself."""
        other = copy.copy(self)
        other._map = self._map.copy()
        return other

    def look(self, left_CN: NDArray[np.int64], right_CN: NDArray[np.int64]) -> NDArray[np.float64]:
        """Logits of the turns, shape (C, N); 0 where nothing was counted."""
        left_CN, right_CN = (_LEVEL_OF[np.minimum(side, _EDGES[-1])] for side in (left_CN, right_CN))
        self._places_CN = self._map.places(np.arange(len(left_CN))[:, None], left_CN, right_CN)
        self._known_CN = left_CN + right_CN > 0
        return np.where(self._known_CN, self._map.look(self._places_CN), 0.0)

    def learn(self, nodes_D: NDArray[np.int64], bits_D: NDArray[np.int64]) -> None:
        """Takes the turns that came after the last look."""
        known_CD = self._known_CN[:, nodes_D]
        self._map.learn(self._places_CN[:, nodes_D][known_CD], np.broadcast_to(bits_D, known_CD.shape)[known_CD])


class LeafVoice:
    """Speaks for single leaves, that came last or matched: for the turns that lead there, as far as experience says.

    Args:
        kinds: number C of reasons to expect a leaf.
        levels: how many degrees of confidence each has.
        rate: of the map from these to the probability of a turn.
    """

    def __init__(self, kinds: int, levels: int, rate: float) -> None:
        self._map = AdaptiveMap(np.full((kinds, levels), 0.75), rate)
        self._levels = levels

    def copy(self) -> LeafVoice:
        """One that learns by itself."""
        other = copy.copy(self)
        other._map = self._map.copy()
        return other

    def look(self, tree: TokenTree, leaf_C: NDArray[np.int64], level_C: NDArray[np.int64]) -> NDArray[np.float64]:
        """Logits of the turns, shape (C, N); 0 where a kind has no leaf, -1, and off the way to it."""
        kinds_K = np.flatnonzero(leaf_C >= 0)
        self._places_K = self._map.places(kinds_K, np.minimum(level_C[kinds_K], self._levels - 1))
        self._nodes_KD, self._bits_KD = tree.path(leaf_C[kinds_K])
        logits_CN = np.zeros((len(leaf_C), tree.nodes))
        logits_CN[kinds_K[:, None], self._nodes_KD] = self._map.look(self._places_K)[:, None] * (2 * self._bits_KD - 1)
        return logits_CN

    def learn(self, nodes_D: NDArray[np.int64], bits_D: NDArray[np.int64]) -> None:
        """Takes the turns that came after the last look."""
        common_KD = self._nodes_KD == nodes_D
        places_KD = np.broadcast_to(self._places_K[:, None], common_KD.shape)
        self._map.learn(places_KD[common_KD], (self._bits_KD == bits_D)[common_KD])
