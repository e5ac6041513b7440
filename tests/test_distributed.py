"""Several processes train what one process does, stop together, and go on after one of them has died."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import textlstm
from textlstm.cli import cli
from textlstm.errors import COMES_AGAIN, UsageError
from textlstm.model_file import read_model
from textlstm.trainer import launch
from textlstm.trainer.checkpoint import load_newest
from textlstm.trainer.distributed import Group, is_broken_connection
from textlstm.trainer.launch import Host

SRC = Path(textlstm.__file__).parent.parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="gloo and signals of POSIX")


def environment(base: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "TEXTLSTM_CACHE": str(base / "cache"),
        **more,
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("total", [1, 2, 5, 16])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_ranks_share_the_lanes(total, size):
    lanes = [lane for rank in range(size) for lane in range(total)[Group(rank, size).rows(total)]]
    assert lanes == list(range(total))


@pytest.mark.parametrize(
    "message",
    [
        "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv operation to complete",
        "[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.77.0.2]:24321",
        "Application timeout caused pair closure",
        "[/gloo/transport/tcp/pair.cc:471] writev [10.77.0.2]:4711: Network is unreachable",
        "NCCL communicator was aborted on rank 1.",
    ],
)
def test_what_torch_says_when_a_rank_is_gone(message):
    assert is_broken_connection(RuntimeError(message))
    assert not is_broken_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"))


# --- the same numbers ------------------------------------------------------------------------------------------------

# Trains under several configurations; then stops at step 7, takes up the checkpoint and ends in the same bits; then is
# told at step 20, by the first rank alone, to take 60 steps in all.
RANK = """
import hashlib, json
import numpy as np
from textlstm.config import ModelConfig, TrainConfig
from textlstm.corpus import LaneReader
from textlstm.trainer import Callbacks, Development, Trainer, weights_of
from textlstm.trainer.distributed import joined

V = 20
rng = np.random.default_rng(3)
ids = np.zeros(3000, dtype=np.int32)
for i in range(1, len(ids)):
    ids[i] = (3 * ids[i - 1] + rng.choice([1, 2, 7], p=[0.7, 0.2, 0.1])) % V
ids[100::97] = V  # document boundaries
model = ModelConfig(V + 1, 8, 12, 2, embed_dropout=0.05, input_dropout=0.1, layer_dropout=0.1, output_dropout=0.2,
                    weight_dropout=0.1)
base = TrainConfig(steps=50, batch_size=5, seq_len=24, jitter=0.4, lr=1e-2, patience=0, eval_every=10,
                   label_smoothing=0.05, activation_penalty=0.5, temporal_penalty=0.5)
def trainer(group, config, dev_size):
    reader = LaneReader(ids[:1800], config.batch_size, config.seq_len, config.jitter, 0, V, np.arange(V + 1) == 0)
    dev = Development(ids[1800:][:dev_size], ids[1500:1800], 400, 400)
    return Trainer(model, config, reader, dev, group=group)
def run(t):
    nats = []
    t.run(Callbacks(on_step=lambda report: nats.append(report.nats)))
    digest = hashlib.sha256(b"".join(a.tobytes() for a in weights_of(t.averaged).values())).hexdigest()
    return {"nats": nats, "best": t.best, "bits": digest}
with joined() as group:
    found = []
    for accumulate, dev_size in ((1, 1153), (2, 1200), (1, 100)):
        found.append(run(trainer(group, base.replace(accumulate=accumulate), dev_size)))
    first = trainer(group, base, 1153)
    kept = []
    first.run(Callbacks(stop=lambda: "x" if first.step == 7 else None, save=kept.append))
    second = trainer(group, base, 1153)
    second.restore(group.share_checkpoint(kept[0]))
    resumed = run(second)
    longer = trainer(group, base, 1153)
    longer.run(Callbacks(recount=lambda step: 60 if group.rank == 0 and step == 20 else 0))
    assert (longer.step, longer.config.steps) == (60, 60)
    if group.rank == 0:
        print(json.dumps({"runs": found, "resumed": resumed}))
