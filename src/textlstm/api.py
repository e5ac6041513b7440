"""The two functions of the Python API: `train` and `load`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from textlstm.errors import MissingExtraError
from textlstm.machine import require_torch
from textlstm.model import Model


def load(name: str | Path, engine: str | None = None, threads: int | None = None) -> Model:
    """Loads a model.

    Args:
        name: path of a model file or run folder, or the name of a model that ships.
        engine: `int8`, `onnx` (single precision) or `torch` (reference, GPU); None writes with the fastest and scores
            in single precision.
        threads: cores that one step may use; None leaves it to the engine.

    Raises:
        UsageError: there is no such model.
        ModelFileError: the file is damaged or something else.
    """
    return Model.load(name, engine, threads)


def train(
    sources: str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]],
    out: str | Path | None = None,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    preset: str | None = None,
    init_from: str | Path | None = None,
    resume: bool = False,
    workers: int = 1,
    device: str = "auto",
    quiet: bool = False,
    **settings: Any,
) -> Model:
    """Trains a model, with the same words as `textlstm train`.

    Args:
        sources: files, folders, glob patterns or names of corpora; or rows: a list of mappings, a dataset of Hugging
            Face, or anything else that has `column_names` and gives mappings.
        out: the run folder; None makes `runs/NAME-N`.
        minutes, steps, epochs: length of the run; None of them is three minutes.
        preset: `original` or `original-char`.
        init_from: a model to begin from.
        resume: go on from the last whole checkpoint in `out`.
        workers: processes that encode a text too long for memory. They import the script that calls this, which
            then needs its `if __name__ == "__main__":`.
        device: where to train: `auto`, `cuda`, `mps`, `xpu` or `cpu`.
        quiet: show nothing.
        **settings: fields of CorpusConfig, ModelConfig and TrainConfig.

    Returns:
        The finished model; its card has the scores.
    """
    require_torch()
    from textlstm.corpus import Rows
    from textlstm.run import Request
    from textlstm.run import train as run
    from textlstm.view import choose_view

    mappings = isinstance(sources, Sequence) and bool(sources) and isinstance(sources[0], Mapping)
    if mappings or hasattr(sources, "column_names"):
        names: list[str | Rows] = [Rows(cast(Iterable[Mapping[str, Any]], sources))]
    else:
        names = [str(s) for s in ([sources] if isinstance(sources, str | Path) else sources)]
    request = Request(
        names,
        None if out is None else Path(out),
        minutes,
        steps,
        epochs,
        preset,
        settings,
        None if init_from is None else str(init_from),
        resume,
        command="textlstm.train(...)",
        workers=workers,
        device=device,
    )
    with choose_view(quiet) as view:
        return Model.load(run(request, view).model)


def require_serve() -> None:
    """Sees that what the server needs is installed.

    Raises:
        MissingExtraError: it is not.
    """
    import importlib.util

    for name in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name.replace("_", "-"), "serve")
