"""Text from a model: rows of a batch that are written side by side, each with its own options and random stream.

The loop draws a token for every row, shows the text that became certain, and steps the engine; rows that are done
leave the batch. What a row writes depends on its prompt, options and seed alone, and is the same streamed or whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.config import SamplingConfig
from textlstm.engine import Engine
from textlstm.errors import UsageError
from textlstm.generation.pattern import Guide, Pattern
from textlstm.sampling import Bools, Ints, Row, log_softmax, sample
from textlstm.state import State
from textlstm.tokenizer import TextStream, Tokenizer, checked_text, text_to_bytes

DEFAULT_MAX_TOKENS = 500
_MANY_PIECES = 4096  # each takes some tens of bytes more than its characters


def whole_number(name: str, value: Any) -> int:
    """A number from outside that counts something.

    Raises:
        UsageError: it is negative, or no whole number.
    """
    if not isinstance(value, int | np.integer) or value < 0:
        raise UsageError(f"{name} must be a whole number, 0 or more, not {value!r}")
    return int(value)


@dataclass(frozen=True)
class Limits:
    """When a text ends.

    Attributes:
        max_tokens: after this many tokens.
        max_chars: after this many characters.
        stop: before the first of these strings that appears.
        stop_at_end: where the model ends the document; otherwise the boundary is never drawn.
        include_stop: the stop string that ends the text is still shown.
    """

    max_tokens: int | None = None
    max_chars: int | None = None
    stop: tuple[str, ...] = ()
    stop_at_end: bool = False
    include_stop: bool = False

    def __post_init__(self) -> None:
        for name, value in (("max-tokens", self.max_tokens), ("max-chars", self.max_chars)):
            if value is not None:
                whole_number(name, value)
        for stop in self.stop:
            if not checked_text(stop):
                raise UsageError("a stop string must not be empty")


class Writer:
    """One text being written.

    Args:
        tokenizer: of the model.
        vocab_size: ids in the model's softmax.
        boundary_id: the document boundary, or None.
        sampling: how tokens are drawn.
        limits: when to end.
        seed: of the random stream, or the stream itself.
        pattern: what the text must look like; None is anything.
        held: a text begun earlier goes on: what was written of it and not shown, and the stream of its bytes. Then
            nothing is flushed at the end either.
        forbidden: gives the ids that must not follow what is written, prompt included, as bytes.

    Attributes:
        tokens: how many tokens it took.
        reason: why it ended: `length`, `stop`, `pattern` (complete, nothing can follow) or `end` (the model drew the
            document's boundary, or a token that left a complete pattern); None while it goes on.
        stopped_by: the stop string that ended it, if one did.
        log_prob: natural logarithm of the probability of what was pushed, as far as `weigh` was asked.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        boundary_id: int | None,
        sampling: SamplingConfig,
        limits: Limits,
        seed: int | np.random.Generator,
        pattern: Pattern | None = None,
        held: tuple[str, TextStream] | None = None,
        forbidden: Callable[[bytearray], NDArray[np.int64]] | None = None,
    ) -> None:
        self._tokenizer, self.boundary_id, self._limits = tokenizer, boundary_id, limits
        self.vocab_size = vocab_size
        self._forbidden, self._written = forbidden, bytearray()  # kept only where something is forbidden by it
        self._writes_V = np.arange(vocab_size) < tokenizer.vocab_size
        self._at_end_V = np.zeros(vocab_size, np.bool_)  # the boundary, if it may be drawn anywhere
        if limits.stop_at_end and boundary_id is not None:
            self._at_end_V[boundary_id] = True
        self._max_tokens = limits.max_tokens
        if limits.max_tokens is None and limits.max_chars is None:
            self._max_tokens = DEFAULT_MAX_TOKENS
            if pattern is not None and not pattern.open:
                self._max_tokens += pattern.shortest
        self._stays_V = self._writes_V
        self._never_V: Bools | None = None
        self._guide = None if pattern is None else Guide(pattern, self._max_tokens, limits.max_chars)
        if pattern is not None and not pattern.open and limits.stop:
            raise UsageError("a stop string cannot be combined with a pattern for the whole text; leave one out")
        breaks_V = breakers(tokenizer, sampling.dry_breakers, vocab_size) if sampling.dry_window else None
        self.row = Row(sampling, np.random.default_rng(seed), vocab_size, breaks=breaks_V)
        self._lasting = held is not None
        self._shows_all = not limits.stop and limits.max_chars is None  # as it comes; else it takes a look
        # `_held` may turn out to be the beginning of a stop string.
        self._held, self._stream = ("", TextStream(tokenizer)) if held is None else held
        self._pieces, self._chars = [""], 0  # joined when asked for: at each token, a long text would cost ever more
        self.tokens, self.log_prob = 0, 0.0
        self.reason: str | None = None
        self.stopped_by: str | None = None
        if 0 in (self._max_tokens, limits.max_chars):
            self.reason = "length"
        else:
            self._aim()

    @property
    def text(self) -> str:
        """What was written and shown so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

    def read(self, ids: Ints) -> None:
        """Takes the ids of the prompt."""
        self.row.read(ids)
        if self._forbidden is not None:
            self.follow(self._tokenizer.decode_bytes(ids))

    def follow(self, before: bytes) -> None:
        """Takes the bytes that the text goes on from, which `forbidden` heeds."""
        if self._forbidden is not None and self.reason is None:
            self._written += before
            self._aim()

    def restrict(self, never_V: Bools | None) -> None:
        """Forbids some tokens, bool (V,), from here on; None forbids none."""
        self._never_V = never_V
        if self.reason is None:
            self._aim()

    def push(self, id: int) -> str:
        """Takes a drawn token; returns the text that is now certain."""
        self.tokens += 1
        if id == self.boundary_id or not (self._guide is None or self._guide.push(id)):
            return self.end("end")
        self.row.wrote(id)
        text = self.take(self._stream.push(id))
        if self.reason is None and self.tokens == self._max_tokens:
            return text + self._finish("length", "" if self._lasting else self._held + self._stream.flush())
        if self._forbidden is not None:
            self._written += self._tokenizer.token_bytes(id)
        if self.reason is None and (self._guide is not None or self._forbidden is not None):
            self._aim()
        return text

    def take(self, text: str) -> str:
        """Takes a piece of text; returns what is now certain."""
        if self._shows_all and not self._held:
            return self._show(text)
        pending = self._held + text
        found = [(place, stop) for stop in self._limits.stop if (place := pending.find(stop)) >= 0]
        if found:
            place, self.stopped_by = min(found)
            return self._finish("stop", pending[: place + self._limits.include_stop * len(self.stopped_by)])
        most = self._limits.max_chars
        if most is not None and self._chars + len(pending) >= most:
            self._held = pending[most - self._chars :]
            return self._finish("length", pending)
        held = max((_overlap(pending, stop) for stop in self._limits.stop), default=0)
        self._held = pending[len(pending) - held :]
        return self._show(pending[: len(pending) - held])

    def end(self, reason: str) -> str:
        """Ends the text here; returns what was held back."""
        held, self._held = self._held, ""
        return self._finish(reason, held if self._lasting else held + self._stream.flush())

    @property
    def held(self) -> tuple[str, TextStream]:
        """What was written and not shown, and the stream of bytes: what a later text goes on from."""
        return self._held, self._stream

    def stays_V(self) -> Bools:
        """Which tokens the text may go on with, shape (V,)."""
        return self._stays_V

    def ends_V(self) -> Bools:
        """Which tokens would end the text and not be part of it, shape (V,)."""
        if self._guide is None or (self._guide.is_open and self._guide.is_complete):
            return self._at_end_V
        return self._anything_V() & ~self._guide.stays() if self._guide.can_end else np.zeros_like(self._at_end_V)

    def weigh(self, logits_V: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
        """Log-probabilities of all tokens, shape (V,), and of the text's end here: by any token that would end it."""
        log_probs_V = log_softmax(logits_V)
        with np.errstate(divide="ignore"):
            return log_probs_V, float(np.log(np.exp(log_probs_V[self.ends_V()]).sum()))

    def at_best(self, length_penalty: float = 1.0) -> float:
        """What `log_prob`, over that power of the length, can still become: if all tokens to come were certain."""
        most = self.tokens if length_penalty <= 0 else self._max_tokens  # then longer texts are never better
        return 0.0 if most is None else float(self.log_prob / np.float64(max(most, 1)) ** length_penalty)

    def copy(self) -> Writer:
        """A writer that stands at the same place, with the same random stream."""
        twin = copy.copy(self)
        twin.row, twin._guide, twin._stream = copy.copy(self.row), copy.copy(self._guide), self._stream.copy()
        twin._written, twin._pieces = self._written.copy(), [self.text]
        return twin

    def _aim(self) -> None:
        """Tells the row what may be drawn next, or ends a text that nothing can follow."""
        self._stays_V = self._writes_V if self._guide is None else self._guide.stays()
        if self._forbidden is not None:
            self._stays_V = self._stays_V.copy()
            self._stays_V[self._forbidden(self._written)] = False
        if self._guide is not None and self._guide.can_end and not self._stays_V.any():
            self.reason = "pattern"
            return
        drawable_V = self._stays_V | self.ends_V()
        self.row.instead = None if self._guide is None else self._guide.breaks()
        if self.row.instead is not None:
            spaced_V, line_break = self.row.instead
            if self._stays_V[line_break]:  # the guard may forbid it
                drawable_V |= spaced_V
            else:
                self.row.instead = None
        if self._never_V is not None:
            drawable_V &= ~self._never_V
        self.row.banned = None if drawable_V.all() else ~drawable_V

    def _anything_V(self) -> Bools:
        """All tokens that write something, and the boundary."""
        anything_V = self._writes_V.copy()
        if self.boundary_id is not None:
            anything_V[self.boundary_id] = True
        return anything_V

    def _finish(self, reason: str, last: str) -> str:
        self.reason = reason
        return self._show(last)

    def _show(self, text: str) -> str:
        if self._limits.max_chars is not None:
            text = text[: self._limits.max_chars - self._chars]
        self._pieces.append(text)
        self._chars += len(text)
        if len(self._pieces) > _MANY_PIECES:
            self._pieces = [self.text]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that is a beginning of the stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@lru_cache(maxsize=16)
