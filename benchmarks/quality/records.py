"""Runs trainings that are quoted, each by the one command that reproduces it, and keeps what came out.

    TEXTLSTM_CORPORA=FOLDER python benchmarks/quality/records.py minutes-3 --seeds 0 1 2 --results mine.jsonl
    TEXTLSTM_CORPORA=FOLDER python benchmarks/quality/records.py --list

FOLDER holds the true tinyshakespeare.txt; the text rebuilt from the plays is refused. Each finished run adds a line to
the file of results (`benchmarks/results/records.jsonl` if none is named): the command, the seed, the held-out score
with its protocol, steps, operations and the machine. A run that was stopped goes on from its run folder (`--runs`),
and one that stands in the file is not repeated. `static` and `tuned-1e14` were trained when the embedding began
smaller (0.1 instead of 0.3), so they come out a little different. The held-out text chooses nothing: it is scored
whole at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from card import machine_card
from tiny import true_text

from textlstm.config import ModelConfig

RESULTS = Path(__file__).parents[1] / "results" / "records.jsonl"
ORIGINAL = ("--val-chars", "104217")  # the split of the original program; without it the last tenth, `tail10`
ROWS: dict[str, tuple[str, ...]] = {
    "minutes-1": ("tiny-shakespeare", "--minutes", "1"),
    "minutes-3": ("tiny-shakespeare", "--minutes", "3"),
    "minutes-10": ("tiny-shakespeare", "--minutes", "10"),
    "minutes-30": ("tiny-shakespeare", "--minutes", "30"),
    "minutes-60": ("tiny-shakespeare", "--minutes", "60"),
    "minutes-3-original": ("tiny-shakespeare", "--minutes", "3", *ORIGINAL),
    "minutes-30-original": ("tiny-shakespeare", "--minutes", "30", *ORIGINAL),
    "minutes-100-original": ("tiny-shakespeare", "--minutes", "100", *ORIGINAL),
    "static": (  # the temperature is that of the same run on the training text without its last tenth, on that tenth
        "tiny-shakespeare", "--steps", "39420", "--hidden-size", "384", "--embed-size", "384", "--batch-size", "12",
        "--lr", "7e-3", "--lr-final", "0.2", "--input-dropout", "0.2", "--layer-dropout", "0.2",
        "--output-dropout", "0.3", "--weight-dropout", "0.2", "--weight-decay", "0.1", "--ema", "0.9999",
        "--merge-dropout", "0.15", "--calibration-temperature", "1.16", "--dev-fraction", "0", "--eval-every", "1971",
        "--activation-penalty", "0", *ORIGINAL,
    ),
    "static-penalty": (  # not calibrated
        "tiny-shakespeare", "--steps", "39420", "--hidden-size", "384", "--embed-size", "384", "--batch-size", "12",
        "--lr", "7e-3", "--lr-final", "0.2", "--input-dropout", "0.2", "--layer-dropout", "0.2",
        "--output-dropout", "0.2", "--weight-dropout", "0.2", "--weight-decay", "0.1", "--ema", "0.9999",
        "--merge-dropout", "0.15", "--activation-penalty", "7.7", "--dev-fraction", "0", "--eval-every", "1971",
        *ORIGINAL,
    ),
    "tuned-1e14": (
        "tiny-shakespeare", "--steps", "7884", "--hidden-size", "384", "--embed-size", "384", "--batch-size", "12",
        "--lr", "7e-3", "--input-dropout", "0.2", "--layer-dropout", "0.2", "--output-dropout", "0.3",
        "--weight-dropout", "0.2", "--ema", "0.995", "--dev-fraction", "0", "--eval-every", "788",
        "--activation-penalty", "0", *ORIGINAL,
    ),
    "original-60": (  # the original's network and vocabulary; all else is ours
        "tiny-shakespeare", "--preset", "original", "--steps", "3200", "--batch-size", "12", "--seq-len", "64",
        "--jitter", "0.25", "--logit-scale", "1", "--lr", "4e-3", "--lr-final", "0", "--warmup", "0.03", "--clip", "1",
        "--weight-decay", "0.2", "--embed-dropout", "0.1", "--input-dropout", "0.2", "--output-dropout", "0.4",
        "--weight-dropout", "0.3", "--label-smoothing", "0.02", "--unigram-bias", "--spike-sigmas", "6",
        "--ema", "0.997", "--merge-dropout", "0.1", "--eval-every", "320", *ORIGINAL,
    ),
    "gpt2-pruned-30": ("tiny-shakespeare", "--minutes", "30", "--tokenizer", "gpt2-pruned", *ORIGINAL),
}  # fmt: skip


def train(row: str, seed: int, runs: Path) -> dict[str, object]:
    """Trains a row, or goes on with it, and returns its line."""
    return {"row": row, "seed": seed, **trained([*ROWS[row], "--seed", str(seed)], runs / f"{row}-{seed}")}


def trained(options: Sequence[str], folder: Path) -> dict[str, object]:
    """Runs `textlstm train` with some options, or goes on where it stopped, and tells what came out."""
    arguments = ["train", *options]
    command = [sys.executable, "-m", "textlstm", *arguments, "--out", str(folder), "--resume", "--json"]
    before = machine_card()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    config = answer["config"]
    model, settings = ModelConfig.from_dict(config["model"]), config["train"]
    tokens = answer["steps"] * settings["batch_size"] * settings["seq_len"]
    return {
        "command": " ".join(["textlstm", *arguments]), "val": answer["val"], "predicted": answer["predicted"],
        "steps": answer["steps"],
        "seconds": answer["seconds"], "params": answer["params"], "flops": model.training_flops(tokens),
        "model": config["model"], "train": settings, "machine": before,
    }  # fmt: skip


def main() -> None:
    """Runs what is asked, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="what to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that the lines are added to")
    parser.add_argument("--list", action="store_true", help="name the rows and their commands")
    arguments = parser.parse_args()
    if arguments.list:
        for row, options in ROWS.items():
            print(f"{row:22} textlstm train {' '.join(options)}")
        return
    true_text()  # or the program ends
    results = arguments.results
    lines = map(json.loads, results.read_text().splitlines()) if results.exists() else []
    known = {(line["row"], line["seed"]) for line in lines}
    for row in arguments.rows:
        for seed in arguments.seeds:
            if (row, seed) in known:
                print(f"{row}, seed {seed}: stands in {results}; --results names another file", file=sys.stderr)
                continue
            line = json.dumps(train(row, seed, arguments.runs))
            with results.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
