"""Corpora: text from its sources, split into training, development and held-out parts, and as token arrays.

The held-out part is the end of the text (or a file of its own) and chooses nothing. The development part is cut from
the end of what remains and picks the best weights. A tokenizer is made from the training part alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from textlstm.config import CorpusConfig
from textlstm.corpus.document import Document
from textlstm.corpus.lanes import Batch, LaneReader, steps_per_epoch
from textlstm.corpus.named import CORPORA, LoadedCorpus, cache_dir
from textlstm.corpus.sources import absolute, read_sources
from textlstm.errors import CorpusError
from textlstm.tokenizer import Ids, Tokenizer, text_to_bytes

__all__ = [
    "CORPORA",
    "Batch",
    "Corpus",
    "Document",
    "LaneReader",
    "LoadedCorpus",
    "Part",
    "Tokens",
    "absolute",
    "cache_dir",
    "read_corpus",
    "read_sources",
    "steps_per_epoch",
]

MIN_TRAIN_CHARS = 100


@dataclass(frozen=True)
class Part:
    """A part of a corpus.

    Attributes:
        documents: its pieces of text, in order.
        continues: whether the first piece goes on where the part before it ended.
    """

    documents: tuple[Document, ...]
    continues: bool = False

    @cached_property
    def text(self) -> str:
        """All of it in one string."""
        return "".join(d.text for d in self.documents)

    @property
    def num_chars(self) -> int:
        """Number of characters."""
        return sum(len(d.text) for d in self.documents)

    @cached_property
    def num_bytes(self) -> int:
        """Number of bytes of UTF-8."""
        return len(text_to_bytes(self.text))

    def encode(self, tokenizer: Tokenizer, boundary_id: int | None) -> Ids:
        """The ids of the part; the boundary stands before each document that begins in it."""
        pieces: list[Ids] = []
        for number, document in enumerate(self.documents):
            if boundary_id is not None and not (self.continues and number == 0):
                pieces.append(np.array([boundary_id], dtype=np.int32))
            pieces.append(tokenizer.encode(document.text))
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class Tokens:
    """The token arrays of a corpus: training, development and held-out part."""

    train: NDArray[np.int32]
    dev: NDArray[np.int32]
    val: NDArray[np.int32]


@dataclass(frozen=True)
class Corpus:
    """A text, split.

    Attributes:
        name: how a user named it.
        train, dev, val: the parts; `dev` and `val` may be empty.
        source, licence, canonical: where the text came from, as `LoadedCorpus` says.
        val_follows: whether the held-out part directly follows the development part.
    """

    name: str
    train: Part
    dev: Part
    val: Part
    source: str
    licence: str
    canonical: bool
    val_follows: bool

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all parts and where they are cut."""
        digest = hashlib.sha256()
        for part in (self.train, self.dev, self.val):
            for document in part.documents:
                data = text_to_bytes(document.text)
                digest.update(len(data).to_bytes(8, "little") + data)
            digest.update(b"\xff" * 8)
        return digest.hexdigest()

    def encode(self, tokenizer: Tokenizer, boundary_id: int | None) -> Tokens:
        """The token arrays of all parts."""
        return Tokens(*(part.encode(tokenizer, boundary_id) for part in (self.train, self.dev, self.val)))


def read_corpus(
    sources: Sequence[str], config: CorpusConfig, notice: Callable[[str], None] = lambda line: None
) -> Corpus:
    """Reads sources and splits them.

    Args:
        sources: paths, folders, glob patterns, "-", or names of corpora.
        config: how to read, and what to hold out.
        notice: called with one line about anything that was done differently than asked.

    Raises:
        UsageError: a source that does not exist.
        CorpusError: text that cannot be read, or too little of it.
    """
    loaded = read_sources(sources, config, notice)
    whole = Part(loaded.documents)
    if config.val is not None:
        rest, val = whole, Part(read_sources([config.val], config, notice).documents)
    else:
        share = _share(whole, config.val_fraction)
        chars = share if config.val_chars is None else config.val_chars
        rest, val = _cut(whole, chars)
    train, dev = _cut(rest, _share(rest, config.dev_fraction))
    if train.num_chars < MIN_TRAIN_CHARS:
        raise CorpusError(
            f"{', '.join(sources)}: {train.num_chars} characters to learn from, besides those held out, are too few; "
            f"{MIN_TRAIN_CHARS} are the least, and a good model wants 100,000 or more"
        )
    name = "+".join(sources)
    return Corpus(name, train, dev, val, loaded.source, loaded.licence, loaded.canonical, config.val is None)


def _share(part: Part, fraction: float) -> int:
    """Characters in the last `fraction` of a part, rounded up (a tenth of 1,115,394 is 111,540, as nanoGPT cuts)."""
    # Rounded first: in floating-point arithmetic 1000 * 0.07 is a little more than 70.
    return math.ceil(round(part.num_chars * fraction, 6))


def _cut(part: Part, chars: int) -> tuple[Part, Part]:
    """Cuts this many characters from the end of a part."""
    head: list[Document] = list(part.documents)
    tail: list[Document] = []
    continues = False
    while chars > 0 and head:
        document = head.pop()
        size = len(document.text)
        if size > chars:
            head.append(Document(document.name, document.text[: size - chars]))
            document, continues = Document(document.name, document.text[size - chars :]), True
            size = chars
        tail.append(document)
        chars -= size
    return Part(tuple(head), part.continues), Part(tuple(reversed(tail)), continues)
