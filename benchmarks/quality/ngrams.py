"""What n-grams say of the small vocabularies, text by text: the costs between which the rule of `--minutes` decides.

    python benchmarks/quality/ngrams.py [TEXT...]

TEXT is one of the race's (`benchmarks/peers/texts.py`; all of them by default). Prints a row of a table for each: the
size that the length of its tokens asks for, the costs in nats per character, and the size that is chosen.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
from texts import SOURCES, read, split

from textlstm.appraisal import appraise
from textlstm.autopilot import vocabulary
from textlstm.config import CorpusConfig
from textlstm.corpus import read_corpus


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*", choices=[*SOURCES, []], help="which texts; default: all")
    print("| text | characters | by length | costs | chosen |\n|---|---|---|---|---|")
    for name in parser.parse_args().texts or SOURCES:
        with TemporaryDirectory() as folder:
            (Path(folder) / "text.txt").write_bytes(split(read(name))[0].encode())
            corpus = read_corpus([folder], CorpusConfig(val_fraction=0.0, dev_fraction=0.0))
            text = appraise(corpus, own=True)
        costs = ", ".join(f"{size}: {cost:.3f}" for size, cost in text.costs.items())
        by_length, chosen = vocabulary(replace(text, costs={}))[0], vocabulary(text)[0]
        print(f"| {name} | {text.chars:,} | {by_length} | {costs} | {chosen} |", flush=True)


if __name__ == "__main__":
    main()
