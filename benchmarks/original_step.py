"""One training step of the original program's model: its Python-loop cell against textlstm, in one run.

    python benchmarks/original_step.py

Both train the same network (GPT-2 vocabulary, embedding 192, linear to 512, one LSTM layer of 512, untied output) on
the same made-up tokens, batch 8 x 256, AdamW 3e-4, no clipping. The baseline is the obvious program: the cell from its
equations, four linear layers on [h; x] for each of 256 steps, then the output layer and cross-entropy. Steps of both
are taken in turn, so that a change of the machine's speed meets both.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does

import time
from collections.abc import Callable

import numpy as np
import torch
from card import report, spread
from torch import nn

from textlstm.config import PRESETS, ModelConfig, TrainConfig
from textlstm.corpus import LaneReader
from textlstm.trainer import Trainer

VOCAB, EMBED, HIDDEN, BATCH, LENGTH = 50_257, 192, 512, 8, 256
RUNS = 12


class LoopLSTM(nn.Module):
    """The original architecture, one Python iteration per time step."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCAB, EMBED)
        self.linear = nn.Linear(EMBED, HIDDEN)
        self.forget, self.enter, self.candidate, self.out = (nn.Linear(2 * HIDDEN, HIDDEN) for _ in range(4))
        self.lm_head = nn.Linear(HIDDEN, VOCAB)

    def outputs(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """What the cell gives at every place, shape (B, T, H)."""
        x_BTH = self.linear(self.emb(ids_BT))
        h = c = torch.zeros(len(ids_BT), HIDDEN)
        outputs_BTH = torch.zeros(*ids_BT.shape, HIDDEN)  # filled in place, as the original does
        for t in range(ids_BT.shape[1]):
            both = torch.cat([h, x_BTH[:, t]], dim=1)
            f, i, o = (torch.sigmoid(gate(both)) for gate in (self.forget, self.enter, self.out))
            c = f * c + i * torch.tanh(self.candidate(both))
            h = o * torch.tanh(c)
            outputs_BTH[:, t] = h
        return outputs_BTH

    def forward(self, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and loss."""
        logits = self.lm_head(self.outputs(ids_BT)) * 0.1
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets_BT.flatten())


def baseline_step(ids: torch.Tensor) -> Callable[[], None]:
    """A step of the loop."""
    torch.manual_seed(0)
    network = LoopLSTM()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)

    logits: torch.Tensor | None = None

    def step() -> None:
        nonlocal logits  # they live until the next forward pass has ended, as in the original
        logits, loss = network(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(ids: np.ndarray) -> Callable[[], None]:
    """A step of textlstm's trainer, evaluation and checkpoints off."""
    model = ModelConfig.from_dict(PRESETS["original"]["model"])
    train = TrainConfig.from_dict({**PRESETS["original"]["train"], "eval_every": 10_000, "checkpoint_every": 10_000})
    reader = LaneReader(ids, BATCH, LENGTH, 0.0, 0, model.boundary_id, np.zeros(VOCAB, dtype=bool))
    trainer = Trainer(model, train, reader)
    return lambda: trainer.advance() and None


def main() -> None:
    """Times both in turn."""
    rng = np.random.default_rng(0)
    baseline = baseline_step(torch.from_numpy(rng.integers(0, VOCAB - 1, (BATCH, LENGTH + 1))))
    ours = our_step(rng.integers(0, VOCAB - 1, 60 * BATCH * LENGTH).astype(np.int32))
    times: dict[str, list[float]] = {"python_loop": [], "textlstm": []}
    for run in range(RUNS + 1):  # the first is the warm-up
        for name, step in (("python_loop", baseline), ("textlstm", ours)):
            started = time.perf_counter()
            step()
            if run:
                times[name].append(time.perf_counter() - started)
                print(f"{name:12} step {run}: {times[name][-1]:.2f} s")
    ratios = [a / b for a, b in zip(times["python_loop"], times["textlstm"], strict=True)]
    report(
        "original_step",
        {"seconds": {name: spread(values) for name, values in times.items()}, "times_as_fast": spread(ratios)},
    )


if __name__ == "__main__":
    main()
