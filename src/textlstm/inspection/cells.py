"""Cells that stand for something: a value of the state against properties of the text (Karpathy et al. 2015).

A property is true or false after each token. Every value of the state, split at a threshold, is tried as its
detector; how well it does is Matthews' correlation, 0 for chance and 1 for always right, however rare the property.
Value and threshold are chosen on one text and reported on another, because the best of a thousand fits by luck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.inspection.trace import Trace
from textlstm.tokenizer import Tokenizer

#: A property must be true, and false, at least so often on each text to be judged.
LEAST = 20
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """A value of the state that detects a property.

    Attributes:
        what: the property.
        value: `c` (a cell) or `h` (an output).
        layer, cell: which one, from 0.
        threshold: where it is split.
        above: whether the property is true above the threshold, or below.
        chosen: Matthews' correlation on the text that chose it.
        held_out: the same on the other text; None where the property is too rare there.
    """

    what: str
    value: str
    layer: int
    cell: int
    threshold: float
    above: bool
    chosen: float
    held_out: float | None

    @property
    def name(self) -> str:
        """For example `c1.204`: cell 204 of layer 1."""
        return f"{self.value}{self.layer}.{self.cell}"

    def to_dict(self) -> dict[str, Any]:
        """The fields and the name, as JSON values."""
        return {"name": self.name, **self.__dict__}


def properties(data: bytes, ends_T: NDArray[np.int64]) -> dict[str, Bools]:
    """What is true of a text after each token.

    Args:
        data: the text.
        ends_T: bytes that are read after each token, each at least 1.

    Returns:
        Name of the property to bool (T,).
    """
    names = list(_Reader().look())
    table = np.empty((len(data), len(names)), dtype=bool)
    reader = _Reader()
    for place, character in enumerate(data.decode("latin-1")):
        reader.read(character)
        table[place] = list(reader.look().values())
    return {name: table[ends_T - 1, number] for number, name in enumerate(names)}


class _Reader:
    """Follows a text by the character; bytes above 127 count as letters."""

    def __init__(self) -> None:
        self.column = self.indent = self.capitals = self.depth = self.line = self.marks = 0
        self.quoted = self.tripled = self.comment = self.colon = self.ended = self.text = False
        self.last = "\n"

    def read(self, character: str) -> None:
        if character == "\n":
            self.line = 0 if self.last == "\n" else self.line + 1
            if self.last == "\n":  # a blank line ends what somebody forgot to close
                self.quoted, self.depth = self.tripled, 0
            self.column = self.indent = 0
            self.comment = self.colon = self.text = False
        else:
            self.column += 1
            self.indent += character == " " and not self.text
            self.text = self.text or character != " "
        self.capitals = self.capitals + 1 if character.isupper() else 0
        self._quote(character)
        self.depth = max(0, self.depth + (character in "([{") - (character in ")]}"))
        self.comment = self.comment or (character == "#" and not self.quoted)
        self.colon = self.colon or character == ":"
        if not character.isspace():
            self.ended = character in ".!?"
        self.last = character

    def _quote(self, character: str) -> None:
        """Three marks in a row open and close what may hold single ones and blank lines, as in Python."""
        if character != '"' or self.comment or self.last == "\\":
            self.marks = 0
            return
        self.marks += 1
        if self.marks == 3:
            self.tripled = self.quoted = not self.tripled
            self.marks = 0
        elif not self.tripled:
            self.quoted = not self.quoted

    def look(self) -> dict[str, bool]:
        columns = {f"more than {n} characters into the line": self.column > n for n in (10, 20, 30, 40, 60)}
        return {
            "inside double quotes": self.quoted,
            "inside triple quotes": self.tripled,
            "inside brackets": self.depth > 0,
            "in a run of capitals": self.capitals > 1,
            "inside a word": self.last.isalpha(),
            "inside a number": self.last.isdigit(),
            "at the start of a line": self.column == 0,
            **columns,
            "in an indented line": self.indent > 0,
            "in a line indented by 8 or more": self.indent >= 8,
            "in a comment after #": self.comment,
            "in the first line of a paragraph": self.line == 0,
            "after a colon in the line": self.colon,
            "after the end of a sentence": self.ended,
        }


def token_ends(tokenizer: Tokenizer, ids_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes that are read after each token."""
    ends: NDArray[np.int64] = np.cumsum([len(tokenizer.token_bytes(id)) for id in ids_T.tolist()])
    return ends


