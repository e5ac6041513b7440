"""Load on a server: how fast many streams come at once, and how long each waits.

Each of N streams asks for a text, reads it to its end, and asks for the next. Tokens are counted in a window of time,
and how long they took in every request; all streams begin at once. Client and server share the machine, so what each
of them costs is told as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import multiprocessing
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from textlstm.errors import MissingExtraError, RunError
from textlstm.server.hub import Settings

WARM_UP = 0.5  # seconds before the window in which tokens are counted
READY = 60.0  # seconds in which a server must answer that it is ready
LOOK = 0.5  # seconds between two looks at the server's memory
_RUST, _BLUE = "#a63c17", "#186aa6"
PROMPT = "Now is the winter of our discontent made glorious summer by this sun of York; and all the clouds that "


@dataclass(frozen=True)
class Load:
    """What the streams ask for.

    Attributes:
        model: id of the model; None is the server's first.
        tokens: of each text.
        prompt_chars: length of each prompt.
        seconds: for which each number of streams is measured.
        api_key: of the server.
        fields: what else each request says; a text must not end before it has all of its tokens.
    """

    model: str | None = None
    tokens: int = 128
    prompt_chars: int = 100
    seconds: float = 5.0
    api_key: str = "none"
    fields: Mapping[str, Any] = field(default_factory=lambda: {"ignore_eos": True})


@dataclass
class _Seen:
    tokens: int = 0
    requests: int = 0
    errors: int = 0
    first: list[float] = field(default_factory=list)  # seconds to the first token
    gaps: list[float] = field(default_factory=list)  # seconds between chunks
    pace: list[float] = field(default_factory=list)  # seconds per token of a text, after its first chunk


def measure(
    url: str, streams: Sequence[int], load: Load, tell: Callable[[str], None], watch: bool = True
) -> list[dict[str, Any]]:
    """Measures a server at several numbers of streams.

    Args:
        url: of the server.
        streams: numbers of streams.
        load: what they ask for.
        tell: told each result in words.
        watch: whether its `/metrics` tell what the server costs: not those of one of several processes.

    Returns:
        One row for each number: tokens per second, percentiles in milliseconds, microseconds of processor time for
        each token, and the server's memory over time.

    Raises:
        RunError: the server cannot be reached or refuses everything.
    """
    rows = []
    for number in streams:
        row = asyncio.run(_measure(url, number, load, watch))
        rows.append(row)
        first, gaps = row["first_token_ms"], row["between_chunks_ms"]
        noun = "stream" if number == 1 else "streams"
        tell(
            f"{number:>4} {noun}: {row['tokens_per_second']:>8,.0f} tokens/s; first token {first['p50']:.0f} ms "
            f"(p95 {first['p95']:.0f}); between chunks {gaps['p50']:.1f} ms (p95 {gaps['p95']:.1f})"
        )
    return rows


def measure_models(
    settings: Settings, streams: Sequence[int], load: Load, tell: Callable[[str], None], workers: int = 1
) -> list[dict[str, Any]]:
    """Starts a server in another process, measures it, and ends it; arguments as `measure`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(replace(settings, port=0), there, workers))
    process.start()
    there.close()
    try:
        url = here.recv()
        return measure(url, streams, load, tell, watch=workers == 1)
    except EOFError:
        raise RunError("the server did not start; `textlstm serve` says why") from None
    finally:
        process.terminate()
        process.join()


def _serve(settings: Settings, listening: Connection, workers: int) -> None:
    from textlstm.server.run import serve

    # uvicorn hands standard input on to its workers; in a process that was spawned there is none to hand on.
    sys.stdin = None
    serve(settings, listening.send, workers, quiet=True)


async def _measure(url: str, number: int, load: Load, watch: bool) -> dict[str, Any]:
    await _until_ready(url)
    seen, costs = _Seen(), _Costs(url, load.api_key)
    async with costs.watched() if watch else contextlib.nullcontext():
        begin = time.perf_counter() + WARM_UP
        end = begin + load.seconds
        await asyncio.gather(*(_stream(url, load, seen, begin, end, seed) for seed in range(number)))
    if not seen.requests:
        raise RunError(f"of {number} streams none was answered ({seen.errors} errors)")
    return {
        "streams": number,
        "tokens_per_second": seen.tokens / load.seconds,
        "requests": seen.requests,
        "errors": seen.errors,
        "first_token_ms": _percentiles(seen.first),
        "between_chunks_ms": _percentiles(seen.gaps),
        "per_token_ms": _percentiles(seen.pace),
        **costs.of(seen.requests * load.tokens),
    }