"""


def ranks(base: Path, number: int) -> dict:
    port = str(free_port())
    processes = []
    for rank in range(number):
        place = {"RANK": str(rank), "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", RANK]
        processes.append(subprocess.Popen(command, env=environment(base, **place), text=True, stdout=subprocess.PIPE))
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * number
    return json.loads(outputs[0])


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_are_one(tmp_path, number):
    one, several = ranks(tmp_path, 1), ranks(tmp_path, number)
    for ours, theirs in zip(several["runs"], one["runs"], strict=True):
        assert len(ours["nats"]) == 50
        np.testing.assert_allclose(ours["nats"], theirs["nats"], rtol=0, atol=1e-5)
        assert ours["best"] == pytest.approx(theirs["best"], abs=1e-3)  # nats of some hundred tokens
    for result in (one, several):
        assert result["resumed"]["nats"] == result["runs"][0]["nats"][7:]
        assert (
            result["resumed"]["bits"] == result["runs"][0]["bits"]
            and result["resumed"]["best"] == result["runs"][0]["best"]
        )


# --- whole runs ------------------------------------------------------------------------------------------------------

STEPS = 400
LINE = "a small boat lay upside down on the sand where the tide had left it"
OPTIONS = [
    "--steps", str(STEPS), "--tokenizer", "byte", "--embed-size", "12", "--hidden-size", "16", "--batch-size", "4",
    "--seq-len", "24", "--checkpoint-every", "20", "--eval-every", "100", "--precision", "fp32", "--json",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    rng = random.Random(2)
    words = LINE.split()
    text = "".join(" ".join(rng.choices(words, k=rng.randint(3, 12))) + ".\n" for _ in range(500))
    (folder / "book.txt").write_text(text)
    return folder


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    """A test that fails leaves no process behind; torchrun gives each rank a session of its own."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            below = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            ranks = below.read_text().split() if below.exists() else []
            for pid in [process.pid, *map(int, ranks)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()


def start(
    base: Path, name: str, *more: str, before: tuple[str, ...] = (), text: str = "book.txt"
) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-m", "textlstm", "train", text, "--out", name, *OPTIONS, *more]
    process = subprocess.Popen(
        command, cwd=base, env=environment(base), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    STARTED.append(process)
    return process


def last_step(folder: Path) -> int:
    try:
        lines = (folder / "log.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((json.loads(line).get("step", 0) for line in lines[-3:]), default=0)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0 and "Traceback" not in err, err
    return out, err


def wait_for(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 90
    while last_step(folder) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.005)


def rank_process(base: Path, name: str, rank: int) -> int:
    """The process id of a rank, found by its environment and arguments."""
    for entry in Path("/proc").iterdir():
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if (
            f"RANK={rank}".encode() in variables
            and name.encode() in arguments
            and os.readlink(entry / "cwd") == str(base)
        ):
            return int(entry.name)
    raise AssertionError("no such rank")


def weights(folder: Path) -> dict[str, np.ndarray]:
    return read_model(folder / "model.safetensors").weights


@pytest.fixture(scope="module")
def whole(base) -> dict[str, np.ndarray]:
    """Two processes that nothing happened to."""
    out, _ = finish(start(base, "whole", "--processes", "2"))
    assert len(out.splitlines()) == 1 and json.loads(out)["steps"] == STEPS  # one rank prints
    return weights(base / "whole")


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_two_processes_learn_what_one_does(base, whole):
    finish(start(base, "one"))
    for name, array in weights(base / "one").items():
        np.testing.assert_allclose(array, whole[name], atol=2e-3)  # 400 steps of rounding, of fp32 as in OPTIONS


@linux
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_dies_is_started_again(base, whole, rank):
    name = f"restarted-{rank}"
    process = start(base, name, "--processes", "2")
    wait_for(process, base / name, 130)
    os.kill(rank_process(base, name, rank), signal.SIGKILL)
    out, err = finish(process)
    assert json.loads(out.splitlines()[-1])["steps"] == STEPS and "going on from step" in err
    for tensor, array in weights(base / name).items():
        assert array.tobytes() == whole[tensor].tobytes()


@linux
def test_a_rank_that_dies_ends_the_job_soon(base):
    process = start(base, "dead", "--processes", "2", "--restarts", "0")
    wait_for(process, base / "dead", 30)
    began = time.monotonic()
    os.kill(rank_process(base, "dead", 1), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - began < 30 and process.returncode == 1
    assert "rank 1 was killed by signal 9; all 2 processes were stopped" in err
    assert load_newest(base / "dead" / "checkpoints") is not None


@linux
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_signal_stops_all_and_saves(base, whole, number, code):
    name = f"stopped-{code}"
    process = start(base, name, "--processes", "2")
    wait_for(process, base / name, 50)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "everything is saved" in err
    found = load_newest(base / name / "checkpoints")
    assert found is not None and found.step >= 50 and found.step == last_step(base / name)
    finish(start(base, name, "--resume", "--processes", "2"))
    for tensor, array in weights(base / name).items():
        assert array.tobytes() == whole[tensor].tobytes()


@linux
@pytest.mark.slow
def test_under_nohup_a_closed_terminal_stops_none(base, whole):
    process = start(base, "nohup", "--processes", "2", before=("nohup",))
    wait_for(process, base / "nohup", 20)
    process.send_signal(signal.SIGHUP)
    os.kill(rank_process(base, "nohup", 1), signal.SIGHUP)
    finish(process)
    for tensor, array in weights(base / "nohup").items():
        assert array.tobytes() == whole[tensor].tobytes()


# The first rank is busy with something of its own, as with a long text, when the other one dies or falls silent.
BUSY = """
import os, signal, sys, time
from textlstm.errors import LostRankError
from textlstm.trainer.distributed import joined
try:
    with joined() as group:
        print("joined", flush=True)
        if group.rank == 1:
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(300)
except LostRankError as error:
    print(error)
"""


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.slow)])
def test_a_rank_is_missed_while_another_is_busy(tmp_path, how):
    port, processes = str(free_port()), []
    for rank in (0, 1):
        place = environment(tmp_path, RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        command = [sys.executable, "-c", BUSY, how]
        processes.append(subprocess.Popen(command, env=place, text=True, stdout=subprocess.PIPE))
    STARTED.extend(processes)
    assert processes[0].stdout.readline() == "joined\n"
    began = time.monotonic()
    out, _ = processes[0].communicate(timeout=120)
    assert time.monotonic() - began < 30
    processes[1].kill()
    processes[1].communicate()
    assert out.startswith(f"rank 0 lost rank 1 (process {processes[1].pid} on ")


def test_ranks_among_several_hosts(monkeypatch):
    host = Host.parse("2/3", "[fd00::1]:29500")
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "1"), ("MASTER_ADDR", ""), ("MASTER_PORT", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    host.place()
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")] == [
        "5", "12", "fd00::1", "29500",
    ]  # fmt: skip
    assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"


@pytest.mark.parametrize(
    ("place", "meeting", "told"),
    [
        ("3/2", "a:1", "number of this host"), ("0/2", "a:1", "number of this host"), ("one", "a:1", "1/2, not one"),
        ("1/2", "10.0.0.1", "free port"), ("1/2", ":80", "free port"), ("1/2", "a:99999", "free port"),
    ],
)  # fmt: skip
def test_hosts_that_cannot_be_meant(place, meeting, told):
    with pytest.raises(UsageError, match=told):
        Host.parse(place, meeting)


@pytest.mark.parametrize("before", [(), ("--",)])
def test_a_name_that_looks_like_an_option_is_none_of_the_ranks(run, own_cache, monkeypatch, before):
    attempts = []

    def attempt(processes, arguments, first_rank):
        attempts.append(cli.commands[arguments[0]].make_context("train", list(arguments[1:])).params)
        return 1, "rank 0 was killed by signal 9", True

    monkeypatch.setattr(launch, "_launch_once", attempt)
    monkeypatch.setattr(launch, "_variables", lambda processes: {})
    Path("-notes.txt").write_text("text")
    done = run(*before, "train", "--processes", "2", "--restarts", "1", "--", "-notes.txt")
    assert done.code == 1
    assert [(words["sources"], words["resume"]) for words in attempts] == [(("-notes.txt",), n) for n in (False, True)]
    assert attempts[0]["out"] == attempts[1]["out"] == Path("runs/notes-1")


def test_what_several_processes_cannot_do(base):
    for more, told in (
        (("--time-to-loss", "1"), "works with one process only"), (("--batch-size", "1"), "need as many lanes"),
    ):  # fmt: skip
        process = start(base, "never", "--processes", "2", *more)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2 and told in err and "beginning again" not in err, err
        shutil.rmtree(base / "never", ignore_errors=True)


def test_an_error_that_comes_again_is_told_once(base):
    (base / "short.txt").write_text(LINE[:50])
    process = start(base, "short", "--processes", "2", text="short.txt")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and json.loads(out.splitlines()[-1])["exit_code"] == 1
    assert err.count("short.txt") == 1 and "rank 0 ended with exit code 1" in err and "again" not in err, err


@pytest.mark.parametrize(
    ("codes", "attempts", "code", "told"),
    [
        ({1: -9, 0: 143}, 3, 1, "rank 1 was killed by signal 9"), ({0: 1}, 3, 1, "rank 0 ended with exit code 1"),
        ({0: COMES_AGAIN, 1: 143}, 1, 1, "rank 0 ended with exit code 1"),
        ({0: 1, 1: COMES_AGAIN}, 1, 1, "rank 1 ended with exit code 1"),
        ({0: 1, 1: 2}, 1, 2, "rank 1 ended with exit code 2"), ({1: 3}, 1, 3, "rank 1 ended with exit code 3"),
        ({0: 143}, 1, 143, "rank 0 ended with exit code 143"),
    ],
)  # fmt: skip
def test_only_what_may_go_better_is_tried_again(monkeypatch, capsys, codes, attempts, code, told):
    failures = {rank: ProcessFailure(rank, 1, failed, "no file") for rank, failed in codes.items()}
    for second, failure in enumerate(failures.values()):  # in the order in which they failed
        failure.timestamp = second

    def fail(*arguments):
        raise ChildFailedError("python", failures)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda config, entry: fail)
    monkeypatch.setattr(launch, "_variables", lambda processes: {})
    assert launch.launch(2, ["train"], restarts=2) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == attempts and all(line.startswith(f"{told}; all 2 processes were stopped") for line in lines)
    again = "; beginning again from the last checkpoint, if there is one"
    assert [line.endswith(again) for line in lines] == [True] * (attempts - 1) + [False]


