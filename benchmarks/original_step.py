"""One training step of the original program's model: its Python-loop cell against textlstm, in one run.

    python benchmarks/original_step.py

Both train the same network (GPT-2 vocabulary, embedding 192, linear to 512, one LSTM layer of 512, untied output) on
the same made-up tokens, batch 8 x 256, AdamW 3e-4, no clipping; ours in the precision that `train` takes on this
machine, and where that is bf16 (processors with AMX) in fp32 too. The baseline is the obvious program: the cell from
its equations, four linear layers on [h; x] for each of 256 steps, then the output layer and cross-entropy. Steps of
all are taken in turn, so that a change of the machine's speed meets all.
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
from textlstm.trainer.device import usual_precision

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


def our_step(ids: np.ndarray, precision: str) -> Callable[[], None]:
    """A step of textlstm's trainer, evaluation and checkpoints off."""
    model = ModelConfig.from_dict(PRESETS["original"]["model"])
    apart = {"eval_every": 10_000, "checkpoint_every": 10_000, "precision": precision}
    train = TrainConfig.from_dict({**PRESETS["original"]["train"], **apart})
    reader = LaneReader(ids, BATCH, LENGTH, 0.0, 0, model.boundary_id, np.zeros(VOCAB, dtype=bool))
    trainer = Trainer(model, train, reader)
    return lambda: trainer.advance() and None


def main() -> None:
    """Times both in turn."""
    rng = np.random.default_rng(0)
    baseline = baseline_step(torch.from_numpy(rng.integers(0, VOCAB - 1, (BATCH, LENGTH + 1))))
    text = rng.integers(0, VOCAB - 1, 60 * BATCH * LENGTH).astype(np.int32)
    usual = usual_precision("cpu")
    steps = {"python_loop": baseline, "textlstm": our_step(text, usual)}
    if usual != "fp32":
        steps["textlstm_fp32"] = our_step(text, "fp32")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(RUNS + 1):  # the first is the warm-up
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if run:
                times[name].append(time.perf_counter() - started)
                print(f"{name:13} step {run}: {times[name][-1]:.2f} s")
    loop = times.pop("python_loop")
    ratios = {name: [a / b for a, b in zip(loop, ours, strict=True)] for name, ours in times.items()}
    report(
        "original_step",
        {
            "precision": usual,
            "seconds": {name: spread(values) for name, values in {"python_loop": loop, **times}.items()},
            "times_as_fast": {name: spread(values) for name, values in ratios.items()},
        },
    )


if __name__ == "__main__":
    main()
