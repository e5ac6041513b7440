"""Adaptive memories against plain loops from their definitions, finite differences, and what theory promises."""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import textlstm
from textlstm.errors import UsageError
from textlstm.memories import Mixture, MixtureSettings
from textlstm.memories.contexts import Contexts
from textlstm.memories.counts import FrozenCounts, LiveCounts, Seen
from textlstm.memories.match import Match
from textlstm.memories.mixing import Mixer, squash
from textlstm.memories.neural import NeuralCache
from textlstm.memories.tree import TokenTree
from textlstm.memories.voices import AdaptiveMap, CountVoice, LeafVoice

TOKENS = [b"a", b"B", b" ", b"'s", b" the", b"x.\n", b"\xc3", b"the", b"!", b"a b"]
texts = st.lists(st.integers(0, 2), max_size=40)
quick = settings(max_examples=40, deadline=None)


def uniform(V):
    return np.full(V, -math.log(V))


def cost(mixture, ids, logprobs_TV, hidden_TH=None):
    """Nats of each token, and the last prediction."""
    nats = []
    for t, id in enumerate(ids):
        logs_V = mixture.predict(logprobs_TV[t], None if hidden_TH is None else hidden_TH[t])
        nats.append(-logs_V[id])
        mixture.update(id)
    return np.array(nats)


# The tree.


@pytest.mark.parametrize("V", [1, 2, 3, 8, 13])
def test_a_tokens_probability_is_the_product_of_its_turns(V):
    tree = TokenTree(V)
    logits_N = np.random.default_rng(V).normal(0, 2, tree.nodes)
    logs_V = tree.token_logs(np.log(squash(-logits_N)), np.log(squash(logits_N)))
    for id in range(V):
        nodes_D, bits_D = tree.path(int(tree.leaf_V[id]))
        product, node = 1.0, 1
        for step in range(tree.depth):
            assert nodes_D[step] == node and tree.level_N[node] == step
            right = 1 / (1 + math.exp(-logits_N[node]))
            product *= right if bits_D[step] else 1 - right
            node = 2 * node + bits_D[step]
        assert math.isclose(logs_V[id], math.log(product), rel_tol=1e-12)
    if tree.nodes == V:
        assert math.isclose(np.exp(logs_V).sum(), 1)


