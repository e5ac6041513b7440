"""Writes the tables of docs/autopilot.md from the rule itself; a test sees that they are not stale.

python docs/autopilot_tables.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "quality"))
import law
from pages import filled

from textlstm import autopilot
from textlstm.config import CorpusConfig
from textlstm.files import write_atomically
from textlstm.scoring.parts import FITTED_FROM

PAGE = Path(__file__).parent / "autopilot.md"
PEAK = 400e9  # two cores of a Xeon
MINUTES = (0.5, 1, 3, 10, 30, 100, 600)
CHARS = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


def rule_table() -> list[str]:
    """What the rule picks, for times and lengths of the training text."""
    rows = [
        "| minutes | characters | vocabulary | network | parameters | lanes x tokens | epochs | dropouts | lr | "
        "divided by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for minutes in MINUTES:
        for chars in CHARS:
            text = autopilot.Text(chars)
            proposal = autopilot.propose(0.85 * 60 * minutes, text, PEAK, {})
            model, train = proposal.model, proposal.train
            H, V = model["hidden_size"], model["vocab_size"]
            tokens = text.tokens(V)
            epochs = proposal.tokens_read / tokens
            told = CorpusConfig.dev_fraction * tokens >= FITTED_FROM
            drops = (model[f"{name}_dropout"] for name in ("embed", "input", "layer", "output", "weight"))
            cells = (
                f"{minutes:g}", f"{chars:,}", f"{V:,}", f"2 x {H}", f"{(16 * H * H + V * H) / 1e6:.1f} M",
                f"{train['batch_size']} x {train['seq_len']}", f"{epochs:.2g}" if epochs < 10 else f"{epochs:.0f}",
                " / ".join(f"{d:.2f}" for d in drops), f"{train['lr']:.4f}",
                ("fitted" if told else "1") if proposal.development else f"{proposal.temperature:g}",
            )  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def law_table() -> list[str]:
    """The points that the law was fitted to, and what it says of them."""
    lines = [json.loads(line) for line in law.RESULTS.read_text().splitlines()]
    return list(law.table(lines, autopilot.LAW))


def page() -> str:
    """The page with its tables as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    for name, rows in (("rule", rule_table()), ("law", law_table())):
        text = filled(text, name, rows)
    return text


def main() -> None:
    """Writes the page."""
    write_atomically(PAGE, page().encode())


if __name__ == "__main__":
    main()
