"""Merge dropout: the same bytes in other tokens, as often as it says, and the same again after a stop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textlstm.config import CorpusConfig, ModelConfig, TrainConfig
from textlstm.corpus import LaneReader, MergeDropout, read_corpus
from textlstm.corpus.merge_dropout import split
from textlstm.run.loop import lane_reader
from textlstm.tokenizer import BPETokenizer, make_tokenizer
from textlstm.trainer import Callbacks, Trainer

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
    assert dropout.applied(ids, 0.0, np.random.default_rng(0)) is ids


def test_long_texts_fall_apart_in_stretches(monkeypatch):
    monkeypatch.setattr("textlstm.corpus.merge_dropout._CHUNK", 100)
    ids = TOKENIZER.encode(TEXT)
    fallen = MergeDropout(PARTS_V2, 0.5, 10).applied(ids, 0.5, np.random.default_rng(0))
    assert TOKENIZER.decode_bytes(fallen) == TEXT.encode() and len(fallen) > 1.3 * len(ids)


def reader(rate, steps, seed=5):
    ids, dropout = TOKENIZER.encode(TEXT), MergeDropout(PARTS_V2, rate, steps)
    return LaneReader(ids, 2, 16, 0.5, seed, 319, np.arange(320) == ord("\n"), dropout)


def batches(reader, number):
    return [next(reader).x_BT.tolist() for _ in range(number)]


def passes(reader, number):
    """The ids of each pass within some batches."""
    found = {}
    for _ in range(number):
        next(reader)
        found.setdefault(reader.epoch, reader._ids)
    return list(found.values())


def test_each_pass_reads_other_tokens():
    first, second, third = passes(reader(0.5, 10**9), 100)[:3]  # at the same rate but for a ten-millionth
    whole = TOKENIZER.encode(TEXT)
    for one, other in ((first, second), (second, third), (first, third)):
        assert one.tolist() != other.tolist() and TOKENIZER.decode_bytes(one) == TEXT.encode()
        assert len(one) > 1.2 * len(whole)


def test_a_pass_reads_all_of_what_the_text_fell_apart_into():
    """Two lanes of it, less than 8 tokens at the end of each."""
    ours, read = reader(0.5, 10**9), 0
    while ours.epoch < 2:
        read, length = read + next(ours).x_BT.size, len(ours._ids)
        if ours.epoch == 1:
            whole, of_first = length, read
    assert whole - 2 * 8 < of_first <= whole and whole > 1.2 * len(TOKENIZER.encode(TEXT))


def test_the_rate_falls_from_pass_to_pass():
    lengths = [len(ids) for ids in passes(reader(0.5, 300), 300)]
    assert lengths[0] > lengths[2] > lengths[-1] == len(TOKENIZER.encode(TEXT))


@pytest.mark.parametrize("length", [1.0, 2.5])
def test_the_end_of_a_run_reads_whole_tokens_however_few_passes_it_has(length):
    """From 80 % of the steps on, also if no pass ends there."""
    ids = np.tile(TOKENIZER.encode(TEXT), 5)
    steps = round(length * len(ids) / (2 * 16))
    ours = LaneReader(ids, 2, 16, 0.0, 5, 319, np.arange(320) == ord("\n"), MergeDropout(PARTS_V2, 0.5, steps))
    whole = []
    for _ in range(steps):
        next(ours)
        whole.append(ours.stretch == 1.0)
    border = -(-steps * 4 // 5)
    assert not any(whole[:border]) and all(whole[border:])


def test_documents_stay_apart(tmp_path, monkeypatch):
    """The boundary between them is no token that was merged."""
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    for name in ("one.txt", "two.txt", "three.txt"):
        (tmp_path / name).write_text(TEXT)
    corpus = read_corpus([str(tmp_path / name) for name in ("one.txt", "two.txt", "three.txt")], CorpusConfig())
    boundary = TOKENIZER.vocab_size
    model = ModelConfig(vocab_size=boundary + 1, embed_size=8, hidden_size=8)
    tokens = corpus.encode(TOKENIZER, boundary)
    train = TrainConfig(steps=100, batch_size=2, seq_len=16, merge_dropout=0.5)
    assert (tokens.train == boundary).sum() >= 2
    for ids in passes(lane_reader(tokens, TOKENIZER, model, train), 100):
        assert (ids == boundary).sum() == (tokens.train == boundary).sum()


def test_the_training_loss_is_that_of_the_text():
    """Nats per whole token, whatever became of it: a network that knows nothing pays for every piece."""
    flat = TrainConfig(steps=1000, batch_size=2, seq_len=16, lr=1e-12, unigram_bias=False)
    dropout = MergeDropout(PARTS_V2, 0.5, 1000)
    ours = LaneReader(TOKENIZER.encode(TEXT), 2, 16, 0.5, 5, 319, np.arange(320) == ord("\n"), dropout)
    trainer = Trainer(ModelConfig(vocab_size=320, embed_size=8, hidden_size=8), flat, ours, None)
    report = trainer.advance()
    assert ours.stretch > 1.2 and report.nats == pytest.approx(np.log(320) * ours.stretch, rel=0.02)


def test_what_was_left_out_of_a_pass_is_the_same_after_a_stop():
    whole = batches(reader(0.4, 300), 250)
    for stop in (0, 1, 40, 111, 249):
        first = reader(0.4, 300)
        began, state = batches(first, stop), first.state_dict()
        second = reader(0.4, 300)
        second.load_state_dict(state)
        assert began + batches(second, 250 - stop) == whole


def test_a_pass_stays_the_same_when_the_run_is_lengthened_in_it():
    def lengthened(number):
        ours = reader(0.4, 300)
        began = batches(ours, number)
        ours.recount(450)
        return ours, began

    for number in (1, 40, 111):
        first, began = lengthened(number)
        second = reader(0.4, 450)
        second.load_state_dict(first.state_dict())
        rest = batches(first, 449 - number)
        assert began == batches(reader(0.4, 300), number) and batches(second, 449 - number) == rest
        assert first.epoch > 2 and first.stretch == 1.0
    ours, _ = lengthened(111)
    assert next(ours) and ours.stretch > 1.0
    while ours._batches < 300:
        next(ours)
    assert ours.stretch > 1.0  # 80 % of 300 are over, those of 450 are not


def test_a_checkpoint_of_before_says_where_its_pass_began():
    first = reader(0.4, 300)
    batches(first, 111)
    state = first.state_dict()
    began = 111 - next(n for n in range(111) if passed(n) == first.epoch)  # batches of this pass
    del state["merge_dropout"]
    second = reader(0.4, 300)
    second.load_state_dict(state | {"epoch_began": 111 - began})
    assert batches(second, 100) == batches(first, 100)


def passed(number):
    """The pass that a batch belongs to."""
    ours = reader(0.4, 300)
    batches(ours, number + 1)
    return ours.epoch


def test_what_was_fetched_ahead_of_another_number_of_steps_is_fetched_again():
    def nats(ahead, at):
        train = TrainConfig(steps=120, batch_size=2, seq_len=16, jitter=0.5, patience=0, eval_every=1)
        ours = Trainer(ModelConfig(vocab_size=320, embed_size=4, hidden_size=4), train, reader(0.5, 120), None)
        ours._fetches_ahead = ahead
        costs = []
        ours.run(
            Callbacks(
                on_step=lambda report: costs.append((report.epoch, report.nats)),
                recount=lambda step: 90 if step == at else 0,
            )
        )
        return costs

    border = [epoch for epoch, _ in nats(False, 0)].index(2)
    for at in (border - 1, border, border + 1):
        assert nats(False, at) == nats(True, at) and len(nats(True, at)) == 90
    assert nats(True, border) != nats(True, 0)[:90]


def test_without_a_rate_nothing_changes():
    """The reader's own random numbers are not touched: runs of before stay what they were."""
    plain = LaneReader(TOKENIZER.encode(TEXT), 2, 16, 0.5, 5, 319, np.arange(320) == ord("\n"))
    assert batches(reader(0.0, 300), 120) == batches(plain, 120)
