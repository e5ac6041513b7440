"""The scoreboard: its numbers are those of `score` and of the run, and the card that holds it is whole."""

from __future__ import annotations

import json
import lzma
import math
import platform
import shutil

import numpy as np
import pytest
from conftest import make_text

from textlstm import metrics
from textlstm.bench.quality import HELD_OUT, training_corpus
from textlstm.config import ModelConfig
from textlstm.model import Model
from textlstm.model_file import amend_card, read_model, write_model
from textlstm.run import Request, train
from textlstm.scoring import ngram_bits
from textlstm.tokenizer import ByteTokenizer

TEXT = make_text(12_000, seed=5)
SETTINGS = {
    "tokenizer": "byte", "hidden_size": 12, "embed_size": 12, "num_layers": 1, "batch_size": 4, "seq_len": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    (folder / "book.txt").write_text(TEXT)
    result = train(Request([str(folder / "book.txt")], folder / "run", steps=6, settings=SETTINGS))
    return folder / "run", result


def scores_of(board: dict, method: str, adaptive: bool = False) -> list:
    (row,) = [row for row in board["rows"] if (row["method"], row["adaptive"]) == (method, adaptive)]
    return row["scores"]


@pytest.fixture
def run_folder(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def test_the_splits_are_those_of_the_run(run_folder, trained, run):
    board = run("bench", "quality", run_folder, "--json", "--quiet").json
    assert [text["name"] for text in board["texts"]] == [HELD_OUT, "development"]
    held_out, development = scores_of(board, "stream")
    assert held_out["nats_per_char"] == pytest.approx(trained[1].val["nats_per_char"], rel=1e-5)
    assert held_out["bits"] == pytest.approx(trained[1].val["nats"] / math.log(2), rel=1e-5)
    assert development["bits_per_char"] == development["bits_per_byte"]
    assert {row["method"] for row in board["rows"] if row["of"] == "model"} == {"stream", "cold-256", "cold-64"}
    assert all(row["adaptive"] == row["method"].startswith(("xz", "PPMd", "zpaq")) for row in board["rows"]
               if not row["method"].startswith("n-gram"))  # fmt: skip
    # Others have read all that comes before the held-out text, no byte more.
    val_chars = trained[1].val["chars"]
    before, held = TEXT[:-val_chars].encode(), TEXT[-val_chars:].encode()
    assert board["texts"][0]["training_bytes_read_before"] == len(before)
    assert scores_of(board, "n-gram of 5 bytes", True)[0]["bits"] == pytest.approx(ngram_bits(held, before))
    assert scores_of(board, "frequency of bytes")[0]["bits"] == pytest.approx(ngram_bits(held, before, 0, False))
    size = {data: len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) for data in (before, before + held)}
    assert scores_of(board, "xz -9e", True)[0]["bits"] == 8 * (size[before + held] - size[before])


def test_texts_of_ones_own_are_scored_as_by_score(run_folder, run, tmp_path):
    (tmp_path / "a.txt").write_text("Größe and a longer text that nobody wrote before. " * 20)
    (tmp_path / "notes").mkdir()
    for number in range(3):
        (tmp_path / "notes" / f"{number}.txt").write_text(make_text(500, seed=number))
    names = [str(tmp_path / "a.txt"), str(tmp_path / "notes")]
    board = run("bench", "quality", run_folder, *names, "--protocols", "stream,cold-32", "--json").json
    for protocol in ("stream", "cold-32"):
        for number, name in enumerate(names):
            one = run("score", run_folder, name, "--protocol", protocol, "--json").json
            found = scores_of(board, protocol)[number]
            for unit in ("nats_per_char", "bits_per_char", "bits_per_byte"):
                assert found[unit] == pytest.approx(one[unit], rel=1e-6)


def test_a_model_that_learns_stands_beside_what_learns(run_folder, run, tmp_path):
    text = make_text(300, seed=3)
    (tmp_path / "a.txt").write_text(text)
    board = run("bench", "quality", run_folder, tmp_path / "a.txt", "--protocols", "stream+learn", "--json").json
    model = Model.load(run_folder)
    corpus = training_corpus(run_folder / "model.safetensors", model.card, print)
    learnt = model.primed(corpus.train.text).score(text, learn=True)
    assert scores_of(board, "stream+learn", True)[0]["bits"] == pytest.approx(learnt.nats / math.log(2), rel=1e-5)
    held = run("bench", "quality", run_folder, "--protocols", "stream,stream+learn", "--json").json
    assert scores_of(held, "stream+learn", True)[0]["bits"] < scores_of(held, "stream")[0]["bits"]


def test_written_into_the_card_it_is_shown_by_info(run_folder, run):
    before = read_model(run_folder / "model.safetensors")
    done = run("bench", "quality", run_folder, "--write")
    assert done.code == 0 and "held-out" in done.out and "adaptive" in done.out and "written into" in done.err
    after = read_model(run_folder / "model.safetensors")
    assert after.identity == before.identity and after.sha256 != before.sha256
    assert {k: v for k, v in after.card.items() if k != "scoreboard"} == before.card
    told = run("info", run_folder).out
    stream = scores_of(after.card["scoreboard"], "stream")[0]["nats_per_char"]
    assert f"{stream:.4f}" in told and "scoreboard.rows" not in told
    assert run("info", run_folder, "--json").json["card"]["scoreboard"] == after.card["scoreboard"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_a_card_is_amended_and_nothing_else(tmp_path, dtype):
    from safetensors.numpy import load_file

    config, path = ModelConfig(257, 8, 8, 1), tmp_path / "m.safetensors"
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    write_model(path, config, ByteTokenizer(), weights, {"a": 1, "b": {"c": 2}}, dtype)
    tensors, identity = load_file(path), read_model(path).identity
    (tmp_path / "link.safetensors").symlink_to(path)
    digest = amend_card(tmp_path / "link.safetensors", {"a": 3, "new": [1.5, None]})
    file, after = read_model(path), load_file(path)
    assert file.card == {"a": 3, "b": {"c": 2}, "new": [1.5, None]} and file.sha256 == digest
    assert file.identity == identity and (tmp_path / "link.safetensors").is_symlink()
    assert after.keys() == tensors.keys()
    assert all(after[n].dtype == tensors[n].dtype and after[n].tobytes() == tensors[n].tobytes() for n in tensors)
    with pytest.raises(ValueError):
        amend_card(path, {"a": math.nan})
    assert read_model(path).sha256 == digest and len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_told_is_said(run_folder, run, tmp_path, monkeypatch):
    shutil.copy(run_folder / "model.safetensors", tmp_path / "alone.safetensors")
    assert run("bench", "quality", tmp_path / "alone.safetensors").code == 2
    monkeypatch.setattr(metrics, "token_nats", lambda *_: pytest.fail("the work was begun"))
    wrong = run("bench", "quality", run_folder, "--protocols", "stream,adaptive")
    assert wrong.code == 2 and "'adaptive'" in wrong.err
    assert run("bench", "quality", run_folder, tmp_path / "nowhere.txt").code == 2
    (tmp_path / "book.txt").write_text("another text altogether. " * 100)
    config = json.loads((run_folder / "config.json").read_text())
    (run_folder / "config.json").write_text(json.dumps({**config, "sources": [str(tmp_path / "book.txt")]}))
    done = run("bench", "quality", run_folder)
    assert done.code == 2 and "is not the text that the model was trained on" in done.err


def test_a_model_that_was_taken_out_of_its_run_scores_texts(run_folder, run, tmp_path):
    shutil.copy(run_folder / "model.safetensors", tmp_path / "alone.safetensors")
    (tmp_path / "a.txt").write_text(make_text(700, seed=9))
    board = run("bench", "quality", tmp_path / "alone.safetensors", tmp_path / "a.txt", "--json").json
    assert board["texts"][0]["training_bytes_read_before"] == 0
    assert not [r for r in board["rows"] if r["method"] == "frequency of bytes"]


def test_inspect_without_files_reads_the_held_out_text(run_folder, trained, run, tmp_path):
    found = run("inspect", run_folder, "--chars", "600", "--json").json
    held = TEXT[-trained[1].val["chars"] :][:200]
    model = Model.load(run_folder)
    shown = model.inspect(TEXT[: -trained[1].val["chars"]][-400:], held).shown
    assert found["nats_per_token"] == pytest.approx(shown.nats_T.mean()) and len(shown.nats_T) == 200
    shutil.copy(run_folder / "model.safetensors", tmp_path / "alone.safetensors")
    alone = run("inspect", tmp_path / "alone.safetensors", "--chars", "600", "--json")
    assert alone.code == 0 and "600 characters that it writes itself; better name a text" in alone.err
    assert alone.json["reads"] == "what it writes itself" and "trained on" in found["reads"]
    config = json.loads((run_folder / "config.json").read_text())
    (run_folder / "config.json").write_text(json.dumps({**config, "sources": [str(tmp_path / "gone.txt")]}))
    gone = run("inspect", run_folder, "--chars", "600", "--json")
    assert gone.code == 0 and "is not at hand" in gone.err


@pytest.mark.slow
@pytest.mark.skipif(platform.python_version() != "3.11.7", reason="it learnt from the library of 3.11.7")
def test_the_shipped_model_knows_its_splits(tmp_path):
    card = Model.load("python").card
    corpus = training_corpus(tmp_path / "m.safetensors", card, print)
    assert corpus is not None and corpus.val.num_chars == card["split"]["val_chars"]
