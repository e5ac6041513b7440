"""A GPT on characters: a Transformer's decoder with learnt positions and layer norm in front (Radford et al. 2019).

`SMALL` and `LARGE` are the two settings that nanoGPT publishes for Tiny Shakespeare: the one for processors (2,000
steps) and the model of 10.7 million parameters (5,000 steps on a GPU). Warm-up of 100 steps is 1/20 and 1/50 of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from baseline import Recipe
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The size of a GPT: layers, attention heads, width, characters it sees, dropout."""

    layers: int
    heads: int
    width: int
    context: int
    dropout: float


SMALL = Shape(layers=4, heads=4, width=128, context=64, dropout=0.0)
LARGE = Shape(layers=6, heads=6, width=384, context=256, dropout=0.2)
SMALL_RECIPE = Recipe(
    lr=1e-3, lr_final=0.1, warmup=1 / 20, beta2=0.99, weight_decay=0.1, clip=1.0, batch=12, length=SMALL.context
)
LARGE_RECIPE = Recipe(
    lr=1e-3, lr_final=0.1, warmup=1 / 50, beta2=0.99, weight_decay=0.1, clip=1.0, batch=64, length=LARGE.context
)


class Block(nn.Module):
    """One layer: attention to what came before, then a perceptron, each added to what it read."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads, self.dropout = shape.heads, shape.dropout
        self.before_attention, self.before_mlp = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTE: Tensor) -> Tensor:
        B, T, E = x_BTE.shape
        parts = self.attention_in(self.before_attention(x_BTE)).view(B, T, 3, self.heads, E // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        x_BTE = x_BTE + self._dropped(self.attention_out(mixed.transpose(1, 2).reshape(B, T, E)))
        return x_BTE + self._dropped(self.mlp_out(F.gelu(self.mlp_in(self.before_mlp(x_BTE)))))

    def _dropped(self, x_BTE: Tensor) -> Tensor:
        return F.dropout(x_BTE, self.dropout, self.training)


class GPT(nn.Module):
    """The network; embedding and output share their weights."""

    def __init__(self, shape: Shape, vocab: int) -> None:
        super().__init__()
        self.shape = shape
        self.characters = nn.Embedding(vocab, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.before_output = nn.LayerNorm(shape.width, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim > 1:  # what adds to the residual stream begins smaller, the more layers do
                shrink = math.sqrt(2 * shape.layers) if name.endswith("_out.weight") else 1.0
                nn.init.normal_(weight, std=0.02 / shrink)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The logits of the next characters, shape (B, T, V)."""
        x_BTE = self.characters(ids_BT) + self.positions.weight[: ids_BT.shape[1]]
        x_BTE = F.dropout(x_BTE, self.shape.dropout, self.training)
        for block in self.blocks:
            x_BTE = block(x_BTE)
        return F.linear(self.before_output(x_BTE), self.characters.weight)

    def loss(self, x_BT: Tensor, y_BT: Tensor, state: None) -> tuple[Tensor, None]:
        """Nats per character; a GPT carries nothing to the next batch."""
        return F.cross_entropy(self(x_BT).flatten(0, 1), y_BT.flatten()), None


def crops(ids_N: Tensor, recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces from anywhere in the text, and the characters after each of theirs, without end."""
    rng = np.random.default_rng(seed)
    while True:
        begins_B = rng.integers(0, len(ids_N) - recipe.length, recipe.batch)
        places_BT = torch.from_numpy(begins_B[:, None] + np.arange(recipe.length))
        yield ids_N[places_BT], ids_N[places_BT + 1]


@torch.inference_mode()
def held_out_nats(network: GPT, ids_N: Tensor, start: int, rows: int = 64) -> NDArray[np.float32]:
    """Nats of each character from `start` on, in windows that overlap by half: each sees half a context at least.

    Args:
        network: the GPT.
        ids_N: the text; before `start` is at least half a context of what precedes the held-out text.
        start: where the held-out text begins.
        rows: windows that are read side by side.
    """
    network.eval()
    context, half = network.shape.context, network.shape.context // 2
    number = -(-(len(ids_N) - start) // half)
    begins = start - half + half * np.arange(number)  # of each window; its second half is scored
    filled_N = F.pad(ids_N, (0, half))  # the last window may reach beyond the text
    nats = []
    for first in range(0, number, rows):
        places_BT = torch.from_numpy(begins[first : first + rows, None] + np.arange(context))
        logits_BTV, targets_BT = network(filled_N[places_BT - 1])[:, half:], filled_N[places_BT[:, half:]]
        nats.append(F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none"))
    network.train()
    return torch.cat(nats)[: len(ids_N) - start].numpy()
