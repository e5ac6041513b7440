"""What every benchmark prints around its numbers: the machine card, medians and spreads, one JSON line last."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from textlstm.bench.card import machine_card


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
