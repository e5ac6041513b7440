"""Scores of a model on a text: summed negative log-likelihood under named protocols.

| protocol | definition |
|---|---|
| `stream` | the state is carried through the whole text, in one lane |
| `stream-L` | the text is cut into L lanes; each is read from its own start, so a context would reach none of them |
| `cold-N` | consecutive windows of N tokens, each read from the zero state with the token before it as first input |
| `stream+learn` | as `stream`, but each segment is learnt from after it was predicted (`textlstm.learning`) |

All passes are exact and deterministic, over the whole text, tail included; sums are divided once. The first token
is predicted from the document boundary, or uniformly where a model has none. Boundaries between documents are read
but not counted: they are not text.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from textlstm.config import ModelConfig
from textlstm.errors import UsageError
from textlstm.state import State

#: Tokens of preceding text that a lane reads before it is scored while training.
WARM_UP = 512
#: What a score under `stream` is called if the engine learnt meanwhile.
LEARNING = "stream+learn"
_COUNTED, _STRETCH = 1 << 23, 1 << 17  # tokens that are counted at most, and how many lie together then
_MOST_LANES = 16
_CHUNK = 1 << 22  # logits per call at most: 16 MB of float32, enough tokens to pay for reading the weights once


#: Told how many tokens are done, and how many there are.
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Tells nobody."""


class Predictor(Protocol):
    """Anything that gives the negative log-likelihood of tokens."""

    config: ModelConfig

    def zero_state(self, rows: int) -> State:
        """The state before anything was read."""

    def nll(self, x_BT: NDArray[np.int64], y_BT: NDArray[np.int64], state: State) -> tuple[NDArray[np.float64], State]:
        """Nats of each target, shape (B, T), and the state after the last input."""


@dataclass(frozen=True)
class Score:
    """What a text costs under a model.

    Attributes:
        protocol: how it was read.
        chars, bytes, tokens: how long the text is.
        nats: summed negative log-likelihood.
    """

    protocol: str
    chars: int
    bytes: int
    tokens: int
    nats: float

    @property
    def nats_per_char(self) -> float:
        """Nats per character."""
        return self.nats / self.chars

    @property
    def bits_per_char(self) -> float:
        """Bits per character."""
        return self.nats / self.chars / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8."""
        return self.nats / self.bytes / math.log(2)

    @property
    def perplexity(self) -> float:
        """Exponential of the nats per token."""
        return math.exp(min(self.nats / self.tokens, 700))

    def __add__(self, other: Score) -> Score:
        """The score of two texts under one protocol."""
        sums = (getattr(self, name) + getattr(other, name) for name in ("chars", "bytes", "tokens", "nats"))
        return Score(self.protocol, *sums)

    def to_dict(self) -> dict[str, Any]:
        """The fields and the ratios, as JSON values."""
        ratios = ("nats_per_char", "bits_per_char", "bits_per_byte", "perplexity")
        fields = ("protocol", "chars", "bytes", "tokens", "nats")
        return {name: getattr(self, name) for name in fields + ratios}


def total(scores: Sequence[Score]) -> Score:
    """The score of several texts under one protocol.

    Raises:
        UsageError: there is none.
    """
    if not scores:
        raise UsageError("no text, no score")
    return functools.reduce(operator.add, scores)


def token_nats(
    predictor: Predictor,
    ids: NDArray[np.int32],
    context: NDArray[np.int32] | None = None,
    protocol: str = "stream",
    warm_up: int = 0,
    progress: Progress = no_progress,
) -> NDArray[np.float64]:
    """Nats of every token of a text under a protocol.

    Args:
        predictor: the model.
        ids: the text, shape (N,); document boundaries may stand in it.
        context: text that is read first and not scored.
        protocol: `stream`, `stream-L` or `cold-N`.
        warm_up: of `stream-L`: tokens before each lane that it reads first.
        progress: told how far it is.

    Returns:
        Shape (N,); zero where the token is a document boundary.

    Raises:
        UsageError: unknown protocol, or an empty text.
    """
    config = predictor.config
    kind, number = parse_protocol(protocol)
    if not len(ids):
        raise UsageError("an empty text has no score")
    ids_N = ids.astype(np.int64)
    begin = np.array([] if config.boundary_id is None else [config.boundary_id], dtype=np.int64)
    before = begin if context is None else np.concatenate([begin, context])
    if kind == "cold":
        nats = _windows(predictor, before, ids_N, number, progress)
    elif number == 1:
        nats = _after(predictor, before[None], ids_N[None], progress)[0]
    else:
        nats = _lanes(predictor, before[-warm_up:] if warm_up else begin, ids_N, number, warm_up, progress)
    if config.boundary_id is not None:
        nats[ids == config.boundary_id] = 0.0
    return nats


def score(
    predictor: Predictor,
    ids: NDArray[np.int32],
    chars: int,
    bytes: int,
    context: NDArray[np.int32] | None = None,
    protocol: str = "stream",
    warm_up: int = 0,
    progress: Progress = no_progress,
) -> Score:
    """The score of a text under a protocol; arguments as in `token_nats`, and the length of the text."""
    nats = token_nats(predictor, ids, context, protocol, warm_up, progress)
    boundary = predictor.config.boundary_id
    tokens = len(ids) if boundary is None else int((ids != boundary).sum())
    return Score(protocol, chars, bytes, tokens, math.fsum(nats))


def token_counts(ids: NDArray[Any], vocab_size: int) -> NDArray[np.int64]:
    """How often each id occurs, shape (V,); of a long text in stretches that are evenly spread over it.

    Its ids may be mapped from disk: reading them all would take as long as it is, and hold as much memory.
    """
    starts = range(0, len(ids), _STRETCH)
    if len(ids) > _COUNTED:
        starts = np.linspace(0, len(ids) - _STRETCH, _COUNTED // _STRETCH).astype(int).tolist()
    counts_V = np.zeros(vocab_size, np.int64)
    for start in starts:
        counts_V += np.bincount(ids[start : start + _STRETCH], minlength=vocab_size)
    return counts_V


def frequencies(counts_V: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of each token, shape (V,), where half an occurrence is added to each (Krichevsky & Trofimov 1981)."""
    seen_V = counts_V.astype(np.float64) + 0.5
    shares_V: NDArray[np.float64] = seen_V / seen_V.sum()
    return shares_V


