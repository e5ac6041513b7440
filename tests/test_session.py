"""Sessions: two calls are one call, branches and files go on alike, memory stays where it is."""

from __future__ import annotations

import gc
import itertools
import json
import resource
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save
from test_pattern import MERGES, TOKENIZERS

from textlstm import Session, State
from textlstm.config import ModelConfig, SamplingConfig
from textlstm.errors import ModelFileError, UsageError
from textlstm.generation.session import TAIL
from textlstm.model import Model
from textlstm.model_file import ModelFile
from textlstm.tokenizer import BPETokenizer, ByteTokenizer


def make_model(tokenizer, seed: int = 0, bias: dict[int, float] | None = None, engine: str = "int8") -> Model:
    config = ModelConfig(tokenizer.vocab_size + 1, 8, 8, 1)
    rng = np.random.default_rng(seed)
    weights = {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    for id, value in (bias or {}).items():
        weights["head.bias"][id] += value
    return Model(ModelFile(config, tokenizer, weights, {"corpus": {"name": f"corpus {seed}"}}, ""), engine)


MODELS = {name: make_model(tokenizer) for name, tokenizer in TOKENIZERS.items()}
# Writes little but long characters and the parts of stop strings, so that texts are often cut within them.
MODELS["narrow"] = make_model(
    TOKENIZERS["bpe"], bias=dict.fromkeys([97, 98, 99, 256, 257, 258, 262, 263, 264, 0xA9], 6.0)
)
MODELS["bytes of 語é"] = make_model(ByteTokenizer(), bias=dict.fromkeys("語é".encode(), 8.0))

limits = st.fixed_dictionaries(
    {}, optional={"max_tokens": st.integers(0, 12), "max_chars": st.integers(0, 12)}
).filter(bool)
stops = st.sampled_from([(), ("ab",), ("bab", "ca"), ("語",), ("aa", "abc")])


def same(a: Session, b: Session) -> None:
    """Nothing tells two sessions apart."""
    assert (a.text, a.chars, a.reason, a._ahead, a._shown, a._held) == (
        b.text, b.chars, b.reason, b._ahead, b._shown, b._held,
    )  # fmt: skip
    np.testing.assert_array_equal(a._logits_BV, b._logits_BV)
    np.testing.assert_array_equal(a._fed_V, b._fed_V)
    np.testing.assert_array_equal(a._written_V, b._written_V)
    assert a.rng.bit_generator.state == b.rng.bit_generator.state


@pytest.mark.parametrize("name", MODELS)
def test_a_session_writes_what_generate_writes(name):
    model = MODELS[name]
    for options in ({}, {"temperature": 0}, {"top_k": 4, "repetition_penalty": 1.4}, {"frequency_penalty": 0.5}):
        session = model.session(seed=4, **options)
        session.feed("ab cd")
        text = session.generate(max_chars=40)
        assert text == model.generate("ab cd", seed=4, max_chars=40, **options)
        assert session.text == "ab cd" + text and session.chars == 45


def test_what_a_person_sees_of_models_and_sessions():
    model = MODELS["byte"]
    assert repr(model) == f"<Model corpus 0: 1 x 8 LSTM, {model.config.num_params:,} parameters, 257 ids>"
    session = model.session(0)
    assert repr(session) == "<Session with corpus 0: 0 characters, ''>"
    session.feed("ab\n")
    assert repr(session) == "<Session with corpus 0: 3 characters, 'ab\\n'>"
    session.feed("c" * 1500)
    assert repr(session) == f"<Session with corpus 0: 1,503 characters, ...'{'c' * 40}'>"


@given(st.sampled_from(list(MODELS)), st.integers(0, 99), st.lists(st.integers(0, 9), min_size=2, max_size=5), stops)
def test_calls_by_tokens_write_what_one_call_writes(name, seed, numbers, stop):
    model = MODELS[name]
    parts, whole = (model.session(seed, repetition_penalty=1.2) for _ in range(2))
    for session in (parts, whole):
        session.feed("ab")
    text = ""
    for number in numbers:
        text += parts.generate(max_tokens=number, stop=stop)
        if parts.reason == "stop":
            break
    assert text == whole.generate(max_tokens=sum(numbers), stop=stop)
    if parts.reason != "stop":
        same(parts, whole)


@given(st.sampled_from(list(MODELS)), st.integers(0, 99), st.lists(st.integers(0, 9), min_size=2, max_size=5), stops)
def test_calls_by_characters_write_what_one_call_writes(name, seed, numbers, stop):
    model = MODELS[name]
    parts, whole = model.session(seed), model.session(seed)
    text = ""
    for number in numbers:
        text += parts.generate(max_chars=number, stop=stop)
        if parts.reason == "stop":
            break
    expected = whole.generate(max_chars=sum(numbers), stop=stop)
    # A stop string that lies across the last border is seen by the next call only.
    assert text == expected if parts.reason != "stop" else text.startswith(expected) or expected.startswith(text)


def events() -> st.SearchStrategy:
    feeds = st.tuples(st.just("feed"), st.sampled_from(["ab", "a", " é", "語", "", "\n"]))
    texts = st.tuples(st.just("generate"), limits, stops)
    broken = st.tuples(st.just("break off"), st.integers(1, 3))
    patterned = st.tuples(st.just("pattern"), st.sampled_from(["[ab]{1,4}", "語|é"]))
    return st.lists(feeds | texts | broken | patterned, min_size=1, max_size=6)


def play(session: Session, happened: list) -> str:
    shown = ""
    for kind, *rest in happened:
        if kind == "feed":
            session.feed(rest[0])
            shown += rest[0]
        elif kind == "generate":
            shown += session.generate(**rest[0], stop=rest[1])
        elif kind == "pattern":
            shown += session.generate(regex=rest[0], max_tokens=20)
        else:
            shown += "".join(itertools.islice(session.stream(max_tokens=20, stop="ab"), rest[0]))
    return shown


@given(st.sampled_from(list(MODELS)), st.integers(0, 9), events(), events())
def test_branches_and_files_go_on_alike(name, seed, before, after):
    model = MODELS[name]
    session = model.session(seed, temperature=1.3)
    shown = play(session, before)
    assert session.text == shown and session.chars == len(shown)
    branch = session.branch()
    same(branch, session)
    with tempfile.TemporaryDirectory() as folder:
        session.save(f"{folder}/s.safetensors")
        loaded = Session.load(f"{folder}/s.safetensors", model)
    same(loaded, session)
    text = play(session, after)
    assert play(branch, after) == text and play(loaded, after) == text
    same(branch, session)
    same(loaded, session)


@given(st.sampled_from(list(MODELS)), st.integers(0, 9), events())
def test_a_session_has_read_what_it_shows(name, seed, happened):
    """Its state is that of reading the text, where the text tells what the tokens were."""
    if name in ("bpe", "narrow"):
        return
    model = MODELS[name]
    session = model.session(seed)
    shown = play(session, happened)
    fresh = model.session(0)
    if "�" in shown or name == "char":  # bytes of a known character: other tokens, the same text
        return
    fresh.feed(shown)
    np.testing.assert_array_equal(session.state.h_LBH, fresh.state.h_LBH)
    np.testing.assert_array_equal(session._logits_BV, fresh._logits_BV)
    counts_V = np.bincount(model.tokenizer.encode(shown), minlength=model.config.vocab_size)
    np.testing.assert_array_equal(session._fed_V + session._written_V, counts_V)


def test_repeats_are_seen_over_calls():
    model = make_model(ByteTokenizer(), bias=dict.fromkeys(b"abc", 20.0))
    options = {"seed": 4, "dry_multiplier": 3.0, "temperature": 0.5}
    whole = model.generate("abcab", max_tokens=40, **options)
    session = model.session(**options)
    session.feed("abcab")
    assert session.generate(max_tokens=15) + session.generate(max_tokens=25) == whole
    assert whole != model.generate("abcab", max_tokens=40, **{**options, "dry_multiplier": 0.0})


def test_a_stop_string_is_not_read():
    model = MODELS["narrow"]
    for seed in range(20):
        session = model.session(seed)
        session.feed("ab")
        text = session.generate(stop="ba", max_tokens=200)
        assert session.reason == "stop" and session.text == "ab" + text and "ba" not in text
        assert not session._ahead and session._fed_V.sum() + session._written_V.sum() >= len(session.text) / 5
        free = model.session(seed)
        free.feed("ab")
        assert free.generate(max_tokens=200).startswith(text + "ba")


def test_a_cut_within_a_token_goes_on_there():
    tokenizer = BPETokenizer(np.array(MERGES))
    model = make_model(tokenizer, bias={258: 60.0})  # abcab
    session = model.session(1)
    assert [session.generate(max_chars=3), session.generate(max_chars=1), session.generate(max_chars=8)] == [
        "abc", "a", "babcabab",
    ]  # fmt: skip
    session.feed("!")  # what was cut off is gone, and "ab" of the last token was read instead
    assert session.text == "abcababcabab!" and session._written_V[258] == 2 and session._fed_V[256] == 1


def test_half_a_character_waits_for_the_next_call():
    session = make_model(ByteTokenizer(), bias={0xE8: 60.0}).session(1)
    assert session.generate(max_tokens=1) == "" and session._ahead == [0xE8]
    branch = session.branch()
    session.feed("x")  # half a character is given up
    assert session.text == "x" and session._written_V.sum() == 0
    for byte, text in ((0xAA, ""), (0x9E, "語")):
        branch._model = make_model(ByteTokenizer(), bias={byte: 60.0})
        assert branch.generate(max_tokens=1) == text
    assert branch.text == "語"


def test_branches_are_independent():
    model = MODELS["byte"]
    session = model.session(3)
    session.feed("Once")
    branch, other = session.branch(), session.branch(seed=8)
    text = branch.generate(max_tokens=30)
    assert session.text == "Once" and session.generate(max_tokens=30) == text != other.generate(max_tokens=30)
    assert other.text.startswith("Once") and branch.text == session.text


def test_pieces_are_encoded_by_themselves():
    model = MODELS["bpe"]
    one, two = model.session(0), model.session(0)
    one.feed("abc")
    two.feed("ab")
    two.feed("c")
    assert one._fed_V[257] == 1 and two._fed_V[256] == two._fed_V[99] == 1 and one.text == two.text
    one, two = MODELS["byte"].session(0), MODELS["byte"].session(0)
    one.feed("a語c")
    two.feed("a語")
    two.feed("c")
    np.testing.assert_array_equal(one.state.h_LBH, two.state.h_LBH)


def test_sampling_of_a_session_and_of_a_call():
    session = MODELS["bpe"].session(0, temperature=0)
    greedy = session.branch().generate(max_tokens=20)
    assert session.branch(seed=5).generate(max_tokens=20) == greedy
    assert session.branch().generate(max_tokens=20, temperature=1.5) != greedy
    session.sampling = SamplingConfig(temperature=1.5)
    assert session.branch().generate(max_tokens=20) != greedy
    with pytest.raises(UsageError, match="temprature"):
        session.stream(temprature=1)


def test_mix_of_sessions_is_the_mix_of_their_states():
    """The logits of a blend are those that the head gives for the blended output, by numpy."""
    model = make_model(ByteTokenizer(), engine="onnx")
    a, b = model.session(1), model.session(2)
    a.feed("Once upon a time")
    b.feed("The end. ")
    mixed = Session.mix(a, b, 0.3)
    h_LBH = 0.7 * a.state.h_LBH + 0.3 * b.state.h_LBH
    np.testing.assert_allclose(mixed.state.h_LBH, h_LBH, atol=1e-6)
    np.testing.assert_allclose(mixed.state.c_LBH, 0.7 * a.state.c_LBH + 0.3 * b.state.c_LBH, atol=1e-6)
    weights = model._file.weights
    expected = h_LBH[-1, 0] @ weights["embedding.weight"].T + weights["head.bias"]
    np.testing.assert_allclose(mixed._logits_BV[0], expected, atol=1e-5)
    for share, whole in ((0.0, a), (1.0, b)):
        text = whole.branch(seed=3).generate(max_tokens=20)
        assert Session.mix(a, b, share).branch(seed=3).generate(max_tokens=20) == text
    assert a.text == "Once upon a time"
    with pytest.raises(UsageError, match="between 0 and 1"):
        State.mix(a.state, b.state, 1.5)
    with pytest.raises(UsageError, match="cannot be mixed"):
        State.mix(a.state, State.zeros(ModelConfig(257, 8, 9, 1), 1), 0.5)
    with pytest.raises(UsageError, match="corpus 1"):
        Session.mix(a, make_model(ByteTokenizer(), 1).session(0), 0.5)


def test_a_session_of_another_model_names_both(tmp_path):
    MODELS["byte"].session(0).save(tmp_path / "s")
    other = make_model(ByteTokenizer(), 1)
    own, foreign = (model.identity[:12] for model in (MODELS["byte"], other))
    assert own != foreign
    with pytest.raises(UsageError, match=f"corpus 0 .{own}., not to corpus 1 .{foreign}."):
        Session.load(tmp_path / "s", other)


def test_a_session_finds_a_model_that_ships(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    session = Model.load("shakespeare").session(1)
    session.feed("ROMEO:")
    session.save(tmp_path / "s")
    found = Session.load(tmp_path / "s")
    assert isinstance(found, Session) and found.text == "ROMEO:"
    assert found.generate(max_tokens=20) == session.generate(max_tokens=20)
    MODELS["byte"].session(0).save(tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"does not ship.*name it"):
        Session.load(tmp_path / "s")
    Path("runs/own-1").mkdir(parents=True)
    MODELS["byte"].save("runs/own-1/model.safetensors")
    assert Session.load("s").generate(max_tokens=5) == MODELS["byte"].session(0).generate(max_tokens=5)


def test_files_that_are_no_session(tmp_path):
    model, path = MODELS["byte"], tmp_path / "s"
    with pytest.raises(UsageError, match="there is no session"):
        Session.load(path, model)
    session = model.session(0)
    session.feed("Once")
    session.save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-50] ^= 1
    edited = whole.replace(b"Once", b"Twic")
    model.save(tmp_path / "model")
    for data in (b"", whole[:100], whole[:-10], bytes(flipped), edited, b"PK", (tmp_path / "model").read_bytes()):
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match="s is"):
            Session.load(path, model)


