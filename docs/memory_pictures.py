"""Makes the pictures of what-does-an-lstm-remember.md, and prints the numbers in them.

    TEXTLSTM_CORPORA=FOLDER python docs/memory_pictures.py

FOLDER holds the true tinyshakespeare.txt, whose end is the held-out text. Needs the extras corpora and plot. The model
that ships reads the end of its training text, which chooses the cells,
and the beginning of its held-out text, which judges them and is what the pictures show.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from rich.console import Console
from rich.text import Text

from textlstm.bench.quality import training_corpus
from textlstm.corpus import Part
from textlstm.inspection import XRay
from textlstm.inspection.memory import half_lives
from textlstm.inspection.show import shaded, values_of
from textlstm.model import Model
from textlstm.registry import find_model
from textlstm.scoring import positions

HERE = Path(__file__).parent.resolve()
CELLS = {"c1.327": "first line of a paragraph: who speaks", "c1.448": "run of capitals", "c0.296": "place in the line"}
COUNTER = (0, 296)  # layer and cell
ORANGE, BLUE, GREY = "#a63c17", "#186aa6", "#999999"


def save(figure: pyplot.Figure, name: str) -> None:
    """Writes a figure as an SVG that is the same every time."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / name, metadata={"Date": None})
    pyplot.close(figure)


def text_picture(xray: XRay, name: str, colours: dict[str, str], tokens: int) -> None:
    """The beginning of the text once for each of some numbers, coloured by it."""
    console = Console(record=True, file=io.StringIO(), force_terminal=True, width=72)
    end = max(place for place, token in enumerate(xray.tokens[:tokens], 1) if token.endswith("\n"))
    for number, what in colours.items():
        console.print(Text(f"{number}  {what}", style="bold"))
        console.print(shaded(xray.tokens[:end], values_of(xray, number)[:end]))
        console.print()
    svg = console.export_svg(title="textlstm inspect shakespeare")
    (HERE / name).write_text(svg.replace("Fira Code", "ui-monospace, Menlo, Consolas"), encoding="utf-8")


def counter_picture(xray: XRay, tokens: int) -> None:
    """One cell and its gates over some lines."""
    layer, cell = COUNTER
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 4.6), sharex=True, layout="constrained")
    ends = [place for place, token in enumerate(xray.tokens[:tokens]) if token.endswith("\n")]
    for axes in (above, below):
        for place in ends:
            axes.axvline(place, color="#dddddd", zorder=0)
    values = {name: xray.shown.values[name][layer][:tokens, cell] for name in "cifo"}
    above.plot(values["c"], color=ORANGE, label=f"cell c{layer}.{cell}")
    for name, what, colour in (("f", "forget gate: keep", BLUE), ("i", "input gate: write", GREY)):
        below.plot(values[name], color=colour, label=what)
    above.set(ylabel="content", title=f"Cell c{layer}.{cell} over {tokens} tokens; grey lines are ends of lines")
    below.set(ylabel="gate", xlabel="tokens read", ylim=(-0.02, 1.02), xlim=(0, tokens - 1))
    below.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small")
    save(figure, "memory-counter.svg")


def memory_picture(xray: XRay) -> None:
    """Half-lives of the cells, and how far back a change still matters."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for layer, colour in enumerate((BLUE, ORANGE)):
        left.plot(np.sort(half_lives(xray.shown.values["f"][layer])), color=colour, label=f"layer {layer}")
    left.set(yscale="log", xlabel="cells, sorted", ylabel="tokens", title="Half-life of a cell's content")
    left.legend(frameon=False)
    right.plot(list(xray.influence), list(xray.influence.values()), "o-", color=ORANGE)
    right.set(
        xscale="log",
        yscale="log",
        xlabel="tokens since one was changed",
        ylabel="nats",
        title="Change of the prediction",
    )
    right.set_xticks(list(xray.influence), map(str, xray.influence))
    right.minorticks_off()
    save(figure, "memory-times.svg")


def position_picture(table: list[dict[str, float]]) -> None:
    """Loss against the number of tokens read before."""
    figure, axes = pyplot.subplots(figsize=(9, 3), layout="constrained")
    names = [str(row["first"]) if row["first"] == row["last"] else f"{row['first']}–{row['last']}" for row in table]
    axes.bar(names, [row["nats"] for row in table], color=BLUE, width=0.7)
    for place, row in enumerate(table):
        axes.text(place, row["nats"] + 0.05, f"{row['nats']:.2f}", ha="center", fontsize="small")
    axes.set(
        xlabel="tokens read before", ylabel="nats per token", title="What a token costs, by what was read before it"
    )
    save(figure, "memory-position.svg")


def main() -> None:
    """Reads, draws and tells."""
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "textlstm", "svg.fonttype": "none", "font.family": "sans-serif"})
    model = Model.load("shakespeare")
    corpus = training_corpus(find_model("shakespeare").parent, model.card, print)
    assert corpus is not None
    assert isinstance(corpus.train, Part)
    chosen_on, judged_on = corpus.train.text[-30_000:], corpus.val.head(15_000)
    xray = model.inspect(chosen_on, judged_on)
    text_picture(xray, "memory-surprise.svg", {"surprise": "darker where a token surprised the model"}, 210)
    text_picture(xray, "memory-cells.svg", CELLS, 150)
    counter_picture(xray, 150)
    memory_picture(xray)
    table = positions(model.scoring_engine, model.tokenizer.encode(corpus.val.head(60_000)))
    position_picture([row for row in table if row["first"] < 512])
    for finding in xray.findings:
        print(f"{finding.what:45} {finding.name:8} chosen {finding.chosen:.2f}  held out {finding.held_out or 0:.2f}")
    print("half-lives", [{k: round(v, 2) for k, v in gates["half_life_tokens"].items()} for gates in xray.gates])
    print("influence", {distance: float(f"{nats:.2g}") for distance, nats in xray.influence.items()})
    print("position", {row["first"]: round(row["nats"], 3) for row in table})
    print("nearest", xray.nearest)


if __name__ == "__main__":
    main()
