"""A document: one text with the name it goes by."""

from __future__ import annotations

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
