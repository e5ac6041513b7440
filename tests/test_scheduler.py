"""Continuous batching against texts written alone, with tiny random models."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_generation import LETTERS, make_model
from test_network import log_softmax

from textlstm import metrics
from textlstm.config import SamplingConfig
from textlstm.engine import Engine
from textlstm.errors import BusyError, DivergedError, UsageError
from textlstm.generation import Limits, Writer
from textlstm.server.scheduler import PIECE, ROUND, Job, News, Repetition, Scheduler, Text, measure

MODEL = make_model()


class Watched(Engine):
    """An engine that tells what it is asked, waits where told to, and breaks where told to."""

    name = "watched"

    def __init__(self, model=MODEL):
        super().__init__(model.config)
        self.inner, self.calls = model.engine, []
        self.gate, self.broken = threading.Event(), False
        self.gate.set()

    def run(self, ids_BT, state, positions_P):
        assert self.gate.wait(30)
        if self.broken:
            raise ValueError("broken")
        self.calls.append(ids_BT.shape)
        return self.inner.run(ids_BT, state, positions_P)


class Desk:
    """A scheduler, and everything that it told."""

    def __init__(self, engine=None, **options):
        self.news: list[News] = []
        self._told = threading.Condition()
        self.scheduler = Scheduler(MODEL.engine if engine is None else engine, self._note, **options)

    def _note(self, news):
        with self._told:
            self.news += news
            self._told.notify_all()

    def wait(self, jobs, seconds=30.0):
        """Until every text of the jobs has ended, or the job failed."""
        with self._told:
            assert self._told.wait_for(lambda: all(map(self.ended, jobs)), seconds)

    def wait_for(self, condition, seconds=30.0):
        with self._told:
            assert self._told.wait_for(condition, seconds)

    def ended(self, job):
        mine = [n for n in self.news if n.job is job]
        return any(n.error for n in mine) or all(
            any(n.number == number and n.reason for n in mine) for number in (range(len(job.texts)) or [-1])
        )

    def run(self, *jobs):
        self.scheduler.submit(jobs)
        self.wait(jobs)
        return [["".join(n.text for n in self.of(job, k)) for k in range(len(job.texts))] for job in jobs]

    def of(self, job, number):
        return [n for n in self.news if n.job is job and n.number == number]

    def error(self, job):
        return next(n.error for n in self.news if n.job is job and n.error)


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.scheduler.close()


def text(seed=0, limits=None, sampling=None, model=MODEL, **extra):
    limits = Limits(max_tokens=20) if limits is None else limits
    sampling = SamplingConfig() if sampling is None else sampling
    shape = model.config.vocab_size, model.config.boundary_id
    return Text(Writer(model.tokenizer, *shape, sampling, limits, seed), **extra)


def job(prompt="abc", texts=None, owner=None, **extra):
    ids = MODEL.tokenizer.encode(prompt).astype(np.int64)
    texts = [text()] if texts is None else texts
    return Job(object() if owner is None else owner, ids, texts, **extra)


def stranger(number):
    """A request like no other: prompt, options, and the same text written alone."""
    rng = np.random.default_rng(number)
    prompt = "".join(rng.choice(list(LETTERS), rng.integers(0, 200)))
    limits = {"max_tokens": int(rng.integers(0, 60)), "stop_at_end": bool(number % 2)}
    sampling = [{}, {"temperature": 0.0}, {"top_k": 5, "repetition_penalty": 1.3}, {"top_p": 0.7, "min_p": 0.1}][
        number % 4
    ]
    alone = MODEL.generate(prompt, seed=number, **limits, **sampling)
    writer = text(number, Limits(**limits), SamplingConfig(**sampling))
    writer.writer.row.read(MODEL.tokenizer.encode(prompt))
    return job(prompt, [writer]), alone


def test_among_63_strangers_as_alone(desk):
    jobs, alone = zip(*map(stranger, range(64)), strict=True)
    for part in range(0, 64, 7):  # they come while others are being written
        told = len(desk.news)
        desk.scheduler.submit(jobs[part : part + 7])
        desk.wait_for(lambda told=told: len(desk.news) > told)
    desk.wait(jobs)
    together = ["".join(n.text for n in desk.of(j, 0)) for j in jobs]
    assert together == list(alone)
    assert [j.texts[0].writer.text for j in jobs] == list(alone)
    assert desk.scheduler.running == desk.scheduler.waiting == 0
    assert desk.scheduler.counts.prompt_tokens == sum(len(j.ids) for j in jobs)
    assert desk.scheduler.counts.written_tokens == sum(j.texts[0].writer.tokens for j in jobs)


def test_one_row_at_a_time_as_all_at_once():
    desk = Desk(max_rows=1)
    jobs, alone = zip(*map(stranger, range(12)), strict=True)
    assert [written for (written,) in desk.run(*jobs)] == list(alone)
    desk.scheduler.close()


def test_many_texts_of_one_prompt(desk):
    (written,) = desk.run(job("hallo", [text(seed) for seed in range(5)]))
    assert written == [MODEL.generate("hallo", seed=seed, max_tokens=20) for seed in range(5)]
    assert len(set(written)) == 5


def test_long_prompt_does_not_hold_up_others():
    engine = Watched()
    desk = Desk(engine)
    engine.gate.clear()
    long = [job("abcdefghij" * 1000) for _ in range(2)]
    short = [job("ab", [text(seed, Limits(max_tokens=100))]) for seed in range(3)]
    desk.scheduler.submit(long)
    desk.scheduler.submit(short)
    engine.gate.set()
    desk.wait(long + short)
    desk.scheduler.close()
    last = max(i for i, n in enumerate(desk.news) if n.job in short)
    assert all(i > last for i, n in enumerate(desk.news) if n.job in long), "the short ones were done first"
    steps = [i for i, (B, T) in enumerate(engine.calls) if (B, T) == (3, 1)]
    between = [engine.calls[a + 1 : b] for a, b in itertools.pairwise(steps)]
    assert max(sum(B * T for B, T in calls) for calls in between) <= ROUND
    assert max(T for _, T in engine.calls) == PIECE
    assert [desk.of(j, 0)[-1].reason for j in long] == ["length"] * 2
    assert long[0].texts[0].writer.text == MODEL.generate("abcdefghij" * 1000, seed=0, max_tokens=20)


def test_requests_take_turns():
    engine = Watched()
    desk = Desk(engine, max_rows=2)
    engine.gate.clear()
    greedy = [job(owner="many") for _ in range(40)]
    modest = [job(owner=f"one {i}") for i in range(3)]
    desk.scheduler.submit(greedy)
    for one in modest:
        desk.scheduler.submit([one])
    assert desk.scheduler.waiting <= 4
    engine.gate.set()
    desk.wait(greedy + modest)
    desk.scheduler.close()
    order = [n.job.owner for n in desk.news if n.number == 0 and n.reason]
    assert max(order.index(f"one {i}") for i in range(3)) <= 10


def test_a_full_queue_refuses():
    engine = Watched()
    desk = Desk(engine, max_rows=1, max_queue=3)
    engine.gate.clear()
    first = job()
    desk.scheduler.submit([first])
    while desk.scheduler.waiting:
        time.sleep(0.001)
    jobs = [job() for _ in range(3)]
    for one in jobs:
        desk.scheduler.submit([one])
    with pytest.raises(BusyError, match="3 requests are waiting"):
        desk.scheduler.submit([job()])
    assert desk.scheduler.counts.refused == 1
    engine.gate.set()
    desk.wait([first, *jobs])
    desk.scheduler.close()


def test_more_texts_than_rows_are_refused(desk):
    with pytest.raises(UsageError, match="at most 256"):
        desk.scheduler.submit([job(texts=[text(seed) for seed in range(257)])])


@pytest.mark.parametrize("place", ["queued", "reading", "writing"])
def test_cancelled_jobs_leave(place):
    engine = Watched()
    desk = Desk(engine, max_rows=2)
    endless = Limits(max_tokens=10**9)
    mate = job("mate", [text(5, Limits(max_tokens=200))])
    gone = job("ab" * (20_000 if place == "reading" else 2), [text(1, endless)])
    filler = job("f", [text(2, endless)])
    jobs = [mate, filler, gone] if place == "queued" else [mate, gone]
    desk.scheduler.submit(jobs)
    desk.wait_for(lambda: desk.of(mate, 0) and (place != "writing" or desk.of(gone, 0)))
    desk.scheduler.cancel([gone, filler])
    desk.wait([mate])
    deadline = time.monotonic() + 10
    while desk.scheduler.running or desk.scheduler.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    told = len(desk.news)
    assert mate.texts[0].writer.text == MODEL.generate("mate", seed=5, max_tokens=200)
    assert desk.scheduler.counts.cancelled == (2 if place == "queued" else 1)
    assert not any(n.reason == "deadline" or n.error for n in desk.news)
    desk.scheduler.close()
    assert len(desk.news) == told


def test_deadlines(desk):
    endless = Limits(max_tokens=10**9, stop=("no such string",))
    late = job(texts=[text(limits=endless)], deadline=time.monotonic() + 0.15)
    mate = job("mate", [text(3, Limits(max_tokens=50))])
    written, _ = desk.run(late, mate)
    assert desk.of(late, 0)[-1].reason == "deadline"
    alone = MODEL.generate("abc", seed=0, max_tokens=len(written[0]))
    assert written[0] == alone and len(alone) > 10
    assert mate.texts[0].writer.text == MODEL.generate("mate", seed=3, max_tokens=50)
    never = job(deadline=time.monotonic() - 1)
    desk.run(never)
    assert isinstance(desk.error(never), BusyError) or desk.of(never, 0)[-1].reason == "deadline"


def test_a_poisoned_row_harms_no_other(desk):
    logits, state = MODEL.engine.begin(1)
    poisoned = job("", start=(np.full_like(logits, np.nan), state))
    empty = job(texts=[text(allowed=[])])
    mates = [job("mate", [text(seed)]) for seed in range(6)]
    desk.run(*mates[:3], poisoned, empty, *mates[3:])
    assert isinstance(desk.error(poisoned), DivergedError)
    assert isinstance(desk.error(empty), UsageError)
    assert [m.texts[0].writer.text for m in mates] == [
        MODEL.generate("mate", seed=seed, max_tokens=20) for seed in range(6)
    ]


def test_a_broken_engine_fails_its_round_only(caplog):
    engine = Watched()
    desk = Desk(engine)
    engine.broken = True
    one = job()
    desk.run(one)
    assert isinstance(desk.error(one), ValueError)
    engine.broken = False
    other = job()
    assert desk.run(other) == [[MODEL.generate("abc", seed=0, max_tokens=20)]]
    desk.scheduler.close()
    assert "round failed" in caplog.text


def test_drain_ends_what_is_late_and_takes_nothing_new(desk):
    endless, short = job(texts=[text(limits=Limits(max_tokens=10**9))]), job()
    desk.scheduler.submit([endless, short])
    desk.scheduler.drain(time.monotonic() + 0.2)
    with pytest.raises(BusyError, match="shutting down"):
        desk.scheduler.submit([job()])
    desk.wait([endless, short])
    assert desk.of(short, 0)[-1].reason == "length"
    assert isinstance(desk.error(endless), BusyError)


def test_close_tells_everyone():
    engine = Watched()
    desk = Desk(engine, max_rows=1)
    jobs = [job(texts=[text(limits=Limits(max_tokens=10**9))]) for _ in range(3)]
    desk.scheduler.submit(jobs)
    desk.scheduler.close()
    assert all(isinstance(desk.error(one), BusyError) for one in jobs)


# --- what is measured and kept --------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_measure_is_log_softmax(seed, top):
    rng = np.random.default_rng(seed)
    logits_NV = rng.normal(0, 3, (5, 23)).astype(np.float32)
    if seed % 3 == 0:
        logits_NV = np.round(logits_NV)  # with ties
    ids_N = rng.integers(0, 23, 5)
    expected_NV = log_softmax(logits_NV)
    for n, token in enumerate(measure(logits_NV, ids_N, top)):
        assert token.id == ids_N[n] and token.logprob == pytest.approx(expected_NV[n, ids_N[n]], abs=1e-12)
        order = sorted(range(23), key=lambda id: (-expected_NV[n, id], id))[:top]
        assert sorted(id for id, _ in token.top) == sorted(order) or seed % 3 == 0
        assert [value for _, value in token.top] == pytest.approx([expected_NV[n, id] for id in order], abs=1e-12)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 150])
def test_a_measured_prompt_costs_what_score_says(desk, length):
    prompt = (LETTERS * 8)[:length]
    one = job(prompt, [], top=3)
    desk.run(one)
    tokens = [token for n in desk.of(one, -1) for token in n.tokens]
    nats = metrics.token_nats(MODEL.engine, MODEL.tokenizer.encode(prompt))
    np.testing.assert_allclose([-t.logprob for t in tokens], nats, rtol=1e-5)
    assert [t.id for t in tokens] == MODEL.tokenizer.encode(prompt).tolist()
    assert all(len(t.top) == 3 for t in tokens)


def test_written_tokens_are_measured_before_the_options(desk):
    one = job("abc", [text(1, top=2, sampling=SamplingConfig(temperature=0.3, top_k=2)), text(2)], top=0)
    (written,) = desk.run(one)
    tokens = [token for n in desk.of(one, 0) for token in n.tokens]
    nats = metrics.token_nats(MODEL.engine, MODEL.tokenizer.encode("abc" + written[0]))
    np.testing.assert_allclose([-t.logprob for t in tokens], nats[3:], rtol=1e-5)
    assert all(len(t.top) == 2 for t in tokens)
    assert not any(n.tokens for n in desk.of(one, 1)), "nobody asked for these"


@pytest.mark.parametrize("first", [0, 1, 17])
def test_a_text_goes_on_from_where_it_was_kept(desk, first):
    whole = MODEL.generate("hallo", temperature=0, max_tokens=40)
    greedy = SamplingConfig(temperature=0)
    begun = job("hallo", [text(limits=Limits(max_tokens=first), sampling=greedy)], keep=True)
    ((head,),) = desk.run(begun)
    (point,) = [n.point for n in desk.news if n.point is not None]
    ((tail,),) = desk.run(job("", [text(limits=Limits(max_tokens=40 - first), sampling=greedy)], start=point))
    assert head + tail == whole and len(head) == first


# --- what a text may be told ----------------------------------------------------------------------------------------


def test_bias_bans_and_forces(desk):
    banned = dict.fromkeys(range(10), -100.0)
    ((without,), (forced,)) = desk.run(
        job(texts=[text(bias=banned, limits=Limits(max_tokens=80))]), job(texts=[text(bias={7: 100.0})])
    )
    assert not set(without) & set(LETTERS[:10]) and set(without) & set(LETTERS[10:])
    assert forced == LETTERS[7] * 20


def test_only_allowed_ids(desk):
    ((written,),) = desk.run(job(texts=[text(allowed=[3, 5, 22], limits=Limits(max_tokens=80))]))
    assert set(written) == {LETTERS[3], LETTERS[5]}


def test_stop_ids_and_least_number_of_tokens(desk):
    alone = MODEL.generate("abc", seed=0, max_tokens=60)
    stop = MODEL.tokenizer.encode(alone[5:6])[0]
    ((written,), (longer,)) = desk.run(
        job(texts=[text(stop_ids=frozenset([stop]), limits=Limits(max_tokens=60))]),
        job(texts=[text(stop_ids=frozenset([stop]), limits=Limits(max_tokens=60), min_tokens=30)]),
    )
    assert written == alone[: alone.index(alone[5])]
    assert len(longer) >= 30 and alone[5] not in longer


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 4), st.integers(0, 4), st.integers(2, 4))
def test_circles_are_noticed_where_they_close(ids, least, more, times):
    seen = Repetition(least, least + more, times)
    for end in range(1, len(ids) + 1):
        sizes = [size for size in range(least, least + more + 1) if size * times <= end]
        closed = any(ids[end - size * times : end] == ids[end - size : end] * times for size in sizes)
        assert seen.push(ids[end - 1]) == closed


def test_a_text_that_goes_in_circles_ends(desk):
    stuck = {"sampling": SamplingConfig(temperature=0), "bias": {7: 100.0}}
    limits = Limits(max_tokens=60)
    one = job(texts=[text(limits=limits, repetition=(2, 5, 3), **stuck), text(limits=limits, **stuck)])
    ((short, long),) = desk.run(one)
    assert (short, long) == (LETTERS[7] * 6, LETTERS[7] * 60)
    assert one.texts[0].stopped_by == "repetition" and desk.of(one, 0)[-1].reason == "stop"


def test_the_end_does_not_come_early(desk):
    limits = Limits(max_tokens=200, stop_at_end=True)
    (early,), (late,) = desk.run(job(texts=[text(limits=limits)]), job(texts=[text(limits=limits, min_tokens=150)]))
    assert len(early) < 150 <= len(late)
