"""Sampling against answers worked out by hand, and against plain loops written from the definitions."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from textlstm import kernels, sampling
from textlstm.config import SamplingConfig
from textlstm.errors import DivergedError, UsageError
from textlstm.sampling import (
    Row,
    dry,
    keep_surprise,
    min_p,
    penalize,
    probabilities,
    sample,
    scale_temperature,
    top_k,
    top_n_sigma,
    top_p,
    typical_p,
    xtc,
)

pytestmark = pytest.mark.filterwarnings("error")

INF = math.inf
P = [0.5, 0.25, 0.15, 0.1]  # most cases below start from these probabilities
LOGITS = [math.log(p) for p in P]


def make_row(V, seed=0, banned=None, prompt=(), written=(), breaks=(), **settings):
    config = SamplingConfig(**{"temperature": 1.0, **settings})
    mask = None if banned is None else np.isin(np.arange(V), banned)
    row = Row(config, np.random.default_rng(seed), V, mask, np.isin(np.arange(V), breaks))
    row.read(prompt)
    for id in written:
        row.wrote(id)
    return row


def distribution(logits, **row):
    """The distribution of a single row."""
    return probabilities(np.array([logits], np.float64), [make_row(len(logits), **row)])[0]


def kept(operator, logits, parameter):
    """The ids that an operator keeps; what it keeps it must not change."""
    out = operator(np.array([logits], np.float64), np.array([parameter]))[0]
    for before, after in zip(logits, out, strict=True):
        assert after in (before, -INF)
    return [i for i, x in enumerate(out) if x > -INF]


# --- by hand -------------------------------------------------------------------------------------------


def test_temperature():
    out = scale_temperature(np.array([[2.0, -1.0], [2.0, -1.0]]), np.array([0.5, 4.0]))
    assert out.tolist() == [[4.0, -2.0], [0.5, -0.25]]
    # T = 1/2 squares the probabilities: .25, .0625, .0225, .01 of a total of .345
    np.testing.assert_allclose(distribution(LOGITS, temperature=0.5), np.array([25, 6.25, 2.25, 1]) / 34.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("k", "ids"), [(0, [0, 1, 2, 3]), (1, [3]), (2, [0, 1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]),
                   (5, [0, 1, 2, 3]), (10**30, [0, 1, 2, 3])]
)  # fmt: skip
def test_top_k_keeps_ties_with_the_kth(k, ids):
    assert kept(top_k, [2.0, 2.0, 1.0, 3.0], k) == ids  # 2.0 is both second and third


@pytest.mark.parametrize(
    # running mass: .5, .75, .9, 1; a token stays if the mass before it is below p
    ("p", "count"), [(0.0, 1), (0.3, 1), (0.6, 2), (0.74, 2), (0.76, 3), (0.89, 3), (0.91, 4), (1.0, 4)]
)  # fmt: skip
def test_top_p(p, count):
    assert kept(top_p, LOGITS, p) == list(range(count))
    assert kept(top_p, LOGITS[::-1], p) == list(range(4 - count, 4))


def test_top_p_of_equal_tokens_is_the_smallest_set():
    # four of 1/4: two reach 1/2, three reach 0.6
    assert kept(top_p, [0.0] * 4, 0.5) == [0, 1]
    assert kept(top_p, [0.0] * 4, 0.6) == [0, 1, 2]
    assert kept(top_p, [0.0] * 4, 0.0) == [0]
    # e^1 and two of e^0: .5761, .2119, .2119; the edge of 0.7 runs between the two equal ones
    assert kept(top_p, [0.0, 1.0, 0.0], 0.7) == [0, 1]


def test_top_p_of_one_keeps_what_rounding_would_lose():
    # The first token's probability rounds to 1, so the mass before the others is 1 already.
    assert kept(top_p, [0.0, -100.0, -200.0], 1.0) == [0, 1, 2]
    assert kept(typical_p, [0.0, -100.0, -200.0], 1.0) == [0, 1, 2]


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_shift_of_all_logits_changes_nothing(shift):
    logits = [x + shift for x in LOGITS]
    assert kept(top_p, logits, 0.6) == [0, 1]
    assert kept(typical_p, logits, 0.2) == [1]
    assert kept(min_p, logits, 0.4) == [0, 1]


@pytest.mark.parametrize(
    # limits m * .5: 0, .12, .2, .45, .5
    ("m", "count"), [(0.0, 4), (0.24, 3), (0.4, 2), (0.9, 1), (1.0, 1)]
)  # fmt: skip
def test_min_p(m, count):
    assert kept(min_p, LOGITS, m) == list(range(count))


def test_min_p_keeps_ties_with_the_likeliest():
    assert kept(min_p, [1.0, 0.0, 1.0], 1.0) == [0, 2]
    assert kept(min_p, [1.0, -INF, 1.0], 0.0) == [0, 2]


@pytest.mark.parametrize(
    # surprise: .6931, 1.3863, 1.8971, 2.3026; entropy .3466 + .3466 + .2846 + .2303 = 1.2080
    # distance: .5149,  .1783,  .6891, 1.0946; so the order is 1, 0, 2, 3 with running mass .25, .75, .9, 1
    ("mass", "ids"), [(0.0, [1]), (0.2, [1]), (0.3, [0, 1]), (0.7, [0, 1]), (0.8, [0, 1, 2]),
                      (0.95, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])]
)  # fmt: skip
def test_typical_p_may_drop_the_likeliest(mass, ids):
    assert kept(typical_p, LOGITS, mass) == ids


def test_penalties():
    out = penalize(
        np.array([[2.0, -1.0, 0.5, 3.0], [2.0, -1.0, 0.5, 3.0]]),
        np.array([2.0, 1.0]), np.array([0.5, 0.0]), np.array([0.25, 0.0]),
        np.array([[True, True, False, True]] * 2), np.array([[0, 2, 0, 1]] * 2),
    )  # fmt: skip
    # 2/2; -1*2 - 2*.5 - .25; not met; 3/2 - .5 - .25. The second row has every penalty off.
    assert out.tolist() == [[1.0, -3.25, 0.5, 0.75], [2.0, -1.0, 0.5, 3.0]]


def test_the_prompt_counts_for_repetition_only():
    # By hand: 2/2 = 1 for the prompt's token; 4/2 - 3*.5 - .25 = .25 for the one written three times.
    logits = [2.0, 4.0, 1.0]
    row = dict(prompt=[0, 0], written=[1, 1, 1])
    row |= dict(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    weights = [math.exp(x) for x in (1.0, 0.25, 1.0)]
    np.testing.assert_allclose(distribution(logits, **row), np.array(weights) / sum(weights), rtol=1e-6)


def test_history_is_kept_only_for_penalties():
    row = make_row(4, prompt=[3, 1, 3], written=[1, 0], presence_penalty=0.1)
    row.read(())
    assert (row.seen.tolist(), row.counts.tolist()) == ([True, True, False, True], [1, 1, 0, 0])
    plain = make_row(4, prompt=[3], written=[1])
    assert plain.seen.size == plain.counts.size == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # temperature first: at T = 1/2 the first token has .7246 and fills .7 alone; at T = 1 only .5
        (dict(temperature=0.5, top_p=0.7), [1, 0, 0, 0]),
        # top_k before typical: 2/3, 1/3 have entropy .6365 and distances .2310, .4621; else both stay
        (dict(top_k=2, typical_p=0.5), [1, 0, 0, 0]),
        # typical before top_p: only token 1 is left; the other way round it would be token 0
        (dict(typical_p=0.2, top_p=0.4), [0, 1, 0, 0]),
        # top_p before min_p: .5 < .6 keeps two; after min_p the first would have 2/3 and be alone
        (dict(top_p=0.6, min_p=0.4), [2 / 3, 1 / 3, 0, 0]),
        # top_k before top_p: of .5, .25, .15 the first has .5556 and fills .52; alone it would not
        (dict(top_k=3, top_p=0.52), [1, 0, 0, 0]),
        # bans come before everything: of .25, .15, .1 the first has half and fills .49
        (dict(banned=[0], top_p=0.49), [0, 1, 0, 0]),
        # penalties before truncation: ln .5 - 1 = ln .184 puts token 0 behind token 1
        (dict(written=[0], presence_penalty=1.0, top_k=1), [0, 1, 0, 0]),
    ],
)
def test_order(settings, expected):
    np.testing.assert_allclose(distribution(LOGITS, **settings), expected, rtol=1e-6)


# --- what is done row by row: DRY, top-n-sigma, XTC, mirostat, other orders ----------------------------------


@pytest.mark.parametrize(
    ("last", "breaks", "settings", "expected"),
    [
        # what ends the text, 1 2, stood before 3: a repeat of 2 tokens, which is allowed, costs 2 * 3^0
        ([1, 2, 3, 0, 1, 2], [], {}, {3: 2}),
        # of two earlier places the longer repeat counts: 0 1 2 stood before 4, and 1 2 before 3
        ([1, 2, 3, 0, 1, 2, 4, 0, 1, 2], [], {}, {3: 2, 4: 6}),
        ([1, 2, 3, 0, 1, 2], [], dict(dry_allowed_length=1), {3: 6}),
        ([1, 2, 3, 0, 1, 2], [], dict(dry_allowed_length=3), {}),
        # a breaker within the repeat cuts it to one token; and a breaker itself is never made less likely
        ([1, 2, 3, 0, 1, 2], [1], {}, {}),
        ([1, 2, 3, 0, 1, 2], [1], dict(dry_allowed_length=1), {3: 2}),
        ([1, 2, 3, 0, 1, 2], [3], {}, {}),
        ([1, 2, 3, 0, 1, 2], [2], dict(dry_allowed_length=1), {}),
        # a repeat may overlap itself: 1 1 1 goes on after 1 1
        ([1, 1, 1], [], {}, {1: 2}),
        ([1], [], {}, {}),
    ],
)
def test_dry(last, breaks, settings, expected):
    config = SamplingConfig(**{"dry_multiplier": 2.0, "dry_base": 3.0, **settings})
    out = dry(np.zeros(5), last, np.isin(np.arange(5), breaks), config)
    assert {i: -x for i, x in enumerate(out.tolist()) if x} == expected


def test_dry_looks_at_a_window_of_prompt_and_text():
    def penalty(**more):
        row = dict(prompt=[1, 2, 3, 0], written=[1, 2], dry_multiplier=1.0, **more)
        probs = distribution([0.0] * 4, **row)
        return math.log(probs[0] / probs[3])

    assert penalty() == pytest.approx(1, rel=1e-5)
    assert penalty(dry_penalty_last_n=6) == pytest.approx(1, rel=1e-5)
    assert penalty(dry_penalty_last_n=5) == penalty(dry_penalty_last_n=0) == 0
    assert penalty(temperature=0.5) == pytest.approx(2, rel=1e-5), "before the temperature"


def test_a_repeat_of_any_length_has_a_finite_price():
    out = dry(np.zeros(2), [1] * 4096, np.zeros(2, bool), SamplingConfig(dry_multiplier=1.0, dry_base=1.5))
    assert out.tolist() == [0, -(1.5**48)]
    assert dry(np.zeros(2), [1] * 9, np.zeros(2, bool), SamplingConfig(dry_multiplier=1.0, dry_base=1e300))[1] == -INF


@pytest.mark.parametrize(
    # 4, 2, 0: mean 2, deviation sqrt(8/3) = 1.633; what was removed does not count
    ("n", "ids"), [(0, [0, 1, 2]), (1, [0]), (1.22, [0]), (1.23, [0, 1]), (2.44, [0, 1]), (2.46, [0, 1, 2])]
)  # fmt: skip
def test_top_n_sigma(n, ids):
    out = top_n_sigma(np.array([4.0, 2.0, 0.0, -INF]), n)
    assert np.flatnonzero(out > -INF).tolist() == ids


@pytest.mark.parametrize(
    # .5, .25, .15, .1
    ("threshold", "ids"), [(0.6, [0, 1, 2, 3]), (0.51, [0, 1, 2, 3]), (0.4, [0, 1, 2, 3]), (0.2, [1, 2, 3]),
                           (0.12, [2, 3]), (0.05, [3]), (0.0, [3])]
)  # fmt: skip
def test_xtc(threshold, ids):
    assert np.flatnonzero(xtc(np.array(LOGITS), threshold) > -INF).tolist() == ids


def test_xtc_happens_as_often_as_it_is_told():
    logits = np.log(np.tile(np.array([0.6, 0.4], np.float32), (600, 1)))
    rows = [make_row(2, seed=seed, xtc_probability=0.25) for seed in range(600)]
    # .25 of all rows draw the less likely token for sure, the others with .4
    assert sample(logits, rows).mean() == pytest.approx(0.25 + 0.75 * 0.4, abs=0.07)


@pytest.mark.parametrize(
    # surprises of 1, 2, 2.737 and 3.322 bits; the likeliest stays always
    ("bits", "count"), [(-5.0, 1), (0.5, 1), (1.9, 1), (2.1, 2), (3.3, 3), (9.0, 4), (1e9, 4)]
)  # fmt: skip
def test_mirostat_truncates_by_surprise(bits, count):
    assert np.flatnonzero(keep_surprise(np.array(LOGITS), bits) > -INF).tolist() == list(range(count))


def test_mirostat_keeps_the_surprise_at_its_target():
    """By hand: after each draw, mu goes down by eta times how much the surprise was above tau."""
    logits = np.log(np.arange(1, 201, dtype=np.float32))[None]
    row = make_row(200, seed=3, mirostat=2, mirostat_tau=3.0, mirostat_eta=0.2, top_k=1, samplers="top_k")
    mu, surprises = 6.0, []
    for _ in range(300):
        probs = np.arange(1, 201) / 20100
        kept = -np.log2(probs) <= mu
        kept[-1] = True
        id = int(sample(logits, [row])[0])
        assert kept[id], "it replaces all truncation"
        surprises.append(-math.log2(probs[id] / probs[kept].sum()))
        mu -= 0.2 * (surprises[-1] - 3.0)
        assert row.most_surprise == pytest.approx(mu, abs=1e-4)
    assert np.mean(surprises[50:]) == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # temperature last: of .5, .25, .15, .1 the first two reach .7; then they are squared
        (dict(temperature=0.5, top_p=0.7, temperature_last=True), [0.8, 0.2, 0, 0]),
        (dict(temperature=0.5, top_p=0.7, samplers="top_p;temperature"), [0.8, 0.2, 0, 0]),
        (dict(temperature=0.5, top_p=0.7, samplers=" temperature , top_p "), [1, 0, 0, 0]),
        # top_p before typical: tokens 0 and 1, whose typical one is the first; typical first leaves token 1 alone
        (dict(typical_p=0.2, top_p=0.6, samplers="top_p;typical_p"), [1, 0, 0, 0]),
        (dict(typical_p=0.2, top_p=0.6, samplers="typ_p;top_p"), [0, 1, 0, 0]),
        # what is not named does nothing
        (dict(temperature=0.5, top_k=1, samplers="min_p", min_p=0.4), [2 / 3, 1 / 3, 0, 0]),
        (dict(top_k=1, xtc_probability=1.0, dry_multiplier=9.0, samplers=""), P),
        # penalties after top_k: token 0 is the only one left, whatever is subtracted from it
        (dict(written=[0], presence_penalty=5.0, top_k=1, samplers="top_k;penalties"), [1, 0, 0, 0]),
        # xtc last: top_k leaves two, of which the likelier is dropped; alone it would leave the last
        (dict(top_k=2, xtc_probability=1.0, xtc_threshold=0.05), [0, 1, 0, 0]),
        (dict(top_n_sigma=1.0), [1, 0, 0, 0]),
        (dict(temperature=0.0, presence_penalty=1.0, written=[0], samplers="top_k;penalties"), [0, 1, 0, 0]),
        (dict(temperature=0.0, presence_penalty=1.0, written=[0], samplers="top_k"), [1, 0, 0, 0]),
        (dict(temperature=0.0, mirostat=2), [1, 0, 0, 0]),
    ],
)
def test_other_orders(settings, expected):
    np.testing.assert_allclose(distribution(LOGITS, **settings), expected, rtol=2e-6)


@settings(deadline=None)
@given(st.data())
def test_row_by_row_equals_all_at_once(data):
    """The usual operators in the usual order, spelt out, draw what is compiled."""
    V = data.draw(st.integers(2, 9))
    logits = np.array([data.draw(st.lists(finite, min_size=V, max_size=V))], np.float32)
    plain = data.draw(sampled_rows(V))
    apart = copy.deepcopy(plain)
    apart.is_plain = False
    np.testing.assert_allclose(probabilities(logits, [apart]), probabilities(logits, [plain]), rtol=3e-5, atol=1e-8)
    assert apart.rng.bit_generator.state == plain.rng.bit_generator.state
    sample(logits, [plain])
    id = int(sample(logits, [apart])[0])
    assert probabilities(logits, [apart])[0, id] > 0
    assert apart.rng.bit_generator.state == plain.rng.bit_generator.state


# --- by definition: plain loops over one row -----------------------------------------------------------
# Weights are whole numbers made in single precision. Where a value stands within 2e-5 of its limit, rounding decides,
# and the case is left out.


def clear(value, limit):
    assume(abs(value - limit) > 2e-5)


def softmax(logits):
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights]


def prefix(probs, order, mass):
    """The tokens before which less than the mass was kept; the first always."""
    chosen, before = set(), 0.0
    for i in order:
        if chosen and mass < 1:
            clear(before, mass)
        if chosen and mass < 1 and before >= mass:
            break
        chosen.add(i)
        before += probs[i]
    return chosen


def ref_top_k(logits, k):
    if k == 0:
        return set(range(len(logits)))
    return {i for i, x in enumerate(logits) if sum(y > x for y in logits) < k}


def ref_top_p(logits, p):
    return prefix(softmax(logits), sorted(range(len(logits)), key=lambda i: (-logits[i], i)), p)


def ref_min_p(logits, m):
    probs = softmax(logits)
    chosen = set()
    for i, p in enumerate(probs):
        if m > 0 and logits[i] < max(logits):
            clear(p, m * max(probs))
        if p >= m * max(probs):
            chosen.add(i)
    return chosen


def ref_typical_p(logits, mass):
    probs = softmax(logits)
    surprise = [-math.log(p) if p > 0 else INF for p in probs]
    entropy = sum(p * s for p, s in zip(probs, surprise, strict=True) if p > 0)
    distance = [abs(s - entropy) for s in surprise]
    order = sorted(range(len(logits)), key=lambda i: (distance[i], i))
    for i, j in pairwise(order):
        if logits[i] != logits[j]:
            clear(distance[i], distance[j])
    return prefix(probs, order, mass)


def ref_distribution(logits, row):
    config, V = row.config, len(logits)
    x = [-INF if row.banned is not None and row.banned[i] else float(logits[i]) for i in range(V)]
    if row.penalized:
        for i in range(V):
            if row.seen[i]:
                x[i] = x[i] / config.repetition_penalty if x[i] > 0 else x[i] * config.repetition_penalty
            if row.counts[i]:
                x[i] = x[i] - row.counts[i] * config.frequency_penalty - config.presence_penalty
    if config.temperature == 0:
        return [float(i == x.index(max(x))) for i in range(V)]
    x = [y / config.temperature for y in x]
    for y, z in pairwise(sorted(set(x) - {-INF})):
        clear(y, z)
    steps = [(ref_top_k, "top_k"), (ref_typical_p, "typical_p"), (ref_top_p, "top_p"), (ref_min_p, "min_p")]
    for operator, field in steps:
        chosen = operator(x, getattr(config, field))
        x = [y if i in chosen else -INF for i, y in enumerate(x)]
    return softmax(x)


quarters = st.integers(-12, 12).map(lambda n: n / 4)  # coarse, so that ties are common
finite = quarters | st.floats(-9, 9).map(lambda x: round(x, 3))
shares = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99))


@st.composite
def blocks(draw, parameter):
    """Logits (B, V) with a finite one in each row, and one parameter per row."""
    B, V = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    row = st.lists(finite | st.just(-INF), min_size=V, max_size=V).filter(lambda xs: max(xs) > -INF)
    logits = draw(st.lists(row, min_size=B, max_size=B))
    return logits, draw(st.lists(parameter, min_size=B, max_size=B))


@pytest.mark.parametrize(
    ("operator", "reference", "parameter"),
    [
        (top_k, ref_top_k, st.integers(0, 11)),
        (top_p, ref_top_p, shares),
        (min_p, ref_min_p, shares),
        (typical_p, ref_typical_p, shares),
    ],
)
def test_operators_follow_their_definition(operator, reference, parameter):
    @settings(deadline=None)
    @given(blocks(parameter))
    def check(block):
        logits, parameters = block
        out = operator(np.array(logits), np.array(parameters))
        for x, p, y in zip(logits, parameters, out, strict=True):
            chosen = reference(x, p)
            assert y.tolist() == [v if i in chosen else -INF for i, v in enumerate(x)]
            assert y.max() > -INF

    check()


@st.composite
def sampled_rows(draw, V):
    ids = st.lists(st.integers(0, V - 1), max_size=4)
    banned = draw(st.none() | st.lists(st.integers(0, V - 1), max_size=V - 1, unique=True))
    return make_row(
        V, seed=draw(st.integers(0, 99)), banned=banned, prompt=draw(ids), written=draw(ids),
        repetition_penalty=draw(st.sampled_from([1.0, 0.8, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.3, -0.2])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7])),
        temperature=draw(st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.5])),
        top_k=draw(st.sampled_from([0, 1, 3, 99])),
        typical_p=draw(st.sampled_from([1.0, 0.37, 0.9])),
        top_p=draw(st.sampled_from([1.0, 0.0, 0.43, 0.87])),
        min_p=draw(st.sampled_from([0.0, 0.03, 0.21])),
    )  # fmt: skip


@settings(deadline=None)
@given(st.data())
def test_distributions_and_draws_follow_their_definition(data):
    B, V = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 9))
    rows = [data.draw(sampled_rows(V)) for _ in range(B)]
    logits = data.draw(st.lists(st.lists(finite, min_size=V, max_size=V), min_size=B, max_size=B))
    block = np.array(logits, np.float32)
    expected = [ref_distribution(x, row) for x, row in zip(block, rows, strict=True)]
    np.testing.assert_allclose(probabilities(block, rows), expected, rtol=3e-5, atol=1e-8)

    uniforms = [np.random.default_rng(row.rng.bit_generator.seed_seq).random() for row in rows]
    ids = sample(block, rows)
    for id, probs, u in zip(ids, expected, uniforms, strict=True):
        assert sum(probs[:id]) - 1e-5 <= u <= sum(probs[: id + 1]) + 1e-5 or probs[id] == 1
        assert probs[id] > 0


# --- the compiled draw ------------------------------------------------------------------------------------


@pytest.mark.skipif(not kernels.kinds(), reason="the kernel does not run on this machine")
@settings(deadline=None, max_examples=200)
@given(st.data())
def test_compiled_draw_equals_the_reference(data):
    """Every bit of it: the same ids from the same numbers, ties and edges included."""
    B, V = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 70) | st.integers(1000, 1100))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    logits = rng.normal(size=(B, V), scale=data.draw(st.sampled_from([0.1, 3.0, 40.0]))).astype(np.float32)
    if data.draw(st.booleans()):
        logits = np.round(logits * 2) / 2  # many ties
    logits[:, 1:][rng.random((B, V - 1)) < 0.1] = -INF
    settings_B = [
        dict(
            temperature=data.draw(st.sampled_from([0.0, 1e-300, 0.3, 0.8, 1.0, 2.5, 1e300])),
            top_k=data.draw(st.sampled_from([0, 1, 3, 40, 10**9])),
            typical_p=data.draw(st.sampled_from([1.0, 1.0, 1e-9, 0.3, 0.9, 0.999999])),
            top_p=data.draw(st.sampled_from([1.0, 0.0, 0.3, 0.5, 0.95, 0.999999])),
            min_p=data.draw(st.sampled_from([0.0, 0.02, 0.5, 1.0])),
            banned=data.draw(st.none() | st.lists(st.integers(1, max(1, V - 1)), max_size=min(9, V - 1))),
            repetition_penalty=data.draw(st.sampled_from([1.0, 1.0, 0.7, 1.3])),
            frequency_penalty=data.draw(st.sampled_from([0.0, 0.0, -0.3, 0.6])),
            presence_penalty=data.draw(st.sampled_from([0.0, 0.0, -1.0, 0.7])),
            prompt=data.draw(st.lists(st.integers(0, V - 1), max_size=9)),
            written=data.draw(st.lists(st.integers(0, V - 1), max_size=9)),
        )
        for _ in range(B)
    ]  # fmt: skip
    mark = data.draw(st.sampled_from([None, 0.0, 1 - 2**-53, 1.0]))

    def rows():
        made = [make_row(V, seed=seed, **settings) for seed, settings in enumerate(settings_B)]
        for row in made if mark is not None else []:
            row.rng = Stuck(mark)
        return made

    expected = sampling.reference(logits, rows()).tolist()
    for kind in kernels.kinds():
        assert sampling._draw(kernels.load(kind), logits, rows()).tolist() == expected
    assert sample(logits, rows()).tolist() == expected


@pytest.mark.skipif(not kernels.kinds(), reason="the kernel does not run on this machine")
@pytest.mark.parametrize("scale", [0.01, 1.5, 6.0])
def test_compiled_draw_equals_the_reference_in_a_large_vocabulary(scale):
    V = 50_257
    logits = np.random.default_rng(1).normal(size=(1, V), scale=scale).astype(np.float32)
    for coarse in (logits, np.round(logits * 4) / 4):
        for truncation in (dict(top_k=40), dict(top_p=0.95), dict(typical_p=0.4, top_p=0.9), dict(typical_p=0.98)):
            for seed in range(3):
                one, other = (make_row(V, seed=seed, **truncation) for _ in range(2))
                assert sample(coarse, [one]).tolist() == sampling.reference(coarse, [other]).tolist()


# --- draws ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    # weights 1..8 as probabilities; critical values of chi-square at 0.001 for 7 and 3 degrees of freedom
    ("settings", "weights", "critical"),
    [
        (dict(), [1, 2, 3, 4, 5, 6, 7, 8], 24.322),
        (dict(temperature=0.5, top_k=4), [0, 0, 0, 0, 25, 36, 49, 64], 16.266),
    ],
)
def test_draws_have_the_distribution(settings, weights, critical):
    B, calls = 500, 200
    logits = np.log(np.tile(np.arange(1, 9, dtype=np.float32), (B, 1)))
    rows = [make_row(8, seed=seed, **settings) for seed in range(B)]
    counts = np.bincount(np.concatenate([sample(logits, rows) for _ in range(calls)]), minlength=8)
    expected = np.array(weights) / sum(weights) * B * calls
    assert counts[expected == 0].sum() == 0
    drawn, wanted = counts[expected > 0], expected[expected > 0]
    assert ((drawn - wanted) ** 2 / wanted).sum() < critical


VARIETY = [
    dict(), dict(temperature=0.0), dict(temperature=0.8, top_p=0.9), dict(top_k=5), dict(min_p=0.05),
    dict(typical_p=0.8), dict(repetition_penalty=1.2, prompt=[0, 1]), dict(frequency_penalty=0.5, top_p=0.5),
    dict(temperature=0.0, presence_penalty=2.0), dict(banned=[0]),
    dict(temperature=3.0, top_k=50, min_p=0.01), dict(xtc_probability=0.5, xtc_threshold=0.05, top_k=9),
    dict(mirostat=2, mirostat_tau=2.0), dict(dry_multiplier=1.0, dry_allowed_length=1), dict(top_n_sigma=1.0),
    dict(temperature=0.7, top_p=0.8, temperature_last=True),
]  # fmt: skip


@pytest.mark.parametrize("V", [2, 3, 31, 127, 1024, 1031])
def test_batch_row_equals_alone_bit_for_bit(V):
    steps, B = 4, 2 * len(VARIETY) + 1
    rng = np.random.default_rng(V)
    logits = rng.normal(size=(steps, B, V), scale=3).astype(np.float32)

    def run(members):
        rows = [make_row(V, seed=i, **VARIETY[i % len(VARIETY)]) for i in members]
        out = {i: [] for i in members}
        for block in logits:
            # in Fortran order too, as a transposed product would come
            probs = probabilities(np.asfortranarray(block[members]), rows)
            for i, row, id, p in zip(members, rows, sample(block[members], rows), probs, strict=True):
                row.wrote(int(id))
                out[i].append((int(id), p.tobytes()))
        return out

    together = run(list(range(B)))
    shuffled = run(list(rng.permutation(B)))
    for i in range(B):
        assert together[i] == run([i])[i] == shuffled[i]
    alike = run(list(range(0, B, len(VARIETY))))  # rows without any operator take the shortest way
    assert alike == {i: together[i] for i in alike}


def test_seeds():
    logits = np.zeros((1, 1000), np.float32)

    def draw(seed):
        row = make_row(1000, seed=seed)
        return [int(sample(logits, [row])[0]) for _ in range(20)]

    assert draw(0) == draw(0) and draw(7) == draw(7)
    assert draw(0) != draw(7)
    # default_rng(0) begins with 0.63696…, 0.26978…: of 1000 equal tokens that is number 636, then 269
    assert draw(0)[:2] == [636, 269]


def test_one_number_per_draw_and_none_when_greedy():
    rows = [make_row(4, seed=1), make_row(4, seed=1, temperature=0.0)]
    sample(np.array([LOGITS, LOGITS]), rows)
    fresh = np.random.default_rng(1)
    assert rows[1].rng.bit_generator.state == fresh.bit_generator.state
    fresh.random()
    assert rows[0].rng.bit_generator.state == fresh.bit_generator.state


class Stuck:
    """A stream that gives one number for ever."""

    def __init__(self, number):
        self.random = lambda: number


@pytest.mark.parametrize(
    # running mass of .5, .25, .15, .1 between two banned tokens
    ("u", "id"), [(0.0, 1), (0.499, 1), (0.501, 2), (0.749, 2), (0.751, 3), (0.899, 3), (0.901, 4),
                  (1 - 2**-53, 4), (1.0, 4)]
)  # fmt: skip
def test_tokens_without_probability_are_never_drawn(u, id):
    row = make_row(6, banned=[0, 5])
    row.rng = Stuck(u)
    assert sample(np.array([[9.0, *LOGITS, 9.0]]), [row]).tolist() == [id]


def test_the_last_token_with_probability_takes_what_rounding_leaves():
    # V times 1/V adds up to 1, or to a little more or less (ten times 0.1 is 0.9999999999999999).
    for V in range(1, 200):
        row = make_row(V + 3, banned=[V, V + 1, V + 2])
        for u in (1 - 2**-53, 1.0):
            row.rng = Stuck(u)
            assert sample(np.zeros((1, V + 3)), [row]) == [V - 1]


# --- edges ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "settings", "expected"),
    [
        ([1.0, 3.0, 3.0], dict(temperature=0.0), [0, 1, 0]),  # lowest id of a tie
        ([1.0, 3.0, 3.0], dict(temperature=0.0, banned=[1]), [0, 0, 1]),
        ([1.0, 3.0, 2.0], dict(temperature=0.0, written=[1], presence_penalty=1.5), [0, 0, 1]),  # 3 - 1.5 < 2
        (LOGITS, dict(temperature=0.0, typical_p=0.2), [1, 0, 0, 0]),  # truncation would have dropped it
        ([0.0, -1e-3, -1.0], dict(temperature=1e-300), [1, 0, 0]),
        ([3e38, -3e38, 0.0], dict(temperature=1e-300), [1, 0, 0]),
        ([1.0, 2.0, 3.0], dict(temperature=1e300), [1 / 3, 1 / 3, 1 / 3]),
        ([5.0, 1.0, 9.0], dict(banned=[0, 2]), [0, 1, 0]),  # all banned but one
        ([5.0, -INF, 5.0], dict(), [0.5, 0, 0.5]),
        ([1.0, 1.0, 0.0], dict(top_k=1), [0.5, 0.5, 0]),  # a tie with the k-th stays
        ([1.0, 1.0, 0.0], dict(top_p=0.0), [1, 0, 0]),
        ([1.0, 1.0, -INF], dict(top_p=1.0, top_k=99, min_p=0.0), [0.5, 0.5, 0]),
        ([0.0, 0.0, 0.0, 0.0], dict(typical_p=0.5), [0.5, 0.5, 0, 0]),
        ([-1000.0, -1001.0], dict(), [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))]),
        ([7.0], dict(top_p=0.1, min_p=1.0, typical_p=0.1, top_k=1), [1]),
    ],
)
def test_edges(logits, settings, expected):
    np.testing.assert_allclose(distribution(logits, **settings), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("bad", [[0.0, math.nan, 1.0], [0.0, INF, 1.0], [-INF, -INF, -INF], [math.nan] * 3])
@pytest.mark.parametrize("settings", [dict(), dict(temperature=0.0), dict(banned=[1]), dict(top_n_sigma=2.0)])
@pytest.mark.parametrize("function", [sample, probabilities])
def test_diverged_logits_are_an_error(bad, settings, function):
    rows = [make_row(3, **settings) for _ in range(3)]
    with pytest.raises(DivergedError, match=r"row 1: .*NaN.*earlier checkpoint"):
        function(np.array([[0.0, 1.0, 2.0], bad, bad], np.float32), rows)


@pytest.mark.parametrize(
    "settings",
    [
        dict(banned=[0, 1, 2]),
        dict(written=[0, 1, 2] * 2, frequency_penalty=1e308),
        dict(written=[0, 0], frequency_penalty=-1e308),
    ],
)
def test_nothing_left_to_draw_is_an_error(settings):
    with pytest.raises(UsageError, match="row 1: no token is left"):
        sample(np.zeros((2, 3), np.float32), [make_row(3), make_row(3, **settings)])


@pytest.mark.parametrize("settings", [[dict()] * 3, [dict(typical_p=0.5)] * 3, [dict(), dict(typical_p=0.5), dict()]])
@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_leaves_the_streams_as_they_were(settings, bad):
    rows = [make_row(3, **one) for one in [*settings, dict(temperature=0.0), dict(xtc_probability=1.0)]]
    before = [row.rng.bit_generator.state for row in rows]
    logits = np.zeros((5, 3), np.float32)
    logits[bad, 1] = math.nan
    with pytest.raises(DivergedError):
        sample(logits, rows)
    assert [row.rng.bit_generator.state for row in rows] == before


def test_the_callers_logits_stay_as_they_are():
    for dtype in (np.float32, np.float64):
        logits = np.array([LOGITS, LOGITS], dtype)
        before = logits.copy()
        sample(logits, [make_row(4, banned=[1], top_k=2), make_row(4, prompt=[0], repetition_penalty=2.0)])
        assert (logits == before).all()


def test_rows_and_logits_must_match():
    with pytest.raises(ValueError):
        sample(np.zeros((2, 3)), [make_row(3)])
    with pytest.raises(ValueError):
        sample(np.zeros((2, 3), np.float32), [make_row(3)])
    assert sample(np.zeros((0, 3)), []).tolist() == []


def test_bans_of_another_length_are_refused():
    row = make_row(4)
    row.banned = np.zeros(3, np.bool_)
    with pytest.raises((ValueError, IndexError)):
        sample(np.zeros((1, 4), np.float32), [row])
