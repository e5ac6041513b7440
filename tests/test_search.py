"""Beam search and the best of several samples, against trying everything on a tiny vocabulary."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from test_network import make_config, numpy_network, random_weights
from test_novelty import index_of

from textlstm.config import PatternConfig, SamplingConfig
from textlstm.errors import UsageError
from textlstm.generation import Limits, read_prompt
from textlstm.generation.search import beam_steps, mean_log_prob
from textlstm.model import Model
from textlstm.model_file import ModelFile
from textlstm.novelty import CopyGuard
from textlstm.tokenizer import CharTokenizer

LETTERS = "abc"
END = 3


def make_model(seed: int = 7) -> Model:
    config = make_config("untied", vocab_size=4)
    weights = {n: (2 * a).astype(np.float32) for n, a in random_weights(config, seed).items()}
    file = ModelFile(config, CharTokenizer(LETTERS, byte_fallback=False), weights, {}, "")
    return Model(file, "onnx")  # in single precision, to be held against equations


def log_probs(model: Model, ids: list[int]) -> np.ndarray:
    """Of every token after the prompt "ab" and some ids, shape (T + 1, V), in float64 from the equations."""
    logits, _, _ = numpy_network(model.config, model._file.weights, np.array([[END, 0, 1, *ids]]))
    x_TV = logits[0, 2:]
    return x_TV - np.log(np.exp(x_TV).sum(-1, keepdims=True))


def all_texts(
    model: Model, most: int, may_end: bool, pattern: str | None = None, copied: tuple[str, ...] = ()
) -> dict[str, float]:
    """Every text of up to so many tokens that can end, with its mean log-probability; none holds what is copied."""
    found = {}
    for length in range(most + 1):
        for ids in itertools.product(range(3), repeat=length):
            text = "".join(LETTERS[id] for id in ids)
            if any(piece in "b" + text for piece in copied):  # the prompt ends with b
                continue
            weighed_TV = log_probs(model, list(ids))
            total = sum(weighed_TV[place, id] for place, id in enumerate(ids))
            if pattern is None:
                end = weighed_TV[length, END] if may_end else None
                following = "abc"
            else:
                following = [c for c in LETTERS if length < most and can_match(pattern, text + c, most)]
                stays = [LETTERS.index(c) for c in following]
                end = np.log(1 - np.exp(weighed_TV[length, stays]).sum()) if re.fullmatch(pattern, text) else None
                following = [c for c in following if not any(piece in "b" + text + c for piece in copied)]
            if length == most or not following:
                if pattern is None or re.fullmatch(pattern, text):
                    found[text] = total / length
            elif end is not None:
                found[text] = (total + end) / (length + 1)
    return found


def can_match(pattern: str, begun: str, most: int) -> bool:
    return any(
        re.fullmatch(pattern, begun + "".join(rest))
        for length in range(most - len(begun) + 1)
        for rest in itertools.product(LETTERS, repeat=length)
    )


CASES = [(None, False), (None, True), ("[ab]{1,3}c?", False), ("(?:ab|c)*", False), ("a*b+c", False)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("pattern", "may_end"), CASES)
def test_wide_beams_find_the_best_of_all_texts(pattern, may_end, seed):
    model = make_model(seed)
    best = sorted(all_texts(model, 4, may_end, pattern).items(), key=lambda item: -item[1])
    limits = Limits(max_tokens=4, stop_at_end=may_end)
    made = model.pattern(PatternConfig(regex=pattern))
    writer = model.writers(1, SamplingConfig(), limits, 0, made)[0]
    found = model.search("ab", writer, beams=100, keep=3)
    for ours, (text, mean) in zip(found, best, strict=False):
        assert ours.text == text and mean_log_prob(ours) == pytest.approx(mean, abs=1e-5)
    assert len(found) == min(3, len(best))
    assert model.generate("ab", beams=100, max_tokens=4, stop_at_end=may_end, regex=pattern) == best[0][0]


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 2.0])
def test_length_penalty(power):
    model = make_model(1)
    tokens = {text: len(text) + (len(text) < 4) for text in all_texts(model, 4, True)}  # shorter ones have an end
    worth = {text: mean * tokens[text] ** (1 - power) for text, mean in all_texts(model, 4, True).items()}
    logits_BV, state = read_prompt(model.engine, model.tokenizer, "ab")
    writer = model.writers(1, SamplingConfig(), Limits(max_tokens=4, stop_at_end=True), 0)[0]
    steps = beam_steps(writer, logits_BV, 100, 3, power)
    ids, rows = next(steps)
    with pytest.raises(StopIteration) as end:
        while True:
            logits_BV, state = model.engine.step(ids, state.select(rows.tolist()))
            ids, rows = steps.send(logits_BV)
    assert [one.text for one in end.value.value] == sorted(worth, key=worth.get, reverse=True)[:3]


def test_one_beam_is_greedy():
    model = make_model()
    assert model.generate("ab", beams=1, max_tokens=30) == model.generate("ab", temperature=0, max_tokens=30)


def test_beams_by_hand():
    """Two beginnings at each step, written out once more."""
    model = make_model(2)
    beams = [([], 0.0)]
    for _ in range(12):
        grown = []
        for ids, total in beams:
            weighed_V = log_probs(model, ids)[-1]
            grown += [([*ids, id], total + weighed_V[id]) for id in range(3)]
        beams = sorted(grown, key=lambda beam: -beam[1])[:2]
    expected = ["".join(LETTERS[id] for id in ids) for ids, _ in beams]
    writer = model.writers(1, SamplingConfig(), Limits(max_tokens=12), 0)[0]
    found = model.search("ab", writer, 2, 2)
    assert [one.text for one in found] == expected
    assert [one.log_prob for one in found] == pytest.approx([total for _, total in beams], abs=1e-4)
    assert expected[0] != model.generate("ab", temperature=0, max_tokens=12)  # or this would show nothing


def test_beams_end_before_stop_strings_and_at_lengths():
    model = make_model()
    assert "ca" not in model.generate("ab", beams=5, max_tokens=40, stop="ca")
    assert len(model.generate("ab", beams=5, max_chars=7)) == 7
    assert model.generate("ab", beams=3, max_tokens=0) == ""


# Two letters at most of a source are too many: none that stand side by side in it may be written side by side.
GUARDED = [(None, False, "bacc"), (None, True, "bacc"), ("[ab]{1,3}c?", False, "aab"), ("(?:ab|c)*", False, "cc")]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("pattern", "may_end", "source"), GUARDED)
def test_a_guard_leaves_what_it_does_not_forbid(pattern, may_end, source, seed):
    """Beams find the best text without copies, and samples hold none; a pattern's ends keep their probability."""
    model, index = make_model(seed), index_of(source)
    known = all_texts(model, 4, may_end, pattern, tuple(a + b for a, b in itertools.pairwise(source)))
    best = sorted(known.items(), key=lambda item: -item[1])
    limits, made = Limits(max_tokens=4, stop_at_end=may_end), model.pattern(PatternConfig(regex=pattern))
    (writer,) = model.writers(1, SamplingConfig(), limits, 0, made, CopyGuard(index, model.tokenizer, 1))
    found = model.search("ab", writer, beams=100, keep=3)
    assert [one.text for one in found] == [text for text, _ in best[:3]] and len(best) > 3
    assert [mean_log_prob(one) for one in found] == pytest.approx([mean for _, mean in best[:3]], abs=1e-5)
    options = dict(max_tokens=4, stop_at_end=may_end, regex=pattern, max_copy=1, copy_source=index)
    assert model.generate("ab", beams=100, **options) == best[0][0]
    texts = [model.generate("ab", temperature=1.0, seed=i, **options) for i in range(30)]
    assert set(texts) <= set(known)
    chosen = model.generate("ab", temperature=1.0, seed=0, best_of=30, **options)
    assert chosen == max(texts, key=lambda text: known[text])


