"""The one-file example computes what the package computes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
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
    missing = subprocess.run([sys.executable, str(EXAMPLE), "absent"], cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 2 and "Traceback" not in missing.stderr
