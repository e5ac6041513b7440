"""What a search shows: a live view on a terminal, a line for each trial elsewhere, and a table at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from textlstm.metrics import Score
from textlstm.report import output
from textlstm.view import Rate, View, error_console, framed

if TYPE_CHECKING:
    from textlstm.trainer import StepReport
    from textlstm.tune import Found, Row

_BEST_SHOWN = 8
_DROPOUTS = ("input_dropout", "layer_dropout", "output_dropout", "weight_dropout")
_COLUMNS = {
    "vocab": ("vocab_size",), "hidden": ("hidden_size",), "layers": ("num_layers",), "lanes": ("batch_size",),
    "length": ("seq_len",), "lr": ("lr",), "decay": ("weight_decay",), "dropouts": _DROPOUTS,
}  # fmt: skip


class TuneView(View):
    """The view that shows nothing; the others override what they show."""

    def __enter__(self) -> Self:
        return self

    def begin_search(self, rows: Sequence[Row], trials: int, folder: str) -> None:
        """The search begins, or goes on, with some trials done."""

    def trial_begins(self, number: int, settings: Mapping[str, Any], steps: int, chars_per_token: float) -> None:
        """A trial begins."""

    def report(self, report: StepReport) -> None:
        """A step of it is done."""

    def trial_ended(self, row: Row, best: Row | None) -> None:
        """A trial has ended; `best` is the best so far."""


class PlainTuneView(TuneView):
    """A line for each trial."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._trials = 0

    def notice(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin_search(self, rows: Sequence[Row], trials: int, folder: str) -> None:
        self._trials = trials
        self.notice(f"trials: {trials} -> {folder}" + (f", going on after {len(rows)}" if rows else ""))

    def trial_ended(self, row: Row, best: Row | None) -> None:
        mark = " *" if best == row else ""
        self.notice(
            f"trial {row.number}/{self._trials}  {_score(row)} nats/char{mark}  {row.ended}  "
            f"{row.steps_done}/{row.steps} steps  {row.seconds:.0f} s  {_words(row.settings)}"
        )


class LiveTuneView(PlainTuneView):
    """The trial under way and the best ones so far, redrawn in place."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), TextColumn("{task.completed}"),
            TextColumn("of {task.total}"), TimeElapsedColumn(), console=console, expand=True,
        )  # fmt: skip
        self._search = self._bar.add_task("trials")
        self._steps = self._bar.add_task("steps", start=False)
        self._rows: list[Row] = []
        self._now = ""
        self._look = ""
        self._chars_per_token = 1.0
        self._rate = Rate()
        self._title = ""
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False)

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def begin_search(self, rows: Sequence[Row], trials: int, folder: str) -> None:
        self._rows, self._title = list(rows), folder
        self._bar.update(self._search, total=trials, completed=len(rows))
        self._live.start()
        self._draw(force=True)

    def trial_begins(self, number: int, settings: Mapping[str, Any], steps: int, chars_per_token: float) -> None:
        self._now, self._look = f"trial {number}: {_words(settings)}", ""
        self._chars_per_token, self._rate = chars_per_token, Rate()
        self._bar.reset(self._steps, total=steps)
        self._draw(force=True)

    def report(self, report: StepReport) -> None:
        self._rate.add(report.nats, report.tokens, report.seconds)
        self._bar.update(self._steps, completed=report.step)
        self._draw(force=False)

    def look(self, step: int, dev: Score | None, best: bool) -> None:
        if dev is not None:
            self._look = f", development {dev.nats_per_char:.3f}"
        self._draw(force=True)

    def trial_ended(self, row: Row, best: Row | None) -> None:
        self._rows.append(row)
        self._bar.update(self._search, completed=row.number)
        self._draw(force=True)

    def _draw(self, force: bool) -> None:
        now = time.monotonic()
        if force or now - self._drawn > 0.1:
            self._live.update(self.render(), refresh=True)
            self._drawn = now

    def render(self) -> RenderableType:
        """The whole view as it stands."""
        nats = self._rate.nats / self._chars_per_token
        loss = "" if math.isnan(nats) else f"loss {nats:.3f} nats/char{self._look}, "
        speed = f"{self._rate.tokens_per_second:,.0f} tokens/s" if loss else ""
        parts: list[RenderableType] = [self._bar, Text(), Text(self._now), Text(loss + speed, style="cyan")]
        if self._rows:
            parts += [Text(), table_of(sorted(self._rows, key=_order)[:_BEST_SHOWN])]
        return framed(parts, self._title, self._console)


def choose_tune_view(quiet: bool) -> TuneView:
    """The view that suits standard error: live on a terminal, plain lines elsewhere, none when quiet."""
    if quiet:
        return TuneView()
    console = error_console()
    return LiveTuneView(console) if console.is_terminal else PlainTuneView(console)


def show_found(found: Found) -> None:
    """Prints all trials, the best first, and what to do with the best."""
    output().print(table_of(sorted(found.rows, key=_order)))
    if found.best is None:
        print("\nno trial was completed: give each more compute")
        return
    print(
        f"\nbest: trial {found.best.number}; train it again, and score it on the held-out text, with\n{found.command}"
    )
    print(f"or on any text with: textlstm train FILE --minutes 3 --config {found.config}")


def table_of(rows: Sequence[Row]) -> Table:
    """Some trials as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", "nats/char", *_COLUMNS, "params", "steps", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    for row in rows:
        options = ["/".join(_value(row.settings, name) for name in names) for names in _COLUMNS.values()]
        table.add_row(
            str(row.number), _score(row), *options, f"{row.params:,}", f"{row.steps_done}/{row.steps}",
            f"{row.seconds:.0f}", row.ended,
        )  # fmt: skip
    return table


def _order(row: Row) -> tuple[bool, float]:
    return row.ended != "complete", math.inf if row.nats_per_char is None else row.nats_per_char


def _score(row: Row) -> str:
    return "-" if row.nats_per_char is None else f"{row.nats_per_char:.4f}"


def _value(settings: Mapping[str, Any], name: str) -> str:
    return f"{settings[name]:.3g}" if isinstance(settings.get(name), float) else str(settings.get(name, "-"))


def _words(settings: Mapping[str, Any]) -> str:
    return "  ".join(f"{name.replace('_', '-')} {_value(settings, name)}" for name in settings if name != "steps")
