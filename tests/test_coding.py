"""Compression: every byte comes back, the size is the score, and nothing wrong is passed on."""

from __future__ import annotations

import decimal
import io
import json
import math
import random
import sys
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given
from hypothesis import strategies as st

from textlstm import cli, coding
from textlstm.coding import Coder, cumulative_weights
from textlstm.config import ModelConfig
from textlstm.errors import CodingError, DivergedError, UsageError
from textlstm.model import Model
from textlstm.model_file import ModelFile, read_model, write_model
from textlstm.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

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
    assert len(done.data) <= coding.HEAD_BYTES + len(data)


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
    writer = coding._Writer(ids_BT)
    assert coding._code(coder.predictor(lanes), len(ids), lanes, writer, coding.no_progress)
    reader = coding._Reader(writer.finish(), lanes)
    assert coding._code(coder.predictor(lanes), len(ids), lanes, reader, coding.no_progress)
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
    writer = coding._Writer(ids_BT)
    coding._code(model.coder.predictor(rows), len(ids), rows, writer, coding.no_progress)
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
    table = coding._weights()
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
    writer = coding._Writer(np.array([[id for id, _ in symbols]]))
    for t, table in enumerate(tables):
        writer.id(table, int(table[-1]), 0, t)
    reader = coding._Reader(writer.finish(), 1)
    for t, table in enumerate(tables):
        reader.id(table, int(table[-1]), 0, t)
    assert reader.ids[0] == [id for id, _ in symbols]


def test_carry_runs_through_a_chain_of_full_bytes():
    """The last symbol of certain tables pushes the low end to the brink, the next one over it."""
    table = np.array([1, (1 << 40) - 1, 1 << 40])
    for ids in ([2] * 60 + [0], [2] * 60 + [1] * 3, [0] * 30 + [2] * 30, [1, 2, 2, 2, 2, 2, 2, 0, 2, 2]):
        writer = coding._Writer(np.array([ids]))
        for t in range(len(ids)):
            writer.id(table, 1 << 40, 0, t)
        reader = coding._Reader(writer.finish(), 1)
        assert [reader.id(table, 1 << 40, 0, t) for t in range(len(ids))] == ids


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


@given(st.binary(max_size=80))
def test_foreign_bytes_are_an_error(data):
    for head in (b"", b"tlz", b"tlz\x10", b"tlz\x11", b"tlz\x12"):
        with pytest.raises(CodingError):
            coding.decompress(head + b"\xff" + data, lambda _: skewed_coder())


@given(st.sampled_from([0, 1, 2]), st.binary(max_size=60))
def test_crafted_files_with_a_right_checksum_are_an_error(method, coded):
    """Nobody but an attacker writes one; it must not hang, grow or raise anything else."""
    crafted = coding._framed(method, b"not this", coded)
    with pytest.raises(CodingError):
        coding.decompress(crafted, lambda identity: skewed_coder(identity.ljust(64, "0")))


def test_a_claim_of_endless_text_ends():
    head = bytes.fromhex("abababab") + coding._leb128(1 << 60) + b"\1"
    with pytest.raises(CodingError):
        coding.decompress(coding._framed(coding.MODEL, b"", head + b"short"), lambda _: skewed_coder())


@pytest.mark.parametrize(("tokens", "lanes"), [(0, 0), (0, 1), (1, 0), (3, 2), (3, 4), (9, 1 << 40)])
def test_impossible_numbers_in_the_head(tokens, lanes):
    """Three ids in two lanes are possible: two and one. Four lanes for three are not."""
    head = bytes.fromhex("abababab") + coding._leb128(tokens) + coding._leb128(lanes)
    with pytest.raises(CodingError, match=r"computes|damaged"):
        coding.decompress(coding._framed(coding.MODEL, b"?", head + b"short"), lambda _: skewed_coder())


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
    monkeypatch.setattr(coding, "_CHECK_EVERY", 256)  # found at the next check, not at the end
    done = coding.compress(SKEWED, skewed_coder())
    assert coding.decompress(done.data, lambda _: skewed_coder()) == SKEWED
    with pytest.raises(CodingError, match=r"id (768|1,024) or before"):
        coding.decompress(done.data, lambda _: drifting)


def test_a_newer_format_is_named():
    done = bytearray(coding.compress(SKEWED, skewed_coder()).data)
    done[3] = 0x32
    with pytest.raises(CodingError, match=r"3\.2.*upgrade"):
        coding.decompress(bytes(done), lambda _: skewed_coder())


def test_progress_is_told_on_the_way():
    told = []
    done = coding.compress(SKEWED, skewed_coder(), progress=lambda *far: told.append(far))
    assert len(told) == len(SKEWED) // 256 + 1 and told[0] == (256, len(SKEWED)) and told[-1] == (len(SKEWED),) * 2
    before, told[:] = list(told), []
    coding.decompress(done.data, lambda _: skewed_coder(), lambda *far: told.append(far))
    assert told == before


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
        assert (done.method, coding.method_of(done.data), done.why) == (method, method, why)
    assert coding.compress(b"", coder).data == coding._framed(0, b"", b"")


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


def test_commands_round_trip(run, small, tmp_path, sonnet):
    (tmp_path / "in").write_bytes(sonnet)
    done = run("compress", "shakespeare", "in", "out.tlz", "--lanes", "8", "--json")
    report = json.loads(done.out.splitlines()[-1])
    size = (tmp_path / "out.tlz").stat().st_size
    assert done.code == 0 and report["compressed_bytes"] == size and report["bytes"] == len(sonnet)
    assert run("decompress", "out.tlz", "back").code == 0  # the model is found by its identity
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
        ["compress", "shakespeare", "in", "."], ["compress", "shakespeare", "in", "-", "--json"],
        ["compress", "shakespeare", "in", "o", "--lanes", "0"], ["compress", "shakespeare", "in", "o", "--lanes", "x"],
        ["decompress", "absent", "o"], ["decompress", "in"],
    ],
)  # fmt: skip
def test_commands_that_cannot_be_meant(run, tmp_path, arguments):
    (tmp_path / "in").write_bytes(b"text")
    done = run(*arguments)
    assert done.code == 2 and done.err and not (tmp_path / "o").exists()
    assert not done.out or ("--json" in arguments and json.loads(done.out)["exit_code"] == 2)
    assert (tmp_path / "in").read_bytes() == b"text"


def test_damage_on_the_command_line(run, tmp_path):
    (tmp_path / "in").write_bytes(b"no such format")
    done = run("decompress", "in", "out")
    assert done.code == 1 and "not a file of textlstm" in done.err and not (tmp_path / "out").exists()
    assert zlib.crc32(b"") == 0  # an empty text has a sum, and its file is ten bytes
    assert run("compress", "shakespeare", "-", "empty.tlz").code == 0
    assert (tmp_path / "empty.tlz").stat().st_size == coding.HEAD_BYTES
    assert run("decompress", "empty.tlz", "-").out == b""
