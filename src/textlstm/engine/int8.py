"""The int8 engine: weights of one byte, exact integer sums, and the same numbers on every machine.

A matrix W (R, K) is stored as whole numbers Q from -127 to 127 and one scale for each row: W = s_R Q. What it
multiplies is rounded in the same way, row by row of a batch, so that no row depends on its company:

    a = max |x| / 127,   q = round(x / a),   W x + b = (Q q) (a s) + b

`Q q` is a sum of integers and exact. All else is single precision in a fixed order, with an exponential of our own
made of additions and multiplications, so `reference` (numpy, slow and obvious) and the compiled kernel give the same
bits, whatever the processor, the batch, or the cut of a text into pieces.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm import kernels
from textlstm.config import ModelConfig
from textlstm.engine import Engine
from textlstm.kernels import address, exponential
from textlstm.model_file import ModelFile, quantise
from textlstm.state import State

Floats = NDArray[np.float32]

_TABLE = 1 << 24  # numbers of the first layer's products that are kept, at most: 64 MB
_ROWS = 1024  # rows that the kernel takes at once
_TOKENS = 4096  # tokens at once, so that the scratch memory stays small


@dataclass(frozen=True)
class Matrix:
    """A linear layer.

    Attributes:
        weights_RK: whole numbers, int8.
        scale_R: what a row is multiplied by.
        bias_R: what is added.
    """

    weights_RK: NDArray[np.int8]
    scale_R: Floats
    bias_R: Floats


@dataclass(frozen=True)
class Quantised:
    """A network in int8.

    Attributes:
        config: its shape.
        input: what the first layer reads for each token, int8 (V, I), with scales (V); the linear layer after the
            embedding, where there is one, is folded in.
        layers: input and recurrent matrix of each layer; the bias is the input's.
        projection: the linear layer before a tied output, or None.
        head: the output layer, the logit scale folded in.
    """

    config: ModelConfig
    input: tuple[NDArray[np.int8], Floats]
    layers: tuple[tuple[Matrix, Matrix], ...]
    projection: Matrix | None
    head: Matrix


def quantise_network(config: ModelConfig, weights: Mapping[str, Floats]) -> Quantised:
    """Rounds the weights of a network.

    Args:
        config: its shape.
        weights: its tensors.
    """

    def matrix(name: str, bias_R: Floats | None = None) -> Matrix:
        Q_RK, scale_R = quantise(weights[name])
        return Matrix(Q_RK, scale_R, np.zeros(len(Q_RK), np.float32) if bias_R is None else bias_R)

    embedding = weights["embedding.weight"]
    if config.input_projection:
        embedding = embedding @ weights["input.weight"].T
        embedding += weights["input.bias"]
    layers = tuple(
        (matrix(f"lstm.{n}.weight_ih", weights[f"lstm.{n}.bias"]), matrix(f"lstm.{n}.weight_hh"))
        for n in range(config.num_layers)
    )
    logit_scale = np.float32(config.logit_scale)
    head = matrix("embedding.weight" if config.tie_embeddings else "head.weight", weights["head.bias"] * logit_scale)
    return Quantised(
        config,
        quantise(embedding),
        layers,
        matrix("projection.weight") if config.has_output_projection else None,
        Matrix(head.weights_RK, head.scale_R * logit_scale, head.bias_R),
    )


# --- the arithmetic, slow and obvious -------------------------------------------------------------------------------


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^-x)."""
    return np.float32(1) / (np.float32(1) + exponential(-x))


def hyperbolic(x: Floats) -> Floats:
    """The hyperbolic tangent, 1 - 2 / (1 + e^2x)."""
    return np.float32(1) - np.float32(2) / (np.float32(1) + exponential(x + x))


