"""A training step as `train` takes it beside our compiled LSTM steps and oneDNN's in fp32, in turn in one process.

    GOMP_SPINCOUNT=2000 python benchmarks/training.py

For each size: milliseconds a step, the ratios to oneDNN's, and the share of the sgemm peak, which is measured in
between. `usual` is what `train` does if nobody names a precision: bf16 on a processor with AMX, else `compiled` again.
The operations are those of the matrix products; the text is random, which costs the same. The variable is what `train`
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
from textlstm.trainer.device import usual_precision
from textlstm.trainer.speed import sgemm_peak

SIZES = (
    (192, 12, 64), (256, 12, 64), (320, 12, 64), (384, 12, 64), (384, 16, 64), (320, 24, 64), (384, 24, 64),
    (512, 16, 64), (512, 24, 64), (512, 32, 96),
)  # fmt: skip
VOCAB, ROUNDS, WARM_UP = 1024, 12, 5


def measure(hidden: int, lanes: int, length: int) -> dict[str, Any]:
    """One size."""
    model = ModelConfig(vocab_size=VOCAB, embed_size=hidden, hidden_size=hidden)
    train = TrainConfig(batch_size=lanes, seq_len=length, jitter=0.0, steps=10_000, precision="fp32")
    ids = np.random.default_rng(0).integers(0, VOCAB, lanes * length * 64).astype(np.int32)
    kernel = kernels.load("avx512")
    if kernel is None:
        sys.exit("the compiled steps do not run on this machine: it has no AVX-512")
    ways = {"usual": kernel, "compiled": kernel, "onednn": None}  # without one the network takes torch's: oneDNN's
    precisions = {name: usual_precision("cpu") if name == "usual" else "fp32" for name in ways}
    trainers = {
        name: Trainer(
            model, train.replace(precision=precision),
            LaneReader(ids, lanes, length, 0.0, 0, None, np.zeros(VOCAB, dtype=bool)),
        )
        for name, precision in precisions.items()
    }  # fmt: skip
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
    flops = model.training_flops(lanes * length)
    return {
        "sgemm_gflops": round(peak / 1e9),
        "ms": {name: spread([1e3 * s for s in values]) for name, values in seconds.items()},
        "usual_precision": precisions["usual"],
        "ratio": {
            name: statistics.median(a / b for a, b in zip(seconds["onednn"], values, strict=True))
            for name, values in seconds.items()
        },
        "share_of_sgemm": {n: flops / statistics.median(values) / peak for n, values in seconds.items()},
    }


def main() -> None:
    """Measures all sizes."""
    report("training", {f"2 x {h}, {lanes} x {length}": measure(h, lanes, length) for h, lanes, length in SIZES})


if __name__ == "__main__":
    main()