def test_sides_are_sums_of_the_leaves_below():
    tree, rng = TokenTree(11), np.random.default_rng(0)
    weights_XN = rng.integers(0, 9, (2, tree.nodes))
    left_XN, right_XN = tree.sides(weights_XN)
    for node in range(1, tree.nodes):
        level = node.bit_length() - 1
        size = tree.nodes >> level
        begin = (node - (1 << level)) * size
        halves = weights_XN[:, begin : begin + size // 2], weights_XN[:, begin + size // 2 : begin + size]
        assert (left_XN[:, node] == halves[0].sum(axis=1)).all()
        assert (right_XN[:, node] == halves[1].sum(axis=1)).all()


def test_tokens_that_begin_alike_are_neighbours():
    tree = TokenTree(len(TOKENS), TOKENS)
    assert [TOKENS[id] for id in np.argsort(tree.leaf_V)] == sorted(TOKENS)


# Contexts.


def words_of(text: bytes) -> tuple[bytes, bytes]:
    """The letters at the end of a text, and the word before them, from the definition."""
    letters = rb"[a-z'\x80-\xff]"
    word = re.search(letters + rb"*\Z", text.lower()).group()
    before = re.findall(letters + rb"+", text.lower()[: len(text) - len(word)])
    return word, before[-1] if before else b""


@quick
@given(st.lists(st.integers(0, len(TOKENS) - 1), max_size=30))
def test_contexts_are_equal_where_what_they_stand_for_is(ids):
    contexts, orders = Contexts(3, TOKENS), 3
    seen: dict[tuple[int, int], object] = {}
    meant: dict[tuple[int, object], int] = {}
    for place in range(len(ids) + 1):
        word, before = words_of(b"".join(TOKENS[id] for id in ids[:place]))
        meanings = [tuple(([None] * 9 + ids[:place])[-order:]) if order else () for order in range(orders + 1)]
        keys = contexts.keys()
        assert len(keys) == contexts.count == orders + 3
        for number, (key, meaning) in enumerate(zip(keys, [*meanings, word, (word, before)], strict=True)):
            assert 0 <= key < 1 << 64
            assert seen.setdefault((number, key), meaning) == meaning
            assert meant.setdefault((number, meaning), key) == key
        if place < len(ids):
            contexts.push(ids[place])


# Counts.


def counted(ids, orders, leaves):
    """What came after the contexts at the end of a text, by looking through it."""
    seen, end = Seen(orders + 1, leaves), len(ids)
    for order in range(orders + 1):
        padded = [-1] * order + ids
        tail = padded[len(padded) - order :]
        after = [ids[t] for t in range(end) if padded[t : t + order] == tail]
        for leaf in after:
            seen.counts_CN[order, leaf] += 1
        if after:
            seen.last_C[order] = after[-1]
            while seen.run_C[order] < len(after) and after[-1 - seen.run_C[order]] == after[-1]:
                seen.run_C[order] += 1
    return seen


@quick
@given(texts, st.integers(0, 40))
@example([0, 0, 1, 0], 2)  # a run that the live part breaks
@example([0, 0, 0, 0], 2)  # and one that it carries on
def test_counts_are_those_of_the_text_however_it_was_read(ids, cut):
    cut, orders = min(cut, len(ids)), 2
    contexts, live, keys_TC = Contexts(orders, None), LiveCounts(orders + 1), []
    for id in ids[:cut]:
        keys_TC.append(contexts.keys())
        contexts.push(id)
    shape = (len(keys_TC), orders + 1)
    frozen = FrozenCounts(np.array(keys_TC, dtype=np.uint64).reshape(shape), np.array(ids[:cut], dtype=np.int64))
    for id in ids[cut:]:
        live.push(contexts.keys(), id)
        contexts.push(id)
    seen, expected = Seen(orders + 1, 4), counted(ids, orders, 4)
    frozen.add_to(seen, contexts.keys())
    live.add_to(seen, contexts.keys())
    assert (seen.counts_CN == expected.counts_CN).all()
    assert (seen.last_C == expected.last_C).all() and (seen.run_C == expected.run_C).all()


def test_the_largest_key_is_found():
    keys = np.array([[2**64 - 1], [5]], dtype=np.uint64)
    seen = Seen(1, 2)
    FrozenCounts(keys, np.array([1, 0])).add_to(seen, [2**64 - 1])
    assert seen.counts_CN.tolist() == [[0, 1]] and seen.last_C.tolist() == [1]


# Matches.


@quick
@given(texts, st.integers(1, 3))
def test_a_match_is_the_latest_place_and_is_followed_while_it_holds(ids, least):
    match, place = Match(least, most=9), None
    for end in range(1, len(ids) + 1):
        match.extend([ids[end - 1]])
        place = place + 1 if place is not None and ids[place] == ids[end - 1] else None
        tail = ids[max(end - least, 0) : end]
        if place is None and len(tail) == least:
            place = max((q for q in range(least, end) if ids[q - least : q] == tail), default=None)
        length = 0
        if place is not None:
            while length < min(place, 9) and ids[place - 1 - length] == ids[end - 1 - length]:
                length += 1
        assert match.token == (None if place is None else ids[place])
        assert match.length == length


# The neural cache.


def test_the_neural_cache_is_equation_2():
    rng, window, scale = np.random.default_rng(0), 5, 0.7
    cache, states, leaves = NeuralCache(window, scale), rng.normal(0, 1, (9, 3)).astype(np.float32), [0, 1, 1, 3] * 3
    assert cache.look(states[0], 4) is None
    for t in range(9):
        cache.push(states[t], leaves[t])
        query = rng.normal(0, 1, 3).astype(np.float32)
        weights = np.zeros(4)
        for i in range(max(0, t + 1 - window), t + 1):
            weights[leaves[i]] += math.exp(
                scale * sum(float(a) * float(b) for a, b in zip(query, states[i], strict=True))
            )
        np.testing.assert_allclose(cache.look(query, 4), weights / weights.sum(), rtol=1e-5)


# What the voices learn.


@quick
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=6), max_size=6))
def test_a_map_becomes_the_share_of_ones(groups):
    start = np.array([0.2, 0.5, 0.9])
    table, sums, counts = AdaptiveMap(start, rate=0.0), 7 * start, np.full(3, 7.0)
    for group in groups:
        table.learn(*(np.array([pair[i] for pair in group], dtype=np.int64) for i in (0, 1)))
        for place, bit in group:
            sums[place] += bit
            counts[place] += 1
    np.testing.assert_allclose(squash(table.look(np.arange(3))), sums / counts, rtol=1e-9)


