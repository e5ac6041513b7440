"""One page with everything in it: the model, int8 in base64, and the program of `page/` that writes with it.

The page opens from disk, asks the network for nothing, and its policy would not let it: scripts and styles run by
their hashes, everything else is denied. 'wasm-unsafe-eval' allows WebAssembly, and only that, to be compiled.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from pathlib import Path

from textlstm import __version__
from textlstm.errors import UsageError
from textlstm.files import write_atomically
from textlstm.model_file import ModelFile, model_bytes

_PAGE = Path(__file__).parent / "page"
_ENGINE = ("random", "tokenizer", "kernel", "network", "sampling", "writer")
_APP = ("app", "start")


def write_page(file: ModelFile, out: Path) -> None:
    """Writes the page.

    Args:
        file: the model; its matrices are stored as int8.
        out: the page; its name without the suffix is the title.

    Raises:
        UsageError: `out` is a folder.
    """
    if out.is_dir():
        raise UsageError(f"{str(out)!r} is a folder; name the page to write, such as {str(out / 'model.html')!r}")
    write_atomically(out, page(file, out.stem).encode())


def page(file: ModelFile, title: str) -> str:
    """The page's HTML; arguments as in `write_page`."""
    data, _ = model_bytes(file.config, file.tokenizer, file.weights, file.card, "int8")
    style, engine, app = _part("page.css"), scripts(_ENGINE), scripts(_APP)
    policy = (
        f"default-src 'none'; script-src {_source(engine)} {_source(app)} 'wasm-unsafe-eval'; "
        f"style-src {_source(style)}; img-src data:; worker-src blob:; base-uri 'none'; form-action 'none'"
    )
    kind = f"An LSTM language model with {file.config.num_params:,} weights."
    values = {
        "policy": policy, "title": html.escape(title), "about": kind, "version": __version__, "style": style,
        "engine": engine, "app": app, "model": base64.b64encode(data).decode(),
    }  # fmt: skip
    return re.sub(r"\{\{(\w+)\}\}", lambda marker: values[marker[1]], _part("page.html"))


def scripts(names: tuple[str, ...] = _ENGINE) -> str:
    """Some of the page's scripts as one; by default those that need no page, only JavaScript."""
    return '"use strict";\n' + "\n".join(_part(f"{name}.js") for name in names)


def _part(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _source(content: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
