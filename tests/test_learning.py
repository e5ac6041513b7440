"""Dynamic evaluation: the step against its equation, nothing seen before it is predicted, nothing changed for good."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import make_model
from test_coding import forced
from test_network import log_softmax, make_config, numpy_network, random_weights

from textlstm import coding, metrics
from textlstm.coding import compress, decompress
from textlstm.config import LearnConfig, ModelConfig
from textlstm.engine import load_engine
from textlstm.errors import CodingError, ConfigError, MissingExtraError, ModelFileError, UsageError
from textlstm.interactive import Conversation
from textlstm.learning import LearningEngine, code, decode, measure, read_settings
from textlstm.model import Model
from textlstm.model_file import ModelFile, read_model, statistics_shapes, write_model
from textlstm.tokenizer import ByteTokenizer, CharTokenizer

TEXT = make_text(1_800, seed=6)
LETTERS = CharTokenizer("abcdef", byte_fallback=False)
TINY = dict(vocab_size=7, embed_size=4, hidden_size=4, num_layers=1)
SEGMENT = 5
FAST = LearnConfig(learn_rate=0.02, learn_decay=0.3, learn_segment=SEGMENT)


def random_statistics(config: ModelConfig, seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.integers(150, 220, shape).astype(np.uint8) for n, shape in statistics_shapes(config).items()}


def make_file(statistics: bool = True, **changes: object) -> ModelFile:
    config = make_config(**{**TINY, **changes})
    return ModelFile(config, LETTERS, random_weights(config), {}, "", random_statistics(config) if statistics else {})


def text_model(statistics: bool = True, seed: int = 0) -> Model:
    tokenizer = ByteTokenizer()
    config = ModelConfig(tokenizer.vocab_size + 1, 8, 8, 1)
    rng = np.random.default_rng(seed)
    weights = {n: rng.normal(0, 0.2, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    file = ModelFile(config, tokenizer, weights, {}, "", random_statistics(config) if statistics else {})
    return Model(file)


MODEL, BARE = text_model(), text_model(statistics=False)
LEARN = LearnConfig(learn_rate=3e-3)


# --- the step --------------------------------------------------------------------------------------------------------


def numpy_loss(config, weights, ids, targets, h, c) -> float:
    logits, _, _ = numpy_network(config, weights, np.array([ids]), h, c)
    return -float(log_softmax(logits[0])[np.arange(len(ids)), targets].mean())


def numpy_gradients(config, weights, ids, targets, h=None, c=None) -> dict[str, np.ndarray]:
    """By central differences, weight by weight, in float64."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    gradients = {name: np.zeros_like(array) for name, array in weights.items()}
    for name, array in weights.items():
        for place in np.ndindex(array.shape):
            kept, ends = array[place], []
            for side in (1e-5, -1e-5):
                array[place] = kept + side
                ends.append(numpy_loss(config, weights, ids, targets, h, c))
            array[place] = kept
            gradients[name][place] = (ends[0] - ends[1]) / 2e-5
    return gradients


