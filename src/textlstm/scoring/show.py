"""The report in the terminal, as CSV, and as one HTML file without a script or a network."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from textlstm.files import write_atomically
from textlstm.scoring.detail import Piece, Report

_DEEP = 6.0  # nats at which the colour of surprise is full
_LINES = 5000  # that the page shows
_NOTE = "these learn as they read, so compare them with adaptive scores only"


def show(report: Report, console: Console, number: int = 10, lines: bool = False) -> None:
    """Prints what comes after the table of scores; with `lines` also every line."""
    table = Table("protocol", "nats/char", "bits/char", "bits/byte", box=None)
    for one in report.protocols:
        table.add_row(one.protocol, f"{one.nats_per_char:.4f}", f"{one.bits_per_char:.4f}", f"{one.bits_per_byte:.4f}")
    for name, bits in report.baselines.items():
        table.add_row(Text(name, style="dim"), "", "", Text(f"{bits:.4f}", style="dim"))
    console.print(table)
    console.print(f"{', '.join(report.baselines)}: {_NOTE}\n", style="dim", highlight=False)
    every = {"lines": report.lines} if lines else {}
    worst = {"most surprising lines": report.surprising_lines(number)}
    worst["most surprising words"] = report.surprising_words(number)
    for title, found in (every | worst).items():
        table = Table("nats", "per character", "where", title, box=None)
        for piece in found:
            where = Text(f"{piece.file}:{piece.line}")
            table.add_row(f"{piece.nats:.1f}", f"{piece.nats_per_char:.2f}", where, Text(_printable(piece.text)))
        console.print(table)
        console.print()
    table = Table("tokens read before", "nats per token", box=None)
    for position in report.positions:
        table.add_row(f"{position['first']}-{position['last']}", f"{position['nats']:.2f}")
    console.print(table)
    console.print(f"\ncalibration error {report.calibration_error:.4f}", highlight=False)
    table = Table("probability of the likeliest token", "how often it came", box=None)
    for group in report.calibration:
        table.add_row(f"{group['confidence']:.0%}", f"{group['right']:.0%}")
    console.print(table)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def write_files(report: Report, csv: Path | None, html: Path | None, title: str) -> None:
    """Writes what is asked for."""
    if csv is not None:
        write_csv(report, csv)
    if html is not None:
        write_html(report, html, title)


def write_csv(report: Report, path: Path) -> None:
    """Writes a row for each line of the text."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["file", "line", "chars", "nats", "nats_per_char", "text"])
    for piece in report.lines:
        numbers = (f"{piece.nats:.4f}", f"{piece.nats_per_char:.4f}")
        writer.writerow([piece.file, piece.line, len(piece.text), *numbers, piece.text])
    write_atomically(path, buffer.getvalue().encode("utf-8", "replace"))


def write_html(report: Report, path: Path, title: str) -> None:
    """Writes one HTML file with tables and plots; nothing in it runs."""
    said = [(c["confidence"], c["right"]) for c in report.calibration]
    reliability = _plot(
        "How often the likeliest token comes (grey: as often as said)",
        [[(0.0, 0.0), (1.0, 1.0)], said],
        "the probability that the model gave it",
    )
    curve = [(float(n), p["nats"]) for n, p in enumerate(report.positions)]
    begins = [(float(n), f"{p['first']}") for n, p in enumerate(report.positions)]
    position = _plot("Nats per token against position", [curve], "tokens read before, at least", begins)
    per_line = [(float(n), piece.nats_per_char) for n, piece in enumerate(report.lines[:_LINES], 1) if piece.text]
    course = _plot("Nats per character, line by line", [per_line], "line")
    bits = {one.protocol: one.bits_per_byte for one in report.protocols}
    scores = [
        [name, f"{s.chars:,}", f"{s.nats_per_char:.4f}", f"{s.bits_per_char:.4f}", f"{s.bits_per_byte:.4f}"]
        for name, s in (*report.files, *([("all", report.total)] if len(report.files) > 1 else []))
    ]
    shaded = "".join(
        f'<span style="background:{_shade(n)}" title="{n:.2f} nats">{escape(t)}</span>' for t, n in report.shown
    )
    body = f"""<h1>{escape(title)}</h1>
{_table(["file", "characters", "nats/char", "bits/char", "bits/byte"], scores)}
<h2>Bits per byte, by protocol and by other means</h2>{_bars(bits, report.baselines)}
<p>Grey: {_NOTE}.</p>
<div class="grid">{reliability}{position}{course}</div>
<p>Expected calibration error {report.calibration_error:.4f}.</p>
<h2>The text, darker where it surprises</h2><div class="text">{shaded}</div>
<h2>Most surprising lines</h2>{_piece_table(report.surprising_lines())}
<h2>Most surprising words</h2>{_piece_table(report.surprising_words())}
<h2>Line by line</h2><details><summary>{_counted(len(report.lines))}</summary>{
        _piece_table(report.lines[:_LINES])
    }</details>"""
    write_atomically(
        path, (_HEAD.replace("{{title}}", escape(title)) + body + "</body></html>\n").encode("utf-8", "replace")
    )


