"""Compiled arithmetic for processors and systems that have it: `linux-x86_64.so`, built from C by `build.sh`.

The library ships built, so that installing needs no compiler, and it is optional: where it does not fit, `load` gives
None and the caller takes its own slower way, which gives the same bits. `engine.int8` and `sampling` say what the
numbers mean; `exponential` stands here because both need it.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import struct
from ctypes import POINTER, Structure, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Names of the instruction sets, best first, and the flags of a processor that has them.
KINDS = {
    "amx": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "amx_tile", "amx_int8"},
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


class Recurrence(Structure):
    """`struct recurrence` of lstm.c."""

    _fields_ = [
        *((name, c_void_p) for name in ("number", "count")),
        *((name, c_int64) for name in ("steps", "rows", "hidden", "arrived")),
        *((name, c_void_p) for name in ("weight", "packed", "gates", "h", "c", "grads", "grad_c", "grad_gates")),
    ]


class Rows(Structure):
    """`struct rows` of softmax.c."""

    _fields_ = [
        *((name, c_void_p) for name in ("number", "count")),
        *((name, c_int64) for name in ("rows", "ids")),
        *((name, c_void_p) for name in ("bias", "logits", "peak", "sum")),
    ]


#: `struct row` of sampling.c, the number that is drawn with and the rest.
MARK, SETTINGS = struct.Struct("d"), struct.Struct("7d4q")


def exponential(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """e^x in single precision, from -87 to 88: 2^n times the Taylor polynomial of degree 7; exact to 2e-7."""
    one = np.float32(1)
    x = np.minimum(np.float32(88), np.maximum(np.float32(-87), x))
    n = np.rint(x * np.float32(1.44269504))
    r = x - n * np.float32(0.693145752) - n * np.float32(1.42860677e-6)
    p = np.full_like(r, one / np.float32(5040))
    for divisor in (720, 120, 24, 6, 2, 1, 1):
        p = p * r + one / np.float32(divisor)
    result: NDArray[np.float32] = p * ((n.astype(np.int32) + 127) << 23).view(np.float32)
    return result


def address(array: NDArray[Any]) -> int:
    """Where an array's numbers begin."""
    begin: int = array.__array_interface__["data"][0]
    return begin


def _function(function: Any, *counts: int) -> Any:
    """Declares the arguments of a function: so many integers, so many pointers, and so on in turn."""
    if function is None:
        return None
    kinds = itertools.cycle((c_int64, c_void_p))
    function.argtypes = [kind for kind, count in zip(kinds, counts, strict=False) for _ in range(count)]
    function.restype = None
    return function


class Kernel:
    """The functions of one instruction set.

    Args:
        library: the library.
        kind: a key of `KINDS`.
    """

    def __init__(self, library: ctypes.CDLL, kind: str) -> None:
        self.kind = kind
        self.pack = _function(getattr(library, f"pack_{kind}"), 5, 3)
        self.run = _function(getattr(library, f"run_{kind}"), 0, 2)
        self.run.restype = c_int64
        kind = "avx512" if kind == "amx" else kind  # tiles multiply bytes; all else is the same
        self.draw = _function(getattr(library, f"draw_{kind}"), 2, 3)
        self.draw.restype = c_int64
        self.exponentials = _function(getattr(library, f"exponentials_{kind}"), 0, 1)
        self.lstm_forward = _function(getattr(library, f"lstm_forward_{kind}", None), 0, 1)
        self.lstm_backward = _function(getattr(library, f"lstm_backward_{kind}", None), 0, 1)


def run_side_by_side(function: Any, job: Recurrence | Rows, threads: int) -> None:
    """Runs a function that shares its work on the threads of the OpenMP library that is loaded, or on one."""
    openmp = _openmp()
    if openmp is None or threads == 1:
        function(ctypes.byref(job))
        return
    library, job.number, job.count = openmp
    library.GOMP_parallel(function, ctypes.byref(job), threads, 0)


@cache
def _openmp() -> tuple[ctypes.CDLL, int | None, int | None] | None:
    """GNU's OpenMP if this process has loaded it, as torch does, and the addresses of two of its functions."""
    try:
        paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
        library = ctypes.CDLL(paths.pop())
        number, count = (
            ctypes.cast(getattr(library, name), c_void_p).value
            for name in ("omp_get_thread_num", "omp_get_num_threads")
        )
    except (OSError, KeyError, AttributeError):
        return None
    if paths:  # two of them: the threads of one would wait for those of the other
        return None
    library.GOMP_parallel.argtypes = [c_void_p, c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library, number, count


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
    return tuple(kind for kind, needed in KINDS.items() if needed <= flags and (kind != "amx" or _tiles_are_given()))


def _tiles_are_given() -> bool:
    """Asks the system for the registers of AMX, which it gives to a process that asks."""
    try:
        ask = ctypes.CDLL(str(_LIBRARY)).ask_amx
    except OSError:
        return False
    ask.restype = c_int64
    return bool(ask() == 0)


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
