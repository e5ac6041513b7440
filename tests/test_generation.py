"""Writing with tiny random models: limits, stop strings, seeds, greedy by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_network import make_config, numpy_network, random_weights

from textlstm.config import SamplingConfig
from textlstm.engine import load_engine
from textlstm.errors import ConfigError, UsageError
from textlstm.generation import DEFAULT_MAX_TOKENS, Limits, Writer, read_prompt, write
from textlstm.generation.words import BadWords
from textlstm.model import Model
from textlstm.model_file import ModelFile
from textlstm.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

LETTERS = "abcdefghijklmnopqrstuv"


def make_model(boundary: bool = True, scale: float = 1.0, engine: str = "onnx") -> Model:
    """22 letters, no other text, and perhaps a boundary."""
    config = make_config(vocab_size=22 + boundary, boundary=boundary)
    weights = {n: (scale * a).astype(np.float32) for n, a in random_weights(config, 7).items()}
    return Model(ModelFile(config, CharTokenizer(LETTERS, byte_fallback=False), weights, {}, ""), engine)


def byte_model() -> Model:
    config = make_config(vocab_size=257)
    return Model(ModelFile(config, ByteTokenizer(), random_weights(config), {}, ""))


@pytest.mark.parametrize("engine", ["int8", "onnx", "torch"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 5}, {"stop": ["a", "bc"]}, {"max_chars": 33}])
def test_stream_is_generate(options, engine):
    model = make_model(engine=engine)
    options = {"seed": 3, "max_tokens": 80, **options}
    pieces = list(model.stream("abc", **options))
    assert "".join(pieces) == model.generate("abc", **options)
    assert all(pieces)
    assert model.generate("abc", **options) == model.generate("abc", **options)


def test_seeds_matter():
    model = make_model()
    texts = {model.generate("abc", seed=seed, max_tokens=40) for seed in range(10)}
    assert len(texts) == 10
    assert model.generate("abc", max_tokens=40) != model.generate("abc", max_tokens=40)


@pytest.mark.parametrize("engine", ["int8", "onnx", "torch"])
def test_rows_equal_rows_alone(engine):
    """Side by side, with different options, and leaving the batch at different times."""
    model = make_model(engine=engine)
    rows = [
        (SamplingConfig(temperature=1.0), Limits(max_tokens=50), 1),
        (SamplingConfig(temperature=0), Limits(max_chars=7), 2),
        (SamplingConfig(top_k=3, repetition_penalty=1.5), Limits(max_tokens=31), 3),
        (SamplingConfig(), Limits(max_tokens=0), 4),
        (SamplingConfig(top_p=0.8), Limits(max_tokens=60, stop=("a", "e")), 5),
        (SamplingConfig(temperature=1.2), Limits(max_tokens=60, stop_at_end=True), 6),
    ]

    def writer(sampling, limits, seed):
        return Writer(model.tokenizer, 23, 22, sampling, limits, seed)

    together = [writer(*row) for row in rows]
    shown = [""] * len(rows)
    for number, text in model.write("hallo", together):
        shown[number] += text
    for row, ours, text in zip(rows, together, shown, strict=True):
        alone = writer(*row)
        expected = "".join(text for _, text in model.write("hallo", [alone]))
        assert ours.text == text == expected == alone.text
        assert (ours.reason, ours.tokens) == (alone.reason, alone.tokens)
    assert together[3].text == "" and len({w.tokens for w in together}) > 3


def test_each_of_512_rows_is_as_if_alone():
    model = make_model(engine="int8")

    def writer(number: int) -> Writer:
        sampling = SamplingConfig(
            temperature=number % 5 / 3, top_k=number % 7, top_p=1 - number % 3 / 9, repetition_penalty=1 + number % 2
        )
        return Writer(model.tokenizer, 23, 22, sampling, Limits(max_tokens=1 + number % 40), number)

    together = [writer(number) for number in range(512)]
    for _ in model.write("hallo", together):
        pass
    for number in range(0, 512, 19):
        alone = writer(number)
        for _ in model.write("hallo", [alone]):
            pass
        assert together[number].text == alone.text and alone.tokens == 1 + number % 40
    assert len({writer.text for writer in together}) > 300


def test_writers_of_model_have_consecutive_seeds():
    model = make_model()
    writers = model.writers(4, SamplingConfig(), Limits(max_tokens=30), 10)
    for _ in model.write("ab", writers):
        pass
    assert [w.text for w in writers] == [model.generate("ab", seed=10 + i, max_tokens=30) for i in range(4)]


@pytest.mark.parametrize("engine", ["int8", "onnx", "torch"])
def test_greedy_equals_argmax_by_hand(engine):
    model = make_model(engine=engine)
    ids = [22, *(LETTERS.index(c) for c in "vater")]
    weights = random_weights(model.config, 7)
    logits, h, c = numpy_network(model.config, weights, np.array([ids]))
    expected = ""
    for _ in range(60):
        id = int(logits[0, -1, :22].argmax())
        expected += LETTERS[id]
        logits, h, c = numpy_network(model.config, weights, np.array([[id]]), h, c)
    assert model.generate("vater", temperature=0, max_tokens=60) == expected


def test_greedy_without_prompt_starts_at_the_boundary():
    model = make_model()
    logits, _, _ = numpy_network(model.config, random_weights(model.config, 7), np.array([[22]]))
    assert model.generate("", temperature=0, max_tokens=1) == LETTERS[int(logits[0, 0, :22].argmax())]


def test_draws_follow_the_distribution():
    model = make_model()
    logits, _, _ = numpy_network(model.config, random_weights(model.config, 7), np.array([[22, 0, 1]]))
    weights = np.exp(logits[0, -1, :22])
    writers = model.writers(4000, SamplingConfig(temperature=1.0), Limits(max_tokens=1), 0)
    for _ in model.write("ab", writers):
        pass
    counts = np.array([sum(w.text == c for w in writers) for c in LETTERS]) / 4000
    np.testing.assert_allclose(counts, weights / weights.sum(), atol=0.035)


# --- limits ---------------------------------------------------------------------------------------------------------


def run(ids: list[int], limits: Limits, tokenizer=None, boundary_id: int | None = None) -> tuple[list[str], Writer]:
    """Pushes ids into a writer until it ends."""
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    writer = Writer(tokenizer, tokenizer.vocab_size + 1, boundary_id, SamplingConfig(), limits, 0)
    pieces = []
    for id in ids:
        if writer.reason is not None:
            break
        pieces.append(writer.push(id))
    assert "".join(pieces) == writer.text
    return pieces, writer


@pytest.mark.parametrize("number", [0, 1, 2, 17, 64])
def test_max_tokens_and_max_chars_are_exact(number):
    model = make_model()
    whole = model.generate("a", seed=1, max_tokens=100)
    assert model.generate("a", seed=1, max_tokens=number) == whole[:number]
    assert model.generate("a", seed=1, max_chars=number) == whole[:number]
    assert model.generate("a", seed=1, max_chars=number, max_tokens=10) == whole[: min(number, 10)]


def test_default_length():
    assert len(make_model().generate("a", seed=1)) == DEFAULT_MAX_TOKENS


def test_max_chars_cuts_within_a_token():
    # id 256 writes "ab", id 257 writes "abab"
    tokenizer = BPETokenizer(np.array([[97, 98], [256, 256]]))
    pieces, writer = run([257, 256, 257], Limits(max_chars=7), tokenizer)
    assert pieces == ["abab", "ab", "a"] and writer.reason == "length" and writer.tokens == 3


def test_max_chars_counts_characters_not_bytes():
    data = "é語😀x".encode()
    pieces, writer = run(list(data), Limits(max_chars=3))
    assert writer.text == "é語😀" and pieces == ["", "é", "", "", "語", "", "", "", "😀"]


def test_unfinished_character_at_the_end():
    _, writer = run(list("a語".encode()[:3]), Limits(max_tokens=3))
    assert writer.text == "a�" and writer.reason == "length"


def test_text_of_bytes_is_never_half_a_character():
    model = byte_model()
    pieces = list(model.stream("語", seed=5, max_tokens=300))
    assert "".join(pieces) == model.generate("語", seed=5, max_tokens=300)
    writers = model.writers(1, SamplingConfig(), Limits(max_tokens=300), 5)
    ids = []
    push = writers[0].push
    writers[0].push = lambda id: (ids.append(id), push(id))[1]
    for _ in model.write("語", writers):
        pass
    assert bytes(ids).decode("utf-8", "replace") == "".join(pieces)


def test_stop_string_spanning_tokens_is_held_back_and_never_shown():
    pieces, writer = run(list(b"one END two"), Limits(stop=("END",)))
    assert pieces == ["o", "n", "e", " ", "", "", ""]
    assert writer.text == "one " and writer.reason == "stop" and writer.tokens == 7


def test_held_text_is_shown_once_it_is_no_stop_string():
    pieces, writer = run(list(b"xENxEEND"), Limits(stop=("END",)))
    assert pieces == ["x", "", "", "ENx", "", "E", "", ""] and writer.text == "xENxE"


def test_overlapping_stop_string():
    pieces, writer = run(list(b"aaab"), Limits(stop=("aab",)))
    assert pieces == ["", "", "a", ""] and writer.text == "a" and writer.reason == "stop"
    _, writer = run(list(b"ababac!"), Limits(stop=("abac",)))
    assert writer.text == "ab" and writer.tokens == 6


def test_first_of_several_stop_strings():
    _, writer = run(list(b"abcdef"), Limits(stop=("cde", "bcdef", "zz")))
    assert writer.text == "ab" and writer.tokens == 5
    _, writer = run(list(b"abcdef"), Limits(stop=("abcx", "bc")))
    assert writer.text == "a"


def test_stop_string_within_one_token():
    tokenizer = BPETokenizer(np.array([[97, 98], [256, 99]]))  # "abc"
    pieces, writer = run([97, 257], Limits(stop=("b",)), tokenizer)
    assert pieces == ["a", "a"] and writer.reason == "stop"


def test_stop_string_in_another_script_over_bytes():
    _, writer = run(list("你好。再见".encode()), Limits(stop=("。",)))
    assert writer.text == "你好" and writer.reason == "stop"


def test_held_text_is_shown_when_the_tokens_run_out():
    pieces, writer = run(list(b"xEN"), Limits(max_tokens=3, stop=("END",)))
    assert pieces == ["x", "", "EN"] and writer.reason == "length"
    pieces, writer = run([120, 69, 256], Limits(stop=("END",)), boundary_id=256)
    assert pieces == ["x", "", "E"] and writer.reason == "end"


@pytest.mark.parametrize("stop", ["a", "no", "ne", "q", "on", "zzz"])
def test_stop_cuts_what_would_have_been_written(stop):
    model = make_model()
    whole = model.generate("ab", seed=2, max_tokens=150)
    place = whole.find(stop)
    assert model.generate("ab", seed=2, max_tokens=150, stop=[stop]) == (whole[:place] if place >= 0 else whole)
    assert model.generate("ab", seed=2, max_tokens=150, stop=stop) == (whole[:place] if place >= 0 else whole)


# --- the boundary ---------------------------------------------------------------------------------------------------


def eager_model() -> Model:
    """Its boundary is far likelier than all else."""
    config = make_config("untied", vocab_size=23)
    weights = random_weights(config, 7)
    weights["head.bias"][22] = 4.0
    return Model(ModelFile(config, CharTokenizer(LETTERS, byte_fallback=False), weights, {}, ""))


def test_boundary_is_never_drawn_unless_wanted():
    model = eager_model()
    assert model.next_token_probs("ab")[22] > 0.4
    for seed in range(5):
        assert len(model.generate("ab", seed=seed, max_tokens=100)) == 100
        ended = model.writers(1, SamplingConfig(temperature=1.0), Limits(max_tokens=100, stop_at_end=True), seed)
        text = "".join(text for _, text in model.write("ab", ended))
        assert ended[0].reason == "end" and len(text) == ended[0].tokens - 1 < 100
    assert model.generate("ab", temperature=0, stop_at_end=True) == ""
    assert len(model.generate("ab", temperature=0, max_tokens=9)) == 9


def test_stop_at_end_without_boundary_goes_on():
    assert len(make_model(boundary=False).generate("ab", seed=1, max_tokens=50, stop_at_end=True)) == 50


def test_ids_that_write_nothing_are_never_drawn():
    """GPT-2's checkpoints have one id more than their tokenizer, and no boundary."""
    config = make_config("untied", vocab_size=23, boundary=False)
    weights = random_weights(config, 7)
    weights["head.bias"][22] = 50.0
    model = Model(ModelFile(config, CharTokenizer(LETTERS, byte_fallback=False), weights, {}, ""))
    assert len(model.generate("ab", seed=1, max_tokens=50)) == 50


