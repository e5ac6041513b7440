"""Real processes that are killed: whatever happens, going on gives the same bits."""

from __future__ import annotations

import functools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import textlstm
from textlstm.model_file import read_model
from textlstm.trainer.checkpoint import load_newest

SRC = Path(textlstm.__file__).parent.parent
STEPS, EVERY = 100, 5
OPTIONS = [
    "--steps", str(STEPS), "--tokenizer", "byte", "--embed-size", "12", "--hidden-size", "16", "--batch-size", "4",
    "--seq-len", "24", "--checkpoint-every", str(EVERY), "--eval-every", "25", "--json",
]  # fmt: skip

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def make_text(size: int) -> str:
    rng = random.Random(2)
    words = "a small boat lay upside down on the sand where the tide had left it many years before"
    text = ""
    while len(text) < size:
        text += " ".join(rng.choices(words.split(), k=rng.randint(3, 12))) + ".\n"
    return text[:size]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    (folder / "book.txt").write_text(make_text(20_000), encoding="utf-8")
    return folder


def environment(base: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "TEXTLSTM_CACHE": str(base / "cache")}


def start(base: Path, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-m", "textlstm", "train", *arguments]
    return subprocess.Popen(
        command, cwd=base, env=environment(base), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def steps_logged(folder: Path) -> int:
    """The last step in the log of a run, 0 before there is one; a half-written line does not count."""
    try:
        lines = (folder / "log.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((json.loads(line).get("step", 0) for line in lines[-3:]), default=0)


def end_at(process: subprocess.Popen[str], folder: Path, step: int, act: Callable[[], None]) -> tuple[str, str]:
    """Lets a run come to a step, acts, and returns what it printed."""
    deadline = time.monotonic() + 60
    while steps_logged(folder) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.002)
    act()
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return out, err


def complete(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err
    return json.loads(out.splitlines()[-1])


def weights(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in read_model(folder / "model.safetensors").weights.items()}


@pytest.fixture(scope="module")
def whole(base) -> tuple[dict, dict[str, bytes]]:
    """The run that nothing happened to."""
    report = complete(start(base, "book.txt", "--out", "whole", *OPTIONS))
    return report, weights(base / "whole")


def test_report_of_a_run(whole, base):
    report, _ = whole
    fields = "model config steps seconds train_chars params val predicted prompt"
    assert list(report) == fields.split()
    assert report["steps"] == STEPS and report["model"] == str(Path("whole", "model.safetensors"))
    assert report["val"]["chars"] == 2_000 and 0.5 < report["val"]["nats_per_char"] < 3
    assert report["config"]["train"]["checkpoint_every"] == 5
    held_out = (base / "book.txt").read_text(encoding="utf-8")[-2_000:]
    assert report["prompt"] == "it a the." == held_out.split("\n")[1]  # its first whole line


def kill_and_resume(base: Path, name: str, kills: list[int]) -> dict:
    folder = base / name
    process = start(base, "book.txt", "--out", name, *OPTIONS)
    for step in kills:
        end_at(process, folder, step, process.kill)
        assert process.returncode == -signal.SIGKILL
        reached, kept = steps_logged(folder), load_newest(folder / "checkpoints")
        assert (0 if kept is None else kept.step) >= reached - reached % EVERY - EVERY * (reached % EVERY == 0)
        process = start(base, "--resume", "--out", name, "--json")
    return complete(process)


def check_same(report: dict, folder: Path, whole: tuple[dict, dict[str, bytes]]) -> None:
    assert weights(folder) == whole[1]
    command = whole[0]["config"]["command"].replace("--out whole", f"--out {folder.name}")  # not --resume
    assert report["val"] == whole[0]["val"] and report["config"] == {**whole[0]["config"], "command": command}
    steps, expected = (
        [
            line["nats_per_token"]
            for line in map(json.loads, (path / "log.jsonl").read_text().splitlines())
            if line["event"] == "step"
        ]
        for path in (folder, folder.parent / "whole")
    )
    assert steps == expected and len(steps) == STEPS
    leftovers = [path.name for path in folder.rglob("*") if ".tmp-" in path.name]
    assert not [name for name in leftovers if name.startswith("step-")]


def test_killed_five_times(base, whole):
    kills = sorted(random.Random(11).sample(range(1, STEPS - 12), 5))
    check_same(kill_and_resume(base, "killed", kills), base / "killed", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_fifty_times(base, whole, seed):
    kills = sorted(random.Random(seed).sample(range(1, STEPS - 10), 5))
    check_same(kill_and_resume(base, f"killed-{seed}", kills), base / f"killed-{seed}", whole)


def test_signals_save_and_tell_how_to_go_on(base):
    name = "signalled"
    process = start(base, "book.txt", "--out", name, *OPTIONS)
    for number, code, step in ((signal.SIGTERM, 143, 13), (signal.SIGINT, 130, 44)):
        out, err = end_at(process, base / name, step, functools.partial(process.send_signal, number))
        assert process.returncode == code and json.loads(out)["exit_code"] == code
        assert f"textlstm train --resume --out {name}" in err and "everything is saved" in err and "error" not in err
        assert read_model(base / name / "model.safetensors").config.hidden_size == 16
        done = load_newest(base / name / "checkpoints")
        assert done is not None and step <= done.step == steps_logged(base / name)  # not a step is lost
        if code == 143:
            process = start(base, "--resume", "--out", name, "--json")


def in_a_terminal(base: Path, name: str) -> tuple[subprocess.Popen[str], int]:
    """A run that leads a terminal of its own, and this terminal's other end."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "textlstm", "train", "book.txt", "--out", name, *OPTIONS],
        cwd=base, env=environment(base), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    return process, ours


def test_a_terminal_that_is_closed_saves(base):
    process, terminal = in_a_terminal(base, "closed")
    deadline = time.monotonic() + 60
    while steps_logged(base / "closed") < 20:
        assert process.poll() is None and time.monotonic() < deadline
        if select.select([terminal], [], [], 0.002)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)  # a shell hands on what the terminal has sent
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    done = load_newest(base / "closed" / "checkpoints")
    assert done is not None and 20 <= done.step == steps_logged(base / "closed") < STEPS
    assert read_model(base / "closed" / "model.safetensors").config.hidden_size == 16


def test_under_nohup_a_closed_terminal_changes_nothing(base, whole):
    name = "nohup"
    process = start(base, "book.txt", "--out", name, *OPTIONS, before=("nohup",))
    end_at(process, base / name, 10, functools.partial(process.send_signal, signal.SIGHUP))
    assert process.returncode == 0
    assert weights(base / name) == whole[1]
