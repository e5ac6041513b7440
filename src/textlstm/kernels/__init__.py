"""Compiled arithmetic, for processors and systems that have it: `linux-x86_64.so`, built from `int8.c` by `build.sh`.

The library ships built, so that installing needs no compiler, and it is optional: where it does not fit, `load` gives
None and the caller takes its own slower way. Nothing here knows what the numbers mean; `engine.int8` does.
"""

from __future__ import annotations

import ctypes
import platform
from ctypes import POINTER, Structure, c_int64, c_void_p
from functools import cache
from pathlib import Path

#: Names of the instruction sets, best first, and the flags of a processor that has them.
KINDS = {
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    "avxvnni": {"avx2", "fma", "bmi2", "avx_vnni"},
    "avx2": {"avx2", "fma", "bmi2"},
}


class Matrix(Structure):
    """`struct matrix` of int8.c."""

    _fields_ = [
        *((name, c_int64) for name in ("outputs", "inputs", "panels")),
        *((name, c_void_p) for name in ("weights", "scale", "bias", "offset")),
    ]


class Layer(Structure):
    """`struct layer` of int8.c."""

    _fields_ = [("input", Matrix), ("recurrent", Matrix)]


class Network(Structure):
    """`struct model` of int8.c."""

    _fields_ = [
        *((name, c_int64) for name in ("vocab", "embed", "hidden", "layers")),
        *((name, c_void_p) for name in ("embedding", "embedding_scale")),
        ("layer", POINTER(Layer)),
        ("projection", POINTER(Matrix)),
        ("head", POINTER(Matrix)),
        *((name, c_void_p) for name in ("table", "known")),
    ]


class Job(Structure):
    """`struct job` of int8.c."""

    _fields_ = [
        *((name, c_int64) for name in ("rows", "steps", "wanted")),
        *((name, c_void_p) for name in ("ids", "positions", "h_before", "c_before", "h_after", "c_after", "logits")),
        *((name, c_void_p) for name in ("gates", "outputs", "projected", "bytes", "scales")),
        ("longest", c_int64),
    ]


class Kernel:
    """The functions of one instruction set.

    Args:
        library: the library.
        kind: a key of `KINDS`.
    """

    def __init__(self, library: ctypes.CDLL, kind: str) -> None:
        self.kind = kind
        self.pack, self.run = (getattr(library, f"{name}_{kind}") for name in ("pack", "run"))
        self.pack.argtypes = [c_int64] * 5 + [c_void_p] * 3
        self.run.argtypes = [POINTER(Network), POINTER(Job)]
        self.pack.restype = self.run.restype = None


@cache
def kinds() -> tuple[str, ...]:
    """The instruction sets that this processor and this system have, best first."""
    if platform.system() != "Linux" or platform.machine() != "x86_64" or not _LIBRARY.exists():
        return ()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    return tuple(kind for kind, needed in KINDS.items() if needed <= flags)


@cache
def load(kind: str | None = None) -> Kernel | None:
    """The functions of an instruction set, None being the best; None where there are none.

    Args:
        kind: a key of `KINDS`.
    """
    kind = next(iter(kinds()), None) if kind is None else kind
    if kind not in kinds():
        return None
    try:
        return Kernel(ctypes.CDLL(str(_LIBRARY)), kind)
    except OSError:  # a system whose loader refuses it
        return None


_LIBRARY = Path(__file__).with_name("linux-x86_64.so")
