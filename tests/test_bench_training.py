"""The benchmark of training tells what training does."""

from __future__ import annotations

import json
import os
import signal

import pytest
from click.testing import CliRunner

from textlstm.bench import training
from textlstm.bench.training import counted, measure
from textlstm.cli import cli
from textlstm.config import ModelConfig, TrainConfig
from textlstm.errors import RunError, UsageError
from textlstm.trainer.launch import call

MODEL, TRAIN = ModelConfig(300, 16, 32, 1), TrainConfig(batch_size=4, seq_len=16)


def test_numbers_follow_from_what_was_measured(monkeypatch):
    peaks = iter([2e9, 4e9, 3e9, 1e9])
    steps = {1: [(0.5, 300_000_000)], 2: [(0.2, 200_000_000), (0.25, 100_000_000)]}
    monkeypatch.setattr(training, "sgemm_peak", lambda device: next(peaks))
    monkeypatch.setattr(training, "call", lambda number, *arguments: steps[number])
    said: list[str] = []
    one, two = measure(MODEL, TRAIN, [1, 2], 1.0, "cpu", said.append)
    assert one["tokens_per_second"] == 64 / 0.5 and two["tokens_per_second"] == 64 / 0.25  # the slowest rank counts
    assert (one["speedup"], two["speedup"]) == (1, 2)
    flops = 6 * (4 * 32 * (16 + 32) + 32 * 16 + 300 * 16)  # two forward, four back, for each number of a matrix
    assert one["share_of_sgemm"] == pytest.approx(flops * 128 / 4e9)
    assert two["share_of_sgemm"] == pytest.approx(flops * 256 / 3e9)
    assert two["peak_megabytes"] == {"largest": 200, "together": 300}
    assert len(said) == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="gloo")
def test_command(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sizes = ["--vocab-size", "300", "--embed-size", "16", "--hidden-size", "32", "--batch-size", "4"]
    done = CliRunner().invoke(cli, ["bench", "train", "--processes", "1,2", "--seconds", "0.2", "--json", *sizes])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert [row["processes"] for row in report["rows"]] == [1, 2] and report["machine"]["sgemm_gflops"] > 0
    for row in report["rows"]:
        assert row["tokens_per_second"] > 0 and 0 < row["share_of_sgemm"] < 1
        assert 50 < row["peak_megabytes"]["largest"] < 5000  # torch alone takes more than 100
    largest = [row["peak_megabytes"] for row in report["rows"]]
    assert largest[0]["largest"] == largest[0]["together"] and largest[1]["together"] > 1.5 * largest[1]["largest"]
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("usual", ["bf16", "fp32"])
def test_precision_is_that_of_train(monkeypatch, usual):
    seen = list[str]()
    monkeypatch.setattr(training, "measure", lambda model, train, *others: seen.append(train.precision) or [])
    monkeypatch.setattr("textlstm.trainer.device.usual_precision", lambda device: usual)
    for options in ([], ["--precision", "fp32"]):
        assert CliRunner().invoke(cli, ["bench", "train", "--device", "cpu", *options]).exit_code == 0
    assert seen == [usual, "fp32"]


def test_one_process_is_no_plural():
    assert (counted(1), counted(2)) == ("1 process", "2 processes")


def test_what_cannot_be_measured():
    with pytest.raises(UsageError, match="as many lanes"):
        measure(MODEL, TRAIN, [1, 5], 1.0, "cpu", print)
    for numbers in ("many", "", "1,0"):
        assert CliRunner().invoke(cli, ["bench", "train", "--processes", numbers]).exit_code == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="gloo")
def test_a_rank_that_fails_is_told_and_signals_are_heard_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(RunError, match=r"rank 0 of 1 failed: .*invalid literal"):
        call(1, int, "no number")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
