"""An engine that learns from what it reads."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from textlstm import __version__
from textlstm.config import LearnConfig
from textlstm.engine import Engine
from textlstm.errors import CodingError, ConfigError, UsageError
from textlstm.learning.dynamic import DynamicEvaluation, Reading
from textlstm.model_file import ModelFile
from textlstm.state import State

_DIGEST = 4


class Memory(Protocol):
    """What improves the predictions of a network token by token, and learns after each.

    Attributes:
        origin: tells what it had read at the beginning.
    """

    origin: bytes

    def predict(self, logprobs_V: NDArray[np.float64], hidden_H: NDArray[np.float32] | None) -> NDArray[np.float64]:
        """Natural logarithms of the probabilities of the next token, given the network's own."""

    def update(self, token: int) -> None:
        """Takes the token that came."""

    def past(self, token: int | None) -> Memory:
        """One that stands after a token that it does not learn from; None is where this one stands."""

    def copy(self) -> Memory:
        """One that goes on by itself."""


class LearningEngine(Engine):
    """Reads one text after the other, and learns from each segment once the token after it has come.

    What it knows grows with all that it reads, in that order; a new engine knows nothing. A call goes on from the one
    before if it is given the state that this one returned; any other state begins a new text. Cut into other pieces, a
    text gives the same numbers but for rounding, and the same bits if the pieces are the same.

    Args:
        file: the model; it is not changed.
        config: how it learns.
        memory: what else predicts.

    Attributes:
        memory: the same, with what it has read.
    """

    name = "learning"

    def __init__(self, file: ModelFile, config: LearnConfig, memory: Memory | None = None) -> None:
        super().__init__(file.config)
        self._file, self._settings, self.memory = file, config, memory
        self._dynamic = DynamicEvaluation(file, config)
        self._returned: State | None = None
        self._state = self._before = self._dynamic.zero_state()  # now, and before the segment that is being read
        self._segment: list[int] = []
        self._reading: Reading | None = None  # of the whole segment, where it was read at once
        self._predicted = False

    @property
    def source(self) -> str:
        """Where the statistics of gradients come from: `model` or `online`."""
        return "model" if self._file.statistics else "online"

    @property
    def settings(self) -> bytes:
        """What its numbers depend on besides the model: four bytes of a hash, and the settings that are not usual."""
        digest = hashlib.sha256(json.dumps([__version__, torch.__version__, self._settings.to_dict()]).encode())
        for name in sorted(self._file.statistics):
            digest.update(name.encode() + self._file.statistics[name].tobytes())
        digest.update(b"" if self.memory is None else self.memory.origin)
        usual = LearnConfig().to_dict()
        unusual = {name: value for name, value in self._settings.to_dict().items() if value != usual[name]}
        return digest.digest()[:_DIGEST] + (json.dumps(unusual).encode() if unusual else b"")

    def run(
        self, ids_BT: NDArray[np.int64], state: State, positions_P: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], State]:
        """Reads and learns; arguments and result as of any engine, but for one row only."""
        if len(ids_BT) != 1:
            raise UsageError("learning goes along one text: it has one lane")
        if state is not self._returned:
            self._begin(state)
        ids_T, logits = ids_BT[0], []
        place = 0
        while place < len(ids_T):
            if len(self._segment) == self._settings.learn_segment:
                self._learn(int(ids_T[place]))
            part = ids_T[place : place + self._settings.learn_segment - len(self._segment)]
            logits.append(self._read(part))
            place += len(part)
        self._returned = _arrays(self._state)
        return np.concatenate(logits)[positions_P][None], self._returned

    def look(self, ids_T: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], NDArray[np.float32], State]:
        """Reads some tokens and learns nothing, as if it had not been asked.

        Returns:
            The network's own logits after each, shape (T, V); its outputs, shape (T, H); the state.
        """
        reading = self._dynamic.read(ids_T, _tensors(state), to_learn=False)
        return reading.logits_TV.numpy(), reading.hidden_TH.numpy(), _arrays(reading.state)

    def copy(self, memory: Memory | None) -> Self:
        """One that learns by itself, with its own copy of a memory; between two texts, after `finish`."""
        other = copy.copy(self)
        other._dynamic, other.memory = self._dynamic.copy(), None if memory is None else memory.copy()
        other._segment = list(self._segment)
        return other

    def go_on(self, state: State, predicted: bool) -> None:
        """Takes a state for its own, from which the next call goes on.

        Args:
            state: the state.
            predicted: whether the memory has predicted what comes next.
        """
        self._begin(state)
        self._returned, self._predicted = state, predicted

    def finish(self) -> None:
        """Learns from what was read since the last step."""
        self._reading, self._returned = None, None
        if len(self._segment) > 1:
            self._learn(self._segment.pop())
        self._segment = []

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the weights as they are now."""
        return self._dynamic.weights()

    def _begin(self, state: State) -> None:
        self.finish()
        self._state = _tensors(state)
        self._predicted = False

    def _read(self, part: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits after each token of a part that does not reach over the end of the segment."""
        if not self._segment:
            self._before = self._state
        whole = len(part) == self._settings.learn_segment
        reading = self._dynamic.read(part, self._state, to_learn=whole)
        self._reading = reading if whole else None
        self._segment += part.tolist()
        self._state = reading.state
        logits_TV: NDArray[np.float32] = reading.logits_TV.detach().numpy()
        return logits_TV if self.memory is None else self._mixed(self.memory, part, logits_TV, reading)

    def _mixed(
        self, memory: Memory, part: NDArray[np.int64], logits_TV: NDArray[np.float32], reading: Reading
    ) -> NDArray[np.float32]:
        """The memory's predictions in place of the network's own."""
        mixed_TV = np.empty_like(logits_TV)
        hidden_TH = reading.hidden_TH.numpy()
        for t, id in enumerate(part.tolist()):
            if self._predicted:
                memory.update(id)
            mixed_TV[t] = memory.predict(logprobs(logits_TV[t]), hidden_TH[t])
            self._predicted = True
        return mixed_TV

    def _learn(self, last: int) -> None:
        """Learns from the segment that was read, whose last token is followed by another."""
        reading = self._reading
        if reading is None:
            ids = np.array(self._segment, dtype=np.int64)
            reading = self._dynamic.read(ids, self._before, to_learn=True)
        self._dynamic.learn(reading.logits_TV, np.array([*self._segment[1:], last], dtype=np.int64))
        self._segment, self._reading = [], None


def read_settings(settings: bytes) -> LearnConfig:
    """How an engine learnt, from its `settings`.

    Raises:
        CodingError: they are damaged, or of another version.
    """
    try:
        values = json.loads(settings[_DIGEST:] or b"{}")
        if not isinstance(values, dict):
            raise ValueError("no settings")
        return LearnConfig.from_dict(values)
    except (ValueError, RecursionError, ConfigError) as error:
        raise CodingError(f"its settings of learning cannot be read: {error}") from error


def _tensors(state: State) -> State:
    return State(*(torch.tensor(array, dtype=torch.float32) for array in (state.h_LBH, state.c_LBH)))


def _arrays(state: State) -> State:
    return State(state.h_LBH.numpy(), state.c_LBH.numpy())


def logprobs(logits_V: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities that logits give, shape (V,)."""
    wide_V = logits_V.astype(np.float64)
    wide_V -= wide_V.max()
    logprobs_V: NDArray[np.float64] = wide_V - np.log(np.exp(wide_V).sum())
    return logprobs_V
