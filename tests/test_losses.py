"""The loss of the output layer: the way for large vocabularies against the obvious one, and that against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network import log_softmax, make_config, make_network, seeded

from textlstm import kernels
from textlstm.network import losses as module
from textlstm.network.losses import chunked_cross_entropy, cross_entropy, exponentials_, plain_cross_entropy


def test_cross_entropy_function_is_what_loss_uses():
    config = make_config()
    network, features = make_network(config), torch.randn(6, 12, generator=seeded())
    targets = torch.tensor([0, 3, 22, 5, 5, 1])
    logs = log_softmax(network.logits(features).detach().numpy())
    loss = plain_cross_entropy(*network.output_layer(features), targets, 0.2)
    nats = -logs[np.arange(6), targets.numpy()].mean()
    assert loss.nats.item() == pytest.approx(nats, abs=1e-5)
    assert loss.objective.item() == pytest.approx(0.8 * nats - 0.2 * logs.mean(), abs=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_chunked_cross_entropy_is_the_plain_one(monkeypatch, label_smoothing, compiled):
    if not compiled:
        monkeypatch.setattr(kernels, "load", lambda: None)
    monkeypatch.setattr(module, "_CHUNK", 7 * 23)  # seven rows at a time, the last chunk shorter
    # Fresh memory is often zero by chance; nothing may depend on what was in it.
    monkeypatch.setattr(torch, "empty_like", lambda tensor: torch.full(tensor.shape, math.nan))
    generator = torch.Generator().manual_seed(0)
    shapes = [(31, 5), (23, 5), (23,)]
    sides = []
    for loss in (plain_cross_entropy, chunked_cross_entropy):
        generator.manual_seed(0)
        tensors = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
        targets = torch.randint(23, (31,), generator=generator)
        result = loss(*tensors, targets, label_smoothing)
        (3 * result.objective).backward()
        sides.append([result.objective.detach(), result.nats, *(t.grad for t in tensors)])
    for plain, chunked in zip(*sides, strict=True):
        torch.testing.assert_close(plain, chunked, atol=1e-6, rtol=1e-5)


def test_large_vocabularies_take_the_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    inputs, weight, bias = (torch.randn(shape, generator=generator) for shape in ((4, 3), (11, 3), (11,)))
    targets = torch.tensor([0, 10, 3, 3])
    for most, way in ((44, plain_cross_entropy), (43, chunked_cross_entropy)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "_CHUNKED_ABOVE", most)
            calls = []
            patch.setattr(module, way.__name__, lambda *given, way=way, calls=calls: calls.append(way) or way(*given))
            loss = cross_entropy(inputs, weight, bias, targets, 0.1)
        assert calls == [way]
        torch.testing.assert_close(loss.objective, plain_cross_entropy(inputs, weight, bias, targets, 0.1).objective)


@pytest.mark.parametrize("kind", [*kernels.kinds(), None])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_exponentials_equal_double_precision(kind, data):
    """On every instruction set that this processor has, and without any; peaks may be far from zero."""
    R, V = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 300))
    spread, middle = data.draw(st.sampled_from([0.1, 3.0, 30.0])), data.draw(st.sampled_from([0.0, 80.0, -500.0]))
    logits = torch.randn(R, V, generator=seeded(R)) * spread + middle
    bias = torch.randn(V, generator=seeded(V)) * spread
    exact = logits.double() + bias.double()
    with pytest.MonkeyPatch.context() as patch:
        kernel = None if kind is None else kernels.load(kind)
        patch.setattr(kernels, "load", lambda: kernel)
        peak, sums = exponentials_(logits, bias)
    rounding = 1e-6 * (1 + float(exact.abs().max()))  # of a logit, which the exponential makes a relative error
    np.testing.assert_allclose(peak, exact.amax(1), rtol=1e-6, atol=1e-6)
    wanted = (exact - exact.amax(1, keepdim=True)).exp()
    np.testing.assert_allclose(logits, wanted, rtol=4 * rounding, atol=1e-37)
    np.testing.assert_allclose(sums, wanted.sum(1, keepdim=True), rtol=4 * rounding)


def test_exponentials_are_the_same_on_one_thread():
    logits, bias = torch.randn(37, 1000, generator=seeded()), torch.randn(1000, generator=seeded(1))
    before, answers = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        mine = logits.clone()
        answers.append((mine, *exponentials_(mine, bias)))
    torch.set_num_threads(before)
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)
