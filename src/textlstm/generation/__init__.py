"""Text from a model: rows of a batch that are written side by side, each with its own options and random stream.

The loop draws a token for every row, shows the text that became certain, and steps the engine; rows that are done
leave the batch. What a row writes depends on its prompt, options and seed alone, and is the same streamed or whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textlstm.config import SamplingConfig
from textlstm.engine import Engine
from textlstm.errors import UsageError
from textlstm.sampling import Row, sample
from textlstm.state import State
from textlstm.tokenizer import TextStream, Tokenizer

DEFAULT_MAX_TOKENS = 500


@dataclass(frozen=True)
class Limits:
    """When a text ends.

    Attributes:
        max_tokens: after this many tokens.
        max_chars: after this many characters.
        stop: before the first of these strings that appears.
        stop_at_end: where the model ends the document; otherwise the boundary is never drawn.
    """

    max_tokens: int | None = None
    max_chars: int | None = None
    stop: tuple[str, ...] = ()
    stop_at_end: bool = False

    def __post_init__(self) -> None:
        for name, value in (("max-tokens", self.max_tokens), ("max-chars", self.max_chars)):
            if value is not None and value < 0:
                raise UsageError(f"{name} must be 0 or more, not {value}")
        if "" in self.stop:
            raise UsageError("a stop string must not be empty")


class Writer:
    """One text being written.

    Args:
        tokenizer: of the model.
        vocab_size: ids in the model's softmax.
        boundary_id: the document boundary, or None.
        sampling: how tokens are drawn.
        limits: when to end.
        seed: of the random stream.
        forbidden: gives the ids that must not follow what is written, prompt included, as bytes.

    Attributes:
        text: what was written and shown so far.
        tokens: how many tokens it took.
        reason: why it ended: `length`, `stop` or `end`; None while it goes on.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        boundary_id: int | None,
        sampling: SamplingConfig,
        limits: Limits,
        seed: int,
        forbidden: Callable[[bytearray], NDArray[np.int64]] | None = None,
    ) -> None:
        banned_V = np.arange(vocab_size) >= tokenizer.vocab_size
        if limits.stop_at_end and boundary_id is not None:
            banned_V[boundary_id] = False
        self.row = Row(sampling, np.random.default_rng(seed), vocab_size, banned_V if banned_V.any() else None)
        self._tokenizer, self._banned_V, self._forbidden = tokenizer, banned_V, forbidden
        self._written = bytearray()  # kept only where something is forbidden by it
        self._boundary_id, self._stream = boundary_id, TextStream(tokenizer)
        self._limits = limits
        self._held = ""  # text that may turn out to be the beginning of a stop string
        self.text, self.tokens = "", 0
        self.reason: str | None = None
        self._max_tokens = limits.max_tokens
        if limits.max_tokens is None and limits.max_chars is None:
            self._max_tokens = DEFAULT_MAX_TOKENS
        if 0 in (self._max_tokens, limits.max_chars):
            self.reason = "length"

    def read(self, ids: NDArray[np.int32]) -> None:
        """Takes the ids of the prompt."""
        self.row.read(ids)
        self._forbid(self._tokenizer.decode_bytes(ids))

    def _forbid(self, written: bytes) -> None:
        if self._forbidden is not None:
            self._written += written
            self.row.banned = self._banned_V.copy()
            self.row.banned[self._forbidden(self._written)] = True

    def push(self, id: int) -> str:
        """Takes a drawn token; returns the text that is now certain."""
        self.tokens += 1
        if id == self._boundary_id:
            return self._finish("end", self._held + self._stream.flush())
        self.row.wrote(id)
        self._forbid(self._tokenizer.token_bytes(id))
        pending = self._held + self._stream.push(id)
        found = [place for stop in self._limits.stop if (place := pending.find(stop)) >= 0]
        if found:
            return self._finish("stop", pending[: min(found)])
        most = self._limits.max_chars
        if most is not None and len(self.text) + len(pending) >= most:
            return self._finish("length", pending)
        if self.tokens == self._max_tokens:
            return self._finish("length", pending + self._stream.flush())
        held = max((_overlap(pending, stop) for stop in self._limits.stop), default=0)
        self._held = pending[len(pending) - held :]
        return self._show(pending[: len(pending) - held])

    def _finish(self, reason: str, last: str) -> str:
        self.reason = reason
        return self._show(last)

    def _show(self, text: str) -> str:
        if self._limits.max_chars is not None:
            text = text[: self._limits.max_chars - len(self.text)]
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that is a beginning of the stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def read_prompt(engine: Engine, tokenizer: Tokenizer, prompt: str) -> tuple[np.ndarray, State]:
    """Logits for the token after a prompt, shape (1, V), and the state to go on from; "" is the model's own start."""
    ids = tokenizer.encode(prompt)
    logits_BV, state = engine.begin(1)
    return engine.prefill(ids.astype(np.int64)[None], state) if len(ids) else (logits_BV, state)


def write(engine: Engine, writers: Sequence[Writer], logits_BV: np.ndarray, state: State) -> Iterator[tuple[int, str]]:
    """Writes texts side by side until each has ended.

    Args:
        engine: the model.
        writers: one per row.
        logits_BV: for the first token of each row.
        state: to go on from.

    Yields:
        The number of a row and a piece of its text, as soon as it is certain.
    """
    alive = [number for number, writer in enumerate(writers) if writer.reason is None]
    if len(alive) < len(writers) and alive:
        logits_BV, state = logits_BV[alive], state.select(alive)
    while alive:
        ids_B = sample(logits_BV, [writers[number].row for number in alive])
        for number, id in zip(alive, ids_B.tolist(), strict=True):
            if text := writers[number].push(id):
                yield number, text
        places = [place for place, number in enumerate(alive) if writers[number].reason is None]
        if len(places) < len(alive):
            alive, ids_B, state = [alive[p] for p in places], ids_B[places], state.select(places)
        if alive:
            logits_BV, state = engine.step(ids_B, state)
