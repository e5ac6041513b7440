"""A session: a text that grows, by what is fed to it and what the model writes, at constant memory.

A session has read exactly what it has shown. What was drawn and is not shown (the beginning of a stop string, half a
character, what `max_chars` cut off) is kept ahead of the text: the next `generate` goes on from it, so two calls write
what one call writes; `feed`, a pattern or a stop string that was found give it up and go back to what was shown.

Each piece that is fed is encoded by itself: `feed("Hel")` and `feed("lo")` read other tokens than `feed("Hello")`,
except with characters or bytes as tokens. Feed whole words with the space that goes before them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from textlstm.config import LearnConfig, ModelConfig, PatternConfig, SamplingConfig
from textlstm.engine import Engine
from textlstm.errors import ConfigError, ModelFileError, UsageError
from textlstm.files import write_atomically
from textlstm.generation import Limits, Writer, whole_number
from textlstm.generation.pattern import Pattern
from textlstm.sampling import sample
from textlstm.state import State
from textlstm.tokenizer import TextStream, Tokenizer, checked_text, text_to_bytes

TAIL = 10_000  # characters of the text that a session remembers as text
_SHOWN = 40  # characters in its `repr`
_FORMAT = "textlstm-session 1"


class Owner(Protocol):
    """What a session needs of its model."""

    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def identity(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def engine(self) -> Engine: ...
    def pattern(self, config: PatternConfig) -> Pattern | None: ...
    def copy_guard(self, max_copy: int | None, source: Any) -> Guard | None: ...
    def learnt_from(
        self, text: str, state: State | None, learn: LearnConfig | bool
    ) -> tuple[Owner, NDArray[np.float32], State]: ...


class Guard(Protocol):
    """What keeps a text from copying, as `textlstm.novelty` has it."""

    @property
    def forbidden(self) -> Callable[[bytearray], NDArray[np.int64]]: ...


class Session:
    """A text being read and written.

    Args:
        model: what reads and writes.
        sampling: how tokens are drawn, where `generate` is not told otherwise.
        seed: of the random stream that all draws come from.

    Attributes:
        sampling: may be replaced at any time.
        rng: the random stream.
        text: the last 10,000 characters that were fed or written.
        chars: how many characters were fed or written in all.
        reason: why the last text ended, see `Writer`; None where it was broken off.
    """

    def __init__(self, model: Owner, sampling: SamplingConfig, seed: int) -> None:
        whole_number("seed", seed)
        self._model, self.sampling = model, sampling
        self.rng = np.random.default_rng(seed)
        self._logits_BV, self._state = model.engine.begin(1)
        # How often each token was fed and written, for the penalties.
        self._fed_V = np.zeros(model.config.vocab_size, np.int64)
        self._written_V = np.zeros(model.config.vocab_size, np.int64)
        self._ahead: list[int] = []  # drawn and not in the state yet: some of their text may not be shown
        self._shown = 0  # characters of theirs that were shown
        self._held, self._stream = "", TextStream(model.tokenizer)
        self.text, self.chars = "", 0
        self.reason: str | None = None

    def __repr__(self) -> str:
        end = self.text[-_SHOWN:]
        before = "..." if self.chars > len(end) else ""
        return f"<Session with {self._model.title}: {self.chars:,} characters, {before}{end!r}>"

    @property
    def model(self) -> Owner:
        """What reads and writes, with what it has learnt."""
        return self._model

    @property
    def state(self) -> State:
        """The recurrent state after all that was shown."""
        self._settle()
        return self._state

    def feed(self, text: str) -> None:
        """Reads a text, which is encoded by itself."""
        checked_text(text)
        self._settle()
        self._read(text)
        self._note(text)

    def learn(self, text: str, learn: LearnConfig | bool = True) -> None:
        """Reads a text and learns from it; what it writes from then on comes from what has learnt, and no other does.

        Each token is learnt after it was predicted, and what the session writes teaches it nothing.

        Args:
            text: is encoded by itself.
            learn: how; True is `LearnConfig()`. What has begun to learn goes on as it began.
        """
        checked_text(text)
        self._settle()
        ids = self._model.tokenizer.encode(text)
        if len(ids):
            state = self._state if self.chars else None
            self._model, self._logits_BV, self._state = self._model.learnt_from(text, state, learn)
            np.add.at(self._fed_V, ids, 1)
        self._note(text)

    def stream(
        self,
        *,
        max_tokens: int | None = None,
        max_chars: int | None = None,
        stop: Sequence[str] = (),
        stop_at_end: bool = False,
        max_copy: int | None = None,
        copy_source: Any = None,
        **options: Any,
    ) -> Iterator[str]:
        """Goes on writing, piece by piece; arguments as in `Model.generate`: patterns, limits, copies and sampling.

        A run that is copied counts from where it began in the text of the session, fed or written.
        """
        pattern = self._model.pattern(PatternConfig.taken_from(options))
        guard = self._model.copy_guard(max_copy, copy_source)
        if max_copy is not None and max_copy >= TAIL:
            raise UsageError(f"max-copy must be below {TAIL:,} in a session, which remembers no more, not {max_copy}")
        limits = Limits(max_tokens, max_chars, (stop,) if isinstance(stop, str | bytes) else tuple(stop), stop_at_end)
        sampling = self.sampling.replace(**options)
        if pattern is not None:
            self._settle()
        config, held = self._model.config, (self._held, self._stream)
        shape = config.vocab_size, config.boundary_id
        forbidden = None if guard is None else guard.forbidden
        writer = Writer(self._model.tokenizer, *shape, sampling, limits, self.rng, pattern, held, forbidden)
        if guard is not None:
            writer.follow(self._before())
        if writer.row.penalized:
            writer.row.seen[:] = self._fed_V + self._written_V > 0
            writer.row.counts[:] = self._written_V
        if sampling.dry_window:
            writer.row.last.extend(self._model.tokenizer.encode(self.text).tolist())
        return self._write(writer)

    def generate(self, **options: Any) -> str:
        """Goes on writing; arguments as `stream`, returns the new text.

        A stop string is neither returned nor read: feed it if the text shall go on after it.
        """
        return "".join(self.stream(**options))

    def _write(self, writer: Writer) -> Iterator[str]:
        self.reason = writer.reason
        if writer.reason is None and self._held:
            yield from self._show(writer, writer.take(""))
        if writer.reason is not None:
            return
        logits_BV, state = self._current()
        while True:
            if not self._held and not self._stream.unfinished:
                self._logits_BV, self._state, self._ahead, self._shown = logits_BV, state, [], 0
            id = int(sample(logits_BV, [writer.row])[0])
            text = writer.push(id)
            if writer.reason != "end":
                self._ahead.append(id)
                self._written_V[id] += 1
            yield from self._show(writer, text)
            if writer.reason is not None:
                return
            logits_BV, state = self._model.engine.step(np.array([id]), state)

    def _show(self, writer: Writer, text: str) -> Iterator[str]:
        """Takes over where a writer stands before its text is given out, so that a text may be broken off there."""
        self._held, self._stream = writer.held
        self.reason = writer.reason
        self._shown += len(text)
        self._note(text)
        if writer.reason == "stop":
            self._go_back()
        if text:
            yield text

    def _before(self) -> bytes:
        """What the next token follows: the end of the text as bytes, and what was drawn and is not shown."""
        settled = self.text[: len(self.text) - self._shown]
        return text_to_bytes(settled) + self._model.tokenizer.decode_bytes(self._ahead)

    def _note(self, text: str) -> None:
        self.text, self.chars = (self.text + text)[-TAIL:], self.chars + len(text)

    def _read(self, text: str) -> None:
        ids = self._model.tokenizer.encode(text)
        if len(ids):
            self._logits_BV, self._state = self._model.engine.prefill(ids.astype(np.int64)[None], self._state)
            np.add.at(self._fed_V, ids, 1)

    def _current(self) -> tuple[NDArray[np.float32], State]:
        """Logits and state after all that was drawn."""
        logits_BV, state = self._logits_BV, self._state
        for id in self._ahead:
            logits_BV, state = self._model.engine.step(np.array([id]), state)
        return logits_BV, state

    def _settle(self) -> None:
        """Brings the state to what was shown."""
        if self._held or self._stream.unfinished:
            self._go_back()
        else:
            self._logits_BV, self._state = self._current()
            self._ahead, self._shown = [], 0

    def _go_back(self) -> None:
        """Gives up what was drawn and not shown; what was shown of the same tokens is read anew."""
        shown = self._model.tokenizer.decode(self._ahead)[: self._shown]
        np.subtract.at(self._written_V, self._ahead, 1)
        self._ahead, self._shown = [], 0
        self._held, self._stream = "", TextStream(self._model.tokenizer)
        self._read(shown)

    def branch(self, seed: int | np.random.Generator | None = None) -> Session:
        """A copy with all that it knows, the random stream included: asked the same, both write the same.

        Args:
            seed: of another random stream, or that stream itself.
        """
        if seed is not None and not isinstance(seed, np.random.Generator):
            whole_number("seed", seed)
        twin = copy.copy(self)
        twin._ahead, twin._stream = list(self._ahead), self._stream.copy()
        twin._fed_V, twin._written_V = self._fed_V.copy(), self._written_V.copy()
        twin.rng = copy.deepcopy(self.rng) if seed is None else np.random.default_rng(seed)
        return twin

    @staticmethod
    def mix(a: Session, b: Session, share: float) -> Session:
        """A branch of `a` whose memory is blended with that of `b`.

        Args:
            a, b: two sessions of one model.
            share: of `b`, from 0 to 1.
        """
        _require_same_model(a._model, b._model.identity, b._model.title, "the other session")
        a, b = a.branch(), b.branch()
        a._state = State.mix(a.state, b.state, share)
        # Logits are affine in the outputs of the last layer: their blend is what the blended state gives.
        a._logits_BV = ((1 - share) * a._logits_BV + share * b._logits_BV).astype(np.float32)
        return a

    def save(self, path: str | Path) -> None:
        """Writes the session to a safetensors file, whole or not at all; it goes on from there as if never saved.

        The model is not in it, nor what that has learnt: save `model` too, and load the session with what it became.
        Its memories begin anew then.
        """
        from safetensors.numpy import save

        values = {
            "model": self._model.identity,
            "title": self._model.title,
            "sampling": self.sampling.to_dict(),
            "random": self.rng.bit_generator.state,
            "ahead": self._ahead,
            "shown": self._shown,
            "text": self.text,
            "chars": self.chars,
            "reason": self.reason,
        }
        tensors = {
            "h": self._state.h_LBH, "c": self._state.c_LBH, "logits": self._logits_BV,
            "fed": self._fed_V, "written": self._written_V,
        }  # fmt: skip
        tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        session = json.dumps(values, ensure_ascii=True)
        metadata = {"format": _FORMAT, "session": session, "sha256": _digest(session, tensors)}
        write_atomically(Path(path), save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path, model: Owner | Callable[[str], Owner]) -> Self:
        """Reads a session that `save` wrote.

        Args:
            path: its file.
            model: what it was written with, or a function that finds it by its identity.

        Raises:
            UsageError: there is no such file, or it belongs to another model.
            ModelFileError: the file is damaged or something else.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UsageError(f"there is no session {str(path)!r}")
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ModelFileError(f"{path} is not a session of this version of textlstm")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            values = json.loads(metadata["session"])
            if metadata["sha256"] != _digest(metadata["session"], tensors):
                raise ModelFileError(f"{path} is damaged: its content does not match its SHA-256")
            model = model(values["model"]) if callable(model) else model
            _require_same_model(model, values["model"], values["title"], str(path))
            session = cls(model, SamplingConfig.from_dict(values["sampling"]), 0)
            session._restore(values, tensors)
        except (
            OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, OverflowError, ConfigError
        ) as error:  # fmt: skip
            raise ModelFileError(f"{path} is damaged or is no session of textlstm: {error}") from error
        return session

    def _restore(self, values: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
        fresh = {"h": self._state.h_LBH, "c": self._state.c_LBH, "logits": self._logits_BV, "fed": self._fed_V}
        for name, array in {**fresh, "written": self._written_V}.items():
            if tensors[name].shape != array.shape or tensors[name].dtype != array.dtype:
                raise ValueError(f"{name} has another shape")
        self._state, self._logits_BV = State(tensors["h"], tensors["c"]), tensors["logits"]
        self._fed_V, self._written_V = tensors["fed"].copy(), tensors["written"].copy()
        self.rng.bit_generator.state = values["random"]
        self._ahead, self._shown = [int(id) for id in values["ahead"]], int(values["shown"])
        if any(not 0 <= id < len(self._fed_V) for id in self._ahead):
            raise ValueError("it has ids that the model has not")
        drawn = "".join([self._stream.push(id) for id in self._ahead])
        self._held = drawn[self._shown :]
        self.text, self.chars, self.reason = str(values["text"]), int(values["chars"]), values["reason"]


def _require_same_model(model: Owner, identity: str, title: str, what: str) -> None:
    if model.identity != identity:
        raise UsageError(
            f"{what} belongs to the model {title} ({identity[:12]}), not to {model.title} ({model.identity[:12]}); "
            "states of one model mean nothing to another"
        )


def _digest(session: str, tensors: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(session.encode())
    for name in sorted(tensors):
        digest.update(f"{name}:{tensors[name].dtype.str}:{tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
