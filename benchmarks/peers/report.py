"""Draws docs/race.md: its tables, between markers, and the picture of loss against seconds, all from the results."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import texts
from pages import filled

from textlstm.files import write_atomically

ROOT = Path(__file__).parents[2]
RESULTS, DOCS = ROOT / "benchmarks" / "results" / "race.jsonl", ROOT / "docs"
PAGE, PICTURE = "race.md", "race.svg"
#: Contestants, in the order of their races, and what they are.
NAMES: Mapping[str, str] = {
    "textlstm": "textlstm, `--minutes`",
    "original": "the original architecture, its own settings",
    "gpt-small": "GPT, nanoGPT's settings for processors",
    "gpt-large": "GPT, nanoGPT's settings of 10.7 M parameters",
    "lstm": "plain `nn.LSTM` with dropout",
    "compressors": "compressors",
}
OURS, GPTS = "textlstm", ("gpt-small", "gpt-large")
_COLOURS = {
    "textlstm": "#a63c17", "original": "#b28600", "gpt-small": "#186aa6", "gpt-large": "#6a4c93", "lstm": "#3c7d3c"
}  # fmt: skip
Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """The results that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def race_table(lines: Sequence[Line]) -> Iterator[str]:
    """Who reached what on Tiny Shakespeare."""
    of_tiny = [line for line in lines if line["text"] == texts.TINY]
    if not of_tiny:
        yield "Not run yet."
        return
    yield f"![nats per character of held-out text against seconds of training]({PICTURE})"
    yield ""
    yield "| minutes | contestant | parameters | steps | at second | seeds | nats/char | bits/char |"
    yield "|---|---|---|---|---|---|---|---|"
    networks = [line for line in of_tiny if "nats_per_char" in line]
    for minutes in sorted({line["minutes"] for line in networks}):
        middle = _middle([line for line in networks if line["minutes"] == minutes])
        for run in sorted(middle.values(), key=lambda run: run["nats_per_char"]):
            yield _row(
                f"{minutes:g}", NAMES[run["contestant"]], f"{run['params']:,}", f"{run['steps']:,}",
                f"{run['seconds']:.0f}", f"{run['seeds']}", *_costs(run["nats_per_char"]),
            )  # fmt: skip
    for name, nats in sorted(_compressors(of_tiny).items(), key=lambda item: item[1]):
        yield _row("", f"{name}, adaptive", "", "", "", "", *_costs(nats))


def others_table(lines: Sequence[Line], fives: Sequence[Sequence[str]]) -> Iterator[str]:
    """Ours against the better of the two GPTs on each of the other texts, and of each five the median difference."""
    others = [line for line in lines if line["text"] in itertools.chain(*fives) and "nats_per_char" in line]
    if not others:
        yield "Not run yet."
        return
    yield "| minutes | text | what | characters | its seconds | textlstm | GPT, small | GPT, large | better by |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for minutes, names in itertools.product(sorted({line["minutes"] for line in others}), fives):
        middle = _middle([line for line in others if line["minutes"] == minutes])
        differences = []
        for name in names:
            runs = [middle.get((name, contestant)) for contestant in (OURS, *GPTS)]
            nats = [math.nan if run is None else run["nats_per_char"] for run in runs]
            differences.append(math.nan if any(map(math.isnan, nats)) else min(nats[1:]) - nats[0])
            if known := next((run for run in runs if run is not None), None):
                shown = ("" if math.isnan(value) else f"{value:.3f}" for value in (*nats, differences[-1]))
                seconds = "" if runs[0] is None else f"{runs[0]['seconds']:.0f}"
                yield _row(f"{minutes:g}", name, texts.KINDS[name], f"{known['chars']:,}", seconds, *shown)
        if not any(map(math.isnan, differences)):
            yield _row(f"{minutes:g}", "median of the five", "", "", "", "", "", "", f"{median(differences):.3f}")


def _middle(lines: Sequence[Line]) -> dict[tuple[str, str], Line]:
    """Of each text and contestant the run whose score is in the middle of its seeds, and how many these are."""
    runs: dict[tuple[str, str], list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["nats_per_char"]):
        runs.setdefault((line["text"], line["contestant"]), []).append(line)
    return {key: {**of_key[(len(of_key) - 1) // 2], "seeds": len(of_key)} for key, of_key in runs.items()}


def _costs(nats: float) -> tuple[str, str]:
    return f"{nats:.3f}", f"{nats / math.log(2):.3f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _compressors(lines: Sequence[Line]) -> dict[str, float]:
    return next((line["nats_per_char_by_method"] for line in lines if line["contestant"] == "compressors"), {})


def page(text: str, lines: Sequence[Line]) -> str:
    """The page with its tables as they should be."""
    unseen, spent = others_table(lines, [texts.UNSEEN]), others_table(lines, texts.SPENT)
    for name, rows in (("race", race_table(lines)), ("unseen", unseen), ("spent", spent)):
        text = filled(text, name, rows)
    return text


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draws loss against seconds on Tiny Shakespeare."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.6), layout="constrained")
    of_tiny = [line for line in lines if line["text"] == texts.TINY]
    for name, colour in _COLOURS.items():
        label: str | None = NAMES[name].replace("`", "")
        for line in of_tiny:
            if line["contestant"] == name:
                seconds, _, nats = zip(*line["curve"], strict=True)
                axes.plot(seconds, nats, "o-", markersize=3, color=colour, label=label)
                label = None
    for name, nats in _compressors(of_tiny).items():
        axes.axhline(nats, color="#999999", linestyle=":", linewidth=1)
        axes.annotate(
            f" {name}, adaptive", (0, nats), xycoords=("axes fraction", "data"), ha="left", va="bottom",
            fontsize="x-small", color="#777777",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="seconds since the process began", ylabel="nats per character, held out")
    axes.set_ylim(top=min(3.5, axes.get_ylim()[1]))  # the first steps say little
    axes.xaxis.set_major_formatter(lambda seconds, place: f"{seconds:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def draw(results: Path, docs: Path | None) -> None:
    """Draws the page and its picture; without a folder for them, of other results than the usual ones, prints it.

    Args:
        results: the file of results.
        docs: the folder; None is docs/ for the usual results.
    """
    lines = read_lines(results)
    folder = DOCS if docs is None and results == RESULTS else docs
    text = page((DOCS / PAGE).read_text(encoding="utf-8"), lines)
    if folder is None:
        print(text)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PAGE, text.encode())
    if any(line["text"] == texts.TINY for line in lines):
        plot(lines, folder / PICTURE)
