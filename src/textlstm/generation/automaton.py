"""A pattern as a deterministic automaton over the bytes of UTF-8, built as far as it is used.

Characters are sorted into classes that the pattern cannot tell apart. A nondeterministic automaton over characters
(Thompson 1968) is made whole, with the bytes that each state is away from the end; states that cannot reach the end
are left out, so a text that is alive can always be finished. A deterministic state is a set of its states, and within
a character also the bits of it that were read. Rows of the transition table are filled when they are first asked for.
A step costs the same however the pattern is nested; nothing is ever tried and taken back.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from textlstm.errors import UsageError
from textlstm.generation.regex import Chars, Choice, Node, Ranges, Repeat, Sequel

DEAD = 0  # number of the state that nothing leads out of
FAR = 1 << 30  # distance of what cannot reach the end
_ACCEPT = 0  # the state of the nondeterministic automaton where a text is complete
_MAX_STATES = 50_000  # of the nondeterministic automaton
_MAX_ROWS = 8_000  # of the table, a kilobyte each; then it is begun anew
_MAX_WORK = 5_000_000  # members of sets that may be looked at: some seconds


class Partial(NamedTuple):
    """A character of which some bytes were read.

    Attributes:
        low: the smallest code point it can be; -1 once all that it can be are of one class.
        kind: that class, or -1.
        missing: bytes that are still to come.
        size: bytes of the whole character.
    """

    low: int
    kind: int
    missing: int
    size: int


Key = tuple[frozenset[int], Partial | None]  # what a deterministic state stands for


class _Thompson:
    """The nondeterministic automaton: each state passes one character on, or leads on without one.

    Args:
        tree: the pattern.
    """

    def __init__(self, tree: Node) -> None:
        self.ranges: list[Ranges | None] = [None]
        self.targets: list[tuple[int, ...]] = [()]
        self._known: dict[tuple[Ranges | None, tuple[int, ...]], int] = {}  # so that common ends are made once
        self.start = self._build(tree, _ACCEPT)

    def _add(self, ranges: Ranges | None, *targets: int) -> int:
        known = self._known.get((ranges, targets))
        if known is not None:
            return known
        if len(self.targets) >= _MAX_STATES:
            raise UsageError(f"the pattern is too large: it takes more than {_MAX_STATES:,} states; repeat less")
        self.ranges.append(ranges)
        self.targets.append(targets)
        self._known[ranges, targets] = number = len(self.targets) - 1
        return number

    def _build(self, node: Node, target: int) -> int:
        """Adds what the node matches before a target; returns where it begins."""
        match node:
            case Chars(ranges):
                return self._add(ranges, target)
            case Sequel(items):
                for item in reversed(items):
                    target = self._build(item, target)
                return target
            case Choice(options):
                return self._add(None, *(self._build(option, target) for option in options))
            case Repeat(item, least, most):
                end = target
                if most is None:
                    target = self._add(None, -len(self.targets))  # a target of its own until it is known
                    self.targets[target] = (self._build(item, target), end)
                for _ in range(0 if most is None else most - least):
                    target = self._add(None, self._build(item, target), end)
                for _ in range(least):
                    target = self._add(None, self._build(item, target))
                return target


class _Classes:
    """Characters sorted into classes that are in the same sets and take as many bytes.

    Args:
        sets: the sets of characters that matter.
    """

    def __init__(self, sets: list[Ranges]) -> None:
        edges = {0, 0x80, 0x800, 0xD800, 0xE000, 0x10000, 0x110000}
        edges |= {edge for ranges in sets for first, last in ranges for edge in (first, last + 1)}
        self._starts = sorted(edges)
        place = {start: i for i, start in enumerate(self._starts)}
        owners: list[list[int]] = [[] for _ in self._starts]  # sets that each run of code points is in
        work = 0
        for number, ranges in enumerate(sets):
            for first, last in ranges:
                work += place[last + 1] - place[first]
                if work > _MAX_WORK:
                    raise UsageError("the pattern is too large: it tells too many characters apart")
                for i in range(place[first], place[last + 1]):
                    owners[i].append(number)
        known: dict[tuple[int, ...], int] = {}
        signatures = [(_size(start), *own) for start, own in zip(self._starts, owners, strict=True)]
        self._kinds = [known.setdefault(signature, len(known)) for signature in signatures]
        self.sizes = [size for size, *_ in known]  # bytes of a character; 0 for what is none
        self.masks = [0] * len(sets)  # with a bit for each class of real characters
        for (size, *own), kind in known.items():
            for number in own if size else []:
                self.masks[number] |= 1 << kind
        self.ascii = np.array([self.of(code) for code in range(128)])

    def of(self, code: int) -> int:
        """The class of a character."""
        return self._kinds[bisect_right(self._starts, code) - 1]

    def between(self, first: int, last: int) -> set[int]:
        """The classes of a run of code points."""
        return set(self._kinds[bisect_right(self._starts, first) - 1 : bisect_right(self._starts, last)])


class Automaton:
    """Which bytes may follow, and how many are needed to the end.

    Numbers of states are good until `fill` begins the table anew; a `Key` is good for ever.

    Args:
        tree: the pattern.
        alphabet: characters that can be written; None is all of Unicode.

    Attributes:
        start: where a text begins.
        next_SC: the table: state and byte to state, -1 where not yet known.
        distance_S: bytes, or tokens once refined, from a state to the nearest complete text; 0 where it is complete.
        chars_S: characters that have to begin from a state to the complete text with the fewest.
        generation: how often the table was begun anew.

    Raises:
        UsageError: the pattern is too large, or no text fits.
    """

    def __init__(self, tree: Node, alphabet: Ranges | None = None) -> None:
        self._graph = _Thompson(tree)
        sets = list(dict.fromkeys(r for r in self._graph.ranges if r is not None))
        self._classes = _Classes(sets + ([alphabet] if alphabet is not None else []))
        writable = self._classes.masks[-1] if alphabet is not None else -1
        masks = {ranges: mask & writable for ranges, mask in zip(sets, self._classes.masks, strict=False)}
        self._masks = [0 if ranges is None else masks[ranges] for ranges in self._graph.ranges]
        sizes = self._classes.sizes
        self._distances = self._measure([min((sizes[k] for k in _bits(mask)), default=FAR) for mask in self._masks])
        self._chars = self._measure([1 if mask else FAR for mask in self._masks])
        if self._distances[self._graph.start] == FAR:
            raise UsageError("no text that this model can write fits the pattern")
        self._work = 0
        self._bytes: dict[Partial | None, list[tuple[list[int], Partial, frozenset[int]]]] = {}
        self.generation = 0
        self._clear()
        self.start: Key = (self._closure([self._graph.start]), None)

    def _clear(self) -> None:
        self.generation += 1
        self._numbers: dict[Key, int] = {}
        self._keys: list[Key] = [(frozenset(), None)]
        self._moves: dict[frozenset[int], dict[int, int]] = {}
        self.next_SC: NDArray[np.int32] = np.full((64, 256), -1, np.int32)
        self.next_SC[DEAD] = DEAD
        self.distance_S: NDArray[np.int32] = np.full(64, FAR, np.int32)
        self.chars_S: NDArray[np.int32] = np.full(64, FAR, np.int32)

    def _measure(self, costs: list[int]) -> list[int]:
        """The way from each state of the graph to the end, by what each state's character costs (Dijkstra 1959)."""
        graph = self._graph
        before: list[list[int]] = [[] for _ in graph.targets]
        for state, targets in enumerate(graph.targets):
            for target in targets:
                before[target].append(state)
        distances = [FAR] * len(graph.targets)
        queue = [(0, _ACCEPT)]
        while queue:
            distance, state = heapq.heappop(queue)
            if distance < distances[state]:
                distances[state] = distance
                for earlier in before[state]:
                    cost = 0 if graph.ranges[earlier] is None else costs[earlier]
                    if distance + cost < distances[earlier]:
                        heapq.heappush(queue, (distance + cost, earlier))
        return distances

    def _closure(self, states: list[int]) -> frozenset[int]:
        """All states that pass a character on, or the end, that are reached without a character."""
        graph, seen, found = self._graph, set(states), []
        while states:
            state = states.pop()
            if self._distances[state] == FAR:
                continue
            if state == _ACCEPT or graph.ranges[state] is not None:
                found.append(state)
                continue
            fresh = [target for target in graph.targets[state] if target not in seen]
            seen.update(fresh)
            states += fresh
        self._work += len(seen)
        if self._work > _MAX_WORK:
            raise UsageError("the pattern is too complex to be followed; repeat less, or nest fewer repeats")
        return frozenset(found)

    def number(self, key: Key) -> int:
        """The number of a state."""
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self._keys)
            self._keys.append(key)
            if found == len(self.next_SC):
                self.next_SC = np.concatenate([self.next_SC, np.full_like(self.next_SC, -1)])
                self.distance_S = np.concatenate([self.distance_S, np.full_like(self.distance_S, FAR)])
                self.chars_S = np.concatenate([self.chars_S, np.full_like(self.chars_S, FAR)])
            self.distance_S[found], self.chars_S[found] = self._distance(key)
        return found

    def key(self, number: int) -> Key:
        """What a state stands for."""
        return self._keys[number]

    def restart_if_full(self) -> None:
        """Begins the table anew if it has grown too large: all numbers change."""
        if len(self._keys) > _MAX_ROWS:
            self._clear()

    def refine(self, following: Callable[[Key], list[Key]], most: int) -> None:
        """Counts distances in tokens instead of bytes, as far as they get shorter by it.

        Args:
            following: the states that one token leads to.
            most: states of the graph that are looked at; the others keep their bytes, which is enough in any case.
        """
        near = [s for s, d in enumerate(self._distances) if 1 < d < FAR and self._graph.ranges[s] is not None]
        near = sorted(near, key=self._distances.__getitem__)[:most]
        ways = {state: [k[0] for k in following((frozenset([state]), None)) if k[1] is None] for state in near}
        changed = True
        while changed:
            changed = False
            for state, reached in ways.items():
                shortest = 1 + min((self._distances[s] for members in reached for s in members), default=FAR)
                if shortest < self._distances[state]:
                    self._distances[state], changed = shortest, True
        self._clear()

    def advance(self, key: Key, data: bytes) -> Key | None:
        """Where some bytes lead, or None where they leave the pattern."""
        state = self.number(key)
        for byte in data:
            if self.next_SC[state, byte] < 0:
                self.fill(state)
            state = int(self.next_SC[state, byte])
            if state == DEAD:
                return None
        return self._keys[state]

    def _distance(self, key: Key) -> tuple[int, int]:
        members, partial = key
        if partial is None:
            return min(self._distances[state] for state in members), min(self._chars[state] for state in members)
        moves = self._moves_of(members)
        after = [moves[k] for k in self._kinds(partial) if k in moves]
        return partial.missing + int(self.distance_S[after].min()), int(self.chars_S[after].min())

    def _moves_of(self, members: frozenset[int]) -> dict[int, int]:
        """Where each class of characters leads from a set of states."""
        found = self._moves.get(members)
        if found is None:
            targets: dict[int, list[int]] = {}
            for state in members:
                if self._distances[state] < FAR:
                    for kind in _bits(self._masks[state]):
                        targets.setdefault(kind, []).extend(self._graph.targets[state])
            reached = {kind: self._closure(list(set(states))) for kind, states in targets.items()}
            found = {kind: self.number((states, None)) for kind, states in reached.items() if states}
            self._moves[members] = found
        return found

    def fill(self, state: int) -> None:
        """Fills the row of a state."""
        members, partial = self._keys[state]
        moves = self._moves_of(members)
        row_C = np.zeros(256, np.int32)
        if partial is None:
            by_kind = np.zeros(len(self._classes.sizes), np.int32)
            by_kind[list(moves)] = list(moves.values())
            row_C[:128] = by_kind[self._classes.ascii]
        for bytes_, after, kinds in self._following(partial):
            if not kinds.isdisjoint(moves):
                row_C[bytes_] = self.number((members, after)) if after.missing else moves[after.kind]
        self.next_SC[state] = row_C

    def _following(self, partial: Partial | None) -> list[tuple[list[int], Partial, frozenset[int]]]:
        """Bytes above ASCII that may come next, by what they make of a character, and the classes it can be of."""
        found = self._bytes.get(partial)
        if found is None:
            groups: dict[tuple[Partial, frozenset[int]], list[int]] = {}
            for byte in range(0xC2, 0xF5) if partial is None else range(0x80, 0xC0):
                after = _begun(byte) if partial is None else _continued(partial, byte)
                kinds = self._kinds(after)
                if len(kinds) == 1:
                    after = Partial(-1, next(iter(kinds)), after.missing, after.size)
                groups.setdefault((after, kinds), []).append(byte)
            found = self._bytes[partial] = [(bytes_, *group) for group, bytes_ in groups.items()]
        return found

    def _kinds(self, partial: Partial) -> frozenset[int]:
        """The classes that a character can still be of; -1 stands for what is no character of its size."""
        if partial.kind >= 0:
            return frozenset([partial.kind])
        kinds = self._classes.between(partial.low, partial.low + (1 << 6 * partial.missing) - 1)
        return frozenset(k if self._classes.sizes[k] == partial.size else -1 for k in kinds)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _size(code: int) -> int:
    """Bytes that a code point takes in UTF-8; 0 for surrogates, and for what Unicode does not have."""
    if 0xD800 <= code < 0xE000 or code >= 0x110000:
        return 0
    return 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)


def _begun(lead: int) -> Partial:
    """A character after its first byte, 0xC2 to 0xF4."""
    size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    return Partial((lead & (0xFF >> (size + 1))) << 6 * (size - 1), -1, size - 1, size)


def _continued(partial: Partial, byte: int) -> Partial:
    """A character after one byte more, 0x80 to 0xBF."""
    missing = partial.missing - 1
    if partial.kind >= 0:
        return Partial(-1, partial.kind, missing, partial.size)
    return Partial(partial.low | (byte & 0x3F) << 6 * missing, -1, missing, partial.size)
