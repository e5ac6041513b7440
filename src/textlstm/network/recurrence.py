"""One LSTM layer through time, three ways that compute the same; the tests hold them equal.

`reference_lstm` has the equations, one step after the other. `fused_lstm` is torch's kernel (oneDNN on a CPU, cuDNN on
a GPU). `lstm` is what the network uses: our compiled steps where they run (AVX-512, widths that are multiples of 32),
else torch's kernel; docs/log.md has what that brings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from textlstm import kernels

#: (x_TBI, h_BH, c_BH, weight_ih (4H, I), weight_hh (4H, H), bias (4H)) -> (outputs_TBH, h_BH, c_BH)
Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def reference_lstm(
    x_TBI: Tensor, h_BH: Tensor, c_BH: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer from its equations, slow and obvious (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    i, f, o = sigmoid(W x + U h + b), g = tanh(W x + U h + b), c = f * c + i * g, h = o * tanh(c).

    Args:
        x_TBI: inputs.
        h_BH, c_BH: the state before the first step.
        weight_ih, weight_hh, bias: W (4H, I), U (4H, H) and b (4H), gates in the order i, f, g, o.

    Returns:
        The outputs of all steps, shape (T, B, H), and the state after the last one.
    """
    outputs = []
    for x_BI in x_TBI:
        i, f, g, o = (x_BI @ weight_ih.T + h_BH @ weight_hh.T + bias).chunk(4, dim=1)
        c_BH = torch.sigmoid(f) * c_BH + torch.sigmoid(i) * torch.tanh(g)
        h_BH = torch.sigmoid(o) * torch.tanh(c_BH)
        outputs.append(h_BH)
    return torch.stack(outputs), h_BH, c_BH


def fused_lstm(
    x_TBI: Tensor, h_BH: Tensor, c_BH: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same layer by torch's fused kernel, the one behind `nn.LSTM`; arguments as in `reference_lstm`.

    The functional form takes the weights as arguments, so dropped recurrent weights cost one multiplication and no
    surgery on a module. It wants two biases; ours is one, as in the equations, and the second is zero.
    """
    weights = [weight_ih, weight_hh, bias, torch.zeros_like(bias)]
    outputs, h, c = torch._VF.lstm(
        x_TBI, (h_BH[None].contiguous(), c_BH[None].contiguous()), weights, True, 1, 0.0, True, False, False
    )
    return outputs, h[0], c[0]


def lstm(
    x_TBI: Tensor, h_BH: Tensor, c_BH: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same layer by the fastest way there is here; arguments as in `reference_lstm`."""
    if torch.is_autocast_enabled(x_TBI.device.type):
        return _lstm_in_bf16(x_TBI, h_BH, c_BH, weight_ih, weight_hh, bias)
    kernel = kernels.load("avx512")
    wide = weight_hh.shape[1] % 32 == 0 and x_TBI.shape[1] > 1
    if kernel is None or not wide or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (x_TBI, bias)):
        return fused_lstm(x_TBI, h_BH, c_BH, weight_ih, weight_hh, bias)
    outputs, h, c = _CompiledLSTM.apply(  # type: ignore[no-untyped-call]
        x_TBI, h_BH, c_BH, weight_ih, weight_hh, bias, kernel
    )
    return outputs, h, c


def _lstm_in_bf16(x_TBI: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The layer by torch's kernel in bf16, the same on every device; what comes out, state included, is fp32."""
    with torch.autocast(x_TBI.device.type, enabled=False):
        outputs, h, c = fused_lstm(*(tensor.bfloat16() for tensor in (x_TBI, *others)))
        return outputs.float(), h.float(), c.float()


class _CompiledLSTM(torch.autograd.Function):
    """A layer whose products over all steps at once are torch's, and whose steps are compiled (`kernels/lstm.c`)."""

    @staticmethod
    def forward(
        ctx: Any, x_TBI: Tensor, h_BH: Tensor, c_BH: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor,
        kernel: kernels.Kernel,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        (T, B, _), H = x_TBI.shape, weight_hh.shape[1]
        gates_NG = torch.addmm(bias, x_TBI.flatten(0, 1), weight_ih.T)
        h_TBH, c_TBH = x_TBI.new_empty(T + 1, B, H), x_TBI.new_empty(T + 1, B, H)
        h_TBH[0], c_TBH[0] = h_BH, c_BH
        weight_hh = weight_hh.contiguous()
        packed = torch.empty_like(weight_hh)
        tensors = weight_hh, packed, gates_NG, h_TBH, c_TBH
        job = kernels.Recurrence(None, None, T, B, H, 0, *(t.data_ptr() for t in tensors))
        kernels.run_side_by_side(kernel.lstm_forward, job, torch.get_num_threads())
        ctx.kernel = kernel
        ctx.save_for_backward(x_TBI, weight_ih, weight_hh, packed, gates_NG, h_TBH, c_TBH)
        return h_TBH[1:], h_TBH[T].clone(), c_TBH[T].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TBH: Tensor, grad_h_BH: Tensor, grad_c_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBI, weight_ih, weight_hh, packed, gates_NG, h_TBH, c_TBH = ctx.saved_tensors
        T, B, H = grad_TBH.shape
        grad_TBH, grad_c_BH = grad_TBH.clone(memory_format=torch.contiguous_format), grad_c_BH.clone()
        grad_TBH[-1] += grad_h_BH
        grad_NG = torch.empty_like(gates_NG)
        tensors = weight_hh, packed, gates_NG, h_TBH, c_TBH, grad_TBH, grad_c_BH, grad_NG
        job = kernels.Recurrence(None, None, T, B, H, 0, *(t.data_ptr() for t in tensors))
        kernels.run_side_by_side(ctx.kernel.lstm_backward, job, torch.get_num_threads())
        before_NH, first_BG = h_TBH[:-1].flatten(0, 1), grad_NG[:B]
        return (
            (grad_NG @ weight_ih).view(x_TBI.shape),
            first_BG @ weight_hh if ctx.needs_input_grad[1] else None,
            grad_c_BH,
            grad_NG.T @ x_TBI.flatten(0, 1),
            grad_NG.T @ before_NH,
            grad_NG.sum(0),
            None,
        )
