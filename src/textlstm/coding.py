"""Compression: arithmetic coding with a model, any bytes in, the same bytes out.

A text is cut into ids and these into lanes, as `metrics` cuts them under `stream-L`, so that the size of the file
times eight is the bits of that score. Writer and reader run the very same steps: predict a distribution for every
lane, code one id of each, tell the predictor which they were. Their arithmetic is whole numbers from the logits on.

A file is

| bytes | what |
|---|---|
| 3 | `tlz` |
| 1 | version of the format (high half) and method (low half): 0 stored, 1 LZMA2, 2 model, 3 model that learns |
| 2 | CRC-16 (CCITT, from 0) of all that follows: damage is seen before anything is read |
| 4 | CRC-32 of the content: the proof |
| 4 | methods 2 and 3: first bytes of the model's identity (`ModelFile.identity`) |
| 1 and more | method 3: settings of learning (`LearningEngine.settings`), behind their length as LEB128 |
| 1 to 9 each | methods 2 and 3: number of ids, number of lanes, as LEB128 |
| rest | the content, coded |

or 18 bytes before a text of a hundred kilobytes.

The smallest of the three methods is written: a model of prose does not pay for a photograph. What a model's
tokenizer cannot write (a table of characters without bytes) is not coded with it either.

**What the reader needs.** The logits must come out the same, bit for bit. The engine `int8` sees to that on every
machine: its sums are whole numbers, and its other operations are those that IEEE 754 fixes (a model with an input
projection has one product in floating point, when it is loaded, and is the exception). Should an engine compute
differently all the same, that is found and named, never passed on: a check of 16 bits stands in the stream every
65,536 ids, and the content has its CRC. Logits are put on a grid of 1/256.

A model that learns computes in floating point, by torch, on one thread: the same machine and versions give the same
bits again, others may not, and are found in the same way.
"""

from __future__ import annotations

import binascii
import decimal
import functools
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from textlstm.engine import Engine
from textlstm.errors import CodingError, DivergedError, UsageError
from textlstm.metrics import Progress, lane_shape, no_progress
from textlstm.tokenizer import Tokenizer, bytes_to_text

MAGIC, VERSION = b"tlz", 1
STORED, LZMA, MODEL, LEARNING = range(4)
METHODS = ("stored", "lzma", "model", "model that learns")
IDENTITY_BYTES = 4
HEAD_BYTES = 10
MAX_LANES = 1 << 12

_LZMA2: Any = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
_GRID = 256  # steps per nat that a logit is rounded to: costs 1 / (24 * 256²) nats a token
_SCALE = 30  # log2 of the weight of the likeliest id; the least weight is 1
_WORD = 32  # bits that the coder moves at once; its range keeps between 2 and 3 words
_FULL, _LEAST = 1 << 3 * _WORD, 1 << 2 * _WORD
_CHECK_EVERY, _CHECK = 1 << 16, 1 << 16  # ids between two checks of the stream, and their number of values
_TOLD_EVERY = 1 << 8  # steps between two reports of progress


class Predictor(Protocol):
    """Anything that predicts one id per lane, and then learns which it was.

    What it predicts may depend on nothing but the ids that it was told: the reader's copy is told the same.
    """

    def predict(self) -> NDArray[np.floating[Any]]:
        """Logits of the next id of every lane, shape (B, V); a constant may be added to a row."""

    def learn(self, ids_B: NDArray[np.int64]) -> None:
        """Takes the ids that came; a lane that has ended goes on with zeros."""


class EnginePredictor:
    """A model, run by an engine; each lane begins at its start.

    Args:
        engine: what runs it.
        lanes: number B of lanes.
    """

    def __init__(self, engine: Engine, lanes: int) -> None:
        self._engine = engine
        self._logits_BV, self._state = engine.begin(lanes)

    def predict(self) -> NDArray[np.floating[Any]]:
        return self._logits_BV

    def learn(self, ids_B: NDArray[np.int64]) -> None:
        self._logits_BV, self._state = self._engine.step(ids_B, self._state)