class _Costs:
    """What the server and this client cost, by the server's own `/metrics`; another server may have none."""

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url, key
        self._client = self._server = 0.0  # seconds of processor time
        self._memory: list[tuple[float, float]] = []  # seconds, megabytes

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        started, client = time.perf_counter(), time.process_time()

        async def look() -> float:
            server, memory = await self._ask()
            self._memory.append((round(time.perf_counter() - started, 2), round(memory / 1e6, 1)))
            return server

        async def go_on() -> None:
            while True:
                await asyncio.sleep(LOOK)
                await look()

        try:
            server = await look()
        except (OSError, ValueError):
            yield
            return
        looking = asyncio.create_task(go_on())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        self._server, self._client = await look() - server, time.process_time() - client

    def of(self, tokens: int) -> dict[str, Any]:
        """For so many tokens."""
        if not self._server:
            return {}
        costs = {"server": self._server, "client": self._client}
        peak = max(memory for _, memory in self._memory)
        return {
            "cpu_us_per_token": {name: round(1e6 * seconds / tokens, 1) for name, seconds in costs.items()},
            "peak_memory_mb": peak,
            "memory_mb": self._memory,
        }

    async def _ask(self) -> tuple[float, float]:
        """Seconds of processor time so far, and bytes of memory."""
        reader, writer = await send(self._url, "GET", "/metrics", b"", self._key)
        with contextlib.closing(writer):
            page = (await reader.read()).decode()
        found = dict(re.findall(r"^process_(cpu_seconds_total|resident_memory_bytes) (\S+)", page, re.MULTILINE))
        if len(found) < 2:
            raise ValueError("no metrics of a process")
        return float(found["cpu_seconds_total"]), float(found["resident_memory_bytes"])


def _percentiles(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(seconds, [50, 90, 95, 99]) * 1000 if seconds else np.zeros(4)
    return {name: round(float(value), 3) for name, value in zip(("p50", "p90", "p95", "p99"), values, strict=True)}


async def _until_ready(url: str) -> None:
    problem = "it does not become ready"
    try:
        async with asyncio.timeout(READY):  # of it all: who listens and never answers is not ready either
            while True:
                try:
                    reader, writer = await send(url, "GET", "/health", b"", "")
                    with contextlib.closing(writer):
                        status = await reader.readline()
                    if b" 200 " in status or b" 404 " in status:  # not all servers have such a page
                        return
                except OSError as error:
                    problem = str(error)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise RunError(f"no server answers at {url} within {READY:g} seconds: {problem}") from None


async def send(
    url: str, method: str, path: str, body: bytes = b"", key: str = "none"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Sends a request on a connection of its own, which the server closes after the answer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    head = f"{method} {path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


async def _stream(url: str, load: Load, seen: _Seen, begin: float, end: float, seed: int) -> None:
    """One stream: text after text until the end; what falls between begin and end counts."""
    prompt = (PROMPT[seed % 50 :] + PROMPT * (load.prompt_chars // len(PROMPT) + 1))[: load.prompt_chars]
    fields = {"prompt": prompt, "max_tokens": load.tokens, "stream": True, **load.fields}
    while (now := time.perf_counter()) < end:
        seed += 1000
        body = json.dumps({**fields, "seed": seed, **({"model": load.model} if load.model else {})}).encode()
        try:
            times = await _read(url, body, load.api_key, begin, end)
        except OSError:
            times = None
        if times is None:
            seen.errors += 1
            await asyncio.sleep(0.05)
            continue
        share = sum(begin <= t < end for t in times) / len(times)
        seen.tokens += round(load.tokens * share)
        seen.requests += 1
        seen.first.append(times[0] - now)
        seen.gaps += [b - a for a, b in itertools.pairwise(times)]
        seen.pace.append((times[-1] - times[0]) / max(1, load.tokens - 1))


async def _read(url: str, body: bytes, key: str, begin: float, end: float) -> list[float] | None:
    """When each chunk of a text came; None if the request was refused."""
    reader, writer = await send(url, "POST", "/v1/completions", body, key)
    try:
        if b" 200 " not in await reader.readline():
            return None
        times: list[float] = []
        last = b""
        while data := await reader.read(1 << 16):  # the client shares the machine: it looks no closer than it must
            if b"data: {" in data:
                times.append(time.perf_counter())
            if b'data: {"error"' in data:
                return None
            last = (last + data)[-1000:]
        times = times or [time.perf_counter()]  # of an answer that came whole
        return times if b'"length"' in last else None
    finally:
        writer.close()


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws tokens per second and waiting over the number of streams, and the server's memory over time."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (rate, waiting, memory) = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    numbers = [row["streams"] for row in rows]
    rate.plot(numbers, [row["tokens_per_second"] for row in rows], "o-", color=_RUST)
    rate.set(title="tokens per second", xlabel="streams", xscale="log", ylim=(0, None))
    for key, color, name in (
        ("first_token_ms", _BLUE, "first token"),
        ("per_token_ms", _RUST, "each token after it"),
    ):
        for place, style in (("p50", "o-"), ("p95", "o--")):
            values = [row[key][place] for row in rows]
            waiting.plot(numbers, values, style, color=color, label=f"{name}, {place}")
    waiting.set(title="milliseconds", xlabel="streams", xscale="log", yscale="log")
    waiting.set_ylim(top=10 * waiting.get_ylim()[1])
    waiting.legend(frameon=False, fontsize="small", loc="upper left")
    for axes in (rate, waiting):
        axes.set_xticks(numbers, [str(number) for number in numbers], minor=False)
        axes.minorticks_off()
    for row, shade in zip(rows, np.linspace(0.3, 1, len(rows)), strict=True):
        if line := row.get("memory_mb"):
            memory.plot(*zip(*line, strict=True), color=_BLUE, alpha=shade, label=row["streams"])
            memory.legend(title="streams", frameon=False, fontsize="small", loc="lower right")
    memory.set(title="megabytes of the server", xlabel="seconds", ylim=(0, None))
    for axes in (rate, waiting, memory):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
