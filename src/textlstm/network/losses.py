"""The loss of a linear output layer, the obvious way and for vocabularies too large for it.

Shape letters: N tokens, V vocabulary, E width of the output layer's input, R rows of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from textlstm import kernels

_CHUNKED_ABOVE = 1 << 23  # logits in a batch; 8 M are 32 MB of float32
_CHUNK = 1 << 25  # logits at once, 134 MB; 1 << 23 to 1 << 27 were tried, below this is slower (docs/log.md)


@dataclass(frozen=True)
class Loss:
    """What one training step minimises, and its parts.

    Attributes:
        objective: mean cross-entropy with label smoothing, plus penalties; nats per token.
        nats: mean cross-entropy alone; nats per token.
    """

    objective: Tensor
    nats: Tensor


def cross_entropy(
    inputs_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, targets_N: Tensor, label_smoothing: float
) -> Loss:
    """Mean cross-entropy (nats per token) of a linear output layer, the way that suits its size.

    Args:
        inputs_NE: the layer's inputs.
        weight_VE: its weights.
        bias_V: its bias.
        targets_N: the right id of each row.
        label_smoothing: share of the target that is spread over all ids.
    """
    if targets_N.numel() * len(weight_VE) > _CHUNKED_ABOVE:
        # Under autocast a projection gives bf16, and the chunks know one type only.
        return chunked_cross_entropy(inputs_NE.float(), weight_VE, bias_V, targets_N, label_smoothing)
    return plain_cross_entropy(inputs_NE, weight_VE, bias_V, targets_N, label_smoothing)


def plain_cross_entropy(
    inputs_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, targets_N: Tensor, label_smoothing: float
) -> Loss:
    """The slow and obvious way; arguments as in `cross_entropy`."""
    logits_NV = nn.functional.linear(inputs_NE, weight_VE, bias_V)
    objective = nn.functional.cross_entropy(logits_NV, targets_N, label_smoothing=label_smoothing)
    if not label_smoothing:
        return Loss(objective, objective.detach())
    return Loss(objective, nn.functional.cross_entropy(logits_NV.detach(), targets_N))


def chunked_cross_entropy(
    inputs_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, targets_N: Tensor, label_smoothing: float
) -> Loss:
    """The same in one buffer of bounded size: some rows at a time, the gradient computed on the way.

    With 2,048 tokens and 50,257 ids the logits, their logarithms and their gradients would be 411 MB each; docs/log.md
    has what that costs.
    """
    objective, nats = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        inputs_NE, weight_VE, bias_V, targets_N, label_smoothing
    )
    return Loss(objective, nats.detach())


class _ChunkedCrossEntropy(torch.autograd.Function):
    """d loss / d logits = (softmax - target) / N, which needs nothing that the forward pass does not have."""

    @staticmethod
    def forward(
        ctx: Any, inputs_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, targets_N: Tensor, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        N, V = len(targets_N), len(weight_VE)
        grad_inputs_NE, grad_weight_VE, grad_bias_V = map(torch.empty_like, (inputs_NE, weight_VE, bias_V))
        exact = torch.float32 if inputs_NE.device.type == "mps" else torch.float64  # which mps does not have
        nats = inputs_NE.new_zeros((), dtype=exact)
        spread = torch.zeros_like(nats)
        rows = math.ceil(N / math.ceil(N * V / _CHUNK))  # equal chunks: products with few rows are slow
        buffer_RV = inputs_NE.new_empty(rows, V)  # one for all chunks: fresh memory costs a page fault every 4 kB
        for start in range(0, N, rows):
            x_RE, y_R = inputs_NE[start : start + rows], targets_N[start : start + rows]
            exp_RV = torch.mm(x_RE, weight_VE.T, out=buffer_RV[: len(y_R)])  # the logits without their bias
            chosen_R = exp_RV.gather(1, y_R[:, None])[:, 0] + bias_V[y_R]
            mean_R = exp_RV.mean(1) + bias_V.mean() if label_smoothing else chosen_R
            peak_R, sum_R1 = exponentials_(exp_RV, bias_V)
            total_R = peak_R + sum_R1[:, 0].log()
            nats += (total_R - chosen_R).sum()
            spread += (total_R - mean_R).sum()
            # softmax / N = exp / (N sum): dividing the narrow factor of each product spares passes over the wide
            # ones, and the first chunk writes where the others add, which spares filling with zeros.
            sum_R1.mul_(N)
            kept = 0 if start == 0 else 1
            torch.mm(exp_RV, weight_VE, out=grad_inputs_NE[start : start + rows]).div_(sum_R1)
            grad_weight_VE.addmm_(exp_RV.T, x_RE / sum_R1, beta=kept)
            grad_bias_V.addmv_(exp_RV.T, 1 / sum_R1[:, 0], beta=kept)
        keep, everywhere = (1 - label_smoothing) / N, label_smoothing / V / N
        grad_inputs_NE.sub_(weight_VE[targets_N], alpha=keep)
        grad_weight_VE.index_add_(0, targets_N, inputs_NE, alpha=-keep)
        grad_bias_V.index_add_(0, targets_N, torch.ones_like(inputs_NE[:, 0]), alpha=-keep)
        if label_smoothing:
            grad_inputs_NE -= everywhere * weight_VE.sum(0)
            grad_weight_VE -= everywhere * inputs_NE.sum(0)
            grad_bias_V -= everywhere * N
        ctx.save_for_backward(grad_inputs_NE, grad_weight_VE, grad_bias_V)
        objective = ((1 - label_smoothing) * nats + label_smoothing * spread) / N
        mean = (nats / N).to(inputs_NE.dtype)
        ctx.mark_non_differentiable(mean)
        return objective.to(inputs_NE.dtype), mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias = ctx.saved_tensors
        return inputs * grad, weight.mul_(grad) if grad != 1 else weight, bias * grad, None, None


def exponentials_(logits_RV: Tensor, bias_V: Tensor) -> tuple[Tensor, Tensor]:
    """Puts exp(logits + bias - peak) in place of the logits, peak being the largest logit + bias of each row.

    Compiled (`kernels/softmax.c`) it reads each row once: the five passes of torch over 2,048 x 50,257 logits are 1/6
    of a training step.

    Args:
        logits_RV: the logits without their bias, contiguous; overwritten.
        bias_V: the bias.

    Returns:
        The peaks (R,), and the sums of the exponentials (R, 1).
    """
    kernel = kernels.load()
    if kernel is None or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (logits_RV, bias_V)):
        peak_R1 = logits_RV.add_(bias_V).amax(1, keepdim=True)
        return peak_R1[:, 0], logits_RV.sub_(peak_R1).exp_().sum(1, keepdim=True)
    (R, V), bias_V = logits_RV.shape, bias_V.contiguous()
    peak_R, sum_R1 = logits_RV.new_empty(R), logits_RV.new_empty(R, 1)
    job = kernels.Rows(None, None, R, V, *(t.data_ptr() for t in (bias_V, logits_RV, peak_R, sum_R1)))
    kernels.run_side_by_side(kernel.exponentials, job, torch.get_num_threads())
    return peak_R, sum_R1
