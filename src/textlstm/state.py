"""The recurrent state as a value.

A state is all that a network remembers of what it has read: for each layer and row an output `h` and a cell `c`,
arrays of shape (L, B, H). Numpy arrays and torch tensors are treated alike, and this module imports neither torch
nor anything that does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textlstm.config import ModelConfig
from textlstm.errors import ModelFileError, UsageError
from textlstm.files import write_atomically


@dataclass(frozen=True)
class State:
    """What a network remembers, for several rows.

    Attributes:
        h_LBH: outputs of each layer at the last step.
        c_LBH: cells of each layer at the last step.
    """

    h_LBH: Any
    c_LBH: Any

    @classmethod
    def zeros(cls, config: ModelConfig, rows: int) -> State:
        """The state before anything was read, as float32 numpy arrays."""
        shape = (config.num_layers, rows, config.hidden_size)
        return cls(np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32))

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return int(self.h_LBH.shape[1])

    def select(self, rows: Sequence[int]) -> State:
        """The state of some rows, in the order given; a row may be taken more than once."""
        index = list(rows)
        return State(self.h_LBH[:, index], self.c_LBH[:, index])

    @staticmethod
    def stack(states: Sequence[State]) -> State:
        """The rows of several states, one after the other."""
        first = states[0].h_LBH
        join = (
            (lambda arrays: np.concatenate(arrays, axis=1))
            if isinstance(first, np.ndarray)
            else (lambda arrays: sys.modules["torch"].cat(arrays, 1))
        )
        return State(join([s.h_LBH for s in states]), join([s.c_LBH for s in states]))

    @staticmethod
    def mix(a: State, b: State, share: float) -> State:
        """A blend of two states of one model.

        Args:
            a, b: the states, of as many rows.
            share: of `b`; 0 is `a`, 1 is `b`.

        Raises:
            UsageError: the shapes differ, or the share is not between 0 and 1.
        """
        if a.h_LBH.shape != b.h_LBH.shape:
            shapes = tuple(a.h_LBH.shape), tuple(b.h_LBH.shape)
            raise UsageError(f"states of the shapes {shapes[0]} and {shapes[1]} cannot be mixed; they need one model")
        if not 0 <= share <= 1:
            raise UsageError(f"the share of the second state must be between 0 and 1, not {share}")
        return State((1 - share) * a.h_LBH + share * b.h_LBH, (1 - share) * a.c_LBH + share * b.c_LBH)

    def save(self, path: str | Path) -> None:
        """Writes the state to a safetensors file, whole or not at all."""
        from safetensors.numpy import save

        data = save({"h": np.ascontiguousarray(self.h_LBH), "c": np.ascontiguousarray(self.c_LBH)})
        write_atomically(Path(path), data)

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Reads a state that `save` wrote.

        Raises:
            ModelFileError: the file is missing, damaged, or holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(Path(path).read_bytes())
            state = cls(arrays["h"], arrays["c"])
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelFileError(f"{path} is not a saved state: {error}") from error
        if set(arrays) != {"h", "c"} or state.h_LBH.ndim != 3 or state.h_LBH.shape != state.c_LBH.shape:
            raise ModelFileError(f"{path} is not a saved state: it must hold h and c of one shape (L, B, H)")
        return state
