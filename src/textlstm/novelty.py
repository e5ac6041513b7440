"""How much of a text is copied: its verbatim runs in a source text, found by a suffix array, and a guard against them.

A run is a piece of a text that stands in the source word for word, as long as it goes. The index is the source's
bytes and the order of their suffixes, built once for a content (by divsufsort, Y. Mori), kept in the cache folder
and memory-mapped: a look-up reads a few pages. Matches are found on bytes and counted in characters: UTF-8 shows
where a character begins, so that nothing is lost.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import mmap
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.corpus import cache_dir
from textlstm.errors import MissingExtraError, UsageError
from textlstm.generation import whole_number
from textlstm.tokenizer import Tokenizer, text_to_bytes

#: Lengths of runs, in characters, from which a text is called copied.
RUN_LENGTHS = (20, 40)
_PIECES = 16  # of what people wrote
_BETWEEN = b"\xff"  # between documents: no UTF-8 text holds it, so no run crosses it


@dataclass(frozen=True)
class Novelty:
    """What of a text is copied.

    Attributes:
        chars: length of the text.
        longest: characters of the longest run.
        quote: that run.
        copied: for each of `RUN_LENGTHS`, the share of characters that stand in a run at least so long.
    """

    chars: int
    longest: int
    quote: str
    copied: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; the shares as `copied_20`, ..."""
        shares = {f"copied_{length}": share for length, share in self.copied.items()}
        return {"chars": self.chars, "longest": self.longest, "quote": self.quote, **shares}


