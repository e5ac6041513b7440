"""Whole runs in process: the run folder, the numbers in it, and going on after a stop."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from textlstm import autopilot, metrics
from textlstm.config import ModelConfig, TrainConfig
from textlstm.corpus import Corpus, Document, Part, Tokens, read_corpus
from textlstm.engine.torch import TorchEngine
from textlstm.errors import ConfigError, CorpusError, Interrupted, RunError, UsageError
from textlstm.model import Model
from textlstm.model_file import amend_card, read_model
from textlstm.network import RecurrentLM
from textlstm.novelty import CopyMeter
from textlstm.run import Request, Result, train
from textlstm.run.beginning import begin
from textlstm.run.loop import is_original_split, opening
from textlstm.run.setup import Setup
from textlstm.run.signals import Signals
from textlstm.scoring.parts import FITTED_ON, FITTING_READS, fitted_temperature
from textlstm.state import State
from textlstm.tokenizer import gpt2_tokenizer
from textlstm.trainer import Trainer
from textlstm.view import Facts, LiveView, PlainView, View, choose_view, error_console

TRUE_FILE = Path(os.environ.get("TEXTLSTM_CORPORA", "nowhere"), "tinyshakespeare.txt")
TAUGHT = "the river ran under an old stone bridge and nobody knew who had built it or why they never came back"
TINY = {
    "tokenizer": "byte", "embed_size": 12, "hidden_size": 16, "num_layers": 2, "batch_size": 4, "seq_len": 24,
    "lr": 1e-2, "eval_every": 10,
}  # fmt: skip
STEPS = 24


def make_text(size: int, seed: int = 1) -> str:
    rng = random.Random(seed)
    lines = []
    while sum(map(len, lines)) < size:
        lines.append(" ".join(rng.choices(TAUGHT.split(), k=rng.randint(3, 12))) + ".\n")
    return "".join(lines)[:size]


TEXT = make_text(20_000)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def book(tmp_path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def request(book: Path, out: Path, steps: int | None = STEPS, **rest) -> Request:
    settings = TINY | rest.pop("settings", {})
    return Request([str(book)], out, steps=steps, settings=settings, **rest)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    a, b = (read_model(path / "model.safetensors").weights for path in (one, other))
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


class Watch(View):
    """Records what a run tells, and raises a signal after some steps."""

    def __init__(self, signal_at: tuple[int, ...] = (), number: int = signal.SIGINT) -> None:
        self.notices: list[str] = []
        self.steps: list[int] = []
        self.facts = None
        self.samples: list[tuple[int, str]] = []
        self.told: list[str] = []
        self._signal_at, self._number = signal_at, number

    def notice(self, line: str) -> None:
        self.notices.append(line)

    def begin(self, facts, step: int) -> None:
        self.facts = facts

    def step(self, step: int, nats: float, lr: float, epoch: int, tokens: int, seconds: float) -> None:
        self.steps.append(step)
        if step in self._signal_at:
            signal.raise_signal(self._number)

    def sample(self, step: int, text: str) -> None:
        self.samples.append((step, text))

    def copied(self, told: str) -> None:
        self.told.append(told)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path, Result, Watch]:
    """One complete run that several tests look at and none changes."""
    base = tmp_path_factory.mktemp("finished")
    book = base / "book.txt"
    book.write_text(TEXT, encoding="utf-8")
    view = Watch()
    result = train(request(book, base / "run", command="textlstm train book.txt"), view)
    return book, base / "run", result, view


# --- the run folder --------------------------------------------------------------------------------------------------


def test_run_folder(finished):
    _, folder, _, view = finished
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.json", "log.jsonl", "samples.md", "loss.svg", "novelty.svg", "checkpoints",
        ".lock",
    }  # fmt: skip
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-20", "step-24"}
    assert view.steps == list(range(1, STEPS + 1))
    root = ET.parse(folder / "loss.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "nan," not in (folder / "loss.svg").read_text()


def test_log(finished):
    _, folder, result, _ = finished
    log = log_of(folder)
    steps = [line for line in log if line["event"] == "step"]
    looks = [line for line in log if line["event"] == "look"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all(line["nats_per_char"] == pytest.approx(line["nats_per_token"] * 17_101 / 17_100) for line in steps)
    assert steps[-1]["nats_per_token"] < steps[0]["nats_per_token"] < math.log(257) + 0.2
    assert [line["step"] for line in looks] == [10, 20, 24]
    dev = [line["dev"]["nats"] for line in looks]
    assert [line["best"] for line in looks] == [cost == min(dev[: k + 1]) for k, cost in enumerate(dev)]
    assert log[-1]["event"] == "end" and log[-1]["result"]["val"] == result.val


def test_samples(finished):
    _, folder, _, view = finished
    text = (folder / "samples.md").read_bytes().decode("utf-8", errors="surrogateescape")
    assert [line for line in text.split("\n") if line.startswith("## ")] == ["## step 10", "## step 20", "## step 24"]
    assert [step for step, _ in view.samples] == [10, 20, 24]
    for _, sample in view.samples:
        assert "".join(f"    {line}\n" for line in sample.split("\n")) in text


def test_what_is_copied_is_told_beside_what_people_copy(finished):
    """Against counting: the longest piece of each sample that stands in the training text."""
    _, folder, result, view = finished
    told = [line for line in log_of(folder) if line["event"] == "novelty"]
    assert [line["step"] for line in told] == [10, 20, 24] and len(view.told) == 3
    training, people = TEXT[: result.train_chars], TEXT[result.train_chars : 18_000]
    starts = [300 * (piece * (len(people) // 300) // 3) for piece in range(len(people) // 300)]
    assert len(starts) == 3
    longest = [longest_run(people[start : start + 300], training) for start in starts]
    assert told[-1]["people"]["longest"] == pytest.approx(np.mean(longest)) and told[-1]["people"]["texts"] == 3
    file = read_model(result.model)
    assert file.card["step"] == 24, "the weights of the last look are those of the model"
    model = Model(dataclasses.replace(file, config=file.config.replace(logit_scale=1.0)))  # calibrated after the looks
    samples = [model.generate(max_chars=300, seed=seed) for seed in range(4)]
    assert [text for step, text in view.samples if step == 24] == samples[:1]
    found = told[-1]["samples"]
    assert found["longest"] == pytest.approx(np.mean([longest_run(text, training) for text in samples]))
    assert found["texts"] == 4 and found["chars"] == 300 and 0 <= found["copied_40"] <= found["copied_20"] <= 1
    assert f"copied word for word: {view.told[-1]}" in (folder / "samples.md").read_text(errors="surrogateescape")
    root = ET.parse(folder / "novelty.svg").getroot()
    assert "text that people wrote" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}tspan")]


def longest_run(text: str, source: str) -> int:
    longest = 0
    for start in range(len(text)):
        while text[start : start + longest + 1] in source and start + longest < len(text):
            longest += 1
    return longest


def test_copies_are_not_measured_where_it_would_cost_too_much(book, tmp_path, monkeypatch):
    monkeypatch.setattr(CopyMeter, "pays", staticmethod(lambda size, flops: False))
    train(request(book, tmp_path / "run"), Watch())
    assert not (tmp_path / "run" / "novelty.svg").exists()
    assert not [line for line in log_of(tmp_path / "run") if line["event"] == "novelty"]


def test_without_the_extra_a_run_goes_on(book, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    view = Watch()
    train(request(book, tmp_path / "run"), view)
    assert len(view.samples) == 3 and not view.told and not (tmp_path / "run" / "novelty.svg").exists()


def test_result_and_config(finished):
    book, folder, result, view = finished
    stored = json.loads((folder / "config.json").read_text())
    assert result.config == stored and result.model == folder / "model.safetensors"
    assert result.steps == STEPS and result.seconds > 0 and result.seconds_to_loss is None
    assert stored["sources"] == [str(book)] and stored["version"] == 1 and stored["init_from"] is None
    assert stored["train"]["steps"] == STEPS and stored["train"]["lr"] == 1e-2 and stored["train"]["beta2"] == 0.999
    assert stored["model"]["vocab_size"] == 257 and stored["model"]["hidden_size"] == 16
    assert result.train_chars == int(18_000 * 0.95)
    counts = np.bincount(np.frombuffer(TEXT[: result.train_chars].encode(), np.uint8), minlength=257) + 0.5
    counts[256] += 1  # the boundary at the beginning
    shares = counts / counts.sum()
    shown = TEXT[result.train_chars : 18_000].encode()  # the development part
    assert view.facts.unigram == pytest.approx(-np.log(shares[list(shown)]).mean())
    assert view.facts.uniform == pytest.approx(math.log(257)) and view.facts.steps == STEPS
    assert result.params == sum(w.size for w in read_model(result.model).weights.values())
    assert json.loads(json.dumps(result.to_dict()))["model"] == str(result.model)


def test_val_is_an_independent_score_of_the_end_of_the_text(finished):
    _, folder, result, _ = finished
    held_out, before = TEXT[18_000:], TEXT[18_000 - 512 : 18_000]
    assert result.val["chars"] == result.val["bytes"] == result.val["tokens"] == 2_000
    for engine in ("torch", "onnx"):
        score = Model.load(folder, engine).score(held_out, context=before)
        assert score.nats == pytest.approx(result.val["nats"], rel=1e-5)
        assert score.nats_per_char == pytest.approx(result.val["nats_per_char"], rel=1e-5)
    assert Model.load(folder).score(held_out).nats != pytest.approx(result.val["nats"], rel=1e-7)  # the context counts
    assert result.val["bits_per_byte"] == pytest.approx(result.val["nats"] / 2_000 / math.log(2))
    assert result.val["protocol"] == "stream"


def test_card(finished):
    _, folder, result, _ = finished
    card = read_model(folder / "model.safetensors").card
    assert card["split"] == {"train_chars": 17_100, "dev_chars": 900, "val_chars": 2_000}
    assert card["scores"]["val"] == result.val
    looks = {line["step"]: line["dev"] for line in log_of(folder) if line["event"] == "look"}
    assert card["scores"]["dev"] == looks[card["step"]]
    assert card["scores"]["dev"]["nats"] == min(dev["nats"] for dev in looks.values())
    assert card["corpus"]["name"] == "book.txt" and card["corpus"]["licence"] == "unknown"
    assert card["corpus"]["source"] == "the user's own text" and card["corpus"]["canonical"] is False
    assert card["corpus"]["sha256"] == result.config["fingerprint"]
    assert card["train"] == TrainConfig.from_dict(result.config["train"]).to_dict()
    assert card["command"] == "textlstm train book.txt" and card["chosen_by"].startswith("lowest loss")
    assert 0 < card["seconds"] <= result.seconds


def test_finished_model_writes(finished):
    _, folder, _, _ = finished
    model = Model.load(folder)
    text = model.generate("the ", max_chars=40, seed=3)
    assert text == model.generate("the ", max_chars=40, seed=3) and len(text) == 40


# --- stopping and going on -------------------------------------------------------------------------------------------


def test_resume_of_a_complete_run_returns_its_result(finished):
    book, folder, result, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    view = Watch()
    again = train(Request([], folder, resume=True), view)
    assert again == result and view.steps == []
    (told,) = view.notices
    assert "complete" in told and told.endswith(f"textlstm train TEXT --init-from {folder}")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert train(request(book, folder, resume=True)) == result


@pytest.mark.parametrize("stops", [(1,), (10,), (7, 8, 17), (24,)], ids=str)
def test_interrupted_and_resumed_run_is_the_same_run(finished, tmp_path, stops):
    book, whole, result, _ = finished
    folder = tmp_path / "run"
    for number, stop in enumerate(stops):
        if stop == STEPS:  # a signal at the very end comes too late to stop anything
            train(request(book, folder), Watch((stop,)))
            break
        with pytest.raises(Interrupted, match=f"stopped at step {stop} of {STEPS}.*--resume --out") as caught:
            train(request(book, folder, resume=number > 0), Watch((stop,)))
        assert caught.value.exit_code == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert read_model(folder / "model.safetensors").config.hidden_size == 16
    view = Watch()
    resumed = train(Request([], folder, resume=True), view)
    assert view.steps == list(range(stops[-1] + 1, STEPS + 1))
    assert stops[-1] == STEPS or view.facts.title == f"book.txt -> {folder}"  # the path is absolute by now
    assert same_weights(folder, whole)
    assert resumed.val == result.val and resumed.steps == STEPS
    assert resumed.config == {**result.config, "command": ""}  # begun without a command line
    ours, theirs = (
        [(line["step"], line.get("nats_per_token"), line.get("dev")) for line in log_of(path)[:-1]]
        for path in (folder, whole)
    )
    assert ours == theirs
    assert (folder / "samples.md").read_bytes() == (whole / "samples.md").read_bytes()


def test_the_card_of_a_resumed_run_has_the_command_that_began_it(book, tmp_path):
    begun, again = ({"command": f"textlstm train {words}"} for words in ("book.txt --steps 9", "--resume"))
    with pytest.raises(Interrupted):
        train(Request([str(book)], tmp_path / "run", steps=9, settings=TINY, **begun), Watch((5,)))
    result = train(Request([], tmp_path / "run", resume=True, **again))
    assert read_model(result.model).card["command"] == begun["command"]


def test_info_of_a_run_that_is_not_over(book, tmp_path, run):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(request(book, folder), Watch((13,)))
    assert f"step 10 of {STEPS}, not over" in run("info", folder).out
    train(Request([], folder, resume=True))
    amend_card(folder / "model.safetensors", {"step": 10})  # as if the development part had chosen these weights
    told = run("info", folder).out
    assert "book.txt, the user's own text, 17,100 characters\n" in told  # of an unknown licence
    assert f"training  {STEPS} steps, weights of step 10, " in told and "not over" not in told


def test_a_run_that_ended_by_patience_tells_the_steps_it_took(book, tmp_path):
    result = train(request(book, tmp_path / "run", settings={"lr": 5.0, "patience": 1, "eval_every": 2}))
    card = read_model(result.model).card
    assert card["step"] < card["steps"] == result.steps < STEPS == card["train"]["steps"]


def test_sigterm_has_its_own_exit_code(book, tmp_path):
    with pytest.raises(Interrupted) as caught:
        train(request(book, tmp_path / "run"), Watch((3,), signal.SIGTERM))
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_acts_at_once(book, tmp_path):
    class Impatient(Watch):
        def step(self, step: int, *rest) -> None:
            if step == 4:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(request(book, tmp_path / "run"), Impatient())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resume_before_anything_was_logged(book, tmp_path):
    # A run of 5,000 steps logs every fifth; it can be stopped before that.
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(request(book, folder, 5000), Watch((2,)))
    view = Watch((4,))
    with pytest.raises(Interrupted, match="stopped at step 4"):
        train(Request([], folder, resume=True), view)
    assert view.steps == [3, 4]


def test_resume_without_a_checkpoint_begins_afresh(finished, tmp_path):
    _, whole, result, _ = finished
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(result.config))
    view = Watch()
    train(Request([], folder, resume=True), view)
    assert same_weights(folder, whole) and any("no checkpoint yet" in line for line in view.notices)


def test_damaged_checkpoint_costs_only_the_way_back(finished, book, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(request(book, folder, settings={"checkpoint_every": 5}), Watch((12,)))
    path = folder / "checkpoints" / "step-12" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    view = Watch()
    train(Request([], folder, resume=True), view)
    assert view.steps[0] == 11 and any("step-12 is damaged" in line for line in view.notices)
    assert same_weights(folder, finished[1])


@pytest.fixture
def stopped(book, tmp_path) -> Path:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(request(book, folder), Watch((5,)))
    return folder


def test_resume_with_changed_text_is_refused(book, stopped):
    book.write_text(TEXT.replace("river", "brook", 1), encoding="utf-8")
    with pytest.raises(RunError, match="the text has changed"):
        train(Request([], stopped, resume=True))


def test_resume_with_changed_settings_is_refused(book, stopped):
    for changed in ({"lr": 2e-2}, {"hidden_size": 32}, {"val_fraction": 0.2}, {"seed": 1}):
        with pytest.raises(RunError, match=f"other settings.*{next(iter(changed))}.*leave them out, or begin anew$"):
            train(request(book, stopped, resume=True, settings=changed))
    with pytest.raises(RunError, match="steps: 24 there, 30 asked"):
        train(request(book, stopped, 30, resume=True))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"settings": {"lr": 2e-2}}, "lr: 0.01 there, 0.02 asked"), ({"steps": 25}, "steps: 24 there, 25 asked"),
        ({"steps": None, "minutes": 5.0}, "minutes: None there, 5.0 asked"),
        ({"preset": "original"}, "preset: None there"), ({"init_from": "shakespeare"}, "init_from: None there"),
    ],
)  # fmt: skip
def test_a_complete_run_is_not_taken_for_another(finished, changed, told):
    book, folder, _, _ = finished
    with pytest.raises(RunError, match=f"{told}.*; it is complete; .*train TEXT --init-from {folder}$"):
        train(request(book, folder, resume=True, **changed))


def test_another_text_for_a_complete_run(finished, tmp_path):
    _, folder, _, _ = finished
    with pytest.raises(RunError, match=rf"not .*other\.txt; it is complete; .*train TEXT --init-from {folder}$"):
        train(request(tmp_path / "other.txt", folder, resume=True))


def test_a_vocabulary_that_the_text_could_not_fill(book, tmp_path):
    asked = {"settings": {"vocab_size": 5000}}
    with pytest.raises(Interrupted):
        train(request(book, tmp_path / "run", **asked), Watch((5,)))
    with pytest.raises(RunError, match="vocab_size: 5000 there, 6000 asked"):
        train(request(book, tmp_path / "run", resume=True, settings={"vocab_size": 6000}))
    assert train(request(book, tmp_path / "run", resume=True, **asked)).config["model"]["vocab_size"] < 5000


def test_a_repeated_command_goes_on(book, tmp_path):
    asked = {"steps": None, "epochs": 0.2, "time_to_loss": 0.01, "out": tmp_path / "run"}
    with pytest.raises(Interrupted):
        train(request(book, **asked), Watch((5,)))
    result = train(request(book, **asked, resume=True))
    assert result.steps == 36 and result.seconds_to_loss is None
    assert train(request(book, **asked, resume=True)) == result


def test_resume_from_another_folder(finished, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "book.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "here" / "held.txt").write_text(TEXT[:500], encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    relative = request(Path("book.txt"), Path("run"), settings={"val": "held.txt"})
    with pytest.raises(Interrupted):
        train(relative, Watch((5,)))
    monkeypatch.chdir(tmp_path / "there")
    assert train(Request([], Path("../here/run"), resume=True)).steps == STEPS
    monkeypatch.chdir(tmp_path / "here")
    assert train(request(Path("book.txt"), Path("run"), settings={"val": "held.txt"}, resume=True)).steps == STEPS


def test_the_file_of_a_tokenizer_is_found_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "book.txt").write_text(TEXT, encoding="utf-8")
    tokens = [bytes([byte]) for byte in range(256)]
    ranks = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate([*tokens, b"th"]))
    (tmp_path / "here" / "my.tiktoken").write_text(ranks)
    monkeypatch.chdir(tmp_path / "here")
    asked = {"settings": {"tokenizer": "my.tiktoken", "vocab_size": 258}}
    with pytest.raises(Interrupted):
        train(request(Path("book.txt"), Path("run"), **asked), Watch((5,)))
    stored = json.loads(Path("run/config.json").read_bytes())["train"]["tokenizer"]
    assert stored == str(tmp_path / "here" / "my.tiktoken")
    shutil.rmtree("run/checkpoints")
    monkeypatch.chdir(tmp_path / "there")
    assert train(Request([], Path("../here/run"), resume=True)).steps == STEPS
    monkeypatch.chdir(tmp_path / "here")
    assert train(request(Path("book.txt"), Path("run"), **asked, resume=True)).steps == STEPS
    assert read_model(Path("run/model.safetensors")).card["train"]["tokenizer"] == "my.tiktoken"


def test_resume_from_standard_input_needs_the_text_again(tmp_path, monkeypatch):
    class Input(io.TextIOWrapper):
        terminal = False

        def isatty(self) -> bool:
            return self.terminal

    def type_in(text: str, terminal: bool = False) -> None:
        stdin = Input(io.BytesIO(text.encode()))
        stdin.terminal = terminal
        monkeypatch.setattr("sys.stdin", stdin)

    type_in(TEXT)
    with pytest.raises(Interrupted):
        train(request(Path("-"), tmp_path / "run"), Watch((5,)))
    type_in("", terminal=True)
    with pytest.raises(RunError, match="pipe the same text in again"):
        train(Request([], tmp_path / "run", resume=True))
    type_in(TEXT)
    assert train(Request([], tmp_path / "run", resume=True)).steps == STEPS


def test_the_time_to_a_loss_survives_a_kill_before_the_last_line(book, tmp_path):
    folder = tmp_path / "run"
    result = train(request(book, folder, time_to_loss=50.0))
    assert result.seconds_to_loss is not None and result.steps < STEPS
    lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(lines[:-1]))  # killed while it scored
    again = train(Request([], folder, resume=True))
    assert (again.seconds_to_loss, again.steps, again.val) == (result.seconds_to_loss, result.steps, result.val)


def test_the_last_look_can_reach_a_loss_too(book, tmp_path):
    result = train(request(book, tmp_path / "run", 10, time_to_loss=50.0, settings={"eval_every": 10}))
    assert result.steps == 10 and result.seconds_to_loss is not None


def test_a_model_outlives_its_damaged_checkpoints(book, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(request(book, folder), Watch((15,)))
    for manifest in folder.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"no checkpoint of .*run is whole; its model\.safetensors is kept"):
        train(Request([], folder, resume=True))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_three_minutes_are_a_plan_too(book, tmp_path, monkeypatch):
    monkeypatch.setattr("textlstm.autopilot.steps_within", lambda *times: STEPS)
    result = train(request(book, tmp_path / "run", None))
    assert result.config["asked"] == {"minutes": 3.0, "eval_every": 10}
    assert train(request(book, tmp_path / "run", None, minutes=3.0, resume=True)) == result


def test_a_pattern_is_found_again_from_a_folder_with_an_odd_name(tmp_path, monkeypatch):
    folder = tmp_path / "[odd]*"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(folder)
    with pytest.raises(Interrupted):
        train(request(Path("*.txt"), Path("run")), Watch((5,)))
    monkeypatch.chdir(tmp_path)
    assert train(Request([], folder / "run", resume=True)).steps == STEPS


def test_numbers_that_are_not_finite_are_null_in_the_log(book, tmp_path, monkeypatch):
    true_score = metrics.score

    def broken(*arguments, **options):
        return dataclasses.replace(true_score(*arguments, **options), nats=math.nan)

    monkeypatch.setattr("textlstm.metrics.score", broken)
    result = train(request(book, tmp_path / "run", 10, time_to_loss=50.0, settings={"eval_every": 5}))
    assert result.seconds_to_loss is None  # what is no number reaches nothing
    looks = [line for line in log_of(tmp_path / "run") if line["event"] == "look"]
    assert [look["dev"]["nats"] for look in looks] == [None, None] and not any(look["best"] for look in looks)
    assert Model.load(result.model).card["chosen_by"] == "end of the run: no look gave a finite number"


@pytest.fixture
def alike(monkeypatch):
    """Has two runs with the same minutes choose the same, however fast the machine seems to be in each."""
    propose = autopilot.propose
    monkeypatch.setattr("textlstm.autopilot.propose", lambda s, text, peak, fixed: propose(1.0, text, 1e9, fixed))


@pytest.mark.parametrize("stops", [(), (5,), (13,), (5, 33)])
def test_a_run_that_is_counted_again_goes_on_as_if_it_had_not_been_stopped(book, tmp_path, monkeypatch, alike, stops):
    """The steps were counted at step 10; a checkpoint of there knows of it, and passes that had begun stay theirs."""
    monkeypatch.setattr("textlstm.autopilot.steps_within", lambda *times: 40)
    monkeypatch.setattr(
        "textlstm.autopilot.Timetable.recount", lambda self, looks, steps, warmup: 56 if looks[-1][0] == 10 else steps
    )
    options = {"tokenizer": "bpe", "vocab_size": 300, "merge_dropout": 0.4, "checkpoint_every": 100}
    asked = {"minutes": 0.01, "settings": options}
    view = Watch()
    whole = train(request(book, tmp_path / "whole", None, **asked), view)
    assert whole.steps == len(view.steps) == 56 and whole.config["train"]["steps"] == 56
    assert {path.name for path in (tmp_path / "whole" / "checkpoints").iterdir()} == {"step-10", "step-56"}
    assert [line for line in log_of(tmp_path / "whole") if line["event"] == "recount"] == [
        {"event": "recount", "step": 10, "steps": 56}
    ]
    told = "the machine is faster than expected: 56 steps in all instead of 40; they are counted again until three"
    assert view.notices.count(f"{told} quarters of them are done") == 1
    assert not any("no more changes" in line for line in view.notices)
    assert whole.config["reasons"][-1] == "56 steps instead: counted again at step 10"
    card = read_model(whole.model).card
    assert (card["steps"], card["train"]["steps"]) == (56, 56)
    for stop in stops:
        with pytest.raises(Interrupted, match="of 40" if stop < 10 else "of 56"):
            train(request(book, tmp_path / "run", None, **asked, resume=stop != stops[0]), Watch((stop,)))
    again = train(request(book, tmp_path / "run", None, **asked, resume=bool(stops)))
    assert again.steps == 56 and same_weights(tmp_path / "whole", tmp_path / "run")
    assert train(request(book, tmp_path / "run", None, **asked, resume=True)) == again


def test_that_the_steps_changed_is_told_once_and_how_many_they_are_in_the_end(book, tmp_path, monkeypatch):
    monkeypatch.setattr("textlstm.autopilot.steps_within", lambda *times: 40)
    monkeypatch.setattr(
        "textlstm.autopilot.Timetable.recount", lambda self, looks, steps, warmup: steps + 4 * (looks[-1][0] < 20)
    )
    view = Watch()
    train(request(book, tmp_path / "run", None, minutes=0.01, settings={"eval_every": 4}), view)
    changed = [line for line in log_of(tmp_path / "run") if line["event"] == "recount"]
    assert len(changed) > 2 and sum("than expected" in line for line in view.notices) == 1
    assert view.notices.count(f"{changed[-1]['steps']} steps in all, and no more changes") == 1


def test_a_run_goes_on_by_the_number_of_steps_of_its_checkpoint(book, tmp_path, monkeypatch, alike):
    """After a kill between the new number in `config.json` and the checkpoint, or from a checkpoint of before."""
    monkeypatch.setattr("textlstm.autopilot.steps_within", lambda *times: 40)
    recounts = []
    monkeypatch.setattr(
        "textlstm.autopilot.Timetable.recount", lambda self, looks, steps, warmup: recounts.append(looks[:]) or steps
    )
    whole = train(request(book, tmp_path / "whole", None, minutes=0.01))
    with pytest.raises(Interrupted):
        train(request(book, tmp_path / "run", None, minutes=0.01), Watch((13,)))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["train"]["steps"] = 56
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    seconds = recounts[-1][-1][1]
    before = len(recounts)
    again = train(request(book, tmp_path / "run", None, minutes=0.01, resume=True))
    assert again.steps == whole.steps == 40 and same_weights(tmp_path / "whole", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["train"]["steps"] == 40 and config["reasons"][-1] == "40 steps again, as at step 13"
    [(_, first)] = recounts[before]  # what a process does once is no step, but the time of the run
    assert first > seconds


def test_where_the_new_number_of_steps_cannot_be_kept_it_stays_the_old_one(book, tmp_path, monkeypatch):
    monkeypatch.setattr("textlstm.autopilot.steps_within", lambda *times: 24)
    monkeypatch.setattr("textlstm.autopilot.Timetable.recount", lambda self, looks, steps, warmup: 30)
    written = []

    def refuse(path, data):
        written.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("textlstm.run.loop.insist", lambda write: write())
    monkeypatch.setattr("textlstm.run.loop.write_atomically", refuse)  # loss.svg, too
    result = train(request(book, tmp_path / "run", None, minutes=0.01))
    assert [path.name for path in written].count("config.json") == 2
    assert result.steps == 24 == json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"]
    assert result.config["train"]["steps"] == 24


@pytest.mark.parametrize(("kind", "told"), [(PlainView, ["step 11/56"]), (LiveView, ["11 of 56", "20 %"])])
def test_views_follow_when_the_steps_are_counted_again(kind, told):
    out = io.StringIO()
    console = Console(file=out, width=100)
    facts = Facts("title", (), 40, 2.0, 1.0, 1.0, "text", flops_per_token=1, peak=1.0)
    with kind(console) as view:
        view.begin(facts, 0)
        for step in range(1, 12):
            view.step(step, 1.0, 0.1, 1, 100, 0.5)
            if step == 10:
                view.recount(56)
        view.look(11, None, False)
    assert all(words in out.getvalue() for words in told)


def test_the_live_view_goes_on_where_a_run_begins_again():
    """When memory ran out there is one panel, at the step of the checkpoint, and the reasons are told once."""
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    facts = Facts("title", ("a reason",), 40, 2.0, 1.0, 1.0, "text", flops_per_token=1, peak=1.0)
    with LiveView(console) as view:
        view.begin(facts, 0)
        for step in range(1, 21):
            view.step(step, 1.0, 0.1, 1, 100, 0.5)
        view.begin(facts, 10)
        view.step(11, 1.0, 0.1, 1, 100, 0.5)
        view.look(11, None, False)
    drawn = out.getvalue()
    assert drawn.count("a reason") == 1 and "11 of 40" in drawn
    last = drawn.rpartition("\x1b[2K")[2]  # what stands after the lines of the frame before were erased
    assert last.count("title") == 1


def test_what_the_terminal_shows_of_ctrl_c_moves_no_line_of_the_live_view():
    console = Console(file=io.StringIO(), width=60)
    facts = Facts("title " * 30, (), 40, 2.0, 1.0, 1.0, "text", flops_per_token=1, peak=1.0)
    with LiveView(console) as view:
        view.begin(facts, 0)
        view.step(1, 1.0, 0.1, 1, 100, 0.5)
        view.sample(1, "long words " * 30)
        lines = console.render_lines(view.render(), pad=False)
    widths = [sum(segment.cell_length for segment in line) for line in lines]
    assert len(lines) > 5 and max(widths) + len("^C^C") < console.width  # the cursor does not reach the last column


@pytest.mark.parametrize(("minutes", "told"), [(1e-4, 1), (1e4, 0)])
def test_a_run_far_behind_its_plan_says_so_once(book, tmp_path, monkeypatch, minutes, told):
    monkeypatch.setattr("textlstm.autopilot.steps_within", lambda *times: STEPS)  # as a faster machine would plan
    view = Watch()
    train(request(book, tmp_path / "run", None, minutes=minutes, settings={"eval_every": 4}), view)
    late = [line for line in view.notices if "slower than when this machine was measured" in line]
    assert len(late) == told and all("instead of 0.006 s;" in line for line in late)


def test_resume_with_another_source_is_refused(book, stopped, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(TEXT, encoding="utf-8")
    with pytest.raises(RunError, match="was begun with"):
        train(request(other, stopped, resume=True))


def test_resume_with_a_broken_config_is_refused(stopped):
    for content in ("{", "[]", '{"version": 2}', '{"version": 1}'):
        (stopped / "config.json").write_text(content)
        with pytest.raises(RunError, match=r"config\.json"):
            train(Request([], stopped, resume=True))


# --- requests that cannot be meant -----------------------------------------------------------------------------------


def test_out_must_be_new(book, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        train(request(book, folder))
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]
    with pytest.raises(UsageError, match="is a file"):
        train(request(book, folder / "precious.txt"))


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"minutes": 1.0}, UsageError, "one length"), ({"steps": None, "epochs": -1.0}, UsageError, "epochs"),
        ({"steps": None, "minutes": 0.0}, UsageError, "minutes"), ({"preset": "orignal"}, UsageError, "orignal"),
        ({"settings": {"hiden_size": 3}}, ConfigError, "'hidden_size'"), ({"steps": 0}, ConfigError, "steps"),
        ({"settings": {"lrr": 1}}, ConfigError, "'lr'"), ({"settings": {"minuets": 1}}, ConfigError, "'minutes'"),
        ({"settings": {"x": 1}}, ConfigError, "lr_final"),
        ({"settings": {"temporal_penalty": 1e30}}, ConfigError, "between 0 and 10000"),
        ({"settings": {"tokenizer": "bpe", "vocab_size": 10}}, ConfigError, "257 is the smallest --vocab-size"),
        ({"settings": {"vocab_size": "many"}}, ConfigError, "vocab_size"),
        ({"settings": {"tokenizer": "nope"}}, UsageError, "nope"), ({"init_from": "nowhere"}, UsageError, "nowhere"),
        ({"settings": {"lr": -1.0}}, ConfigError, "lr"), ({"settings": {"val_fraction": 1.5}}, ConfigError, "val"),
        ({"settings": {"val": "few.txt", "val_chars": 100}}, UsageError, "one way to hold text out"),
        ({"settings": {"val": "few.txt", "val_fraction": 0.2}}, UsageError, "--val, --val-chars or --val-fraction"),
        ({"settings": {"val_chars": 0, "val_fraction": 0.1}}, UsageError, "one way to hold text out"),
        ({"settings": {"val": "few.txt", "max_val_chars": 9}}, UsageError, "--max-val-chars bounds a share"),
        ({"settings": {"val_chars": 100, "max_val_chars": 9}}, UsageError, "--max-val-chars bounds a share"),
    ],
)  # fmt: skip
def test_bad_requests_leave_no_folder(book, tmp_path, changes, error, told):
    with pytest.raises(error, match=told):
        train(request(book, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["sources", "val"])
def test_a_text_that_is_not_there_is_told_before_the_machine_is_measured(book, tmp_path, missing):
    view = Watch()
    here = Request([str(book)], tmp_path / "run", minutes=1.0, settings={"val": "nosuch.txt"})
    with pytest.raises(UsageError, match=r"no file or folder 'nosuch\.txt'"):
        train(here if missing == "val" else dataclasses.replace(here, sources=["nosuch.txt"], settings={}), view)
    assert not view.notices and not (tmp_path / "run").exists()


@pytest.mark.parametrize("chars", [20_000, 120_000])
def test_a_text_that_is_hardly_a_token_is_refused_before_anything_is_written(tmp_path, chars):
    (tmp_path / "same.txt").write_text("a" * chars)
    settings = {"vocab_size": 300, "tokenizer": "bpe", "val_chars": 100, "dev_fraction": 0.0}
    with pytest.raises(CorpusError, match=r"characters to learn from are .* tokens, which are too few"):
        train(Request([str(tmp_path / "same.txt")], tmp_path / "run", steps=3, settings=settings))
    assert not (tmp_path / "run").exists()


def test_resume_needs_a_folder_and_a_run_needs_text(tmp_path):
    with pytest.raises(UsageError, match="--resume needs --out"):
        train(Request([], resume=True))
    with pytest.raises(UsageError, match="--resume-step goes with --resume"):
        train(Request(["x.txt"], tmp_path / "run", steps=3, resume_step=2))
    with pytest.raises(UsageError, match=r"there is no run in .*typo, so none of its steps"):
        train(Request(["x.txt"], tmp_path / "typo", steps=3, resume=True, resume_step=2))
    with pytest.raises(UsageError, match="name a text"):
        train(Request([], steps=3))
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("too short")
    with pytest.raises(CorpusError, match="too few"):
        train(request(tiny, tmp_path / "run"))


def test_a_text_of_too_few_tokens_leaves_no_folder(tmp_path):
    even = tmp_path / "even.txt"
    even.write_text("a" * 5_000)
    with pytest.raises(CorpusError, match=r"4,275 characters to learn from are \d tokens.*--vocab-size"):
        train(Request([str(even)], tmp_path / "run", steps=3))
    assert not (tmp_path / "run").exists()
    train(Request([str(even)], tmp_path / "run", steps=3, settings={"tokenizer": "byte", "hidden_size": 8}))


def test_fewer_lanes_than_planned_are_told_behind_the_plan(tmp_path, capsys):
    book = tmp_path / "short.txt"
    book.write_text(make_text(400, seed=2)[:400])
    settings = {"tokenizer": "byte", "hidden_size": 8, "embed_size": 8, "batch_size": 64, "seq_len": 16}
    settings |= {"dev_fraction": 0.0}
    train(Request([str(book)], tmp_path / "run", minutes=0.001, settings=settings), choose_view(False))
    lines = capsys.readouterr().err.splitlines()
    plan = next(n for n, line in enumerate(lines) if " steps of 64 x 16 tokens" in line)
    fewer = next(n for n, line in enumerate(lines) if line.startswith("the text is short: "))
    assert lines[fewer] == "the text is short: 22 lanes instead of 64" and fewer > plan


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "development part"), ({"dev_fraction": 0.0}, "held-out text"),
        ({"dev_fraction": 0.0, "val_fraction": 0.0}, "training text"),
    ],
)  # fmt: skip
def test_what_a_run_is_to_be_compared_with_names_its_text(book, tmp_path, capsys, settings, text):
    with pytest.raises(Interrupted):
        train(request(book, tmp_path / "run", settings=settings), Stopped())
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("guessing evenly costs"))
    assert line.endswith(f", both on the {text}")


class Stopped(PlainView):
    """What is shown without a terminal, of a run that is stopped after some steps."""

    def __init__(self) -> None:
        super().__init__(error_console())

    def step(self, step: int, nats: float, lr: float, epoch: int, tokens: int, seconds: float) -> None:
        super().step(step, nats, lr, epoch, tokens, seconds)
        if step == 2:
            signal.raise_signal(signal.SIGINT)


def test_resume_without_a_folder_names_the_runs_there_are(book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no unfinished one in runs/"):
        train(Request([], resume=True))
    train(request(book, Path("runs/done"), steps=1))
    for name in ("older", "newer"):
        with pytest.raises(Interrupted):
            train(request(book, Path("runs", name)), Watch((2,)))
    os.utime("runs/older/config.json", (0, 0))
    with pytest.raises(UsageError, match=r"unfinished here are runs/newer, runs/older$"):
        train(Request([], resume=True))


def test_run_folders_are_numbered(book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [train(Request(["book.txt"], steps=1, settings=TINY)).model.parent.as_posix() for _ in range(2)]
    assert names == ["runs/book-1", "runs/book-2"]


def test_the_default_network_on_a_short_text_is_told(book, tmp_path):
    for steps, settings, told in ((5, {}, True), (5, {"hidden_size": 16}, False), (None, {}, False)):
        view = Watch()
        minutes = 0.001 if steps is None else None
        settings = {"tokenizer": "byte", **settings}
        begin(
            Request([str(book)], tmp_path / "run", minutes, steps, settings=settings), None, view, time.perf_counter()
        )
        assert told == any("2 x 384, is large for 17,100 characters" in line for line in view.notices)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  - a list\nCall me Ishmael. Some years", "Call me Ishmael. Some"), ("--json\n-n\nlast line", "last line"),
        ("JULIET:\nO Romeo, Romeo!", "JULIET:"), ("\u3042\u308b\u3068\u3053", "\u3042\u308b\u3068\u3053"), ("- ?", ""),
        ("It's mine\nSay \"no\"\nSay yes", "Say yes"),
        ("tab\there\nbell \x07 rings\nno bell", "no bell"), ("word " + "x" * 99, "word " + "x" * 35), ("", ""),
    ],
)  # fmt: skip
def test_a_prompt_is_the_first_words_of_a_line(text, words):
    assert opening(text) == words


# --- kinds of runs ---------------------------------------------------------------------------------------------------


def test_init_from_goes_on_from_a_model(finished, tmp_path):
    base = finished[1]
    other = tmp_path / "sequel.txt"
    other.write_text(make_text(6_000, seed=9), encoding="utf-8")
    settings = {"batch_size": 4, "seq_len": 24, "lr": 1e-3}
    result = train(Request([str(other)], tmp_path / "run", steps=5, settings=settings, init_from=str(base)))
    old, new = (read_model(folder / "model.safetensors") for folder in (base, tmp_path / "run"))
    assert new.config.hidden_size == 16 and new.tokenizer.fingerprint == old.tokenizer.fingerprint
    first = log_of(tmp_path / "run")[0]["nats_per_token"]
    steps = [record["nats_per_token"] for record in log_of(base) if record["event"] == "step"]
    assert abs(first - steps[-1]) < abs(first - steps[0])  # it begins where the other ended
    assert np.abs(new.weights["lstm.0.weight_hh"] - old.weights["lstm.0.weight_hh"]).max() < 0.01
    assert result.config["init_from"] == str(base)


@pytest.mark.parametrize(
    ("lr", "words"), [(0.01, "more: training on helped"), (0.9, "less: training on did not help")]
)
def test_a_run_from_a_model_tells_what_the_same_text_cost_before(finished, book, tmp_path, lr, words):
    settings, view = {"batch_size": 4, "seq_len": 24, "lr": lr, "dev_fraction": 0.0}, Watch()
    asked = Request([str(book)], tmp_path / "run", steps=30, settings=settings, init_from=str(finished[1]))
    result = train(asked, view)
    before, after = finished[2].val["nats_per_char"], result.val["nats_per_char"]
    told = f"the model that it began from costs {before:.4f} nats/char, {abs(before - after):.4f} {words}"
    assert view.notices.count(told) == 1 and (before > after) is (lr < 0.1)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_from_a_model_that_is_gone_tells_nothing_of_it(finished, book, tmp_path, replaced):
    base, settings, view = tmp_path / "base", {"batch_size": 4, "seq_len": 24}, Watch()
    train(Request([str(book)], base, steps=2, settings=settings | {"hidden_size": 8}))
    with pytest.raises(Interrupted):
        train(Request([str(book)], tmp_path / "run", steps=4, settings=settings, init_from=str(base)), Watch((2,)))
    shutil.rmtree(base)
    if replaced:
        shutil.copytree(finished[1], base)
    assert train(Request([], tmp_path / "run", resume=True), view).steps == 4
    assert "the model that it began from costs" not in " ".join(view.notices)


@pytest.mark.parametrize(
    ("told", "asked", "expected"),
    [
        ({"activation_penalty": 3.0}, {}, 3.0), ({"activation_penalty": 3.0}, {"activation_penalty": 0.5}, 0.5),
        ({}, {}, 0.0), (None, {}, 0.0), ([3.0], {}, 0.0), ({"activation_penalty": "3"}, {}, 0.0),
        ({"activation_penalty": 3}, {}, 3.0), ({"activation_penalty": True}, {}, 0.0),
        ({"activation_penalty": -1.0}, {}, 0.0),
        ({"activation_penalty": 10**400}, {}, 0.0),
    ],
)  # fmt: skip
def test_init_from_keeps_the_outputs_as_large_as_they_are(finished, book, tmp_path, told, asked, expected):
    """Under another activation penalty they would have to be learnt anew; one that no card tells of there was not."""
    base = shutil.copytree(finished[1], tmp_path / "base")
    amend_card(base / "model.safetensors", {"train": told})
    settings = {"batch_size": 4, "seq_len": 24, **asked}
    result = train(Request([str(book)], tmp_path / "run", steps=2, settings=settings, init_from=str(base)))
    assert result.config["train"]["activation_penalty"] == expected


def test_the_card_tells_what_a_model_began_from(finished, book, tmp_path, run):
    """A chain of three, its last run stopped once and its parent gone; then a parent whose card others wrote."""
    settings = {"batch_size": 4, "seq_len": 24}
    one, other = tmp_path / "one", tmp_path / "other"
    train(Request([str(book)], one, steps=3, settings=settings, init_from=str(finished[1])))
    with pytest.raises(Interrupted):
        train(Request([str(book)], other, steps=3, settings=settings, init_from=str(one)), Watch((2,)))
    parent = read_model(one / "model.safetensors")
    shutil.rmtree(one)
    train(Request([], other, resume=True))
    told = read_model(other / "model.safetensors").card["began_from"]
    first = told["began_from"]
    assert told == {
        "name": one.name, "identity": parent.identity, "sha256": parent.sha256, "corpus": parent.card["corpus"],
        "train_chars": 17_100, "began_from": first,
    }  # fmt: skip
    assert first["name"] == finished[1].name and "began_from" not in first
    lines = [" ".join(line.split()) for line in run("info", other).out.splitlines()]
    learnt = "which learnt book.txt (17,100 characters)"
    assert f"began from {one.name}, {learnt} and began from {finished[1].name}, {learnt}" in lines
    assert "began_from" not in read_model(finished[1] / "model.safetensors").card
    amend_card(other / "model.safetensors", {"corpus": None, "split": [1], "began_from": None})
    train(Request([str(book)], tmp_path / "third", steps=2, settings=settings, init_from=str(other)))
    done = run("info", tmp_path / "third")
    assert f"began from {other.name}, which learnt an unknown text" in " ".join(done.out.split("  "))


@pytest.mark.parametrize("settings", [{"hidden_size": 32}, {"tokenizer": "char"}, {"vocab_size": 300}])
def test_init_from_names_what_was_asked(finished, book, tmp_path, settings):
    with pytest.raises(UsageError, match=f"leave out --{next(iter(settings)).replace('_', '-')}$"):
        train(Request([str(book)], tmp_path / "run", steps=2, settings=settings, init_from=str(finished[1])))


def test_init_from_takes_the_vocabulary_that_the_model_has(finished, book, tmp_path):
    same = {"vocab_size": read_model(finished[1] / "model.safetensors").config.vocab_size}
    result = train(Request([str(book)], tmp_path / "run", steps=2, settings=same, init_from=str(finished[1])))
    assert result.config["model"]["vocab_size"] == same["vocab_size"]


@pytest.mark.parametrize("settings", [{"hidden_size": 32}, {"tokenizer": "char"}, {"vocab_size": 300}])
def test_init_from_keeps_the_shape(finished, book, tmp_path, settings):
    with pytest.raises(UsageError, match="keeps the vocabulary and shape"):
        train(Request([str(book)], tmp_path / "run", steps=2, settings=settings, init_from=str(finished[1])))


def test_init_from_interrupted_and_resumed(finished, book, tmp_path):
    settings = {"batch_size": 4, "seq_len": 24, "hidden_size": 16}

    def ask(name: str) -> Request:
        return Request([str(book)], tmp_path / name, steps=8, settings=settings, init_from=str(finished[1]))

    train(ask("whole"))
    with pytest.raises(Interrupted):
        train(ask("stopped"), Watch((3,)))
    train(Request([], tmp_path / "stopped", resume=True))
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_init_from_a_model_that_has_changed(finished, book, tmp_path):
    start = tmp_path / "start.safetensors"
    Model.load(finished[1]).save(start)
    settings = {"batch_size": 4, "seq_len": 24}
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(Request([str(book)], folder, steps=8, settings=settings, init_from=str(start)), Watch((3,)))
    shutil.rmtree(folder / "checkpoints")
    start.write_bytes((finished[1] / "model.safetensors").read_bytes())
    assert train(Request([], folder, resume=True)).steps == 8  # the same tensors in another file
    other = train(request(book, tmp_path / "other", 2, settings={"seed": 5}))
    (folder / "log.jsonl").unlink()
    shutil.rmtree(folder / "checkpoints")
    start.write_bytes(other.model.read_bytes())
    with pytest.raises(RunError, match=r"start\.safetensors has changed since"):
        train(Request([], folder, resume=True))


def test_epochs(book, tmp_path):
    result = train(request(book, tmp_path / "run", None, epochs=0.2))
    assert result.steps == math.ceil(0.2 * 17_100 / (4 * 24))
    assert {line["epoch"] for line in log_of(tmp_path / "run") if line["event"] == "step"} == {1}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"tokenizer": "char"}, "char"), ({"tokenizer": "char-plain"}, "char"), ({"tokenizer": "byte"}, "byte"),
        ({"tokenizer": "gpt2-pruned"}, "gpt2"), ({"tokenizer": "bpe", "vocab_size": 300}, "bpe"),
    ],
)  # fmt: skip
def test_tokenizers(book, tmp_path, settings, kind):
    result = train(request(book, tmp_path / "run", 3, settings=settings))
    file = read_model(result.model)
    assert file.config.vocab_size == file.tokenizer.vocab_size + 1
    ids = file.tokenizer.encode(TEXT)
    assert file.tokenizer.decode(ids) == TEXT and (len(ids) < len(TEXT) / 1.5) == (kind in ("gpt2", "bpe"))
    assert result.val["chars"] == 2_000 and result.val["tokens"] <= 2_000
    assert 0 < result.val["nats_per_char"] < math.log(file.config.vocab_size) + 0.3


def test_same_seed_same_model_other_seed_another(finished, tmp_path):
    book, whole, _, _ = finished
    train(request(book, tmp_path / "same"))
    train(request(book, tmp_path / "other", settings={"seed": 1}))
    assert same_weights(tmp_path / "same", whole) and not same_weights(tmp_path / "other", whole)


def test_what_an_alphabet_lacks_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("the tide " * 200 + "Größe", encoding="utf-8")
    view = Watch()
    settings = {"tokenizer": "char-plain", "hidden_size": 8, "embed_size": 8, "val_chars": 5, "dev_fraction": 0.0}
    train(Request([str(tmp_path / "a.txt")], tmp_path / "run", steps=2, settings=settings), view)
    assert [line for line in view.notices if "read as ' '" in line and "'G', 'r', 'ß', 'ö'" in line]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGHUP")
def test_a_closed_terminal_that_is_told_again_does_not_stop_what_is_written_last():
    """A shell that ends hands SIGHUP on, and the system tells it once more when the shell has ended."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Signals(print) as signals:
            pass
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        with signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.reason() == "SIGHUP" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_vocabulary_that_is_asked_for_counts_more_than_that_of_a_preset(book, tmp_path):
    settings = {"val_chars": 200, "vocab_size": 300}
    view = Watch()
    result = train(Request([str(book)], tmp_path / "run", steps=1, preset="original-char", settings=settings), view)
    told = "--vocab-size takes the tokenizer bpe instead of char-plain, which --preset original-char has"
    assert told in view.notices
    assert (result.config["train"]["tokenizer"], result.config["model"]["vocab_size"]) == ("bpe", 300)


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_vocabulary_that_has_no_effect_is_told(book, tmp_path, tokenizer):
    view = Watch()
    settings = TINY | {"tokenizer": tokenizer, "vocab_size": 3000}
    ids = train(Request([str(book)], tmp_path / "run", steps=1, settings=settings), view).config["model"]["vocab_size"]
    assert f"--vocab-size 3000 has no effect: the tokenizer {tokenizer} has {ids} ids" in view.notices and ids < 600