def test_a_map_follows_changes_at_its_rate():
    table, place = AdaptiveMap(np.array([0.5]), rate=0.1), np.zeros(1, dtype=np.int64)
    for _ in range(1000):
        table.learn(place, np.array([0]))
    p = squash(table.look(place))[0]
    table.learn(place, np.array([1]))
    assert math.isclose(squash(table.look(place))[0], p + (1 - p) * 0.1 / 1.1, rel_tol=1e-9)


def test_a_count_voice_says_nothing_of_what_it_never_saw_and_learns_what_counts_are_worth():
    tree, voice = TokenTree(4), CountVoice(1, 0.001)
    left_CN, right_CN = tree.sides(np.array([[0, 3, 0, 0]]))
    logits_CN = voice.look(left_CN, right_CN)
    assert (logits_CN[0] != 0).tolist() == [False, True, True, False]
    nodes_D, bits_D = tree.path(0)  # at the root as counted, then not
    for _ in range(200):
        voice.look(left_CN, right_CN)
        voice.learn(nodes_D, bits_D)
    learnt_CN = squash(voice.look(left_CN, right_CN))
    for node in (1, 2):  # 3 to 0 was right; 0 to 3 was wrong, and so means the same in the end
        assert math.isclose(learnt_CN[0, node], 7 * squash(logits_CN)[0, node] / 207)


def test_a_leaf_voice_speaks_on_the_way_to_its_leaf_and_learns_until_the_ways_part():
    tree, voice = TokenTree(8), LeafVoice(2, 3, 0.0)
    leaves, levels = np.array([5, -1]), np.array([7, 0])
    logits_CN = voice.look(tree, leaves, levels)
    at = math.log(3)  # of 0.75
    assert {n: round(float(v), 9) for n, v in enumerate(logits_CN[0]) if v} == {
        1: round(at, 9), 2 + 1: -round(at, 9), 6: round(at, 9)
    }  # fmt: skip
    assert not logits_CN[1].any()
    voice.learn(*tree.path(7))  # right at the root, wrong after it, and then elsewhere
    p = squash(voice.look(tree, leaves, levels)[0, 1:2])[0]
    assert math.isclose(p, (7 * 0.75 + 1) / 9)


# The mixer.