@pytest.mark.parametrize(
    "change",
    [
        {"random": {}},
        {"ahead": 5},
        {"ahead": [1 << 70]},
        {"sampling": {"temprature": 1}},
        {"chars": None},
        {"random": 3},
    ],
)
def test_values_that_no_session_has(tmp_path, change):
    """A file whose hash is right and whose values are not."""
    from textlstm.generation.session import _digest

    model, path = MODELS["byte"], tmp_path / "s"
    model.session(0).save(path)
    data = path.read_bytes()
    tensors, size = load(data), int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    session = json.dumps({**json.loads(metadata["session"]), **change})
    path.write_bytes(save(tensors, {**metadata, "session": session, "sha256": _digest(session, tensors)}))
    with pytest.raises(ModelFileError, match="s is damaged"):
        Session.load(path, model)


@pytest.mark.parametrize("seed", [-1, 1.5, "1"])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(UsageError, match="0 or more"):
        MODELS["byte"].session(seed)
    with pytest.raises(UsageError, match="0 or more"):
        MODELS["byte"].session(1).branch(seed)
    with pytest.raises(UsageError, match="0 or more"):
        MODELS["byte"].generate("a", max_tokens=1, seed=seed)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 3.5}, {"max_tokens": "3"}, {"max_chars": 0.5}, {"stop": b"a"}, {"stop": [3]}, {"best_of": 2.0},
        {"max_copy": 3, "copy_source": "a text"},
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused(options):
    with pytest.raises(UsageError, match="must be"):
        MODELS["byte"].generate("a", **options)


