"""What a model can be handed on as: one page that writes offline, ONNX graphs, a folder for transformers."""

from __future__ import annotations

from pathlib import Path

from textlstm.errors import UsageError
from textlstm.model_file import ModelFile

FORMATS = ("html", "onnx", "transformers")


def export(file: ModelFile, to: str, out: str | Path) -> None:
    """Writes a model in another format, whole or not at all.

    Args:
        file: the model.
        to: `html`: one page, opened from disk, that writes in any browser, with int8 weights; `onnx`: a folder with
            the graphs `step.onnx` and `sequence.onnx`; `transformers`: a folder for Hugging Face's library.
        out: the page or folder to write. An older page is replaced; a folder must not exist or be empty.

    Raises:
        UsageError: an unknown format, or a place that cannot be written to.
    """
    if to not in FORMATS:
        raise UsageError(f"there is no export format {to!r}; known are {', '.join(FORMATS)}")
    out = Path(out)
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {str(out.parent)!r} to export into; make it first")
    if to != "html" and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UsageError(f"{str(out)!r} is there already; name another folder, or delete it first")
    if to == "html":
        from textlstm.export.html import write_page

        write_page(file, out)
    elif to == "onnx":
        from textlstm.export.onnx import write_graphs

        write_graphs(file, out)
    else:
        from textlstm.export.transformers import write_folder

        write_folder(file, out)
