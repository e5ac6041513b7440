"""Compression: every byte comes back, the size is the score, and nothing wrong is passed on."""

from __future__ import annotations

import decimal
import io
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from conftest import make_text
from hypothesis import given
from hypothesis import strategies as st

from textlstm import cli, coding
from textlstm.cli.compressing import check_out
from textlstm.coding import Coder, arithmetic, cumulative_weights
from textlstm.config import ModelConfig
from textlstm.errors import CodingError, DivergedError, UsageError
from textlstm.model import Model
from textlstm.model_file import ModelFile, read_model, write_model
from textlstm.registry import shipped_models
from textlstm.tokenizer import SAFE_CUT, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, last_cut

TEXT = make_text(20_000)


class Fixed:
    """Predicts the same logits at every place, and notes what it is told."""

    def __init__(self, logits_V: np.ndarray, lanes: int) -> None:
        self.logits_BV, self.told = np.tile(logits_V, (lanes, 1)), []

    def predict(self):
        return self.logits_BV

    def learn(self, ids_B):
        self.told.append(ids_B.tolist())


class Counting:
    """Learns: each lane's logits are the logarithms of its counts."""

    def __init__(self, vocab_size: int, lanes: int) -> None:
        self.counts_BV = np.ones((lanes, vocab_size))

    def predict(self):
        return np.log(self.counts_BV)

    def learn(self, ids_B):
        self.counts_BV[np.arange(len(ids_B)), ids_B] += 40


def fixed_coder(logits_V: np.ndarray, tokenizer: Tokenizer | None = None, identity: str = "ab" * 32) -> Coder:
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    return Coder(identity, tokenizer, lambda lanes: Fixed(logits_V, lanes))


def counting_coder() -> Coder:
    return Coder("cd" * 32, ByteTokenizer(), lambda lanes: Counting(257, lanes))


