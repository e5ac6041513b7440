"""Texts of 100 MB to 1 GB: encoding, 100 steps of training and a second start, each as a process of its own.

    python benchmarks/big_corpus.py [FOLDER]

The texts are made by this script, the same from the same seed, and kept in FOLDER (default: a temporary one, which
needs 8 GB). Reported are, as medians of three starts, megabytes per second, the peak resident memory of the largest
process and of all together, the seconds of each stage, those from the command `textlstm train` to its first step where
the cache is full, and how time and memory grow with the text.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from card import report

SIZES = {"100 MB": 100_000_000, "500 MB": 500_000_000, "1 GB": 1_000_000_000}
WORKERS = 2
STEPS = 100
ROUNDS = 3  # first starts, each with an empty cache, and starts up to the first step


def make_text(path: Path, size: int, seed: int = 1) -> None:
    """Word-like text: 20,000 words by Zipf's law, in sentences and paragraphs."""
    if path.exists() and path.stat().st_size >= size:
        return
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    syllables = [c + v for c in "bcdfghklmnprstvw" for v in "aeiou"]
    words = np.array(["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(20_000)], dtype=object)
    shares = 1 / (np.arange(len(words)) + 3.0)
    ends = np.array([*[" "] * 16, ", ", ". ", ".\n", "?\n\n"], dtype=object)
    written = 0
    with path.open("w", encoding="ascii") as file:
        while written < size:
            drawn = words[numbers.choice(len(words), 200_000, p=shares / shares.sum())]
            written += file.write("".join((drawn + ends[numbers.integers(len(ends), size=len(drawn))]).tolist()))


def peak_memory(pid: int, stop: threading.Event, peaks: dict[str, int]) -> None:
    """Watches a process and its children until told to stop: the most of a single one and of all together, in bytes.

    Of all together, what they share is counted once.
    """
    while not stop.wait(0.05):
        family, resident, shared_once = {pid}, [0], 0
        for entry in sorted((e for e in os.listdir("/proc") if e.isdigit()), key=int):
            try:
                parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
                if int(entry) in family or parent in family:
                    family.add(int(entry))
                    lines = Path("/proc", entry, "smaps_rollup").read_text().splitlines()
                    sizes = {line.split()[0]: 1024 * int(line.split()[1]) for line in lines[1:]}
                    resident.append(sizes["Rss:"])
                    shared_once += sizes["Pss:"]
            except (OSError, KeyError, IndexError):
                continue
        peaks["largest"] = max(peaks.get("largest", 0), *resident)
        peaks["together"] = max(peaks.get("together", 0), shared_once)


CHILD = """
import json, os, sys, time
started = time.perf_counter()
times = {}
def mark(name):
    global started
    now = time.perf_counter()
    times[name], started = now - started, now
def main():  # imports nothing outside, as the command line: workers import this script
    from textlstm.config import CorpusConfig
    from textlstm.corpus import read_corpus
    from textlstm.run import tokenizer_of
    from textlstm.view import View
    name, path, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    mark("imports")
    corpus = read_corpus([path], CorpusConfig(val_chars=10_000, max_dev_chars=10_000))
    corpus.fingerprint
    mark("reading")
    tokenizer = tokenizer_of(name, corpus, 4095, View())
    mark("tokenizer")
    tokens = corpus.encode(tokenizer, tokenizer.vocab_size, workers)
    mark("encoding")
    cpu = sum(os.times()[:4])
    print(json.dumps({"seconds": times, "cpu": cpu, "tokens": len(tokens.train), "bytes": corpus.train.num_bytes}))
if __name__ == "__main__":
    main()
"""


def first_step_after(command: list[str], environment: dict[str, str], log: Path) -> float:
    """Seconds from a command of training to the first line of its log; it is stopped then."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while not log.exists() and process.poll() is None:
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        process.kill()
    if not log.exists():
        sys.exit(f"{command} ended with {process.returncode} before its first step")
    return seconds


def watched(command: list[str], environment: dict[str, str]) -> tuple[str, float, dict[str, int]]:
    """Runs a command; its output, seconds and peak memory."""
    started, stop, peaks = time.perf_counter(), threading.Event(), dict[str, int]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        watcher = threading.Thread(target=peak_memory, args=(process.pid, stop, peaks))
        watcher.start()
        out = process.communicate()[0]
        stop.set()
        watcher.join()
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return out, time.perf_counter() - started, peaks


def preparing(start: dict[str, Any]) -> float:
    """Seconds that a start read and encoded."""
    return float(start["seconds"]["reading"] + start["seconds"]["encoding"])


def measure(text: Path, tokenizer: str, folder: Path) -> dict[str, Any]:
    """First start, second start and a short training on one text."""
    cache = folder / "cache"
    environment = {**os.environ, "TEXTLSTM_CACHE": str(cache)}
    script = folder / "child.py"
    script.write_text(CHILD)
    child = [sys.executable, str(script), tokenizer, str(text), str(WORKERS)]
    starts = []
    for _ in range(ROUNDS):
        shutil.rmtree(cache, ignore_errors=True)
        out, _, peaks = watched(child, environment)
        starts.append((json.loads(out), peaks))
    starts.sort(key=lambda start: preparing(start[0]))
    first, peaks = starts[ROUNDS // 2]
    second = json.loads(watched(child, environment)[0])
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    train = [
        sys.executable, "-m", "textlstm", "train", str(text), "--out", str(run), "--steps", str(STEPS), "--tokenizer",
        tokenizer, "--val-chars", "10000", "--max-dev-chars", "10000", "--hidden-size", "128", "--embed-size", "128",
        "--quiet", "--json",
    ]  # fmt: skip
    if tokenizer == "bpe":
        train += ["--vocab-size", "4096"]
    first_steps = []
    for _ in range(ROUNDS):
        first_steps.append(first_step_after(train, environment, run / "log.jsonl"))
        shutil.rmtree(run)
    _, seconds, training_peaks = watched(train, environment)
    return {
        "megabytes_per_second": first["bytes"] / first["seconds"]["encoding"] / 1e6,
        "megabytes_per_second_with_reading": first["bytes"]
        / (first["seconds"]["encoding"] + first["seconds"]["reading"])
        / 1e6,
        "first_start_seconds": first["seconds"],
        "reading_and_encoding_seconds_of_all": [preparing(start) for start, _ in starts],
        "first_start_cpu_seconds": first["cpu"],  # of all processes, imports included: for a busy machine
        "second_start_seconds": second["seconds"],
        "second_start_to_first_step_seconds": statistics.median(first_steps),
        "second_start_to_first_step_seconds_of_all": sorted(first_steps),
        "tokens": first["tokens"],
        "peak_megabytes": {name: value / 1e6 for name, value in peaks.items()},
        "training_seconds": seconds,
        "training_peak_megabytes": {name: value / 1e6 for name, value in training_peaks.items()},
    }


def against_size(results: dict[str, dict[str, Any]], tokenizer: str) -> dict[str, float]:
    """How time and memory grow with the text: 1 is linear time (starting costs do not count), and equal memory."""
    small, middle, large = (results[f"{size}, {tokenizer}"] for size in SIZES)
    seconds = [statistics.median(r["reading_and_encoding_seconds_of_all"]) for r in (small, middle, large)]
    first, second, third = SIZES.values()
    later, earlier = (seconds[2] - seconds[1]) / (third - second), (seconds[1] - seconds[0]) / (second - first)
    return {
        "seconds_per_byte_above_500_MB_to_below": later / earlier,
        "peak_memory_1_GB_to_100_MB": large["peak_megabytes"]["together"] / small["peak_megabytes"]["together"],
        "training_peak_memory_1_GB_to_100_MB": large["training_peak_megabytes"]["together"]
        / small["training_peak_megabytes"]["together"],
    }


def main() -> None:
    """Measures all sizes with both tokenizers."""
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given[0] if given else temporary)
        folder.mkdir(exist_ok=True)
        results = {}
        for size, number in SIZES.items():
            text = folder / f"{number}.txt"
            make_text(text, number)
            os.utime(text, (time.time() - 100, time.time() - 100))
            for tokenizer in ("bpe", "byte"):
                results[f"{size}, {tokenizer}"] = measured = measure(text, tokenizer, folder)
                print(size, tokenizer, json.dumps(measured), file=sys.stderr)
        summary = {name: against_size(results, name) for name in ("bpe", "byte")}
        report("big_corpus", {"workers": WORKERS, "steps": STEPS, "against_size": summary, **results})


if __name__ == "__main__":
    main()
