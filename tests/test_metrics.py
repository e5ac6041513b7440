"""Scores against a loop that feeds one token at a time to the equations, and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from test_network import log_softmax, make_config, make_network, numpy_network, random_weights

from textlstm import metrics
from textlstm.config import ModelConfig
from textlstm.engine import load_engine
from textlstm.errors import UsageError
from textlstm.metrics import Score, frequencies, score, token_counts, token_nats, unigram_nats
from textlstm.model import Model
from textlstm.model_file import ModelFile
from textlstm.tokenizer import ByteTokenizer, CharTokenizer

V = 9


def tiny(boundary: bool) -> ModelConfig:
    return make_config("tied-output-projection", vocab_size=V, boundary=boundary)


def predictor(config: ModelConfig, kind: str):
    if kind == "network":
        return make_network(config)
    return load_engine(ModelFile(config, CharTokenizer("abcdefgh"), random_weights(config), {}, ""), kind)


def text(length: int, boundary: bool, seed: int = 3) -> np.ndarray:
    """Random ids, without boundaries."""
    return np.random.default_rng(seed).integers(0, V - boundary, length).astype(np.int32)


class Loop:
    """Reads one token after the other."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.weights = config, random_weights(config)
        self.h = self.c = None
        self.logs = np.full(config.vocab_size, -math.log(config.vocab_size))

    def read(self, ids) -> list[float]:
        costs = []
        for id in ids:
            costs.append(-self.logs[id])
            logits, self.h, self.c = numpy_network(self.config, self.weights, np.array([[id]]), self.h, self.c)
            self.logs = log_softmax(logits[0, 0])
        return costs


def brute(config: ModelConfig, ids, protocol: str, context=(), warm_up: int = 0) -> np.ndarray:
    begin = [config.boundary_id] if config.boundary else []
    before, ids = [*begin, *context], list(ids)
    kind, _, number = protocol.partition("-")
    costs: list[float] = []
    if kind == "cold":
        for start in range(0, len(ids), int(number)):
            loop = Loop(config)
            loop.read((before + ids[:start])[-1:])
            costs += loop.read(ids[start : start + int(number)])
    elif not number or number == "1":
        loop = Loop(config)
        loop.read(before)
        costs = loop.read(ids)
    else:
        length = math.ceil(len(ids) / int(number))
        before = before[-warm_up:] if warm_up else begin
        for start in range(0, len(ids), length):
            loop = Loop(config)
            stream = before + ids
            loop.read(stream[start : start + len(before)] if warm_up else begin)
            costs += loop.read(ids[start : start + length])
    return np.array(
        [0.0 if config.boundary and id == config.boundary_id else c for id, c in zip(ids, costs, strict=True)]
    )


PROTOCOLS = [
    "stream",
    "stream-1",
    "stream-2",
    "stream-4",
    "stream-7",
    "stream-50",
    "cold-1",
    "cold-5",
    "cold-8",
    "cold-99",
]


@pytest.mark.parametrize("kind", ["network", "onnx", "torch"])
@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_against_one_token_at_a_time(protocol, boundary, kind):
    config = tiny(boundary)
    model = predictor(config, kind)
    for length in (1, 7, 37, 40):
        ids = text(length, boundary)
        if boundary and length > 20:
            ids[[5, 18]] = config.boundary_id
        for context in (None, text(6, boundary, seed=4)):
            nats = token_nats(model, ids, context, protocol)
            expected = brute(config, ids, protocol, () if context is None else context)
            assert nats.shape == (length,) and nats.dtype == np.float64
            np.testing.assert_allclose(nats, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "lanes"), [(0, 1), (2047, 1), (2048, 2), (3071, 2), (16_383, 15), (16_384, 16), (10**7, 16)]
)
def test_each_lane_of_a_look_has_a_thousand_tokens_of_its_own(tokens, lanes):
    """Twice the 512 that are read before it."""
    assert metrics.lanes_for(tokens) == (lanes, "stream" if lanes == 1 else f"stream-{lanes}")


