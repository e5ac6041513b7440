"""Writing by what has learnt: weights and memories stay as they are while they predict, and a text read moves both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textlstm.engine import Engine
from textlstm.errors import UsageError
from textlstm.learning.engine import LearningEngine, Memory, logprobs
from textlstm.state import State


@dataclass(frozen=True)
class Place(State):
    """A place in a text.

    Attributes:
        memory: stands there, and has predicted what comes next; None where there are no memories.
    """

    memory: Memory | None


class WritingEngine(Engine):
    """Gives the predictions of a learner, without learning from what it reads: its own words teach it nothing new.

    It never changes, and neither do the states that it returns, so that one may go back to any of them; `learn` gives
    another engine. A state that is not its own has no past for the memories: they go on from what they read last.

    Args:
        learner: with all that it knows; between two texts.
    """

    name = "learning"

    def __init__(self, learner: LearningEngine) -> None:
        super().__init__(learner.config)
        self._learner = learner

    def begin(self, rows: int) -> tuple[NDArray[np.float32], State]:
        logits_BV, state = super().begin(rows)
        memory = self._learner.memory
        return logits_BV, state if isinstance(state, Place) or memory is None else _place(state, memory.past(None))

    def run(
        self, ids_BT: NDArray[np.int64], state: State, positions_P: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], State]:
        """Reads without learning; arguments and result as of any engine, but for one row only."""
        if len(ids_BT) != 1:
            raise UsageError("what learns writes one text at a time")
        logits_TV, hidden_TH, after = self._learner.look(ids_BT[0], state)
        memory, stands = self._learner.memory, False
        if isinstance(state, Place):
            memory, stands = state.memory, True
        wanted = {*positions_P.tolist(), len(logits_TV) - 1}
        for t, id in enumerate(ids_BT[0].tolist()):
            if memory is None:
                break
            memory, stands = memory.past(id if stands else None), True
            if t in wanted:
                logits_TV[t] = memory.predict(logprobs(logits_TV[t]), hidden_TH[t])
        return logits_TV[positions_P][None], _place(after, memory)

    def learn(self, ids_T: NDArray[np.int64], state: State | None) -> tuple[WritingEngine, NDArray[np.float32], State]:
        """Reads a text and learns from it, each token after it was predicted.

        Args:
            ids_T: the text, at least one token.
            state: where it begins; None is the start.

        Returns:
            What has learnt; the logits after the last token, shape (1, V), as they were before the last step; and the
            state to go on from.
        """
        memory = state.memory if isinstance(state, Place) else self._learner.memory
        learner = self._learner.copy(memory)
        if state is None:
            _, state = learner.begin(1)
        else:
            learner.go_on(state, predicted=isinstance(state, Place))
        logits_BV, after = learner.prefill(ids_T[None], state)
        learner.finish()
        place = _place(after, learner.memory)
        return WritingEngine(learner), logits_BV, place

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the weights."""
        return self._learner.weights()


def _place(state: State, memory: Memory | None) -> Place:
    return Place(state.h_LBH, state.c_LBH, memory)