@pytest.mark.parametrize(("code", "attempts"), [(COMES_AGAIN, 3), (1, 3), (2, 1), (3, 1)])
def test_of_several_hosts_each_tries_again(monkeypatch, capsys, code, attempts):
    """None knows what ended another one, and would wait an hour for it otherwise."""

    def fail(*arguments):
        raise ChildFailedError("python", {0: ProcessFailure(0, 1, code, "no file")})

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda config, entry: fail)
    monkeypatch.setattr(launch, "_variables", lambda processes: {})
    monkeypatch.setattr(launch, "_interface_to", lambda meeting: None)
    host = SimpleNamespace(number=1, meeting=("127.0.0.1", 1))
    assert launch.launch(2, ["train"], restarts=2, host=host) == (1 if code == COMES_AGAIN else code)
    assert len(capsys.readouterr().err.splitlines()) == attempts


# --- two hosts -------------------------------------------------------------------------------------------------------

# Two network namespaces joined by a pair of virtual Ethernet devices, in a user namespace of their own.
NETWORK = """
set -e
ip link set lo up
unshare -n sleep 900 & other=$!
trap 'kill $other' EXIT
sleep 0.5
ip link add v0 type veth peer name v1
ip link set v1 netns $other
ip addr add 10.77.0.1/24 dev v0; ip link set v0 up
there="nsenter -t $other -n"
$there ip link set lo up; $there ip addr add 10.77.0.2/24 dev v1; $there ip link set v1 up
"""

