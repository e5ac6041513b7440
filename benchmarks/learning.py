"""What `--learn` brings, text by text, and what it costs: nats per character with fixed weights and learning, seconds.

    TEXTLSTM_CORPORA=FOLDER python benchmarks/learning.py [TEXT...] [--minutes M] [--runs FOLDER]

The README's are `alice29.txt lcet10.txt plrabn12.txt python-stdlib`: three of the Canterbury corpus, of 152,089,
426,754 and 481,861 bytes, as they come with the sources of brotli, and the library of the Python that runs this.

First the shipped `tiny-shakespeare` reads the last 104,217 characters of Tiny Shakespeare (FOLDER holds the true
file). Then for each TEXT, a file or a corpus: `textlstm train TEXT --minutes M` holds out its last tenth, and the
model that came of it reads that. Everywhere memories are primed with the training text alone, as by `--learn-from`.
Settings are the defaults; no text here had a say in them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from card import report

from textlstm.bench.quality import training_corpus
from textlstm.config import CorpusConfig
from textlstm.corpus import Corpus, Part, read_corpus
from textlstm.model import Model

CONTEXT = 8000  # characters of the training text that are read before the held-out text
MOST = 120_000  # characters of a held-out text


def row(name: str, model: Model, corpus: Corpus) -> dict[str, object]:
    """Scores a held-out text twice, on one core."""
    assert isinstance(corpus.train, Part)
    before, text = corpus.train.text + corpus.dev.text, corpus.val.text[:MOST]
    static = model.score(text, context=before[-CONTEXT:])
    started = time.perf_counter()
    primed = model.primed(before)
    priming, started = time.perf_counter() - started, time.perf_counter()
    learnt = primed.score(text, context=before[-CONTEXT:], learn=True)
    found = {
        "text": name, "chars": learnt.chars, "static": static.nats_per_char, "learnt": learnt.nats_per_char,
        "gain": 1 - learnt.nats / static.nats, "seconds": time.perf_counter() - started, "priming_seconds": priming,
    }  # fmt: skip
    print("{text}: {chars:,} characters, {static:.4f} -> {learnt:.4f}, {gain:.1%}, {seconds:.0f} s".format(**found))
    return found


def of_a_text(source: str, minutes: float, runs: Path) -> dict[str, object]:
    """Trains on a text, and scores what was held out of it."""
    name, folder = Path(source).name, runs / f"learning-{Path(source).stem}"
    command = [sys.executable, "-m", "textlstm", "train", source, "--minutes", f"{minutes:g}", "--out", str(folder)]
    subprocess.run([*command, "--resume", "--quiet"], check=True)
    model = Model.load(folder, threads=1)
    corpus = training_corpus(folder / "model.safetensors", model.card, print)
    assert corpus is not None
    return row(name, model, corpus)


def main() -> None:
    """Scores each text twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus = read_corpus(["tiny-shakespeare"], CorpusConfig(val_chars=104_217, dev_fraction=0), print)
    if not corpus.canonical:
        sys.exit("the true tinyshakespeare.txt is needed: name its folder in TEXTLSTM_CORPORA")
    own = row("Tiny Shakespeare, split original", Model.load("tiny-shakespeare", threads=1), corpus)
    others = [of_a_text(text, arguments.minutes, arguments.runs) for text in arguments.texts]
    gains = [other["gain"] for other in others]
    median = statistics.median(gains) if gains else None
    report("learning", {"minutes": arguments.minutes, "own": own, "others": others, "median_gain": median})


if __name__ == "__main__":
    main()
