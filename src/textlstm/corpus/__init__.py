"""Corpora: text from its sources, split into training, development and held-out parts, and as token arrays.

The held-out part is the end of the text (or a file of its own) and chooses nothing. The development part is cut from
the end of what remains and picks the best weights. A tokenizer is made from the training part alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from textlstm.config import CorpusConfig
from textlstm.corpus.document import Document, head_of
from textlstm.corpus.encoding import encode_part
from textlstm.corpus.lanes import Batch, LaneReader, lanes_within, steps_per_epoch
from textlstm.corpus.merge_dropout import MergeDropout, merges_of
from textlstm.corpus.named import CORPORA, LoadedCorpus, cache_dir, find
from textlstm.corpus.sources import (
    Piece,
    Rows,
    Source,
    absolute,
    as_documents,
    describe,
    find_sources,
    read_sources,
    source_title,
    title_of,
)
from textlstm.corpus.store import StoredPart, find_text, store_text
from textlstm.errors import CorpusError
from textlstm.files import write_atomically
from textlstm.tokenizer import Ids, Tokenizer, text_to_bytes

__all__ = [
    "CORPORA",
    "Batch",
    "Corpus",
    "Document",
    "LaneReader",
    "MergeDropout",
    "LoadedCorpus",
    "Part",
    "Rows",
    "StoredPart",
    "Tokens",
    "absolute",
    "cache_dir",
    "find",
    "lanes_within",
    "merges_of",
    "read_corpus",
    "read_sources",
    "steps_per_epoch",
    "source_title",
]

MIN_TRAIN_CHARS = 100
MOST_IN_MEMORY = 1 << 25  # characters; a longer text stays on disk
_SAMPLE_CHARS = 10_000_000  # of a long text, to make a tokenizer from
_STRETCH_CHARS, _MOST_STRETCHES = 100_000, 64  # of a sample to train on
_LONG_LINE = 10_000


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

    def head(self, chars: int) -> tuple[str, ...]:
        """Its first characters, of each document those that belong to it."""
        return head_of((document.text for document in self.documents), chars)

    def stretches(self, places: Sequence[tuple[float, float]]) -> tuple[Document, ...]:
        """What lies between some places, given as shares of the part; each is moved on to the begin of a line."""
        found: list[Document] = []
        borders = [0, *itertools.accumulate(len(d.text) for d in self.documents)]
        for place, end in places:
            first, last = (round(share * borders[-1]) for share in (place, end))
            touched = slice(max(0, bisect_left(borders, first) - 1), bisect_left(borders, last + 1))
            for document, begin in zip(self.documents[touched], borders[touched], strict=False):
                a, b = (_line_begin(document.text, place - begin) for place in (first, last))
                found += [Document(document.name, document.text[a:b])] if a < b else []
        return tuple(found)

    def data(self) -> Iterator[tuple[int, Iterable[bytes]]]:
        """For each document its length in bytes, and its bytes."""
        for document in self.documents:
            data = text_to_bytes(document.text)
            yield len(data), [data]

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
    """The token arrays of a corpus: training, development and held-out part; the first may be mapped into memory."""

    train: NDArray[Any]
    dev: NDArray[np.int32]
    val: NDArray[np.int32]


@dataclass(frozen=True)
class Corpus:
    """A text, split.

    Attributes:
        name: what it is called in a report.
        train, dev, val: the parts; `dev` and `val` may be empty. A long `train` stays in the cache.
        source, licence, canonical: where the text came from, as `LoadedCorpus` says.
        val_follows: whether the held-out part directly follows the development part.
        sampled_from: characters of the training text of which `train` is a sample, or None.
    """

    name: str
    train: Part | StoredPart
    dev: Part
    val: Part
    source: str
    licence: str
    canonical: bool
    val_follows: bool
    sampled_from: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all parts and where they are cut; that of a long text is kept beside it."""
        if isinstance(self.train, Part):
            return self._hashed(self.train, self.dev, self.val)
        train, others = self.train, self._hashed(self.dev, self.val)
        name = json.dumps([1, train.store.digest, train.start, train.end, others])
        path = cache_dir() / "fingerprints" / hashlib.sha256(name.encode()).hexdigest()
        with suppress(OSError, ValueError):
            kept = path.read_bytes()
            if len(bytes.fromhex(kept.decode())) == hashlib.sha256().digest_size:
                return kept.decode()
        found = self._hashed(self.train, self.dev, self.val)
        with suppress(OSError):  # without room it is read again the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, found.encode())
        return found

    @staticmethod
    def _hashed(*parts: Part | StoredPart) -> str:
        digest = hashlib.sha256()
        for part in parts:
            for size, data in part.data():
                digest.update(size.to_bytes(8, "little"))
                for piece in data:
                    digest.update(piece)
            digest.update(b"\xff" * 8)
        return digest.hexdigest()

    def without_dev(self) -> Corpus:
        """The same text with the development part given to the training part.

        What `read_corpus` gives with a `dev_fraction` of 0.
        """
        if not self.dev.documents:
            return self
        if isinstance(self.train, StoredPart):
            train = replace(
                self.train, end=self.train.end + self.dev.num_bytes,
                num_chars=self.train.num_chars + self.dev.num_chars,
            )  # fmt: skip
            return replace(self, train=train, dev=Part(()))
        documents, more = list(self.train.documents), list(self.dev.documents)
        if self.dev.continues:
            documents[-1] = replace(documents[-1], text=documents[-1].text + more.pop(0).text)
        train_part = Part((*documents, *more), self.train.continues)
        return replace(self, train=train_part, dev=Part((), self.dev.continues))

    def sampled(self, chars: int, seed: int, stretch: int | None = None) -> Corpus:
        """The same text with a sample for the training part: stretches spread over it, at places drawn by a seed.

        The training part is cut into equal sections, and from each comes one stretch that lies anywhere in it; the
        last one ends where the training part ends, so that what follows still does. A stretch is a document.

        Args:
            chars: about how many characters to keep.
            seed: of where the stretches lie.
            stretch: characters of each, about, 100,000 by default; longer where there would be more than 64.
        """
        share = chars / self.train.num_chars
        if share >= 1:
            return self
        sections = max(1, min(_MOST_STRETCHES, chars // (_STRETCH_CHARS if stretch is None else stretch)))
        slack_K = np.random.default_rng(seed).random(sections) * (1 - share)
        slack_K[-1] = 1 - share
        places = [((k + slack) / sections, (k + slack + share) / sections) for k, slack in enumerate(slack_K.tolist())]
        documents = self.train.stretches([*places[:-1], (places[-1][0], 1.0)])
        if not documents:  # a text of many megabytes without a place to cut it
            return self
        return replace(self, train=Part(documents), sampled_from=self.train.num_chars)

    def training_text(self, tokenizer: str, notice: Callable[[str], None] = lambda line: None) -> tuple[str, ...]:
        """What a tokenizer of this name is made from: the documents to learn from, or of long ones what is enough."""
        if isinstance(self.train, Part):
            # Characters and known tokens are looked for everywhere; pairs that occur often are found in a part too.
            return self.excerpt(_SAMPLE_CHARS) if tokenizer == "bpe" else self.train.head(self.train.num_chars)
        if tokenizer in ("char", "char-plain"):
            return (self.train.alphabet(),)
        if tokenizer == "byte":
            return ()
        notice(f"the tokenizer is made from {_SAMPLE_CHARS:,} characters, evenly spread over the training text")
        return self.excerpt(_SAMPLE_CHARS)

    def excerpt(self, chars: int) -> tuple[str, ...]:
        """The documents to learn from, or of longer ones 32 stretches of about so many characters, evenly spread."""
        if isinstance(self.train, StoredPart):
            return self.train.sample(chars)
        part = self.train if self.train.num_chars <= chars else self.sampled(chars, 0, max(1, chars // 32)).train
        return part.head(part.num_chars)

    def encode(
        self, tokenizer: Tokenizer, boundary_id: int | None, workers: int = 1,
        notice: Callable[[str], None] = lambda line: None,
    ) -> Tokens:  # fmt: skip
        """The token arrays of all parts.

        Args:
            tokenizer: how text is cut.
            boundary_id: the id before each document, or None.
            workers: processes that share a long text.
            notice: told how far it is.

        Raises:
            CorpusError: the cache has no room.
        """
        if isinstance(self.train, Part):
            train = self.train.encode(tokenizer, boundary_id)
        else:
            with _room():
                train = encode_part(self.train, tokenizer, boundary_id, workers, notice)
        return Tokens(train, self.dev.encode(tokenizer, boundary_id), self.val.encode(tokenizer, boundary_id))


def read_corpus(
    sources: Sequence[str | Rows], config: CorpusConfig, notice: Callable[[str], None] = lambda line: None
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
    found = find_sources(sources, config, notice)
    whole = _read(found, config, notice)
    if not whole.num_chars:
        raise CorpusError(f"{', '.join(map(str, sources))}: there is no text in it")
    if config.val is not None:
        rest, val = whole, Part(read_sources([config.val], config, notice).documents)
    else:
        share = min(_share(whole, config.val_fraction), config.max_val_chars)
        chars = share if config.val_chars is None else config.val_chars
        rest, val = _cut(whole, chars)
    train, dev = _cut(rest, min(_share(rest, config.dev_fraction), config.max_dev_chars))
    if train.num_chars < MIN_TRAIN_CHARS:
        raise CorpusError(
            f"{', '.join(map(str, sources))}: {train.num_chars} characters to learn from, besides those held out, are "
            f"too few; {MIN_TRAIN_CHARS} are the least, and a good model wants 100,000 or more"
        )
    corpus = Corpus(title_of(sources), train, dev, val, *describe(found, config), config.val is None)
    return corpus if config.sample_chars is None else corpus.sampled(config.sample_chars, config.sample_seed)


def _read(found: Sequence[Source], config: CorpusConfig, notice: Callable[[str], None]) -> Part | StoredPart:
    """All text: in memory if it is short, else in the cache."""
    stored = find_text(found, config)
    if stored is None:
        pieces, held, chars = (piece for one in found for piece in one.pieces()), list[Piece](), 0
        for piece in pieces:
            held.append(piece)
            chars += len(piece.text)
            if chars > MOST_IN_MEMORY:
                break
        else:
            return Part(as_documents(held))
        notice(f"a long text: it is read once and kept in {cache_dir()}, which may be removed at any time")
        with _room():
            stored = store_text(_drain(held, pieces), found, config)
    return StoredPart(stored, 0, stored.num_bytes, stored.num_chars, False)


def _drain(held: list[Piece], pieces: Iterator[Piece]) -> Iterator[Piece]:
    yield from held
    held.clear()
    yield from pieces


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CorpusError(
            f"the cache {cache_dir()} cannot be written: {error.strerror or error}; TEXTLSTM_CACHE names another one"
        ) from error


def _line_begin(text: str, place: int) -> int:
    """The first begin of a line at or behind a place; the place itself where lines are very long."""
    if place <= 0 or place >= len(text):
        return min(max(0, place), len(text))
    found = text.find("\n", place - 1, place + _LONG_LINE)
    return place if found < 0 else found + 1


def _share(part: Part | StoredPart, fraction: float) -> int:
    """Characters in the last `fraction` of a part, rounded up (a tenth of 1,115,394 is 111,540, as nanoGPT cuts)."""
    # Rounded first: in floating-point arithmetic 1000 * 0.07 is a little more than 70.
    return math.ceil(round(part.num_chars * fraction, 6))


@overload
def _cut(part: Part, chars: int) -> tuple[Part, Part]: ...
@overload
def _cut(part: Part | StoredPart, chars: int) -> tuple[Part | StoredPart, Part]: ...
def _cut(part: Part | StoredPart, chars: int) -> tuple[Part | StoredPart, Part]:
    """Cuts this many characters from the end of a part; what is cut off comes into memory."""
    if isinstance(part, StoredPart):
        left = max(0, part.num_chars - chars)
        place, begins = part.store.byte_of(left)
        place = min(place, part.end)
        cut_off = StoredPart(part.store, place, part.end, part.num_chars - left, not begins and place < part.end)
        rest = StoredPart(part.store, part.start, place, left, part.continues)
        return rest, Part(cut_off.documents(), cut_off.continues)
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