# --- prompts --------------------------------------------------------------------------------------------------------


def test_prompt_is_read_whole():
    model = make_model()
    logits, state = read_prompt(model.engine, model.tokenizer, "abcde" * 200)
    ids = np.array([[22, *([0, 1, 2, 3, 4] * 200)]])
    expected, h, c = numpy_network(model.config, random_weights(model.config, 7), ids)
    np.testing.assert_allclose(logits, expected[:, -1], atol=1e-5)
    np.testing.assert_allclose(state.h_LBH, h, atol=1e-5)
    np.testing.assert_allclose(state.c_LBH, c, atol=1e-5)


def test_prompt_in_chinese():
    model = byte_model()
    ids = np.array([[256, *"中文提示".encode()]])
    logits = numpy_network(model.config, random_weights(model.config), ids)[0][0, -1]
    probs = np.exp(logits - logits.max())
    np.testing.assert_allclose(model.next_token_probs("中文提示"), probs / probs.sum(), atol=1e-5)
    text = model.generate("中文提示", seed=1, max_chars=40)
    assert len(text) == 40 and text == model.generate("中文提示", seed=1, max_chars=40)


def test_prompt_of_unknown_characters_is_substituted():
    model = make_model()
    assert model.generate("中文", seed=1, max_tokens=20) == model.generate("aa", seed=1, max_tokens=20)


