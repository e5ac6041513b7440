"""The X-ray in the terminal, as a picture, and as one HTML file that needs no network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from textlstm.errors import MissingExtraError, UsageError
from textlstm.files import write_atomically
from textlstm.inspection.memory import half_lives
from textlstm.inspection.xray import XRay

_PAGE = Path(__file__).with_name("page.html")
_VALUE = re.compile(r"([ch])(\d+)\.(\d+)")
_DEEP = 6.0  # nats at which the colour of surprise is full


def values_of(xray: XRay, name: str) -> NDArray[np.float64]:
    """What a token is coloured by, -1 .. 1, shape (T,).

    Args:
        xray: the X-ray.
        name: `surprise`, or a value of the state such as `c1.204`.

    Raises:
        UsageError: there is no such value.
    """
    layers, _, H = xray.shown.values["c"].shape
    place = place_of(name, layers, H)
    if place is None:
        shade_T: NDArray[np.float64] = np.minimum(xray.shown.nats_T / _DEEP, 1.0)
        return shade_T
    value, layer, cell = place
    values_T = xray.shown.values[value][layer][:, cell].astype(np.float64)
    return np.asarray(np.tanh(values_T) if value == "c" else values_T)


def place_of(name: str, layers: int, cells: int) -> tuple[str, int, int] | None:
    """Which value of the state a name such as `c1.204` means: `c` or `h`, layer, cell; None is `surprise`.

    Args:
        name: the name.
        layers, cells: how many the network has; cells in each layer.

    Raises:
        UsageError: there is no such value.
    """
    if name == "surprise":
        return None
    match = _VALUE.fullmatch(name)
    if match is None or int(match[2]) >= layers or int(match[3]) >= cells:
        raise UsageError(
            f"there is nothing called {name!r} to colour by; name 'surprise', or a cell or output such as c0.12 or "
            f"h{layers - 1}.{cells - 1}"
        )
    return match[1], int(match[2]), int(match[3])


def show(xray: XRay, colour: str, console: Console, chars: int = 600) -> None:
    """Prints the X-ray: coloured text, cells that mean something, gates, memory, near tokens."""
    shade_T = values_of(xray, colour)
    number = int(np.searchsorted(np.cumsum([len(token) for token in xray.tokens]), chars)) + 1
    console.print(Text(f"coloured by {colour}", style="bold"))
    console.print(shaded(xray.tokens[:number], shade_T[:number]))
    console.print()
    _show_cells(xray, console)
    table = Table("layer", "input", "forget", "output", "half-life, tokens", box=None)
    for report in xray.gates:
        shares = [" / ".join(f"{report['gates'][gate][end]:.0%}" for end in ("shut", "open")) for gate in "ifo"]
        life = report["half_life_tokens"]
        table.add_row(str(report["layer"]), *shares, f"{life['median']:.1f}, longest {life['max']:.0f}")
    console.print("gates: share of the time shut / open; how long a cell keeps half")
    console.print(table)
    console.print()
    table = Table("tokens since one was changed", "change of prediction, nats", box=None)
    for distance, nats in xray.influence.items():
        table.add_row(str(distance), f"{nats:.2g}")
    console.print(table)
    console.print()
    table = Table("token", "nearest in the embedding", box=None)
    for token, near in xray.nearest.items():
        table.add_row(Text(repr(token)), Text("  ".join(f"{other!r} {cosine:.2f}" for other, cosine in near)))
    console.print(table)


def shaded(tokens: Sequence[str], shade_T: NDArray[np.float64]) -> Text:
    """Some tokens, each on the colour of its value of -1 .. 1; line breaks are left uncoloured."""
    text = Text()
    for token, shade in zip(tokens, shade_T.tolist(), strict=True):
        for piece in re.split(r"(\n)", token):
            text.append(piece, style="" if piece == "\n" else f"#101010 on {_colour(shade)}")
    return text


def _show_cells(xray: XRay, console: Console) -> None:
    if not xray.findings:
        console.print("the text is too short, or too even, to look for cells that mean something\n")
        return
    console.print("cells: correlation with a property, on the text that chose it and on what was held out")
    table = Table("property", "value", "true", "chosen", "held out", box=None)
    last = None
    for one in xray.findings:
        held_out = "too rare" if one.held_out is None else f"{one.held_out:.2f}"
        split = f"{'above' if one.above else 'below'} {one.threshold:.2f}"
        table.add_row("" if one.what == last else one.what, one.name, split, f"{one.chosen:.2f}", held_out)
        last = one.what
    console.print(table)
    console.print()


def _colour(shade: float) -> str:
    """White at 0, orange at 1, blue at -1."""
    full = (240, 120, 20) if shade >= 0 else (60, 130, 230)
    mixed = [round(255 + (channel - 255) * min(abs(shade), 1.0)) for channel in full]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def write_html(xray: XRay, path: Path, title: str) -> None:
    """Writes one HTML file with everything in it; it opens from disk and asks no network."""
    c, h = np.tanh(xray.shown.values["c"]), xray.shown.values["h"]
    data = {
        **xray.to_dict(),
        "title": title,
        "tokens": xray.tokens,
        "nats": [round(float(nats), 3) for nats in xray.shown.nats_T],
        "shape": list(c.shape),
        "values": {name: _packed(array) for name, array in (("c", c), ("h", h))},
        "deep": _DEEP,
    }
    # "<" is the one character that could end the script element; JSON may spell it so.
    text = json.dumps(data).replace("<", "\\u003c")
    page = _PAGE.read_text(encoding="utf-8").replace("{{DATA}}", text)
    write_atomically(path, page.encode())


def _packed(array: NDArray[Any]) -> str:
    """Values of -1 .. 1 as signed bytes in base64."""
    return base64.b64encode(np.rint(np.clip(array, -1, 1) * 127).astype(np.int8).tobytes()).decode()


def blank_figure() -> Any:
    """A figure of matplotlib to be drawn on.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(xray: XRay, path: Path, title: str) -> None:
    """Draws half-lives, gates, the memory of the state and the best cells.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    import io

    figure = blank_figure()
    figure.suptitle(title)
    halves: Any = figure.subfigures(2, 1)
    (lives, gates, memory), cells = halves[0].subplots(1, 3), halves[1].subplots()
    for layer, f_TH in enumerate(xray.shown.values["f"]):
        lives.plot(np.sort(half_lives(f_TH)), label=f"layer {layer}")
    lives.set(
        yscale="log", xlabel="cells, sorted", ylabel="half-life (tokens)", title="How long a cell keeps its content"
    )
    lives.legend()
    names = [f"{gate}{report['layer']}" for report in xray.gates for gate in "ifo"]
    shares = [report["gates"][gate] for report in xray.gates for gate in "ifo"]
    gates.bar(names, [share["open"] for share in shares], label="open (above 0.9)")
    gates.bar(names, [-share["shut"] for share in shares], label="shut (below 0.1)")
    gates.set(ylabel="share of time and cells", title="Saturated gates: input, forget, output")
    gates.legend()
    memory.plot(list(xray.influence), list(xray.influence.values()), marker="o")
    memory.set(
        xscale="log", yscale="log", xlabel="tokens since one was changed", ylabel="change of the prediction (nats)",
        title="What the state remembers",
    )  # fmt: skip
    best = list({one.what: one for one in reversed(xray.findings)}.values())[::-1][:12]
    cells.barh([f"{one.what}  {one.name}" for one in best], [one.held_out or 0.0 for one in best])
    cells.invert_yaxis()
    cells.set(xlabel="Matthews correlation, held-out text", title="Cells that mean something", xlim=(0, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())
