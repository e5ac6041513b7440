"""Faults of the training machine: killed while writing, a full disk, a closed pipe; `docs/faults.md` lists them."""

from __future__ import annotations

import ast
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

import textlstm
import textlstm.run.loop
from textlstm import files, metrics
from textlstm.config import CorpusConfig, ModelConfig, TrainConfig
from textlstm.corpus import LaneReader
from textlstm.errors import DivergedError, Interrupted, RunError, UsageError
from textlstm.files import append_whole, insist
from textlstm.model_file import read_model
from textlstm.run import Request, train
from textlstm.trainer import Trainer
from textlstm.trainer.checkpoint import Checkpoint, load_newest, load_step, save_checkpoint
from textlstm.trainer.spikes import SpikeGuard
from textlstm.view import View

PACKAGE = Path(textlstm.__file__).parent
GOLDEN = Path(__file__).parent / "golden"
STEPS = 24
WORDS = "over the hill a lamp was lit and then the road went on into the dark without another word"
TINY = {
    "tokenizer": "byte", "embed_size": 12, "hidden_size": 16, "batch_size": 4, "seq_len": 24, "lr": 1e-2,
    "eval_every": 8, "checkpoint_every": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "PAUSES_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture
def book(tmp_path) -> Path:
    rng = random.Random(5)
    words = WORDS.split()
    lines = [" ".join(rng.choices(words, k=rng.randint(3, 12))) + ".\n" for _ in range(450)]
    path = tmp_path / "book.txt"
    path.write_text("".join(lines)[:16_000], encoding="utf-8")
    return path


@pytest.fixture
def whole(book, tmp_path) -> Path:
    """A run that nothing happened to."""
    train(request(book, tmp_path / "whole"))
    return tmp_path / "whole"


def request(book: Path, out: Path, **rest) -> Request:
    settings = TINY | rest.pop("settings", {})
    return Request([str(book)], out, **{"steps": STEPS, "settings": settings} | rest)


def weights(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in read_model(folder / "model.safetensors").weights.items()}


def steps_of(folder: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["nats_per_token"]) for line in lines if line["event"] == "step"]


class Watch(View):
    """Acts after a step, and keeps what it is told."""

    def __init__(self, act=lambda step: None) -> None:
        self.notices: list[str] = []
        self.act = act

    def notice(self, line: str) -> None:
        self.notices.append(line)

    def step(self, step: int, *rest) -> None:
        self.act(step)


def at(wanted: int, act) -> Watch:
    return Watch(lambda step: act() if step == wanted else None)


def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1", "TEXTLSTM_CACHE": str(tmp_path),
    }  # fmt: skip


def command(book: Path, out: Path, **changed) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "steps": STEPS, **changed}.items()]
    return [sys.executable, "-m", "textlstm", "train", str(book), "--out", str(out), *options]


# --- killed while a checkpoint is written ----------------------------------------------------------------------------

# A child for each operation on files below the folder: it is killed before the k-th, and at each flush to disk the
# file is first cut to half, as a power cut may leave it.
KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from textlstm.trainer.checkpoint import Checkpoint, save_checkpoint
import safetensors.numpy

def checkpoint(step):
    return Checkpoint(step, {"a": np.full((40, 50), step, np.float32)}, {"x": [step]})

WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
base, step = Path(sys.argv[1]), int(sys.argv[2])
k = 0
while True:
    k += 1
    folder = base / str(k)
    for old in (10, 20):
        folder.mkdir(exist_ok=True, parents=True)
        save_checkpoint(folder, checkpoint(old))
    child = os.fork()
    if child == 0:
        left = k
        def count():
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        def watch(event, arguments):
            if event in WATCHED:
                count()
        fsync = os.fsync
        def torn(handle):
            size = os.fstat(handle).st_size
            if left == 1 and os.path.isfile(f"/proc/self/fd/{handle}"):
                os.ftruncate(handle, size // 2)
            count()
            fsync(handle)
        os.fsync = torn
        sys.addaudithook(watch)
        save_checkpoint(folder, checkpoint(step))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(k)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("step", [30, 20], ids=["next step", "same step again"])
def test_killed_at_every_write_of_a_checkpoint(tmp_path, step):
    child = [sys.executable, "-c", KILLED, str(tmp_path), str(step)]
    done = subprocess.run(child, capture_output=True, text=True, env=environment(tmp_path), timeout=120)
    assert done.returncode == 0, done.stderr
    moments = int(done.stdout)
    assert moments > 20  # three files of three operations each, folders, renames, the old ones
    seen = set()
    for k in range(1, moments + 1):
        found = load_newest(tmp_path / str(k))
        assert found is not None and found.step in (10, 20, step), f"killed before operation {k}"
        assert found.values == {"x": [found.step]} and (found.tensors["a"] == found.step).all()
        seen.add(found.step)
        save_checkpoint(tmp_path / str(k), Checkpoint(31, {"a": np.zeros(3, np.float32)}, {}))
        left = {path.name for path in (tmp_path / str(k)).iterdir()}
        assert "step-31" in left and len(left) == 2 and not any("tmp" in name for name in left)
    assert seen >= {20, step}


def test_a_failure_while_serialising_leaves_nothing(tmp_path):
    save_checkpoint(tmp_path, Checkpoint(1, {"a": np.zeros(3)}, {}))
    for bad in (Checkpoint(2, {"a": np.array([object()])}, {}), Checkpoint(2, {"a": np.zeros(3)}, {"x": object()})):
        with pytest.raises((TypeError, SafetensorError)):
            save_checkpoint(tmp_path, bad)
        assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


# --- pruning, choosing, versions -------------------------------------------------------------------------------------


def test_pruning_keeps_two_whole_ones(tmp_path):
    tensors = {"a": np.zeros(3, np.float32)}
    for step in (10, 20):
        save_checkpoint(tmp_path, Checkpoint(step, tensors, {}))
    (tmp_path / "step-20" / "state.json").write_text("{}")
    save_checkpoint(tmp_path, Checkpoint(15, tensors, {}))  # gone on from 10: the damaged 20 does not outlive it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-15"]
    (tmp_path / "step-15" / "tensors.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, Checkpoint(30, tensors, {}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-30"]


def test_a_failure_to_remove_is_not_fatal(tmp_path, monkeypatch):
    def refuse(path, *rest, **names):
        raise PermissionError(errno.EACCES, "no")

    for step in (1, 2):
        save_checkpoint(tmp_path, Checkpoint(step, {"a": np.zeros(3)}, {}))
    monkeypatch.setattr(os, "rmdir", refuse)
    save_checkpoint(tmp_path, Checkpoint(3, {"a": np.zeros(3)}, {}))
    monkeypatch.undo()
    found = load_newest(tmp_path)
    assert found is not None and found.step == 3


def test_resume_from_a_step(book, whole, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(request(book, folder), at(10, lambda: signal.raise_signal(signal.SIGINT)))
    with pytest.raises(UsageError, match=r"^there is no checkpoint \S+step-5; .*of the steps 8, 10") as caught:
        train(Request([], folder, resume=True, resume_step=5))
    assert caught.value.exit_code == 2
    view = Watch()
    train(Request([], folder, resume=True, resume_step=8), view)
    assert weights(folder) == weights(whole) and steps_of(folder) == steps_of(whole)
    with pytest.raises(
        UsageError, match=f"no checkpoint .*step-5; .*of the steps .*{STEPS}"
    ):  # of a complete run, too
        train(Request([], folder, resume=True, resume_step=5))
    assert train(Request([], folder, resume=True)).steps == STEPS
    (folder / "checkpoints" / f"step-{STEPS}" / "manifest.json").write_text("torn")
    with pytest.raises(UsageError, match=f"step-{STEPS} cannot be read"):
        train(Request([], folder, resume=True, resume_step=STEPS))


def test_a_checkpoint_of_every_format_is_read():
    for path in sorted(GOLDEN.glob("checkpoint-*")):
        found = load_newest(path)
        assert found is not None and found.step == 3
        settings = json.loads((path / "settings.json").read_text())
        model, config = ModelConfig.from_dict(settings["model"]), TrainConfig.from_dict(settings["train"])
        trainer = Trainer(model, config, make_reader(model, config))
        trainer.restore(found)
        assert trainer.step == 3


def make_reader(model: ModelConfig, config: TrainConfig):
    ids = np.random.default_rng(1).integers(0, model.vocab_size - 1, 400).astype(np.int32)
    line_end_V = np.zeros(model.vocab_size, dtype=bool)
    return LaneReader(ids, config.batch_size, config.seq_len, config.jitter, config.seed, None, line_end_V)


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, Checkpoint(step, {"a": np.zeros(3)}, {}))
    state = tmp_path / "step-2" / "state.json"
    data = json.dumps({**json.loads(state.read_text()), "format": 99}).encode()
    state.write_bytes(data)
    manifest = json.loads((state.parent / "manifest.json").read_text())
    manifest["state.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (state.parent / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"newer textlstm \(format 99, this one reads 1\); upgrade"):
        load_newest(tmp_path)  # not passed over: going on from step 1 would throw work away
    with pytest.raises(RunError, match="upgrade"):
        load_step(tmp_path, 2)


# --- disks that refuse -----------------------------------------------------------------------------------------------


def failing_fsync(monkeypatch, error: int, times: int) -> list[int]:
    """The next calls of fsync fail; returns a list that grows by each."""
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) <= times:
            raise OSError(error, os.strerror(error))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return calls


def test_a_full_disk_stops_no_training(book, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    kept = []

    def act(step: int) -> None:
        if step == 7:
            failing_fsync(monkeypatch, errno.ENOSPC, 10**6)
        if step == 18:
            kept.extend(path.name for path in (folder / "checkpoints").iterdir())
            monkeypatch.undo()

    view = Watch(act)
    train(request(book, folder), view)
    told = [line for line in view.notices if "cannot be written" in line]
    assert any("step 8 cannot be written (No space left" in line and "goes on" in line for line in told)
    assert kept == ["step-4"]  # the good one stays and nothing half-written lies about
    assert weights(folder) == weights(whole) and steps_of(folder) == steps_of(whole)
    newest = load_newest(folder / "checkpoints")
    assert newest is not None and newest.step == STEPS


def test_best_weights_found_while_the_disk_was_full_are_not_lost(book, tmp_path, monkeypatch):
    # The look at step 8 is made the best, and its model file has to wait.
    folder = tmp_path / "run"
    costs = iter([1.0, 2.0, 3.0])
    real_score, real_fsync = metrics.score, os.fsync

    def score(*arguments, **names):
        found = real_score(*arguments, **names)
        return dataclasses.replace(found, nats=next(costs, 9.0) * found.chars)

    def act(step: int) -> None:
        if step == 7:
            failing_fsync(monkeypatch, errno.ENOSPC, 10**6)
        if step == 15:
            monkeypatch.setattr(os, "fsync", real_fsync)

    monkeypatch.setattr("textlstm.trainer.metrics.score", score)
    train(request(book, folder), Watch(act))
    assert read_model(folder / "model.safetensors").card["step"] == 8


def test_no_checkpoint_promises_a_model_that_is_not_written(book, whole, tmp_path, monkeypatch):
    # Killed after such a checkpoint, the run would go on and never write the best weights.
    folder, kept, refusing = tmp_path / "run", [], [True]
    real = textlstm.run.loop.write_model

    def write_model(*arguments, **more):
        if refusing[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **more)

    def act(step: int) -> None:
        if step == 14:
            kept.extend(path.name for path in (folder / "checkpoints").iterdir())
            refusing[0] = False

    monkeypatch.setattr("textlstm.run.loop.write_model", write_model)
    train(request(book, folder), Watch(act))
    assert kept == ["step-4"]  # of before the first look
    assert weights(folder) == weights(whole)


def test_stopping_on_a_full_disk_says_what_is_lost(book, tmp_path, monkeypatch):
    def act(step: int) -> None:
        if step == 6:
            failing_fsync(monkeypatch, errno.ENOSPC, 10**6)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunError, match=r"stopped at step 6 .*could not be saved: No space left"):
        train(request(book, tmp_path / "run"), Watch(act))
    monkeypatch.undo()
    view = Watch()
    train(Request([], tmp_path / "run", resume=True), view)
    assert read_model(tmp_path / "run" / "model.safetensors")


def test_transient_faults_are_tried_again(book, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    calls = []
    view = at(3, lambda: calls.append(failing_fsync(monkeypatch, errno.EIO, 3)))
    train(request(book, folder), view)
    assert len(calls[0]) > 3
    assert not any("cannot be written" in line for line in view.notices)
    assert weights(folder) == weights(whole)


@pytest.mark.parametrize(("error", "calls"), [(errno.EIO, 4), (errno.ESTALE, 4), (errno.ENOSPC, 1), (errno.EACCES, 1)])
def test_insisting_has_an_end(error, calls):
    made = []

    def write() -> None:
        made.append(1)
        raise OSError(error, os.strerror(error))

    with pytest.raises(OSError, match=os.strerror(error)):
        insist(write)
    assert len(made) == calls


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_appending_is_whole_or_taken_back(tmp_path):
    path = tmp_path / "log"
    append_whole(path, "first\n")
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            append_whole(path, "a line that does not fit\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert path.read_text() == "first\n"
    append_whole(path, "second\udcff\n")
    assert path.read_bytes() == b"first\nsecond\xff\n"


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_real_limit_on_file_sizes(book, tmp_path):
    # The checkpoint has five numbers for each of the model: it does not fit, the model does.
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (60_000, 60_000))
    done = subprocess.run(
        command(book, tmp_path / "run"), preexec_fn=limit, capture_output=True, text=True, timeout=120,
        env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("cannot be written (File too large)") == STEPS // 4
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert len(steps_of(tmp_path / "run")) == STEPS and read_model(tmp_path / "run" / "model.safetensors")


def test_a_folder_that_cannot_be_written_is_told_before_the_text_is_read(book, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("textlstm.run.beginning.read_corpus", lambda *a: pytest.fail("the text was read"))
    with pytest.raises(RunError, match=f"{tmp_path} is not writable; name another --out"):
        train(request(book, tmp_path / "deep" / "run"))
    assert not (tmp_path / "deep").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(book, tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(RunError, match="not writable"):
        train(request(book, tmp_path / "shut" / "run"))


# --- two at once, signals, pipes, clocks -----------------------------------------------------------------------------


def test_two_processes_do_not_share_a_folder(book, whole, tmp_path):
    folder = tmp_path / "run"

    def second() -> None:
        argv = [sys.executable, "-m", "textlstm", "train", "--resume", "--out", str(folder)]
        done = subprocess.run(argv, capture_output=True, text=True, env=environment(tmp_path), timeout=60)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"another process (process {os.getpid()} on " in done.stderr and "is training in" in done.stderr

    train(request(book, folder), at(5, second))
    assert weights(folder) == weights(whole)


def test_a_lock_of_a_dead_process_is_none(book, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("process 1 on elsewhere")
    train(request(book, tmp_path / "run"))


class Signalled(Watch):
    """A signal comes in the middle of something else than a step."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.seen = where, 0

    def _now(self, where: str) -> None:
        if where == self.where:
            self.seen += 1
            if self.seen == 1:
                signal.raise_signal(signal.SIGTERM)

    def look(self, *rest) -> None:
        self._now("look")

    def sample(self, *rest) -> None:
        self._now("sample")


@pytest.mark.parametrize("where", ["look", "sample", "save"])
def test_a_signal_in_a_critical_section_waits_for_its_end(book, whole, tmp_path, monkeypatch, where):
    folder, view = tmp_path / "run", Signalled(where)
    if where == "save":
        real = os.replace

        def replace(source, target):
            if Path(target).name == "step-8":
                view._now("save")
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Interrupted, match="stopped at step") as caught:
        train(request(book, folder), view)
    monkeypatch.undo()
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    assert caught.value.exit_code == 143
    assert view.notices.count("saving; once more stops at once") == 1
    found = load_newest(folder / "checkpoints")
    assert found is not None and found.step == len(steps_of(folder)) >= 8
    train(Request([], folder, resume=True))
    assert weights(folder) == weights(whole) and steps_of(folder) == steps_of(whole)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("lines", [0, 2])
def test_a_reader_that_leaves_stops_no_training(book, tmp_path, lines):
    process = subprocess.Popen(
        command(book, tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment(tmp_path),
    )  # fmt: skip
    for _ in range(lines):
        process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert len(steps_of(tmp_path / "run")) == STEPS and read_model(tmp_path / "run" / "model.safetensors")


def test_durations_are_not_taken_from_the_wall_clock():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                # Dates of files, compared with now, and dates that the API tells: no durations.
                dates = (path.name, node.attr) in (("store.py", "time_ns"), ("hub.py", "time"), ("answers.py", "time"))
                assert dates or node.attr not in ("time", "time_ns", "localtime"), f"{path}:{node.lineno}"


def test_other_random_numbers_do_not_matter(book, whole, tmp_path):
    def reseed(step: int) -> None:
        random.seed(step), np.random.seed(step), torch.manual_seed(step)

    train(request(book, tmp_path / "run"), Watch(reseed))
    assert weights(tmp_path / "run") == weights(whole)


# --- the log, memory, numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b'{"event": "step", "st', b"\x00" * 40, b"\xff\xfe\n", b""])
def test_a_torn_log_is_cut_back(book, whole, tmp_path, tail):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(request(book, folder), at(13, lambda: signal.raise_signal(signal.SIGINT)))
    with (folder / "log.jsonl").open("ab") as file:
        file.write(tail)
    train(Request([], folder, resume=True))
    assert steps_of(folder) == steps_of(whole)


def test_memory_that_runs_out_is_told(book, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    for number, error in enumerate(
        (MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("[x] can't allocate memory: y"))
    ):
        real = Trainer.advance

        def advance(self, real=real, error=error, number=number):
            if self.step == 9 + number:
                raise error
            return real(self)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "advance", advance)
            with pytest.raises(RunError, match=r"memory ran out.*smaller --batch-size.*are kept"):
                train(request(book, folder, resume=number > 0))
        found = load_newest(folder / "checkpoints")
        assert found is not None and found.step == 8
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="something else"):
        patch.setattr(Trainer, "advance", lambda self: (_ for _ in ()).throw(RuntimeError("something else")))
        train(request(book, folder, resume=True))


def test_spike_guard_is_mean_and_six_sigmas():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 0.1, 300).tolist()
    guard, window, found = SpikeGuard(6.0, 1), [], []
    values[20], values[150], values[290] = 50.0, 50.0, 3.9
    for step, value in enumerate(values):
        limit = np.mean(window[-128:]) + 6 * np.std(window[-128:]) if len(window) >= 64 else math.inf
        assert guard.is_spike(value) == (value > limit), step
        found += [step] if value > limit else []
        window.append(min(value, limit))
    assert found == [150, 290]  # 20 came before there was a mean; it is forgotten after 128 steps
    assert not any(SpikeGuard(0.0, 1).is_spike(value) for value in values)


def test_spike_guard_gets_used_to_a_change():
    guard = SpikeGuard(6.0, 1)
    for value in [1.0, 1.1] * 64:
        guard.is_spike(value)
    skipped = [guard.is_spike(4.0) for _ in range(60)]
    assert skipped[0] and not skipped[-1] and sum(skipped) < 40
    other = SpikeGuard(6.0, 1)
    other.restore(json.loads(json.dumps(guard.state())))
    values = np.random.default_rng(1).normal(4, 0.3, 200).tolist()
    assert [guard.is_spike(v) for v in values] == [other.is_spike(v) for v in values]


def test_a_spike_is_skipped_logged_and_resumed(book, tmp_path, monkeypatch):
    real = Trainer.advance

    def advance(self):
        if self.step in (79, 85):
            network_loss = self.network.loss
            self.network.loss = lambda *a: _scaled(network_loss(*a))
        report = real(self)
        self.network.__dict__.pop("loss", None)
        return report

    monkeypatch.setattr(Trainer, "advance", advance)
    view = Watch()
    train(request(book, tmp_path / "run", steps=90), view)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line.get("skipped")] == [80, 86]
    (told,) = (line for line in view.notices if "was skipped" in line)  # once: some texts have dozens
    assert told.startswith("step 80 was skipped: its loss or gradient stands far out") and "log.jsonl" in told
    assert "--spike-sigmas" in told
    with pytest.raises(Interrupted):
        train(request(book, tmp_path / "two", steps=90), at(77, lambda: signal.raise_signal(signal.SIGINT)))
    train(Request([], tmp_path / "two", resume=True))
    assert weights(tmp_path / "two") == weights(tmp_path / "run")


def _scaled(result):
    loss, state = result
    return dataclasses.replace(loss, objective=loss.objective * 1000, nats=loss.nats * 1000), state


def test_weights_that_are_not_finite_are_never_best(book, tmp_path, monkeypatch):
    real = Trainer.advance

    def advance(self):
        report = real(self)
        if self.step == 12:
            with torch.no_grad():
                for network in (self.network, self.averaged):
                    network.head.bias[3] = math.nan
        return report

    monkeypatch.setattr(Trainer, "advance", advance)
    for name, settings in (("dev", {}), ("none", {"dev_fraction": 0.0})):
        with pytest.raises(DivergedError):
            train(request(book, tmp_path / name, settings=settings))
        if (tmp_path / name / "model.safetensors").exists():
            file = read_model(tmp_path / name / "model.safetensors")
            assert file.card["step"] == 8 and all(np.isfinite(a).all() for a in file.weights.values())


# --- changed settings ------------------------------------------------------------------------------------------------

FIELDS = [
    (kind, name)
    for kind in (CorpusConfig, ModelConfig, TrainConfig)
    for name in kind.__dataclass_fields__
    if name != "boundary"
]


def other_value(value, name: str):
    special = {
        "encoding": "latin-1", "newlines": "lf", "column": "body", "val": "other.txt", "val_chars": 100,
        "tokenizer": "char", "clip": 0.5, "sample_every": 3, "spike_sigmas": 0.0, "precision": "tf32",
        "sample_chars": 900, "calibration_temperature": 1.5,
    }  # fmt: skip
    if name in special:
        return special[name]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 + 0.01


def test_every_changed_setting_is_refused_on_resume(book, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(request(book, folder), at(3, lambda: signal.raise_signal(signal.SIGINT)))
    stored = json.loads((folder / "config.json").read_text())
    stored = stored["corpus"] | stored["model"] | stored["train"]
    for _, name in FIELDS:
        changed = {name: other_value(stored[name], name)}
        with pytest.raises(RunError, match=rf"other settings.*{name}: "):
            train(Request([str(book)], folder, resume=True, settings=changed))
    train(Request([str(book)], folder, resume=True, settings=TINY))