def test_repetition_penalty_sees_the_prompt():
    """By hand: positive logits of letters in the prompt are divided, negative multiplied, then the argmax."""
    model, weights = make_model(), random_weights(make_config(vocab_size=23), 7)
    changed = 0
    for prompt in ("abc", "vn", "nnnoq", LETTERS[:15], LETTERS[5:]):
        ids = [LETTERS.index(c) for c in prompt]
        seen = set(ids)
        logits, h, c = numpy_network(model.config, weights, np.array([[22, *ids]]))
        expected = plain = ""
        for _ in range(20):
            x = logits[0, -1, :22].copy()
            plain += LETTERS[x.argmax()]
            for id in seen:
                x[id] = x[id] / 3.0 if x[id] > 0 else x[id] * 3.0
            id = int(x.argmax())
            expected += LETTERS[id]
            seen.add(id)
            logits, h, c = numpy_network(model.config, weights, np.array([[id]]), h, c)
        assert model.generate(prompt, temperature=0, max_tokens=20, repetition_penalty=3.0) == expected
        without = SamplingConfig(temperature=0, repetition_penalty=3.0)
        writer = Writer(model.tokenizer, 23, 22, without, Limits(max_tokens=20), 0)
        blind = "".join(
            t for _, t in write(model.engine, [writer], *read_prompt(model.engine, model.tokenizer, prompt))
        )
        changed += blind != expected
    assert changed


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"max_tokens": -1}, {"max_chars": -5}, {"stop": ("a", "")}])
def test_impossible_limits(limits):
    with pytest.raises(UsageError):
        Limits(**limits)


