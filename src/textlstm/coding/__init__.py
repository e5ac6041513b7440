"""Compression: arithmetic coding with a model, any bytes in, the same bytes out.

A text is cut into ids and these into lanes, as `metrics` cuts them under `stream-L`, so that the size of the file
times eight is the bits of that score. Writer and reader run the very same steps: predict a distribution for every
lane, code one id of each, tell the predictor which they were. Their arithmetic is whole numbers from the logits on.

It goes block by block, so that a file of any length takes the same memory. A block has a megabyte, or 64 kB for each
lane if that is more; it is cut where the tokenizer may be begun anew, and the model goes on in the next one where it
stood in each lane. So one lane costs what `stream` says, however long the text is; with L lanes that is so of a single
block, and of more of them nearly.

A file is `tlz`, a byte of the version of the format, and blocks:

| bytes | what |
|---|---|
| 1 | method: 0 stored, 1 LZMA2, 2 model, 3 model that learns; 128 more in the last block |
| 1 to 9 | number of bytes of the coded content, as LEB128; not in the last block, which ends with the file |
| 2 | CRC-16 (CCITT, from 0) of all of the file up to the end of this block, without these sums |
| 4 | CRC-32 of the content up to the end of this block: the proof |
| rest | the content, coded |

Before a block is decoded, its CRC-16 shows damage, and blocks that are missing or in another order; before its content
is passed on, it is proved. So what was passed on is right, even if the file ends too early: then its last block is
missing.

The coded content of methods 2 and 3 is

| bytes | what |
|---|---|
| 4 | in the first such block: first bytes of the model's identity (`ModelFile.identity`) |
| 1 and more | in that block, method 3: settings of learning (`LearningEngine.settings`), behind their length |
| 1 to 9 | in that block: number of lanes, as LEB128 |
| 1 to 9 | number of ids, as LEB128 |
| rest | their code |

or 19 bytes before a text of a hundred kilobytes.

The smallest of the three methods is written: a model of prose does not pay for a photograph. What a model's
tokenizer cannot write (a table of characters without bytes) is not coded with it either. After a block without it,
the model begins anew.

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
import io
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from textlstm.coding.arithmetic import Decoder, Encoder, Predictor, code, cumulative_weights, drift
from textlstm.engine import Engine
from textlstm.errors import CodingError, UsageError
from textlstm.metrics import Progress, lane_shape, no_progress
from textlstm.tokenizer import Tokenizer, bytes_to_text, last_cut

__all__ = [
    "Coder",
    "Compressed",
    "EnginePredictor",
    "Predictor",
    "Summary",
    "compress",
    "compress_stream",
    "cumulative_weights",
    "decompress",
    "decompress_stream",
]

MAGIC, VERSION = b"tlz", 2
STORED, LZMA, MODEL, LEARNING = range(4)
METHODS = ("stored", "lzma", "model", "model that learns")
IDENTITY_BYTES = 4
SUM_BYTES = 6
MAX_LANES = 1 << 12
BLOCK, BLOCK_OF_LANE = 1 << 20, 1 << 16  # bytes of a block: at least, and for each lane
MAX_BLOCK = MAX_LANES * BLOCK_OF_LANE

_LAST = 128
_READ = 1 << 20  # bytes at once
_LZMA2: Any = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 22}]


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
        that_learnt: gives the coder of the same model that learns by some settings, or None.
    """

    identity: str
    tokenizer: Tokenizer
    predictor: Callable[[int], Predictor]
    settings: bytes = b""
    that_learnt: Callable[[bytes], Coder | None] | None = None


@dataclass
class Summary:
    """What became of some bytes.

    Attributes:
        bytes, compressed_bytes: their number, and that of the file.
        blocks: how many blocks were written by which of `METHODS`.
        tokens, lanes: ids that the model coded, and lanes that they were coded in; 0 without the model.
        why: why the model was not taken where it was not, in words; empty if it always was.
    """

    bytes: int = 0
    compressed_bytes: int = 0
    blocks: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    lanes: int = 0
    why: str = ""

    @property
    def method(self) -> str:
        """The methods of its blocks."""
        return " + ".join(self.blocks)


@dataclass
class Compressed(Summary):
    """A compressed file in memory.

    Attributes:
        data: the file.
    """

    data: bytes = b""


def compress(data: bytes, coder: Coder, lanes: int = 1, progress: Progress = no_progress) -> Compressed:
    """Compresses bytes; arguments as in `compress_stream`."""
    target = io.BytesIO()
    summary = compress_stream(io.BytesIO(data), target, coder, lanes, progress, len(data))
    return Compressed(**vars(summary), data=target.getvalue())