@pytest.mark.parametrize("pieces", [[1] * 11, [11], [3, 5, 3]])
@pytest.mark.parametrize("statistics", [True, False])
def test_two_steps_follow_the_equation(statistics, pieces):
    file = make_file(statistics)
    ids = np.array([6, 1, 4, 2, 2, 0, 5, 3, 1, 1, 4])
    trained = {name: array.astype(np.float64) for name, array in file.weights.items()}
    weights, h, c, squares, logits = dict(trained), None, None, dict.fromkeys(trained, 0.0), []
    for segment in range(2):
        here = slice(segment * SEGMENT, (segment + 1) * SEGMENT)
        targets = ids[here.start + 1 : here.stop + 1]
        found, h_after, c_after = numpy_network(file.config, weights, ids[None, here], h, c)
        logits.append(found[0])
        g = numpy_gradients(file.config, weights, ids[here], targets, h, c)
        if statistics:
            rms = {name: array.astype(np.float64) for name, array in decode(file.config, file.statistics).items()}
        else:
            squares = {name: squares[name] + (g[name] ** 2).mean() for name in g}
            rms = {name: np.full(g[name].shape, math.sqrt(squares[name] / (segment + 1))) for name in g}
        m = np.concatenate([array.ravel() for array in rms.values()]).mean()
        for name, w in weights.items():
            pull = np.minimum(1, FAST.learn_decay * rms[name] / m)
            weights[name] = w + pull * (trained[name] - w) - FAST.learn_rate * g[name] / (rms[name] + m)
        h, c = h_after, c_after
    logits.append(numpy_network(file.config, weights, ids[None, 10:], h, c)[0][0])

    engine = LearningEngine(file, FAST)
    state, given, place = engine.zero_state(1), [], 0
    for size in pieces:
        part = ids[place : place + size]
        logits_BTV, state = engine.run(part[None], state, np.arange(size))
        given.append(logits_BTV[0])
        place += size
    assert np.abs(np.concatenate(given) - np.concatenate(logits)).max() < 2e-4
    for name, array in engine.weights().items():
        assert np.abs(array - weights[name]).max() < 2e-5, name
        assert np.abs(array - trained[name]).max() > 1e-3, name


@settings(max_examples=15)
@given(st.integers(1, 13), st.integers(1, 6), st.integers(0, 4))
def test_what_comes_later_changes_no_prediction(place, segment, other):
    file, config = make_file(), LearnConfig(learn_rate=0.05, learn_segment=segment)
    ids = np.random.default_rng(place).integers(0, 6, 14)
    changed = ids.copy()
    changed[place:] = (changed[place:] + 1 + other) % 6
    for step in (1, 14):
        rows = []
        for stream in (ids, changed):
            engine = LearningEngine(file, config)
            state, found = engine.zero_state(1), []
            for start in range(0, 14, step):
                part = stream[None, start : start + step]
                logits_BTV, state = engine.run(part, state, np.arange(part.shape[1]))
                found.append(logits_BTV[0])
            rows.append(np.concatenate(found))
        # The logits after token t predict token t + 1: those after place - 1 have seen nothing that was changed.
        assert np.array_equal(rows[0][:place], rows[1][:place])


def test_another_state_begins_another_text_and_what_was_learnt_stays():
    file = make_file()
    ids = np.random.default_rng(0).integers(0, 6, (1, 13))
    engine, last = LearningEngine(file, FAST), np.array([12])
    engine.run(ids, engine.zero_state(1), last)
    twin = LearningEngine(file, FAST)
    twin.run(ids, twin.zero_state(1), last)
    twin.finish()  # the beginning of a text has the end of the one before learnt
    again = engine.run(ids, engine.zero_state(1), last)[0]
    learnt = ModelFile(file.config, LETTERS, twin.weights(), {}, "")
    fresh = LearningEngine(learnt, dataclasses.replace(FAST, learn_rate=0.0, learn_decay=0.0, learn_segment=5))
    first = fresh.run(ids[:, :5], fresh.zero_state(1), np.arange(5))[0]
    engine = LearningEngine(file, FAST)
    engine.run(ids, engine.zero_state(1), last)
    assert np.allclose(engine.run(ids[:, :5], engine.zero_state(1), np.arange(5))[0], first, atol=1e-6)
    assert not np.allclose(again[0, 0], LearningEngine(file, FAST).run(ids, engine.zero_state(1), last)[0][0, 0])


def test_one_lane_only():
    engine = LearningEngine(make_file(), FAST)
    with pytest.raises(UsageError, match="one lane"):
        engine.run(np.zeros((2, 1), dtype=np.int64), engine.zero_state(2), np.array([0]))


