"""Copied runs and the guard against them, against brute force."""

from __future__ import annotations

import itertools
import json
import random
import sys

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given, settings
from hypothesis import strategies as st

from textlstm import cli, novelty
from textlstm.config import ModelConfig
from textlstm.errors import MissingExtraError, UsageError
from textlstm.model import Model
from textlstm.model_file import ModelFile
from textlstm.novelty import CopyGuard, SuffixIndex
from textlstm.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

LETTERS = "abc é€😀\n"


def index_of(*texts: str) -> SuffixIndex:
    """Sorted by Python, so that the tests need no cache."""
    source = b"".join(novelty.text_to_bytes(text) + b"\xff" for text in texts)
    return SuffixIndex(source, np.array(sorted(range(len(source)), key=lambda i: source[i:])))


def brute_runs(text: str, sources: tuple[str, ...]) -> list[tuple[int, int]]:
    """All pieces of a text that stand in a source and cannot be made longer, in characters."""
    places = [(a, b) for a in range(len(text)) for b in range(a + 1, len(text) + 1)]
    pieces = [(a, b) for a, b in places if any(text[a:b] in source for source in sources)]
    return [(a, b) for a, b in pieces if not any((c <= a and b <= d and (c, d) != (a, b)) for c, d in pieces)]


@given(
    st.lists(st.text(LETTERS, min_size=1, max_size=60), min_size=1, max_size=3), st.text(LETTERS, max_size=50),
    st.integers(1, 6),
)  # fmt: skip
def test_novelty_is_that_of_brute_force(sources, text, length):
    index = index_of(*sources)
    runs = brute_runs(text, tuple(sources))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "RUN_LENGTHS", (length,))
        found = index.novelty(text)
    assert found.chars == len(text)
    assert found.longest == max((b - a for a, b in runs), default=0)
    assert len(found.quote) == found.longest and (not found.quote or any(found.quote in s for s in sources))
    copied = {place for a, b in runs if b - a >= length for place in range(a, b)}
    assert found.copied[length] == pytest.approx(len(copied) / len(text) if text else 0)


@given(st.lists(st.text("ab", min_size=1, max_size=40), min_size=1, max_size=2), st.text("abc", max_size=60))
def test_runs_are_all_that_cannot_be_made_longer(sources, text):
    assert list(index_of(*sources).runs(text.encode())) == sorted(brute_runs(text, tuple(sources)))


@given(st.text(LETTERS, min_size=1, max_size=60), st.text(LETTERS, min_size=1, max_size=4), st.integers(1, 4))
def test_continuations(source, query, characters):
    found = list(index_of(source).continuations(query.encode(), characters))
    expected = set()
    for place in range(len(source)):
        after = source[place + len(query) :]
        if source.startswith(query, place) and len(after) >= characters:
            expected.add(after[: characters - 1].encode() + after[characters - 1].encode()[:1])
    with_end = [one for one in found if b"\xff" not in one]
    assert len(found) == len(set(found)) and set(with_end) == expected


def test_long_copies_are_found_in_no_time():
    """A verbatim text of 30,000 characters: quadratic work would take an hour."""
    rng = random.Random(0)
    source = "".join(rng.choices("abcdefgh", k=30_000))
    index = index_of(source)
    text = source[100:] + "zz" + source[:5_000]
    found = index.novelty(text)
    assert found.longest == 29_900 and found.copied[40] > 0.999


def test_share_of_a_text_with_one_quotation():
    source = make_text(5_000, seed=1)
    quote = source[1000:1050]
    text = "0123456789" * 15 + quote
    found = index_of(source).novelty(text)
    assert found.longest == 50 and found.quote == quote and found.copied == {20: 0.25, 40: 0.25}
    assert found.to_dict()["copied_40"] == 0.25


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "suffixes"


def test_index_is_built_once_and_sorted(cache, monkeypatch):
    texts = [make_text(3_000, seed=2), "Müller €", "\udcff\udcfe bytes"]
    index = SuffixIndex.of_texts(texts)
    source = b"".join(novelty.text_to_bytes(text) + b"\xff" for text in texts)
    assert bytes(index._source[:]) == source
    assert index._suffixes.tolist() == sorted(range(len(source)), key=lambda i: source[i:])
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(novelty, "_write_suffixes", lambda *_: pytest.fail("was built again"))
    assert SuffixIndex.of_texts(texts).occurs("üller €".encode())
    with pytest.raises(UsageError):
        SuffixIndex.of_texts([])
    assert len(list(cache.iterdir())) == 1