@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize("warm_up", [1, 4, 30])
def test_warmed_lanes_read_what_precedes_them(boundary, warm_up):
    config = tiny(boundary)
    ids, context = text(38, boundary), text(20, boundary, seed=4)
    for before in (None, context):
        nats = token_nats(make_network(config), ids, before, "stream-5", warm_up)
        expected = brute(config, ids, "stream-5", () if before is None else before, warm_up)
        np.testing.assert_allclose(nats, expected, atol=1e-5)


@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_chunking_changes_nothing(protocol, boundary, monkeypatch):
    config = tiny(boundary)
    model, ids, context = predictor(config, "onnx"), text(53, boundary), text(6, boundary, seed=4)
    for before, warm_up in ((None, 0), (context, 0), (context, 3)):
        whole = token_nats(model, ids, before, protocol, warm_up)
        for chunk in (1, V, 5 * V, 17 * V):
            monkeypatch.setattr(metrics, "_CHUNK", chunk)
            np.testing.assert_allclose(token_nats(model, ids, before, protocol, warm_up), whole, atol=1e-6)
        monkeypatch.undo()


def test_calls_stay_below_the_chunk(monkeypatch):
    config, sizes = tiny(True), []
    network = make_network(config)

    class Spy:
        zero_state = network.zero_state

        def nll(self, x_BT, y_BT, state):
            sizes.append(x_BT.size * V)
            return network.nll(x_BT, y_BT, state)

    spy = Spy()
    spy.config = config
    monkeypatch.setattr(metrics, "_CHUNK", 200)
    for protocol in ("stream", "stream-4", "cold-5"):
        token_nats(spy, text(200, True), protocol=protocol)
    assert max(sizes) <= 200 and len(sizes) > 20


def test_boundaries_in_the_text_are_read_but_not_counted():
    config = tiny(True)
    ids = text(30, True)
    ids[[7, 8, 29]] = config.boundary_id
    nats = token_nats(make_network(config), ids)
    assert not nats[[7, 8, 29]].any() and (np.delete(nats, [7, 8, 29]) > 0).all()
    total = score(make_network(config), ids, chars=27, bytes=27)
    assert total.tokens == 27 and total.nats == pytest.approx(nats.sum())
    without = token_nats(make_network(config), np.delete(ids, [7, 8, 29]))
    np.testing.assert_allclose(without[:7], nats[:7], atol=1e-6)
    assert abs(without[7] - nats[9]) > 1e-3
    np.testing.assert_allclose(brute(config, ids, "stream"), nats, atol=1e-5)


def test_first_token_without_boundary_is_uniform():
    config = tiny(False)
    for protocol in ("stream", "stream-3", "cold-4"):
        nats = token_nats(make_network(config), text(12, False), protocol=protocol)
        assert nats[0] == pytest.approx(math.log(V), abs=1e-12)
        assert abs(nats[1] - math.log(V)) > 1e-4
    nats = token_nats(make_network(config), text(12, False), protocol="stream-3")
    np.testing.assert_allclose(nats[[0, 4, 8]], math.log(V))


@pytest.mark.parametrize("kind", ["onnx", "torch", "network"])
def test_chain_rule(kind):
    """All strings of two tokens: their probabilities sum to 1, less what ends the text before."""
    for boundary in (True, False):
        config = tiny(boundary)
        model = predictor(config, kind)
        plain = range(V - boundary)
        strings = [np.array(s, dtype=np.int32) for s in itertools.product(plain, repeat=2)]
        total = math.fsum(math.exp(-token_nats(model, s).sum()) for s in strings)
        if not boundary:
            assert total == pytest.approx(1, abs=1e-6)
            continue
        assert 0.01 < total < 0.999
        state = model.zero_state(1)
        ended, end = 0.0, config.boundary_id
        first, state = model.nll(np.array([[end]]), np.array([[end]]), state)
        ended += math.exp(-first.item())
        for a in plain:
            costs, _ = model.nll(np.array([[end, a]]), np.array([[a, end]]), model.zero_state(1))
            ended += math.exp(-costs.sum())
        assert total + ended == pytest.approx(1, abs=1e-6)


