"""What this machine is, beside what the system tells of it."""

import os
import platform
from pathlib import Path

import pytest
import torch

import textlstm
from textlstm.bench.card import machine_card
from textlstm.machine import processor, usable_cores
from textlstm.trainer.launch import _variables

LINUX = pytest.mark.skipif(platform.system() != "Linux", reason="Linux tells it in /proc")


@pytest.fixture
def one_core():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def allowed() -> int:
    """The cores in a list as `0-2,5`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    listed = next(line.partition(":")[2] for line in status.splitlines() if line.startswith("Cpus_allowed_list"))
    ends = [[int(end) for end in part.split("-")] for part in listed.split(",")]
    return sum(end[-1] - end[0] + 1 for end in ends)


@LINUX
def test_cores_are_those_that_a_process_may_use():
    assert usable_cores() == allowed()


@LINUX
def test_what_a_process_may_not_use_is_not_counted(one_core, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert usable_cores() == allowed() == 1
    assert _variables(1)["OMP_NUM_THREADS"] == "1"
    card = machine_card()
    assert (card["cores"], card["threads"]) == (1, torch.get_num_threads())
    tiles = " amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    assert card["usual_precision"] == ("bf16" if tiles else "fp32")


def test_nothing_else_counts_cores():
    sources = Path(textlstm.__file__).parent.rglob("*.py")
    assert {path.name for path in sources if "cpu_count" in path.read_text(encoding="utf-8")} == {"machine.py"}


@LINUX
def test_a_processor_has_the_name_that_the_system_gives_it():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    assert processor() in (names if names else {platform.processor(), platform.machine()})