def test_a_pattern_and_a_guard_that_leave_nothing():
    model = make_model()
    options = dict(regex="[ab]{2}", max_copy=1, copy_source=index_of("aabba"))
    for search in ({}, {"best_of": 3}, {"beams": 3}):
        with pytest.raises(UsageError, match="no token is left"):
            model.generate("c", **options, **search)
    # A text that is complete needs no more: it ends where all that may follow would be copied.
    assert model.generate("c", seed=1, regex="a?b?a?|a", max_copy=1, copy_source=index_of("aba")) in ("a", "b", "")


@pytest.mark.parametrize("options", [{}, {"stop_at_end": True}, {"regex": "[ab]{2,5}c?"}])
def test_best_of_keeps_the_highest_mean(options):
    model = make_model()
    regex = options.get("regex")
    limits = Limits(max_tokens=6, stop_at_end=options.get("stop_at_end", False))
    known = all_texts(model, 6, limits.stop_at_end, regex)
    texts = [model.generate("ab", seed=3 + i, max_tokens=6, **options) for i in range(8)]
    ranked = sorted(texts, key=lambda text: -known[text])
    assert model.generate("ab", best_of=8, seed=3, max_tokens=6, **options) == ranked[0]
    writers = model.writers(8, SamplingConfig(), limits, 3, model.pattern(PatternConfig(regex=regex)))
    kept = model.write_best("ab", writers, 3)
    assert [one.text for one in kept] == ranked[:3]
    assert [mean_log_prob(one) for one in kept] == pytest.approx([known[text] for text in ranked[:3]], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"beams": 2, "best_of": 2}, "cannot go together"), ({"beams": 0}, "beams must be between 1"),
        ({"best_of": 5000}, "best-of must be between"),
        ({"beams": 2, "temperature": 0.5, "top_k": 3}, "temperature, top_k"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(options, problem):
    with pytest.raises(UsageError, match=problem):
        make_model().generate("ab", **options)