def test_preset_of_the_original(book, tmp_path):
    result = train(
        Request([str(book)], tmp_path / "run", steps=2, preset="original-char", settings={"val_chars": 200})
    )
    config, file = result.config, read_model(result.model)
    assert (config["model"]["embed_size"], config["model"]["hidden_size"]) == (192, 512)
    assert (config["train"]["batch_size"], config["train"]["seq_len"], config["train"]["jitter"]) == (8, 256, 0)
    assert config["train"]["lr"] == 3e-4 and config["train"]["clip"] is None and config["train"]["ema"] == 0
    assert config["train"]["activation_penalty"] == config["train"]["temporal_penalty"] == 0
    assert not any(value for name, value in config["model"].items() if name.endswith("dropout"))
    assert file.config.vocab_size == len(set(TEXT[: result.train_chars])) and file.config.boundary_id is None
    assert {line["lr"] for line in log_of(tmp_path / "run") if line["event"] == "step"} == {3e-4}  # constant
    assert result.train_chars == len(TEXT) - 200 and file.card["split"]["dev_chars"] == 0
    assert file.card["chosen_by"] == "end of the run" and "nats_per_gpt2_token" not in result.val


@pytest.mark.skipif(not TRUE_FILE.is_file(), reason="TEXTLSTM_CORPORA names no folder with the original")
def test_nats_per_gpt2_token_of_the_original_split(tmp_path):
    settings = {**TINY, "num_layers": 1, "val_chars": 104_217}
    asked = Request(["tiny-shakespeare"], tmp_path / "run", steps=1, settings=settings)
    val = train(asked).val
    text, gpt2 = TRUE_FILE.read_text(), gpt2_tokenizer()
    ids = gpt2.encode(text).tolist()
    from_the_end = itertools.accumulate(len(gpt2.token_bytes(id)) for id in reversed(ids))  # the text is ASCII
    tokens = list(itertools.takewhile(lambda chars: chars <= 104_217, from_the_end))
    assert len(ids) == 338_025 and gpt2.decode(ids[-len(tokens) :]) == text[-104_217:]
    assert val["nats_per_gpt2_token"] == pytest.approx(val["nats_per_char"] * 104_217 / len(tokens), rel=1e-12)
    assert list(val)[-1] == "nats_per_gpt2_token"
    assert "nats_per_gpt2_token" in log_of(tmp_path / "run")[-1]["result"]["val"]


