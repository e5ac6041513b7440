"""Checkpoints: folders that are whole or absent, and that never run code.

`checkpoints/step-N/` holds `tensors.safetensors`, `state.json`, and, written last, `manifest.json` with the size and
SHA-256 of both. The folder is written under a temporary name, flushed to disk and renamed; only then are older ones
removed. Reading takes the newest folder whose manifest holds; no file says which is the latest, so none can lie.
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

from textlstm.errors import RunError, UsageError
from textlstm.files import sync_folder, write_atomically

KEEP = 2
FORMAT = 1  # of the files; tests/golden holds a checkpoint of each


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
    """Writes `folder/step-N`, whole or not at all, and removes all but the newest two whole ones.

    Checkpoints of later steps go too: this run passed over them because they are damaged, or left them behind.

    Args:
        folder: where the checkpoints of a run are; made if need be.
        checkpoint: what to write.
    """
    from safetensors.numpy import save

    files = {
        "tensors.safetensors": save({name: np.ascontiguousarray(a) for name, a in checkpoint.tensors.items()}),
        "state.json": json.dumps({"format": FORMAT, "step": checkpoint.step, **checkpoint.values}).encode(),
    }
    manifest = {n: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in files.items()}
    files["manifest.json"] = json.dumps(manifest, indent=1).encode()  # written last: it makes the others count
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    final = folder / f"step-{checkpoint.step}"
    temporary = folder / f"step-{checkpoint.step}.tmp-{os.getpid()}"
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_atomically(temporary / name, data)
        if final.exists():
            os.replace(final, temporary.with_name(f"{temporary.name}-old"))
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder)
    _prune(folder, checkpoint.step)


def _prune(folder: Path, newest: int) -> None:
    kept = 0
    for path in _step_folders(folder):
        step = int(path.name.removeprefix("step-"))
        if step == newest or (step < newest and kept < KEEP and _is_whole(path)):
            kept += 1
        else:
            shutil.rmtree(path, ignore_errors=True)
    for stale in folder.glob("*.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    try:
        _read(path)
    except _DAMAGE:
        return False
    return True


def load_newest(folder: Path, notice: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """Reads the newest whole checkpoint, or None if there is none.

    Args:
        folder: where the checkpoints of a run are.
        notice: told about each damaged one that is passed over.

    Raises:
        RunError: the newest was written by a newer textlstm.
    """
    for path in _step_folders(folder):
        try:
            return _load(path)
        except _DAMAGE as error:
            notice(f"checkpoint {path} is damaged ({error}); going on from an older one")
    return None


def load_step(folder: Path, step: int) -> Checkpoint:
    """Reads the checkpoint of one step.

    Args:
        folder: where the checkpoints of a run are.
        step: which one.

    Raises:
        UsageError: there is none, or it is damaged; the message lists those there are.
    """
    path = folder / f"step-{step}"
    try:
        return _load(path)
    except _DAMAGE as error:
        steps = [p.name.removeprefix("step-") for p in reversed(_step_folders(folder)) if _is_whole(p)]
        there = f"whole ones are of the steps {', '.join(steps)}" if steps else "there is no whole one"
        told = f"checkpoint {path} cannot be read ({error})" if path.exists() else f"there is no checkpoint {path}"
        raise UsageError(f"{told}; {there}") from error


_DAMAGE = (OSError, ValueError, KeyError, TypeError)


def _step_folders(folder: Path) -> list[Path]:
    found = [(int(m[1]), p) for p in folder.glob("step-*") if (m := re.fullmatch(r"step-(\d+)", p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _read(path: Path) -> dict[str, bytes]:
    """The files of a checkpoint, if they are those of its manifest."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    data = {name: (path / name).read_bytes() for name in ("tensors.safetensors", "state.json")}
    for name, content in data.items():
        if hashlib.sha256(content).hexdigest() != manifest[name]["sha256"]:
            raise ValueError(f"{name} does not match its SHA-256")
    return data


def _load(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = _read(path)
    values = json.loads(data["state.json"])
    written = values.pop("format", 1)
    if written > FORMAT:
        raise RunError(f"{path} was written by a newer textlstm (format {written}, this one reads {FORMAT}); upgrade")
    try:
        tensors = load(data["tensors.safetensors"])
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return Checkpoint(values.pop("step"), tensors, values)