def test_the_mixer_follows_the_gradient():
    rng, K, N = np.random.default_rng(0), 4, 3
    mixer = Mixer(rng.normal(0, 0.5, K), (2, 3), 2, rate=1e-3, final_rate=1e-3)
    for weights in (*mixer.weights_S, mixer.final_RS):
        weights += rng.normal(0, 0.3, weights.shape)
    inputs_NK, bits_N = rng.normal(0, 1, (N, K)), np.array([0, 1, 1])
    rows, final_N = (np.array([0, 1, 1]), 2), np.array([1, 0, 1])
    before = mixer.copy()
    mixer.learn(inputs_NK, rows, final_N, bits_N)

    def nats(logits):
        return -np.log(np.where(bits_N, squash(logits), squash(-logits))).sum()

    for number in range(2):
        for index in np.ndindex(before.weights_S[number].shape):
            costs = []
            for step in (1e-6, -1e-6):
                other = before.copy()
                other.weights_S[number][index] += step
                costs.append(nats(other.mix(inputs_NK, rows, final_N)[0][:, number]))
            moved = mixer.weights_S[number][index] - before.weights_S[number][index]
            assert math.isclose(moved, -1e-3 * (costs[0] - costs[1]) / 2e-6, abs_tol=1e-10)
    for index in np.ndindex(before.final_RS.shape):
        costs = []
        for step in (1e-6, -1e-6):
            other = before.copy()
            other.final_RS[index] += step
            costs.append(nats(other.mix(inputs_NK, rows, final_N)[1]))
        assert math.isclose(
            mixer.final_RS[index] - before.final_RS[index], -1e-3 * (costs[0] - costs[1]) / 2e-6, abs_tol=1e-10
        )


# All together.


def run_of(V, length, seed=0, H=4):
    rng = np.random.default_rng(seed)
    logits_TV = rng.normal(0, 1, (length, V))
    logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    return rng.integers(0, V, length), logprobs_TV, rng.normal(0, 1, (length, H))


@pytest.mark.parametrize("primed", [False, True])
def test_it_begins_as_the_network_and_sums_to_one(primed):
    V = len(TOKENS)
    ids, logprobs_TV, hidden_TH = run_of(V, 60)
    mixture = Mixture(V, MixtureSettings(memory_weight=0.0), TOKENS)
    if primed:
        mixture.prime(ids)
    np.testing.assert_allclose(mixture.predict(logprobs_TV[0], hidden_TH[0]), logprobs_TV[0], atol=1e-6)
    mixture = Mixture(V, token_bytes=TOKENS)
    if primed:
        mixture.prime(ids)
    for t, id in enumerate(ids):
        assert math.isclose(np.exp(mixture.predict(logprobs_TV[t], hidden_TH[t])).sum(), 1, rel_tol=1e-12)
        mixture.update(int(id))
    assert math.isclose(np.exp(mixture.predict(np.where(np.arange(V) == 2, -math.inf, 0.0))).sum(), 1, rel_tol=1e-12)


def test_it_never_looks_ahead():
    V = len(TOKENS)
    ids, logprobs_TV, hidden_TH = run_of(V, 50)
    one, other = ids.copy(), ids.copy()
    other[30:] = (other[30:] + 1) % V
    first, second = (
        cost(Mixture(V, token_bytes=TOKENS), text, logprobs_TV, hidden_TH)[:30].tobytes() for text in (one, other)
    )
    assert first == second


def test_copies_are_independent():
    V = len(TOKENS)
    ids, logprobs_TV, hidden_TH = run_of(V, 60)
    whole = cost(Mixture(V, token_bytes=TOKENS), ids, logprobs_TV, hidden_TH)
    mixture = Mixture(V, token_bytes=TOKENS)
    cost(mixture, ids[:30], logprobs_TV[:30], hidden_TH[:30])
    mixture.predict(logprobs_TV[30], hidden_TH[30])  # a copy may be taken between prediction and update
    copies = [mixture.copy(), mixture.copy()]
    cost(copies[0], ids[::-1], logprobs_TV, hidden_TH)
    for one in (mixture, copies[1]):
        one.update(int(ids[30]))
        rest = cost(one, ids[31:], logprobs_TV[31:], hidden_TH[31:])
        assert rest.tobytes() == whole[31:].tobytes()


DIGEST = """
import sys; sys.path.insert(0, {tests!r})
from test_memories import digest
print(digest())
"""


