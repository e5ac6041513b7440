"""The race: who predicts held-out text best after some minutes of training on the same machine?

    TEXTLSTM_CORPORA=FOLDER python benchmarks/peers/race.py --minutes 3 --results mine.jsonl --docs mine
    python benchmarks/peers/race.py --minutes 3 --texts unseen --results mine.jsonl --docs mine
    python benchmarks/peers/race.py --draw

FOLDER holds the true tinyshakespeare.txt. Every contestant gets the same text, of which the last tenth is held out,
and the same minutes, one after the other, each in a process of its own. Scoring the held-out text for the curve is
nobody's time. Each adds a line to the file of results (`benchmarks/results/race.jsonl` if none is named); what stands
there is not run again. Then the page and its picture are drawn from that file. `unseen` means the five texts of
`texts.py`, on which ours meets the two GPTs alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import texts
from card import machine_card
from report import GPTS, NAMES, OURS, RESULTS, draw, read_lines

HERE = Path(__file__).parent
LOAD = Path("/proc/loadavg")  # its fourth field begins with the number of threads that want a core now


def run(name: str, contestant: str, minutes: float, seed: int) -> dict[str, Any]:
    """Lets one contestant run, and returns its line."""
    text = texts.read(name)
    others, machine = waiting(), machine_card()  # whose threads spin for a while
    if others:
        print(f"the machine is busy ({others} others want a core now): the times will not hold", file=sys.stderr)
    print(f"{contestant} on {name}, {minutes:g} min ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.txt")
        path.write_bytes(text.encode())
        command = [sys.executable, str(HERE / "contestants.py"), contestant, str(path)]
        options = ["--minutes", str(minutes), "--seed", str(seed)]
        done = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True)
    held_out = len(texts.split(text)[1])
    return {
        "text": name, "contestant": contestant, "minutes": minutes, "seed": seed, "chars": len(text),
        "held_out": held_out, "sha256": texts.fingerprint(text), **json.loads(done.stdout.splitlines()[-1]),
        "machine": machine,
    }  # fmt: skip


def waiting() -> int:
    """Threads besides this one that want a core now; the load of the last minute is that of the last contestant."""
    running = int(LOAD.read_text().split()[3].partition("/")[0]) if LOAD.exists() else 0
    return max(0, running - 1)  # some sandboxes count nobody


def race(
    names: Sequence[str], contestants: Sequence[str], minutes: float, seeds: Sequence[int], results: Path
) -> None:
    """Runs what is not in the file yet, one after the other; without names of contestants, those of each text."""
    known = {(line["text"], line["contestant"], line["minutes"], line["seed"]) for line in read_lines(results)}
    for name in names:
        for seed in seeds:  # outermost: a slow quarter of an hour of the machine then is everybody's
            for contestant in contestants or (NAMES if name == texts.TINY else (OURS, *GPTS)):
                told_already = contestant == "compressors" and seed != seeds[0]
                if told_already or (name, contestant, minutes, seed) in known:
                    continue
                line = json.dumps(run(name, contestant, minutes, seed))
                with results.open("a") as file:
                    file.write(line + "\n")
                print(line, flush=True)


def main() -> None:
    """Runs and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--texts", nargs="+", default=[texts.TINY], choices=[texts.TINY, *texts.SOURCES, "unseen"])
    parser.add_argument("--contestants", nargs="+", default=[], choices=NAMES, help="not all of the text's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that the lines are added to")
    parser.add_argument("--docs", type=Path, help="folder that the page is drawn in; docs/ for the usual results")
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    given = parser.parse_args()
    if not given.draw:
        names = [name for wanted in given.texts for name in (texts.UNSEEN if wanted == "unseen" else [wanted])]
        race(names, given.contestants, given.minutes, given.seeds, given.results)
    draw(given.results, given.docs)


if __name__ == "__main__":
    main()