@pytest.mark.parametrize(
    ("chars", "canonical", "follows", "expected"),
    [
        (104_217, True, True, True),
        (104_216, True, True, False),
        (104_217, False, True, False),
        (104_217, True, False, False),
    ],
)
def test_only_the_hashed_texts_own_end_is_the_original_split(chars, canonical, follows, expected):
    held_out = Part((Document("a", "x" * chars),), continues=True)
    corpus = Corpus("a", Part((Document("a", TEXT),)), Part(()), held_out, "", "", canonical, follows)
    assert is_original_split(corpus) is expected


def test_presets_give_way_to_settings(book, tmp_path):
    settings = {"hidden_size": 8, "embed_size": 8, "tokenizer": "byte", "dev_fraction": 0.1}
    result = train(Request([str(book)], tmp_path / "run", steps=1, preset="original", settings=settings))
    assert result.config["corpus"]["dev_fraction"] == 0.1
    assert result.config["model"]["hidden_size"] == 8 and result.config["model"]["logit_scale"] == 0.1
    assert result.config["train"]["tokenizer"] == "byte"


@pytest.mark.parametrize("settings", [{}, {"tokenizer": "bpe", "vocab_size": 260}, {"tokenizer": "char"}])
def test_tiny_texts(tmp_path, settings):
    path = tmp_path / "tiny.txt"
    path.write_text(TEXT[:120])
    view = Watch()
    result = train(request(path, tmp_path / "run", 6, settings=settings), view)
    assert result.val["chars"] == 12 and result.train_chars == 102
    assert math.isfinite(result.val["nats"])