def decompress(data: bytes, find: Callable[[str], Coder], progress: Progress = no_progress) -> bytes:
    """Gives back what `compress` was given; arguments as in `decompress_stream`."""
    target = io.BytesIO()
    decompress_stream(io.BytesIO(data), target, find, progress, len(data))
    return target.getvalue()


def compress_stream(
    source: BinaryIO,
    target: BinaryIO,
    coder: Coder,
    lanes: int = 1,
    progress: Progress = no_progress,
    size: int | None = None,
    block: int | None = None,
) -> Summary:
    """Compresses what a file has, block by block.

    Args:
        source: any bytes, read to their end.
        target: where the compressed file goes.
        coder: the model.
        lanes: parts that are coded side by side, each from the model's start: faster, and a little longer.
        progress: told how many bytes are done, of how many.
        size: bytes that there will be, if that is known.
        block: bytes of a block, at most; None is a megabyte, or 64 kB for each lane.

    Raises:
        UsageError: an impossible number of lanes or size of a block, or a source that does not wait for its bytes.
    """
    if not 1 <= lanes <= MAX_LANES:
        raise UsageError(f"lanes must be between 1 and {MAX_LANES}, not {lanes}")
    block = max(BLOCK, lanes * BLOCK_OF_LANE) if block is None else block
    if not 1 <= block <= MAX_BLOCK:
        raise UsageError(f"a block must have between 1 and {MAX_BLOCK} bytes, not {block}")
    packer, summary = _Packer(coder, lanes), Summary()
    start = MAGIC + bytes([VERSION << 4])
    _put(target, start)
    summary.compressed_bytes = len(start)
    sums = _Sums(start)
    for data, last in _blocks(source, block):
        told = _told(progress, summary.bytes, len(data), size)
        method, coded = packer.pack(data, last, told)
        head = bytes([method | _LAST]) if last else bytes([method]) + _leb128(len(coded))
        sums.add(data)
        written = head + sums.of(head, coded) + sums.content + coded
        _put(target, written)
        summary.compressed_bytes += len(written)
        summary.bytes += len(data)
        summary.blocks[METHODS[method]] += 1
        told(1, 1)
    summary.tokens, summary.lanes, summary.why = packer.tokens, packer.lanes if packer.tokens else 0, packer.why
    return summary


def decompress_stream(
    source: BinaryIO,
    target: BinaryIO,
    find: Callable[[str], Coder],
    progress: Progress = no_progress,
    size: int | None = None,
) -> Summary:
    """Gives back what `compress_stream` was given, block by block; what is passed on is proved to be right.

    Args:
        source: a compressed file.
        target: where its content goes.
        find: gives the model whose identity begins with these hexadecimal digits; called only if one is needed.
        progress: told how many bytes of the file are done, of how many.
        size: bytes of the file, if that is known.

    Raises:
        CodingError: the file is something else, damaged, of another version, or of another model, or this machine
            computes differently from the one that wrote it.
        UsageError: a source that does not wait for its bytes.
    """
    unpacker, summary = _Unpacker(find), Summary()
    start = _checked_start(source)
    sums, last = _Sums(start), False
    summary.compressed_bytes = len(start)
    while not last:
        where = f"block {summary.blocks.total() + 1}"
        head, stored_sums, coded = _read_block(source, where)
        method, last = head[0] & ~_LAST, bool(head[0] & _LAST)
        if sums.of(head, coded, stored_sums[2:]) != stored_sums[:2]:
            raise CodingError(
                f"the file is damaged or cut off: the checksum of {where} is wrong, or blocks before it are missing "
                "or stand in another order; take another copy"
            )
        if method >= len(METHODS):
            raise CodingError(f"{where} is of a kind {method} that this textlstm does not know; upgrade it")
        taken = len(head) + len(stored_sums) + len(coded)
        told = _told(progress, summary.compressed_bytes, taken, size)
        content = unpacker.unpack(method, coded, last, where, told)
        sums.add(content)
        if sums.content != stored_sums[2:]:
            raise drift(where) if method >= MODEL else CodingError(f"the file is damaged: {where} has another content")
        _put(target, content)
        summary.bytes += len(content)
        summary.compressed_bytes += taken
        summary.blocks[METHODS[method]] += 1
        told(1, 1)
    summary.tokens, summary.lanes = unpacker.tokens, unpacker.lanes
    return summary


