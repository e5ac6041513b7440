"""A plain LSTM on characters, as one writes it with PyTorch's own layer: two layers, dropout, the state carried on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from baseline import Recipe
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

RECIPE = Recipe(lr=2e-3, lr_final=0.0, warmup=0.02, beta2=0.999, weight_decay=0.0, clip=1.0, batch=32, length=64)
WIDTH, LAYERS, DROPOUT = 256, 2, 0.2
READ_BEFORE = 1024  # characters of the training text that the held-out text is read after
_CHUNK = 4096
State = tuple[Tensor, Tensor]


class PlainLSTM(nn.Module):
    """Embedding, LSTM, linear output, dropout between them."""

    def __init__(self, vocab: int, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.lstm = nn.LSTM(width, width, LAYERS, dropout=DROPOUT)
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(width, vocab)

    def forward(self, ids_TB: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The logits of the next characters, and the state after the last."""
        x_TBH, state = self.lstm(self.dropout(self.embedding(ids_TB)), state)
        return self.output(self.dropout(x_TBH)), state

    def loss(self, x_TB: Tensor, y_TB: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Nats per character, and the state without its history."""
        logits_TBV, (h, c) = self(x_TB, state)
        return F.cross_entropy(logits_TBV.flatten(0, 1), y_TB.flatten()), (h.detach(), c.detach())


def lanes(ids_N: Tensor, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """The text in lanes side by side, piece after piece, over and over, and the characters after each of theirs."""
    size = (len(ids_N) - 1) // recipe.batch
    length = min(recipe.length, size)
    x_TB, y_TB = (ids_N[k : k + size * recipe.batch].view(recipe.batch, size).T for k in (0, 1))
    while True:
        for start in range(0, size - length + 1, length):
            yield x_TB[start : start + length].contiguous(), y_TB[start : start + length].contiguous()


@torch.inference_mode()
def held_out_nats(network: PlainLSTM, ids_N: Tensor, start: int) -> NDArray[np.float32]:
    """Nats of each character from `start` on, in one lane, after the characters before it were read."""
    network.eval()
    begin = max(0, start - READ_BEFORE)
    nats, state = [], None
    for at in range(begin, len(ids_N) - 1, _CHUNK):
        end = min(at + _CHUNK, len(ids_N) - 1)
        logits_TV, state = network(ids_N[at:end, None], state)
        nats.append(F.cross_entropy(logits_TV[:, 0], ids_N[at + 1 : end + 1], reduction="none"))
    network.train()
    return torch.cat(nats)[start - begin - 1 :].numpy()
