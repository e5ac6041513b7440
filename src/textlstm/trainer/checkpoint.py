"""Checkpoints: folders that are whole or absent, and that never run code.

`checkpoints/step-N/` holds `tensors.safetensors`, `state.json`, and, written last, `manifest.json` with the size and
SHA-256 of both. The folder is written under a temporary name, flushed to disk and renamed; only then are older ones
removed. Reading takes the newest folder whose manifest holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.files import sync_folder, write_atomically

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """All that going on exactly needs.

    Attributes:
        step: optimizer steps done.
        tensors: arrays by name.
        values: JSON values.
    """

    step: int
    tensors: Mapping[str, NDArray[Any]]
    values: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `folder/step-N`, whole or not at all, and removes all but the newest two.

    Args:
        folder: where the checkpoints of a run are; made if need be.
        checkpoint: what to write.
    """
    from safetensors.numpy import save

    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    final = folder / f"step-{checkpoint.step}"
    temporary = folder / f"step-{checkpoint.step}.tmp-{os.getpid()}"
    temporary.mkdir()
    files = {
        "tensors.safetensors": save({name: np.ascontiguousarray(a) for name, a in checkpoint.tensors.items()}),
        "state.json": json.dumps({"step": checkpoint.step, **checkpoint.values}).encode(),
    }
    manifest = {}
    for name, data in files.items():
        write_atomically(temporary / name, data)
        manifest[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync_folder(folder)
    for old in [path for path in _step_folders(folder) if path != final][KEEP - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(folder: Path, notice: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """Reads the newest whole checkpoint, or None if there is none.

    Args:
        folder: where the checkpoints of a run are.
        notice: told about each damaged one that is passed over.
    """
    for path in _step_folders(folder):
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            notice(f"checkpoint {path} is damaged ({error}); going on from an older one")
    return None


def _step_folders(folder: Path) -> list[Path]:
    found = [(int(m[1]), p) for p in folder.glob("step-*") if (m := re.fullmatch(r"step-(\d+)", p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _load(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    manifest = json.loads((path / "manifest.json").read_bytes())
    data = {name: (path / name).read_bytes() for name in ("tensors.safetensors", "state.json")}
    for name, content in data.items():
        if hashlib.sha256(content).hexdigest() != manifest[name]["sha256"]:
            raise ValueError(f"{name} does not match its SHA-256")
    try:
        tensors = load(data["tensors.safetensors"])
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    values = json.loads(data["state.json"])
    return Checkpoint(values.pop("step"), tensors, values)
