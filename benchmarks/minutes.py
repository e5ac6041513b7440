"""Where the time of `train --minutes` goes, how near it lands, and how true its prediction was.

    TEXTLSTM_CORPORA=FOLDER python benchmarks/minutes.py [CASE ...] [--folder FOLDER]

Each case is a process of its own, timed from outside; inside, the parts of a run are timed as they are called. FOLDER
holds the true tinyshakespeare.txt; the gigabyte is made by `big_corpus.py` and kept in --folder (default: a temporary
one). `preparing` is all else: the start of the process, reading, encoding, measuring the machine. Cases that are
named are measured anew, the others keep their numbers.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIGABYTE, SHORT, PLAYS = "1 GB", "10 kB", "Tiny Shakespeare"
CASES = {
    f"{text}, {minutes:g} min": (text, minutes)
    for text, times in ((PLAYS, (0.5, 1, 3, 10)), (SHORT, (0.5,)), (GIGABYTE, (1, 3)))
    for minutes in times
}
PARTS = ("steps", "looks", "checkpoints", "log", "ending")  # in the order in which they are told


def timed(arguments: list[str]) -> None:
    """Runs a command in this process; the last line of standard error tells the seconds of its parts."""
    from textlstm.cli import main
    from textlstm.run.loop import Run
    from textlstm.trainer import Trainer

    spent = defaultdict[str, float](float)
    watched = ((Trainer, "advance"), (Trainer, "_look_with"), (Run, "_save"), (Run, "_on_step"), (Run, "_finish"))
    for part, (owner, name) in zip(PARTS, watched, strict=True):
        setattr(owner, name, _counting(getattr(owner, name), part, spent))
    Run._trained = _after(spent.clear, Run._trained)  # type: ignore[method-assign]  # steps before are measurements
    sys.argv = ["textlstm", *arguments]
    try:
        main()
    finally:
        print(json.dumps(spent), file=sys.stderr)


def _counting(method: Any, part: str, spent: defaultdict[str, float]) -> Any:
    @functools.wraps(method)
    def counted(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            spent[part] += time.perf_counter() - started

    return counted


def _after(first: Callable[[], None], method: Any) -> Any:
    def both(*arguments: Any) -> Any:
        first()
        return method(*arguments)

    return both


def measure(source: str, minutes: float, folder: Path) -> dict[str, Any]:
    """One run: its seconds, the shares of its parts, its steps and its score."""
    command = [
        sys.executable, __file__, "--timed", "train", source, "--minutes", str(minutes), "--out", str(folder / "run"),
        "--json",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as cache:  # an empty one: a first start
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, env={**os.environ, "TEXTLSTM_CACHE": cache}, check=False)
        seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr.decode()}")
    answer, spent = json.loads(done.stdout.splitlines()[-1]), json.loads(done.stderr.splitlines()[-1])
    spent["preparing"] = seconds - sum(spent.values())
    return {
        "asked": 60 * minutes, "seconds": seconds, "parts": spent,
        "shares": {part: value / seconds for part, value in spent.items()},
        "looks_checkpoints_and_log": sum(spent[part] for part in PARTS[1:4]) / seconds,
        "steps": answer["steps"], "model": answer["config"]["model"], "train_chars": answer["train_chars"],
        "nats_per_char": answer["val"]["nats_per_char"], "predicted": answer["predicted"],
    }  # fmt: skip


def source_of(text: str, folder: Path) -> str:
    """What `train` is given for a text."""
    from big_corpus import make_text
    from tiny import true_text

    if text == GIGABYTE:
        path = folder / "1GB.txt"
        make_text(path, 1_000_000_000)
    elif text == SHORT:
        path = folder / "10kB.txt"
        path.write_text(true_text()[:10_000], encoding="utf-8")
    else:
        true_text()
        return "tiny-shakespeare"
    return str(path)


def main() -> None:
    """Measures what is asked."""
    if sys.argv[1:2] == ["--timed"]:
        timed(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="which; none: all")
    parser.add_argument("--folder", type=Path, help="where texts and runs are kept")
    arguments = parser.parse_args()
    from card import machine_card, report  # not before: a run shall import what it needs by itself

    written = Path(__file__).parent / "results" / "minutes.json"
    results = json.loads(written.read_text()) if arguments.cases and written.exists() else {}
    results = {case: results[case] for case in CASES if case in results}
    with tempfile.TemporaryDirectory() as temporary:
        folder = temporary if arguments.folder is None else arguments.folder
        for case in arguments.cases or CASES:
            text, minutes = CASES[case]
            with tempfile.TemporaryDirectory(dir=folder) as runs:
                source, machine = source_of(text, Path(folder).resolve()), machine_card()
                results[case] = {**measure(source, minutes, Path(runs).resolve()), "machine": machine}
            print(json.dumps({case: results[case]}), file=sys.stderr)
    report("minutes", results)


if __name__ == "__main__":
    main()