def test_a_calibrated_model_is_written_and_resumed_as_such(book, tmp_path):
    settings = {"calibration_temperature": 1.25, "merge_dropout": 0.2, "tokenizer": "bpe", "vocab_size": 280}
    whole = train(request(book, tmp_path / "whole", settings=settings))
    with pytest.raises(Interrupted):
        train(request(book, tmp_path / "run", settings=settings), Watch((7,)))
    again = train(request(book, tmp_path / "run", resume=True, settings=settings))
    first, second = (read_model(result.model) for result in (whole, again))
    assert first.config.logit_scale == second.config.logit_scale == 0.8
    assert {n: w.tobytes() for n, w in first.weights.items()} == {n: w.tobytes() for n, w in second.weights.items()}
    plain = train(request(book, tmp_path / "plain", settings=settings | {"merge_dropout": 0.0}))
    assert plain.val["nats"] != whole.val["nats"] == again.val["nats"]


def best_temperature(network, boundary, before, ids):
    """By a search through all of them, with torch's own cross-entropy."""
    stream = torch.from_numpy(np.concatenate([[boundary], before, ids])).long()
    with torch.inference_mode():
        logits = network(stream[None, :-1], network.zero_state(1))[0][0, -len(ids) :]
    costs = {
        t: float(torch.nn.functional.cross_entropy(logits / t, stream[-len(ids) :]))
        for t in np.round(np.arange(0.5, 2.001, 0.01), 2)
    }
    return min(costs, key=lambda t: costs[t])


