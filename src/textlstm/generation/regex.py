"""The syntax of regular expressions: Python's, as far as a finite automaton can follow it.

The structure (alternatives, groups, repeats) is read here. What a single character means (`[^a-f]`, `\\w`, `.`,
`(?i)k`) is asked of Python's own `re`, so both agree on every character of Unicode. Lookarounds, back-references, word
borders, possessive repeats and anchors in the middle have no place here and are refused; the whole text must match
anyway, so `^` in front and `$` at the end say nothing new.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NoReturn

import numpy as np

from textlstm.errors import UsageError

Ranges = tuple[tuple[int, int], ...]  # first and last code point of each run

_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_ESCAPE = re.compile(
    r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|0[0-7]{0,2}|[0-3][0-7]{2}|.)", re.DOTALL
)
_GROUP = re.compile(r"\((?:\?P<\w+>|\?(?P<on>[aimsu]*)(?:-(?P<off>[ims]+))?(?P<end>[:)])|(?!\?))")
_REPEAT = re.compile(r"[*+?]|\{(?!\})(?P<least>[0-9]*)(?P<comma>,)?(?P<most>[0-9]*)\}")
_FLAGS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "u": re.UNICODE}
_MAX_LENGTH = 200_000


@dataclass(frozen=True)
class Chars:
    """One character out of some."""

    ranges: Ranges


@dataclass(frozen=True)
class Sequel:
    """One thing after the other."""

    items: Sequence[Node]


@dataclass(frozen=True)
class Choice:
    """One of several things."""

    options: Sequence[Node]


@dataclass(frozen=True)
class Repeat:
    """A thing from `least` to `most` times; None has no end."""

    item: Node
    least: int
    most: int | None


Node = Chars | Sequel | Choice | Repeat


def parse(pattern: str) -> Node:
    """Reads a pattern that the whole of a text must match.

    Raises:
        UsageError: Python does not know the pattern either, or an automaton cannot follow it.
    """
    if len(pattern) > _MAX_LENGTH:
        raise UsageError(f"the pattern has {len(pattern):,} characters; {_MAX_LENGTH:,} are the most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what later versions of Python may read differently
            re.compile(pattern)
        return _Parser(pattern).parse()
    except re.error as error:
        raise UsageError(f"the pattern {_shown(pattern)} is not a regular expression: {error}") from error
    except (RecursionError, OverflowError) as error:
        raise UsageError(f"the pattern {_shown(pattern)} is nested too deeply or repeats too often") from error


def literal(text: str) -> Node:
    """A text that stands for itself."""
    return Sequel([Chars(((ord(c), ord(c)),)) for c in text])


@cache
def _universe() -> str:
    """Every character of Unicode once, in order, without the surrogates."""
    codes = np.concatenate([np.arange(0xD800), np.arange(0xE000, 0x110000)])
    return codes.astype("<u4").tobytes().decode("utf-32-le")


@lru_cache(maxsize=512)
def members(source: str, flags: int = 0) -> Ranges:
    """The characters that a pattern for one character matches, as Python's `re` has it."""
    if len(source) == 1 and source != "." and not flags & re.IGNORECASE:
        return ((ord(source), ord(source)),)
    universe = _universe()
    if not (set(source) & set("\\^.") or flags & re.IGNORECASE):  # a plain class ends at its greatest character
        universe = universe[: max(map(ord, source)) + 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = re.compile(f"(?:{source})+", flags).finditer(universe)
    found = [(ord(universe[run.start()]), ord(universe[run.end() - 1])) for run in runs]
    return tuple(part for first, last in found for part in _without_surrogates(first, last))


def _without_surrogates(first: int, last: int) -> list[tuple[int, int]]:
    return [(first, 0xD7FF), (0xE000, last)] if first < 0xD800 <= last else [(first, last)]


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")


class _Parser:
    """Reads a pattern that `re.compile` has accepted."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at, self._depth = pattern, 0, 0

    def parse(self) -> Node:
        return self._alternatives(0)

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(
            f"the pattern {_shown(self._pattern)} has {what} at position {self._at}, which an automaton cannot "
            "follow; leave it out"
        )

    def _alternatives(self, flags: int) -> Node:
        options = []
        while True:
            items, flags = self._sequence(flags)
            options.append(Sequel(items))
            if not self._pattern.startswith("|", self._at):
                return options[0] if len(options) == 1 else Choice(options)
            self._at += 1

    def _sequence(self, flags: int) -> tuple[list[Node], int]:
        items: list[Node] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            if self._anchor(first=not items):
                continue
            group = _GROUP.match(self._pattern, self._at)
            if group is not None and group["end"] == ")":  # flags for all that follows
                flags |= self._flags(group["on"])
                self._at = group.end()
                continue
            if self._pattern.startswith("(?#", self._at):
                self._at = self._pattern.index(")", self._at) + 1
                continue
            item = self._group(group, flags) if self._pattern[self._at] == "(" else Chars(self._atom(flags))
            items.append(self._repeated(item))
        return items, flags

    def _anchor(self, first: bool) -> bool:
        """Whether an anchor was passed that says nothing, since the whole text must match."""
        mark = next((m for m in ("^", "$", r"\A", r"\Z") if self._pattern.startswith(m, self._at)), None)
        if mark is None:
            return False
        after = self._pattern[self._at + len(mark) :][:1]
        if self._depth or not (first if mark in ("^", r"\A") else after in ("", "|")):
            self._refuse(f"the anchor {mark}")
        self._at += len(mark)
        return True

    def _group(self, group: re.Match[str] | None, flags: int) -> Node:
        if group is None:
            self._refuse(f"the group {self._pattern[self._at : self._at + 4]!r}")
        on, off = self._flags(group["on"]), self._flags(group["off"])
        self._at, self._depth = group.end(), self._depth + 1
        inside = self._alternatives((flags | on) & ~off)
        self._at, self._depth = self._at + 1, self._depth - 1
        return inside

    def _flags(self, letters: str | None) -> int:
        return sum(_FLAGS[letter] for letter in set(letters or ""))

    def _atom(self, flags: int) -> Ranges:
        """The characters of the class, escape or letter that stands here."""
        special = {"[": _CLASS, "\\": _ESCAPE}.get(self._pattern[self._at])
        found = special.match(self._pattern, self._at) if special is not None else None
        source = self._pattern[self._at] if found is None else found[0]
        if re.fullmatch(r"\\[1-9]", source):
            self._refuse("a back-reference")
        if source in (r"\b", r"\B"):
            self._refuse("a word border")
        self._at += len(source)
        return members(re.escape(source) if source in "{}*+?" or source.isspace() else source, flags)

    def _repeated(self, item: Node) -> Node:
        found = _REPEAT.match(self._pattern, self._at)
        if found is None:
            return item
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(found[0], (0, None))
        if found[0].startswith("{"):
            least = int(found["least"] or 0)
            most = int(found["most"]) if found["most"] else None if found["comma"] else least
        self._at = found.end()
        following = self._pattern[self._at : self._at + 1]
        if following == "+":
            self._refuse("a possessive repeat")
        self._at += following == "?"  # a lazy repeat matches the same texts
        return Repeat(item, least, most)
