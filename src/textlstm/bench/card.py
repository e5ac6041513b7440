"""The machine card: what a number was measured on, and how busy that machine was."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from textlstm.machine import processor, usable_cores
from textlstm.trainer.device import usual_precision
from textlstm.trainer.speed import sgemm_peak


def machine_card() -> dict[str, Any]:
    """The machine, its load and the versions, taken now."""
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "usual_precision": usual_precision("cpu"),  # bf16 where the processor has tiles for it (AMX)
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "sgemm_gflops": round(sgemm_peak() / 1e9),
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
        "python": platform.python_version(),
    }
