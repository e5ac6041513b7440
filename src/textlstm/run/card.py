"""What a model card tells of the machine, the versions, and the model that a run began from."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from textlstm.model_file import ModelFile


def version_of(name: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def began_from(name: str, file: ModelFile) -> dict[str, Any]:
    """What a card tells of the model that a run began from; what that one began from is part of it.

    Args:
        name: of the model, as it was given.
        file: the model.
    """
    card = file.card
    split = card.get("split")
    told = {
        "name": Path(name).name or name,  # not where it lies: cards are handed on
        "identity": file.identity,
        "sha256": file.sha256,
        "corpus": card.get("corpus"),
        "train_chars": split.get("train_chars") if isinstance(split, dict) else None,
        "began_from": card.get("began_from"),
    }
    return {key: value for key, value in told.items() if value is not None}
