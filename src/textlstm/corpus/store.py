"""Texts larger than memory: once through the sources into one file of the cache, then read where it is needed.

TEXTS/DIGEST/text.bin     all documents one after the other, UTF-8 (escaped bytes restored)
TEXTS/DIGEST/pieces.bin   a row for each piece of a document: byte, character, whether a document begins; and the end
TEXTS/DIGEST/meta.json    written last
TEXTS/NAME.json           the digest of the text that some files gave, as long as these files have not been touched

A folder is named by the SHA-256 of what is in it and is whole or absent. `textlstm.corpus` decides when a text is
kept this way; its parts are cut exactly as those in memory are, and give the same tokens.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.config import CorpusConfig
from textlstm.corpus.document import Document, head_of
from textlstm.corpus.named import cache_dir
from textlstm.corpus.sources import Piece, Source
from textlstm.files import write_atomically
from textlstm.tokenizer import SAFE_CUT, bytes_to_text, text_to_bytes

_READ = 1 << 22  # bytes at once
_WINDOW = 1 << 16  # bytes in which places to cut are looked for at once
_SETTLED_SECONDS = 2.0  # a file changed so lately could change again without its time telling


@dataclass(frozen=True)
class StoredText:
    """A text in the cache.

    Attributes:
        folder: where it is.
        digest: SHA-256 of text and borders.
        num_chars, num_bytes: its length.
    """

    folder: Path
    digest: str
    num_chars: int
    num_bytes: int

    @cached_property
    def pieces(self) -> NDArray[np.int64]:
        """Rows of byte, character and whether a document begins; the last row is the end. Mapped, not read."""
        rows: NDArray[np.int64] = np.memmap(self.folder / "pieces.bin", dtype=np.int64, mode="r").reshape(-1, 3)
        return rows

    def read(self, start: int, end: int) -> bytes:
        """Some of its bytes."""
        with (self.folder / "text.bin").open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def byte_of(self, char: int) -> tuple[int, bool]:
        """Where a character is, in bytes, and whether a document begins there."""
        row = int(np.searchsorted(self.pieces[:, 1], char, side="right")) - 1
        byte, first, begins = (int(value) for value in self.pieces[row])
        if first == char:
            return byte, bool(begins)
        text = bytes_to_text(self.read(byte, int(self.pieces[row + 1, 0])))
        return byte + len(text_to_bytes(text[: char - first])), False

    def begins(self, start: int, end: int) -> NDArray[np.int64]:
        """The bytes in a range at which documents begin."""
        first, last = np.searchsorted(self.pieces[:, 0], [start, end])
        rows = self.pieces[first:last]
        found: NDArray[np.int64] = rows[rows[:, 2] == 1, 0]
        return found


@dataclass(frozen=True)
class StoredPart:
    """A part of a stored text; the counterpart of `textlstm.corpus.Part`.

    Attributes:
        store: the whole text.
        start, end: its bytes.
        num_chars: its characters.
        continues: whether its first document began before it.
    """

    store: StoredText
    start: int
    end: int
    num_chars: int
    continues: bool

    @property
    def num_bytes(self) -> int:
        """Number of bytes of UTF-8."""
        return self.end - self.start

    def spans(self, first: int, last: int) -> list[tuple[int, int, bool]]:
        """The documents in a range of bytes: where each begins and ends, and whether it begins in it."""
        begins = self.store.begins(first, last).tolist()
        starts = begins if begins[:1] == [first] else [first, *begins]
        inside = set(begins)
        return [(a, b, a in inside) for a, b in zip(starts, [*starts[1:], last], strict=True) if a < b]

    def blocks(self, size: int) -> Iterator[tuple[int, int]]:
        """Ranges of about this many bytes, cut where a document begins or where a tokenizer may be begun anew."""
        start = self.start
        while start < self.end:
            end = self._cut(start + size)
            yield start, end
            start = end

    def _cut(self, place: int) -> int:
        """The first place at or behind this one where a cut changes no token."""
        while place < self.end:
            limit = min(self.end, place + _WINDOW)
            begins = self.store.begins(place, limit)
            data = self.store.read(place, limit)
            skipped = next((i for i, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))
            text = bytes_to_text(data[skipped:])
            found = SAFE_CUT.search(text)
            cuts = [int(begins[0])] if len(begins) else []
            cuts += [] if found is None else [place + skipped + len(text_to_bytes(text[: found.start()]))]
            if cuts:
                return min(cuts)
            place = limit - 4 if limit < self.end and limit - 4 > place else limit  # two characters are looked back
        return self.end

    def documents(self) -> tuple[Document, ...]:
        """Its documents, in memory."""
        spans = self.spans(self.start, self.end)
        return tuple(Document("", bytes_to_text(self.store.read(a, b))) for a, b, _ in spans)

    def data(self) -> Iterator[tuple[int, Iterator[bytes]]]:
        """For each document its length in bytes, and its bytes, which have to be read before the next one's."""
        with (self.store.folder / "text.bin").open("rb") as file:
            file.seek(self.start)
            for a, b in self._borders():
                yield b - a, (file.read(min(_READ, b - i)) for i in range(a, b, _READ))

    def _borders(self) -> Iterator[tuple[int, int]]:
        """Where each document begins and ends: there may be millions, of which few are in memory at once."""
        begin = self.start
        for first in range(self.start, self.end, _WINDOW):
            for place in self.store.begins(first, min(self.end, first + _WINDOW)).tolist():
                if place > begin:
                    yield begin, place
                    begin = place
        if begin < self.end:
            yield begin, self.end

    def sample(self, chars: int) -> tuple[str, ...]:
        """About this many characters: evenly spread pieces, or all of it; none is of two documents."""
        if self.num_bytes <= chars:
            return self._texts(self.start, self.end)
        number = 32
        size, step = chars // number, self.num_bytes // number
        cuts = [(self._cut(self.start + k * step) if k else self.start) for k in range(number)]
        return tuple(text for a in cuts for text in self._texts(a, self._cut(min(a + size, self.end))))

    def _texts(self, first: int, last: int) -> tuple[str, ...]:
        """What of each document lies in a range of bytes."""
        return tuple(bytes_to_text(self.store.read(a, b)) for a, b, _ in self.spans(first, last))

    def stretches(self, places: Sequence[tuple[float, float]]) -> tuple[Document, ...]:
        """What lies between some places, given as shares of the part; each is moved on to where it may be cut."""
        found: list[Document] = []
        for place, end in places:
            first, last = (self._cut(self.start + round(share * self.num_bytes)) for share in (place, end))
            found += [Document("", text) for text in (self._texts(first, last) if first < last else ())]
        return tuple(found)

    def head(self, chars: int) -> tuple[str, ...]:
        """Its first characters, of each document those that belong to it."""
        return head_of(self._texts(self.start, min(self.end, self.start + 4 * chars)), chars)

    def alphabet(self) -> str:
        """Its characters, each once."""
        found: set[str] = set()
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        for start in range(self.start, self.end, _READ):
            found |= set(decoder.decode(self.store.read(start, min(self.end, start + _READ))))
        return "".join(sorted(found))


