"""How fast this machine trains: measured before a run is planned, and shown beside its progress."""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import torch

from textlstm.config import ModelConfig, TrainConfig
from textlstm.corpus import LaneReader
from textlstm.network import RecurrentLM
from textlstm.trainer import Callbacks, Trainer
from textlstm.trainer.device import usual_precision
from textlstm.trainer.distributed import Group

_GAIN = 1.45  # of whole training steps, 2 x 192 to 2 x 512, by bf16 on a processor with AMX: 1.3 to 1.6


def sgemm_peak(device: str = "cpu", seconds: float = 0.3) -> float:
    """The machine's best rate of fp32 matrix multiplication, in floating-point operations per second.

    Args:
        device: what multiplies.
        seconds: how long to try.
    """
    a, b = (torch.ones(1536, 1536, device=device) for _ in range(2))
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        float(torch.mm(a, b)[0, 0])  # a GPU works on after the call returns; the number waits for it
        best = min(best, time.perf_counter() - started)
    return 2 * 1536**3 / best


def planning_peak(device: str, precision: str) -> float:
    """The rate to plan with: the peak of fp32 products, raised by what a step gains where others are usual."""
    return sgemm_peak(device) * (_GAIN if precision == "bf16" == usual_precision(device) else 1)


def peak_memory(device: str = "cpu") -> int:
    """The most memory that this process has held so far, in bytes: of a GPU of Nvidia its own, else the machine's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # its system does not tell this by Python's own means
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def measure_step(
    model: ModelConfig, train: TrainConfig, device: str = "cpu", seconds: float = 2.0, group: Group | None = None
) -> float:
    """Seconds per training step of this configuration on this machine: the median of steps on made-up tokens.

    Args:
        model, train: the configuration.
        device: where it trains.
        seconds: how long to measure; at least eight steps, of which the first three do not count.
        group: the processes that train together; all of them have to measure.
    """
    tokens = train.batch_size * train.seq_len * 64
    ids = np.random.default_rng(0).integers(0, model.vocab_size, tokens).astype(np.int32)
    line_end_V = np.zeros(model.vocab_size, dtype=bool)
    reader = LaneReader(ids, train.batch_size, train.seq_len, train.jitter, 0, None, line_end_V)
    trainer = Trainer(
        model,
        train.replace(steps=10_000, eval_every=10_000, checkpoint_every=10_000),
        reader,
        device=device,
        group=group,
    )
    times: list[float] = []
    end = time.perf_counter() + seconds

    def enough() -> str | None:
        return "measured" if len(times) >= 8 and time.perf_counter() > end else None

    # A step's length varies with the jitter; seconds per token do not.
    trainer.run(Callbacks(on_step=lambda report: times.append(report.seconds / report.tokens), stop=enough))
    return float(np.median(times[3:])) * train.batch_size * train.seq_len


def measure_reading(model: ModelConfig, device: str = "cpu", tokens: int = 512, lanes: int = 1) -> float:
    """Seconds per token of reading: in one lane as the final score does, in several as looks do.

    Args:
        model: the configuration.
        device: what reads.
        tokens: how many to try.
        lanes: how many are read side by side.
    """
    network = RecurrentLM(model, torch.Generator().manual_seed(0)).to(device)
    ids = np.zeros((lanes, tokens // lanes), dtype=np.int64)
    network.nll(ids, ids, network.zero_state(lanes))
    started = time.perf_counter()
    network.nll(ids, ids, network.zero_state(lanes))
    return (time.perf_counter() - started) / ids.size
