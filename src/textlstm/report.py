"""What commands print about models and scores."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from textlstm.metrics import Score
from textlstm.model_file import CALIBRATION, ModelFile

SCOREBOARD = "scoreboard"  # in a model's card
_EVERY = 10.0  # seconds between two lines of progress where there is no bar
UNITS = ("nats/char", "bits/char", "bits/byte")


class ScoreView:
    """Progress on standard error, a bar on a terminal and else a line now and then; a table on standard output.

    Args:
        quiet: show no progress.
    """

    def __init__(self, quiet: bool) -> None:
        self._console = Console(stderr=True)
        terminal = self._console.is_terminal
        self._bar = Progress(console=self._console, transient=True, disable=quiet or not terminal)
        self._lines = not (quiet or terminal)
        self._ended = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._bar)
        if self._lines:
            teller = threading.Thread(target=self._tell, daemon=True)
            teller.start()
            self._stack.callback(teller.join)
            self._stack.callback(self._ended.set)
        return self

    def _tell(self) -> None:
        """Says now and then how far it is, however long one step of the work takes."""
        began = time.monotonic()
        while not self._ended.wait(_EVERY):
            for task in self._bar.tasks[-1:]:
                told = f"{task.fields['title']}: {task.percentage:.0f} %, {time.monotonic() - began:.0f} s"
                self._console.print(told, markup=False, highlight=False, soft_wrap=True)

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def progress(self, name: str) -> Callable[[int, int], None]:
        """A callback that shows how much of a file is read."""
        task = self._bar.add_task(escape(name), title=name)
        return lambda done, total: self._bar.update(task, completed=done, total=total)

    def table(self, scores: Sequence[tuple[str, Score]], total: Score) -> None:
        """Prints a row for each file, and their sum."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("file", overflow="fold")
        for name in ("characters", "nats/char", "bits/char", "bits/byte", "perplexity"):
            table.add_column(name, justify="right")
        rows = [*scores, ("all", total)] if len(scores) > 1 else scores
        for name, score in rows:
            table.add_row(
                Text(name), f"{score.chars:,}", f"{score.nats_per_char:.4f}", f"{score.bits_per_char:.4f}",
                f"{score.bits_per_byte:.4f}", f"{score.perplexity:.2f}",
            )  # fmt: skip
        console = output()
        console.print(table)
        console.print(f"protocol {total.protocol}; perplexity is per token of this model", style="dim")


def output() -> Console:
    """Standard output; in a pipe nothing is wrapped."""
    console = Console()
    return console if console.is_terminal else Console(width=1000)


def model_report(path: Path, file: ModelFile) -> dict[str, Any]:
    """What there is to say about a model file, as JSON values."""
    return {
        "model": str(path),
        "params": file.config.num_params,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "dtype": file.dtype,
        "identity": file.identity,
        "config": file.config.to_dict(),
        "tokenizer": {"kind": file.tokenizer.kind, "ids": file.tokenizer.vocab_size},
        "statistics": bool(file.statistics),
        "card": file.card,
    }


def show_model(report: Mapping[str, Any], name: str) -> None:
    """Prints what a person wants to know of a model, and its scoreboard.

    Args:
        report: of the model.
        name: what it was asked for by.
    """
    config, card, tokenizer = report["config"], report["card"], report["tokenizer"]
    rows = {
        "file": f"{report['model']}, {report['bytes'] / 1e6:.1f} MB in {report['dtype']}, undamaged",
        "sha256": report["sha256"],
        "network": f"{config['num_layers']} x {config['hidden_size']} LSTM, embedding {config['embed_size']}, "
        f"{report['params']:,} parameters",
        "tokenizer": f"{tokenizer['kind']}, {tokenizer['ids']:,} ids"
        + (", and one for the document boundary" if config["boundary"] else ""),
        "text": _told(_origin, card),
        "began from": _told(_beginning, card),
        "training": _told(_training, card),
        "score": _told(_score, card),
        "calibration": _told(_calibration, card),
        "learning": "" if report["statistics"] else "without statistics of its gradients: see --learn-from",
    }
    _show_rows({key: value for key, value in rows.items() if value})
    hints = [f"textlstm info {name} --verbose shows the whole card"]
    if report["dtype"] != "int8":
        share = 4 if report["dtype"] == "fp32" else 2
        hints.insert(0, f"textlstm export {name} --to int8 OUT writes a file of 1/{share} of the size")
    output().print("\n" + "\n".join(hints), style="dim", markup=False, highlight=False, soft_wrap=True)
    if SCOREBOARD in card:
        output().print()
        show_scoreboard(card[SCOREBOARD])


def show_card(card: Mapping[str, Any]) -> None:
    """Prints every entry of a model card but its scoreboard."""
    _show_rows(_flat({name: value for name, value in card.items() if name != SCOREBOARD}))


def _show_rows(rows: Mapping[str, str]) -> None:
    console, width = output(), max(map(len, rows), default=0)
    for name, value in rows.items():
        console.print(Text(f"{name:>{width}}", "cyan"), Text(value), sep="  ", soft_wrap=True)


