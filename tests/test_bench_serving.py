"""The load benchmark counts what the server counts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner
from serving import serving, write_models
from test_generation import make_model

from textlstm.bench import serving as bench
from textlstm.bench.serving import Load, measure
from textlstm.cli import cli
from textlstm.errors import RunError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), letters=make_model())


def test_it_counts_what_the_server_counts(models):
    with serving(models) as site:
        load = Load(tokens=200, prompt_chars=30, seconds=0.4)
        said = []
        rows = measure(site.url, [1, 6], load, said.append)
        counts = site.hub.served["letters"].scheduler.counts
        assert [row["streams"] for row in rows] == [1, 6] and len(said) == 2
        assert all(row["errors"] == 0 for row in rows)
        assert sum(row["requests"] for row in rows) * 200 == counts.written_tokens
        assert 0 < sum(row["tokens_per_second"] for row in rows) * 0.4 <= counts.written_tokens
        for row in rows:
            for key in ("first_token_ms", "between_chunks_ms", "per_token_ms"):
                values = [row[key][p] for p in ("p50", "p90", "p95", "p99")]
                assert values == sorted(values) and values[-1] > 0
            assert row["per_token_ms"]["p50"] * 199 < 1000 * load.seconds * 10
            # Here both are one process, so that what each cost is the same.
            costs = row["cpu_us_per_token"]
            assert costs["server"] == pytest.approx(costs["client"], abs=30e3 / row["requests"] / 200 + 5, rel=0.2)
            assert row["peak_memory_mb"] == max(size for _, size in row["memory_mb"]) > 10
        with pytest.raises(RunError, match="none was answered"):
            measure(site.url, [1], Load(model="nobody", seconds=0.1), said.append)


def test_refusals_are_errors(models):
    with serving(models, max_concurrency=1, max_queue=1) as site:
        (row,) = measure(site.url, [8], Load(tokens=50, seconds=0.3), lambda line: None)
        assert row["errors"] > 0 and row["requests"] > 0


def test_who_listens_and_does_not_answer_is_no_server(monkeypatch):
    monkeypatch.setattr(bench, "READY", 0.1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(RunError, match="does not become ready"):
            measure(f"http://127.0.0.1:{listener.getsockname()[1]}", [1], Load(), lambda line: None)


@pytest.mark.slow
def test_command(models, tmp_path):
    picture = tmp_path / "load.svg"
    arguments = ["bench", "serve", str(models["letters"]), "--streams", "1,2", "--seconds", "0.2", "--tokens", "5"]
    # A process of its own: in this one a browser's tests may have left an event loop running.
    command = [sys.executable, "-m", "textlstm", *arguments, "--json", "--plot", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert [row["streams"] for row in report["rows"]] == [1, 2] and report["tokens"] == 5
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize("streams", ["many", "", "1,0", "1,-2"])
def test_numbers_of_streams_that_are_none(streams):
    assert CliRunner().invoke(cli, ["bench", "serve", "--streams", streams]).exit_code == 2
