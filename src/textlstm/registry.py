"""Models by name: a path, a run folder, or a model that ships inside the package."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from textlstm.config import CorpusConfig
from textlstm.errors import ConfigError, TextLSTMError, UsageError
from textlstm.model_file import ModelFile, read_model

MODEL_FILE = "model.safetensors"
_MOST_NAMED = 8  # of a user's own models in a message


def shipped_models() -> dict[str, Path]:
    """The models inside the package, by name."""
    folder = Path(__file__).parent / "models"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def own_models() -> list[Path]:
    """The run folders in `runs` that have a model, newest first."""
    files = sorted(Path("runs").glob(f"*/{MODEL_FILE}"), key=os.path.getmtime, reverse=True)
    return [file.parent for file in files]


def find_model(name: str | Path) -> Path:
    """The model file that a user means.

    Args:
        name: path of a model file, run folder or folder exported for transformers, or the name of a shipped model,
            as such or as its file is called, where no other file is.

    Raises:
        UsageError: there is none; the message names the nearest one that ships or stands in `runs`.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        if (path / MODEL_FILE).is_file():
            return path / MODEL_FILE
        raise UsageError(f"the folder {str(name)!r} has no {MODEL_FILE} in it; {_without_model(path)}")
    shipped = shipped_models()
    if (stem := str(name).removesuffix(".safetensors")) in shipped:
        return shipped[stem]
    own = [str(folder) for folder in own_models()]
    known = {Path(folder).name: folder for folder in own} | {name: name for name in (*own, *shipped)}
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {known[near[0]]!r}?" if near else f"shipped models are {', '.join(shipped)}"
    if own and not near:
        hint += f"; yours are {', '.join(own[:_MOST_NAMED])}{', ...' if len(own) > _MOST_NAMED else ''}"
    raise UsageError(f"there is no model {str(name)!r}; {hint}")


def _without_model(folder: Path) -> str:
    """What a folder without a model file is, and what to do, in words."""
    if (folder / "step.onnx").is_file():
        return "it is an export to ONNX, for programs that run ONNX graphs: name the model that it was made of"
    try:
        begun = "sources" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        begun = False
    return "a run writes it at its first look" if begun else "name a model file or the folder of a run"


def training_text(model: Path) -> tuple[list[str], CorpusConfig] | None:
    """The sources that a model was trained on and how they were read, as its run folder says; None if it does not."""
    try:
        values = json.loads((model.parent / "config.json").read_bytes())
        sources = [str(source) for source in values["sources"]]
        return (sources, CorpusConfig.from_dict(values["corpus"])) if sources and "-" not in sources else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return None


def find_model_by_identity(beginning: str) -> ModelFile:
    """The model whose identity begins with some hexadecimal digits.

    Looked for among the models that ship, in the cache's `models`, and in the run folders of `runs`.

    Raises:
        UsageError: there is none.
    """
    from textlstm.corpus import cache_dir  # not needed to find a model by name, and slow to import

    cached = sorted((cache_dir() / "models").glob("*.safetensors"))
    runs = (folder / MODEL_FILE for folder in own_models())
    for path in (*shipped_models().values(), *cached, *runs):
        try:
            file = read_model(path)
        except (OSError, TextLSTMError):
            continue  # a damaged file is not the one
        if file.identity.startswith(beginning):
            return file
    raise UsageError(
        f"it was written with a model that is not at hand (identity {beginning}…): name its file or run folder "
        "with --model"
    )


def named_models(names: Sequence[str]) -> dict[str, Path]:
    """Models by the id that they are served under: `ID=MODEL`, or the last part of what names the model.

    Raises:
        UsageError: there is no such model, or two have one id.
    """
    found: dict[str, Path] = {}
    for name in names:
        id, given, model = name.partition("=")
        if not given or Path(name).exists():
            id, model = Path(name).name.removesuffix(".safetensors"), name
        if id in found:
            raise UsageError(f"two models are called {id!r}; give one another id, as ID=MODEL")
        found[id] = find_model(model)
    return found
