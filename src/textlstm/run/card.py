"""What a model card tells of the versions and of the model that a run began from."""

from __future__ import annotations

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
