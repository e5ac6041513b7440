"""What a run shows: a live view on a terminal, plain lines elsewhere, nothing when quiet; and its loss as a picture.

Everything goes to standard error, so that standard output stays free for results. A view watches and changes
nothing.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Self, TextIO, cast
from xml.sax.saxutils import escape

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from textlstm.metrics import Score


@dataclass(frozen=True)
class Facts:
    """What a view knows before the first step.

    Attributes:
        title: what is being trained.
        lines: what was chosen, and why.
        steps: length of the run.
        chars_per_token: of the training text; turns nats per token into nats per character.
        uniform, unigram: nats per character of guessing evenly, and by frequency alone.
        costs_of: of which text.
        flops_per_token: of a training step.
        peak: the rate of matrix multiplication of all that train, in floating-point operations per second.
        shown: what is scored while training: the development part, or the held-out text or its beginning, which
            chooses nothing.
    """

    title: str
    lines: Sequence[str]
    steps: int
    chars_per_token: float
    uniform: float
    unigram: float
    costs_of: str
    flops_per_token: int
    peak: float
    shown: str = "development"


class View(AbstractContextManager["View"]):
    """The view that shows nothing; the others override what they show."""

    def __exit__(self, *exception: object) -> None:
        """Ends the view."""

    def notice(self, line: str) -> None:
        """Something was done differently than asked, or takes a while."""

    def begin(self, facts: Facts, step: int) -> None:
        """Training begins, `step` steps into the run."""

    def step(self, step: int, nats: float, lr: float, epoch: int, tokens: int, seconds: float) -> None:
        """A step is done: its loss in nats per token, and the tokens and seconds it took."""

    def recount(self, steps: int) -> None:
        """The run will take another number of steps in all."""

    def look(self, step: int, dev: Score | None, best: bool) -> None:
        """The development part was scored."""

    def sample(self, step: int, text: str) -> None:
        """A sample was written."""

    def copied(self, told: str) -> None:
        """How much of the samples is copied from the training text, in words."""

    def score(self, score: Score) -> None:
        """The held-out text was scored."""


class PlainView(View):
    """One line for each event that matters, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._facts: Facts | None = None
        self._rate = Rate()
        self._began = (0, 0.0)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def notice(self, line: str) -> None:
        self._line(line)

    def begin(self, facts: Facts, step: int) -> None:
        self._facts = facts
        for line in (facts.title, *facts.lines, f"{_orientation(facts)}, both on the {facts.costs_of}"):
            self._line(line)
        if step:
            self._line(f"going on from step {step}")
        self._began = (step, time.monotonic())

    def step(self, step: int, nats: float, lr: float, epoch: int, tokens: int, seconds: float) -> None:
        self._rate.add(nats, tokens, seconds)

    def recount(self, steps: int) -> None:
        assert self._facts is not None
        self._facts = dataclasses.replace(self._facts, steps=steps)

    def look(self, step: int, dev: Score | None, best: bool) -> None:
        assert self._facts is not None
        rate, facts = self._rate, self._facts
        told = f"step {step}/{facts.steps}  loss {rate.nats / facts.chars_per_token:.3f} nats/char"
        if dev is not None:
            told += f"  {facts.shown} {dev.nats_per_char:.3f} nats/char {dev.bits_per_byte:.3f} bits/byte"
            told += " *" if best and facts.shown == "development" else ""
        first, began = self._began
        passed = time.monotonic() - began
        left = passed / max(1, step - first) * (facts.steps - step)
        self._line(f"{told}  {rate.tokens_per_second:,.0f} tokens/s  passed {_clock(passed)}  left {_clock(left)}")

    def score(self, score: Score) -> None:
        self._line(_held_out(score))