def test_unknown_option():
    with pytest.raises(ConfigError, match="temperature"):
        make_model().generate("a", temprature=1.0)


def test_unknown_engine():
    with pytest.raises(UsageError, match="known are int8, onnx, torch"):
        Model(make_model()._file, "cuda").generate("a")


def test_saved_model_writes_the_same(tmp_path):
    model = make_model()
    model.save(tmp_path / "m.safetensors")
    for engine in ("onnx", "torch"):
        again = Model.load(tmp_path / "m.safetensors", engine)
        assert again.generate("ab", seed=4, max_tokens=60) == model.generate("ab", seed=4, max_tokens=60)
    assert load_engine(model._file).name == "onnx"


def test_the_stop_string_is_named_and_shown_where_asked():
    ids = list(b"abcdefgh")
    pieces, writer = run(ids, Limits(stop=("de", "cde", "x")))
    assert (writer.text, writer.stopped_by, writer.reason) == ("ab", "cde", "stop")
    pieces, writer = run(ids, Limits(stop=("de", "cde", "x"), include_stop=True))
    assert "".join(pieces) == writer.text == "abcde"
    assert run(ids, Limits(max_tokens=3))[1].stopped_by is None


def test_a_text_can_be_ended_from_outside():
    _, writer = run(list(b"abc"), Limits(stop=("cd",)))
    assert writer.text == "ab" and writer.reason is None
    assert writer.end("stop") == "c"
    assert (writer.text, writer.reason) == ("abc", "stop")


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=6, unique=True),
    st.text("abc", max_size=5),
)
def test_bad_words_forbid_what_would_complete_them(words, tokens, written):
    """By trying every token."""
    tokenizer = SimpleNamespace(vocab_size=len(tokens), token_bytes=lambda id: tokens[id].encode())
    assume(not any(word in written for word in words))
    forbidden = set(BadWords(words, tokenizer).forbidden(written.encode()).tolist())
    assert forbidden == {id for id, token in enumerate(tokens) if any(word in written + token for word in words)}