_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{title}}</title><style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fafafa; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 14px; } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
       white-space: pre-wrap; } svg { background: #fff; border: 1px solid #ddd; border-radius: 6px; }
.grid { display: flex; gap: 1rem; flex-wrap: wrap; }
.text { font: 15px/1.7 ui-monospace, monospace; white-space: pre-wrap; background: #fff; border: 1px solid #ddd;
       border-radius: 6px; padding: 1rem; max-height: 26rem; overflow: auto; }
</style></head><body>
"""


def _shade(nats: float) -> str:
    deep = min(nats / _DEEP, 1.0)
    return "#{:02x}{:02x}{:02x}".format(*(round(255 + (full - 255) * deep) for full in (240, 120, 20)))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _counted(lines: int) -> str:
    return f"{lines:,} lines" + (f", the first {_LINES:,} of them; --csv writes all" if lines > _LINES else "")


def _piece_table(found: Sequence[Piece]) -> str:
    rows = [[f"{p.nats:.1f}", f"{p.nats_per_char:.2f}", f"{p.file}:{p.line}", p.text] for p in found]
    return _table(["nats", "per character", "where", "text"], rows)


def _bars(ours: dict[str, float], others: dict[str, float]) -> str:
    values = [(*one, "#e07a1f") for one in ours.items()] + [(*one, "#aaa") for one in others.items()]
    most = max(value for _, value, _ in values)
    marks = [
        f'<text x="150" y="{24 * n + 17}" text-anchor="end">{escape(name)}</text><rect x="160" y="{24 * n + 5}" '
        f'width="{380 * value / most:.1f}" height="16" fill="{colour}"/>'
        f'<text x="{166 + 380 * value / most:.1f}" y="{24 * n + 17}">{value:.3f}</text>'
        for n, (name, value, colour) in enumerate(values)
    ]
    return f'<svg width="620" height="{24 * len(values) + 8}" font-size="13">{"".join(marks)}</svg>'


def _plot(
    title: str, lines: Sequence[Sequence[tuple[float, float]]], unit: str,
    ticks: Sequence[tuple[float, str]] | None = None,
) -> str:  # fmt: skip
    """Curves in one frame that begins at zero; the last one is drawn strongly."""
    width, height, left, low = 470, 260, 45, 225
    right = max((x for line in lines for x, _ in line), default=1.0) or 1.0
    top = max((y for line in lines for _, y in line), default=1.0) or 1.0

    def place(x: float, y: float) -> str:
        return f"{left + (width - left - 20) * x / right:.1f},{low - (low - 40) * y / top:.1f}"

    marks = [
        f'<polyline points="{" ".join(place(x, y) for x, y in line)}" fill="none" '
        f'stroke="{"#e07a1f" if line is lines[-1] else "#bbb"}" stroke-width="2"/>'
        for line in lines
    ]
    labels = [
        f'<text x="{left - 6}" y="{low - (low - 40) * s + 4}" text-anchor="end">{top * s:.3g}</text>'
        for s in (0, 0.5, 1)
    ]
    for x, tick in ticks or [(right * s, f"{right * s:.4g}") for s in (0, 0.5, 1)]:
        at = left + (width - left - 20) * x / right
        labels.append(f'<text x="{at:.1f}" y="{low + 15}" text-anchor="middle">{escape(tick)}</text>')
    return (
        f'<svg width="{width}" height="{height}" font-size="12">'
        f'<text x="12" y="22" font-size="14">{escape(title)}</text>'
        f'<path d="M{left},40V{low}H{width - 20}" fill="none" stroke="#888"/>{"".join(marks)}{"".join(labels)}'
        f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">{escape(unit)}</text></svg>'
    )
