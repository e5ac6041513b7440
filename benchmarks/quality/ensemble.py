"""What several models of `records.py` are worth together: the mean of their probabilities, token by token.

    TEXTLSTM_CORPORA=FOLDER python benchmarks/quality/ensemble.py static --seeds 0 1 2 --runs runs

The run folders are those of `records.py`. The line goes to `benchmarks/results/records.jsonl`; nothing is chosen.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from records import RESULTS, ROWS

sys.path.insert(0, str(Path(__file__).parents[1]))
from card import machine_card

from textlstm import metrics
from textlstm.bench.quality import training_corpus
from textlstm.corpus import Corpus
from textlstm.engine.torch import TorchEngine
from textlstm.model_file import read_model
from textlstm.registry import MODEL_FILE
from textlstm.run.loop import GPT2_TOKENS_OF_ORIGINAL_SPLIT, is_original_split
from textlstm.tokenizer import Ids


def held_out_nats(path: Path) -> tuple[NDArray[np.float64], Ids, Corpus]:
    """Nats of each token of the text that a model's run held out, these tokens, and the text."""
    file = read_model(path)
    corpus = training_corpus(path, file.card, lambda line: print(line, file=sys.stderr))
    if corpus is None or not corpus.val_follows:
        sys.exit(f"{path}: its text is not at hand, or what was held out is a file of its own")
    tokens = corpus.encode(file.tokenizer, file.config.boundary_id)
    context = np.concatenate([tokens.train, tokens.dev])[-metrics.WARM_UP :]
    nats_N = metrics.token_nats(TorchEngine(file), tokens.val, context, "stream", metrics.WARM_UP)
    return nats_N, tokens.val, corpus


def ensemble_nats(nats_KN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats of each token, shape (N,), where the probabilities of K models are averaged."""
    return -(np.logaddexp.reduce(-nats_KN, axis=0) - math.log(len(nats_KN)))


def measure(paths: Sequence[Path]) -> dict[str, object]:
    """The score of some models together, and of each."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        sys.exit(f"not there: {', '.join(missing)}; benchmarks/quality/records.py trains them")
    read = [held_out_nats(path) for path in paths]
    (_, ids_N, corpus), chars = read[0], read[0][2].val.num_chars
    if any(other.val.text != corpus.val.text or not np.array_equal(ids, ids_N) for _, ids, other in read):
        sys.exit("these models read other texts, or the same in other tokens: their probabilities cannot be averaged")
    together = float(ensemble_nats(np.stack([nats_N for nats_N, _, _ in read])).sum())
    of_gpt2 = {"nats_per_gpt2_token": together / GPT2_TOKENS_OF_ORIGINAL_SPLIT} if is_original_split(corpus) else {}
    return {
        "val": {"protocol": "stream", "chars": chars, "nats": together, "nats_per_char": together / chars} | of_gpt2,
        "members": [float(nats_N.sum()) / chars for nats_N, _, _ in read],
    }


def main() -> None:
    """Scores and writes the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=ROWS, help="what was trained")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders are")
    given = parser.parse_args()
    found = measure([given.runs / f"{given.row}-{seed}" / MODEL_FILE for seed in given.seeds])
    line = json.dumps(
        {"row": f"ensemble-{given.row}", "seed": " ".join(map(str, given.seeds)), **found, "machine": machine_card()}
    )
    with RESULTS.open("a") as file:
        file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
