"""The main job, as a whole process: time to the original program's loss.

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

from card import report
from tiny import true_text

TARGET = "1.9007"  # nats per character: 5.86 per GPT-2 token


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


def main() -> None:
    """Runs it."""
    true_text()  # or the program ends
    if folder := os.environ.get("TEXTLSTM_CORPORA"):
        os.environ["TEXTLSTM_CORPORA"] = str(Path(folder).resolve())
    with tempfile.TemporaryDirectory() as folder:
        reached = time_to_loss(folder)
    report("main_job", {"time_to_loss": reached})


if __name__ == "__main__":
    main()