@dataclass(frozen=True)
class Coder:
    """A model as the coder sees it.

    Attributes:
        identity: SHA-256, in hex, of what the predictions depend on.
        tokenizer: text to ids and back.
        predictor: makes the predictor of a number of lanes.
        settings: of learning; empty where the predictor is fixed.
        that_learnt: gives the coder of the same model that learns by some settings; None where there is none.
    """

    identity: str
    tokenizer: Tokenizer
    predictor: Callable[[int], Predictor]
    settings: bytes = b""
    that_learnt: Callable[[bytes], Coder] | None = None


@dataclass(frozen=True)
class Compressed:
    """A compressed file.

    Attributes:
        data: the file.
        method: one of `METHODS`.
        tokens, lanes: ids of the text and lanes that they were coded in; 0 without the model.
        why: the model was not taken, in words; empty if it was.
    """

    data: bytes
    method: str
    tokens: int = 0
    lanes: int = 0
    why: str = ""


def compress(data: bytes, coder: Coder, lanes: int = 1, progress: Progress = no_progress) -> Compressed:
    """Compresses bytes.

    Args:
        data: any bytes.
        coder: the model.
        lanes: parts that are coded side by side, each from the model's start: faster, and a little longer.
        progress: told how many ids are done.

    Raises:
        UsageError: an impossible number of lanes.
    """
    if not 1 <= lanes <= MAX_LANES:
        raise UsageError(f"lanes must be between 1 and {MAX_LANES}, not {lanes}")
    lzma2 = lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA2)
    method, best = (LZMA, lzma2) if len(lzma2) < len(data) else (STORED, data)
    ids = coder.tokenizer.encode(bytes_to_text(data))
    why = "the model's tokenizer cannot write it" if data else "it is empty"
    if len(ids) and coder.tokenizer.decode_bytes(ids) == data:
        lanes, length = lane_shape(len(ids), lanes)
        of_model = LEARNING if coder.settings else MODEL
        head = bytes.fromhex(coder.identity)[:IDENTITY_BYTES]
        head += _leb128(len(coder.settings)) + coder.settings if coder.settings else b""
        head += _leb128(len(ids)) + _leb128(lanes)
        ids_BT = np.zeros((lanes, length), dtype=np.int64)
        ids_BT.reshape(-1)[: len(ids)] = ids
        writer = _Writer(ids_BT)
        if _code(coder.predictor(lanes), len(ids), lanes, writer, progress, len(best) - len(head)):
            coded = head + writer.finish()
            if len(coded) < len(best):
                return Compressed(_framed(of_model, data, coded), METHODS[of_model], len(ids), lanes)
        why = "the model would make it longer"
    return Compressed(_framed(method, data, best), METHODS[method], why=why)


def method_of(data: bytes) -> str:
    """How a file was compressed, one of `METHODS`.

    Raises:
        CodingError: it is something else, damaged, or too new.
    """
    if data[: len(MAGIC)] != MAGIC or len(data) < HEAD_BYTES:
        raise CodingError("this is not a file of textlstm compress, or it is cut off")
    version, method = divmod(data[3], 16)
    if version != VERSION or method >= len(METHODS):
        raise CodingError(f"its format is {version}.{method}, which this textlstm does not know; upgrade it")
    if binascii.crc_hqx(data[6:], 0).to_bytes(2, "little") != data[4:6]:
        raise CodingError("the file is damaged: its checksum is wrong; take another copy")
    return METHODS[method]


def decompress(data: bytes, find: Callable[[str], Coder], progress: Progress = no_progress) -> bytes:
    """Gives back what `compress` was given.

    Args:
        data: a compressed file.
        find: gives the model whose identity begins with these hexadecimal digits; called only if one is needed.
        progress: told how many ids are done.

    Raises:
        CodingError: the file is something else, damaged, too new, or of another model, or this machine computes
            differently from the one that wrote it.
    """
    method = METHODS.index(method_of(data))
    coded = data[HEAD_BYTES:]
    if method in (MODEL, LEARNING):
        content = _read(coded, find, progress, method == LEARNING)
    elif method == LZMA:
        try:
            content = lzma.decompress(coded, lzma.FORMAT_RAW, filters=_LZMA2)
        except (lzma.LZMAError, EOFError) as error:
            raise CodingError(f"the file is damaged: {error}") from error
    else:
        content = coded
    if zlib.crc32(content).to_bytes(4, "little") != data[6:HEAD_BYTES]:
        raise _drift("its end") if method >= MODEL else CodingError("the file is damaged: its content has another sum")
    return content