def digest():
    ids, logprobs_TV, hidden_TH = run_of(len(TOKENS), 80, H=64)
    mixture = Mixture(len(TOKENS), token_bytes=TOKENS)
    mixture.prime(ids[::-1])
    return hashlib.sha256(cost(mixture, ids, logprobs_TV, hidden_TH).tobytes()).hexdigest()


def test_another_process_comes_to_the_same_bits():
    source, tests = str(Path(textlstm.__file__).parent.parent), str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "77"}
    program = DIGEST.format(tests=tests)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.strip() == digest(), done.stderr


def test_what_repeats_costs_nothing_in_the_end():
    V, period = 16, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    nats = cost(Mixture(V), period * 50, np.tile(uniform(V), (600, 1)))
    assert nats[:12].mean() > 2  # log 16 is 2.77
    assert nats[-120:].mean() < 0.03


def test_what_is_random_costs_its_entropy():
    V, rng = 16, np.random.default_rng(0)
    p = np.array([0.5, 0.25, 0.125, 0.125] + [0] * 12)
    ids = rng.choice(V, 3000, p=p)
    nats = cost(Mixture(V), ids, np.tile(uniform(V), (3000, 1)))
    best = -np.log(p[ids[1000:]]).mean()
    assert best < nats[1000:].mean() < 1.04 * best


def test_a_network_that_knows_is_left_alone():
    V, rng = 16, np.random.default_rng(0)
    logits_TV = rng.normal(0, 2, (1500, V))
    p_TV = np.exp(logits_TV) / np.exp(logits_TV).sum(axis=1, keepdims=True)
    ids = np.array([rng.choice(V, p=p_V) for p_V in p_TV])
    best = -np.log(p_TV[np.arange(1500), ids])
    nats = cost(Mixture(V), ids, np.log(p_TV))
    assert nats[500:].mean() < 1.03 * best[500:].mean()


def test_a_text_that_was_read_first_helps():
    V, rng = 16, np.random.default_rng(0)
    ids = rng.integers(0, V, 300)
    empty, primed = Mixture(V), Mixture(V)
    primed.prime(ids)
    logprobs_TV = np.tile(uniform(V), (300, 1))
    assert cost(primed, ids, logprobs_TV).mean() < 0.5 * cost(empty, ids, logprobs_TV).mean()


def test_hidden_states_that_tell_are_listened_to():
    V, rng = 16, np.random.default_rng(0)
    ids = rng.integers(0, V, 800)
    hidden_TH = 4 * np.eye(V)[ids] + rng.normal(0, 0.1, (800, V))
    logprobs_TV = np.tile(uniform(V), (800, 1))
    told, untold = cost(Mixture(V), ids, logprobs_TV, hidden_TH), cost(Mixture(V), ids, logprobs_TV)
    assert told[-200:].mean() < 0.5 < 2.7 < untold[-200:].mean()


def test_what_was_not_predicted_is_remembered_all_the_same():
    one, other = Mixture(4), Mixture(4)
    for id in (1, 2, 3, 1, 2):
        one.update(id)
    cost(other, [1, 2, 3, 1, 2], np.tile(uniform(4), (5, 1)))
    assert one.predict(uniform(4)).argmax() == other.predict(uniform(4)).argmax() == 3


def test_wrong_use_is_named():
    with pytest.raises(UsageError, match="9 tokens are spelled"):
        Mixture(10, token_bytes=TOKENS[:9])
    mixture = Mixture(4)
    with pytest.raises(UsageError, match="from 0 to 3"):
        mixture.update(4)
    with pytest.raises(UsageError, match="from 0 to 3"):
        mixture.prime([0, -1])
    for logs in (uniform(5), np.full(4, math.nan), np.full(4, -math.inf)):
        with pytest.raises(UsageError, match="4 probabilities"):
            mixture.predict(logs)
    mixture.prime([])
    with pytest.raises(UsageError, match="primed once"):
        mixture.prime([1])
    mixture = Mixture(4)
    mixture.update(1)
    with pytest.raises(UsageError, match="primed once"):
        mixture.prime([1])
