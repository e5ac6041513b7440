"""What `--learn` brings, text by text, and what it costs: nats per character with fixed weights and learning, seconds.

    python benchmarks/learning.py MODEL FILE... [--context FILE] [--learn-from FILE]

A model that was not trained on the files; --context is the end of its training text where they follow it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from card import report

from textlstm.model import Model


def main() -> None:
    """Scores each file twice, on one core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--context", type=Path)
    parser.add_argument("--learn-from", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = Model.load(arguments.model, threads=1)
    context = "" if arguments.context is None else arguments.context.read_text(encoding="utf-8")
    if arguments.learn_from is not None:
        started = time.perf_counter()
        model = model.primed(arguments.learn_from.read_text(encoding="utf-8"))
        print(f"statistics measured in {time.perf_counter() - started:.1f} s")
    rows = []
    for path in arguments.files:
        text = path.read_text(encoding="utf-8")
        static = model.score(text, context=context)
        started = time.perf_counter()
        learnt = model.score(text, context=context, learn=True)
        seconds = time.perf_counter() - started
        rows.append(
            {
                "file": path.name, "chars": len(text), "static": static.nats_per_char, "learnt": learnt.nats_per_char,
                "gain": 1 - learnt.nats / static.nats, "seconds": seconds,
            }
        )  # fmt: skip
        line = "{file}: {chars:,} characters, {static:.4f} -> {learnt:.4f}, {gain:.1%}, {seconds:.0f} s"
        print(line.format(**rows[-1]))
    report("learning", {"model": arguments.model, "statistics": model.learner().source, "rows": rows})


if __name__ == "__main__":
    main()
