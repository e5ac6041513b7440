"""Makes the two pictures of the README: the live view, and text being written.

    python docs/pictures.py

Trains the demo's model for two minutes, and takes the picture of its view half-way.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from textlstm.api import require_torch
from textlstm.model import Model
from textlstm.view import LiveView

HERE = Path(__file__).parent.resolve()


def save(console: Console, name: str, title: str) -> None:
    """Writes what a console recorded as an SVG that refers to nothing outside itself."""
    svg = console.export_svg(title=title)
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)
    (HERE / name).write_text(svg.replace("Fira Code", "ui-monospace, Menlo, Consolas"), encoding="utf-8")


def recorder() -> Console:
    """A console that draws nowhere and remembers."""
    return Console(record=True, file=io.StringIO(), force_terminal=True, width=100)


class PhotographedView(LiveView):
    """The live view, with a picture taken at the last look before the end."""

    def sample(self, step: int, text: str) -> None:
        """Takes the picture."""
        super().sample(step, text)
        assert self._facts is not None
        if step < 0.75 * self._facts.steps:
            console = recorder()
            console.print(self.render())
            save(console, "live-view.svg", "textlstm demo")


def main() -> None:
    """Trains, then writes."""
    require_torch()
    from textlstm.run import Request, train

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        view = PhotographedView(Console(file=io.StringIO(), force_terminal=True, width=100))
        with view:
            train(Request(["tiny-shakespeare"], Path("runs/demo-1"), minutes=2), view)
    console = recorder()
    prompt = "KING HENRY V:\n"
    console.print(Text('$ textlstm generate shakespeare "KING HENRY V:" --seed 3', style="green"))
    written = Model.load("shakespeare").generate(prompt, max_chars=600, temperature=0.7, seed=3)
    console.print(Text(prompt, style="bold") + Text(written))
    save(console, "writing.svg", "textlstm generate")


if __name__ == "__main__":
    main()
