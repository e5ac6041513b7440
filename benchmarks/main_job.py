"""The main job, as whole processes: time to the original program's loss, and from the shell to the first text.

    TEXTLSTM_CORPORA=FOLDER python benchmarks/main_job.py

FOLDER holds the true tinyshakespeare.txt, or it is downloaded; the text rebuilt from the plays is refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from card import report, spread

from textlstm.corpus.named import find

TARGET = "1.9007"  # nats per character: 5.86 per GPT-2 token
RUNS = 5


def command(*arguments: str) -> list[str]:
    """A textlstm command."""
    return [sys.executable, "-m", "textlstm", *arguments]


def time_to_loss(folder: str) -> dict[str, float]:
    """Seconds from the start of the process to the target, by the run's own account and by this clock."""
    split = ("--val-chars", "104217", "--time-to-loss", TARGET, "--json", "--out", "run")
    started = time.perf_counter()
    done = subprocess.run(command("train", "tiny-shakespeare", *split), cwd=folder, capture_output=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return {
        "seconds_to_loss": answer["seconds_to_loss"],
        "seconds_of_the_process": time.perf_counter() - started,
        "nats_per_char": answer["val"]["nats_per_char"],
    }


def first_text() -> tuple[float, float]:
    """Seconds from the shell to the first character, and to the exit, of 200 characters by the shipped model."""
    started = time.perf_counter()
    arguments = command("generate", "shakespeare", "--max-chars", "200", "--seed", "1")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        first = time.perf_counter() - started
        process.stdout.read()
    return first, time.perf_counter() - started


def main() -> None:
    """Runs both."""
    corpus = find("tiny-shakespeare")
    assert corpus is not None
    if not corpus.load(print).canonical:
        sys.exit("this benchmark needs the true Tiny Shakespeare; name its folder in TEXTLSTM_CORPORA")
    if folder := os.environ.get("TEXTLSTM_CORPORA"):
        os.environ["TEXTLSTM_CORPORA"] = str(Path(folder).resolve())
    with tempfile.TemporaryDirectory() as folder:
        reached = time_to_loss(folder)
    first_text()
    times = [first_text() for _ in range(RUNS)]
    report(
        "main_job",
        {
            "time_to_loss": reached,
            "generate_first_character": spread([first for first, _ in times]),
            "generate_200_characters": spread([whole for _, whole in times]),
        },
    )


if __name__ == "__main__":
    main()
