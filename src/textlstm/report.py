"""What commands print about models and scores."""

from __future__ import annotations

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
from textlstm.model_file import ModelFile

SCOREBOARD = "scoreboard"  # in a model's card
UNITS = ("nats/char", "bits/char", "bits/byte")


class ScoreView:
    """A progress bar on standard error, then a table on standard output.

    Args:
        quiet: show no progress.
    """

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=quiet or not console.is_terminal)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._bar)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def progress(self, name: str) -> Callable[[int, int], None]:
        """A callback that shows how much of a file is read."""
        task = self._bar.add_task(escape(name))
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
        "sha256": file.sha256,
        "config": file.config.to_dict(),
        "tokenizer": {"kind": file.tokenizer.kind, "ids": file.tokenizer.vocab_size},
        "statistics": bool(file.statistics),
        "card": file.card,
    }


def show_model(report: Mapping[str, Any]) -> None:
    """Prints a model's report."""
    config, card = report["config"], report["card"]
    rows = {
        "file": f"{report['model']}, {report['bytes'] / 1e6:.1f} MB, SHA-256 verified",
        "network": f"{config['num_layers']} x {config['hidden_size']} LSTM, embedding {config['embed_size']}, "
        f"{report['params']:,} parameters",
        "tokenizer": f"{report['tokenizer']['kind']}, {report['tokenizer']['ids']:,} ids"
        + (", and one for the document boundary" if config["boundary"] else ""),
        "sha256": report["sha256"],
        "learning": "with statistics of its gradients"
        if report["statistics"]
        else "without statistics: see --learn-from",
    }
    rows |= _flat({name: value for name, value in card.items() if name != SCOREBOARD})
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console = output()
    console.print(table, markup=False, highlight=False)
    if SCOREBOARD in card:
        console.print()
        show_scoreboard(card[SCOREBOARD])


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
    """Prints a line for each shipped model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "parameters", "size", "trained on", "licence"):
        table.add_column(name)
    for report in reports:
        corpus = report["card"].get("corpus", {})
        table.add_row(
            report["name"], f"{report['params']:,}", f"{report['bytes'] / 1e6:.1f} MB", corpus.get("name", ""),
            corpus.get("licence", ""),
        )  # fmt: skip
    output().print(table)