def breakers(tokenizer: Tokenizer, characters: str | None, vocab_size: int) -> Bools:
    """Which tokens hold one of some characters, shape (V,); without any those that DRY is used to."""
    marks = [text_to_bytes(one) for one in (SamplingConfig.DRY_BREAKERS if characters is None else characters)]
    holds_V = np.zeros(vocab_size, np.bool_)
    for id in range(tokenizer.vocab_size):
        holds_V[id] = any(mark in tokenizer.token_bytes(id) for mark in marks)
    return holds_V


def read_prompt(engine: Engine, tokenizer: Tokenizer, prompt: str) -> tuple[np.ndarray, State]:
    """Logits for the token after a prompt, shape (1, V), and the state to go on from; "" is the model's own start."""
    ids = tokenizer.encode(checked_text(prompt))
    logits_BV, state = engine.begin(1)
    return engine.prefill(ids.astype(np.int64)[None], state) if len(ids) else (logits_BV, state)


def write(
    engine: Engine, writers: Sequence[Writer], logits_BV: np.ndarray, state: State, weigh: bool = False
) -> Iterator[tuple[int, str]]:
    """Writes texts side by side until each has ended.

    Args:
        engine: the model.
        writers: one per row.
        logits_BV: for the first token of each row.
        state: to go on from.
        weigh: whether each writer's `log_prob` is added up.

    Yields:
        The number of a row and a piece of its text, as soon as it is certain.
    """
    alive = [number for number, writer in enumerate(writers) if writer.reason is None]
    if len(alive) < len(writers) and alive:
        logits_BV, state = logits_BV[alive], state.select(alive)
    while alive:
        ids_B = sample(logits_BV, [writers[number].row for number in alive])
        for place, (number, id) in enumerate(zip(alive, ids_B.tolist(), strict=True)):
            log_probs_V, end = writers[number].weigh(logits_BV[place]) if weigh else (None, 0.0)
            if text := writers[number].push(id):
                yield number, text
            if log_probs_V is not None:
                writers[number].log_prob += end if writers[number].reason == "end" else float(log_probs_V[id])
        places = [place for place, number in enumerate(alive) if writers[number].reason is None]
        if len(places) < len(alive):
            alive, ids_B, state = [alive[p] for p in places], ids_B[places], state.select(places)
        if alive:
            logits_BV, state = engine.step(ids_B, state)
