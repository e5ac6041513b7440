"""From the shell to the first character and to the exit of `textlstm generate`, and the memory it takes.

    python benchmarks/start.py

Whole processes write 200 characters: with the shipped `shakespeare`, and with a 2 x 512 model of as many ids in
int8, whose weights are random.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from card import report, spread
from generation import random_weights

import textlstm
from textlstm.model_file import write_model

RUNS = 9


def command(model: str) -> list[str]:
    """Writes 200 characters."""
    return [sys.executable, "-m", "textlstm", "generate", model, "--max-chars", "200", "--seed", "1"]


def times(model: str) -> tuple[float, float]:
    """Seconds to the first character and to the exit."""
    started = time.perf_counter()
    with subprocess.Popen(command(model), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        first = time.perf_counter() - started
        process.stdout.read()
    assert process.returncode == 0
    return first, time.perf_counter() - started


def resident_mb(model: str) -> float:
    """The most memory that a process had resident; a small one starts it, since Linux counts the starter's too."""
    script = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", script, *command(model)], capture_output=True, check=True)
    return int(done.stdout) * 1024 / 1e6


def main() -> None:
    """Runs both models in turn, once to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "random.safetensors")
        shipped = textlstm.load("shakespeare")
        config = shipped.config.replace(embed_size=512, hidden_size=512)
        write_model(path, config, shipped.tokenizer, random_weights(config), {}, "int8")
        models = {"shakespeare": "shakespeare", f"2 x 512, {path.stat().st_size / 1e6:.1f} MB": str(path)}
        results = {}
        for name, model in models.items():
            times(model)  # warms up
            first, whole = zip(*[times(model) for _ in range(RUNS)], strict=True)
            results[name] = {
                "seconds_to_first_character": spread(list(first)),
                "seconds_to_exit": spread(list(whole)),
                "resident_mb": resident_mb(model),
            }
            print(f"{name}: {results[name]}")
    report("start", results)


if __name__ == "__main__":
    main()
