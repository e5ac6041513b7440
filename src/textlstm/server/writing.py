"""From a request to texts: checks what was asked against the model, runs the jobs, and puts the news in order."""

from __future__ import annotations

import asyncio
import codecs
import re
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textlstm.config import PatternConfig, SamplingConfig
from textlstm.errors import BusyError, ConfigError, UsageError
from textlstm.generation import Limits
from textlstm.generation.pattern import Pattern
from textlstm.generation.words import BadWords
from textlstm.server.hub import END, Hub, Inbox, Served
from textlstm.server.protocol import ApiError, Body, RepetitionDetection, StructuredOutputs, WritingBody
from textlstm.server.scheduler import Job, News, Point, Scheduler, Text, Token

_LONG = 20_000  # characters; longer texts are tokenised in another thread, so that the event loop goes on
_FINISH = {"length": "length", "deadline": "length", "stop": "stop", "end": "stop", "pattern": "stop"}
_DRAWING = ("top_n_sigma", "xtc_probability", "dry_multiplier", "mirostat", "samplers", "temperature_last")
LEAST = -9999.0  # JSON has no -infinity

Ids = NDArray[np.int64]


class Entry(NamedTuple):
    """A token as the API shows it; `offset` counts characters from the start of the choice's text."""

    id: int
    offset: int
    logprob: float | None
    top: Sequence[tuple[int, float]]
    rank: int | None


class Transcript:
    """One choice: its text and its tokens so far.

    A token is shown once the text that it begins with is certain; what a stop string cuts off is never shown.

    Args:
        served: the model.
        index: of the choice.
        shows_tokens: whether tokens are kept; else only the text is.
    """

    def __init__(self, served: Served, index: int, shows_tokens: bool = True) -> None:
        self.index, self._bytes, self._end_id = index, served.model.tokenizer.token_bytes, served.end_id
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoded = self._certain = 0  # characters
        self._shows_tokens = shows_tokens
        self._hidden: list[Entry] = []
        self._texts: list[str] = []
        self.entries = list[Entry]()
        self.reason: str | None = None
        self.stopped_by: str | int | None = None

    def take(self, text: str, tokens: Sequence[Token], reason: str | None = None) -> list[Entry]:
        """Adds news; returns the tokens that may be shown now."""
        self.reason = reason
        if text:
            self._texts.append(text)
            self._certain += len(text)
        if not self._shows_tokens:
            return []
        if reason == "end" and tokens and tokens[-1].id != self._end_id:
            tokens = tokens[:-1]  # the last one ended a complete pattern by leaving it, and is no part of the text
        for token in tokens:
            self._hidden.append(Entry(token.id, self._decoded, token.logprob, token.top, token.rank))
            if token.id < self._end_id:
                self._decoded += len(self._decoder.decode(self._bytes(token.id)))
        certain = self._certain + (reason is not None and reason != "stop")
        number = sum(entry.offset < certain for entry in self._hidden)
        shown, self._hidden = self._hidden[:number], self._hidden[number:]
        self.entries += shown
        return shown

    def begin(self, text: str) -> None:
        """Puts the text of the prompt first."""
        self._texts, self._decoded, self._certain = [text], len(text), len(text)

    def close(self, text: str) -> None:
        """Ends a prompt, whose text is known as a whole."""
        self._texts = [text]
        self.entries, self._hidden = self.entries + self._hidden, []

    @property
    def text(self) -> str:
        """What is certain so far."""
        return "".join(self._texts)

    @property
    def mean_logprob(self) -> float:
        """Of the written tokens; what `best_of` goes by."""
        values = [entry.logprob for entry in [*self.entries, *self._hidden] if entry.logprob is not None]
        return sum(values) / len(values) if values else 0.0


class Piece(NamedTuple):
    """What a stream tells of a choice."""

    choice: Transcript
    text: str
    entries: Sequence[Entry]


