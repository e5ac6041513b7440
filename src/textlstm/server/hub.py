"""The models that a server has loaded, each with its scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from textlstm.model import Model
from textlstm.model_file import ModelFile
from textlstm.server.protocol import ApiError
from textlstm.server.scheduler import News, Point, Scheduler
from textlstm.server.states import Shelf

QUIET = 15.0  # seconds in which a request that waits for news is told at least that there are none
END = "<|endoftext|>"  # how the document boundary is spelt where tokens are shown as strings


@dataclass(frozen=True)
class Settings:
    """How a server is run.

    Attributes:
        models: id to path of each model.
        api_keys: any of them is accepted; none means that no key is asked for.
        host, port: where it listens.
        engine, threads: what computes; None writes with the fastest engine and scores in single precision.
        max_concurrency: texts that are written at once, by each model.
        max_queue: requests that may wait, for each model.
        max_tokens: at most for one text.
        max_prompt_tokens: at most for one prompt.
        max_prompts: at most in one request.
        max_n: texts of one prompt at most; `best_of` may be larger than that.
        max_logprobs: likeliest tokens at most.
        max_body: bytes of a request at most.
        timeout: seconds after which a request ends.
        grace: seconds that running requests have when the server is told to end.
        states: folder of the named states; None is one that lives as long as the server.
        max_states, max_state_bytes: bounds of that folder.
        cors_origins: web pages of these origins may use the API.
    """

    models: dict[str, Path]
    api_keys: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    engine: str | None = None
    threads: int | None = None
    max_concurrency: int = 256
    max_queue: int = 512
    max_tokens: int = 100_000
    max_prompt_tokens: int = 1_000_000
    max_prompts: int = 256
    max_n: int = 16
    max_logprobs: int = 20
    max_body: int = 1 << 20
    timeout: float = 600.0
    grace: float = 10.0
    states: Path | None = None
    max_states: int = 256
    max_state_bytes: int = 1 << 28
    cors_origins: tuple[str, ...] = ()


class Inbox:
    """The news of one request, handed from a scheduler's thread to the event loop.

    Attributes:
        read: when the last of its prompts was read, by `time.monotonic`.
        told: when the last news came.
    """

    def __init__(self) -> None:
        self.read: float | None = None
        self.told: float | None = None
        self._news: list[News] = []
        self._some = asyncio.Event()
        self._looks = False

    def put(self, news: News) -> None:
        """Adds news; in the event loop."""
        self.told = time.monotonic()
        if news.reason == "read":
            self.read = self.told
        self._news.append(news)
        self._some.set()

    async def take(self) -> list[News]:
        """All news since the last time; now and then none, so that none is waited for longer than QUIET."""
        if not self._looks:  # not a timer for each time, which would cost as much as the news
            self._looks = True
            asyncio.get_running_loop().call_later(QUIET, self._look)
        await self._some.wait()
        self._some.clear()
        news, self._news = self._news, []
        return news

    def _look(self) -> None:
        self._looks = False
        self._some.set()


@dataclass(eq=False)
class Served:
    """A model in use.

    Attributes:
        name: its id in the API.
        model: the model.
        sha256: of its file.
        scheduler: what writes with it.
        scorer: what reads the texts of `/v1/score` and `/v1/xray`; the same where one engine does all.
        created: Unix time at which it was loaded.
    """

    name: str
    model: Model
    sha256: str
    scheduler: Scheduler
    scorer: Scheduler
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        """What has to be equal for a seed to give the same text."""
        return f"fp_{self.model.engine.name}_{self.model.identity[:12]}"

    @property
    def schedulers(self) -> list[Scheduler]:
        """All of its schedulers, each once."""
        return [self.scheduler] if self.scorer is self.scheduler else [self.scheduler, self.scorer]

    @property
    def end_id(self) -> int:
        """The id that ends a document: the boundary, or for models without one the first that is no id."""
        boundary = self.model.config.boundary_id
        return self.model.config.vocab_size if boundary is None else boundary

    @cached_property
    def strings(self) -> list[str]:
        """Every token as a string, all of them different; bytes that are no text are spelt `bytes:\\xNN`."""
        names: list[str] = []
        for id in range(self.model.config.vocab_size):
            data = self.model.tokenizer.token_bytes(id) if id < self.model.tokenizer.vocab_size else b""
            try:
                names.append(data.decode() if data else END)
            except UnicodeDecodeError:
                names.append("bytes:" + "".join(f"\\x{byte:02x}" for byte in data))
        return names

    @cached_property
    def blank(self) -> Point:
        """Where a prompt begins that brings its own document boundary."""
        engine = self.model.engine
        return np.zeros((1, self.model.config.vocab_size), np.float32), engine.zero_state(1)

    def decode(self, ids: Sequence[int] | NDArray[np.int64], show_end: bool = True) -> str:
        """The text of ids, with `<|endoftext|>` for the document boundary if it is shown."""
        runs: list[list[int]] = [[]]
        for id in map(int, ids):
            if id == self.end_id:
                runs.append([])
            else:
                runs[-1].append(id)
        return (END if show_end else "").join(map(self.model.tokenizer.decode, runs))

    def encode(self, text: str, parse_special: bool = False) -> NDArray[np.int64]:
        """The ids of a text; its `<|endoftext|>` is the document boundary only where that is asked for."""
        encode = self.model.tokenizer.encode
        if not parse_special or self.model.config.boundary_id is None:
            return encode(text).astype(np.int64)
        first, *rest = (encode(part).astype(np.int64) for part in text.split(END))
        boundary = np.array([self.end_id])
        return np.concatenate([first, *(part for ids in rest for part in (boundary, ids))])


class Hub:
    """All models of a server.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if settings.states is None:
            self._folder = tempfile.TemporaryDirectory(prefix="textlstm-states-")
            folder = Path(self._folder.name)
        else:
            folder = settings.states
            folder.mkdir(parents=True, exist_ok=True)
        self.shelf = Shelf(folder, settings.max_states, settings.max_state_bytes)
        self.served: dict[str, Served] = {}
        self.ready = self.draining = False

    def load(self, files: dict[str, ModelFile], loop: asyncio.AbstractEventLoop) -> None:
        """Makes the engines and starts the schedulers; news arrive in the loop."""

        def notify(news: list[News]) -> None:
            with contextlib.suppress(RuntimeError):  # a loop that is closed already has no readers
                loop.call_soon_threadsafe(deliver, news)

        settings = self.settings
        for name, file in files.items():
            model = Model(file, settings.engine, settings.threads)
            model.tokenizer.encode("ready")  # what it loads on its first use
            writer, *scorer = (
                Scheduler(engine, notify, settings.max_concurrency, settings.max_queue)
                for engine in dict.fromkeys([model.engine, model.scoring_engine])
            )
            self.served[name] = Served(name, model, file.sha256, writer, scorer[0] if scorer else writer)
        self.ready = True

    def find(self, name: str | None) -> Served:
        """The model of that id; None is the first.

        Raises:
            ApiError: there is none, or none yet.
        """
        if not self.ready or self.draining:
            why = "shutting down" if self.draining else "loading its models"
            raise ApiError(503, f"the server is {why}; try again later", retry_after=1)
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            known = ", ".join(self.served)
            raise ApiError(404, f"there is no model {name!r} here; there are: {known}", "model", "model_not_found")
        return self.served[name]

    def drain(self, grace: float) -> None:
        """Takes no more requests; those that run have so many seconds."""
        self.draining = True
        for served in self.served.values():
            for scheduler in served.schedulers:
                scheduler.drain(time.monotonic() + grace)

    def close(self) -> None:
        """Ends the schedulers."""
        for served in self.served.values():
            for scheduler in served.schedulers:
                scheduler.close()
        if self._folder is not None:
            self._folder.cleanup()


def deliver(news: Sequence[News]) -> None:
    """Puts news into the inboxes of their requests."""
    for one in news:
        one.job.owner.put(one)  # type: ignore[attr-defined]
