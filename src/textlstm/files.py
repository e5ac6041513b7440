"""Files that are whole or absent: everything that textlstm writes at once goes through here; logs are appended to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: to a temporary name beside it, flushed to disk, then renamed.

    Args:
        path: where the file shall be; an older file stays until the new one is complete.
        data: the content.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder_atomically(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes a folder of files whole or not at all: under a temporary name beside it, then renamed.

    Args:
        path: where the folder shall be; nothing or an empty folder.
        files: name to content.
    """
    temporary = path.absolute().with_name(f".{path.absolute().name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_atomically(temporary / name, data)
        if path.is_dir():
            path.rmdir()
        os.replace(temporary, path)
        sync_folder(path.absolute().parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Makes what was appended to a file survive a power cut."""
    with path.open("ab") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames within a folder survive a power cut, where the system can (Windows cannot)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
