"""Training batches: contiguous lanes of one token stream, read side by side with the state carried along.

The stream is a ring. Each epoch starts at a new random place, cuts the ring into B lanes of equal length and reads
them in segments of about T tokens; a lane's state flows from segment to segment (truncated backpropagation). A lane
begins behind the end of a line, and its first input is the document boundary, so that the network learns what it is
asked at generation: to begin from nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.corpus.merge_dropout import MergeDropout
from textlstm.errors import CorpusError

_STEP = 8  # segment lengths are multiples of this: the kernels prepare code for each new length
_SNAP = 256  # how many tokens a lane's start moves forward at most to reach the end of a line


def segment_lengths(seq_len: int, jitter: float) -> NDArray[np.int64]:
    """The lengths that segments have, all equally likely: `seq_len`, or multiples of 8 around it."""
    if not jitter:
        return np.array([seq_len])
    shortest, longest = (max(1, round(seq_len * (1 + sign * jitter) / _STEP)) * _STEP for sign in (-1, 1))
    return np.arange(shortest, longest + 1, _STEP)


def lanes_within(tokens: int, batch_size: int) -> int:
    """How many lanes of a wanted number a text of so many tokens is long enough for."""
    return min(batch_size, tokens // (2 * _STEP))


def steps_per_epoch(tokens: int, batch_size: int, seq_len: int, jitter: float) -> float:
    """Batches in one pass over a text: exactly without jitter, on average with it (short texts are off by up to 20 %).

    Args:
        tokens: length of the text.
        batch_size, seq_len, jitter: as `LaneReader` takes them.
    """
    lanes = max(1, lanes_within(tokens, batch_size))
    lane_len = tokens // lanes
    mean = np.minimum(segment_lengths(seq_len, jitter), lane_len).mean()
    # A pass ends with a shorter segment, unless fewer than 8 tokens remain for it.
    return float(max(1, math.ceil((lane_len - _STEP + 1) / mean)))


@dataclass(frozen=True)
class Batch:
    """One segment of every lane.

    Attributes:
        x_BT, y_BT: inputs, and the ids to be predicted after each; int64.
        fresh_B: lanes that begin here, from the zero state.
    """

    x_BT: NDArray[np.int64]
    y_BT: NDArray[np.int64]
    fresh_B: NDArray[np.bool_]


class LaneReader:
    """An endless iterator of batches that can say where it stands.

    Args:
        ids: the token stream, shape (N,), of any integer type; it may be mapped into memory.
        batch_size: lanes B; fewer are read where the text is too short for so many.
        seq_len: mean segment length T.
        jitter: segment lengths vary by this share around the mean.
        seed: of offsets and lengths.
        boundary_id: the id put before the first token of a lane, or None.
        line_end_V: which ids end a line, shape (V,).
        merge_dropout: what tokens fall apart into at each pass, which is then read from memory; None leaves all whole.

    Raises:
        CorpusError: the stream has fewer tokens than one short lane.
    """

    def __init__(
        self,
        ids: NDArray[Any],
        batch_size: int,
        seq_len: int,
        jitter: float,
        seed: int,
        boundary_id: int | None,
        line_end_V: NDArray[np.bool_],
        merge_dropout: MergeDropout | None = None,
    ) -> None:
        self.batch_size = lanes_within(len(ids), batch_size)
        if self.batch_size < 1:
            raise CorpusError(f"{len(ids)} tokens of training text are too few; {2 * _STEP} are the least")
        self._text = self._ids = ids  # as it was encoded, and as this pass reads it
        self._boundary_id, self._line_end_V, self._merge_dropout = boundary_id, line_end_V, merge_dropout
        self._lengths = segment_lengths(seq_len, jitter)
        self.lane_len = len(ids) // self.batch_size
        self._seed, self._rng = seed, np.random.default_rng(seed)
        self.epoch = 0
        self._batches = 0
        self._rate = 0.0  # of the merge dropout of this pass
        self._position = self.lane_len  # as if an epoch had just ended
        self._starts_B = np.zeros(self.batch_size, dtype=np.int64)

    def __iter__(self) -> LaneReader:
        return self

    def __next__(self) -> Batch:
        fresh = self.lane_len - self._position < _STEP or self._is_over
        if fresh:
            self._begin_epoch()
        length = min(int(self._rng.choice(self._lengths)), self.lane_len - self._position)
        places = self._starts_B[:, None] + self._position + np.arange(length + 1)
        segment = self._ids[places % len(self._ids)].astype(np.int64)
        x_BT, y_BT = segment[:, :-1].copy(), segment[:, 1:].copy()
        if fresh and self._boundary_id is not None:
            x_BT[:, 0] = self._boundary_id
        self._position += length
        self._batches += 1
        return Batch(x_BT, y_BT, np.full(self.batch_size, fresh))

    @property
    def _is_over(self) -> bool:
        """Whether this pass reads tokens that fell apart, and no longer should: a run may have but one pass."""
        dropout = self._merge_dropout
        return dropout is not None and self._ids is not self._text and dropout.rate_at(self._batches) == 0

    @property
    def stretch(self) -> float:
        """How many tokens this pass reads per token of the text: above 1 where some fell apart."""
        return len(self._ids) / len(self._text)

    def _begin_epoch(self) -> None:
        self.epoch += 1
        self._rate = 0.0 if self._merge_dropout is None else self._merge_dropout.rate_at(self._batches)
        self._take_ids()
        N = len(self._ids)
        starts = int(self._rng.integers(N)) + np.arange(self.batch_size) * self.lane_len
        ahead = self._line_end_V[self._ids[(starts[:, None] + np.arange(min(_SNAP, self.lane_len))) % N]]
        self._starts_B = starts + np.where(ahead.any(axis=1), ahead.argmax(axis=1), 0)
        self._position = 0

    def _take_ids(self) -> None:
        """The ids of this pass, which follow from its number and its rate of merge dropout."""
        if self._merge_dropout is not None:
            random = np.random.default_rng([self._seed, self.epoch])
            self._ids = self._merge_dropout.applied(self._text, self._rate, random)
            self.lane_len = len(self._ids) // self.batch_size

    def recount(self, steps: int) -> None:
        """From the next pass on, lets tokens fall apart as in a run of another number of steps."""
        if self._merge_dropout is not None:
            self._merge_dropout = dataclasses.replace(self._merge_dropout, steps=steps)

    def state_dict(self) -> dict[str, Any]:
        """Where the reader stands, as JSON values."""
        return {
            "epoch": self.epoch,
            "batches": self._batches,
            "merge_dropout": self._rate,
            "position": self._position,
            "starts": self._starts_B.tolist(),
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where another reader of the same stream stood."""
        self.epoch, self._position = state["epoch"], state["position"]
        self._batches, self._rate = state.get("batches", 0), state.get("merge_dropout", 0.0)
        if "epoch_began" in state and self._merge_dropout is not None:  # of before runs were counted again
            self._rate = self._merge_dropout.rate_at(state["epoch_began"])
        if self.epoch:
            self._take_ids()
        self._starts_B = np.array(state["starts"], dtype=np.int64)
        self._rng.bit_generator.state = state["rng"]