def test_the_development_part_calibrates_the_model(tmp_path):
    """A part of its own kind: another temperature than the training text would give, or than it without a context."""
    rng = random.Random(3)
    lines = TEXT[:14_400].splitlines()
    strange = ["".join(rng.choice("qzjxv") if rng.random() < 0.3 else c for c in line) for line in lines[:80]]
    book = tmp_path / "book.txt"
    book.write_text("\n".join([*lines, *strange]) + "\n")
    settings = {"dev_fraction": 0.17, "val_fraction": 0.0, "lr": 2e-2}
    view = Watch()
    result = train(request(book, tmp_path / "run", settings=settings), view)
    file = read_model(result.model)
    temperature = file.card["calibration_temperature"]
    assert file.config.logit_scale == pytest.approx(1 / temperature)
    setup = Setup.read(tmp_path / "run" / "config.json")
    corpus = read_corpus(setup.sources, setup.corpus)
    train_ids, ids = (np.array(file.tokenizer.encode(part.text)) for part in (corpus.train, corpus.dev))
    network = RecurrentLM(setup.model)
    network.load_state_dict({n: torch.from_numpy(w) for n, w in file.weights.items()})
    found = best_temperature(network, setup.model.boundary_id, train_ids[-metrics.WARM_UP :], ids)
    assert temperature == pytest.approx(found, abs=0.02) and 0.5 < found < 2.0
    of_training = best_temperature(network, setup.model.boundary_id, train_ids[:0], train_ids[-len(ids) :])
    assert abs(of_training - found) > 0.1
    engine = TorchEngine(file)  # what the card tells is the score of the model as it is
    protocol = file.card["scores"]["dev"]["protocol"]
    score = metrics.score(engine, ids, 1, 1, train_ids[-metrics.WARM_UP :], protocol, metrics.WARM_UP)
    assert file.card["scores"]["dev"]["nats"] == pytest.approx(score.nats, rel=1e-6)
    assert f"logits divided by {temperature:g}" in " ".join(view.notices)
    assert train(request(book, tmp_path / "run", resume=True, settings=settings)).val == result.val


