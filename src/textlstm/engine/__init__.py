"""Engines run a finished model: ids and a state in, logits and a state out, as numpy arrays.

`engine.int8` writes: its weights are bytes, and its numbers the same on every machine. `engine.onnx` (ONNX Runtime)
scores, in single precision. `engine.torch` is the reference and runs on a GPU; the others never import torch. What
they have in common stands here. A row's numbers do not depend on the other rows, nor on how a text is cut into pieces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from textlstm import kernels
from textlstm.config import ENGINES, ModelConfig
from textlstm.errors import UsageError
from textlstm.machine import require_torch
from textlstm.model_file import ModelFile
from textlstm.state import State

_PREFILL = 512  # tokens that are read in one go: the weights are read once for all of them


class Engine(ABC):
    """A model that is ready to run.

    Attributes:
        name: which engine this is.
        config: the network's shape.
    """

    name: str

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    @abstractmethod
    def run(
        self, ids_BT: NDArray[np.int64], state: State, positions_P: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], State]:
        """Reads tokens and gives logits at some of them.

        Args:
            ids_BT: token ids, T at least 1.
            state: the state before them.
            positions_P: places in time, 0 .. T - 1, after which logits are wanted.

        Returns:
            logits_BPV and the state after the last token.
        """

    def zero_state(self, rows: int) -> State:
        """The state before anything was read."""
        return State.zeros(self.config, rows)

    def begin(self, rows: int) -> tuple[NDArray[np.float32], State]:
        """The logits for the first token of a text, shape (B, V), and the state to go on from.

        They follow the document boundary; a model without one begins uniformly.
        """
        state = self.zero_state(rows)
        if self.config.boundary_id is None:
            return np.zeros((rows, self.config.vocab_size), dtype=np.float32), state
        return self.step(np.full(rows, self.config.boundary_id), state)

    def prefill(self, ids_BT: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """Reads a text of any length; returns the logits after its last token, shape (B, V), and the state."""
        for start in range(0, ids_BT.shape[1], _PREFILL):
            part = ids_BT[:, start : start + _PREFILL]
            logits_BPV, state = self.run(part, state, np.array([part.shape[1] - 1]))
        return logits_BPV[:, 0], state

    def step(self, ids_B: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        """Reads one token per row; returns the logits after it, shape (B, V), and the state."""
        logits_BPV, state = self.run(ids_B[:, None], state, np.array([0]))
        return logits_BPV[:, 0], state

    def nll(self, x_BT: NDArray[np.int64], y_BT: NDArray[np.int64], state: State) -> tuple[NDArray[np.float64], State]:
        """Nats of each target, shape (B, T), and the state after the last input."""
        logits_BTV, state = self.run(x_BT, state, np.arange(x_BT.shape[1]))
        peak = logits_BTV.max(axis=2, keepdims=True)
        total = np.exp(logits_BTV - peak).sum(axis=2, dtype=np.float64)
        chosen = np.take_along_axis(logits_BTV, y_BT[:, :, None], axis=2)
        return np.log(total) + (peak - chosen)[:, :, 0], state


def writing_engine() -> str:
    """The name of the engine that writes unless told otherwise: `int8` where its kernel runs, else `onnx`."""
    return "onnx" if kernels.load() is None else "int8"


def load_engine(file: ModelFile, name: str = "onnx", threads: int | None = None) -> Engine:
    """Makes the engine of that name for a model.

    Args:
        file: the model.
        name: `int8`, `onnx` or `torch`.
        threads: cores that one step may use; None leaves it to the engine. `int8` takes one.
    """
    if name == "int8":
        from textlstm.engine.int8 import Int8Engine

        return Int8Engine(file)
    if name == "onnx":
        from textlstm.engine.onnx import OnnxEngine

        return OnnxEngine(file, threads)
    if name == "torch":
        require_torch()
        from textlstm.engine.torch import TorchEngine

        return TorchEngine(file, threads)
    raise UsageError(f"there is no engine {name!r}; known are {', '.join(ENGINES)}")
