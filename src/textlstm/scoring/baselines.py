"""What other means make of the same bytes. All of them learn as they read, so they belong beside `adaptive` scores."""

from __future__ import annotations

import lzma
import math

#: Bytes above which the n-gram model, which is plain Python, is left out.
MOST_FOR_NGRAM = 4_000_000
_ORDER = 4
_PPMD_ORDER, _PPMD_MEMORY = 6, 64 << 20


def baselines(data: bytes, context: bytes = b"") -> dict[str, float]:
    """Bits that a text costs after a context, by name of the method; PPMd only where pyppmd is installed."""
    found = {"xz -9e": 8.0 * (_xz(context + data) - (_xz(context) if context else 0))}
    try:
        import pyppmd
    except ImportError:
        pass
    else:

        def size(text: bytes) -> int:
            coder = pyppmd.Ppmd7Encoder(_PPMD_ORDER, _PPMD_MEMORY)
            return len(coder.encode(text)) + len(coder.flush())

        found[f"PPMd order {_PPMD_ORDER}"] = 8.0 * (size(context + data) - (size(context) if context else 0))
    if len(context) + len(data) <= MOST_FOR_NGRAM:
        found[f"n-gram of {_ORDER + 1} bytes"] = ngram_bits(data, context)
    return found


def _xz(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def ngram_bits(data: bytes, context: bytes = b"", order: int = _ORDER) -> float:
    """Bits of a text under an n-gram model of bytes that learns each byte after it was predicted.

    p_k(b) = (count(b) + u p_{k-1}(b)) / (n + u), where n bytes, u of them different, have followed the last k bytes,
    and p_{-1} is uniform (Witten & Bell 1991, method C, interpolated).

    Args:
        data: the text.
        context: is read first and costs nothing.
        order: bytes that a prediction looks back; before the text stand zeros.
    """
    counts: list[dict[int, int]] = [{} for _ in range(order + 1)]
    totals: list[dict[int, tuple[int, int]]] = [{} for _ in range(order + 1)]
    masks = [(1 << 8 * k) - 1 for k in range(order + 1)]
    orders = list(zip(counts, totals, masks, strict=True))
    last, nats, start = 0, 0.0, len(context)
    for place, byte in enumerate(context + data):
        p = 1 / 256
        for count, total, mask in orders:
            history = last & mask
            key = history << 8 | byte
            seen = count.get(key, 0)
            n, u = total.get(history, (0, 0))
            if n:
                p = (seen + u * p) / (n + u)
            count[key] = seen + 1
            total[history] = (n + 1, u + (seen == 0))
        if place >= start:
            nats -= math.log(p)
        last = (last << 8 | byte) & masks[-1]
    return nats / math.log(2)
