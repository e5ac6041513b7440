"""A training step with our compiled LSTM steps beside the same step with oneDNN's, alternating in one process.

    GOMP_SPINCOUNT=2000 python benchmarks/training.py

For each size: milliseconds a step, their ratio, and the share of the sgemm peak, which is measured in between. The
operations are those of the matrix products; the text is random, which costs the same. The variable is what `train`
sets for OpenMP's threads before it loads torch; this program loads it at once.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any
from unittest import mock

import numpy as np
from card import report, spread

from textlstm import kernels
from textlstm.config import ModelConfig, TrainConfig
from textlstm.corpus import LaneReader
from textlstm.trainer import Trainer
from textlstm.trainer.speed import sgemm_peak

SIZES = ((320, 12, 64), (320, 24, 64), (384, 24, 64), (512, 16, 64), (512, 24, 64), (512, 32, 96))
VOCAB, ROUNDS, WARM_UP = 1024, 12, 5


def measure(hidden: int, lanes: int, length: int) -> dict[str, Any]:
    """One size."""
    model = ModelConfig(vocab_size=VOCAB, embed_size=hidden, hidden_size=hidden)
    train = TrainConfig(batch_size=lanes, seq_len=length, jitter=0.0, steps=10_000)
    ids = np.random.default_rng(0).integers(0, VOCAB, lanes * length * 64).astype(np.int32)
    kernel = kernels.load("avx512")
    if kernel is None:
        sys.exit("the compiled steps do not run on this machine: it has no AVX-512")
    ways = {"compiled": kernel, "onednn": None}  # without a kernel the network takes torch's, which is oneDNN's
    trainers = {
        name: Trainer(model, train, LaneReader(ids, lanes, length, 0.0, 0, None, np.zeros(VOCAB, dtype=bool)))
        for name in ways
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = []
    for attempt in range(WARM_UP + ROUNDS):
        peaks.append(sgemm_peak(seconds=0.1))
        for name, way in ways.items():
            with mock.patch.object(kernels, "load", lambda kind, way=way: way):
                started = time.perf_counter()
                trainers[name].advance()
                if attempt >= WARM_UP:
                    seconds[name].append(time.perf_counter() - started)
    peak = statistics.median(peaks)
    flops = 3 * model.flops_per_token * lanes * length
    return {
        "sgemm_gflops": round(peak / 1e9),
        "ms": {name: spread([1e3 * s for s in values]) for name, values in seconds.items()},
        "ratio": statistics.median(a / b for a, b in zip(seconds["onednn"], seconds["compiled"], strict=True)),
        "share_of_sgemm": {n: flops / statistics.median(values) / peak for n, values in seconds.items()},
    }


def main() -> None:
    """Measures all sizes."""
    report("training", {f"2 x {h}, {lanes} x {length}": measure(h, lanes, length) for h, lanes, length in SIZES})


if __name__ == "__main__":
    main()