def _told(describe: Callable[[Mapping[str, Any]], str], card: Mapping[str, Any]) -> str:
    """Part of a card in words; "" where somebody wrote a card of another kind."""
    try:
        return describe(card)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError):
        return ""


def _origin(card: Mapping[str, Any]) -> str:
    """The text that a model was trained on, in words; "" if its card does not say."""
    corpus, split = card.get("corpus", {}), card.get("split", {})
    licence = corpus.get("licence")
    parts = [corpus.get("name"), corpus.get("source"), None if licence == "unknown" else licence]
    if "train_chars" in split:
        parts.append(f"{split['train_chars']:,} characters")
    return ", ".join(str(part) for part in parts if part) or str(card.get("imported_from", ""))


def _beginning(card: Mapping[str, Any]) -> str:
    """The model that a model began from, that which this one began from, and so on, in words; "" for none."""
    told = []
    while (card := card.get("began_from", {})) != {}:
        text = card.get("corpus", {}).get("name", "an unknown text")
        length = f" ({card['train_chars']:,} characters)" if "train_chars" in card else ""
        told.append(f"{card['name']}, which learnt {text}{length}")
    return " and began from ".join(told)


def _training(card: Mapping[str, Any]) -> str:
    """How a model was trained, in words; its `step` is that of its weights, which may be the best of a longer run."""
    parts = [f"{card['steps']:,} steps"] if "steps" in card else []
    if (step := card.get("step")) is not None and card.get("over") is False:
        parts = [f"step {step:,} of {card['steps']:,}, not over"]
    elif step is not None and step < card["steps"]:
        parts.append(f"weights of step {step:,}")
    if "seconds" in card:
        parts.append(f"{card['seconds'] / 60:.1f} minutes")
    return ", ".join([*parts, *([str(card["date"])] if "date" in card else [])])


def _calibration(card: Mapping[str, Any]) -> str:
    """What the logits were divided by, in words; "" if nothing changed them."""
    temperature = float(card.get(CALIBRATION, 1.0))
    return "" if temperature == 1 else f"logits divided by {temperature:g}, which is part of the model"


def _score(card: Mapping[str, Any]) -> str:
    """What a model scores on the held-out text, else on the development part, in words."""
    scores = card.get("scores", {})
    part = next((part for part in ("val", "dev") if part in scores), None)
    if part is None:
        return ""
    score, text = scores[part], {"val": "held-out text", "dev": "the development part"}[part]
    units = f"{score['nats_per_char']:.4f} nats/char, {score['bits_per_byte']:.4f} bits/byte"
    return f"{units} on {text} ({score['chars']:,} characters, {score['protocol']})"


def show_scoreboard(board: Mapping[str, Any], unit: str = "nats/char") -> None:
    """Prints what `textlstm.bench.quality.scoreboard` found out, what learns as it reads in columns of its own."""
    texts = [text["name"] for text in board["texts"]]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(unit, overflow="fold")
    for kind in ("static", "adaptive"):
        for name in texts:
            table.add_column(Text(f"{name}\n{kind}"), justify="right", overflow="fold")
    key, empty = unit.replace("/", "_per_"), [""] * len(texts)
    cells: dict[str, dict[bool, list[str]]] = {}
    for row in board["rows"]:
        scores = [f"{score[key]:.4f}" if score else "" for score in row["scores"]]
        cells.setdefault(row["method"], {})[row["adaptive"]] = scores
    ours = [row["method"] for row in board["rows"] if row["of"] == "model"]
    for method, kinds in cells.items():
        style = "" if method in ours else "dim"
        table.add_row(Text(method), *kinds.get(False, empty), *kinds.get(True, empty), style=style)
    console = output()
    console.print(table)
    read = {text["name"]: text["training_bytes_read_before"] for text in board["texts"]}
    before = ", ".join(f"{size:,} before {name}" if size else f"none before {name}" for name, size in read.items())
    console.print(
        f"\nadaptive: learns from the text while it reads it; bytes of the training text read first: {before}",
        style="dim", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    rows: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows |= _flat(value, f"{prefix}{name}.")
        elif value not in (None, ""):
            rows[f"{prefix}{name}"] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return rows


def show_models(reports: Sequence[Mapping[str, Any]]) -> None:
    """Prints a line for each shipped model; a narrow terminal breaks it, and cuts nothing off."""
    console, width = output(), max((len(report["name"]) for report in reports), default=0)
    for report in reports:
        corpus = report["card"].get("corpus", {})
        size = f"{report['params']:,} parameters, {report['bytes'] / 1e6:.1f} MB"
        learnt = f"learnt from {corpus.get('name', 'an unknown text')} ({corpus.get('licence', 'no licence told')})"
        line = Text.assemble((f"{report['name']:<{width}}", "bold"), f"  {size}; {learnt}")
        console.print(line, soft_wrap=True)