def test_without_pydivsufsort_the_extra_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    with pytest.raises(MissingExtraError, match=r"textlstm\[novelty\]"):
        SuffixIndex.of_texts(["text"])
    assert not list(cache.iterdir())


# --- the guard -------------------------------------------------------------------------------------------------------

TOKENIZERS = {
    "char": CharTokenizer("abc \né€😀"),
    "few": CharTokenizer("abé", byte_fallback=False),
    "byte": ByteTokenizer(),
    "bpe": BPETokenizer.train("abab abc é€😀 abcabc ababab é€ é€ cab cab\n\n\n" * 9, 280),
}


@settings(max_examples=80)
@given(
    st.text("abé", min_size=1, max_size=40), st.text("abé", max_size=20), st.integers(1, 9),
    st.sampled_from(sorted(TOKENIZERS)), st.integers(0, 3),
)  # fmt: skip
def test_guard_forbids_what_brute_force_does(source, written, most, name, cut):
    """Judged on texts in which each character is one: its first byte counts, as in the guard."""
    tokenizer = TOKENIZERS[name]
    tail = written.encode()
    tail = tail[: len(tail) - cut] if cut <= len(tail) else tail
    guard = CopyGuard(index_of(source), tokenizer, most)
    found = guard.forbidden(tail)
    inside = source.encode() + b"\xff"
    expected = set()
    for id in range(tokenizer.vocab_size):
        whole = tail + tokenizer.token_bytes(id)
        begins = [i for i, byte in enumerate(whole) if byte & 0xC0 != 0x80]
        for place, at in enumerate(begins):
            first = place - most
            if at >= len(tail) and first >= 0 and whole[begins[first] : at + 1] in inside:
                expected.add(id)
    assert set(found.tolist()) == expected


def parrot(text: str, tokenizer: CharTokenizer) -> Model:
    """A model that repeats its text: its embedding and output favour, after each character, what follows it most."""
    V = tokenizer.vocab_size + 1
    config = ModelConfig(V, V, V, 1, tie_embeddings=False)
    weights = {n: np.zeros(s, dtype=np.float32) for n, s in config.tensor_shapes().items()}
    weights["embedding.weight"] = np.eye(V, dtype=np.float32)
    weights["lstm.0.weight_ih"][2 * V : 3 * V] = 9 * np.eye(V, dtype=np.float32)  # g: the character itself
    weights["lstm.0.bias"][:V] = weights["lstm.0.bias"][3 * V :] = 9  # i and o open
    weights["lstm.0.bias"][V : 2 * V] = -9  # f shut: only the last character counts
    ids = tokenizer.encode(text)
    for one, after in itertools.pairwise(ids):
        weights["head.weight"][after, one] = 12
    weights["head.bias"][-1] = -30
    return Model(ModelFile(config, tokenizer, weights, {}, ""))


@pytest.mark.parametrize("most", [3, 8, 20])
def test_a_parrot_is_kept_from_copying(most):
    source = "theTHE abcdfgijklmnopqrsuvwxyz0123456789ABCDFGIJKLMNOPQRS"
    tokenizer = CharTokenizer.from_text(source, byte_fallback=False)
    model, index = parrot(source, tokenizer), index_of(source)
    free = model.generate("the", max_chars=120, seed=1, temperature=0.8)
    assert index.novelty("the" + free).longest > 20
    for seed in range(4):
        text = model.generate("the", max_chars=150, seed=seed, max_copy=most, copy_source=index)
        assert index.novelty("the" + text).longest <= most, text
    with pytest.raises(UsageError, match="copy-source"):
        model.generate("the", max_copy=5)


@pytest.mark.parametrize("most", [3, 8])
def test_a_session_counts_a_run_from_where_it_began(most):
    """Bits that are each shorter than a run make none together, whether they were fed, written or held back."""
    source = "theTHE abcdfgijklmnopqrsuvwxyz0123456789ABCDFGIJKLMNOPQRS"
    tokenizer = CharTokenizer.from_text(source, byte_fallback=False)
    model, index = parrot(source, tokenizer), index_of(source)
    guard = {"max_copy": most, "copy_source": index}
    free = model.session(1)
    free.feed("the")
    assert index.novelty("the" + "".join(free.generate(max_tokens=2) for _ in range(20))).longest > most
    for seed in range(4):
        session = model.session(seed)
        session.feed(source[:3])
        for number in range(40):
            if number % 9 == 5:
                session.feed("01")  # what follows them in the source goes on with these two
            session.generate(max_tokens=2, stop="bz", **guard)
        assert index.novelty(session.text).longest <= most, session.text
        whole = model.session(seed)
        whole.feed("the")
        assert whole.generate(max_chars=30, **guard) == model.generate("the", seed=seed, max_chars=30, **guard)
    with pytest.raises(UsageError, match="copy-source"):
        session.generate(max_copy=5)
    with pytest.raises(UsageError, match="below 10,000"):
        session.generate(max_copy=10_000, copy_source=index)


