"""Trains configurations for the same compute and writes one JSON line for each.

    TEXTLSTM_CORPORA=FOLDER python benchmarks/quality/sweep.py --flops 2e13 --out sweep.jsonl \\
        "vocab-size=512 hidden-size=352" "vocab-size=1024 hidden-size=320 weight-decay=0.5"

A configuration is a list of options of `textlstm train`, without the dashes (and unigram-bias=yes or no); what it
leaves out is the base below, which does not follow the defaults of `train`, so that old lines stay comparable; but for
the embedding, which began at a standard deviation of 0.1 in all lines up to 2026-11-30, and begins at 0.3 now. The
budget is counted in floating-point operations of the matrix products, so that a noisy machine does not change the
result; seconds stand beside it. Runs that are in the file already are not repeated.

The text is the training part of Tiny Shakespeare alone: it is cut off before its last 111,540 characters, which are
the held-out text of both named splits, and of what is left the last tenth is scored. So nothing that is tuned here has
seen the held-out text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from card import machine_card
from tiny import true_text

from textlstm.config import ModelConfig

HELD_OUT = 111_540
BASE = {
    "vocab-size": "1024", "hidden-size": "320", "num-layers": "2", "batch-size": "24", "seq-len": "64", "lr": "5e-3",
    "weight-decay": "0.1", "input-dropout": "0.1", "layer-dropout": "0.15", "output-dropout": "0.2",
    "weight-dropout": "0.1", "ema": "0.99", "beta2": "0.99", "unigram-bias": "no", "seed": "0",
    "activation-penalty": "0",
}  # fmt: skip


def tuning_text() -> str:
    """Tiny Shakespeare without the held-out text of either split; the rebuilt text is refused."""
    return true_text()[:-HELD_OUT]


def steps_for(flops: float, options: dict[str, str]) -> int:
    """Steps that a budget allows."""
    vocab, embed, hidden, layers = (
        int(options[name]) for name in ("vocab-size", "embed-size", "hidden-size", "num-layers")
    )
    model = ModelConfig(vocab_size=vocab, embed_size=embed, hidden_size=hidden, num_layers=layers)
    tokens = int(options["batch-size"]) * int(options["seq-len"])
    return max(1, round(flops / model.training_flops(tokens)))


def run(text: Path, flops: float, name: str) -> dict[str, object]:
    """Trains one configuration and returns its line."""
    options = {**BASE, **dict(setting.split("=", 1) for setting in name.split())}
    options.setdefault("embed-size", options["hidden-size"])
    steps = steps_for(flops, options)
    bias = "--unigram-bias" if options.pop("unigram-bias") == "yes" else "--no-unigram-bias"
    flags = [bias, *(part for key, value in options.items() for part in (f"--{key}", value))]
    machine = machine_card()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "textlstm", "train", str(text), "--out", f"{folder}/run", "--steps", str(steps),
            "--dev-fraction", "0", "--eval-every", str(steps), "--json", "--quiet", *flags,
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        return {"configuration": name, "flops": flops, "failed": done.returncode}
    answer = json.loads(done.stdout.splitlines()[-1])
    model = ModelConfig.from_dict(answer["config"]["model"])
    return {
        "configuration": name, "flops": flops, "steps": steps, "params": answer["params"],
        "seconds": answer["seconds"], "nats_per_char": answer["val"]["nats_per_char"],
        # More or less than the budget where the tokenizer has another number of ids than was named.
        "flops_taken": model.training_flops(steps * int(options["batch-size"]) * int(options["seq-len"])),
        "machine": machine,
    }  # fmt: skip


def main() -> None:
    """Runs what is asked, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configurations", nargs="+")
    parser.add_argument("--flops", type=float, required=True, help="budget of each run")
    parser.add_argument("--out", type=Path, required=True, help="file that the lines are added to")
    arguments = parser.parse_args()
    lines = map(json.loads, arguments.out.read_text().splitlines()) if arguments.out.exists() else []
    known = {(line["configuration"], line["flops"]) for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "training-part.txt")
        text.write_text(tuning_text(), encoding="utf-8")
        for name in arguments.configurations:
            if (name, arguments.flops) in known:
                continue
            line = json.dumps(run(text, arguments.flops, name))
            with arguments.out.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
