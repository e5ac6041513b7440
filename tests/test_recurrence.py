"""The compiled steps of an LSTM layer against the equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network import seeded

from textlstm import kernels
from textlstm.network import fused_lstm, lstm, recurrence, reference_lstm

pytestmark = pytest.mark.skipif("avx512" not in kernels.kinds(), reason="the kernel does not run on this machine")


def arguments(T: int, B: int, width: int, H: int, scale: float = 1.0, dtype: torch.dtype = torch.float32):
    shapes = (T, B, width), (B, H), (B, H), (4 * H, width), (4 * H, H), (4 * H,)
    sizes = 1.0, 0.5, 1.0, width**-0.5, H**-0.5, 0.5
    drawn = [
        torch.randn(s, generator=seeded(n)) * z * scale for n, (s, z) in enumerate(zip(shapes, sizes, strict=True))
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in drawn]


def with_gradients(function, given, used=(0, 1, 2)):
    """Outputs, and the gradients of a weighted sum of some of them."""
    outputs = function(*given)
    weights = [torch.randn(o.shape, generator=seeded(90 + n)).to(o.dtype) for n, o in enumerate(outputs)]
    sum((outputs[n] * weights[n]).sum() for n in used).backward()
    return [o.detach() for o in outputs], [tensor.grad for tensor in given]


def took_the_kernel(outputs) -> bool:
    return "CompiledLSTM" in type(outputs[0].grad_fn).__name__


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_equals_the_equations(data):
    """Outputs and gradients, against the reference in double precision."""
    T, B = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 40))
    width, H = data.draw(st.integers(1, 70)), data.draw(st.sampled_from([32, 64, 96, 160]))
    scale = data.draw(st.sampled_from([0.1, 1.0, 5.0]))
    used = data.draw(st.sampled_from([(0, 1, 2), (0,), (1,), (2,)]))
    ours = arguments(T, B, width, H, scale)
    assert took_the_kernel(lstm(*ours))
    outputs, grads = with_gradients(lstm, ours, used)
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    expected, expected_grads = with_gradients(reference_lstm, exact, used)
    for one, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=3e-5, rtol=1e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        other = torch.zeros_like(one, dtype=torch.float64) if other is None else other
        one = torch.zeros_like(other) if one is None else one
        bound = 1e-4 * max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one.double(), other, atol=bound, rtol=1e-4)


@pytest.mark.parametrize("B", [2, 7, 12, 13, 24, 25, 64])
def test_threads_change_no_bit(B):
    """On the threads of OpenMP and on one, which every unit's sums are the same for.

    Torch's products over all steps are not the same on every processor (AMD's, few rows), so they are by the identity.
    """
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            x_TBI, h_BH, c_BH, _, weight_hh, bias = arguments(5, B, 4 * 96, 96)
            results.append(with_gradients(lstm, (x_TBI, h_BH, c_BH, torch.eye(4 * 96), weight_hh, bias)))
    finally:
        torch.set_num_threads(threads)
    steps = [[*outputs, grads[0], grads[2]] for outputs, grads in results]  # the others are torch's sums
    for other in steps[1:]:
        assert all(torch.equal(a, b) for a, b in zip(steps[0], other, strict=True))


def test_without_openmp_it_runs_on_one_thread(monkeypatch):
    expected = with_gradients(lstm, arguments(4, 6, 32, 32))
    monkeypatch.setattr(kernels, "_openmp", lambda: None)
    ours = with_gradients(lstm, arguments(4, 6, 32, 32))
    assert all(torch.equal(a, b) for a, b in zip(expected[0] + expected[1], ours[0] + ours[1], strict=True))


@pytest.mark.parametrize(
    "given",
    [
        arguments(4, 1, 32, 32),  # one row has no use for it
        arguments(4, 6, 32, 48),  # not a multiple of 32
        arguments(4, 6, 32, 32, dtype=torch.float64),
    ],
)
def test_elsewhere_torch_computes(given):
    outputs = lstm(*given)
    assert not took_the_kernel(outputs)
    for one, other in zip(outputs, fused_lstm(*given), strict=True):
        assert torch.equal(one, other)


def test_without_the_kernel_torch_computes(monkeypatch):
    monkeypatch.setattr(recurrence.kernels, "load", lambda kind=None: None)
    assert not took_the_kernel(lstm(*arguments(4, 6, 32, 32)))


def test_views_and_nan():
    """Weights that are views, inputs that are not contiguous; a NaN stays one instead of becoming a number."""
    x, h, c, weight_ih, weight_hh, bias = (tensor.detach() for tensor in arguments(5, 6, 40, 64))
    wide = torch.cat([weight_hh, weight_hh], dim=1)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    expected = lstm(x, h, c, weight_ih, weight_hh, bias)
    ours = lstm(strided, h, c, weight_ih, wide[:, :64], bias)
    assert all(torch.equal(a, b) for a, b in zip(expected, ours, strict=True))
    x[2, 3, 0] = np.nan
    outputs, _, cells = lstm(x, h, c, weight_ih, weight_hh, bias)
    assert outputs[2:, 3].isnan().all() and cells[3].isnan().all()
    assert not outputs[:2].isnan().any() and not outputs[:, [0, 1, 2, 4, 5]].isnan().any()