class Told:
    """A predictor whose costs at a temperature are told."""

    def __init__(self, cost: float, reads: list[int], read: set[int]) -> None:
        self.config, self.cost, self.reads, self.read = ModelConfig(vocab_size=8, boundary=False), cost, reads, read

    def zero_state(self, rows):
        return State.zeros(self.config, rows)

    def nll(self, x_BT, y_BT, state):
        self.reads.append(x_BT.size)
        self.read.update(np.unique(x_BT).tolist())
        return np.full(y_BT.shape, self.cost), state


@pytest.mark.parametrize(
    ("tokens", "cost", "expected"),
    [
        (2000, lambda t: 1 + (1 / t - 1 / 1.3) ** 2, 1.3),
        (2000, lambda t: 1 / t, 2.0),
        (3 * FITTED_ON, lambda t: 1 + (1 / t - 1 / 1.3) ** 2, 1.3),  # its beginning is enough
        (999, lambda t: 1 + (1 / t - 1 / 1.3) ** 2, 1.0),  # too little to tell
        (2000, lambda t: math.nan, 1.0),
        (2000, lambda t: 0.0, 1.0),  # nothing but boundaries
    ],
)
def test_a_temperature_that_gains_something_or_none(tokens, cost, expected):
    reads: list[int] = []
    read: set[int] = set()
    training = np.repeat(np.array([1, 2], np.int32), 1500)  # its end comes before what is scored
    parts = Tokens(training, np.zeros(tokens, np.int32), np.zeros(0, np.int32))
    assert fitted_temperature(lambda t: Told(cost(t), reads, read), parts) == pytest.approx(expected, abs=0.011)
    assert sum(reads) <= FITTING_READS * (min(tokens, FITTED_ON) + 16 * metrics.WARM_UP)
    assert read == (set() if tokens < 1000 else {0, 2})