def unigram_nats(ids: NDArray[Any], frequencies_V: NDArray[np.float64]) -> float:
    """Nats per token of predicting each token of a text by its frequency in another one alone.

    Args:
        ids: the text, shape (N,), N > 0.
        frequencies_V: of the other one, all above 0.
    """
    counts_V = token_counts(ids, len(frequencies_V))
    return float(-(counts_V @ np.log(frequencies_V)) / counts_V.sum())


def parse_protocol(protocol: str) -> tuple[str, int]:
    """The kind of a protocol, `stream` or `cold`, and its number of lanes or tokens.

    Raises:
        UsageError: there is no such protocol.
    """
    kind, _, number = protocol.partition("-")
    if protocol == "stream":
        return "stream", 1
    if kind in ("stream", "cold") and number.isdecimal() and int(number) >= 1:
        return kind, int(number)
    raise UsageError(f"there is no protocol {protocol!r}; known are stream, stream-L and cold-N, for example cold-256")


def _after(
    predictor: Predictor, before_BP: NDArray[np.int64], ids_BN: NDArray[np.int64], progress: Progress
) -> NDArray[np.float64]:
    """Nats of each row's ids after it has read what stands before them; after nothing, the first one is uniform."""
    vocab_size = predictor.config.vocab_size
    rows_BM = np.concatenate([before_BP, ids_BN], axis=1)
    nats_BM = np.full(rows_BM.shape, math.log(vocab_size))
    state = predictor.zero_state(len(rows_BM))
    chunk = max(1, _CHUNK // (vocab_size * len(rows_BM)))
    for start in range(1, rows_BM.shape[1], chunk):
        end = min(start + chunk, rows_BM.shape[1])
        nats_BM[:, start:end], state = predictor.nll(rows_BM[:, start - 1 : end - 1], rows_BM[:, start:end], state)
        progress(end * len(rows_BM), rows_BM.size)
    return nats_BM[:, before_BP.shape[1] :]


def lanes_for(tokens: int) -> tuple[int, str]:
    """In how many lanes a text of so many tokens is read while training, and the name of that protocol.

    Sixteen, or fewer where each would read less than twice as much of its own as of what stands before it.
    """
    lanes = min(_MOST_LANES, max(1, tokens // (2 * WARM_UP)))
    return lanes, "stream" if lanes == 1 else f"stream-{lanes}"


def lane_shape(tokens: int, lanes: int) -> tuple[int, int]:
    """How a text is cut into lanes: their number, at most the one wanted, and their length; the last may be short."""
    length = -(-tokens // lanes)
    return -(-tokens // length), length


def _lanes(
    predictor: Predictor,
    before: NDArray[np.int64],
    ids: NDArray[np.int64],
    lanes: int,
    warm_up: int,
    progress: Progress,
) -> NDArray[np.float64]:
    """Reads a text in lanes of equal length, the last one filled up.

    Warmed lanes read the tokens before their own, from the text or from what stands before it. Cold ones begin like
    a text of their own.
    """
    lanes, length = lane_shape(len(ids), lanes)
    filled = np.concatenate([ids, np.zeros(lanes * length - len(ids), dtype=np.int64)])
    before_LP = np.tile(before, (lanes, 1))
    if warm_up:
        stream = np.concatenate([before, filled])
        before_LP = stream[np.arange(lanes)[:, None] * length + np.arange(len(before))]
    return _after(predictor, before_LP, filled.reshape(lanes, length), progress).reshape(-1)[: len(ids)]


def _windows(
    predictor: Predictor,
    before: NDArray[np.int64],
    ids: NDArray[np.int64],
    window: int,
    progress: Progress,
) -> NDArray[np.float64]:
    """Reads a text in windows, some of them side by side, each after the one token that precedes it."""
    stream = np.concatenate([before[-1:], ids])
    shift = len(stream) - len(ids)
    rows = max(1, _CHUNK // (predictor.config.vocab_size * window))
    nats = np.empty(len(ids))
    start = 0
    while start < len(ids):
        # The first window has nothing before it in a model without a boundary, and the last may be short: alone.
        whole = min(rows, (len(ids) - start) // window) if start + shift > 0 else 1
        size = window if whole and start + window <= len(ids) else len(ids) - start
        end = start + max(whole, 1) * size
        before_BP = stream[start + shift - 1 : end + shift - 1 : size][:, None] if start + shift else stream[None, :0]
        ids_BN = ids[start:end].reshape(-1, size)
        nats[start:end] = _after(predictor, before_BP, ids_BN, no_progress).reshape(-1)
        start = end
        progress(end, len(ids))
    return nats