@dataclass
class Plan:
    """What was asked for, checked and in the model's terms."""

    prompts: list[Ids]
    echoes: list[str] | None
    n: int
    best_of: int
    beams: int | None  # where the likeliest texts are looked for
    max_tokens: int
    top: int | None  # likeliest tokens to report; None reports no log-probabilities
    prompt_top: int | None  # the same for the tokens of prompts, beside their echo
    stop: tuple[str, ...]
    seed: int
    sampling: SamplingConfig
    pattern: Pattern | None = None
    bad_words: Sequence[str] = ()
    start: Point | None = None
    deadline: float | None = None
    seconds: float | None = None
    text_options: dict[str, Any] = field(default_factory=dict)


class Work:
    """The jobs of one request, and the choices they make.

    Args:
        hub: the server's models.
        served: the model that writes.
        body: the request.
        plan: what is to be written.

    Attributes:
        choices: one for each prompt and text, `index = prompt * n + k`.
    """

    def __init__(self, hub: Hub, served: Served, body: WritingBody, plan: Plan) -> None:
        self.hub, self.served, self.body, self.plan = hub, served, body, plan
        self.inbox = Inbox()
        self.started = time.monotonic()
        self.first_token: float | None = None  # seconds
        self._shows_tokens = plan.top is not None or plan.best_of > plan.n or bool(body.return_token_ids)
        self._bad_words = BadWords(plan.bad_words, served.model.tokenizer) if plan.bad_words else None
        self.jobs = [self._job(ids) for ids in plan.prompts]
        self._places = {id(job): place for place, job in enumerate(self.jobs)}
        number = len(self.jobs) * plan.best_of
        self._written = [Transcript(served, i, self._shows_tokens) for i in range(number)]
        self._prompts = [Transcript(served, i) for i in range(len(self.jobs))]
        self.choices = self._written
        self.saved: str | None = None

    def _job(self, ids: Ids) -> Job:
        plan, model = self.plan, self.served.model
        end = not self.body.ignore_eos
        limits = Limits(plan.max_tokens, None, plan.stop, end, bool(self.body.include_stop_str_in_output))
        top = 0 if plan.top is None and self._shows_tokens else plan.top
        writers = model.writers(plan.best_of, plan.sampling, limits, plan.seed, plan.pattern, self._bad_words)
        for writer in writers:
            writer.read(ids)
        texts = [Text(writer, top, **plan.text_options) for writer in writers]
        start = plan.start
        if start is None and (self.body.add_special_tokens is False or (len(ids) and ids[0] == self.served.end_id)):
            start = self.served.blank  # the prompt says itself where its document begins, if it does
        wanted = [top for top in (plan.top if plan.echoes is not None else None, plan.prompt_top) if top is not None]
        prompt_top = max(wanted, default=None)
        keep = self.body.save_state is not None
        return Job(
            self.inbox, ids, texts, start, prompt_top, keep, deadline=plan.deadline, seconds=plan.seconds,
            beams=plan.beams,
            length_penalty=1.0 if self.body.length_penalty is None else self.body.length_penalty,
        )  # fmt: skip

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(job.ids) for job in self.jobs)

    @property
    def written_tokens(self) -> int:
        """Tokens of all texts, those that `best_of` drops included."""
        return sum(text.writer.tokens for job in self.jobs for text in job.texts)

    def usage(self) -> dict[str, int]:
        """The usage object."""
        prompt, written = self.prompt_tokens, self.written_tokens
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def timings(self) -> dict[str, float]:
        """How fast it went, in llama.cpp's words; waiting counts as reading."""
        read, told = self.inbox.read or self.started, self.inbox.told or self.started
        made: dict[str, float] = {}
        parts = (("prompt", self.prompt_tokens, read - self.started), ("predicted", self.written_tokens, told - read))
        for name, number, seconds in parts:
            made |= {
                f"{name}_n": number, f"{name}_ms": round(1000 * seconds, 3),
                f"{name}_per_token_ms": round(1000 * seconds / max(number, 1), 4),
                f"{name}_per_second": round(number / max(seconds, 1e-6), 1),
            }  # fmt: skip
        return made

    def prompt_entries(self, choice: Transcript) -> Sequence[Entry]:
        """The tokens of a choice's prompt."""
        return self._prompts[choice.index // self.plan.n].entries

    def submit(self) -> None:
        """Hands the jobs to the scheduler.

        Raises:
            ApiError: there is no room.
        """
        submit(self.hub, self.served.scheduler, self.jobs)

    def cancel(self) -> None:
        """Gives up what is not done."""
        self.served.scheduler.cancel(self.jobs)

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """What is new, until all choices have ended, or nothing where nothing came for a while.

        Jobs are given up when the reader leaves.

        Raises:
            ApiError: a job could not be done.
        """
        open_choices = len(self._written)
        try:
            while open_choices:
                pieces: dict[int, Piece] = {}
                arrived = await self.inbox.take()
                for news in arrived:
                    if news.error is not None:
                        raise _refusal(news.error)
                    if news.point is not None and self.body.save_state is not None:
                        await self._save(news.point)
                    if news.number < 0:
                        self._read(news, pieces)
                        continue
                    choice = self._written[self._places[id(news.job)] * self.plan.best_of + news.number]
                    if self.first_token is None:
                        self.first_token = time.monotonic() - self.started
                    entries = choice.take(news.text, news.tokens, news.reason)
                    if news.reason is not None:
                        open_choices -= 1
                        choice.stopped_by = news.job.texts[news.number].stopped_by
                        if news.reason == "deadline":
                            choice.stopped_by = "deadline"
                    if news.text or entries or news.reason is not None:
                        _merge(pieces, Piece(choice, news.text, entries))
                if pieces or not arrived:
                    yield list(pieces.values())
            self._choose()
        finally:
            if open_choices:
                self.cancel()

    async def whole(self) -> list[Transcript]:
        """The choices when all have ended."""
        async for _ in self.pieces():
            pass
        return self.choices

    def _read(self, news: News, pieces: dict[int, Piece]) -> None:
        """News of a prompt: its tokens, and at its end the echo of it in each of its choices."""
        place = self._places[id(news.job)]
        self._prompts[place].take("", news.tokens)
        if news.reason != "read":
            return
        text = "" if self.plan.echoes is None else self.plan.echoes[place]
        prompt = self._prompts[place]
        prompt.close(text)
        if prompt.entries:  # nothing precedes the first token, says the contract
            prompt.entries[0] = prompt.entries[0]._replace(logprob=None, top=())
        if self.plan.echoes is None:
            return
        for choice in self._written[place * self.plan.best_of : (place + 1) * self.plan.best_of]:
            choice.begin(text)
            _merge(pieces, Piece(choice, text, self._echoed(prompt)))

    def _echoed(self, prompt: Transcript) -> list[Entry]:
        """The tokens of a prompt as they stand before those of its texts."""
        return [entry._replace(top=entry.top[: self.plan.top or 0]) for entry in prompt.entries]

    def _choose(self) -> None:
        """Keeps the best of the texts of each prompt, and puts the echo of the prompt's tokens before them."""
        best_of, n = self.plan.best_of, self.plan.n
        if best_of > n:
            kept: list[Transcript] = []
            for start in range(0, len(self._written), best_of):
                texts = self._written[start : start + best_of]
                kept += sorted(texts, key=lambda text: -text.mean_logprob)[:n]
            self.choices = kept
            for index, choice in enumerate(kept):
                choice.index = index
        if self.plan.echoes is not None:
            for choice in self.choices:
                choice.entries = self._echoed(self._prompts[choice.index // n]) + choice.entries

    async def _save(self, point: Point) -> None:
        name = str(self.body.save_state)
        await asyncio.to_thread(self.hub.shelf.save, name, point, self.served.model.identity)
        self.saved = name


def _merge(pieces: dict[int, Piece], new: Piece) -> None:
    """A reader that is slower than the model gets several tokens at once."""
    old = pieces.get(new.choice.index)
    pieces[new.choice.index] = (
        new if old is None else Piece(new.choice, old.text + new.text, [*old.entries, *new.entries])
    )


def _refusal(error: Exception) -> ApiError:
    if isinstance(error, BusyError):
        return ApiError(503, str(error), retry_after=1)
    if isinstance(error, UsageError):
        return ApiError(400, re.sub(r"^row \d+: ", "", str(error)))
    return ApiError(500, "the model could not go on with this text; the server's log has the reason")


def finish_reason(choice: Transcript) -> str | None:
    """Why a choice ended, in the API's words."""
    return None if choice.reason is None else _FINISH[choice.reason]


async def encode(served: Served, text: str, parse_special: bool = False) -> Ids:
    """The ids of a text; long ones are made in another thread."""
    if len(text) < _LONG:
        return served.encode(text, parse_special)
    return await asyncio.to_thread(served.encode, text, parse_special)


async def plan_writing(
    hub: Hub, served: Served, body: WritingBody, prompts: Sequence[str | list[int]], **asked: Any
) -> Plan:
    """Checks what a request asks for.

    Args:
        hub: the server's models.
        served: the model.
        body: the request.
        prompts: texts, or lists of ids.
        **asked: `max_tokens`, `best_of`, `top`, `echo`, and a `stop` that is added, where the endpoints differ.

    Raises:
        ApiError: something cannot be meant or is too much; it names the field.
    """
    settings = hub.settings
    n = 1 if body.n is None else body.n
    best_of = n if asked.get("best_of") in (None, 0) else asked["best_of"]
    top, most = asked.get("top"), settings.max_tokens
    require(n <= settings.max_n, f"n must be at most {settings.max_n}", "n")
    require(best_of >= n, "best_of must be at least n", "best_of")
    require(not (body.stream and best_of > n), "best_of cannot be streamed", "best_of")
    require(bool(body.stream) or body.stream_options is None, "only for stream=true", "stream_options")
    require(len(prompts) <= settings.max_prompts, f"at most {settings.max_prompts} prompts in a request", "prompt")
    require(asked["max_tokens"] <= most, f"max_tokens must be at most {most}", "max_tokens")
    require(top is None or top <= settings.max_logprobs, f"at most {settings.max_logprobs} logprobs", "logprobs")
    most_top, prompt_top = settings.max_logprobs, body.prompt_logprobs
    require(prompt_top is None or prompt_top <= most_top, f"at most {most_top} logprobs", "prompt_logprobs")
    require(not (body.stream and prompt_top is not None), "only for answers that are not streamed", "prompt_logprobs")
    require(body.save_state is None or len(prompts) == 1, "only for requests with one prompt", "save_state")
    ids = [await _prompt(hub, served, body, prompt) for prompt in prompts]
    if body.save_state is not None:
        hub.shelf.check(body.save_state)
    beams = None
    if body.use_beam_search:
        _check_beams(body, top)
        best_of, beams = n, best_of
    pattern = await _pattern(served, body)
    stop = () if body.stop is None else (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    return Plan(
        prompts=ids,
        echoes=[_shown(served, body, p, i) for p, i in zip(prompts, ids, strict=True)] if asked.get("echo") else None,
        n=n,
        best_of=best_of,
        beams=beams,
        max_tokens=asked["max_tokens"],
        top=top,
        prompt_top=prompt_top,
        stop=(*stop, *(asked.get("stop", ()) if pattern is None or pattern.open else ())),
        seed=secrets.randbits(31) if body.seed is None else body.seed % 2**64,
        sampling=_sampling(body),
        pattern=pattern,
        bad_words=tuple(body.bad_words or ()),
        start=await starting_point(hub, served, body.state),
        deadline=time.monotonic() + settings.timeout,
        seconds=body.t_max_predict_ms / 1000 if body.t_max_predict_ms else None,  # 0 is off, as in llama.cpp
        text_options=_text_options(served, body),
    )


async def prepare(hub: Hub, served: Served, body: WritingBody, plan: Plan) -> Work:
    """The work of a request; where texts have a pattern or bad words, in another thread, since that may take a second.

    Raises:
        ApiError: the pattern takes more than the texts may have.
    """
    if plan.pattern is None and not plan.bad_words:
        return Work(hub, served, body, plan)
    try:
        return await asyncio.to_thread(Work, hub, served, body, plan)
    except UsageError as error:
        raise ApiError(400, str(error), "structured_outputs") from error


def require(condition: bool, message: str, param: str, code: str | None = None) -> None:
    """Refuses a request that does not fulfil a condition."""
    if not condition:
        raise ApiError(400, message, param, code)


async def _prompt(hub: Hub, served: Served, body: Body, prompt: str | list[int]) -> Ids:
    ids = await encode(served, prompt) if isinstance(prompt, str) else np.array(prompt, np.int64)
    most, vocab = hub.settings.max_prompt_tokens, served.model.config.vocab_size
    if len(ids):
        require(int(ids.max()) < vocab, f"token ids must be below {vocab}", "prompt")
    if (last := getattr(body, "truncate_prompt_tokens", None)) is not None:
        ids = ids[-last:]
    message = f"the prompt has {len(ids)} tokens, at most {most} are read; send less"
    require(len(ids) <= most, message, "prompt", "context_length_exceeded")
    return ids


def _shown(served: Served, body: WritingBody, prompt: str | list[int], ids: Ids) -> str:
    """A prompt as text, with the document boundary where that was asked for."""
    if isinstance(prompt, str):
        return prompt
    return served.decode(ids, show_end=body.skip_special_tokens is False)


async def starting_point(hub: Hub, served: Served, state: str | dict[str, float] | None) -> Point | None:
    """The point that a state of that name, or a mixture, begins at.

    Raises:
        ApiError: there is none.
    """
    if state is None:
        return None
    config, identity = served.model.config, served.model.identity
    if isinstance(state, str):
        return await asyncio.to_thread(hub.shelf.load, state, config, identity)
    return await asyncio.to_thread(hub.shelf.mix, state, config, identity)


def _check_beams(body: WritingBody, top: int | None) -> None:
    """Refuses what beam search, which draws nothing, would not heed; the temperature and the seed do no harm."""
    require(not body.stream, "texts that are looked for cannot be streamed", "stream")
    require(top is None, "not with use_beam_search", "logprobs")
    off = {"top_k": (0, -1), "top_p": (1,), "min_p": (0,), "typical_p": (1,), "repetition_penalty": (1,)}
    unheeded = (
        *_DRAWING, "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "stop_token_ids",
        "allowed_token_ids", "repetition_detection", "t_max_predict_ms", "save_state", "return_token_ids",
    )  # fmt: skip
    for name in (*off, *unheeded):
        value = getattr(body, name)
        require(not value or value in off.get(name, ()), "not with use_beam_search, which draws nothing", name)


def _sampling(body: WritingBody) -> SamplingConfig:
    given: dict[str, Any] = {
        "temperature": body.temperature, "top_p": body.top_p, "min_p": body.min_p, "typical_p": body.typical_p,
        "top_k": None if body.top_k is None else max(body.top_k, 0), "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty, "repetition_penalty": body.repetition_penalty,
        "top_n_sigma": body.top_n_sigma, "xtc_probability": body.xtc_probability, "xtc_threshold": body.xtc_threshold,
        "dry_multiplier": body.dry_multiplier, "dry_base": body.dry_base, "mirostat": body.mirostat,
        "dry_allowed_length": body.dry_allowed_length, "mirostat_tau": body.mirostat_tau,
        "mirostat_eta": body.mirostat_eta, "temperature_last": body.temperature_last,
        "samplers": None if body.samplers is None else ";".join(body.samplers),
        "dry_breakers": None if body.dry_sequence_breakers is None else "".join(body.dry_sequence_breakers),
    }  # fmt: skip
    if body.dry_penalty_last_n is not None:
        given["dry_penalty_last_n"] = min(body.dry_penalty_last_n, SamplingConfig.DRY_MOST)
    require(body.mirostat != 1, "mirostat 1 is not served; 2 is its successor", "mirostat")
    try:
        return SamplingConfig(
            **{"temperature": 1.0} | {key: value for key, value in given.items() if value is not None}
        )
    except ConfigError as error:
        raise ApiError(400, str(error), "samplers") from error


async def _pattern(served: Served, body: WritingBody) -> Pattern | None:
    """What the texts must look like."""
    asked = body.structured_outputs
    given = {} if asked is None else {name: value for name, value in asked if value is not None}
    if unknown := sorted(given.keys() - StructuredOutputs.model_fields.keys()):
        raise ApiError(400, f"{', '.join(unknown)}: not served; write a regex, or a choice", "structured_outputs")
    for name, value in (("regex", body.guided_regex), ("choice", body.guided_choice)):
        if value is not None:
            require(not given, "only one pattern at a time", f"guided_{name}")
            given[name] = value
    if not given:
        return None
    for name in ("allowed_token_ids", "stop_token_ids", "min_tokens"):
        require(not getattr(body, name), "a pattern says already what may be written; leave it out", name)
    choices = tuple(given.pop("choice", ()))
    try:
        config = PatternConfig(choices=choices, **given)
        return await asyncio.to_thread(served.model.pattern, config)
    except UsageError as error:
        raise ApiError(400, str(error), "structured_outputs") from error


def _text_options(served: Served, body: WritingBody) -> dict[str, Any]:
    vocab = served.model.config.vocab_size
    bias = {}
    for key, value in (body.logit_bias or {}).items():
        require(re.fullmatch(r"\d{1,9}", key, re.ASCII) is not None, f"{key!r} is no token id", "logit_bias")
        require(int(key) < vocab, f"token ids must be below {vocab}", "logit_bias")
        bias[int(key)] = min(max(value, -100.0), 100.0)
    for name in ("stop_token_ids", "allowed_token_ids"):
        require(all(id < vocab for id in getattr(body, name) or ()), f"token ids must be below {vocab}", name)
    return {
        "bias": bias,
        "stop_ids": frozenset(body.stop_token_ids or ()),
        "allowed": body.allowed_token_ids,
        "min_tokens": 0 if body.min_tokens is None else body.min_tokens,
        "repetition": _repetition(body.repetition_detection),
        "end_text": END if body.skip_special_tokens is False and body.include_stop_str_in_output else "",
        "processed": body.logprobs_mode in ("processed", "processed_logprobs"),
    }


def _repetition(asked: RepetitionDetection | None) -> tuple[int, int, int] | None:
    """Lengths of the shortest and the longest pattern, and how often it must come; 0 is off, as in vLLM."""
    if asked is None or not asked.max_pattern_size:
        return None
    least, most, times = max(asked.min_pattern_size or 0, 1), asked.max_pattern_size, asked.min_count or 0
    require(least <= most, "min_pattern_size must be at most max_pattern_size", "repetition_detection")
    require(times >= 2, "min_count must be at least 2", "repetition_detection")
    return least, most, times


async def read_all(hub: Hub, scheduler: Scheduler, inbox: Inbox, jobs: Sequence[Job]) -> list[list[Token]]:
    """Has the prompts of jobs without texts measured; returns the tokens of each.

    Raises:
        ApiError: a job could not be done.
    """
    places = {id(job): place for place, job in enumerate(jobs)}
    tokens: list[list[Token]] = [[] for _ in jobs]
    submit(hub, scheduler, jobs)
    left = len(jobs)
    try:
        while left:
            for news in await inbox.take():
                if news.error is not None:
                    raise _refusal(news.error)
                tokens[places[id(news.job)]] += news.tokens
                left -= news.reason == "read"
    finally:
        if left:
            scheduler.cancel(jobs)
    return tokens


def submit(hub: Hub, scheduler: Scheduler, jobs: Sequence[Job]) -> None:
    """Hands jobs to a scheduler.

    Raises:
        ApiError: there is no room.
    """
    try:
        scheduler.submit(jobs)
    except BusyError as error:
        status = 503 if hub.draining else 429
        raise ApiError(status, str(error), code="queue_full", retry_after=1) from error
    except UsageError as error:
        raise ApiError(400, str(error), "n") from error
