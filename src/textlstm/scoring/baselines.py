"""What other means make of the same bytes.

Compressors learn as they read, so they belong beside `adaptive` scores (`baselines`); what was counted on a training
text and stands still belongs beside the model with fixed weights (`fixed_baselines`).
"""

from __future__ import annotations

import lzma
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

#: Bytes above which what is slow or takes much memory, the n-gram model and zpaq, is left out.
MOST_FOR_SLOW = 1 << 24
_ORDER = 4
_PPMD_ORDER, _PPMD_MEMORY = 6, 64 << 20
Counts = NDArray[np.int64]
Keys = NDArray[np.uint64]


def baselines(data: bytes, context: bytes = b"") -> dict[str, float]:
    """Bits that a text costs after a context, by name of a method that learns; PPMd and zpaq where they are installed.

    What a compressor makes of the text is by how much longer it makes the context.
    """
    found = {}
    for name, size in _compressors(len(context) + len(data)).items():
        found[name] = 8.0 * (size(context + data) - (size(context) if context else 0))
    if len(context) + len(data) <= MOST_FOR_SLOW:
        found[f"n-gram of {_ORDER + 1} bytes"] = ngram_bits(data, context)
    return found


def fixed_baselines(data: bytes, training: bytes) -> dict[str, float]:
    """Bits that a text costs by means that learn from a training text alone; guessing evenly needs not even that."""
    found = {"even guess among 256 bytes": 8.0 * len(data)}
    if training and len(training) + len(data) <= MOST_FOR_SLOW:
        found["frequency of bytes"] = ngram_bits(data, training, order=0, learn=False)
        found[f"n-gram of {_ORDER + 1} bytes"] = ngram_bits(data, training, learn=False)
    return found


def _compressors(size: int) -> dict[str, Callable[[bytes], int]]:
    """What is at hand for a text of so many bytes: name to the length that it makes of one."""
    found: dict[str, Callable[[bytes], int]] = {
        "xz -9e": lambda text: len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    }
    try:
        import pyppmd
    except ImportError:
        pass
    else:

        def ppmd(text: bytes) -> int:
            coder = pyppmd.Ppmd7Encoder(_PPMD_ORDER, _PPMD_MEMORY)
            return len(coder.encode(text)) + len(coder.flush())

        found[f"PPMd order {_PPMD_ORDER}"] = ppmd
    try:
        import zpaq
    except ImportError:
        pass
    else:
        if size <= MOST_FOR_SLOW:
            found["zpaq -m5"] = lambda text: len(zpaq.compress(text, level=5, threads=1, hints=False))
    return found


def ngram_bits(data: bytes, context: bytes = b"", order: int = _ORDER, learn: bool = True) -> float:
    """Bits of a text under an n-gram model of bytes.

    p_k(b) = (count(b) + u p_{k-1}(b)) / (n + u), where n bytes, u of them different, have followed the last k bytes,
    and p_{-1} is uniform (Witten & Bell 1991, method C, interpolated).

    Args:
        data: the text.
        context: is read first and costs nothing.
        order: bytes that a prediction looks back; before everything stand zeros.
        learn: whether each byte of the text is counted after it was predicted; else only the context is counted.
    """
    text = np.frombuffer(bytes(order) + context + data, dtype=np.uint8).astype(np.uint64)
    size, start = len(context) + len(data), len(context)
    count = _learning if learn else _fixed
    history_T = np.zeros(size, dtype=np.uint64)
    p_D = np.full(size - start, 1 / 256)
    for k in range(order + 1):
        if k:
            history_T |= text[order - k : order - k + size] << np.uint64(8 * (k - 1))
        seen_D, n_D, u_D = count(history_T, history_T << np.uint64(8) | text[order:], start)
        known_D = n_D > 0
        p_D[known_D] = (seen_D + u_D * p_D)[known_D] / (n_D + u_D)[known_D]
    return float(-np.log2(p_D).sum())


def _learning(history_T: Keys, key_T: Keys, start: int) -> tuple[Counts, Counts, Counts]:
    """For each byte from `start`: how often it, any byte, and another byte for the first time, came before it."""
    seen_T, _ = _earlier(key_T, np.ones(len(key_T), dtype=np.int64))
    n_T, u_T = _earlier(history_T, (seen_T == 0).astype(np.int64))
    return seen_T[start:], n_T[start:], u_T[start:]


def _earlier(key_T: Keys, weight_T: Counts) -> tuple[Counts, Counts]:
    """For each place the number of earlier places with the same key, and the sum of their weights."""
    places_T = np.argsort(key_T, kind="stable")
    sorted_T, size = key_T[places_T], len(key_T)
    begins_T = np.ones(size, dtype=bool)
    begins_T[1:] = sorted_T[1:] != sorted_T[:-1]
    first_T = np.maximum.accumulate(np.where(begins_T, np.arange(size), 0))
    below_T = np.cumsum(weight_T[places_T]) - weight_T[places_T]
    number_T, sum_T = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    number_T[places_T] = np.arange(size) - first_T
    sum_T[places_T] = below_T - below_T[first_T]
    return number_T, sum_T


def _fixed(history_T: Keys, key_T: Keys, start: int) -> tuple[Counts, Counts, Counts]:
    """The same counts, with nothing counted after `start`."""
    keys, seen = np.unique(key_T[:start], return_counts=True)
    histories, n = np.unique(history_T[:start], return_counts=True)
    u = np.unique(keys >> np.uint64(8), return_counts=True)[1]
    return (
        _look_up(keys, seen, key_T[start:]), _look_up(histories, n, history_T[start:]),
        _look_up(histories, u, history_T[start:]),
    )  # fmt: skip


def _look_up(keys: Keys, values: Counts, wanted_D: Keys) -> Counts:
    """The value of each wanted key, 0 where it is none."""
    if not len(keys):
        return np.zeros(len(wanted_D), dtype=np.int64)
    place_D = np.minimum(np.searchsorted(keys, wanted_D), len(keys) - 1)
    return np.where(keys[place_D] == wanted_D, values[place_D], 0)
