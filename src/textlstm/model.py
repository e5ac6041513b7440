"""`Model`, the object that users hold: a thin face over the layers below, with no logic of its own."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from textlstm import metrics
from textlstm.config import LearnConfig, ModelConfig, PatternConfig, SamplingConfig
from textlstm.engine import Engine, load_engine, writing_engine
from textlstm.errors import UsageError
from textlstm.export import export
from textlstm.generation import Limits, Writer, read_prompt, whole_number, write
from textlstm.generation import session as sessions
from textlstm.generation.pattern import Pattern, Vocabulary
from textlstm.generation.search import beam_search, check_search, write_best
from textlstm.generation.words import BadWords
from textlstm.machine import require_torch
from textlstm.model_file import DType, ModelFile, read_model, write_model
from textlstm.registry import find_model, find_model_by_identity
from textlstm.state import State
from textlstm.tokenizer import Tokenizer, checked_text, text_to_bytes

if TYPE_CHECKING:  # what writing does not need is imported when it is used
    from textlstm.coding import Coder, Compressed, Summary
    from textlstm.inspection import XRay
    from textlstm.learning import LearningEngine, WritingEngine
    from textlstm.memories import Mixture
    from textlstm.novelty import CopyGuard, SuffixIndex
    from textlstm.scoring import Report


class Model:
    """A finished language model.

    Args:
        file: what its file holds.
        engine: `int8`, `onnx` (single precision) or `torch` (reference, GPU); None writes with the fastest and scores
            in single precision.
        threads: cores that one step may use; None leaves it to the engine.
        read_first: tokens that memories have read before they learn; see `primed`.
        learnt: what writes instead of that engine; see `learning`.

    Attributes:
        config: the network's shape.
        tokenizer: its tokenizer.
        card: where it comes from, what it scores.
    """

    def __init__(
        self,
        file: ModelFile,
        engine: str | None = None,
        threads: int | None = None,
        read_first: NDArray[np.int32] | None = None,
        learnt: WritingEngine | None = None,
    ) -> None:
        self._file, self._engine_name, self._threads, self._read_first = file, engine, threads, read_first
        self._learnt = learnt
        self.config: ModelConfig = file.config
        self.tokenizer: Tokenizer = file.tokenizer
        self.card: dict[str, Any] = file.card

    def __repr__(self) -> str:
        shape = f"{self.config.num_layers} x {self.config.hidden_size} LSTM, {self.config.num_params:,} parameters"
        return f"<Model {self.title}: {shape}, {self.config.vocab_size:,} ids>"

    @classmethod
    def load(cls, name: str | Path, engine: str | None = None, threads: int | None = None) -> Model:
        """Loads a model by the path of its file, its run folder, or the name of one that ships.

        Raises:
            UsageError: there is no such model.
            ModelFileError: the file is damaged or something else.
        """
        return cls(read_model(find_model(name)), engine, threads)

    @cached_property
    def engine(self) -> Engine:
        """What writes; made when it is first needed."""
        return self._learnt or load_engine(self._file, self._engine_name or writing_engine(), self._threads)

    @cached_property
    def scoring_engine(self) -> Engine:
        """What gives probabilities and scores; made when it is first needed."""
        if self._engine_name and self._learnt is None:
            return self.engine
        return load_engine(self._file, self._engine_name or "onnx", self._threads)

    def next_token_probs(self, text: str = "") -> NDArray[np.float64]:
        """Probabilities of the token after a text, shape (V,), the document boundary included; they sum to 1."""
        logits_BV, _ = read_prompt(self.scoring_engine, self.tokenizer, text)
        weights_V = np.exp(logits_BV[0].astype(np.float64) - logits_BV[0].max())
        probs_V: NDArray[np.float64] = weights_V / weights_V.sum()
        return probs_V

    def score(
        self,
        text: str | Sequence[str],
        protocol: str = "stream",
        context: str = "",
        progress: metrics.Progress = metrics.no_progress,
        learn: LearnConfig | bool | None = None,
    ) -> metrics.Score:
        """What a text costs under the model.

        Args:
            text: the text, or several: each is scored from the same start, and the scores are added up.
            protocol: `stream`, `stream-L` or `cold-N`; see `textlstm.metrics`.
            context: text that is read before each and not scored.
            progress: told how far it is; the tokens of one text, or the texts of several.
            learn: learn from what was read, the context included, from text to text (`stream+learn`, with one lane
                only); True is `LearnConfig()`. The model itself stays what it is.

        Raises:
            UsageError: an unknown protocol, an empty text, no text, or bytes.
        """
        engine: Engine = self.learner(learn) if learn else self.scoring_engine
        if learn and protocol != "stream":
            raise UsageError(f"learning goes along one text: its protocol is stream, not {protocol}")
        before = self.tokenizer.encode(checked_text(context)) if context else None
        texts = text if isinstance(text, Sequence) and not isinstance(text, str | bytes) else [text]
        scores = []
        for one in texts:
            ids, size = self.tokenizer.encode(checked_text(one)), len(text_to_bytes(one))
            inner = progress if len(texts) == 1 else metrics.no_progress
            scores.append(metrics.score(engine, ids, len(one), size, before, protocol, progress=inner))
            if len(texts) > 1:
                progress(len(scores), len(texts))
        total = metrics.total(scores)
        return dataclasses.replace(total, protocol=metrics.LEARNING) if learn else total

    @property
    def has_statistics(self) -> bool:
        """Whether its file has the statistics of gradients that learning goes by."""
        return bool(self._file.statistics)

    @property
    def memories_origin(self) -> str | None:
        """SHA-256 of the tokens that memories have read before they learn; None where they start empty."""
        return None if self._read_first is None else self._memories.origin.hex()

    def learner(self, learn: LearnConfig | bool = True) -> LearningEngine:
        """An engine that learns from what it reads, and has read nothing yet.

        Args:
            learn: how; True is `LearnConfig()`.

        Raises:
            MissingExtraError: torch is not installed.
        """
        require_torch()
        from textlstm.learning import LearningEngine

        config = learn if isinstance(learn, LearnConfig) else LearnConfig()
        return LearningEngine(self._file, config, self._memories.copy() if config.learn_memories else None)

    def learning(self, learn: LearnConfig | bool = True) -> Model:
        """This model, with sessions that are written by weights and memories as `score` with `learn` has them.

        Args:
            learn: how it learns from what `Session.learn` is given; True is `LearnConfig()`.
        """
        return Model(self._file, self._engine_name, self._threads, self._read_first, self._beginner(learn))

    def _beginner(self, learn: LearnConfig | bool) -> WritingEngine:
        learner = self.learner(learn)
        from textlstm.learning import WritingEngine

        return WritingEngine(learner)

    def learnt_from(
        self, text: str, state: State | None, learn: LearnConfig | bool = True
    ) -> tuple[Model, NDArray[np.float32], State]:
        """Reads a text within a session, and learns from it; this model stays what it is.

        Args:
            text: the text, at least one token.
            state: where it begins; None is the model's start.
            learn: how, if it has not begun to learn.

        Returns:
            What has learnt, logits after the text, shape (1, V), and the state to go on from.
        """
        ids = self.tokenizer.encode(checked_text(text)).astype(np.int64)
        learnt, logits_BV, after = (self._learnt or self._beginner(learn)).learn(ids, state)
        file = self._file_that_learnt(text, learnt.weights())
        return Model(file, self._engine_name, self._threads, self._read_first, learnt), logits_BV, after

    def _file_that_learnt(self, text: str, weights: dict[str, NDArray[np.float32]]) -> ModelFile:
        told = [*self.card.get("learnt", []), {"chars": len(text), "sha256": sha256(text_to_bytes(text)).hexdigest()}]
        return dataclasses.replace(self._file, weights=weights, card={**self.card, "learnt": told}, sha256="")

    @cached_property
    def _memories(self) -> Mixture:
        """Memories that have read nothing but the text that the model was primed with."""
        from textlstm.memories import Mixture

        size, tokenizer = self.config.vocab_size, self.tokenizer
        spelled = [tokenizer.token_bytes(id) if id < tokenizer.vocab_size else b"" for id in range(size)]
        memories = Mixture(size, token_bytes=spelled)
        if self._read_first is not None:
            memories.prime(self._read_first)
        return memories

    def learn(self, text: str, learn: LearnConfig | bool = True, state: State | None = None) -> Model:
        """A model that has read a text and learnt from it; this one stays what it is.

        Args:
            text: the text.
            learn: how; True is `LearnConfig()`.
            state: where the text begins; None is the model's start.
        """
        config = learn if isinstance(learn, LearnConfig) else LearnConfig()
        engine = self.learner(config.replace(learn_memories=False))  # only the weights go on
        ids = self.tokenizer.encode(checked_text(text)).astype(np.int64)
        if len(ids):
            engine.prefill(ids[None], engine.begin(1)[1] if state is None else state)
        engine.finish()
        return Model(self._file_that_learnt(text, engine.weights()), self._engine_name, self._threads)

    def primed(self, text: str, progress: metrics.Progress = metrics.no_progress) -> Model:
        """This model, prepared to learn by a text that it was trained on, or one like it.

        Memories read the text first, and the statistics of gradients are measured on it.

        Raises:
            MissingExtraError: torch is not installed.
            UsageError: the text has less than two tokens.
        """
        require_torch()
        from textlstm.learning import measure

        ids = self.tokenizer.encode(checked_text(text))
        if len(ids) < 2:
            raise UsageError("a text of less than two tokens has no gradients; name a longer one with --learn-from")
        file = dataclasses.replace(self._file, statistics=measure(self._file, ids, progress=progress), sha256="")
        return Model(file, self._engine_name, self._threads, ids)

    def score_report(
        self,
        files: Sequence[tuple[str, Sequence[str]]],
        context: str = "",
        progress: metrics.Progress = metrics.no_progress,
        learn: LearnConfig | bool | None = None,
    ) -> Report:
        """The score of named files, looked at closely; arguments as in `textlstm.scoring.report` and `score`."""
        from textlstm.scoring import report

        learner = partial(self.learner, learn) if learn else None
        return report(self.scoring_engine, self.tokenizer, files, context, progress, learner)

    @cached_property
    def _patterns(self) -> Callable[[PatternConfig], Pattern]:
        vocabulary = Vocabulary(self.tokenizer, self.config.vocab_size)
        return lru_cache(8)(lambda config: Pattern(config, vocabulary))

    def pattern(self, config: PatternConfig) -> Pattern | None:
        """A pattern made ready for this model, or None if nothing is asked.

        Raises:
            UsageError: it cannot be read, or there is no text that fits.
        """
        return None if config == PatternConfig() else self._patterns(config)

    def writers(
        self,
        number: int,
        sampling: SamplingConfig,
        limits: Limits,
        seed: int,
        pattern: Pattern | None = None,
        guard: CopyGuard | BadWords | None = None,
    ) -> Sequence[Writer]:
        """Writers for some texts; the seeds of their streams are `seed`, `seed + 1`, ..."""
        whole_number("seed", seed)
        shape = self.config.vocab_size, self.config.boundary_id
        forbidden = None if guard is None else guard.forbidden
        return [
            Writer(self.tokenizer, *shape, sampling, limits, seed + i, pattern, forbidden=forbidden)
            for i in range(number)
        ]

    def write(self, prompt: str, writers: Sequence[Writer]) -> Iterator[tuple[int, str]]:
        """Continues a prompt once for each writer; yields the number of a writer and a piece of its text."""
        return write(self.engine, writers, *self._begin(prompt, writers))

    def write_best(self, prompt: str, writers: Sequence[Writer], keep: int = 1) -> Sequence[Writer]:
        """Continues a prompt once for each writer; returns those with the highest mean log-probability, best first."""
        return write_best(self.engine, writers, *self._begin(prompt, writers), keep)

    def search(self, prompt: str, writer: Writer, beams: int, keep: int = 1) -> Sequence[Writer]:
        """Looks for the likeliest continuations by beam search; returns writers that have ended, best first."""
        return beam_search(self.engine, writer, *self._begin(prompt, [writer]), beams, keep)

    def _begin(self, prompt: str, writers: Sequence[Writer]) -> tuple[NDArray[np.float32], State]:
        logits_BV, state = read_prompt(self.engine, self.tokenizer, prompt)
        ids = self.tokenizer.encode(prompt)
        for writer in writers:
            writer.read(ids)
        rows = [0] * len(writers)
        return logits_BV[rows], state.select(rows)

    def copy_guard(self, max_copy: int | None, source: SuffixIndex | None) -> CopyGuard | None:
        """What keeps a text from copying more than some characters of a source; None without a limit.

        Raises:
            UsageError: a limit without a source, or below 1.
        """
        if max_copy is None:
            return None
        if source is None:
            learnt = f" (this model learnt from {self.title})" if "corpus" in self.card else ""
            raise UsageError(f"max-copy needs a copy-source: the text that must not be copied{learnt}")
        return self._guards(source, max_copy)

    @cached_property
    def _guards(self) -> Callable[[SuffixIndex, int], CopyGuard]:
        from textlstm.novelty import CopyGuard

        return lru_cache(2)(lambda source, most: CopyGuard(source, self.tokenizer, most))

    def stream(
        self,
        prompt: str = "",
        *,
        max_tokens: int | None = None,
        max_chars: int | None = None,
        stop: Sequence[str] = (),
        stop_at_end: bool = False,
        seed: int | None = None,
        beams: int | None = None,
        best_of: int | None = None,
        max_copy: int | None = None,
        copy_source: SuffixIndex | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Continues a prompt, piece by piece; arguments as in `generate`. Beams and `best_of` give one piece."""
        limits = Limits(max_tokens, max_chars, (stop,) if isinstance(stop, str | bytes) else tuple(stop), stop_at_end)
        seed = secrets.randbits(31) if seed is None else seed
        pattern = self.pattern(PatternConfig.taken_from(options))
        sampling = SamplingConfig.from_dict(options)
        guard = self.copy_guard(max_copy, copy_source)
        check_search(1, beams, best_of, sampling)
        writers = self.writers(1 if best_of is None else best_of, sampling, limits, seed, pattern, guard)
        if beams is not None:
            return iter([self.search(prompt, writers[0], beams)[0].text])
        if best_of is not None:
            return iter([self.write_best(prompt, writers)[0].text])
        return (text for _, text in self.write(prompt, writers))

    def generate(self, prompt: str = "", **options: Any) -> str:
        """Continues a prompt.

        Args:
            prompt: text to continue; "" is the model's own start.
            **options: `max_tokens`, `max_chars`, `stop` (strings), `stop_at_end`, `seed` (None is a new one each
                time); `beams` (beam search) or `best_of` (samples of which the likeliest is kept); `max_copy`
                (characters of a verbatim run) and `copy_source` (a `SuffixIndex`); the fields of
                `SamplingConfig`: `temperature`, `top_k`, `top_p`, ...; those of `PatternConfig`: `regex`, `choices`,
                `template`, `blanks`, `line_length`, `prefix`.

        Returns:
            The continuation, without the prompt.

        Raises:
            ConfigError: an unknown option or an impossible value.
            UsageError: a pattern that cannot be met.
        """
        return "".join(self.stream(prompt, **options))

    @property
    def identity(self) -> str:
        """SHA-256 of what computes; states and compressed files belong to it."""
        return self._file.identity

    @property
    def title(self) -> str:
        """What the model is called in messages: by the corpus it was trained on."""
        corpus = self.card.get("corpus")
        return str(corpus.get("name", "unnamed")) if isinstance(corpus, dict) else "unnamed"

    def session(self, seed: int | None = None, **sampling: Any) -> Session:
        """A text that is read and written bit by bit, and can be branched, saved and loaded.

        Args:
            seed: of its random stream; None is a new one each time.
            **sampling: the fields of `SamplingConfig`.
        """
        seed = secrets.randbits(31) if seed is None else seed
        return Session(self, SamplingConfig.from_dict(sampling), seed)

    @cached_property
    def coder(self) -> Coder:
        """The model as compression uses it: in int8, whose numbers are the same everywhere, whatever else runs it."""
        from textlstm.coding import Coder, EnginePredictor

        engine = load_engine(self._file, "int8")
        return Coder(
            self._file.identity,
            self.tokenizer,
            lambda lanes: EnginePredictor(engine, lanes),
            that_learnt=self._coder_that_learnt,
        )

    def learning_coder(self, learn: LearnConfig | bool = True) -> Coder:
        """The model as compression uses it that learns from what it has coded."""
        from textlstm.coding import EnginePredictor

        return dataclasses.replace(
            self.coder,
            predictor=lambda lanes: EnginePredictor(self.learner(learn), lanes),
            settings=self.learner(learn).settings,
        )

    def _coder_that_learnt(self, settings: bytes) -> Coder:
        require_torch()
        from textlstm.learning import read_settings

        return self.learning_coder(read_settings(settings))

    def compress(
        self,
        data: bytes,
        lanes: int = 1,
        progress: metrics.Progress = metrics.no_progress,
        learn: LearnConfig | bool | None = None,
    ) -> Compressed:
        """Compresses any bytes; arguments and result as in `textlstm.coding.compress`, `learn` as in `score`."""
        if isinstance(data, str):
            raise UsageError("compress takes bytes, not str; a text becomes bytes by .encode()")
        from textlstm.coding import compress

        return compress(data, self.learning_coder(learn) if learn else self.coder, lanes, progress)

    def compress_stream(
        self,
        source: BinaryIO,
        target: BinaryIO,
        lanes: int = 1,
        progress: metrics.Progress = metrics.no_progress,
        learn: LearnConfig | bool | None = None,
        size: int | None = None,
    ) -> Summary:
        """Compresses a file of any size; arguments and result as in `textlstm.coding.compress_stream`."""
        from textlstm.coding import compress_stream

        coder = self.learning_coder(learn) if learn else self.coder
        return compress_stream(source, target, coder, lanes, progress, size)

    def decompress(self, data: bytes, progress: metrics.Progress = metrics.no_progress) -> bytes:
        """Gives back what `compress` was given.

        Raises:
            CodingError: a damaged or foreign file, another model, or a machine that computes differently.
        """
        from textlstm.coding import decompress

        return decompress(data, lambda _: self.coder, progress)

    def decompress_stream(
        self,
        source: BinaryIO,
        target: BinaryIO,
        progress: metrics.Progress = metrics.no_progress,
        size: int | None = None,
    ) -> Summary:
        """Gives back a file of any size; arguments and errors as in `textlstm.coding.decompress_stream`."""
        from textlstm.coding import decompress_stream

        return decompress_stream(source, target, lambda _: self.coder, progress, size)

    def inspect(
        self,
        text: str | None = None,
        held_out: str | None = None,
        progress: metrics.Progress = metrics.no_progress,
    ) -> XRay:
        """Looks at cells, gates and memory while the model reads a text; see `textlstm.inspection.xray`.

        Args:
            text: chooses the cells that mean something; None is what the model writes itself.
            held_out: judges them; None takes the last third of the text.
            progress: told how far it is.
        """
        from textlstm.inspection.xray import OWN_CHARS, xray

        text = self.generate("", max_chars=OWN_CHARS, seed=0) if text is None else checked_text(text)
        cut = len(text) * 2 // 3
        parts = (text[:cut], text[cut:]) if held_out is None else (text, checked_text(held_out))
        return xray(self._file, self.scoring_engine, *parts, progress=progress)

    def save(self, path: str | Path, dtype: DType = "fp32") -> None:
        """Writes the model to a file; `dtype` is `fp32`, `fp16` or `int8`."""
        file = self._file
        write_model(path, file.config, file.tokenizer, file.weights, file.card, dtype, file.statistics)

    def export(self, out: str | Path, to: str = "html") -> None:
        """Writes the model as a small model file (`int8`), an offline page (`html`), `onnx`, or for `transformers`.

        Raises:
            UsageError: an unknown format, or a place that cannot be written to.
        """
        export(self._file, to, out)


class Session(sessions.Session):
    """A session that finds its model by itself, where that is one that ships; all else stands in its base."""

    @classmethod
    def load(cls, path: str | Path, model: sessions.Owner | Callable[[str], sessions.Owner] | None = None) -> Self:
        """Reads a session that `save` wrote.

        Args:
            path: its file.
            model: what it was written with; None looks among the models that ship, in the cache's
                `models`, and in the run folders of `runs`.

        Raises:
            UsageError: there is no such file, its model is not found, or it is another one.
            ModelFileError: the file is damaged or something else.
        """
        return super().load(path, _find if model is None else model)


def _find(identity: str) -> Model:
    try:
        return Model(find_model_by_identity(identity))
    except UsageError as error:
        problem = f"the session belongs to a model that does not ship and is not in runs (identity {identity[:12]}…)"
        raise UsageError(f"{problem}; name it: Session.load(path, textlstm.load(...))") from error
