"""Tables of pages that are drawn from results: between their markers, and not stale."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "quality"))
import pages
import ship

from textlstm.cli import cli
from textlstm.cli.options import given
from textlstm.config import ModelConfig, TrainConfig
from textlstm.model_file import read_model


def test_a_table_is_filled_in_between_its_markers():
    page = "head\n<!-- a -->\nold\nlines\n<!-- end of a -->\nrest\n<!-- b -->\n<!-- end of b -->\n"
    assert pages.filled(page, "a", ["| 1 |", "| 2 |"]) == page.replace("old\nlines\n", "| 1 |\n| 2 |\n")
    assert pages.filled(page, "a", ["old", "lines"]) == page
    with pytest.raises(ValueError, match="<!-- c -->"):
        pages.filled(page, "c", [])
    with pytest.raises(ValueError, match="end of a"):
        pages.filled(page.replace("end of a", "end of all"), "a", [])


def test_the_page_of_models_is_not_stale():
    lines = [json.loads(line) for line in ship.RESULTS.read_text().splitlines()]
    page = ship.DOCS.read_text(encoding="utf-8")
    assert [line["name"] for line in lines] == list(ship.MODELS)
    assert pages.filled(page, "models", ship.table(lines)) == page, "run python benchmarks/quality/ship.py"


def test_models_that_ship_are_the_measured_ones_and_small():
    """By their hash; what int8 costs was measured on the held-out text, against the weights in single precision."""
    lines = [json.loads(line) for line in ship.RESULTS.read_text().splitlines()]
    sizes = {path.stem: path.stat().st_size for path in ship.PLACE.glob("*.safetensors")}
    assert sizes == {line["name"]: line["bytes"] for line in lines} and sum(sizes.values()) <= 12e6
    for line in lines:
        assert read_model(ship.PLACE / f"{line['name']}.safetensors").identity == line["identity"]
        own, shipped = line["val"], line["int8"]
        assert own["chars"] == shipped["chars"] and line["int8_costs"] <= 0.003


@pytest.mark.parametrize("name", list(ship.MODELS))
def test_models_that_ship_are_made_again_with_the_settings_they_had(name):
    """Their commands with the defaults of today, against what they were trained with."""
    line = next(line for line in map(json.loads, ship.RESULTS.read_text().splitlines()) if line["name"] == name)
    with cli.commands["train"].make_context("train", ship.MODELS[name].options.split()) as context:
        values = dict(context.params)
    train, model = TrainConfig(**given(TrainConfig, values)), ModelConfig(**given(ModelConfig, values))
    by_machine = {"steps", "precision"}  # or, of the steps, by --epochs
    assert {k: v for k, v in line["train"].items() if k not in by_machine}.items() <= train.to_dict().items()
    counted = {"vocab_size", "boundary"}
    assert {k: v for k, v in line["model"].items() if k not in counted}.items() <= model.to_dict().items()
