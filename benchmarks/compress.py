"""Speed of compress and decompress by number of lanes, on one core, and their size against the bits of `score`.

From 16 lanes on 20 kB/s or more are wanted, both ways; the line says whether the medians reach it.

    python benchmarks/compress.py [FILE]

Without a file: the last 104,217 characters of Tiny Shakespeare, which the shipped model has not been held away from;
the size is therefore no record, its ratio to the score is what counts.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from pathlib import Path

from card import report, spread

from textlstm.config import CorpusConfig
from textlstm.corpus import read_sources
from textlstm.model import Model

LANES = (1, 16, 64)
WANTED = 16, 20.0  # from so many lanes on, kB/s
RUNS = 3


def main() -> None:
    """Times whole calls; loading the model is not in them."""
    if len(sys.argv) > 1:
        data = Path(sys.argv[1]).read_bytes()
    else:
        data = read_sources(["tiny-shakespeare"], CorpusConfig(), print).documents[0].text[-104_217:].encode()
    results: dict[str, object] = {"bytes": len(data)}
    reached = True
    for lanes in LANES:
        model = Model.load("shakespeare")
        model.compress(data[:2000], lanes)
        writing, reading = [], []
        for _ in range(RUNS):
            started = time.perf_counter()
            done = model.compress(data, lanes)
            writing.append(len(data) / 1e3 / (time.perf_counter() - started))
            started = time.perf_counter()
            assert model.decompress(done.data) == data
            reading.append(len(data) / 1e3 / (time.perf_counter() - started))
        bits = model.score(data.decode(), f"stream-{lanes}").nats / math.log(2)
        if lanes >= WANTED[0]:
            reached &= min(statistics.median(writing), statistics.median(reading)) >= WANTED[1]
        results[f"lanes_{lanes}"] = {
            "compress_kb_per_second": spread(writing),
            "decompress_kb_per_second": spread(reading),
            "compressed_bytes": len(done.data),
            "bits_over_score": len(done.data) * 8 / bits - 1,
        }
        print(f"{lanes:3} lanes: {max(writing):6.1f} kB/s, back {max(reading):6.1f} kB/s, {len(done.data):,} bytes")
    print(f"{WANTED[1]:g} kB/s from {WANTED[0]} lanes on: {'reached' if reached else 'missed'}")
    report("compress", {**results, "wanted_kb_per_second": WANTED[1], "reached": reached})


if __name__ == "__main__":
    main()
