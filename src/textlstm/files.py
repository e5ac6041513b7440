"""Files that are whole or absent: everything that textlstm writes at once goes through here; logs are appended to."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Faults that a network drive or a tired disk may get over.
_PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EBUSY}
PAUSES_SECONDS = (0.1, 0.5, 2.0)


def insist(write: Callable[[], object]) -> None:
    """Writes something, and up to three times again where the fault may pass.

    Args:
        write: what to do; done again from its beginning.

    Raises:
        OSError: the fault did not pass, or is of the kind that stays (a full disk, say).
    """
    for pause in PAUSES_SECONDS:
        try:
            write()
            return
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            time.sleep(pause)
    write()


def append_whole(path: Path, text: str) -> None:
    """Appends to a file; a piece that the disk does not take whole is taken back.

    Args:
        path: the file; made if need be.
        text: what to append; escaped bytes are restored (PEP 383).
    """
    data = text.encode("utf-8", "surrogateescape")
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


@contextmanager
def writing_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file that is written piece by piece, and whole or not at all: it takes its name when all went well.

    It is written under a temporary name beside it, flushed to disk, then renamed.

    Args:
        path: where the file shall be; an older file stays until the new one is complete.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, as `writing_atomically`.

    Args:
        path: where the file shall be.
        data: the content.
    """
    with writing_atomically(path) as file:
        file.write(data)


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