def _framed(method: int, content: bytes, coded: bytes) -> bytes:
    rest = zlib.crc32(content).to_bytes(4, "little") + coded
    return MAGIC + bytes([VERSION * 16 + method]) + binascii.crc_hqx(rest, 0).to_bytes(2, "little") + rest


def _read(coded: bytes, find: Callable[[str], Coder], progress: Progress, learnt: bool) -> bytes:
    identity, place, settings = coded[:IDENTITY_BYTES].hex(), IDENTITY_BYTES, b""
    if learnt:
        size, place = _read_leb128(coded, place)
        settings, place = coded[place : place + size], place + size
    tokens, place = _read_leb128(coded, place)
    lanes, place = _read_leb128(coded, place)
    if tokens < 1 or not 1 <= lanes <= MAX_LANES or lane_shape(tokens, lanes)[0] != lanes:
        raise CodingError(f"the file is damaged: {tokens} ids in {lanes} lanes")
    coder = find(identity)
    if not coder.identity.startswith(identity):
        raise CodingError(
            f"it was written with another model: its identity begins with {identity}, that of this one with "
            f"{coder.identity[: 2 * IDENTITY_BYTES]}; name the right one with --model, or none if it is one that ships"
        )
    if learnt:
        coder = _that_learnt(coder, settings)
    reader = _Reader(coded[place:], lanes)
    _code(coder.predictor(lanes), tokens, lanes, reader, progress)
    return coder.tokenizer.decode_bytes([id for lane in reader.ids for id in lane])


def _that_learnt(coder: Coder, settings: bytes) -> Coder:
    found = None if coder.that_learnt is None else coder.that_learnt(settings)
    if found is None or found.settings != settings:
        raise CodingError(
            "it was written by a model that learnt, with other versions of textlstm or torch, or other statistics of "
            "gradients (--learn-from), than there are here; decompress it with those"
        )
    return found


def _drift(where: str) -> CodingError:
    return CodingError(
        f"the file is whole, but at {where} its content is wrong: this machine, or this version, "
        "computes differently from the one that wrote it; decompress it there"
    )