class LiveView(View):
    """Progress bar, figures and the newest sample, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stack = ExitStack()
        self._live: Live | None = None
        self._facts: Facts | None = None
        self._rate = Rate()
        self._figures: dict[str, str] = {}
        self._sample = ""
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("passed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("training", start=False)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def notice(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def begin(self, facts: Facts, step: int) -> None:
        self._facts = facts
        self._bar.update(self._task, total=facts.steps, completed=step, description="training")
        self._figures["orientation"] = _orientation(facts)
        if self._live is not None:  # memory ran out, and the run goes on
            self._draw(force=True)
            return
        for line in facts.lines:
            self._console.print(line, style="dim", markup=False, highlight=False)
        self._bar.start_task(self._task)
        self._live = self._stack.enter_context(
            Live(self.render(), console=self._console, auto_refresh=False, transient=False)
        )

    def step(self, step: int, nats: float, lr: float, epoch: int, tokens: int, seconds: float) -> None:
        assert self._facts is not None
        rate, facts = self._rate, self._facts
        rate.add(nats, tokens, seconds)
        self._bar.update(self._task, completed=step)
        share = rate.tokens_per_second * facts.flops_per_token / facts.peak
        self._figures |= {
            "loss": f"{rate.nats / facts.chars_per_token:.3f} nats/char  ({rate.nats:.3f} per token)",
            "step": f"{step:,} of {facts.steps:,}, epoch {epoch}",
            "speed": f"{rate.tokens_per_second:,.0f} tokens/s, {share:.0%} of this machine's sgemm peak",
            "learning rate": f"{lr:.2e}",
        }
        self._draw(force=step == facts.steps)

    def recount(self, steps: int) -> None:
        assert self._facts is not None
        self._facts = dataclasses.replace(self._facts, steps=steps)
        self._bar.update(self._task, total=steps)

    def look(self, step: int, dev: Score | None, best: bool) -> None:
        if dev is not None and self._facts is not None:
            mark = "  (best so far)" if best and self._facts.shown == "development" else ""
            self._figures[self._facts.shown] = (
                f"{dev.nats_per_char:.3f} nats/char, {dev.bits_per_byte:.3f} bits/byte{mark}"
            )
        self._draw(force=True)

    def sample(self, step: int, text: str) -> None:
        self._sample = text
        self._draw(force=True)

    def copied(self, told: str) -> None:
        self._figures["copied"] = told

    def score(self, score: Score) -> None:
        self._stack.close()
        self._console.print(_held_out(score), style="bold", markup=False, highlight=False)

    def _draw(self, force: bool) -> None:
        now = time.monotonic()
        if self._live is not None and (force or now - self._drawn > 0.1):
            self._live.update(self.render(), refresh=True)
            self._drawn = now

    def render(self) -> RenderableType:
        """The whole view as it stands."""
        assert self._facts is not None
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", justify="right", no_wrap=True)
        table.add_column()
        for name in ("loss", self._facts.shown, "orientation", "step", "speed", "learning rate", "copied"):
            if name in self._figures:
                table.add_row(name, Text(self._figures[name]))
        parts: list[RenderableType] = [self._bar, Text(), table]
        if self._sample:
            lines = self._sample.strip("\n").split("\n")[:12]
            parts += [Text(), Panel(Text("\n".join(lines)), title="newest sample", border_style="dim")]
        return framed(parts, self._facts.title, self._console)


def framed(parts: Sequence[RenderableType], title: str, console: Console) -> RenderableType:
    """What a live view shows, in a frame that leaves the last columns of the terminal free.

    The terminal shows Ctrl-C as ^C where the cursor stands. Behind a frame of full width that begins a line, and a
    line of the frame would stay when it is drawn anew. There is room for two.

    Args:
        parts: what stands in the frame, one below the other.
        title: above it.
        console: where it is shown.
    """
    frame = Panel(Group(*parts), title=Text(title), border_style="blue")
    return Constrain(frame, max(1, console.width - len("^C^C") - 1))


class Rate:
    """Loss and speed smoothed over the last few dozen steps."""

    def __init__(self) -> None:
        self._nats = self._tokens = self._seconds = 0.0
        self._weight = 0.0

    def add(self, nats: float, tokens: int, seconds: float) -> None:
        """Takes in a step."""
        if math.isfinite(nats):
            keep = 0.97
            self._nats = keep * self._nats + nats
            self._weight = keep * self._weight + 1
            self._tokens = keep * self._tokens + tokens
            self._seconds = keep * self._seconds + seconds

    @property
    def nats(self) -> float:
        """Smoothed loss in nats per token."""
        return self._nats / self._weight if self._weight else math.nan

    @property
    def tokens_per_second(self) -> float:
        """Smoothed speed."""
        return self._tokens / self._seconds if self._seconds else 0.0


class _Leavable:
    """A stream whose reader may leave (`2>&1 | head`), or whose terminal may be closed: the run goes on unseen."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def error_console() -> Console:
    """Standard error, whose reader may leave."""
    if sys.stderr is None:  # a program without a terminal, on Windows
        return Console(stderr=True)
    return Console(file=cast(TextIO, _Leavable(sys.stderr)))