def test_bytes_are_no_text():
    model = MODELS["byte"]
    for read in (
        model.generate,
        model.score,
        model.next_token_probs,
        model.session(0).feed,
        lambda t: model.score([t]),
    ):
        with pytest.raises(UsageError, match=r"must be a str, not bytes; .*decode"):
            read(b"ab")
    with pytest.raises(UsageError, match=r"takes bytes.*encode"):
        model.compress("ab")


def feed_and_measure(characters: int, piece: int) -> tuple[int, Session]:
    """Bytes that Python and numpy hold more after reading so much, at the peak."""
    session = make_model(ByteTokenizer()).session(0)
    text = make_text(piece)[:piece]
    session.feed(text)
    session.generate(max_tokens=5)
    gc.collect()
    tracemalloc.start()
    for _ in range(characters // piece):
        session.feed(text)
        session.generate(max_tokens=5)
        gc.collect()  # what is held counts, not how seldom Python looks for cycles
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(session.text) == TAIL and session.chars >= characters
    return peak, session


def test_memory_does_not_grow_with_the_text():
    few, _ = feed_and_measure(200_000, 20_000)
    many, _ = feed_and_measure(1_000_000, 20_000)
    assert many < few + 50_000


@pytest.mark.slow
def test_ten_million_characters_at_constant_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak, session = feed_and_measure(10_000_000, 100_000)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # A piece of 100,000 characters with its ids; and twice the table of names of Python, which is made anew at times.
    assert peak < 7_000_000 and grown < 60_000  # kilobytes
    session.save(tmp_path / "s")
    assert (tmp_path / "s").stat().st_size < 20_000
    assert np.isfinite(session.state.h_LBH).all() and session.chars > 10_000_000
