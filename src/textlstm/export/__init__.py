"""What a model is handed on as: a file of a quarter of the size, a page that writes offline, ONNX, transformers."""

from __future__ import annotations

from pathlib import Path

from textlstm.errors import UsageError
from textlstm.model_file import ModelFile, write_model

FORMATS = ("int8", "html", "onnx", "transformers")


def export(file: ModelFile, to: str, out: str | Path) -> None:
    """Writes a model in another format, whole or not at all.

    Args:
        file: the model.
        to: `int8`: a model file with weights of one byte; `html`: one page, opened from disk, that writes in any
            browser, with int8 weights; `onnx`: a folder with the graphs `step.onnx` and `sequence.onnx`;
            `transformers`: a folder for Hugging Face's library.
        out: the file or folder to write. An older page is replaced; a model file must not exist, nor a folder unless
            it is empty.

    Raises:
        UsageError: an unknown format, or a place that cannot be written to.
    """
    if to not in FORMATS:
        raise UsageError(f"there is no export format {to!r}; known are {', '.join(FORMATS)}")
    out = Path(out)
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {str(out.parent)!r} to export into; make it first")
    if to != "html" and (out.is_file() or (out.is_dir() and (to == "int8" or any(out.iterdir())))):
        raise UsageError(f"{str(out)!r} is there already; name another place, or delete it first")
    if to == "int8":
        write_model(out, file.config, file.tokenizer, file.weights, file.card, "int8", file.statistics)
    elif to == "html":
        from textlstm.export.html import write_page

        write_page(file, out)
    elif to == "onnx":
        from textlstm.export.onnx import write_graphs

        write_graphs(file, out)
    else:
        from textlstm.export.transformers import write_folder

        write_folder(file, out)
