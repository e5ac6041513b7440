"""What this machine is and has: its processor, the cores that this process may use, and torch."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path

from textlstm.errors import MissingExtraError


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many cores this process may run on: fewer than there are under `taskset` or in a batch system.

    A share of their time, as containers are given, is not counted.
    """
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_torch() -> None:
    """Sees that torch is installed, and that its threads, once imported, share the machine with other programs.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    # Between two parallel loops the threads of OpenMP spin. With one of two cores taken by another program, each
    # waits for a partner that is not running: 1,400 tokens/s where 20,000 are usual. After 2,000 spins they sleep
    # instead, and 8,000 tokens/s remain; on a quiet machine nothing is lost that can be told from noise.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
