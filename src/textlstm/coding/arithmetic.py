"""The arithmetic coder: logits to whole-number weights, weights to bits and back (Martin 1979, range coding).

Writer and reader go through the very same steps, and all of them are in whole numbers from the logits on.
"""

from __future__ import annotations

import decimal
import functools
import zlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from textlstm.errors import CodingError, DivergedError
from textlstm.metrics import Progress, lane_shape

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


def drift(where: str) -> CodingError:
    """What is wrong where a whole file does not come out as it was written."""
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


def code(
    predictor: Predictor,
    tokens: int,
    lanes: int,
    coder: Encoder | Decoder,
    progress: Progress,
    most: int | None = None,
    goes_on: bool = False,
) -> bool:
    """Codes some ids, one per lane and step.

    Args:
        predictor: of as many lanes; where there are fewer ids, the last lanes stay empty.
        tokens: number of ids.
        lanes: number B of lanes.
        coder: writes them, or reads them.
        progress: told how many places of all lanes are done.
        most: bytes that may be written.
        goes_on: the predictor is needed afterwards.

    Returns:
        Whether it came to the end before that many bytes were written.
    """
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
        if t + 1 < length or goes_on:
            predictor.learn(ids_B)
    progress(length * lanes, length * lanes)
    return True


class Encoder:
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


class Decoder:
    """The range coder that reads.

    Args:
        data: what the writer wrote; zeros follow it.
        lanes: number of lanes.
        where: in words, what part of a file this is.

    Attributes:
        ids: of every lane, as far as they are read.
    """

    def __init__(self, data: bytes, lanes: int, where: str = "its content") -> None:
        self.ids: list[list[int]] = [[] for _ in range(lanes)]
        self._where = where
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
            raise drift(f"id {place:,} or before, in {self._where}")
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
            raise drift(self._where)
