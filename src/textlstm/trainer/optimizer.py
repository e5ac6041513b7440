"""AdamW: what it keeps of each weight, and its step by torch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # as torch.optim.AdamW calls them


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2); only matrices decay.

    `torch.optim.AdamW` takes the same step, bit for bit, but its base class imports torch's compiler before the
    first one, which is 1.1 of the 3.6 seconds that a run took to begin.

    Args:
        parameters: the weights, by name.
        beta1, beta2: decay of the means of gradients and of their squares.
        weight_decay: share of a matrix that is taken off per step, over the learning rate.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], beta1: float, beta2: float, weight_decay: float
    ) -> None:
        self._parameters, self._betas, self._weight_decay = dict(parameters), (beta1, beta2), weight_decay
        self._moments: dict[str, list[Tensor]] = {}

    def step(self, lr: float) -> None:
        """Changes the weights that have a gradient.

        Args:
            lr: the learning rate of this step.
        """
        for decays in (True, False):
            names = [n for n, p in self._parameters.items() if p.grad is not None and (p.ndim > 1) == decays]
            weights = [self._parameters[name] for name in names]
            gradients = [p.grad for p in weights if p.grad is not None]
            means, squares, steps = ([self._moments_of(name)[k] for name in names] for k in range(len(MOMENTS)))
            with torch.no_grad():
                adamw(
                    list(weights), gradients, means, squares, [], steps, fused=True, amsgrad=False,
                    beta1=self._betas[0], beta2=self._betas[1], lr=lr,
                    weight_decay=self._weight_decay if decays else 0.0, eps=1e-8, maximize=False,
                )  # fmt: skip

    def clear_gradients(self) -> None:
        """Forgets the gradients of all weights."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def _moments_of(self, name: str) -> list[Tensor]:
        if name not in self._moments:
            p = self._parameters[name]
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self._moments[name] = [torch.zeros_like(p), torch.zeros_like(p), step]
        return self._moments[name]

    def named_moments(self) -> Iterator[tuple[str, Tensor]]:
        """All that it keeps, as MOMENT.NAME of the weight; nothing of a weight that never had a gradient."""
        for name, moments in self._moments.items():
            yield from ((f"{moment}.{name}", tensor) for moment, tensor in zip(MOMENTS, moments, strict=True))

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what `named_moments` gave; other keys are passed over."""
        for name, parameter in self._parameters.items():
            if f"step.{name}" in tensors:
                self._moments[name] = [tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS]