class Notes:
    """A memory that writes down what it is asked and told, and turns the predictions upside down."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def predict(self, logprobs_V, hidden_H):
        assert logprobs_V.dtype == np.float64 and abs(np.exp(logprobs_V).sum() - 1) < 1e-12
        self.heard.append("predict")
        self.last = logprobs_V, hidden_H
        return logprobs_V[::-1]

    def update(self, id):
        self.heard.append(id)


@pytest.mark.parametrize("step", [1, 12])
def test_predictions_pass_through_a_memory_token_by_token(step):
    file, notes = make_file(), Notes()
    ids = np.random.default_rng(0).integers(0, 6, (1, 12))
    engine, plain = LearningEngine(file, FAST, notes), LearningEngine(file, FAST)
    state, other, mixed, own = engine.zero_state(1), plain.zero_state(1), [], []
    for start in range(0, 12, step):
        part, places = ids[:, start : start + step], np.arange(step)
        logits_BTV, state = engine.run(part, state, places)
        mixed.append(logits_BTV[0])
        logits_BTV, other = plain.run(part, other, places)
        own.append(logits_BTV[0])
    told = [x for id in ids[0, 1:].tolist() for x in (id, "predict")]
    assert notes.heard == ["predict", *told]
    assert np.allclose(np.concatenate(mixed), log_softmax(np.concatenate(own))[:, ::-1], atol=1e-5)
    assert np.allclose(notes.last[1], state.h_LBH[-1, 0], atol=1e-6)


# --- statistics ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-5, 2.0), min_size=2, max_size=9), st.lists(st.floats(1e-3, 3.0), min_size=2, max_size=9))
def test_coded_statistics_are_near(rows, columns):
    """Each byte is within half a step, 2^(1/16); a matrix is the product of a row and a column over a mean root."""
    config = make_config(vocab_size=len(rows), embed_size=len(columns), hidden_size=len(columns), num_layers=1)
    squares = {}
    rms = {}
    for name, shape in config.tensor_shapes().items():
        sides = [np.resize(np.array(side), size) for side, size in zip((rows, columns), shape, strict=False)]
        rms[name] = sides[0] if len(shape) == 1 else np.outer(*sides)
        squares[name] = tuple(
            (rms[name] ** 2).mean(axis=tuple(a for a in range(len(shape)) if a != axis)) for axis in range(len(shape))
        )
    decoded = decode(config, code(squares))
    for name, array in decoded.items():
        bound = 2 ** ((1 if array.ndim == 1 else 3) / 16) * 1.0001
        assert array.shape == config.tensor_shapes()[name]
        assert (array / rms[name]).max() <= bound and (rms[name] / array).max() <= bound, name


def test_gradients_of_any_size_can_be_coded():
    config = make_config(**TINY)
    for value in (0.0, 1e-30, 1e30):
        squares = {n: tuple(np.full(s, value) for s in shape) for n, shape in config.tensor_shapes().items()}
        for array in decode(config, code(squares)).values():
            assert np.isfinite(array).all() and (array > 0).all()


def test_measured_statistics_are_those_of_the_gradients():
    file, ids = make_file(), np.array([1, 3, 0, 0, 2, 5, 5, 4, 1, 2, 0], dtype=np.int32)
    first = numpy_gradients(file.config, file.weights, ids[:5], ids[1:6])
    _, h, c = numpy_network(file.config, file.weights, ids[None, :5])
    second = numpy_gradients(file.config, file.weights, ids[5:10], ids[6:11], h, c)
    told: list[int] = []
    coded = measure(file, ids, segment=5, progress=lambda done, total: told.append(done))
    assert told == [1, 2] and {n: a.shape for n, a in coded.items()} == statistics_shapes(file.config)
    squares = {}
    for name, shape in file.config.tensor_shapes().items():
        both = (first[name] ** 2 + second[name] ** 2) / 2
        axes = range(len(shape))
        squares[name] = tuple(both.mean(axis=tuple(a for a in axes if a != axis)) for axis in axes)
    for name, array in code(squares).items():
        assert np.abs(array.astype(int) - coded[name]).max() <= 1, name


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_statistics_travel_in_the_file(tmp_path, dtype):
    MODEL.save(tmp_path / "a.safetensors", dtype)
    BARE.save(tmp_path / "b.safetensors", dtype)
    with_, without = read_model(tmp_path / "a.safetensors"), read_model(tmp_path / "b.safetensors")
    original = random_statistics(MODEL.config)
    assert with_.statistics.keys() == original.keys() and without.statistics == {}
    assert all(np.array_equal(with_.statistics[name], original[name]) for name in original)
    assert with_.identity == without.identity and with_.sha256 != without.sha256
    size = (tmp_path / "a.safetensors").stat().st_size - (tmp_path / "b.safetensors").stat().st_size
    assert size < sum(array.size for array in original.values()) + 120 * len(original)


@pytest.mark.parametrize("harm", ["shape", "dtype", "missing"])
def test_statistics_that_do_not_fit_are_refused(tmp_path, harm):
    config, statistics = MODEL.config, random_statistics(MODEL.config)
    name = "embedding.weight.rms_rows"
    if harm == "missing":
        del statistics[name]
    else:
        statistics[name] = statistics[name][:-1] if harm == "shape" else statistics[name].astype(np.int16)
    weights = {n: np.zeros(s, np.float32) for n, s in config.tensor_shapes().items()}
    write_model(tmp_path / "m.safetensors", config, ByteTokenizer(), weights, {}, statistics=statistics)
    with pytest.raises(ModelFileError, match="statistics"):
        read_model(tmp_path / "m.safetensors")


# --- a model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, BARE])
def test_score_learns_and_the_model_stays_what_it_is(model):
    before = {name: array.copy() for name, array in model._file.weights.items()}
    static = model.score(TEXT)
    learnt = model.score(TEXT, learn=LEARN)
    assert learnt.protocol == "stream+learn" and static.protocol == "stream"
    assert learnt.tokens == static.tokens and learnt.nats < 0.97 * static.nats
    assert model.score(TEXT, learn=LEARN) == learnt
    assert all(np.array_equal(before[name], array) for name, array in model._file.weights.items())
    assert model.score(TEXT) == static
    assert learnt.nats < model.score(TEXT, learn=LEARN.replace(learn_memories=False)).nats < static.nats
    idle = model.score(TEXT, learn=LearnConfig(learn_rate=0.0, learn_memories=False))
    assert abs(idle.nats / static.nats - 1) < 1e-6


def test_score_sums_what_the_engine_predicts():
    """Token by token, by hand, on the other way through the engine."""
    engine = MODEL.learner(LEARN)
    logits_BV, state = engine.begin(1)
    nats = 0.0
    for id in MODEL.tokenizer.encode(TEXT[:400]):
        nats -= log_softmax(logits_BV[0])[id]
        logits_BV, state = engine.step(np.array([id]), state)
    assert abs(MODEL.score(TEXT[:400], learn=LEARN).nats / nats - 1) < 1e-5


def test_texts_are_learnt_one_after_the_other():
    twice = MODEL.score([TEXT, TEXT], learn=LEARN)
    assert twice.nats < 1.99 * MODEL.score(TEXT, learn=LEARN).nats
    after = MODEL.score(TEXT[900:], context=TEXT[:900], learn=LEARN).nats
    assert after < MODEL.score(TEXT[900:], learn=LEARN).nats


@pytest.mark.parametrize("protocol", ["stream-4", "cold-64"])
def test_learning_has_one_protocol(protocol):
    with pytest.raises(UsageError, match="its protocol is stream"):
        MODEL.score(TEXT, protocol, learn=True)


def test_a_model_that_learnt_is_a_model(tmp_path):
    learnt = MODEL.learn(TEXT, LEARN)
    assert learnt.score(TEXT).nats < 0.9 * MODEL.score(TEXT).nats
    assert learnt.identity != MODEL.identity and learnt.card["learnt"][0]["chars"] == len(TEXT)
    learnt.save(tmp_path / "learnt.safetensors")
    again = Model.load(tmp_path / "learnt.safetensors")
    assert again.has_statistics and again.identity == learnt.identity
    assert again.score(TEXT[:500], learn=LEARN) == learnt.score(TEXT[:500], learn=LEARN)
    assert len(again.learn(TEXT[:100]).card["learnt"]) == 2
    assert MODEL.learn("").identity == MODEL.identity


def test_statistics_from_a_text():
    measured = BARE.primed(TEXT)
    assert measured.has_statistics and not BARE.has_statistics
    assert measured.learner().source == "model" and BARE.learner().source == "online"
    with pytest.raises(UsageError, match="two tokens"):
        BARE.primed("")


@pytest.mark.parametrize("read", [MODEL.learn, MODEL.primed, MODEL.inspect, lambda data: MODEL.inspect(TEXT, data)])
def test_bytes_are_no_text(read):
    with pytest.raises(UsageError, match="decode"):
        read(TEXT.encode())


def test_memories_read_the_text_first():
    text = TEXT[-300:]
    still = LearnConfig(learn_rate=0.0)
    primed = MODEL.primed(TEXT)
    assert primed.score(text, learn=still).nats < MODEL.score(text, learn=still).nats
    packed = primed.compress(text.encode(), learn=True)
    assert primed.decompress(packed.data) == text.encode()
    for other in (MODEL, MODEL.primed(TEXT + "x")):  # what was not primed the same way is told apart
        with pytest.raises(CodingError):
            other.decompress(packed.data)


@pytest.mark.parametrize(
    "setting", [{"learn_rate": -1.0}, {"learn_rate": math.nan}, {"learn_decay": 2.0}, {"learn_segment": 0}]
)
def test_impossible_settings(setting):
    with pytest.raises(ConfigError, match=next(iter(setting)).replace("_", "-")):
        LearnConfig(**setting)


def test_report_reads_closely_what_is_scored():
    report = MODEL.score_report([("a", [TEXT[:600], TEXT[600:900]])], learn=LEARN)
    score = MODEL.score([TEXT[:600], TEXT[600:900]], learn=LEARN)
    assert report.total.protocol == "stream+learn" == metrics.LEARNING
    assert abs(report.total.nats / score.nats - 1) < 1e-6
    static = report.to_dict()["protocols"]["stream"]["nats"]
    assert abs(static / MODEL.score([TEXT[:600], TEXT[600:900]]).nats - 1) < 1e-6


# --- compression -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_lzma(monkeypatch):
    """LZMA gains nothing, so that a model of random weights does better."""
    monkeypatch.setattr(coding.lzma, "compress", lambda data, *_, **__: data)


@pytest.mark.parametrize("config", [LEARN, LearnConfig(learn_rate=1e-2, learn_segment=7)])
@pytest.mark.parametrize("model", [MODEL, BARE])
def test_what_was_compressed_while_learning_comes_back(model, config, no_lzma):
    data = TEXT.encode()
    done = compress(data, model.learning_coder(config))
    assert done.method == "model that learns"
    assert model.decompress(done.data) == data
    head = 4 + 1 + 6 + 4 + 1 + len(model.learner(config).settings) + 1 + 2  # a text below 2^14 ids
    bits = model.score(TEXT, learn=config).nats / math.log(2)
    assert abs((len(done.data) - head) * 8 - bits) < 1e-3 * bits + 8  # the last byte may be nearly empty


@settings(max_examples=20)
@given(st.binary(max_size=100))
def test_any_bytes_come_back(data):
    assert forced(data, MODEL.learning_coder(LearnConfig(learn_rate=0.5, learn_segment=3)), 1) == data


def test_other_statistics_are_named(no_lzma):
    done = compress(TEXT.encode(), MODEL.learning_coder(LEARN))
    with pytest.raises(CodingError, match="--learn-from"):
        BARE.decompress(done.data)
    other = dataclasses.replace(MODEL.coder, that_learnt=None)
    with pytest.raises(CodingError, match="learnt"):
        decompress(done.data, lambda _: other)


def test_without_torch_a_file_that_learnt_says_what_is_missing(no_lzma, monkeypatch):
    done = compress(TEXT.encode(), MODEL.learning_coder(LEARN))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="torch"):
        MODEL.decompress(done.data)
    with pytest.raises(MissingExtraError, match=r"torch.*textlstm\[train\]"):
        load_engine(MODEL._file, "torch")


def test_settings_travel_and_only_where_they_are_unusual():
    usual, other = MODEL.learner().settings, MODEL.learner(LearnConfig(learn_segment=7)).settings
    assert len(usual) == 4 and read_settings(usual) == LearnConfig()
    assert read_settings(other) == LearnConfig(learn_segment=7) and other[:4] != usual[:4]
    for tail in (b"[]", b"{", b'{"learn_rate": "x"}', b'{"learn_rate": 7}', b'{"code": 1}', b"\xff"):
        with pytest.raises(CodingError, match="settings"):
            read_settings(usual + tail)


def test_lanes_are_refused():
    with pytest.raises(UsageError, match="one lane"):
        MODEL.compress(TEXT.encode(), lanes=2, learn=True)


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, own_cache):
    path = make_model(tmp_path / "tiny.safetensors")
    (tmp_path / "a.txt").write_text(TEXT)
    return str(path), str(tmp_path / "a.txt")


def test_score_command(files, run):
    done = run("score", *files, "--learn", "--learn-rate", "3e-3", "--json")
    assert done.code == 0 and "what is read" in done.err
    assert done.json["protocol"] == "stream+learn" and done.json["learn"]["learn_rate"] == 3e-3
    assert done.json["nats"] == Model.load(files[0]).score(TEXT, learn=LearnConfig(learn_rate=3e-3)).nats
    named = run("score", *files, "--learn", "--learn-from", files[1], "--json", "--quiet")
    assert named.code == 0 and named.json["learn"]["statistics"] == files[1] and not named.err
    assert named.json["nats"] != done.json["nats"]
    ids = Model.load(files[0]).tokenizer.encode(TEXT).astype("<i8")  # what memories began with is on record
    assert named.json["learn"]["memories_origin"] == hashlib.sha256(ids.tobytes()).hexdigest()
    assert done.json["learn"]["memories_origin"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--learn-rate", "1e-3"], "--learn-rate"), (["--learn-from", "a.txt"], "--learn-from"),
        (["--learn", "--lanes", "2"], "--lanes"), (["--learn", "--protocol", "cold-8"], "--protocol"),
        (["--learn", "--learn-segment", "0"], "learn-segment"),
    ],
)  # fmt: skip
def test_score_command_refuses(files, run, options, words):
    done = run("score", *files, *options)
    assert done.code == 2 and words in done.err


def test_compress_commands(files, run, tmp_path, no_lzma):
    model, text = files
    packed, back = str(tmp_path / "a.tlz"), str(tmp_path / "b.txt")
    options = ("--learn", "--learn-rate", "1e-2", "--learn-from", text)
    assert run("compress", model, text, packed, *options, "--json").json["method"] == "model that learns"
    told = shlex.split(run("compress", model, text, packed, *options).err.splitlines()[-1])
    assert told[-7:] == ["decompress", packed, "FILE", "--model", str(model), "--learn-from", str(text)]
    refused = run("decompress", packed, back, "--model", model)
    assert refused.code == 1 and "--learn-from" in refused.err
    assert run("decompress", packed, back, "--model", model, "--learn-from", text).code == 0
    assert (tmp_path / "b.txt").read_text() == TEXT
    assert run("compress", model, text, packed, "--learn", "--lanes", "2").code == 2


def test_generate_learns_only_from_a_conversation(files, run):
    done = run("generate", files[0], "--learn")
    assert done.code == 2 and "--interactive" in done.err
    done = run("generate", files[0], "--learn-rate", "1e-3")
    assert done.code == 2 and "goes with --learn" in done.err


def test_each_command_says_what_it_learns_from(run):
    told = {name: " ".join(run(name, "--help").out.split()) for name in ("score", "compress", "generate")}
    assert "without the text that is scored: memories read it first" in told["score"]
    assert "without the data that is compressed: memories read it first" in told["compress"]
    assert "With --interactive: learn from what you type" in told["generate"]
    assert "memories read it first" in told["generate"] and "--no-learn-memories" in told["generate"]
    assert "--sample-chars" not in told["score"]  # a text that is scored is read whole


def test_a_conversation_learns(files, tmp_path):
    model = Model.load(files[0])
    talk = Conversation(model, model.session(3), {"max_chars": 5}, learn=LearnConfig(learn_rate=1e-2))
    list(talk.hear(TEXT[:300].replace("\n", "\\n")))
    learnt = talk.model
    assert learnt.identity != model.identity
    assert learnt.score(TEXT[:300]).nats < model.score(TEXT[:300]).nats
    assert "".join(talk.hear("/learn off")) == "not learning"
    list(talk.hear(TEXT[300:400]))
    assert talk.model is learnt
    list(talk.hear("/undo"))
    list(talk.hear("/undo"))
    assert talk.model is model
    list(talk.hear("/redo"))
    assert "".join(talk.hear("/keep kept")) == "written: kept.safetensors"
    assert Model.load("kept.safetensors").identity == learnt.identity
    for line, words in (("/keep kept", "exists"), ("/keep", "name"), ("/learn maybe", "on or off")):
        with pytest.raises(UsageError, match=words):
            list(talk.hear(line))
    assert "".join(talk.hear("/learn on")) == "learning from what you type" == "".join(talk.hear("/learn"))


def distribution(session) -> np.ndarray:
    """What a session draws its next token from, log-probabilities, shape (V,)."""
    return log_softmax(session._logits_BV.astype(np.float64))[0]


@pytest.mark.parametrize("config", [LEARN, LEARN.replace(learn_memories=False)])
@pytest.mark.parametrize("primed", [False, True])
def test_a_session_writes_by_the_distribution_that_scores(primed, config):
    model = MODEL.primed(TEXT[1_000:1_400]) if primed else MODEL
    session, text = model.learning(config).session(1), TEXT[:130]
    learner = model.learner(config)
    logits_BV, state = learner.begin(1)
    assert np.allclose(session._logits_BV, logits_BV, atol=1e-5)
    logits_BV, _ = learner.prefill(model.tokenizer.encode(text).astype(np.int64)[None], state)
    session.learn(text)
    assert np.array_equal(session._logits_BV, logits_BV)
    nats = [model.score(next, context=text, learn=config).nats for next in "aet "]
    assert np.allclose(nats, [-distribution(session)[ord(next)] for next in "aet "], atol=1e-4)
    plain = model.session(1)
    plain.learn(text, config)  # one that is told to learn only here
    assert np.array_equal(plain._logits_BV, session._logits_BV)


def test_memories_stand_after_what_was_written_and_count_only_what_was_typed():
    """With weights that do not move, a learner reads the same text; its counts must not have grown by the answer."""
    config = LearnConfig(learn_rate=0.0, learn_decay=0.0)
    session = MODEL.learning(config).session(1)
    typed, more = TEXT[:200], TEXT[200:260]
    session.learn(typed)
    before = session.state.memory
    written = session.generate(max_tokens=30)
    ids = MODEL.tokenizer.encode(written).tolist()
    network, memory = load_engine(MODEL._file, "torch"), before
    logits_BV, state = network.begin(1)
    logits_BV, state = network.prefill(MODEL.tokenizer.encode(typed).astype(np.int64)[None], state)
    for id in ids:
        logits_BV, state = network.step(np.array([id]), state)
        memory = memory.past(id)
        expected = memory.predict(logits_BV[0], state.h_LBH[-1, 0])
    session.feed("")  # what was drawn last is read now
    assert np.allclose(distribution(session), expected, atol=1e-4)
    assert not np.allclose(expected, log_softmax(logits_BV.astype(np.float64))[0], atol=1e-3)  # memories do speak
    session.learn(more)
    memory = memory.copy()
    for id in MODEL.tokenizer.encode(more).tolist():
        memory.update(id)
        logits_BV, state = network.step(np.array([id]), state)
        expected = memory.predict(logits_BV[0], state.h_LBH[-1, 0])
    assert np.allclose(distribution(session), expected, atol=1e-4)


@pytest.mark.parametrize("memories", [False, True])
def test_a_conversation_goes_back_with_all_it_has_learnt(memories):
    config = LearnConfig(learn_rate=1e-2, learn_memories=memories)
    talk = Conversation(MODEL, MODEL.learning(config).session(3), {"max_chars": 40}, learn=config)
    list(talk.hear(TEXT[:200]))
    list(talk.hear("/branch here"))
    begun = distribution(talk.session)
    first = "".join(talk.hear(TEXT[200:300]))
    for command in ("/undo", "/load here"):
        list(talk.hear(command))
        assert np.array_equal(distribution(talk.session), begun)
        assert "".join(talk.hear(TEXT[200:300])) == first
    learnt = distribution(talk.session)
    assert "".join(talk.hear("/again")) != first
    list(talk.hear("/undo"))
    assert "".join(talk.hear(TEXT[200:300])) == first and np.array_equal(distribution(talk.session), learnt)


def test_a_saved_conversation_tells_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def hear(talk: Conversation, line: str) -> str:
        return "".join(talk.hear(line))

    config = LearnConfig(learn_rate=1e-2)
    talk = Conversation(MODEL, MODEL.learning(config).session(3), {"max_chars": 10}, learn=config)
    assert hear(talk, "/save early") == f"saved to {Path('sessions', 'early.safetensors')}"
    hear(talk, "Once upon")
    assert "without what was learnt: /keep FILE" in hear(talk, "/save late")
    hear(talk, "/keep learnt")
    hear(talk, "and more")
    hear(talk, "/load early")  # the model that these belong to is still known
    assert talk.model.card.get("learnt") is None and talk.session.chars == 0
    hear(talk, "/load late")
    assert len(talk.model.card["learnt"]) == 1 and talk.session.text.startswith("Once upon")
    kept = Model.load("learnt.safetensors")
    again = Conversation(kept, kept.session(), {"max_chars": 10})
    assert hear(again, "/load late").startswith("Once upon") and hear(again, "")
    other = Conversation(MODEL, MODEL.session(), {"max_chars": 10})
    with pytest.raises(UsageError, match="belongs to the model"):
        hear(other, "/load late")


def test_generate_interactive_mixes_memories(files, run):
    options = ("--interactive", "--learn", "--seed", "1", "--max-chars", "60", "--learn-from", files[1])
    told = [run("generate", files[0], TEXT[:300], *options, *more).out for more in ((), ("--no-learn-memories",))]
    assert told[0] != told[1]


def test_what_learns_writes_one_text_at_a_time():
    with pytest.raises(UsageError, match="one text"):
        MODEL.learning(LEARN).engine.begin(2)


def test_training_leaves_statistics(tmp_path, own_cache):
    from textlstm.run import Request, train

    (tmp_path / "book.txt").write_text(TEXT)
    shape = {"tokenizer": "byte", "embed_size": 8, "hidden_size": 8, "num_layers": 1, "batch_size": 2, "seq_len": 8}
    result = train(Request([str(tmp_path / "book.txt")], tmp_path / "run", steps=4, settings=shape))
    model = Model.load(result.model)
    assert model.has_statistics and model.learner().source == "model"
    static = load_engine(model._file, "torch")
    assert metrics.score(static, model.tokenizer.encode(TEXT), len(TEXT), len(TEXT)).nats > 0
