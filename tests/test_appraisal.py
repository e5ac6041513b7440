"""What the rule behind --minutes knows of a text, against the definitions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textlstm import appraisal
from textlstm.appraisal import anchor, appraise, change, token_costs
from textlstm.autopilot import ENGLISH, candidate_sizes
from textlstm.config import CorpusConfig
from textlstm.corpus import Rows, read_corpus
from textlstm.tokenizer import BPETokenizer

VARIED = "".join(f"{k * 7919 % 1009} of the {k * k % 499}th inn by the sea\n" for k in range(4000))


@pytest.mark.parametrize("most", [1000, 500_000])
def test_lengths_of_tokens_are_those_that_each_vocabulary_gives(tmp_path, monkeypatch, most):
    (tmp_path / "book.txt").write_text(VARIED)
    corpus = read_corpus([str(tmp_path / "book.txt")], CorpusConfig(val_chars=1000, dev_fraction=0.0))
    monkeypatch.setattr(appraisal, "_MEASURED_CHARS", most)
    documents = corpus.excerpt(most)
    chars = sum(map(len, documents))
    assert 0.9 * min(most, corpus.train.num_chars) <= chars <= 1.1 * min(most, corpus.train.num_chars)
    text = appraise(corpus, own=True)
    assert text.chars == corpus.train.num_chars and text.lengths == {
        size: chars / sum(1 + len(trained.encode(document)) for document in documents)
        for size in (320, 512, 1024, 2048, 4096)
        for trained in [BPETokenizer.train(documents, size)]
    }
    assert appraise(corpus, own=False) == dataclasses.replace(text, lengths=ENGLISH, costs={})


def test_lengths_of_the_tokens_of_many_documents_are_those_of_some(monkeypatch):
    """Every third row is counted, each with its boundary."""
    rows = [{"text": f"{k % 89} inns, {k % 7} lamps"} for k in range(600)]
    corpus = read_corpus([Rows(rows)], CorpusConfig(val_chars=100, dev_fraction=0.0))
    monkeypatch.setattr(appraisal, "_MEASURED_DOCUMENTS", 250)
    documents = corpus.excerpt(500_000)
    assert len(documents) > 500
    trained = BPETokenizer.train(documents, 320)
    counted = documents[::3]
    expected = sum(map(len, counted)) / sum(1 + len(trained.encode(row)) for row in counted)
    assert appraise(corpus, own=True).lengths[320] == expected


@pytest.mark.parametrize(
    ("documents", "share"),
    [
        (["abcdefghi\n" * 50_000 + "12345678\n" * 12_000], 96 / 608),  # an index at the end of a book
        (["12x" if k % 2 else "abc456" for k in range(4000)], 5 / 9),
        (["abcdefghij" * 6_000, *["12345abcde" * 10] * 400], 0.2),  # a novel and its notes
    ],
)
def test_the_share_of_digits_is_told_by_all_of_a_text(documents, share):
    rows = [{"text": document} for document in documents]
    corpus = read_corpus([Rows(rows)], CorpusConfig(val_fraction=0.0, dev_fraction=0.0))
    assert appraise(corpus, own=False).digits == pytest.approx(share, abs=0.01)


def test_a_text_of_other_words_in_each_part_changes():
    """Ten chapters, each in signs of its own, and the same lines in a mixed order."""
    draw = np.random.default_rng(0)
    lines = [
        "".join(chr(0x61 + (chapter * 5 + sign) % 50) for sign in draw.integers(0, 5, 60))
        for chapter in range(10)
        for _ in range(60)
    ]
    sorted_, mixed = (
        read_corpus([Rows([{"text": "\n".join(order)}])], CorpusConfig(val_fraction=0.0, dev_fraction=0.0))
        for order in (lines, list(draw.permutation(lines)))
    )
    assert appraise(sorted_, own=False).change > 1.5 and appraise(mixed, own=False).change == pytest.approx(
        1, abs=0.05
    )


def test_change_is_what_a_part_costs_as_a_whole_over_what_it_costs_in_pieces():
    draw = np.random.default_rng(0)
    same = draw.integers(0, 40, 20_000).astype(np.int32)
    assert change(same, 40) == pytest.approx(1, abs=0.02)
    parts = [same[2000 * k : 2000 * (k + 1)] % 8 + 4 * k for k in range(10)]  # each shares half of its ids
    ids = np.concatenate(parts)
    whole = [anchor(np.concatenate(parts[:k] + parts[k + 1 :]), parts[k], 44, 2000) for k in range(10)]
    pieces = [ids[start : start + 300] for start in range(0, 20_000, 300)]
    rest = np.concatenate([piece for k, piece in enumerate(pieces) if k % 10 != 5])
    left_out = np.concatenate(pieces[5::10])
    expected = sum(whole) / 10 / anchor(rest, left_out, 44, len(left_out))
    assert change(ids, 44) == pytest.approx(expected) and expected > 1.2
    assert change(ids[:9_999], 44) == 1.0  # too short to tell
    assert change(np.ones(400_000, np.int32), 44) == 1.0  # nothing costs anything
    seldom = np.ones(400_000, np.int32)
    seldom[draw.integers(0, 20_000, 20)] = 7  # a fault here and there, all of them in the beginning
    assert change(seldom, 44) == 1.0


def witten_bell(train: list[int], context: tuple[int, ...], token: int, vocab: int) -> float:
    """The probability of a token after a context, straight from the definition."""
    shorter = 1 / vocab if context == () else None
    n = len(context)
    followers = [train[i + n] for i in range(len(train) - n) if tuple(train[i : i + n]) == context]
    lower = shorter if shorter is not None else witten_bell(train, context[1:], token, vocab)
    if not followers:
        return lower
    kinds = len(set(followers))
    return (followers.count(token) + kinds * lower) / (len(followers) + kinds)


@given(
    st.integers(2, 5).flatmap(
        lambda v: st.tuples(
            st.just(v),
            st.lists(st.integers(0, v - 1), max_size=60),
            st.lists(st.integers(0, v - 1), min_size=3, max_size=20),
        )
    )
)
def test_the_anchor_is_an_interpolated_trigram_model(case):
    vocab, train, held_out = case
    costs = [
        -math.log(witten_bell(train, tuple(held_out[i - 2 : i]), held_out[i], vocab)) for i in range(2, len(held_out))
    ]
    total = sum(witten_bell(train, tuple(held_out[:2]), token, vocab) for token in range(vocab))
    assert total == pytest.approx(1)
    train, held_out = np.array(train, dtype=np.int32), np.array(held_out, dtype=np.int32)
    found = anchor(train, held_out, vocab, 7)
    assert found == pytest.approx(sum(costs) / len(costs) * len(held_out) / 7)
    for n, p_M in zip(range(6), appraisal._interpolated(train, held_out, vocab), strict=False):
        expected = [
            witten_bell(list(train), tuple(held_out[max(0, i - n) : i]), held_out[i], vocab)
            for i in range(len(held_out))
        ]
        assert p_M == pytest.approx(expected)


@pytest.mark.parametrize("cut", [1, 7])
def test_costs_by_counts_are_those_of_the_best_order(cut, monkeypatch):
    """Against the definition, on pieces of 2,000 characters of which the sixth of each ten is left out."""
    monkeypatch.setattr(appraisal, "_LEAST_COUNTED", 24_000)
    draw = np.random.default_rng(0)
    words = ["".join(map(chr, draw.integers(97, 105, draw.integers(2, 7)))) for _ in range(40)]
    text = " ".join(words[k] for k in draw.integers(0, 40, 6_000))[:24_000]
    length = len(text) // cut
    documents = [text[at : at + length] for at in range(0, len(text), length)]
    text, sizes = "\n".join(documents), (288, 320, 512)
    largest = BPETokenizer.train(text, 512)
    found = token_costs(documents, largest, sizes)
    pieces = [text[at : at + 2_000] for at in range(0, len(text), 2_000)]
    for size in sizes:
        tokenizer = largest.cut(size)
        seen = np.concatenate([tokenizer.encode(p) for k, p in enumerate(pieces) if k % 10 != 5]).tolist()
        asked = np.concatenate([tokenizer.encode(p) for k, p in enumerate(pieces) if k % 10 == 5]).tolist()
        followers = {}  # of each context: what followed it, and how often
        for n in range(4):
            for i in range(n, len(seen)):
                counts = followers.setdefault(tuple(seen[i - n : i]), {})
                counts[seen[i]] = counts.get(seen[i], 0) + 1

        def probability(context, token, size=size, followers=followers):
            lower = 1 / size if not context else probability(context[1:], token)
            counts = followers.get(context, {})
            total = sum(counts.values()) + len(counts)
            return lower if not counts else (counts.get(token, 0) + len(counts) * lower) / total

        by_order = [
            -sum(math.log(probability(tuple(asked[max(0, i - n) : i]), asked[i])) for i in range(len(asked)))
            for n in range(4)
        ]
        assert min(by_order) < by_order[-1]  # longer contexts are no help here
        assert found[size] == pytest.approx(min(by_order) / sum(map(len, pieces[5::10])))
    assert token_costs([text[:23_999]], largest, sizes) == {}


def test_longer_n_grams_are_asked_until_they_cost_more(monkeypatch):
    """Not for the cheapest of all: the third of these costs more than the second, whatever comes after it."""
    nats = [3.0, 1.0, 2.0, 0.5]
    monkeypatch.setattr(appraisal, "_interpolated", lambda *text: (np.exp([-cost]) for cost in nats))
    assert appraisal._of_best_order([], [], 2) == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["a" * 20_000, (" " + "a" * 1_999) * 60])
def test_pieces_of_a_few_tokens_cost_next_to_nothing(text, monkeypatch):
    """N-grams of more tokens than there are: none is found, and nothing fails."""
    monkeypatch.setattr(appraisal, "_LEAST_COUNTED", 20_000)
    largest = BPETokenizer.train(text, 320)
    assert token_costs([text], largest, (288, 320)) == {288: 0.01, 320: 0.01}


def test_n_grams_are_counted_where_they_may_decide(tmp_path, monkeypatch):
    """Of a million characters, of an own vocabulary whose size is to be chosen."""
    monkeypatch.setattr(appraisal, "_LEAST_COUNTED", 20_000)
    monkeypatch.setattr(appraisal, "_MEASURED_CHARS", 10_000)
    draw = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text("".join(map(chr, draw.integers(97, 105, 30_000))))
    corpus = read_corpus([str(tmp_path / "text.txt")], CorpusConfig(dev_fraction=0.0))
    text = appraise(corpus, own=True)
    largest = BPETokenizer.train(corpus.excerpt(10_000), 4096)
    assert text.costs and text.costs == token_costs(corpus.excerpt(10**6), largest, candidate_sizes(text))
    assert appraise(corpus, own=True, chosen=False) == dataclasses.replace(text, costs={})
    assert appraise(corpus, own=False).costs == {}
