"""Merge dropout: the same bytes in other tokens, as often as it says, and the same again after a stop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textlstm.corpus import LaneReader, MergeDropout
from textlstm.corpus.merge_dropout import split
from textlstm.tokenizer import BPETokenizer, make_tokenizer

TEXT = "the other mother and the father of the brother, and then there was another one of them\n" * 40
TOKENIZER = BPETokenizer.train(TEXT, 320)
PARTS_V2 = TOKENIZER.parts()


def reference(id, rate, random):
    """The obvious way: a token falls apart, and then its parts may, one after the other."""
    if PARTS_V2[id, 0] < 0 or random.random() >= rate:
        return [id]
    return [piece for part in PARTS_V2[id].tolist() for piece in reference(part, rate, random)]


def expected_length(id, rate):
    """Tokens that a token becomes on average."""
    if PARTS_V2[id, 0] < 0:
        return 1.0
    return 1 - rate + rate * sum(expected_length(part, rate) for part in PARTS_V2[id].tolist())


def test_parts_are_what_a_token_was_merged_from():
    assert (PARTS_V2[:256] == -1).all() and (PARTS_V2[256:] >= 0).all() and len(PARTS_V2) == TOKENIZER.vocab_size
    for id in range(256, TOKENIZER.vocab_size):
        assert b"".join(map(TOKENIZER.token_bytes, PARTS_V2[id].tolist())) == TOKENIZER.token_bytes(id)
    for name in ("char", "byte"):
        assert (make_tokenizer(name, TEXT, 300).parts() == -1).all()


@given(st.text(alphabet="the oandrmwfs,\n", max_size=80), st.floats(0, 0.99), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_the_text_stays_the_same(text, rate, seed):
    ids = TOKENIZER.encode(text)
    fallen = split(ids, PARTS_V2, rate, np.random.default_rng(seed))
    assert TOKENIZER.decode_bytes(fallen) == text.encode() and len(fallen) >= len(ids)
    again = split(ids, PARTS_V2, rate, np.random.default_rng(seed))
    assert (fallen == again).all() and fallen.dtype == np.int32


def test_certain_and_impossible():
    ids = TOKENIZER.encode(TEXT)
    assert split(ids, PARTS_V2, 1.0, np.random.default_rng(0)).tolist() == list(TEXT.encode())
    assert split(ids, PARTS_V2, 0.0, np.random.default_rng(0)).tolist() == ids.tolist()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_as_often_as_the_obvious_way(rate):
    ids, random = np.tile(TOKENIZER.encode(TEXT), 20), np.random.default_rng(3)
    ours = np.bincount(split(ids, PARTS_V2, rate, random), minlength=len(PARTS_V2))
    obvious = np.bincount(
        [piece for id in ids.tolist() for piece in reference(id, rate, random)], minlength=len(PARTS_V2)
    )
    assert ours.sum() == pytest.approx(sum(expected_length(id, rate) for id in ids.tolist()), rel=0.01)
    # Two counts with about the same mean differ by 5 standard deviations of their difference in 1 of 1,700,000 cases.
    assert (np.abs(ours - obvious) <= 5 * np.sqrt(ours + obvious + 1)).all()
    assert (ours[256:] > 0).sum() > 25


def test_the_rate_falls_to_nothing_at_four_fifths():
    dropout = MergeDropout(PARTS_V2, 0.2, 1000)
    assert [dropout.rate_at(step) for step in (0, 400, 800, 1000)] == pytest.approx([0.2, 0.1, 0.0, 0.0])
    ids = TOKENIZER.encode(TEXT)
    assert dropout.applied(ids, 800, np.random.default_rng(0)) is ids


def test_long_texts_fall_apart_in_stretches(monkeypatch):
    monkeypatch.setattr("textlstm.corpus.merge_dropout._CHUNK", 100)
    ids = TOKENIZER.encode(TEXT)
    fallen = MergeDropout(PARTS_V2, 0.5, 10).applied(ids, 0, np.random.default_rng(0))
    assert TOKENIZER.decode_bytes(fallen) == TEXT.encode() and len(fallen) > 1.3 * len(ids)


def reader(rate, steps, seed=5):
    ids, dropout = TOKENIZER.encode(TEXT), MergeDropout(PARTS_V2, rate, steps)
    return LaneReader(ids, 2, 16, 0.5, seed, 319, np.arange(320) == ord("\n"), dropout)


def batches(reader, number):
    return [next(reader).x_BT.tolist() for _ in range(number)]


def test_each_pass_reads_other_tokens_and_the_last_ones_whole():
    whole = LaneReader(TOKENIZER.encode(TEXT), 2, 16, 0.5, 5, 319, np.arange(320) == ord("\n"))
    ours, lengths = reader(0.5, 200), []
    for _ in range(200):
        next(ours)
        if not lengths or lengths[-1][0] != ours.epoch:
            lengths.append((ours.epoch, ours.lane_len))
    counts = [length for _, length in lengths]
    assert len(set(counts[:3])) == 3 and counts[0] > counts[2] > counts[-1] == whole.lane_len


def test_what_was_left_out_of_a_pass_is_the_same_after_a_stop():
    whole = batches(reader(0.4, 300), 250)
    for stop in (0, 1, 40, 111, 249):
        first = reader(0.4, 300)
        began, state = batches(first, stop), first.state_dict()
        second = reader(0.4, 300)
        second.load_state_dict(state)
        assert began + batches(second, 250 - stop) == whole


def test_without_a_rate_nothing_changes():
    """The reader's own random numbers are not touched: runs of before stay what they were."""
    plain = LaneReader(TOKENIZER.encode(TEXT), 2, 16, 0.5, 5, 319, np.arange(320) == ord("\n"))
    assert batches(reader(0.0, 300), 120) == batches(plain, 120)