def test_training_goes_on_without_the_calibration(book, tmp_path):
    """The temperature belongs to the finished model; what begins from it is trained as that was."""
    asked = {"calibration_temperature": 1.17}
    train(request(book, tmp_path / "first", 6, settings=asked | {"logit_scale": 0.5}))
    assert read_model(tmp_path / "first" / "model.safetensors").config.logit_scale == pytest.approx(0.5 / 1.17)
    onward = {k: v for k, v in TINY.items() if k not in ("tokenizer", "embed_size", "hidden_size", "num_layers")}
    for name, settings in {"second": asked, "third": {"logit_scale": 0.5}}.items():
        start = Request(
            [str(book)], tmp_path / name, steps=3, init_from=str(tmp_path / "first"), settings=onward | settings
        )
        train(start)
        assert Setup.read(tmp_path / name / "config.json").model.logit_scale == 0.5
    assert read_model(tmp_path / "second" / "model.safetensors").config.logit_scale == pytest.approx(0.5 / 1.17)
    assert read_model(tmp_path / "third" / "model.safetensors").config.logit_scale == 0.5


@pytest.mark.parametrize("temperature", [None, "1.2", [1.2], 0, -1.0, 0.009, 101, 10**400, math.nan, math.inf])
def test_a_temperature_that_no_model_can_have_is_not_taken_back(finished, temperature):
    file = read_model(finished[1] / "model.safetensors")
    card = {**file.card, "calibration_temperature": temperature}
    assert dataclasses.replace(file, card=card).uncalibrated == file.config


