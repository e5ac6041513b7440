"""What every benchmark prints around its numbers: the machine card, medians and spreads, one JSON line last."""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy
import torch

from textlstm.trainer.speed import sgemm_peak


def machine_card() -> dict[str, Any]:
    """The machine, its load and the versions, taken now."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "sgemm_gflops": round(sgemm_peak() / 1e9),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Median, least and most of some runs."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def report(name: str, results: dict[str, Any]) -> None:
    """Prints the results, and as the last line one JSON object; also writes it to benchmarks/results/NAME.json."""
    line = json.dumps({"benchmark": name, "machine": machine_card(), **results})
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(line + "\n")
    print(line)