def make_model(tokenizer: Tokenizer, boundary: bool = True, seed: int = 0, scale: float = 0.5) -> Model:
    config = ModelConfig(tokenizer.vocab_size + boundary, 8, 8, 1, boundary=boundary)
    rng = np.random.default_rng(seed)
    weights = {n: rng.normal(0, scale, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    return Model(ModelFile(config, tokenizer, weights, {}, ""))


TOKENIZERS = {
    "byte": ByteTokenizer(),
    "char": CharTokenizer.from_text(TEXT + "äöü€"),
    "char-plain": CharTokenizer.from_text(TEXT + "äöü€", byte_fallback=False),
    "bpe": BPETokenizer.train(TEXT, 300),
}
MODELS = {name: make_model(tokenizer) for name, tokenizer in TOKENIZERS.items()}
MODELS["no-boundary"] = make_model(ByteTokenizer(), boundary=False)

SONNET = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date;
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance or nature's changing course untrimm'd;
But thy eternal summer shall not fade,
Nor lose possession of that fair thou ow'st;
Nor shall death brag thou wander'st in his shade,
When in eternal lines to time thou grow'st:
So long as men can breathe or eyes can see,
So long lives this, and this gives life to thee.
"""
SKEWED = bytes(random.Random(1).choices(b"abcd", k=2000))

NOISE = random.Random(8).randbytes(500).translate(bytes.maketrans(b"\n ", b"xx"))  # no place for a safe cut

# What the test data of brotli is like: text, binary, repetition, odd encodings, little and nothing.
RNG = random.Random(5)
CORPORA = {
    "empty": b"",
    "one byte": b"x",
    "one zero": b"\0",
    "text": TEXT[:3000].encode(),
    "crlf": TEXT[:2000].replace("\n", "\r\n").encode(),
    "zeros": bytes(5000),
    "repeated": b"quick fox " * 400,
    "one letter": b"e" * 3000,
    "random": RNG.randbytes(2000),
    "utf-16 of cp1251": "Съешь ещё этих мягких булок".encode("cp1251").decode("latin-1").encode("utf-16-le"),
    "utf-16 with bom": TEXT[:800].encode("utf-16"),
    "latin-1": ("Müller, naïve façade. " * 40).encode("latin-1"),
    "cjk and emoji": ("吾輩は猫である。👩‍👩‍👧 " * 30).encode(),
    "cut inside a character": "äöü€".encode()[:-1],
    "overlong and surrogates": b"\xc0\x80\xed\xa0\x80\xf4\x90\x80\x80\xff\xfe",
    "all bytes": bytes(range(256)) * 4,
    "ramp": bytes(i * i >> 4 & 255 for i in range(3000)),
}  # fmt: skip


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("corpus", CORPORA)
def test_what_was_compressed_comes_back(name, corpus, lanes):
    data, model = CORPORA[corpus], MODELS[name]
    done = model.compress(data, lanes)
    assert model.decompress(done.data) == data
    assert len(done.data) <= 11 + len(data)


@pytest.mark.parametrize("name", ["bpe", "char", "byte"])
def test_a_thousand_random_strings_come_back_through_the_coder(name):
    """Flat logits and, for every other string, none of the shortcuts: the model's method is forced."""
    rng = random.Random(3)
    tokenizer = TOKENIZERS[name]
    coder = fixed_coder(np.random.default_rng(0).normal(0, 3, tokenizer.vocab_size + 1), tokenizer)
    for _ in range(1000):
        data = rng.randbytes(rng.choice((0, 1, 2, 3, 7, 40, 150)))
        lanes = rng.choice((1, 2, 5, 16))
        assert forced(data, coder, lanes) == data


def forced(data: bytes, coder: Coder, lanes: int) -> bytes:
    """Through the model's method, whether it pays or not."""
    ids = coder.tokenizer.encode(coding.bytes_to_text(data))
    if not len(ids):
        return data
    lanes, length = coding.lane_shape(len(ids), lanes)
    ids_BT = np.zeros((lanes, length), dtype=np.int64)
    ids_BT.reshape(-1)[: len(ids)] = ids
    writer = arithmetic.Encoder(ids_BT)
    assert arithmetic.code(coder.predictor(lanes), len(ids), lanes, writer, coding.no_progress)
    reader = arithmetic.Decoder(writer.finish(), lanes)
    assert arithmetic.code(coder.predictor(lanes), len(ids), lanes, reader, coding.no_progress)
    return coder.tokenizer.decode_bytes([id for lane in reader.ids for id in lane])


@given(st.binary(max_size=300), st.integers(1, 20), st.sampled_from(sorted(MODELS)))
def test_any_bytes_any_lanes_any_tokenizer(data, lanes, name):
    model = MODELS[name]
    assert model.decompress(model.compress(data, lanes).data) == data


@given(st.text(alphabet="ab", max_size=400), st.integers(1, 9))
def test_a_predictor_that_learns_codes_its_own_past(text, lanes):
    done = coding.compress(text.encode(), counting_coder(), lanes)
    assert coding.decompress(done.data, lambda _: counting_coder()) == text.encode()


def test_a_predictor_that_learns_is_told_every_id_in_both_directions():
    heard = []

    class Listening(Counting):
        def learn(self, ids_B):
            heard.append(ids_B.tolist())
            super().learn(ids_B)

    coder = Coder("ef" * 32, ByteTokenizer(), lambda lanes: Listening(257, lanes))
    data = SKEWED[:1801]
    done = coding.compress(data, coder, 2)
    assert done.method == "model"
    writer, heard[:] = list(heard), []
    assert coding.decompress(done.data, lambda _: coder) == data
    assert heard == writer == [[*pair] for pair in zip(data[:900], data[901:], strict=True)]


# --- the size is the score -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 4, 7])
@pytest.mark.parametrize("name", ["bpe", "char", "byte", "no-boundary"])
def test_size_is_the_score(name, lanes):
    """Coded bits against `score`, beyond the head: within 0.02 % and a last byte; random weights do not pay."""
    model, ids = MODELS[name], MODELS[name].tokenizer.encode(TEXT)
    rows, length = coding.lane_shape(len(ids), lanes)
    ids_BT = np.zeros((rows, length), dtype=np.int64)
    ids_BT.reshape(-1)[: len(ids)] = ids
    writer = arithmetic.Encoder(ids_BT)
    arithmetic.code(model.coder.predictor(rows), len(ids), rows, writer, coding.no_progress)
    bits = model.score(TEXT, f"stream-{lanes}").nats / math.log(2)
    assert abs(8 * len(writer.finish()) - bits) < 2e-4 * bits + 16


def test_file_of_the_shipped_model_is_its_score(sonnet):
    model = Model.load("shakespeare")
    for lanes in (16, 64):
        done = model.compress(sonnet, lanes)
        score = model.score(sonnet.decode(), f"stream-{lanes}")
        assert done.method == "model" and len(done.data) * 8 <= score.nats / math.log(2) * 1.0005 + 8 * 20
        assert len(done.data) * 8 >= score.nats / math.log(2)
        assert model.decompress(done.data) == sonnet


@pytest.mark.parametrize("size", [100, 600])
def test_header_is_as_long_as_the_help_says(size, sonnet):
    text, model = sonnet.decode()[:size], Model.load("shakespeare", "int8")
    least, most = map(int, re.search(r"header of (\d+) to (\d+) bytes", cli.cli.commands["compress"].help).groups())
    done = model.compress(text.encode())
    header = len(done.data) - model.score(text).nats / math.log(2) / 8
    assert done.method == "model" and least - 0.5 <= header <= most + 1  # the code ends with a whole byte


@pytest.fixture(scope="module")
def sonnet() -> bytes:
    return SONNET.encode()


@pytest.mark.parametrize("vocab_size", [2, 257, 50_258])
def test_weights_are_the_softmax(vocab_size):
    logits = np.random.default_rng(1).normal(0, 4, (3, vocab_size)).astype(np.float32)
    sums = cumulative_weights(logits)
    weights = np.diff(sums, axis=1, prepend=0)
    assert weights.min() >= 1 and weights.max() == 1 << 30 and sums.max() < 1 << 47
    p = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    q = weights / sums[:, -1:]
    assert (p * np.log(p / q)).sum(1).max() < 1e-4


def test_weights_follow_the_equation():
    with decimal.localcontext() as context:
        context.prec = 40
        expected = [int(((1 << 30) * (decimal.Decimal(-k) / 256).exp()).to_integral_value()) for k in range(5400)]
    table = arithmetic._weights()
    assert table.tolist() == expected[: len(table)] and table[-1] == 1


def test_weights_do_not_depend_on_a_constant_nor_on_other_rows():
    logits = np.random.default_rng(2).integers(-900, 900, (4, 60)).astype(np.float32) / 64
    sums = cumulative_weights(logits)
    assert np.array_equal(sums, cumulative_weights(logits + 4))
    assert np.array_equal(sums[2:3], cumulative_weights(logits[2:3]))
    hopeless = np.array([[0, -np.inf, -1e30, 5]], dtype=np.float32)
    assert np.diff(cumulative_weights(hopeless))[0, :2].tolist() == [1, 1]
    for broken in (np.nan, np.inf):
        with pytest.raises(DivergedError):
            cumulative_weights(np.array([[0, broken, 1]]))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 1 << 46)), min_size=1, max_size=60))
