"""Ensembles of recorded runs: against the mean of the models' own probabilities, token by token."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from textlstm.model import Model
from textlstm.run import Request, train

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "quality"))
import ensemble

SETTINGS = {
    "tokenizer": "byte",
    "embed_size": 8,
    "hidden_size": 12,
    "batch_size": 4,
    "seq_len": 16,
    "dev_fraction": 0.0,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "book.txt").write_text("the cat sat on the mat, and the dog sat on the cat.\n" * 60)
    for seed in (0, 1, 2):
        settings = SETTINGS | {"seed": seed}
        train(Request([str(folder / "book.txt")], folder / f"static-{seed}", steps=12, settings=settings))
    return folder


def test_the_mean_of_probabilities(runs):
    files = [runs / f"static-{seed}" / "model.safetensors" for seed in (0, 1, 2)]
    found, text = ensemble.measure(files), (runs / "book.txt").read_text()
    models = [Model.load(file, engine="torch") for file in files]
    held_out = text[len(text) - found["val"]["chars"] :]
    nats = 0.0
    for place in range(12):  # after the whole text before, one byte at a time
        before = text[: len(text) - len(held_out) + place]
        shares = [model.next_token_probs(before[-600:])[ord(held_out[place])] for model in models]
        nats -= np.log(np.mean(shares))
    costs = ensemble.ensemble_nats(np.stack([ensemble.held_out_nats(file)[0] for file in files]))
    assert costs[:12].sum() == pytest.approx(nats, rel=1e-4) and costs.sum() == pytest.approx(found["val"]["nats"])
    assert found["members"] == pytest.approx([model.card["scores"]["val"]["nats_per_char"] for model in models])
    assert found["val"]["nats_per_char"] < max(found["members"]) and "nats_per_gpt2_token" not in found["val"]


def test_a_model_with_itself_is_itself(runs):
    file = runs / "static-0" / "model.safetensors"
    assert ensemble.measure([file, file])["val"]["nats_per_char"] == pytest.approx(
        ensemble.measure([file])["members"][0]
    )


def test_models_that_cannot_be_averaged(runs, tmp_path):
    """Another text of the same length, in as many tokens; and a model that is not there."""
    (tmp_path / "book.txt").write_text((runs / "book.txt").read_text().replace("dog", "cow"))
    train(Request([str(tmp_path / "book.txt")], tmp_path / "other", steps=2, settings=SETTINGS))
    first, other = (folder / "model.safetensors" for folder in (runs / "static-0", tmp_path / "other"))
    lengths = [len(ensemble.held_out_nats(path)[0]) for path in (first, other)]
    assert lengths[0] == lengths[1]
    with pytest.raises(SystemExit, match="read other texts"):
        ensemble.measure([first, other])
    with pytest.raises(SystemExit, match=r"not there: .*static-7"):
        ensemble.measure([first, runs / "static-7" / "model.safetensors"])


def test_the_line_names_its_seeds(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ensemble, "RESULTS", tmp_path / "records.jsonl")
    monkeypatch.setattr(sys, "argv", ["ensemble.py", "static", "--seeds", "0", "2", "--runs", str(runs)])
    ensemble.main()
    line = json.loads((tmp_path / "records.jsonl").read_text())
    assert line == json.loads(capsys.readouterr().out) and (line["row"], line["seed"]) == ("ensemble-static", "0 2")