def matthews(detected: Bools, true: Bools) -> float:
    """Matthews' correlation of two bool arrays (Matthews 1975); 0 where one of them never changes."""
    n, k, p, both = len(true), int(detected.sum()), int(true.sum()), int((detected & true).sum())
    under = k * (n - k) * p * (n - p)
    return (n * both - k * p) / float(under) ** 0.5 if under else 0.0


def find_cells(
    chosen_on: Trace, true: dict[str, Bools], reported_on: Trace, true_there: dict[str, Bools], each: int = 3
) -> list[Finding]:
    """Looks for the values of the state that detect properties best.

    Args:
        chosen_on: the text that chooses, with `c` and `h`.
        true: its properties.
        reported_on, true_there: the text that judges.
        each: findings for each property, the best first.

    Returns:
        Findings, the property that is detected best on the judging text first.
    """
    names = [name for name, on in true.items() if _is_judged(on)]
    found: list[Finding] = []
    if not names:
        return found
    best = {
        (v, n): _best_splits(chosen_on.values[v][n], np.stack([true[w] for w in names], 1))
        for v, n in _places(chosen_on)
    }
    for column, what in enumerate(names):
        tried = [
            (abs(score_H[cell, column]), value, layer, int(cell))
            for (value, layer), (score_H, _) in best.items()
            for cell in np.argsort(-np.abs(score_H[:, column]))[:each]
        ]
        for _, value, layer, cell in sorted(tried, reverse=True)[:each]:
            score, threshold = (float(table[cell, column]) for table in best[value, layer])
            detected = (reported_on.values[value][layer][:, cell] > threshold) == (score > 0)
            judged = matthews(detected, true_there[what]) if _is_judged(true_there[what]) else None
            found.append(Finding(what, value, layer, cell, threshold, score > 0, abs(score), judged))
    order = {what: max((f.held_out or 0.0) for f in found if f.what == what) for what in names}
    return sorted(found, key=lambda f: (-order[f.what], f.what, -f.chosen))


def _is_judged(true: Bools) -> bool:
    return bool(LEAST <= true.sum() <= len(true) - LEAST)


def _places(trace: Trace) -> list[tuple[str, int]]:
    return [(value, layer) for value in ("c", "h") for layer in range(len(trace.values[value]))]


def _best_splits(values_TH: NDArray[np.float32], true_TP: Bools) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each cell and property the split with the largest correlation, up or down: that, and its threshold.

    With the k largest of n values taken for true, of which b are, and p true ones in all, the correlation is
    (n b - k p) / sqrt(k (n - k) p (n - p)).
    """
    n, H = values_TH.shape
    p_P = true_TP.sum(0).astype(np.float64)
    k_T1 = np.arange(1, n, dtype=np.float64)[:, None]
    under_TP = np.sqrt(k_T1 * (n - k_T1) * (p_P * (n - p_P)))
    scores, thresholds = np.empty((H, len(p_P))), np.empty((H, len(p_P)))
    for cell in range(H):
        order = np.argsort(-values_TH[:, cell], kind="stable")
        ordered = values_TH[order, cell].astype(np.float64)
        score_TP = (n * np.cumsum(true_TP[order], axis=0)[:-1] - k_T1 * p_P) / under_TP
        score_TP[ordered[1:] == ordered[:-1]] = 0  # no threshold lies between equals
        at = np.abs(score_TP).argmax(axis=0)
        scores[cell] = np.take_along_axis(score_TP, at[None], 0)[0]
        thresholds[cell] = (ordered[at] + ordered[at + 1]) / 2
    return scores, thresholds