def test_range_coder_against_its_reader(symbols):
    """Tables of extreme weights, among them the largest totals that a model can give."""
    rng = np.random.default_rng(len(symbols))
    tables = []
    for id, most in symbols:
        weights = rng.integers(1, max(2, most // 41), 41)
        weights[id] = 1 if most % 2 else most // 41 + 1
        tables.append(np.cumsum(weights))
    writer = arithmetic.Encoder(np.array([[id for id, _ in symbols]]))
    for t, table in enumerate(tables):
        writer.id(table, int(table[-1]), 0, t)
    reader = arithmetic.Decoder(writer.finish(), 1)
    for t, table in enumerate(tables):
        reader.id(table, int(table[-1]), 0, t)
    assert reader.ids[0] == [id for id, _ in symbols]


def test_carry_runs_through_a_chain_of_full_bytes():
    """The last symbol of certain tables pushes the low end to the brink, the next one over it."""
    table = np.array([1, (1 << 40) - 1, 1 << 40])
    for ids in ([2] * 60 + [0], [2] * 60 + [1] * 3, [0] * 30 + [2] * 30, [1, 2, 2, 2, 2, 2, 2, 0, 2, 2]):
        writer = arithmetic.Encoder(np.array([ids]))
        for t in range(len(ids)):
            writer.id(table, 1 << 40, 0, t)
        reader = arithmetic.Decoder(writer.finish(), 1)
        assert [reader.id(table, 1 << 40, 0, t) for t in range(len(ids))] == ids


# --- block by block --------------------------------------------------------------------------------------------------


def streamed(data: bytes, coder: Coder, lanes: int, block: int) -> tuple[io.BytesIO, coding.Summary]:
    target = io.BytesIO()
    return target, coding.compress_stream(io.BytesIO(data), target, coder, lanes, block=block)


class Trickle(io.RawIOBase):
    """Gives and takes a few bytes at a time, as a pipe may."""

    def __init__(self, data: bytes = b"") -> None:
        self.inner = io.BytesIO(data)

    def readable(self):
        return True

    def writable(self):
        return True

    def read(self, size=-1):
        return self.inner.read(min(size, 7))

    def write(self, data):
        return self.inner.write(bytes(data)[:5])


@given(st.binary(max_size=300), st.integers(1, 20), st.integers(1, 320), st.sampled_from(sorted(MODELS)))
def test_any_bytes_in_any_blocks_come_back(data, lanes, block, name):
    model = MODELS[name]
    target, summary = streamed(data, model.coder, lanes, block)
    assert model.decompress(target.getvalue()) == data
    assert summary.bytes == len(data) and summary.compressed_bytes == len(target.getvalue())
    assert summary.compressed_bytes <= 4 + len(data) + 10 * summary.blocks.total()


@given(st.text(alphabet="ab \n", max_size=600), st.integers(1, 9), st.integers(40, 300))
def test_a_predictor_that_learns_goes_on_from_block_to_block(text, lanes, block):
    target, _ = streamed(text.encode(), counting_coder(), lanes, block)
    assert coding.decompress(target.getvalue(), lambda _: counting_coder()) == text.encode()


def test_what_gives_and_takes_little_at_a_time():
    target, back = Trickle(), Trickle()
    coding.compress_stream(Trickle(SKEWED), target, skewed_coder(), block=300)
    coding.decompress_stream(Trickle(target.inner.getvalue()), back, lambda _: skewed_coder())
    assert back.inner.getvalue() == SKEWED
    assert target.inner.getvalue() == streamed(SKEWED, skewed_coder(), 1, 300)[0].getvalue()


def test_a_source_that_does_not_wait_is_not_taken_for_its_end():
    class Late(Trickle):
        def read(self, size=-1):
            return super().read(size) or None  # what a pipe in non-blocking mode gives while nothing has come

    with pytest.raises(UsageError, match="does not wait"):
        coding.compress_stream(Late(SKEWED), io.BytesIO(), skewed_coder())
    with pytest.raises(UsageError, match="does not wait"):
        coding.decompress_stream(Late(b"tl"), io.BytesIO(), lambda _: skewed_coder())


@pytest.mark.parametrize("name", ["bpe", "char", "byte", "no-boundary"])
def test_size_is_the_score_over_many_blocks(name):
    """One lane goes on from block to block as if there were none; each costs its head and less than a word."""
    model = MODELS[name]
    bits = model.score(TEXT).nats / math.log(2)
    packer = coding._Packer(model.coder, 1)
    blocks = list(coding._blocks(io.BytesIO(TEXT.encode()), 2000))
    coded = [packer._by_model(data, last, coding.no_progress, 1 << 30) for data, last in blocks]
    assert len(blocks) > 9 and packer.tokens == len(model.tokenizer.encode(TEXT))
    assert abs(8 * sum(map(len, coded)) - bits) < 2e-4 * bits + 8 * (6 + 4 * len(coded))


@pytest.mark.parametrize("name", ["bpe", "char", "byte"])
@given(st.text(alphabet="ab \n\u3000\xa0é/'1", max_size=400), st.integers(60, 200))
def test_blocks_give_the_ids_of_the_whole(name, text, size):
    """Where a safe place is near; hardly a text of a few letters and spaces is without one."""
    tokenizer, data = TOKENIZERS[name], text.encode()
    blocks = [block for block, _ in coding._blocks(io.BytesIO(data), size)]
    assert b"".join(blocks) == data and all(0 < len(block) <= size for block in blocks[:-1])
    borders = np.cumsum([len(block) for block in blocks[:-1]]).tolist()
    safe = {len(text[: m.start()].encode()) for m in SAFE_CUT.finditer(text)}
    if safe.issuperset(borders):
        ids = [tokenizer.encode(coding.bytes_to_text(block)) for block in blocks]
        assert np.array_equal(np.concatenate(ids), tokenizer.encode(text))


@given(st.binary(min_size=2, max_size=60))
def test_a_cut_is_inside_and_no_safe_one_is_missed(data):
    cut = last_cut(data)
    assert 0 < cut < len(data)
    text = data.decode("utf-8", "ignore")
    if text.encode() == data:
        safe = [len(text[: m.start()].encode()) for m in SAFE_CUT.finditer(text[:-1])]
        assert cut == (safe[-1] if safe else max(1, len(text[:-1].encode())))


def test_after_a_block_that_it_does_not_code_the_model_begins_anew():
    target, summary = streamed(SKEWED[:500] + NOISE + SKEWED[:500] + SKEWED[500:900], skewed_coder(), 2, 500)
    assert summary.blocks == {"model": 3, "stored": 1} and summary.method == "model + stored"
    assert summary.why == "the model would make it longer" and summary.tokens == 1400
    made = []
    coder = skewed_coder()

    def predictor(lanes):
        made.append(lanes)
        return coder.predictor(lanes)

    back = coding.decompress(target.getvalue(), lambda _: replace(coder, predictor=predictor))
    assert back == SKEWED[:500] + NOISE + SKEWED[:900] and made == [2, 2]


def test_a_block_of_another_alphabet_does_not_cost_the_lanes():
    """The first block cannot be written by the model and has few ids; the lanes are those that were wanted."""
    alone = replace(skewed_coder(), tokenizer=CharTokenizer("abcd", byte_fallback=False))
    coder = Coder(alone.identity, alone.tokenizer, lambda lanes: Fixed(np.zeros(4), lanes))
    target, summary = streamed(b"x" * 300 + SKEWED[:600], coder, 5, 300)
    assert summary.blocks == {"lzma": 1, "model": 2} and summary.lanes == 5
    assert coding.decompress(target.getvalue(), lambda _: coder) == b"x" * 300 + SKEWED[:600]


@pytest.fixture(scope="module")
def of_blocks() -> tuple[bytes, list[bytes]]:
    """A file and its parts: what begins it, then block after block, each of another kind."""
    data = SKEWED[:200] + bytes(200) + NOISE[:200] + SKEWED[:200]
    file = streamed(data, skewed_coder(), 1, 200)[0].getvalue()
    parts, source = [file[:4]], io.BytesIO(file[4:])
    while source.tell() < len(file) - 4:
        parts.append(b"".join(coding._read_block(source, "")))
    assert [part[0] for part in parts[1:]] == [2, 1, 0, 130] and b"".join(parts) == file
    return data, parts


def passed_on(file: bytes) -> tuple[bytes, str]:
    """What comes out of a file, and why it was no more."""
    target = io.BytesIO()
    with pytest.raises(CodingError) as error:
        coding.decompress_stream(io.BytesIO(file), target, lambda _: skewed_coder())
    return target.getvalue(), str(error.value)


def test_damage_anywhere_in_a_file_of_blocks_is_an_error_and_passes_nothing_wrong_on(of_blocks):
    data, parts = of_blocks
    file = b"".join(parts)
    for place in range(len(file)):
        for flipped in (1 << place % 8, 255):
            damaged = bytearray(file)
            damaged[place] ^= flipped
            assert data.startswith(passed_on(bytes(damaged))[0])
    for length in range(len(file)):
        content, problem = passed_on(file[:length])
        assert data.startswith(content) and len(content) < len(data) and "cut off" in problem


def test_blocks_that_are_missing_swapped_doubled_or_too_many_are_named(of_blocks):
    data, (start, *blocks) = of_blocks
    for number in range(3):
        content, problem = passed_on(start + b"".join(blocks[:number] + blocks[number + 1 :]))
        assert content == data[: 200 * number] and f"block {number + 1} is wrong" in problem
    content, problem = passed_on(start + b"".join(blocks[:3]))
    assert content == data[:600] and "cut off before block 4: its last block is missing" in problem
    one, two, three, four = blocks
    for order in ([two, one, three, four], [one, three, two, four], [one, one, two, three, four], [four, one, two]):
        content, problem = passed_on(start + b"".join(order))
        assert data.startswith(content) and "is wrong" in problem
    for rest in (b"x", start + b"".join(blocks)):
        content, problem = passed_on(start + b"".join(blocks) + rest)
        assert content == data[:600] and "block 4 is wrong" in problem


@pytest.mark.parametrize("block", [0, -1, 1 << 40])
def test_impossible_blocks(block):
    with pytest.raises(UsageError, match="block"):
        streamed(b"abc", skewed_coder(), 1, block)


@pytest.mark.parametrize(
    ("method", "letters", "block", "sizes", "room"),
    [("lzma", b"\0", 1 << 16, (1 << 19, 1 << 23), 1 << 18), ("model", b"abcd", 1 << 10, (1 << 12, 1 << 14), 1 << 15)],
)
def test_memory_does_not_grow_with_the_file(monkeypatch, method, letters, block, sizes, room):
    """What one byte after the other gives is not kept; several times as much takes no more."""
    monkeypatch.setattr(Fixed, "learn", lambda self, ids_B: None)  # it would note them all

    class Endless(io.RawIOBase):
        def __init__(self, size: int) -> None:
            self.left, self.random = size, random.Random(3)

        def read(self, size=-1):
            size = min(size, self.left)
            self.left -= size
            return bytes(self.random.choices(letters, k=size)) if len(letters) > 1 else letters * size

    class Counter(io.RawIOBase):
        size = 0

        def write(self, data):
            self.size += len(data)
            return len(data)

    def peak(size: int) -> tuple[int, int]:
        packed, unpacked = io.BytesIO(), Counter()
        tracemalloc.reset_peak()
        summary = coding.compress_stream(Endless(size), packed, skewed_coder(), 4, block=block)
        assert list(summary.blocks) == [method]
        packing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        coding.decompress_stream(io.BytesIO(packed.getvalue()), unpacked, lambda _: skewed_coder())
        assert unpacked.size == size
        return packing, tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        peak(2 * block)  # tables that are made once
        little, much = (peak(size) for size in sizes)
    finally:
        tracemalloc.stop()
    assert all(more < less + room for less, more in zip(little, much, strict=True)), (little, much)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_of_the_commands_is_that_of_a_block(tmp_path):
    """Many megabytes through pipes, by the shipped model where it pays: no more memory than three take."""

    def peak(*arguments: str, source: Path, out: Path) -> int:
        code = "import sys; from textlstm.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); "
        code += "print(*[line for line in open('/proc/self/status') if line.startswith('VmHWM')], file=sys.stderr)"
        command = [sys.executable, "-c", code, *arguments, "--quiet"]
        with source.open("rb") as data, out.open("wb") as target:
            done = subprocess.run(command, stdin=data, stdout=target, stderr=subprocess.PIPE, check=True, timeout=300)
        return int(done.stderr.split()[-2])

    line, peaks = b"the same line again, and once more; " * 30 + b"\n", []
    for megabytes in (3, 24):
        text, packed, back = (tmp_path / f"{name}{megabytes}" for name in ("text", "packed", "back"))
        text.write_bytes(line * (megabytes * 1_000_000 // len(line)))
        peaks.append(
            (
                peak("compress", "shakespeare", "-", "-", "--lanes", "4", source=text, out=packed),
                peak("decompress", "-", "-", source=packed, out=back),
            )
        )
        assert back.read_bytes() == text.read_bytes()
    assert all(much < little + 20_000 for little, much in zip(*peaks, strict=True)), peaks


# --- what is wrong is named ------------------------------------------------------------------------------------------


def skewed_coder(identity: str = "ab" * 32) -> Coder:
    logits = np.zeros(256)
    logits[ord("a") : ord("e")] = 6
    return fixed_coder(logits, identity=identity)


def test_every_flipped_bit_is_an_error():
    for data, coder in ((SKEWED[:300], skewed_coder()), (b"a" * 300, skewed_coder()), (b"xyz", skewed_coder())):
        done = coding.compress(data, coder).data
        for place in range(8 * len(done)):
            damaged = bytearray(done)
            damaged[place // 8] ^= 1 << place % 8
            with pytest.raises(CodingError):
                coding.decompress(bytes(damaged), lambda _, coder=coder: coder)
        for length in range(len(done)):
            with pytest.raises(CodingError):
                coding.decompress(done[:length], lambda _, coder=coder: coder)


def framed(*blocks: tuple[int, bytes, bytes]) -> bytes:
    """A file of some blocks: method, content, coded content; its sums are right."""
    start = coding.MAGIC + bytes([coding.VERSION << 4])
    sums, written = coding._Sums(start), start
    for number, (method, content, coded) in enumerate(blocks, 1):
        last = number == len(blocks)
        head = bytes([method | 128 * last]) + (b"" if last else coding._leb128(len(coded)))
        sums.add(content)
        written += head + sums.of(head, coded) + sums.content + coded
    return written


@given(st.binary(max_size=80))
def test_foreign_bytes_are_an_error(data):
    for head in (b"", b"tlz", b"tlz\x10", b"tlz\x20\x80", b"tlz\x20\x02\x05", b"tlz\x20"):
        with pytest.raises(CodingError):
            coding.decompress(head + b"\xff" + data, lambda _: skewed_coder())


@given(st.sampled_from([0, 1, 2]), st.binary(max_size=60))
def test_crafted_files_with_a_right_checksum_are_an_error(method, coded):
    """Nobody but an attacker writes one; it must not hang, grow or raise anything else."""
    crafted = framed((method, b"not this", coded))
    with pytest.raises(CodingError):
        coding.decompress(crafted, lambda identity: skewed_coder(identity.ljust(64, "0")))


@pytest.mark.parametrize("tokens", [1 << 60, 1 << 28, 1 << 20, 0])
def test_a_claim_of_endless_text_ends(tokens):
    coded = bytes.fromhex("abababab") + b"\1" + coding._leb128(tokens) + b"short"
    with pytest.raises(CodingError):
        coding.decompress(framed((coding.MODEL, b"", coded)), lambda _: skewed_coder())


@pytest.mark.parametrize("lanes", [0, 4097, 1 << 40])
def test_impossible_lanes_in_the_file(lanes):
    coded = bytes.fromhex("abababab") + coding._leb128(lanes) + coding._leb128(3) + b"short"
    with pytest.raises(CodingError, match="damaged"):
        coding.decompress(framed((coding.MODEL, b"?", coded)), lambda _: skewed_coder())


def test_a_block_that_unpacks_to_endless_zeros_is_an_error(monkeypatch):
    monkeypatch.setattr(coding, "MAX_BLOCK", 1 << 16)
    bomb = coding.lzma.compress(bytes(1 << 20), coding.lzma.FORMAT_RAW, filters=coding._LZMA2)
    with pytest.raises(CodingError, match="does not end"):
        coding.decompress(framed((coding.LZMA, b"", bomb)), lambda _: skewed_coder())


@pytest.mark.parametrize("block", [(4, b"", b""), (coding.LEARNING, b"a", b"\1a")])
def test_blocks_of_unknown_and_of_other_methods_are_named(block):
    coded = bytes.fromhex("abababab") + b"\1\1"
    with pytest.raises(CodingError, match=r"kind 4|another method"):
        coding.decompress(framed((coding.MODEL, b"\0", coded), block), lambda _: fixed_coder(np.zeros(256)))


def test_another_model_is_named():
    done = coding.compress(SKEWED, skewed_coder())
    assert done.method == "model"
    with pytest.raises(CodingError, match=r"another model.*abababab.*--model"):
        coding.decompress(done.data, lambda _: skewed_coder("12" * 32))


def test_a_machine_that_computes_differently_is_named(monkeypatch):
    """One logit that differs in one step from the writer's."""

    class Drifting(Fixed):
        def predict(self):
            logits = self.logits_BV.copy()
            if len(self.told) == 700:
                logits[0, ord("a")] += 0.02
            return logits

    done = coding.compress(SKEWED, skewed_coder())
    logits = skewed_coder().predictor(1).logits_BV[0]
    drifting = Coder("ab" * 32, ByteTokenizer(), lambda lanes: Drifting(logits, lanes))
    with pytest.raises(CodingError, match=r"computes\s+differently"):
        coding.decompress(done.data, lambda _: drifting)
    monkeypatch.setattr(arithmetic, "_CHECK_EVERY", 256)  # found at the next check, not at the end
    done = coding.compress(SKEWED, skewed_coder())
    assert coding.decompress(done.data, lambda _: skewed_coder()) == SKEWED
    with pytest.raises(CodingError, match=r"id (768|1,024) or before"):
        coding.decompress(done.data, lambda _: drifting)


def test_another_version_of_the_format_is_named():
    done = bytearray(coding.compress(SKEWED, skewed_coder()).data)
    for version, words in ((0x30, r"3\.0.*upgrade"), (0x21, r"2\.1.*upgrade"), (0x12, r"1\.2.*older textlstm")):
        done[3] = version
        with pytest.raises(CodingError, match=words):
            coding.decompress(bytes(done), lambda _: skewed_coder())


def test_progress_is_told_on_the_way():
    """In bytes: of what is compressed, or of the file; by 256 ids and at the end of each block."""
    for size in (len(SKEWED), None):
        told, target = [], io.BytesIO()
        source = io.BytesIO(SKEWED)
        coding.compress_stream(source, target, skewed_coder(), 1, lambda *far, told=told: told.append(far), size, 1000)
        assert told[0] == (256, size or 1000) and (1000, size or 1000) in told and told[-1] == (2000, 2000)
        assert told == sorted(told)
        told, file = [], target.getvalue()
        coding.decompress(file, lambda _: skewed_coder(), lambda *far, told=told: told.append(far))
        assert told == sorted(told) and len(told) > 8 and told[-1] == (len(file), len(file))


@pytest.mark.parametrize("lanes", [0, -1, 5000])
def test_impossible_lanes(lanes):
    with pytest.raises(UsageError, match="lanes"):
        coding.compress(b"abc", skewed_coder(), lanes)


def test_the_smallest_method_is_taken():
    coder = skewed_coder()
    alone = replace(coder, tokenizer=CharTokenizer("abcd", byte_fallback=False))
    for data, one, method, why in (
        (SKEWED, coder, "model", ""),
        (b"a" * 5000, coder, "lzma", "the model would make it longer"),
        (random.Random(2).randbytes(500), coder, "stored", "the model would make it longer"),
        (b"", coder, "stored", "it is empty"),
        (b"xyz" * 100, alone, "lzma", "the model's tokenizer cannot write it"),
    ):
        done = coding.compress(data, one)
        assert (done.method, done.why) == (method, why)
        target = io.BytesIO()
        read = coding.decompress_stream(io.BytesIO(done.data), target, lambda _, one=one: one)
        assert target.getvalue() == data and read.blocks == done.blocks == {method: 1}
        assert (read.bytes, read.compressed_bytes, read.tokens) == (len(data), len(done.data), done.tokens)
    assert coding.compress(b"", coder).data == framed((0, b"", b"")) and len(framed((0, b"", b""))) == 11


# --- the model's identity --------------------------------------------------------------------------------------------


def test_identity_is_of_what_computes(tmp_path):
    """Another card is the same model; another weight, tokenizer or scale is not."""
    model = MODELS["byte"]
    file = model._file
    write_model(tmp_path / "a.safetensors", file.config, file.tokenizer, file.weights, {"scores": 1})
    read = read_model(tmp_path / "a.safetensors")
    assert read.identity == file.identity and read.sha256 != file.sha256
    weights = {n: a.copy() for n, a in file.weights.items()}
    weights["head.bias"][3] = np.nextafter(weights["head.bias"][3], 9)
    assert ModelFile(file.config, file.tokenizer, weights, {}, "").identity != file.identity
    other = CharTokenizer("abc")
    assert ModelFile(file.config, other, file.weights, {}, "").identity != file.identity
    scaled = file.config.replace(logit_scale=2.0)
    assert ModelFile(scaled, file.tokenizer, file.weights, {}, "").identity != file.identity


# --- the commands ----------------------------------------------------------------------------------------------------


class Keyboard(io.TextIOWrapper):
    """Standard input, which may be a terminal."""


@pytest.fixture
def run(monkeypatch, capsysbinary, tmp_path):
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, stdin: bytes = b"", terminal: bool = False) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["textlstm", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", Keyboard(io.BytesIO(stdin)))
        for stream in (sys.stdin, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: terminal)
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsysbinary.readouterr()
        assert b"Traceback" not in out + err
        return SimpleNamespace(code=end.value.code or 0, out=out, err=err.decode())

    return call


@pytest.fixture
def small(tmp_path):
    file = MODELS["bpe"]._file
    write_model(tmp_path / "small.safetensors", file.config, file.tokenizer, file.weights, {})
    return tmp_path / "small.safetensors"


@pytest.mark.parametrize("model", ["shakespeare", "my model.safetensors"])
def test_the_command_that_undoes_it_is_told(run, tmp_path, sonnet, model):
    shutil.copy(shipped_models()["shakespeare"], tmp_path / "my model.safetensors")
    (tmp_path / "in").write_bytes(sonnet)
    told = run("compress", model, "in", "my out.tlz").err.splitlines()[-1]
    command, *words = shlex.split(told.removeprefix("back again: "))
    assert command == "textlstm" and ("--model" in words) == (model != "shakespeare")
    assert run(*words).code == 0 and (tmp_path / "FILE").read_bytes() == sonnet
    assert "back again" not in run("compress", model, "in", "-").err + run("compress", model, "in", "b", "-q").err


def test_a_folder_called_as_a_model_that_ships_is_named(run, tmp_path, sonnet):
    (tmp_path / "shakespeare").mkdir()
    shutil.copy(shipped_models()["shakespeare"], tmp_path / "shakespeare" / "model.safetensors")
    (tmp_path / "in").write_bytes(sonnet)
    assert run("compress", "shakespeare", "in", "out").err.endswith(" out FILE --model shakespeare\n")


def test_what_needs_no_model_is_given_back_without_one(run, small, tmp_path):
    (tmp_path / "in").write_bytes(bytes(1000))
    assert run("compress", small, "in", "out").err.endswith("back again: textlstm decompress out FILE\n")


def test_commands_round_trip(run, small, tmp_path, sonnet):
    (tmp_path / "in").write_bytes(sonnet)
    done = run("compress", "shakespeare", "in", "out.tlz", "--lanes", "8", "--json")
    report = json.loads(done.out.splitlines()[-1])
    size = (tmp_path / "out.tlz").stat().st_size
    assert done.code == 0 and report["compressed_bytes"] == size and report["bytes"] == len(sonnet)
    done = run("decompress", "out.tlz", "back")  # the model is found by its identity
    assert done.code == 0 and f"{size:,} bytes -> {len(sonnet):,}" in done.err.splitlines()
    assert not run("decompress", "out.tlz", "back", "--quiet").err
    assert " bytes -> " not in run("decompress", "out.tlz", "back", "--json").err
    assert (tmp_path / "back").read_bytes() == sonnet
    assert run("decompress", "out.tlz", "-").out == sonnet
    piped = run("compress", "shakespeare", "-", "-", "--lanes", "8", stdin=sonnet)
    assert piped.out == (tmp_path / "out.tlz").read_bytes()
    wrong = run("decompress", "out.tlz", "no", "--model", small)
    assert wrong.code == 1 and "another model" in wrong.err and not (tmp_path / "no").exists()


def test_commands_say_what_was_not_used(run, tmp_path):
    (tmp_path / "in").write_bytes(b"a" * 5000)
    done = run("compress", "shakespeare", "in", "out.tlz")
    assert done.code == 0 and "method lzma (the model would make it longer)" in done.err
    done = run("decompress", "out.tlz", "back", "--model", "no-such", "--learn-from", "nor-this")
    assert done.code == 0 and (tmp_path / "back").read_bytes() == b"a" * 5000
    assert "--model no-such is not used" in done.err and "--learn-from nor-this is not used" in done.err
    assert not run("decompress", "out.tlz", "back", "--model", "no-such", "--quiet").err


@pytest.mark.parametrize("command", [["compress", "shakespeare"], ["decompress"]])
def test_somebody_is_asked_before_a_file_is_replaced(run, tmp_path, command):
    (tmp_path / "in").write_bytes(coding.compress(b"xyz", skewed_coder()).data)
    (tmp_path / "old").write_bytes(b"precious")
    asked = run(*command, "in", "old", stdin=b"n\n", terminal=True)
    assert asked.code == 2 and "old exists; replace it?" in asked.err and "stays" in asked.err
    assert (tmp_path / "old").read_bytes() == b"precious"
    done = run(*command, "in", "old", stdin=b"y\n", terminal=True)
    assert done.code == 0 and (tmp_path / "old").read_bytes() != b"precious"
    assert "replace" not in run(*command, "in", "old", "--force", terminal=True).err
    done = run(*command, "in", "old")  # a script is not asked
    assert done.code == 0 and "replace" not in done.err


def test_a_model_in_the_cache_is_found(run, tmp_path):
    model = make_model(ByteTokenizer(), seed=3)
    done = coding.compress(SKEWED, skewed_coder(model.coder.identity))
    (tmp_path / "a.tlz").write_bytes(done.data)
    missing = run("decompress", "a.tlz", "no")
    assert missing.code == 2 and model.coder.identity[:8] in missing.err and "--model" in missing.err
    (tmp_path / "cache" / "models").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "broken.safetensors").write_bytes(b"nothing")
    file = model._file
    write_model(tmp_path / "cache" / "models" / "m.safetensors", file.config, file.tokenizer, file.weights, {})
    found = run("decompress", "a.tlz", "no")
    assert found.code == 1 and "differently" in found.err  # found; the file was not written by its predictions
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", "shakespeare", "absent", "o"], ["compress", "shakespear", "in", "o"], ["compress", "shakespeare"],
        ["compress", "shakespeare", "in", "in"], ["compress", "shakespeare", "in", "no-such/o"],
        ["compress", "shakespeare", "in", "pipe"],
        ["compress", "shakespeare", "in", "."], ["compress", "shakespeare", "in", "-", "--json"],
        ["compress", "shakespeare", "in", "o", "--lanes", "0"], ["compress", "shakespeare", "in", "o", "--lanes", "x"],
        ["decompress", "absent", "o"], ["decompress", "in"],
    ],
)  # fmt: skip
def test_commands_that_cannot_be_meant(run, tmp_path, arguments):
    (tmp_path / "in").write_bytes(b"text")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    else:
        (tmp_path / "pipe").mkdir()
    done = run(*arguments)
    assert done.code == 2 and done.err and not (tmp_path / "o").exists()
    assert not done.out or ("--json" in arguments and json.loads(done.out)["exit_code"] == 2)
    assert (tmp_path / "in").read_bytes() == b"text"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_no_half_of_a_file(tmp_path, number):
    command = [sys.executable, "-m", "textlstm", "compress", "names", "-", "out.tlz", "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()):  # the file under its temporary name
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number and not any(tmp_path.iterdir())
    assert json.loads(out)["exit_code"] == 128 + number


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_terminal_that_ends_twice_lets_the_file_be_removed(run, tmp_path, monkeypatch):
    before, unlink = signal.signal(signal.SIGHUP, signal.SIG_DFL), Path.unlink

    def ended(*_):
        os.kill(os.getpid(), signal.SIGHUP)

    def ended_again(path, **options):
        ended()
        unlink(path, **options)

    monkeypatch.setattr(coding, "compress_stream", ended)
    monkeypatch.setattr(Path, "unlink", ended_again)
    (tmp_path / "in").write_bytes(b"text")
    try:
        assert run("compress", "names", "in", "out").code == 129
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform == "win32", reason="/dev")
def test_what_is_open_already_is_no_out(tmp_path):
    """As root, renaming would put a file in the place of /dev/stdout itself, which is a link to where output goes."""
    with (tmp_path / "redirected").open("wb") as file:
        for name in (f"/dev/fd/{file.fileno()}", "/dev/stdout"):
            with pytest.raises(click.BadParameter, match="no file that could be replaced"):
                check_out("-", name, as_json=False)


def test_what_cannot_be_written_is_called_as_it_was_asked_for(run, tmp_path):
    (tmp_path / "in").write_text("Thomas\n")
    for name in ("--csv", "--html"):
        done = run("score", "names", "in", name, ".")
        assert done.code == 2 and f"Invalid value for {name}: . is a folder; name a file" in done.err
        done = run("score", "names", "in", name, "no/out")
        assert done.code == 2 and f"Invalid value for {name}: there is no folder no" in done.err


@pytest.mark.parametrize("command", [["score", "--csv", "--html"], ["inspect", "--html"]])
def test_what_was_written_is_told(run, tmp_path, command):
    (tmp_path / "in").write_text("Thomas Miller\nAnna Smith\n" * 12)
    outs = [word for option in command[1:] for word in (option, f"out{option}")]
    done = run(command[0], "names", "in", *outs)
    sizes = [f"{name}: {(tmp_path / name).stat().st_size:,} bytes" for name in outs[1::2]]
    assert done.code == 0 and done.err.splitlines()[-len(sizes) :] == sizes
    for wish in ("--quiet", "--json"):
        assert not set(sizes) & set(run(command[0], "names", "in", *outs, wish).err.splitlines())


@pytest.mark.parametrize("command", [["score", "--csv", "o", "--html"], ["inspect", "--html", "o", "--png"]])
def test_two_results_do_not_go_into_one_file(run, tmp_path, command):
    (tmp_path / "in").write_text("Thomas\n" * 100)
    done = run(command[0], "names", "in", *command[1:], "./o")
    assert done.code == 2 and f"for {command[3]}: o is the same file as {command[1]}" in done.err
    assert not (tmp_path / "o").exists()


def test_damage_on_the_command_line(run, tmp_path):
    (tmp_path / "in").write_bytes(b"no such format")
    done = run("decompress", "in", "out")
    assert done.code == 1 and "not a file of textlstm" in done.err and not (tmp_path / "out").exists()
    assert run("compress", "shakespeare", "-", "empty.tlz").code == 0
    assert (tmp_path / "empty.tlz").stat().st_size == 11
    assert run("decompress", "empty.tlz", "-").out == b""