def find_text(sources: Sequence[Source], config: CorpusConfig) -> StoredText | None:
    """The stored text of files that have not been touched since it was made."""
    name = _name_of(sources, config)
    if name is None:
        return None
    try:
        return _open(json.loads((_texts() / f"{name}.json").read_bytes())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_text(pieces: Iterable[Piece], sources: Sequence[Source], config: CorpusConfig) -> StoredText:
    """Goes once through the pieces of a text and keeps it in the cache.

    Args:
        pieces: the text.
        sources, config: where it comes from and how it is read; they find it again.

    Raises:
        OSError: the cache has no room.
    """
    name = _name_of(sources, config)
    _texts().mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=_texts()))
    try:
        digest, chars, size = _write(temporary, pieces)
        meta = {"chars": chars, "bytes": size}
        write_atomically(temporary / "meta.json", json.dumps(meta).encode())
        final = _texts() / digest
        if _open(digest) is None:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if name is not None and name == _name_of(sources, config):
        write_atomically(_texts() / f"{name}.json", json.dumps({"digest": digest}).encode())
    return StoredText(final, digest, chars, size)


def _write(folder: Path, pieces: Iterable[Piece]) -> tuple[str, int, int]:
    digest, size, chars = hashlib.sha256(), 0, 0
    with (folder / "text.bin").open("wb") as text, (folder / "pieces.bin").open("wb") as rows:
        for piece in pieces:
            data = text_to_bytes(piece.text)
            row = np.array([size, chars, piece.begins], dtype=np.int64).tobytes()
            for file, content in ((rows, row), (text, data)):
                file.write(content)
                digest.update(content)
            size, chars = size + len(data), chars + len(bytes_to_text(data) if len(data) > len(piece.text) else data)
        rows.write(np.array([size, chars, 0], dtype=np.int64).tobytes())
        for file in (text, rows):
            file.flush()
            os.fsync(file.fileno())
    return digest.hexdigest(), chars, size


def _open(digest: str) -> StoredText | None:
    folder = _texts() / digest
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
        if (folder / "text.bin").stat().st_size == meta["bytes"]:
            return StoredText(folder, digest, meta["chars"], meta["bytes"])
    except (OSError, ValueError, KeyError):
        pass
    return None


def _texts() -> Path:
    return cache_dir() / "texts"


def _name_of(sources: Sequence[Source], config: CorpusConfig) -> str | None:
    """A name for what some files give, or None: not files, or touched just now."""
    digest = hashlib.sha256(json.dumps([config.encoding, config.newlines, config.column]).encode())
    now = time.time_ns()
    for source in sources:
        if not source.files:
            return None
        for path in source.files:
            try:
                stat = path.stat()
            except OSError:
                return None
            if now - stat.st_mtime_ns < _SETTLED_SECONDS * 1e9:
                return None
            digest.update(f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}\n".encode())
        digest.update(b"\0")
    return digest.hexdigest()