# torchrun's own way: after a cut, the same command with --resume.
HOSTS = (
    NETWORK
    + """
job="$PYTHON -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id job \\
    --rdzv-endpoint 10.77.0.1:29501"
begin() {
    GLOO_SOCKET_IFNAME=v0 $job --rdzv-conf is_host=1 --local-addr 10.77.0.1 -m textlstm train "$@" & here=$!
    GLOO_SOCKET_IFNAME=v1 $there $job --rdzv-conf is_host=0 --local-addr 10.77.0.2 -m textlstm train "$@" & far=$!
}
begin "$@"
if [ -n "$CUT_AT" ]; then
    until [ -e "$CUT_AT" ]; do sleep 0.1; done
    ip link set v0 down; echo cut >&2; SECONDS=0
    if wait $here; then exit 9; fi
    echo "ended after $SECONDS seconds" >&2
    kill -9 $far; wait $far || true  # its rank has ended too; torchrun itself waits for a host that is not there
    ip link set v0 up
    begin "$@" --resume
fi
wait $here
wait $far
"""
)

# Ours: nobody types anything. Packets are lost where each host sends them to a machine that is not there.
BACK_AGAIN = (
    NETWORK
    + """
job="$PYTHON -m textlstm train --meet 10.77.0.1:29501"
$job --host 1/2 "$@" 2>here.err & here=$!
$there $job --host 2/2 "$@" >far.out 2>far.err & far=$!
until [ -e "$CUT_AT" ]; do sleep 0.1; done
if [ "$CUT" = link ]; then ip link set v0 down; else
    ip neigh replace 10.77.0.2 lladdr 02:00:00:00:00:99 nud permanent dev v0
    $there ip neigh replace 10.77.0.1 lladdr 02:00:00:00:00:98 nud permanent dev v1
fi
SECONDS=0
until grep -q 'lost rank' here.err && grep -q 'lost rank' far.err; do
    sleep 0.2
    if [ $SECONDS -gt 90 ]; then exit 9; fi
done
echo "told after $SECONDS seconds" >&2
sleep 15  # both wait for each other meanwhile
if [ "$CUT" = link ]; then ip link set v0 up; else
    ip neigh del 10.77.0.2 dev v0
    $there ip neigh del 10.77.0.1 dev v1
fi
wait $here
wait $far
"""
)