def _told(progress: Progress, before: int, here: int, size: int | None) -> Progress:
    """Progress within a block of so many bytes, as that of all bytes; what is not known ends with the block."""
    end = before + here
    return lambda done, total: progress(before + here * done // total, end if size is None else max(size, end))


class _Sums:
    """The sums that a file has in each block.

    Args:
        start: what stands before the blocks.

    Attributes:
        content: CRC-32 of the content so far, four bytes.
    """

    def __init__(self, start: bytes) -> None:
        self._file, self._content = binascii.crc_hqx(start, 0), 0

    def add(self, content: bytes) -> None:
        """Takes the content of the next block."""
        self._content = zlib.crc32(content, self._content)

    @property
    def content(self) -> bytes:
        return self._content.to_bytes(4, "little")

    def of(self, head: bytes, coded: bytes, content: bytes | None = None) -> bytes:
        """CRC-16 of the file up to the end of a block, whose content has some CRC-32: two bytes."""
        for part in (head, self.content if content is None else content, coded):
            self._file = binascii.crc_hqx(part, self._file)
        return self._file.to_bytes(2, "little")


def _blocks(source: BinaryIO, size: int) -> Iterator[tuple[bytes, bool]]:
    """The content in pieces of at most so many bytes, each with whether it is the last; at least one."""
    data = _take(source, size + 1)
    while len(data) > size:
        cut = last_cut(data)
        yield data[:cut], False
        data = data[cut:] + _take(source, cut)
    yield data, True


def _take(source: BinaryIO, size: int) -> bytes:
    """So many bytes, or all that are left; never more than there are is asked for in memory."""
    pieces = []
    while size:
        piece: bytes | None = source.read(min(size, _READ))
        if piece is None:
            raise UsageError("the input has nothing yet and does not wait (O_NONBLOCK); put `cat |` between")
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _put(target: BinaryIO, data: bytes) -> None:
    """Writes all of some bytes, also where a file takes less at a time: one without a buffer."""
    rest = memoryview(data)
    while rest:
        rest = rest[target.write(rest) :]


def _checked_start(source: BinaryIO) -> bytes:
    start = _take(source, len(MAGIC) + 1)
    if start[:-1] != MAGIC:
        raise CodingError("this is not a file of textlstm compress, or it is cut off")
    version, rest = divmod(start[-1], 16)
    if version != VERSION or rest:
        older = 0 < version < VERSION
        remedy = "decompress it with the older textlstm that wrote it" if older else "upgrade it"
        raise CodingError(f"its format is {version}.{rest}, which this textlstm does not know; {remedy}")
    return start


def _read_block(source: BinaryIO, where: str) -> tuple[bytes, bytes, bytes]:
    """Head, sums and coded content of the next block."""
    head = _take(source, 1)
    if not head:
        raise CodingError(f"the file is cut off before {where}: its last block is missing")
    size = MAX_BLOCK
    if not head[0] & _LAST:
        while (len(head) == 1 or head[-1] > 127) and len(head) < 10 and (byte := _take(source, 1)):
            head += byte
        size, _ = _read_leb128(head, 1)
    if size > MAX_BLOCK:
        raise CodingError(f"the file is damaged: {where} claims {size:,} bytes")
    sums, coded = _take(source, SUM_BYTES), _take(source, size)
    if len(sums) < SUM_BYTES or (len(coded) < size and not head[0] & _LAST):
        raise CodingError(f"the file is cut off within {where}, or damaged there")
    if head[0] & _LAST and source.read(1):
        raise CodingError(f"the file is damaged: {where} does not end")
    return head, sums, coded


class _Packer:
    """Codes block after block, the model going on from one to the next.

    Args:
        coder: the model.
        lanes: lanes that are wanted.

    Attributes:
        tokens, why: see `Summary`.
        lanes: lanes that the model codes in.
    """

    def __init__(self, coder: Coder, lanes: int) -> None:
        self._coder, self._wanted = coder, lanes
        self._predictor: Predictor | None = None
        self.tokens, self.lanes, self.why = 0, 0, ""

    def pack(self, data: bytes, last: bool, progress: Progress) -> tuple[int, bytes]:
        """The method that makes a block smallest, and what it makes of it."""
        lzma2 = lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA2)
        method, best = (LZMA, lzma2) if len(lzma2) < len(data) else (STORED, data)
        coded = self._by_model(data, last, progress, len(best))
        if coded is None:
            self._predictor = None
            return method, best
        return (LEARNING if self._coder.settings else MODEL), coded

    def _by_model(self, data: bytes, last: bool, progress: Progress, most: int) -> bytes | None:
        ids = self._coder.tokenizer.encode(bytes_to_text(data))
        if not len(ids) or self._coder.tokenizer.decode_bytes(ids) != data:
            self.why = self.why or ("the model's tokenizer cannot write it" if data else "it is empty")
            return None
        head = b"" if self.tokens else self._head(len(ids))
        head += _leb128(len(ids))
        if self._predictor is None:
            self._predictor = self._coder.predictor(self.lanes)
        lanes, length = lane_shape(len(ids), self.lanes)
        ids_BT = np.zeros((lanes, length), dtype=np.int64)
        ids_BT.reshape(-1)[: len(ids)] = ids
        encoder = Encoder(ids_BT)
        if code(self._predictor, len(ids), self.lanes, encoder, progress, most - len(head), not last):
            coded = head + encoder.finish()
            if len(coded) < most:
                self.tokens += len(ids)
                return coded
        self.why = self.why or "the model would make it longer"
        return None

    def _head(self, tokens: int) -> bytes:
        """What stands before the first block that the model codes; a short text has no use for many lanes."""
        self.lanes = lane_shape(tokens, self._wanted)[0]
        settings = self._coder.settings
        head = bytes.fromhex(self._coder.identity)[:IDENTITY_BYTES]
        return head + (_leb128(len(settings)) + settings if settings else b"") + _leb128(self.lanes)