def cumulative_weights(logits_BV: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Sums of whole-number weights that are proportional to the probabilities, shape (B, V).

    The weight of id v is entry v minus entry v - 1; it is at least 1, so that every id can be coded, and at most
    2^30. Their total is not a power of two: the coder divides by it.

    Raises:
        DivergedError: the logits are not finite.
    """
    peak_B1 = logits_BV.max(axis=1, keepdims=True)
    if not np.isfinite(peak_B1).all():
        raise DivergedError("the logits hold NaN or infinity; take an earlier checkpoint")
    table = _weights()
    below_BV = np.minimum(np.rint((peak_B1 - logits_BV) * _GRID), len(table) - 1).astype(np.intp)
    sums_BV: NDArray[np.int64] = np.cumsum(table[below_BV], axis=1)
    return sums_BV


@functools.cache
def _weights() -> NDArray[np.int64]:
    """2^30 exp(-k / 256), rounded, down to 1; `decimal` rounds the same on every machine, libraries of C do not."""
    context = decimal.Context(prec=20)
    peak, weights = 1 << _SCALE, [1 << _SCALE]
    while weights[-1] > 1:
        weights.append(round(peak * context.exp(decimal.Decimal(-len(weights)) / _GRID)))
    return np.array(weights, dtype=np.int64)


def _code(
    predictor: Predictor,
    tokens: int,
    lanes: int,
    coder: _Writer | _Reader,
    progress: Progress,
    most: int | None = None,
) -> bool:
    """Codes all ids, one per lane and step; whether it came to the end before `most` bytes were written."""
    length = lane_shape(tokens, lanes)[1]
    check_every, digest = max(1, _CHECK_EVERY // lanes), 0
    for t in range(length):
        sums_BV = cumulative_weights(predictor.predict())
        totals = sums_BV[:, -1].tolist()
        ids_B = np.zeros(lanes, dtype=np.int64)
        for lane in range(lanes):
            if lane * length + t < tokens:
                ids_B[lane] = coder.id(sums_BV[lane], totals[lane], lane, t)
        digest = zlib.crc32(ids_B.astype("<i8").tobytes(), digest)
        if (t + 1) % check_every == 0:
            coder.check(digest % _CHECK, (t + 1) * lanes)
        if (t + 1) % _TOLD_EVERY == 0:
            progress((t + 1) * lanes, length * lanes)
        if most is not None and coder.size > most:
            return False
        if t + 1 < length:
            predictor.learn(ids_B)
    progress(length * lanes, length * lanes)
    return True


class _Writer:
    """A range coder that writes (Martin 1979): each symbol narrows an interval of whole numbers.

    Args:
        ids_BT: the ids of every lane.
    """

    def __init__(self, ids_BT: NDArray[np.int64]) -> None:
        self._ids_BT = ids_BT
        self._low, self._range, self._out = 0, _FULL, bytearray()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return len(self._out)

    def id(self, sums_V: NDArray[np.int64], total: int, lane: int, t: int) -> int:
        """Codes the id at a place, and tells which it is."""
        id = int(self._ids_BT[lane, t])
        start = int(sums_V[id - 1]) if id else 0
        self._narrow(start, int(sums_V[id]) - start, total)
        return id

    def check(self, value: int, place: int) -> None:
        """Codes a value that the reader must come to as well."""
        self._narrow(value, 1, _CHECK)

    def _narrow(self, start: int, size: int, total: int) -> None:
        part = self._range // total
        self._low += part * start
        self._range = part * size
        while self._range < _LEAST:
            self._shift()

    def _shift(self) -> None:
        """Moves the highest word out; what has run over is carried into what is out."""
        if self._low >= _FULL:
            self._low -= _FULL
            last = len(self._out) - 1
            while self._out[last] == 255:
                self._out[last] = 0
                last -= 1
            self._out[last] += 1
        self._out += (self._low >> 2 * _WORD).to_bytes(_WORD // 8)
        self._low = (self._low << _WORD) % _FULL
        self._range <<= _WORD

    def finish(self) -> bytes:
        """All that is written, ended by the roundest number of the interval; zeros at the end go without saying."""
        for bits in range(3 * _WORD, -1, -1):
            number = -(-self._low >> bits) << bits
            if number < self._low + self._range:
                break
        self._low = number
        for _ in range(3):
            self._shift()
        return bytes(self._out).rstrip(b"\0")


class _Reader:
    """The range coder that reads.

    Args:
        data: what the writer wrote; zeros follow it.
        lanes: number of lanes.

    Attributes:
        ids: of every lane, as far as they are read.
    """

    def __init__(self, data: bytes, lanes: int) -> None:
        self.ids: list[list[int]] = [[] for _ in range(lanes)]
        self._data, self._place = data, 3 * _WORD // 8
        self._code = int.from_bytes(data[: self._place].ljust(self._place, b"\0"))
        self._range = _FULL

    @property
    def size(self) -> int:
        """Bytes read so far."""
        return self._place

    def id(self, sums_V: NDArray[np.int64], total: int, lane: int, t: int) -> int:
        """Finds the next id of a lane, and notes it."""
        part = self._range // total
        id = int(sums_V.searchsorted(min(self._code // part, total - 1), "right"))
        start = int(sums_V[id - 1]) if id else 0
        self._narrow(part, start, int(sums_V[id]) - start)
        self.ids[lane].append(id)
        return id

    def check(self, value: int, place: int) -> None:
        """Compares a value with the writer's.

        Raises:
            CodingError: it is another one.
        """
        part = self._range // _CHECK
        found = min(self._code // part, _CHECK - 1)
        if found != value:
            raise _drift(f"id {place:,} or before")
        self._narrow(part, found, 1)

    def _narrow(self, part: int, start: int, size: int) -> None:
        self._code -= part * start
        self._range = part * size
        while self._range < _LEAST:
            word = self._data[self._place : self._place + _WORD // 8]
            self._code = self._code << _WORD | int.from_bytes(word.ljust(_WORD // 8, b"\0"))
            self._place += _WORD // 8
            self._range <<= _WORD
        if self._place > len(self._data) + 4 * _WORD // 8:
            raise _drift("its end")


def _leb128(number: int) -> bytes:
    """A whole number in groups of seven bits, the lowest first."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _read_leb128(data: bytes, place: int) -> tuple[int, int]:
    number = 0
    for i, byte in enumerate(data[place : place + 9]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, place + i + 1
    raise CodingError("the file is damaged: a number in its head does not end")