def test_the_last_finite_weights_are_called_so(book, tmp_path, monkeypatch):
    finite = Trainer._finite
    monkeypatch.setattr(Trainer, "_finite", lambda self: self.step < STEPS and finite(self))
    view = Watch()
    result = train(request(book, tmp_path / "run", settings={"dev_fraction": 0.0}), view)
    kept = f"the last weights that are finite, of step 20 of {STEPS}"
    assert read_model(result.model).card["chosen_by"] == kept and f"the model has {kept}" in view.notices


def test_a_model_is_calibrated_once(book, tmp_path, monkeypatch):
    """A run that dies between writing its model and saying that it is over ends as it would have."""
    settings = {"dev_fraction": 0.2}  # enough to calibrate by
    whole = train(request(book, tmp_path / "whole", settings=settings))
    monkeypatch.setattr("textlstm.run.loop.append_whole", lambda path, text: (_ for _ in ()).throw(OSError(5, "gone")))
    with pytest.raises(RunError):
        train(request(book, tmp_path / "run", settings=settings))
    monkeypatch.undo()
    again = train(request(book, tmp_path / "run", resume=True, settings=settings))
    first, second = (read_model(result.model) for result in (whole, again))
    assert again.val == whole.val and second.identity == first.identity
    assert second.card["calibration_temperature"] == first.card["calibration_temperature"] != 1
    assert second.card["scores"] == first.card["scores"]


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_merges_of_a_vocabulary_without_any_cannot_be_left_out(book, tmp_path, tokenizer):
    with pytest.raises(UsageError, match="merge-dropout"):
        train(request(book, tmp_path / "run", settings={"tokenizer": tokenizer, "merge_dropout": 0.1}))
    assert not (tmp_path / "run").exists()


def test_without_development_text_the_last_weights_stay(book, tmp_path):
    seen = []

    class Reader(View):  # someone who writes with the model while it is trained
        def look(self, step, dev, best):
            card = read_model(tmp_path / "run" / "model.safetensors").card
            seen.append((step, card["step"], card["chosen_by"]))

    result = train(request(book, tmp_path / "run", settings={"dev_fraction": 0.0}), Reader())
    unfinished = "latest weights of a run that is not over"
    looks = [line["step"] for line in log_of(tmp_path / "run") if line["event"] == "look"]
    assert seen == [(step, step, "end of the run" if step == STEPS else unfinished) for step in looks]
    card = read_model(result.model).card
    assert result.train_chars == 18_000 and card["step"] == STEPS and card["chosen_by"] == "end of the run"
    assert [line["best"] for line in log_of(tmp_path / "run") if line["event"] == "look"] == [True, True, True]


def test_interrupted_without_development_text(book, tmp_path):
    settings = {"dev_fraction": 0.0}
    train(request(book, tmp_path / "whole", settings=settings))
    with pytest.raises(Interrupted):
        train(request(book, tmp_path / "run", settings=settings), Watch((13,)))
    assert read_model(tmp_path / "run" / "model.safetensors").card["step"] == 13
    train(Request([], tmp_path / "run", resume=True))
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_nothing_held_out(book, tmp_path):
    result = train(request(book, tmp_path / "run", settings={"val_fraction": 0.0}))
    assert result.val is None and result.train_chars == 19_000
    assert "val" not in read_model(result.model).card["scores"]


def test_held_out_by_number_and_by_file(book, tmp_path):
    counted = train(request(book, tmp_path / "counted", 3, settings={"val_chars": 777}))
    assert counted.val["chars"] == 777 and counted.train_chars == int((20_000 - 777) * 0.95)
    other = tmp_path / "other.txt"
    other.write_text(make_text(1_500, seed=4), encoding="utf-8")
    result = train(request(book, tmp_path / "filed", 3, settings={"val": str(other)}))
    score = Model.load(result.model, "torch").score(other.read_text(encoding="utf-8"))
    assert result.val["chars"] == 1_500 and score.nats == pytest.approx(result.val["nats"], rel=1e-6)


def test_time_to_loss(book, tmp_path):
    reached = train(request(book, tmp_path / "easy", time_to_loss=100.0))
    assert reached.steps == 10 and reached.seconds_to_loss > 0 and reached.val["nats_per_char"] <= 100
    missed = train(request(book, tmp_path / "hard", time_to_loss=0.001))
    assert missed.steps == STEPS and missed.seconds_to_loss is None


def test_minutes_plan_a_run(book, tmp_path):
    settings = {"hidden_size": 16, "embed_size": 8, "vocab_size": 300, "batch_size": 4, "seq_len": 16}
    result = train(Request([str(book)], tmp_path / "run", minutes=0.05, settings=settings))
    config = result.config
    assert (
        config["model"]["hidden_size"] == 16
        and config["train"]["batch_size"] == 4
        and config["train"]["seq_len"] == 16
    )
    reasons = [line for line in config["reasons"] if "counted again" not in line]  # on a machine that others use
    assert len(reasons) == 4 and "2 x 16 LSTM" in reasons[1]
    assert config["train"]["lr"] == 1e-2
    assert config["predicted"] is None and result.predicted is None  # the law is of sizes that the rule chooses


def test_short_plan_learns_from_all_text_and_shows_the_held_out(tmp_path):
    """Without a development part the beginning of the held-out text is shown, and chooses nothing."""
    text = tmp_path / "long.txt"
    text.write_text(make_text(300_000, seed=3), encoding="utf-8")
    settings = {"hidden_size": 32, "vocab_size": 300, "batch_size": 8, "seq_len": 16, "eval_every": 5}
    result = train(Request([str(text)], tmp_path / "run", minutes=0.1, settings=settings))
    assert result.config["corpus"]["dev_fraction"] == 0.0 and result.train_chars == 270_000
    looks = [record for record in log_of(tmp_path / "run") if record["event"] == "look"]
    assert looks and all(look["best"] for look in looks)
    assert all("dev" not in look and 0 < look["held_out_begin"]["nats_per_char"] < 6 for look in looks)
    card = read_model(tmp_path / "run" / "model.safetensors").card
    assert card["chosen_by"] == "end of the run" and card["step"] == result.steps
    assert "held-out (begin)" in (tmp_path / "run" / "loss.svg").read_text()