class _Unpacker:
    """Decodes block after block; the counterpart of `_Packer`.

    Args:
        find: see `decompress_stream`.

    Attributes:
        tokens, lanes: see `Summary`.
    """

    def __init__(self, find: Callable[[str], Coder]) -> None:
        self._find = find
        self._coder: Coder | None = None
        self._predictor: Predictor | None = None
        self.tokens = self.lanes = 0

    def unpack(self, method: int, coded: bytes, last: bool, where: str, progress: Progress) -> bytes:
        """The content of a block, not yet proved."""
        if method >= MODEL:
            return self._by_model(method, coded, last, where, progress)
        self._predictor = None
        return coded if method == STORED else _decoded_lzma(coded, where)

    def _by_model(self, method: int, coded: bytes, last: bool, where: str, progress: Progress) -> bytes:
        place = 0
        if self._coder is None:
            self._coder, place = self._begin(coded, method == LEARNING)
        if (method == LEARNING) != bool(self._coder.settings):
            raise CodingError(f"the file is damaged: {where} is by another method than those before")
        tokens, place = _read_leb128(coded, place)
        if not 1 <= tokens <= MAX_BLOCK:
            raise CodingError(f"the file is damaged: {where} claims {tokens:,} ids")
        if self._predictor is None:
            self._predictor = self._coder.predictor(self.lanes)
        decoder = Decoder(coded[place:], self.lanes, where)
        code(self._predictor, tokens, self.lanes, decoder, progress, goes_on=not last)
        self.tokens += tokens
        return self._coder.tokenizer.decode_bytes([id for lane in decoder.ids for id in lane])

    def _begin(self, coded: bytes, learnt: bool) -> tuple[Coder, int]:
        """The model of the file and where its description ends."""
        identity, place, settings = coded[:IDENTITY_BYTES].hex(), IDENTITY_BYTES, b""
        if learnt:
            size, place = _read_leb128(coded, place)
            settings, place = coded[place : place + size], place + size
        self.lanes, place = _read_leb128(coded, place)
        if not 1 <= self.lanes <= MAX_LANES:
            raise CodingError(f"the file is damaged: it claims {self.lanes:,} lanes")
        coder = self._find(identity)
        if not coder.identity.startswith(identity):
            raise CodingError(
                f"it was written with another model: its identity begins with {identity}, that of this one with "
                f"{coder.identity[: 2 * IDENTITY_BYTES]}; name the right one with --model, or none if it is one that "
                "ships"
            )
        return (_that_learnt(coder, settings) if learnt else coder), place


def _decoded_lzma(coded: bytes, where: str) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA2)
    try:
        content = decoder.decompress(coded, MAX_BLOCK)
    except (lzma.LZMAError, EOFError) as error:
        raise CodingError(f"the file is damaged in {where}: {error}") from error
    if not decoder.eof or decoder.unused_data:
        raise CodingError(f"the file is damaged: {where} does not end where it should")
    return content


def _that_learnt(coder: Coder, settings: bytes) -> Coder:
    found = None if coder.that_learnt is None else coder.that_learnt(settings)
    if found is None or found.settings != settings:
        raise CodingError(
            "it was written by a model that learnt, with other versions of textlstm or torch, or other statistics of "
            "gradients (--learn-from), than there are here; decompress it with those"
        )
    return found


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
    raise CodingError("the file is damaged or cut off: the head of a block does not end")
