"""The search for options: what a trial computes, what it may look at, and going on after a stop."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import textlstm
from textlstm.autopilot import averaging
from textlstm.cli import cli
from textlstm.config import CorpusConfig, ModelConfig, TrainConfig, read_settings
from textlstm.corpus import read_corpus
from textlstm.errors import ConfigError, DivergedError, Interrupted, MissingExtraError, RunError, UsageError
from textlstm.model_file import read_model
from textlstm.trainer import Trainer
from textlstm.trainer.device import usual_precision
from textlstm.tune import BEST_FILE, SEARCH_FILE, TRIALS_FILE, Search, tune
from textlstm.tune.show import PlainTuneView, TuneView, show_found

STEPS = 40
TINY = ModelConfig(257, 16, 16, 1)
FLOPS = float(STEPS * 3 * TINY.flops_per_token * 4 * 24)
FIXED = {
    "tokenizer": "byte", "hidden_size": 16, "num_layers": 1, "batch_size": 4, "seq_len": 24, "eval_every": 10,
    "val_fraction": 0.2, "dev_fraction": 0.1,
}  # fmt: skip


@pytest.fixture
def book(tmp_path, own_cache, text) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(text[:12_000])
    return path


def search(book: Path, out: str, trials: int = 4, **rest) -> Search:
    settings = FIXED | rest.pop("settings", {})
    rest = {"flops": FLOPS} | rest
    return Search([str(book)], book.parent / out, trials, settings=settings, **rest)


def outcome(found) -> list:
    return [(row.nats_per_char, row.ended, row.steps, row.settings) for row in found.rows]


class Stop(TuneView):
    """Raises a signal in some step of some trial."""

    def __init__(self, trial: int, step: int, number: int = signal.SIGINT) -> None:
        self._where, self._number, self._trial = (trial, step), number, 0

    def trial_begins(self, number, settings, steps, chars_per_token):
        self._trial = number

    def report(self, report):
        if (self._trial, report.step) == self._where:
            signal.raise_signal(self._number)


@pytest.mark.parametrize("settings", [{}, {"tokenizer": "bpe", "vocab_size": 300, "merge_dropout": 0.4}])
def test_the_best_trial_is_what_train_does_with_its_options(book, run, settings):
    found = tune(search(book, "search", trials=3, settings=settings), TuneView())
    assert len(found.rows) == 3 and found.best is not None
    assert found.best.nats_per_char == min(r.nats_per_char for r in found.rows if r.ended == "complete")
    assert found.command.startswith("textlstm train ") and str(book) in found.command
    by_command = run(*shlex.split(found.command)[1:], "--out", "by-command", "--quiet")
    by_config = run("train", str(book), "--config", str(found.config), "--out", "by-config", "--quiet")
    assert by_command.code == by_config.code == 0
    for name in ("by-command", "by-config"):
        model = read_model(Path(name, "model.safetensors"))
        assert model.card["scores"]["dev"]["nats_per_char"] == found.best.nats_per_char
        assert model.card["steps"] == found.best.steps and model.config.hidden_size == 16
        assert model.config.num_params == found.best.params


def test_what_is_found_is_trained_from_another_folder(book, run, tmp_path, monkeypatch):
    ranks = "".join(f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(256))
    (tmp_path / "my.tiktoken").write_text(ranks)
    found = tune(search(book, "search", trials=1, settings={"tokenizer": "my.tiktoken"}), TuneView())
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    by_config = ["train", str(book), "--config", str(found.config), "--out", "by-config"]
    for command in (shlex.split(found.command)[1:], by_config):
        done = run(*command, "--steps", "1", "--quiet")
        assert done.code == 0, done.err


def test_every_trial_has_the_same_compute(book):
    settings = {key: value for key, value in FIXED.items() if key not in ("batch_size", "seq_len")}
    found = tune(Search([str(book)], book.parent / "search", 4, FLOPS, settings=settings), TuneView())
    for row in found.rows:
        step = 3 * TINY.flops_per_token * row.settings["batch_size"] * row.settings["seq_len"]
        assert row.steps == max(1, round(FLOPS / step)) and row.ended == "complete"
        assert 1e-3 <= row.settings["lr"] <= 3e-2 and 0.01 <= row.settings["weight_decay"] <= 1
    assert len({row.steps for row in found.rows}) > 1


def test_the_held_out_text_plays_no_part(book, text):
    one = tune(search(book, "one", trials=2), TuneView())
    kept = len(text[:12_000]) * 8 // 10
    book.write_text(text[:kept] + "?" * (12_000 - kept))  # the last fifth is what is held out
    other = tune(search(book, "other", trials=2), TuneView())
    assert outcome(one) == outcome(other)


def test_the_same_seed_gives_the_same_trials_also_after_stops(book):
    whole = tune(search(book, "whole", trials=11), TuneView())  # the sampler learns from the ninth on
    for trial, step, number in ((1, 1, signal.SIGTERM), (3, 7, signal.SIGINT), (10, 3, signal.SIGINT)):
        with pytest.raises(Interrupted) as caught:
            tune(search(book, "parts", trials=11), Stop(trial, step, number))
        assert caught.value.exit_code == 128 + number
    tune(search(book, "parts", trials=10), TuneView())
    parts = tune(search(book, "parts", trials=11), TuneView())
    assert outcome(whole) == outcome(parts)
    assert (book.parent / "whole" / BEST_FILE).read_bytes() == (book.parent / "parts" / BEST_FILE).read_bytes()
    other = tune(search(book, "seeded", trials=2, settings={"seed": 1}), TuneView())
    assert other.rows[1].settings["lr"] != whole.rows[1].settings["lr"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_search_goes_on(book):
    words = [f"--{k.replace('_', '-')}={v}" for k, v in FIXED.items()]
    command = ["tune", str(book), "--out", "killed", "--flops", str(FLOPS), "--trials", "3", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(textlstm.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "textlstm", *command], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not any(line.startswith("trial 1/3") for line in iter(process.stderr.readline, "")):
            assert time.monotonic() < deadline and process.poll() is None
        process.kill()
    found = tune(search(book, "killed", trials=3), TuneView())
    assert outcome(found) == outcome(tune(search(book, "calm", trials=3), TuneView()))


def test_trials_that_fall_behind_are_ended(book, monkeypatch):
    losses = iter(range(1, 10))

    def at(self, trial=losses):
        look = original(self)
        self.loss_of_trial = getattr(self, "loss_of_trial", None) or next(trial)
        worse = type(look.dev)(**{**vars(look.dev), "nats": look.dev.nats * self.loss_of_trial})
        return type(look)(look.step, worse, look.best, look.seconds)

    original = Trainer._look
    monkeypatch.setattr(Trainer, "_look", at)
    found = tune(search(book, "search", trials=7), TuneView())
    assert [row.ended for row in found.rows] == ["complete"] * 5 + ["pruned"] * 2
    for row in found.rows[5:]:
        assert row.steps_done == 10 and row.steps == STEPS  # at a quarter
    assert found.best.number == 1
    losses = iter(range(1, 10))
    monkeypatch.setattr(Trainer, "_look", lambda self: at(self, losses))
    assert {row.ended for row in tune(search(book, "all", trials=7, prune=False), TuneView()).rows} == {"complete"}


@pytest.mark.parametrize(
    ("error", "ended"),
    [(DivergedError("so"), "diverged"), (RuntimeError("DefaultCPUAllocator: not enough memory"), "out of memory")],
)
def test_a_trial_that_fails_is_told_and_the_search_goes_on(book, monkeypatch, error, ended):
    original, count = Trainer.advance, iter(range(1000))

    def advance(self):
        if next(count) == 3:
            raise error
        return original(self)

    monkeypatch.setattr(Trainer, "advance", advance)
    found = tune(search(book, "search", trials=3), TuneView())
    assert [row.ended for row in found.rows] == [ended, "complete", "complete"]
    assert [row.steps_done for row in found.rows] == [3, STEPS, STEPS]
    assert found.best.number > 1


@pytest.mark.parametrize(
    ("error", "ended"),
    [(DivergedError("so"), "diverged"), (RuntimeError("DefaultCPUAllocator: not enough memory"), "out of memory")],
)
def test_a_trial_whose_step_cannot_be_measured_is_told_and_the_search_goes_on(book, monkeypatch, error, ended):
    times = iter([error, 0.05, 0.05])

    def measure(*arguments, **rest):
        if isinstance(found := next(times), Exception):
            raise found
        return found

    monkeypatch.setattr("textlstm.tune.measure_step", measure)
    found = tune(search(book, "search", trials=3, flops=None, minutes=0.02), TuneView())
    assert [row.ended for row in found.rows] == [ended, "complete", "complete"]
    assert (found.rows[0].steps, found.rows[0].steps_done) == (0, 0) and found.best.number > 1
    show_found(found)


def test_no_trial_was_completed(book, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "advance", lambda self: (_ for _ in ()).throw(DivergedError("so")))
    found = tune(search(book, "search", trials=2), TuneView())
    assert found.best is found.command is found.config is None
    show_found(found)
    assert "no trial was completed" in capsys.readouterr().out


def test_another_search_is_not_gone_on_with(book):
    tune(search(book, "search", trials=1), TuneView())
    with pytest.raises(RunError, match=r"flops: .* there, 3"):
        tune(search(book, "search", flops=3e8), TuneView())
    with pytest.raises(RunError, match="fixed"):
        tune(search(book, "search", settings={"lr": 0.01}), TuneView())
    book.write_text(book.read_text()[1:])
    with pytest.raises(RunError, match="text"):
        tune(search(book, "search"), TuneView())


def test_requests_that_cannot_be_meant(book):
    for wrong, told in (
        ({"flops": None}, "name the compute"), ({"minutes": 1.0}, "name the compute"), ({"flops": -1.0}, "above 0"),
        ({"settings": {"dev_fraction": 0.0}}, "development part"), ({"settings": {"hiden_size": 3}}, "hidden_size"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            tune(search(book, "wrong", **wrong), TuneView())
    assert not (book.parent / "wrong").exists()
    with pytest.raises(UsageError, match="is not empty"):
        tune(search(book, "."), TuneView())
    everything = {"lr": 0.01, "weight_decay": 0.1} | {
        f"{place}_dropout": 0.1 for place in ("input", "layer", "output", "weight")
    }
    with pytest.raises(UsageError, match="nothing is left"):
        tune(search(book, "wrong", settings=everything), TuneView())
    with pytest.raises(UsageError, match=r"--merge-dropout .* \(byte, 256 ids\) has none"):
        tune(search(book, "bytes", settings={"merge_dropout": 0.1}), TuneView())


def test_a_trial_of_a_short_text_is_as_long_as_its_few_lanes_want(book):
    """A thousand lanes are wanted; 1,080 bytes have room for 67 of 16 tokens."""
    book.write_text(book.read_text()[:1500])
    flops = 5 * 3 * TINY.flops_per_token * 67 * 24
    (row,) = tune(search(book, "short", trials=1, flops=float(flops), settings={"batch_size": 1000}), TuneView()).rows
    assert row.steps == 5


def test_a_damaged_database_is_told(book):
    found = tune(search(book, "search", trials=1), TuneView())
    (found.out / TRIALS_FILE).write_bytes(b"not a database" * 500)
    with pytest.raises(RunError, match=TRIALS_FILE):
        tune(search(book, "search"), TuneView())
    (found.out / SEARCH_FILE).write_text("{")
    with pytest.raises(RunError, match=SEARCH_FILE):
        tune(search(book, "search"), TuneView())


def test_any_name_of_a_folder(book):
    name = "a {b} ?c #d %20 é"
    assert tune(search(book, name, trials=1), TuneView()).rows == tune(search(book, name, trials=1), TuneView()).rows
    assert (book.parent / name / TRIALS_FILE).exists()


def test_minutes_are_kept(book, monkeypatch):
    monkeypatch.setattr("textlstm.tune.measure_step", lambda *arguments, **rest: 0.05)
    found = tune(search(book, "search", trials=2, flops=None, minutes=0.02), TuneView())
    assert [row.steps for row in found.rows] == [int(0.02 * 60 * 0.97 / 0.05)] * 2


def test_the_space_surrounds_the_rule(book):
    found = tune(search(book, "search", trials=1), TuneView())
    plan = json.loads((found.out / SEARCH_FILE).read_text())
    assert set(plan["space"]) == set(plan["first"]) and "hidden_size" not in plan["space"]
    for name, value in plan["first"].items():
        assert plan["space"][name]["low"] <= value <= plan["space"][name]["high"]
        assert found.rows[0].settings[name] == pytest.approx(value, rel=1e-2)
    from textlstm.tune import _space

    for hidden in (128, 192, 320, 1024, 1280):
        sizes = _space({"vocab_size": 1024, "hidden_size": hidden})
        low, high = sizes["hidden_size"]["low"], sizes["hidden_size"]["high"]
        assert hidden in range(low, high + 1, 64) and (high - low) % 64 == 0 and low <= hidden // 2 + 64
        assert sizes["vocab_size"]["choices"] == [512, 1024, 2048]
    few = [288, 320, 512]
    for vocab, choices in ((288, few), (320, few), (512, [*few, 1024]), (4096, [2048, 4096])):
        assert _space({"vocab_size": vocab, "hidden_size": 128})["vocab_size"]["choices"] == choices


def test_the_first_vocabulary_is_the_one_that_suits_the_text(book, monkeypatch):
    from textlstm.tune import _Plan

    lengths = {320: 1.2, 512: 1.3, 1024: 1.35, 2048: 1.4, 4096: 1.45}
    monkeypatch.setattr("textlstm.appraisal.token_lengths", lambda documents, largest: lengths)
    corpus = read_corpus([str(book)], CorpusConfig())
    asked = {"flops": 1e12, "minutes": None, "fixed": {"model": {}, "train": {"precision": "fp32"}}}
    assert _Plan.made(asked, corpus, "cpu").first["vocab_size"] == 320


def test_without_optuna(book, run, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else found(name))
    with pytest.raises(MissingExtraError, match=r"textlstm\[tune\]"):
        tune(search(book, "search"), TuneView())


def test_command(book, run):
    fixed = [f"--{k.replace('_', '-')}={v}" for k, v in FIXED.items()]
    command = ("tune", str(book), "--out", "search", "--flops", str(FLOPS), "--trials", "2", *fixed)
    done = run(*command, "--json")
    assert done.code == 0 and done.out.count("\n") == 1
    assert done.json["config"] == "search/best.json" and len(done.json["rows"]) == 2
    assert "trial 1/2" in done.err and "trial 2/2" in done.err
    again = run(*command)
    assert again.code == 0 and "going on after 2" in again.err
    assert "textlstm train" in again.out and "nats/char" in again.out
    assert run("tune", str(book)).code == 2
    assert run("tune", "--flops", "1").code == 2


def test_help_tells_what_a_trial_takes(book):
    """A trial has what the help calls the default, and searches what the help says is searched."""
    told = {option.name: getattr(option, "help", None) or "" for option in cli.commands["tune"].params}
    settings = {"tokenizer": "bpe", "vocab_size": 257, "hidden_size": 16}
    found = tune(Search([str(book)], book.parent / "search", 1, FLOPS, settings=settings), TuneView())
    config, space = read_settings(found.config), json.loads((found.out / SEARCH_FILE).read_text())["space"]
    searched = {name for name, help in told.items() if "[default: searched" in help}
    assert searched == {*space, "vocab_size", "hidden_size"}
    assert told["embed_size"].endswith("[default: as --hidden-size]") and config["embed_size"] == 16
    assert told["ema"].endswith("[default: spans a twelfth of the trial]")
    assert config["ema"] == averaging(found.best.steps, 1 / 12)
    names = {*TrainConfig.__dataclass_fields__, *ModelConfig.__dataclass_fields__}
    assert told["precision"].endswith("[default: bf16 with AMX, else fp32]")
    assert config["precision"] == usual_precision("cpu")
    assert told["activation_penalty"].endswith("[default: 0.02 of --hidden-size]")
    assert config["activation_penalty"] == pytest.approx(0.02 * 16)
    for name in names & told.keys() - searched - {"embed_size", "ema", "precision", "activation_penalty"}:
        default = told[name].rpartition("[default: ")[2].rstrip("]")
        assert config[name] is None or default == str(config[name]), name


def test_plain_view_in_a_pipe(book, capsys):
    from rich.console import Console

    tune(search(book, "search", trials=1), PlainTuneView(Console(stderr=True)))
    assert "lr 0.0" in capsys.readouterr().err


def test_live_view_shows_the_trial_and_the_best(book):
    import io

    from rich.console import Console

    from textlstm.tune.show import LiveTuneView

    console = Console(file=io.StringIO(), force_terminal=True, width=160, height=50)
    with LiveTuneView(console) as view:
        found = tune(search(book, "search", trials=2), view)
        console.print(view.render())
    shown = console.file.getvalue()
    assert f"{found.best.nats_per_char:.4f}" in shown and "trial 2" in shown and "tokens/s" in shown


# --- train --config --------------------------------------------------------------------------------------------------


def test_settings_of_a_file(tmp_path):
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"version": 1, "model": {"hidden_size": 32}, "train": {"lr": 0.1, "steps": 3}}))
    assert read_settings(path) == {"hidden_size": 32, "lr": 0.1, "steps": 3}
    assert read_settings(path).keys() <= {*ModelConfig().to_dict(), "lr", "steps", *CorpusConfig().to_dict()}
    for content in (
        "",
        "[]",
        "{}",
        '{"model": 3}',
        '{"model": {"hiden_size": 3}}',
        '{"train": {"lr": "high"}}',
        "NaN",
    ):
        path.write_text(content)
        with pytest.raises(ConfigError):
            read_settings(path)
    with pytest.raises(ConfigError, match=r"no-such\.json cannot be read: No such file or directory; take the best"):
        read_settings(tmp_path / "no-such.json")


@pytest.mark.parametrize(
    ("content", "told"), [("", "is empty"), (" \n", "is empty"), ('{"event": "step"}\n{}\n', "is no configuration")]
)
def test_a_file_of_something_else_is_named_without_the_words_of_a_parser(tmp_path, content, told):
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"log\.jsonl {told}.*config\.json of a run") as caught:
        read_settings(path)
    assert "char " not in str(caught.value)


def test_a_runs_own_config_trains_it_again(book, run):
    tiny = ["--tokenizer", "byte", "--hidden-size", "16", "--embed-size", "12", "--batch-size", "4", "--quiet"]
    assert run("train", str(book), "--out", "one", "--steps", "12", *tiny).code == 0
    assert run("train", str(book), "--out", "other", "--config", "one/config.json", "--quiet").code == 0
    one, other = (read_model(Path(name, "model.safetensors")).weights for name in ("one", "other"))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    done = run(
        "train", str(book), "--out", "third", "--config", "one/config.json", "--steps", "3", "--json", "--quiet"
    )
    assert done.json["steps"] == 3


def test_the_folder_of_a_search_is_called_as_its_corpus(text, tmp_path, own_cache, monkeypatch):
    (tmp_path / "tinyshakespeare.txt").write_text(text)
    monkeypatch.setenv("TEXTLSTM_CORPORA", str(tmp_path))
    monkeypatch.setattr("textlstm.corpus.named.TINY_SHA256", hashlib.sha256(text.encode()).hexdigest())
    tune(Search(["corpus:tiny-shakespeare"], None, 1, flops=FLOPS, settings=FIXED), TuneView())
    assert [path.name for path in Path("runs").iterdir()] == ["tiny-shakespeare-tune-1"]
