"""The folder of a run: its name, its lock, and what the log of a finished one tells."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from textlstm.corpus import Rows, source_title
from textlstm.errors import RunError, UsageError
from textlstm.registry import MODEL_FILE
from textlstm.run.setup import Request, Result


def check_writable(folder: Path) -> None:
    """Sees that a run folder can be made.

    Raises:
        RunError: it cannot.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"the run folder {folder} cannot be made: {there} is not writable; name another --out")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds the lock of a run folder; the system frees it when the process ends, however it ends.

    Raises:
        RunError: another process holds it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # comes with torch

    path = folder / ".lock"
    holder = ""
    with suppress(OSError):
        holder = path.read_text(encoding="utf-8", errors="replace")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        who = f" ({holder})" if holder else ""
        raise RunError(f"another process{who} is training in {folder}; wait for it, or name another --out") from error
    except OSError as error:
        raise RunError(f"the run folder {folder} cannot be written: {error.strerror}") from error
    try:
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def run_folder(request: Request) -> Path:
    """Where the run that is asked for goes.

    Raises:
        UsageError: the folder is something else, or in use.
    """
    if request.resume_step is not None and not request.resume:
        raise UsageError("--resume-step goes with --resume")
    if request.out is not None:
        if request.out.exists() and not request.out.is_dir():
            raise UsageError(f"{request.out} is a file; --out names a folder")
        # A temporary file that a kill left behind begins with a dot; it is no run, and no obstacle to one.
        begun = request.out.is_dir() and any(not path.name.startswith(".") for path in request.out.iterdir())
        if begun and not request.resume:
            raise UsageError(f"{request.out} is not empty; add --resume to go on with it, or name another --out")
        if request.resume_step is not None and not begun:
            raise UsageError(f"there is no run in {request.out}, so none of its steps to go on from")
        if begun and not (request.out / "config.json").exists():
            raise UsageError(f"{request.out} is not a run folder: it has no config.json; name another --out")
        if request.sources or begun:
            return request.out
        if request.resume:
            raise UsageError(f"there is no run in {request.out}; name its text to begin one there")
    elif request.resume:
        raise UsageError(f"--resume needs --out RUN, the run folder to go on with: {_runs_to_go_on_with()}")
    if not request.sources:
        raise UsageError("name a text to learn from: a file, a folder, '-', or a corpus such as tiny-shakespeare")
    first = request.sources[0]
    return free_run_folder(
        "rows" if isinstance(first, Rows) else "stdin" if first == "-" else Path(source_title(first)).stem
    )


def _runs_to_go_on_with() -> str:
    """The runs in `runs/` that are not complete, the last one first, in words."""
    begun = [path.parent for path in Path("runs").glob("*/config.json") if finished_result(path.parent) is None]
    newest = sorted(begun, key=lambda folder: (folder / "config.json").stat().st_mtime, reverse=True)
    if not newest:
        return "there is no unfinished one in runs/"
    more = f", and {len(newest) - _MOST_NAMED} older ones" if len(newest) > _MOST_NAMED else ""
    return f"unfinished here are {', '.join(map(str, newest[:_MOST_NAMED]))}{more}"


_MOST_NAMED = 8


def free_run_folder(name: str) -> Path:
    """The first of `runs/NAME-1`, `runs/NAME-2`, ... that does not exist yet."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".-") or "run"
    return next(p for n in range(1, 1_000_000) if not (p := Path("runs", f"{name}-{n}")).exists())


def finished_result(folder: Path) -> Result | None:
    """The result that the last line of a finished run's log tells."""
    try:
        last = json.loads((folder / "log.jsonl").read_bytes().splitlines()[-1])
        if last["event"] != "end" or not (folder / MODEL_FILE).exists():
            return None
        return Result(folder / MODEL_FILE, json.loads((folder / "config.json").read_bytes()), **last["result"])
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