def test_probabilities_of_model_agree_with_its_score():
    config = make_config(vocab_size=257)
    model = Model(ModelFile(config, ByteTokenizer(), random_weights(config), {}, ""))
    cost, before = 0.0, ""
    for char in "abca!":
        probs = model.next_token_probs(before)
        assert probs.sum() == pytest.approx(1, abs=1e-12)
        cost -= math.log(probs[ord(char)])
        before += char
    assert model.score("abca!").nats == pytest.approx(cost, abs=1e-5)
    tail = model.score("ca!", context="ab")
    assert tail.nats == pytest.approx(cost - model.score("ab").nats, abs=1e-5)
    chinese = model.score("語言")
    assert (chinese.chars, chinese.bytes, chinese.tokens) == (2, 6, 6)


def test_ratios_by_hand():
    total = Score("stream", chars=10, bytes=16, tokens=4, nats=20.0)
    assert total.nats_per_char == 2.0
    assert total.bits_per_char == pytest.approx(2 / 0.6931471805599453)
    assert total.bits_per_byte == pytest.approx(1.25 / 0.6931471805599453)
    assert total.perplexity == pytest.approx(148.4131591025766)
    assert Score("stream", 1, 1, 1, 1e6).perplexity > 1e300
    assert total.to_dict() == {
        "protocol": "stream",
        "chars": 10,
        "bytes": 16,
        "tokens": 4,
        "nats": 20.0,
        "nats_per_char": total.nats_per_char,
        "bits_per_char": total.bits_per_char,
        "bits_per_byte": total.bits_per_byte,
        "perplexity": total.perplexity,
    }


def test_addition():
    both = Score("cold-8", 10, 16, 4, 20.0) + Score("cold-8", 1, 3, 2, 5.5)
    assert both == Score("cold-8", 11, 19, 6, 25.5)


@pytest.mark.parametrize(
    "protocol",
    ["", "stream-", "stream-0", "stream-x", "stream--3", "cold", "cold-0", "cold-1.5", "warm-3", "stream-²"],
)
def test_unknown_protocol(protocol):
    with pytest.raises(UsageError, match="known are stream, stream-L and cold-N"):
        token_nats(make_network(tiny(True)), text(5, True), protocol=protocol)


def test_unigram_nats_by_hand():
    shares = frequencies(np.array([2, 1, 0, 0]))
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.1, 0.1])
    assert unigram_nats(np.array([0, 0, 1, 3]), shares) == pytest.approx(-math.log(0.5 * 0.5 * 0.3 * 0.1) / 4)
    assert unigram_nats(np.arange(8), frequencies(np.ones(8, int))) == pytest.approx(math.log(8))


def test_a_long_text_is_counted_in_stretches_spread_over_it(monkeypatch):
    monkeypatch.setattr(metrics, "_COUNTED", 400)
    monkeypatch.setattr(metrics, "_STRETCH", 100)
    assert token_counts(np.arange(10_000) // 1000, 10).tolist() == [100, 0, 0, 100, 0, 0, 100, 0, 0, 100]
    assert token_counts(np.arange(399) // 100, 5).tolist() == [100, 100, 100, 99, 0]


def test_progress_ends_at_the_whole():
    for protocol in ("stream", "stream-4", "cold-5"):
        seen: list[tuple[int, int]] = []
        append = seen.append
        token_nats(make_network(tiny(True)), text(33, True), None, protocol, 0, lambda *a, to=append: to(a))
        assert seen[-1][0] == seen[-1][1]
        assert [s[0] for s in seen] == sorted(s[0] for s in seen)


def test_global_random_state_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    token_nats(make_network(tiny(True)), text(33, True))
    assert torch.equal(torch.rand(1), expected)
