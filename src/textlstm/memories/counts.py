"""How often which token came after which context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class _Successors:
    """What came after one context: how often each leaf, the last one, and how many times in a row that one."""

    __slots__ = ("counts", "last", "run")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.last, self.run = -1, 0

    def copy(self) -> _Successors:
        other = _Successors()
        other.counts, other.last, other.run = self.counts.copy(), self.last, self.run
        return other


class Seen:
    """What memories of counts say about C contexts.

    Attributes:
        counts_CN: how often each leaf came.
        last_C: the leaf that came last, -1 where none did.
        run_C: how many times in a row it did.
    """

    def __init__(self, contexts: int, leaves: int) -> None:
        self.counts_CN = np.zeros((contexts, leaves), dtype=np.int64)
        self.last_C = np.full(contexts, -1, dtype=np.int64)
        self.run_C = np.zeros(contexts, dtype=np.int64)

    def beside(self, other: Seen) -> Seen:
        """These contexts, and others after them."""
        both = Seen(0, 0)
        both.counts_CN, both.last_C, both.run_C = (
            np.concatenate([getattr(one, name) for one in (self, other)]) for name in ("counts_CN", "last_C", "run_C")
        )
        return both


class LiveCounts:
    """Counts that grow with the text, in one table per context.

    Args:
        contexts: number of tables.
    """

    def __init__(self, contexts: int) -> None:
        self._tables: list[dict[int, _Successors]] = [{} for _ in range(contexts)]

    def copy(self) -> LiveCounts:
        """Counts of its own."""
        other = LiveCounts(0)
        other._tables = [{key: after.copy() for key, after in table.items()} for table in self._tables]
        return other

    def push(self, keys: Sequence[int], leaf: int) -> None:
        """Counts a leaf after its contexts."""
        for table, key in zip(self._tables, keys, strict=True):
            after = table.get(key)
            if after is None:
                after = table[key] = _Successors()
            after.counts[leaf] = after.counts.get(leaf, 0) + 1
            after.run = after.run + 1 if after.last == leaf else 1
            after.last = leaf

    def add_to(self, seen: Seen, keys: Sequence[int]) -> None:
        """Adds what came after some contexts; where older counts end in the same run, the run goes on."""
        for number, (table, key) in enumerate(zip(self._tables, keys, strict=True)):
            after = table.get(key)
            if after is None:
                continue
            size = len(after.counts)
            leaves = np.fromiter(after.counts.keys(), np.int64, size)
            seen.counts_CN[number, leaves] += np.fromiter(after.counts.values(), np.int64, size)
            unbroken = size == 1 and seen.last_C[number] == after.last
            seen.run_C[number] = after.run + (seen.run_C[number] if unbroken else 0)
            seen.last_C[number] = after.last


class FrozenCounts:
    """Counts of a text that has been read as a whole, in sorted arrays: some 30 bytes a token and context.

    Args:
        keys_TC: the contexts of each token, uint64.
        leaf_T: the leaf of each token.
    """

    def __init__(self, keys_TC: NDArray[np.uint64], leaf_T: NDArray[np.int64]) -> None:
        self._tables = [_Table(keys_T, leaf_T) for keys_T in keys_TC.T]

    def add_to(self, seen: Seen, keys: Sequence[int]) -> None:
        """Puts in what came after some contexts, into what is empty so far."""
        for number, (table, key) in enumerate(zip(self._tables, keys, strict=True)):
            table.add_to(seen, number, np.uint64(key))


class _Table:
    """The counts of one context.

    Args:
        keys_T, leaf_T: the key and the leaf of each token.
    """

    def __init__(self, keys_T: NDArray[np.uint64], leaf_T: NDArray[np.int64]) -> None:
        order = np.lexsort((leaf_T, keys_T))
        new = np.flatnonzero(_starts(keys_T[order], leaf_T[order]))
        pair_keys = keys_T[order][new]
        self._leaves = leaf_T[order][new].astype(np.int32)
        self._counts = np.diff(new, append=len(order)).astype(np.int32)
        self._begin = np.append(np.flatnonzero(np.append(True, pair_keys[1:] != pair_keys[:-1])), len(new))
        in_time = np.argsort(keys_T, kind="stable")
        keys, leaves = keys_T[in_time], leaf_T[in_time]
        began = np.maximum.accumulate(np.where(_starts(keys, leaves), np.arange(len(keys)), 0))
        ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)[: len(keys)])
        self._keys, self._last = keys[ends], leaves[ends].astype(np.int32)
        self._run = (ends - began[ends] + 1).astype(np.int32)

    def add_to(self, seen: Seen, number: int, key: np.uint64) -> None:
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            return
        seen.last_C[number], seen.run_C[number] = self._last[place], self._run[place]
        pairs = slice(self._begin[place], self._begin[place + 1])
        seen.counts_CN[number, self._leaves[pairs]] += self._counts[pairs]


def _starts(keys: NDArray[np.uint64], leaves: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a key or a leaf differs from the one before."""
    return np.append(True, (keys[1:] != keys[:-1]) | (leaves[1:] != leaves[:-1]))[: len(keys)]