def round_rows(x_NK: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Whole numbers for each row, and the scales a (N)."""
    peak_N = np.abs(x_NK).max(axis=1)
    factor_N = np.divide(np.float32(127), peak_N, out=np.zeros_like(peak_N), where=peak_N > 0)
    return np.rint(x_NK * factor_N[:, None]).astype(np.int8), peak_N / np.float32(127)


def multiply(matrix: Matrix, q_NK: NDArray[np.int8], scale_N: Floats) -> Floats:
    """W x of rounded rows, shape (N, R), without the bias; sums below 2^53 are exact in double precision."""
    sums_NR = (q_NK.astype(np.float64) @ matrix.weights_RK.T.astype(np.float64)).astype(np.float32)
    return sums_NR * (matrix.scale_R * scale_N[:, None])


def reference(
    network: Quantised, ids_BT: NDArray[np.int64], state: State, positions_P: NDArray[np.int64]
) -> tuple[Floats, State]:
    """What the kernel computes; arguments and results as of `Engine.run`."""
    (B, T), H = ids_BT.shape, network.config.hidden_size
    table_VI, scale_V = network.input
    q_TBI, scale_TB = table_VI[ids_BT.T], scale_V[ids_BT.T]
    h_L, c_L = [], []
    for number, (input, recurrent) in enumerate(network.layers):
        products_TBG = np.stack(
            [multiply(input, q, scale) + input.bias_R for q, scale in zip(q_TBI, scale_TB, strict=True)]
        )
        h_BH, c_BH = state.h_LBH[number], state.c_LBH[number]
        outputs_TBH = np.empty((T, B, H), np.float32)
        for t in range(T):
            i, f, g, o = np.split(products_TBG[t] + multiply(recurrent, *round_rows(h_BH)), 4, axis=1)
            c_BH = sigmoid(f) * c_BH + sigmoid(i) * hyperbolic(g)
            outputs_TBH[t] = h_BH = sigmoid(o) * hyperbolic(c_BH)
        h_L.append(h_BH)
        c_L.append(c_BH)
        rounded = [round_rows(outputs_BH) for outputs_BH in outputs_TBH]
        q_TBI, scale_TB = np.stack([q for q, _ in rounded]), np.stack([scale for _, scale in rounded])
    q_NK = q_TBI[positions_P].transpose(1, 0, 2).reshape(-1, H)
    scale_N = scale_TB[positions_P].T.reshape(-1)
    if network.projection is not None:
        q_NK, scale_N = round_rows(multiply(network.projection, q_NK, scale_N))
    logits_NV = multiply(network.head, q_NK, scale_N) + network.head.bias_R
    return logits_NV.reshape(B, len(positions_P), -1), State(np.stack(h_L), np.stack(c_L))


# --- the engine -----------------------------------------------------------------------------------------------------


class Int8Engine(Engine):
    """Runs a model in int8.

    Args:
        file: the model.
        kind: instruction set of the kernel, a key of `kernels.KINDS`; None takes the best, "numpy" the reference.
    """

    name = "int8"

    def __init__(self, file: ModelFile, kind: str | None = None) -> None:
        super().__init__(file.config)
        self.network = quantise_network(file.config, file.weights)
        kernel = None if kind == "numpy" else kernels.load(kind)
        self.kind = "numpy" if kernel is None else kernel.kind
        self._packed = None if kernel is None else _Packed(kernel, self.network)

    def run(self, ids_BT: NDArray[np.int64], state: State, positions_P: NDArray[np.int64]) -> tuple[Floats, State]:
        if self._packed is None:
            return reference(self.network, ids_BT, state, positions_P)
        (B, T), V = ids_BT.shape, self.config.vocab_size
        steps = max(1, _TOKENS // min(B, _ROWS))
        if B <= _ROWS and steps >= T:
            return self._packed.run(ids_BT, state, positions_P)
        logits_BPV = np.empty((B, len(positions_P), V), np.float32)
        states = []
        for first in range(0, B, _ROWS):
            rows = range(first, min(first + _ROWS, B))
            part = state.select(rows)
            for start in range(0, T, steps):
                chosen_P = (positions_P >= start) & (positions_P < start + steps)
                logits, part = self._packed.run(
                    ids_BT[rows, start : start + steps], part, positions_P[chosen_P] - start
                )
                logits_BPV[rows.start : rows.stop, chosen_P] = logits
            states.append(part)
        return logits_BPV, State.stack(states)


class _Packed:
    """The network in the order in which the kernel reads it, and the scratch memory of its jobs."""

    def __init__(self, kernel: kernels.Kernel, network: Quantised) -> None:
        config = network.config
        self.config, self._run = config, kernel.run
        self._kept: list[Any] = []  # what the structures point to
        H, embedding = config.hidden_size, [self._keep(array) for array in network.input]
        layers = (kernels.Layer * config.num_layers)(
            *(
                kernels.Layer(self._pack(kernel, input, H), self._pack(kernel, recurrent, H))
                for input, recurrent in network.layers
            )
        )
        projection = None if network.projection is None else self._pack(kernel, network.projection)
        head = self._pack(kernel, network.head)
        width = layers[0].input.panels * 64
        table = config.vocab_size * width <= _TABLE
        tables = (
            [self._keep(np.empty((config.vocab_size, width), np.float32)),
             self._keep(np.zeros(config.vocab_size, np.uint8))] if table else [None, None]
        )  # fmt: skip
        self._width = width
        self._longest = -(-max(network.input[0].shape[1], H, config.embed_size) // 64) * 64
        network_c = kernels.Network(
            config.vocab_size, network.input[0].shape[1], H, config.num_layers, *embedding, layers,
            None if projection is None else ctypes.pointer(projection), ctypes.pointer(head), *tables,
        )  # fmt: skip
        self._network, self._job = ctypes.pointer(network_c), kernels.Job()
        self._scratch: dict[str, NDArray[Any]] = {}
        self._sizes: tuple[int, ...] = ()
        self._lock = threading.Lock()

    def _keep(self, array: NDArray[Any]) -> int:
        array = np.ascontiguousarray(array)
        self._kept.append(array)
        return address(array)

    def _pack(self, kernel: kernels.Kernel, matrix: Matrix, hidden: int | None = None) -> kernels.Matrix:
        """A matrix in panels of 64 outputs; those of an LSTM layer are 16 units with their four gates."""
        R, K = matrix.weights_RK.shape
        units, stride, group = (R, 64, 16) if hidden is None else (hidden, 16, hidden)
        panels = -(-units // stride)
        weights = np.empty(panels * 64 * (-(-K // 8) * 8) + 64, np.int8)
        weights = weights[-address(weights) % 64 :]  # a register's load that crosses no cache line is twice as fast
        offset = np.empty(panels * 64, np.int32)
        q_RK = np.ascontiguousarray(matrix.weights_RK)
        kernel.pack(K, panels, stride, group, units, address(q_RK), address(weights), address(offset))

        def spread(array_R: Floats) -> int:
            gates = array_R[None] if hidden is None else array_R.reshape(4, hidden)
            filled = np.zeros((len(gates), panels * stride), np.float32)
            filled[:, :units] = gates
            order = filled.reshape(len(gates), panels, stride).transpose(1, 0, 2)
            return self._keep(order.reshape(-1))

        pointers = self._keep(weights), spread(matrix.scale_R), spread(matrix.bias_R), self._keep(offset)
        return kernels.Matrix(R, K, panels, *pointers)

    def run(self, ids_BT: NDArray[np.int64], state: State, positions_P: NDArray[np.int64]) -> tuple[Floats, State]:
        (B, T), P, V = ids_BT.shape, len(positions_P), self.config.vocab_size
        before = [np.ascontiguousarray(array, np.float32) for array in (state.h_LBH, state.c_LBH)]
        shape = (self.config.num_layers, B, self.config.hidden_size)
        if any(array.shape != shape for array in before):  # compiled code would read what lies beside them
            raise ValueError(f"a state of shape {before[0].shape} where {shape} is needed")
        after = [np.empty_like(array) for array in before]
        logits_BPV = np.empty((B, P, V), np.float32)
        ids_BT = np.ascontiguousarray(ids_BT, np.int64)
        positions_P = np.ascontiguousarray(positions_P, np.int64)
        with self._lock:
            job = self._job
            if self._sizes != (B, T, P):
                self._resize(job, B, T, P)
            job.ids, job.positions = address(ids_BT), address(positions_P)
            job.h_before, job.c_before = map(address, before)
            job.h_after, job.c_after = map(address, after)
            job.logits = address(logits_BPV)
            wrong = self._run(self._network, ctypes.pointer(job))
        if wrong:
            raise IndexError(f"ids must be between 0 and {V - 1}, and positions between 0 and {T - 1}")
        return logits_BPV, State(*after)

    def _resize(self, job: kernels.Job, B: int, T: int, P: int) -> None:
        N, H, E, K = B * T, self.config.hidden_size, self.config.embed_size, self._longest
        most = max(N, B * P)
        sizes = {
            "gates": (N * self._width, np.float32), "outputs": (2 * N * H, np.float32),
            "projected": (B * P * E, np.float32), "bytes": ((most + B) * K, np.int8),
            "scales": (most + B, np.float32),
        }  # fmt: skip
        for name, (size, dtype) in sizes.items():
            if name not in self._scratch or self._scratch[name].size < size:
                self._scratch[name] = np.zeros(size, dtype)
            setattr(job, name, address(self._scratch[name]))
        job.rows, job.steps, job.wanted, job.longest = B, T, P, K
        self._sizes = (B, T, P)
