"""Token arrays of stored texts: encoded in blocks by some worker processes, into one memory-mapped file of the cache.

TOKENS/NAME/tokens.bin     uint16 or uint32
TOKENS/NAME/progress.json  how many blocks are in it, and how many bytes these are

The name is made of the text, the part and the tokenizer. What a stopped encoding left is cut back to the last note
and gone on with.
"""

from __future__ import annotations

import collections
import hashlib
import json
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.corpus.named import cache_dir
from textlstm.corpus.store import StoredPart
from textlstm.files import write_atomically
from textlstm.tokenizer import Tokenizer, bytes_to_text, from_json

_BLOCK = 1 << 22  # bytes of text that are encoded at once
_NOTE_EVERY = 16  # blocks
_TELL_EVERY_SECONDS = 5.0
_VERSION = 1

_Job = tuple[str, list[tuple[int, int, bool]], int | None, str]


def encode_part(
    part: StoredPart,
    tokenizer: Tokenizer,
    boundary_id: int | None,
    workers: int = 1,
    notice: Callable[[str], None] = lambda line: None,
) -> NDArray[Any]:
    """The ids of a stored part, mapped into memory; the boundary stands before each document that begins in it.

    Args:
        part: the text.
        tokenizer: how it is cut.
        boundary_id: the id before each document, or None.
        workers: processes; one is this one.
        notice: told how far it is, now and then.

    Raises:
        OSError: the cache has no room.
    """
    from filelock import FileLock  # comes with tokenizers

    largest = max(tokenizer.vocab_size - 1, -1 if boundary_id is None else boundary_id)
    dtype = np.dtype(np.uint16 if largest < 1 << 16 else np.uint32)
    parts = [_VERSION, part.store.digest, part.start, part.end, part.continues, tokenizer.fingerprint, boundary_id]
    folder = cache_dir() / "tokens" / hashlib.sha256(json.dumps([*parts, dtype.str]).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokens.bin"
    progress = _progress(folder)
    if not progress["done"]:
        with FileLock(folder / ".lock"):  # another run may be encoding the same text: wait for it
            progress = _progress(folder)
            if not progress["done"]:
                _encode(folder, part, tokenizer, boundary_id, dtype, workers, progress, notice)
    if not path.stat().st_size:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _progress(folder: Path) -> dict[str, Any]:
    try:
        progress: dict[str, Any] = json.loads((folder / "progress.json").read_bytes())
        size = (folder / "tokens.bin").stat().st_size
        if size == progress["size"] if progress["done"] else size >= progress["size"]:
            return progress
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {"done": False, "blocks": 0, "place": 0, "size": 0}


def _encode(
    folder: Path, part: StoredPart, tokenizer: Tokenizer, boundary_id: int | None, dtype: np.dtype[Any], workers: int,
    progress: dict[str, Any], notice: Callable[[str], None],
) -> None:  # fmt: skip
    blocks = list(part.blocks(_BLOCK))
    started, told, first = time.monotonic(), time.monotonic(), progress["blocks"]
    if first:
        notice(f"encoding: going on at {first / len(blocks):.0%}")

    def jobs() -> Iterator[_Job]:
        for start, end in blocks[first:]:
            yield str(part.store.folder / "text.bin"), part.spans(start, end), boundary_id, dtype.str

    with (folder / "tokens.bin").open("ab") as file:
        file.truncate(progress["size"])
        size = progress["size"]
        for done, ids in enumerate(_map(jobs(), tokenizer, workers), start=first + 1):
            size += file.write(ids)
            if done % _NOTE_EVERY == 0 or done == len(blocks):
                file.flush()
                os.fsync(file.fileno())
                note = {"done": done == len(blocks), "blocks": done, "size": size}
                write_atomically(folder / "progress.json", json.dumps(note).encode())
            if time.monotonic() - told > _TELL_EVERY_SECONDS:
                told = time.monotonic()
                rate = (blocks[done - 1][1] - blocks[first][0]) / (told - started)
                notice(f"encoding: {done / len(blocks):.0%}, {rate / 1e6:.0f} MB/s")


def _map(jobs: Iterator[_Job], tokenizer: Tokenizer, workers: int) -> Iterator[bytes]:
    """The encoded blocks in their order; at most two for each worker are under way."""
    if workers == 1:
        for job in jobs:
            yield _encode_block(job, tokenizer)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    with ProcessPoolExecutor(workers, context, _begin_worker, (tokenizer.to_json(),)) as pool:
        waiting: collections.deque[Future[bytes]] = collections.deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(_work, job))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


_of_worker: list[Tokenizer] = []


def _begin_worker(form: Any) -> None:
    """Prepares a worker process; it ends with the process that began it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _of_worker.append(from_json(form))


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(job: _Job) -> bytes:
    return _encode_block(job, _of_worker[0])


def _encode_block(job: _Job, tokenizer: Tokenizer) -> bytes:
    path, spans, boundary_id, dtype = job
    ids: list[NDArray[Any]] = []
    with open(path, "rb") as file:
        file.seek(spans[0][0])
        for start, end, begins in spans:
            if begins and boundary_id is not None:
                ids.append(np.array([boundary_id], dtype=dtype))
            ids.append(tokenizer.encode(bytes_to_text(file.read(end - start))).astype(dtype))
    return np.concatenate(ids).tobytes()
