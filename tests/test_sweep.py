"""The sweep: the same operations for every configuration, and a text without what is held out."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from textlstm.corpus import named
from textlstm.corpus.document import Document

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "quality"))
import sweep


@pytest.mark.parametrize("change", [{}, {"num-layers": "3", "hidden-size": "96"}, {"vocab-size": "4096"}])
def test_a_budget_is_taken_whole(change):
    options = {**sweep.BASE, **change}
    hidden, layers = int(options["hidden-size"]), int(options["num-layers"])
    multiplied = layers * 8 * hidden * hidden + int(options["vocab-size"]) * hidden  # weights: gates, tied output
    one_step = 3 * 2 * multiplied * int(options["batch-size"]) * int(options["seq-len"])
    steps = sweep.steps_for(2e13, options | {"embed-size": options["hidden-size"]})
    assert abs(steps * one_step - 2e13) <= one_step / 2


@pytest.fixture
def tiny(monkeypatch):
    """Puts a text where Tiny Shakespeare is found."""

    def put(text: str, canonical: bool) -> None:
        loaded = named.LoadedCorpus((Document("tinyshakespeare.txt", text),), "here", "a licence", canonical)
        entry = dataclasses.replace(named.CORPORA["tiny-shakespeare"], load=lambda notice: loaded)
        monkeypatch.setitem(named.CORPORA, "tiny-shakespeare", entry)

    return put


def test_what_is_held_out_is_cut_off(tiny):
    text = "".join(f"{number}\n" for number in range(60_000))
    tiny(text, canonical=True)
    found = sweep.tuning_text()
    assert text.startswith(found) and len(text) - len(found) == 111_540


def test_a_rebuilt_text_is_refused(tiny):
    tiny("x" * 200_000, canonical=False)
    with pytest.raises(SystemExit, match="needs the true"):
        sweep.tuning_text()