def test_where_all_that_is_left_would_be_copied():
    tokenizer = CharTokenizer("ab", byte_fallback=False)
    model = parrot("ab", tokenizer)
    guard = {"max_copy": 1, "copy_source": index_of("aabbab ba")}
    with pytest.raises(UsageError, match="allow longer copies"):
        model.generate("a", max_tokens=9, **guard)
    session = model.session(0)
    session.feed("a")
    with pytest.raises(UsageError, match="allow longer copies"):
        session.generate(max_tokens=9, **guard)
    assert session.text == "a" and session.generate(max_tokens=2) in ("ba", "bb", "ab", "aa")


def test_a_text_that_copies_nothing_is_not_changed():
    tokenizer = ByteTokenizer()
    config = ModelConfig(257, 8, 8, 1)
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    model = Model(ModelFile(config, tokenizer, weights, {}, ""))
    free = model.generate("a", max_tokens=60, seed=3)
    assert model.generate("a", max_tokens=60, seed=3, max_copy=10, copy_source=index_of("zyx" * 9)) == free


# --- the commands ----------------------------------------------------------------------------------------------------


def test_generate_and_score_tell_what_is_copied(cache, tmp_path, monkeypatch, capsys):
    source = tmp_path / "source.txt"
    source.write_text(make_text(4_000, seed=3))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["textlstm", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    options = ["--max-chars", "80", "--seed", "1", "--copy-source", source]
    code, out, _ = run("generate", "shakespeare", "the", *options, "--max-copy", "6", "--json")
    report = json.loads(out.splitlines()[-1])
    assert code == 0 and report["novelty"][0]["longest"] <= 6 and report["novelty"][0]["copied_20"] == 0
    code, out, err = run("generate", "shakespeare", "the", *options)
    assert code == 0 and "longest verbatim run" in err
    code, out, _ = run("score", "shakespeare", source, "--copy-source", source, "--json")
    report = json.loads(out.splitlines()[-1])
    assert code == 0 and report["novelty"][0]["copied_40"] == 1
    code, _, err = run("generate", "shakespeare", "--max-copy", "5")
    assert code == 2 and "copy-source" in err and "learnt from plays" in err
    assert run("generate", "shakespeare", "--copy-source", "absent.txt")[0] == 2


# --- the meter of a training run -------------------------------------------------------------------------------------


@given(st.text("ab ", min_size=1, max_size=60), st.text("ab ", max_size=60), st.lists(st.text("ab ", max_size=9)))
def test_meter_compares_texts_of_one_length(source, human, samples):
    meter = novelty.CopyMeter(index_of(source), human, 5)
    pieces = [human[start : start + 5] for start in range(0, len(human) - 4, 5)]

    def mean(texts: list[str]) -> float:
        return np.mean([max((b - a for a, b in brute_runs(text, (source,))), default=0) for text in texts])

    assert (meter.human is None) == (len(human) < 5)
    assert meter.human is None or meter.human.longest == pytest.approx(mean(pieces))
    whole, found = [text[:5] for text in samples if len(text) >= 5], meter.measure(samples)
    assert (found is None) == (not whole)
    if found is not None:
        assert found.texts == len(whole) and found.longest == pytest.approx(mean(whole))
        assert ("people" in meter.tell(found)) == (meter.human is not None)


def test_of_a_long_text_pieces_are_taken_evenly():
    human = "".join(chr(0x4E00 + number) for number in range(10_000))
    found = novelty.CopyMeter(index_of(human[5_000:]), human, 100).human
    assert found is not None and found.texts == 16 and found.longest == pytest.approx(50)


@pytest.mark.parametrize(
    ("size", "flops", "pays"),
    [
        (1 << 20, 0, True),
        (2 << 20, 0, False),
        (2 << 20, 2e13, True),
        (1 << 25, 1e20, True),
        ((1 << 25) + 1, 1e20, False),
    ],
)
def test_an_index_is_made_where_it_costs_little(size, flops, pays):
    assert novelty.CopyMeter.pays(size, flops) == pays