class SuffixIndex:
    """All suffixes of a source text in order.

    Args:
        source: its bytes.
        suffixes: the places where suffixes begin, in the order of the suffixes, shape (N,).
    """

    def __init__(self, source: bytes | mmap.mmap, suffixes: NDArray[np.integer[Any]]) -> None:
        self._source, self._suffixes = source, suffixes

    def __str__(self) -> str:
        return f"a text of {len(self._source):,} bytes"

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> SuffixIndex:
        """The index of some documents, from the cache or made now: four bytes of disk for each byte of text.

        Raises:
            MissingExtraError: pydivsufsort is not installed, and it is not in the cache.
            UsageError: there is no text.
        """
        folder = cache_dir() / "suffixes"
        folder.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
        try:
            digest = hashlib.sha256()
            with (new / "source").open("wb") as file:
                for text in texts:
                    piece = text_to_bytes(text) + _BETWEEN
                    digest.update(piece)
                    file.write(piece)
            if not (new / "source").stat().st_size:
                raise UsageError("an empty text has no index")
            place = folder / digest.hexdigest()[:32]
            if not place.is_dir():
                _write_suffixes(new / "source", new / "suffixes.npy")
                with contextlib.suppress(OSError):  # another process may be faster
                    new.rename(place)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        with (place / "source").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(mapped, np.load(place / "suffixes.npy", mmap_mode="r"))

    def _place(self, query: bytes, behind: bool = False, low: int = 0, high: int | None = None) -> int:
        """The place among the suffixes, or some of them, before or behind all that begin with some bytes."""
        size, search = len(query), bisect.bisect_right if behind else bisect.bisect_left
        return search(self._suffixes, query, low, high, key=lambda at: self._source[int(at) : int(at) + size])

    def places(self, query: bytes) -> range:
        """Those among the suffixes that begin with some bytes."""
        low = self._place(query)
        return range(low, self._place(query, behind=True, low=low))

    def _at(self, place: int, size: int) -> bytes:
        at = int(self._suffixes[place])
        return self._source[at : at + size]

    def longest_match(self, query: bytes) -> int:
        """Length of the longest beginning of some bytes that stands in the source."""
        place = self._place(query)
        near = range(max(place - 1, 0), min(place + 1, len(self._suffixes)))
        return max(_common(query, self._at(one, len(query))) for one in near)

    def occurs(self, query: bytes, within: range | None = None) -> bool:
        """Whether some bytes stand in the source, or begin one of some suffixes."""
        within = range(len(self._suffixes)) if within is None else within
        place = self._place(query, low=within.start, high=within.stop)
        return place < within.stop and self._at(place, len(query)) == query

    def continuations(self, query: bytes, characters: int) -> Iterator[bytes]:
        """What follows some bytes in the source, each once: so many beginnings of characters, ended by the last."""
        size, places = len(query), self.places(query)
        place = places.start
        while place < places.stop:
            after = self._at(place, size + 4 * characters)
            begins = _beginnings(after[size:])
            if len(begins) < characters:  # the source ends here
                place += 1
                continue
            found = after[: size + begins[characters - 1] + 1]
            yield found[size:]
            place = self._place(found, behind=True, low=place, high=places.stop)

    def runs(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Begin and end of every run in some bytes that is not part of a longer one."""
        begin, end = 0, 0
        while begin < len(data):
            size = max(2 * (end - begin), 32)
            while (found := self.longest_match(data[begin : begin + size])) == size:
                size *= 2
            if begin + found > end:
                end = begin + found
                yield begin, end
            if end == len(data):
                return
            begin = self._next_begin(data, begin, end)
            end = max(end, begin)

    def _next_begin(self, data: bytes, begin: int, end: int) -> int:
        """Where the longest run begins that takes in the byte at `end`; shorter ones occur where longer do."""
        if self.occurs(data[begin + 1 : end + 1]):
            return begin + 1
        places = range(begin + 2, end + 1)
        return begin + 2 + bisect.bisect_left(places, True, key=lambda place: self.occurs(data[place : end + 1]))

    def novelty(self, text: str) -> Novelty:
        """What of a text stands in the source."""
        data = text_to_bytes(text)
        begins = np.array([*_beginnings(data), len(data)])
        chars = len(begins) - 1
        covered = {length: np.zeros(chars + 1, dtype=np.int64) for length in RUN_LENGTHS}
        longest, quote = 0, ""
        for start, end in self.runs(data):
            first, last = np.searchsorted(begins, start), np.searchsorted(begins, end, side="right") - 1
            for length, marks in covered.items():
                if last - first >= length:
                    marks[first] += 1
                    marks[last] -= 1
            if last - first > longest:
                longest = int(last - first)
                quote = data[begins[first] : begins[last]].decode("utf-8", "replace")
        shares = {
            length: float((marks.cumsum()[:-1] > 0).mean()) if chars else 0.0 for length, marks in covered.items()
        }
        return Novelty(chars, longest, quote, shares)


@dataclass(frozen=True)
class Copied:
    """What of some texts of one length is copied, on average.

    Attributes:
        texts, chars: their number and length.
        longest: characters of the longest run of a text.
        copied: for each of `RUN_LENGTHS`, the share of characters that stand in a run at least so long.
    """

    texts: int
    chars: int
    longest: float
    copied: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; the shares as `copied_20`, ..."""
        shares = {f"copied_{length}": share for length, share in self.copied.items()}
        return {"texts": self.texts, "chars": self.chars, "longest": self.longest, **shares}


class CopyMeter:
    """Compares how much of its training text a model copies with how much people do: in texts of one length.

    A longer text holds longer runs, and so does a kind of text that repeats itself; so what people wrote is cut into
    pieces as long as the samples.

    Args:
        index: of the training text.
        human: text of the same kind that does not stand in it; may be too short to be of use.
        chars: length of the texts that are compared.

    Attributes:
        human: what of that text is copied; None where there is too little.
    """

    def __init__(self, index: SuffixIndex, human: str, chars: int) -> None:
        self._index, self._chars = index, chars
        whole = len(human) // chars
        starts = [chars * (piece * whole // min(whole, _PIECES)) for piece in range(min(whole, _PIECES))]
        self.human = self._mean([human[start : start + chars] for start in starts]) if starts else None

    @staticmethod
    def pays(source_bytes: int, flops: float) -> bool:
        """Whether an index costs little beside a run of so many floating-point operations: about 1 % of its time.

        A megabyte takes 0.1 to 0.25 s, in which a core computes some 4e10 operations, and five times its size in the
        cache; up to one megabyte it is always made, beyond 32 never. Each look then measures for some 0.04 s.
        """
        return source_bytes <= min(max(1 << 20, flops / 5e6), 1 << 25)

    def measure(self, texts: Sequence[str]) -> Copied | None:
        """What of some texts is copied, those left out that are too short; None if all are."""
        whole = [text[: self._chars] for text in texts if len(text) >= self._chars]
        return self._mean(whole) if whole else None

    def _mean(self, texts: Sequence[str]) -> Copied:
        found = [self._index.novelty(text) for text in texts]
        longest = sum(one.longest for one in found) / len(found)
        shares = {length: sum(one.copied[length] for one in found) / len(found) for length in RUN_LENGTHS}
        return Copied(len(found), self._chars, longest, shares)

    def tell(self, written: Copied) -> str:
        """What was written, in words, beside what people write."""
        least = RUN_LENGTHS[0]
        told = f"longest run {written.longest:.0f} characters, {written.copied[least]:.1%} in runs of {least} or more"
        if self.human is None:
            return told
        return f"{told} (people: {self.human.longest:.0f}, {self.human.copied[least]:.1%})"


class CopyGuard:
    """Says which tokens would carry a text past a length of verbatim run.

    Args:
        index: of the source.
        tokenizer: says which bytes an id writes.
        most: characters that a run may have.
    """

    def __init__(self, index: SuffixIndex, tokenizer: Tokenizer, most: int) -> None:
        if not isinstance(index, SuffixIndex):
            raise UsageError(f"a copy-source must be a SuffixIndex, as of SuffixIndex.of_texts, not {index!r:.60}")
        if whole_number("max-copy", most) < 1:
            raise UsageError(f"max-copy must be 1 or more, not {most}")
        self._index, self._most = index, most
        #: For n beginnings of characters: how tokens begin, up to the n-th, and which tokens do.
        self._starts: list[dict[bytes, list[int]]] = [{}]
        self._alone: list[int] = []  # tokens that hold too long a run in themselves
        for id in range(tokenizer.vocab_size):
            token = tokenizer.token_bytes(id)
            begins = _beginnings(token)
            self._starts += [{} for _ in range(len(begins) + 1 - len(self._starts))]
            for number, place in enumerate(begins, 1):
                self._starts[number].setdefault(token[: place + 1], []).append(id)
            if len(begins) > most and self._is_run(token):
                self._alone.append(id)

    def _is_run(self, token: bytes) -> bool:
        """Whether a token holds a run that is too long in itself."""
        begins, most = _beginnings(token), self._most
        return any(self._index.occurs(token[one : last + 1]) for one, last in zip(begins, begins[most:], strict=False))

    def forbidden(self, written: bytes | bytearray) -> NDArray[np.int64]:
        """The ids that must not follow some bytes.

        A token is one of them if, with its n-th beginning of a character, the last `most + 1` characters stand in
        the source.
        """
        tail = bytes(written[-4 * (self._most + 1) :])
        begins = _beginnings(tail)
        ids = list(self._alone)
        for number in range(min(len(self._starts) - 1, self._most), 0, -1):
            before = self._most + 1 - number
            query = tail[begins[-before] :] if before <= len(begins) else b""
            places, starts = self._index.places(query) if query else range(0), self._starts[number]
            if not places:
                break  # nothing longer occurs, either
            if len(places) < len(starts):
                found = [start for start in self._index.continuations(query, number) if start in starts]
            else:
                found = [start for start in starts if self._index.occurs(query + start, places)]
            for start in found:
                ids += starts[start]
        return np.array(ids, dtype=np.int64)


def _beginnings(data: bytes) -> list[int]:
    """Where characters begin: at every byte but those that UTF-8 continues one with."""
    return np.flatnonzero((np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80).tolist()


def _common(one: bytes, other: bytes) -> int:
    """Length of what two strings have in common at their beginning."""
    size = min(len(one), len(other))
    differ = np.frombuffer(one, np.uint8, size) != np.frombuffer(other, np.uint8, size)
    return int(differ.argmax()) if differ.any() else size


def _write_suffixes(source: Path, out: Path) -> None:
    try:
        import pydivsufsort
    except ImportError as error:
        raise MissingExtraError("pydivsufsort", "novelty") from error
    data = np.fromfile(source, dtype=np.uint8)
    np.save(out, pydivsufsort.divsufsort(data))