def choose_view(quiet: bool) -> View:
    """The view that suits standard error: live on a terminal, plain lines elsewhere, none when quiet."""
    if quiet:
        return View()
    console = error_console()
    return LiveView(console) if console.is_terminal else PlainView(console)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _orientation(facts: Facts) -> str:
    return f"guessing evenly costs {facts.uniform:.2f} nats/char, by frequency alone {facts.unigram:.2f}"


def _held_out(score: Score) -> str:
    return (
        f"held-out text: {score.nats_per_char:.4f} nats/char, {score.bits_per_byte:.3f} bits/byte, perplexity "
        f"{score.perplexity:.2f} per token ({score.chars:,} characters, protocol {score.protocol})"
    )


Curve = Sequence[tuple[int, float]]


def loss_svg(train: Curve, dev: Curve, shown: str = "development") -> str:
    """The loss of a run as a picture.

    Args:
        train, dev: pairs of a step and nats per character; training part, and what is scored while training.
        shown: what that is.

    Returns:
        An SVG document of its own.
    """
    values = sorted(value for _, value in [*train, *dev] if math.isfinite(value)) or [0.0, 1.0]
    high = values[min(len(values) - 1, int(0.98 * len(values)))]  # the first steps would squeeze the rest
    span = high - values[0]
    curves = [("training", train, "#4c78a8", ""), (shown, dev, "#e45756", "")]
    chart = _chart(
        "nats per character against steps", curves, values[0] - 0.05 * span - 1e-3, high + 0.05 * span + 1e-3
    )
    return _document(360, [chart])


def novelty_svg(longest: Curve, copied: Curve, human: tuple[float, float] | None, length: int) -> str:
    """How much of a run's samples is copied from its training text, as a picture.

    Args:
        longest: pairs of a step and the longest verbatim run of a sample, in characters.
        copied: pairs of a step and the share of characters in runs of `length` or more.
        human: the same two of text that people wrote; None where there is none.
        length: in characters.

    Returns:
        An SVG document of its own.
    """
    last = max((step for step, _ in longest), default=1)
    charts = []
    for number, (title, curve) in enumerate(
        (
            ("longest verbatim run of a sample, in characters, against steps", longest),
            (f"percent of characters in runs of {length} or more", [(step, 100 * share) for step, share in copied]),
        )
    ):
        level = None if human is None else human[number] * (100 if number else 1)
        people = [] if level is None else [(0, level), (last, level)]
        curves = [("samples", curve, "#e45756", ""), ("text that people wrote", people, "#555", "5 4")]
        high = max((value for _, value in [*curve, *people]), default=0.0)
        charts.append(_chart(title, curves, 0.0, 1.1 * high + 1e-3, height=220, above=220 * number))
    return _document(440, charts)


def _document(height: int, charts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#333"><rect width="{_WIDTH}" height="{height}" fill="white"/>{"".join(charts)}</svg>\n'
    )


_WIDTH = 640


def _chart(
    title: str, curves: Sequence[tuple[str, Curve, str, str]], low: float, high: float, height: int = 360,
    above: int = 0,
) -> str:  # fmt: skip
    """Curves (name, points, colour, dashes) over steps, values between two bounds; drawn below so many pixels."""
    left, right, bottom, top = 56, 16, 40, 24
    last = max((step for _, curve, _, _ in curves for step, _ in curve), default=1)

    def place(step: int, value: float) -> str:
        x = left + (_WIDTH - left - right) * step / max(1, last)
        y = above + top + (height - top - bottom) * (high - min(value, high)) / (high - low)
        return f"{x:.1f},{y:.1f}"

    marks = [f'<text x="{left}" y="{above + 16}">{escape(title)}</text>']
    for i in range(6):
        value = low + (high - low) * i / 5
        y = place(0, value).split(",")[1]
        marks.append(f'<path d="M{left} {y}H{_WIDTH - right}" stroke="#ddd"/>')
        marks.append(f'<text x="{left - 6}" y="{y}" text-anchor="end" dominant-baseline="middle">{value:.2f}</text>')
        step = round(last * i / 5)
        x = place(step, low).split(",")[0]
        marks.append(f'<text x="{x}" y="{above + height - bottom + 16}" text-anchor="middle">{step:,}</text>')
    names = []
    for name, curve, colour, dashes in curves:
        points = " ".join(place(step, value) for step, value in curve if math.isfinite(value))
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{dashed}/>')
        names += [f'<tspan dx="12" fill="{colour}">{name}</tspan>'] if curve else []
    marks.append(f'<text x="{_WIDTH - right - 12}" y="{above + 16}" text-anchor="end">{"".join(names)}</text>')
    return "".join(marks)