def namespaces() -> bool:
    probe = "ip link add v0 type veth peer name v1 && unshare -n true"
    try:
        return subprocess.run(["unshare", "-rn", "bash", "-c", probe], capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


def run_hosts(base: Path, script: str, name: str, **more: str) -> tuple[str, str]:
    """Runs a script that trains on two hosts; what it printed."""
    if not namespaces():
        problem = "this system allows no network namespaces"
        pytest.fail(problem) if os.environ.get("TEXTLSTM_REQUIRE_NETNS") else pytest.skip(problem)
    command = ["unshare", "-rn", "bash", "-c", script, "hosts", "book.txt", "--out", name, *OPTIONS]
    with subprocess.Popen(
        command, cwd=base, env=environment(base, PYTHON=sys.executable, **more), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=280)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == STEPS
    return out, err


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True], ids=["joined", "cut apart and joined again"])
def test_two_hosts(base, cut):
    name = f"hosts-{int(cut)}"
    _, err = run_hosts(base, HOSTS, name, CUT_AT=str(base / name / "checkpoints" / "step-100") if cut else "")
    if cut:
        assert re.search(r"rank 0 lost rank 1 \(process \d+ on .+\)", err), err
        assert "going on from step" in err
        assert int(re.search(r"ended after (\d+) seconds", err)[1]) <= 30
    finish(start(base, f"alone-{int(cut)}"))
    steps = []
    for folder in (name, f"alone-{int(cut)}"):
        log = map(json.loads, (base / folder / "log.jsonl").read_text().splitlines())
        steps.append([line["nats_per_token"] for line in log if line["event"] == "step"])
    assert len(steps[0]) == len(steps[1]) == STEPS
    np.testing.assert_allclose(steps[0][:50], steps[1][:50], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["link", "packets"])
def test_a_host_that_was_cut_off_goes_on_when_it_is_back(base, whole, kind):
    name = f"back-{kind}"
    _, err = run_hosts(base, BACK_AGAIN, name, CUT=kind, CUT_AT=str(base / name / "checkpoints" / "step-100"))
    assert int(re.search(r"told after (\d+) seconds", err)[1]) <= 30
    for file, own, other in (("here.err", 0, 1), ("far.err", 1, 0)):
        told = (base / file).read_text()
        assert re.search(rf"rank {own} lost rank {other} \(process \d+ on .+\)", told), told
        # Once it was not "exit code 1"; what was told instead was not kept, and is shown if it is neither of these.
        assert re.search(rf"rank {own} (ended|was killed) .*; beginning again from the last checkpoint", told), told
    assert "going on from step" in (base / "here.err").read_text()
    for tensor, array in weights(base / name).items():
        assert array.tobytes() == whole[tensor].tobytes()
