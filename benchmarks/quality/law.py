"""Makes the points that the predicted loss of `--minutes` is fitted to, and fits it.

    python benchmarks/quality/law.py run TEXT... --flops 2e12 1e13
    python benchmarks/quality/law.py fit

`run` trains what the rule of `textlstm.autopilot` proposes for a budget, counted in floating-point operations of the
matrix products, and adds a line to `benchmarks/results/law.jsonl`: the last tenth of each text is held out and scored
at the end. TEXT is a file, or `tiny-shakespeare`, by which the training part of that text alone is meant (as in
`sweep.py`).
`fit` prints the numbers that stand in `textlstm.autopilot`; a test computes them again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from sweep import tuning_text

from textlstm import autopilot
from textlstm.appraisal import anchor_of, appraise
from textlstm.config import CorpusConfig, ModelConfig
from textlstm.corpus import Corpus, read_corpus
from textlstm.tokenizer import make_tokenizer

RESULTS = Path(__file__).parents[1] / "results" / "law.jsonl"
HELD_OUT = 0.1


def run(name: str, text: Path, flops: float) -> dict[str, object]:
    """Trains one point and returns its line."""
    corpus = read_corpus([str(text)], CorpusConfig(val_fraction=HELD_OUT, dev_fraction=0.0))
    known = appraise(corpus, own=True)
    proposal = autopilot.propose(flops / autopilot.USUAL_SHARE, known, 1.0, {})
    model = ModelConfig.from_dict(proposal.model)
    tokens = proposal.train["batch_size"] * proposal.train["seq_len"]
    steps = max(1, round(flops / model.training_flops(tokens)))
    count = known.tokens(model.vocab_size)
    merges = autopilot.merge_dropout(steps * tokens / count, count / model.vocab_size)
    options = {**proposal.model, **proposal.train, "merge_dropout": merges, "steps": steps}
    options["eval_every"] = max(1, steps // 20)
    flags = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    temperature = str(proposal.temperature)
    flags += [] if proposal.development else ["--dev-fraction", "0", "--calibration-temperature", temperature]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "textlstm", "train", str(text), "--out", f"{folder}/run", "--json", "--quiet"]
        done = subprocess.run([*command, *flags], stdout=subprocess.PIPE, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return {
        "text": name, "chars": known.chars, "tokens": round(count), "flops": flops, "vocab": model.vocab_size,
        "hidden": model.hidden_size, "steps": steps, "anchor": anchor(corpus, model.vocab_size),
        "seconds": answer["seconds"], "nats_per_char": answer["val"]["nats_per_char"],
        "model": answer["config"]["model"], "train": answer["config"]["train"],
    }  # fmt: skip


def anchor(corpus: Corpus, vocab: int) -> float:
    """The anchor of a text, as a run that is planned for a time takes it."""
    return anchor_of(corpus, make_tokenizer("bpe", corpus.training_text("bpe"), vocab - 1), vocab)


def fit(lines: list[dict[str, Any]]) -> autopilot.Law:
    """The law with the least relative squared error: least squares for the weights, a grid for the exponents."""
    names = ("nats_per_char", "anchor", "flops", "tokens")
    seen, anchors, flops, tokens = (np.array([line[name] for line in lines]) for name in names)
    best, found = np.inf, None
    for alpha, beta in itertools.product(np.arange(5, 36) / 50, np.arange(31) / 50):
        missed = (flops / 1e13) ** -alpha * (tokens / 1e5) ** beta
        rows = np.stack([np.ones(len(lines)), missed], axis=1) * (anchors / seen)[:, None]
        weights = np.linalg.lstsq(rows, np.ones(len(lines)), rcond=None)[0]
        error = float(((rows @ weights - 1) ** 2).sum())
        if error < best:
            best, found = error, autopilot.Law(*(round(float(n), 4) for n in (*weights, alpha, beta)))
    assert found is not None
    return found


def table(lines: list[dict[str, Any]], law: autopilot.Law) -> list[str]:
    """The points beside what a law says, as a table in Markdown."""
    rows = ["| text | characters | operations | measured | the law | off |", "|---|---|---|---|---|---|"]
    for line in sorted(lines, key=lambda line: (line["text"], line["flops"])):
        told = autopilot.predict(line["flops"], line["tokens"], line["anchor"], law)
        seen = line["nats_per_char"]
        cells = (line["text"], f"{line['chars']:,}", f"{line['flops']:.2g}", f"{seen:.3f}", f"{told:.3f}")
        rows.append(f"| {' | '.join(cells)} | {told / seen - 1:+.1%} |")
    return rows


def main() -> None:
    """Runs or fits, as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "fit"])
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--flops", type=float, nargs="+", default=[2e12, 1e13], help="budgets")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if arguments.what == "fit":
        print(found := fit(lines))
        print("\n".join(table(lines, found)))
        return
    known = {(line["text"], line["flops"]) for line in lines}
    for flops in arguments.flops:
        for name in arguments.texts:
            if (Path(name).name, flops) in known:
                continue
            with tempfile.TemporaryDirectory() as folder:
                text = Path(name)
                if name == "tiny-shakespeare":
                    text = Path(folder, "text.txt")
                    text.write_text(tuning_text(), encoding="utf-8")
                line = json.dumps(run(Path(name).name, text, flops))
            with RESULTS.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
