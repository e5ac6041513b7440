"""A document: one text with the name it goes by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Attributes:
        name: what the text goes by: a file name, a path or a title.
        text: the text itself.
    """

    name: str
    text: str


def head_of(texts: Iterable[str], chars: int) -> tuple[str, ...]:
    """The first characters of some texts, of each those that belong to it."""
    found, left = [], chars
    for text in texts:
        if left <= 0:
            break
        found.append(text[:left])
        left -= len(found[-1])
    return tuple(found)
