"""Files that are whole or absent: everything that textlstm writes at once goes through here; logs are appended to."""

from __future__ import annotations

import os
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
