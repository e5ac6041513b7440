"""Load on a server: how fast many streams come at once, and how long each waits.

Each of N streams asks for a text, reads it to its end, and asks for the next. Tokens are counted in a window of time,
and how long they took in every request; all streams begin at once. Client and server share the machine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from textlstm.errors import MissingExtraError, RunError
from textlstm.server.hub import Settings

WARM_UP = 0.5  # seconds before the window in which tokens are counted
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
    """

    model: str | None = None
    tokens: int = 128
    prompt_chars: int = 100
    seconds: float = 5.0
    api_key: str = "none"


@dataclass
class _Seen:
    tokens: int = 0
    requests: int = 0
    errors: int = 0
    first: list[float] = field(default_factory=list)  # seconds to the first token
    gaps: list[float] = field(default_factory=list)  # seconds between chunks
    pace: list[float] = field(default_factory=list)  # seconds per token of a text, after its first chunk


def measure(url: str, streams: Sequence[int], load: Load, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measures a server at several numbers of streams.

    Args:
        url: of the server.
        streams: numbers of streams.
        load: what they ask for.
        tell: told each result in words.

    Returns:
        One row for each number: tokens per second, and percentiles in milliseconds.

    Raises:
        RunError: the server cannot be reached or refuses everything.
    """
    rows = []
    for number in streams:
        row = asyncio.run(_measure(url, number, load))
        rows.append(row)
        first, gaps = row["first_token_ms"], row["between_chunks_ms"]
        tell(
            f"{number:>4} streams: {row['tokens_per_second']:>8,.0f} tokens/s; first token {first['p50']:.0f} ms "
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
        return measure(url, streams, load, tell)
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


async def _measure(url: str, number: int, load: Load) -> dict[str, Any]:
    await _until_ready(url)
    seen = _Seen()
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
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(seconds, [50, 90, 95, 99]) * 1000 if seconds else np.zeros(4)
    return {name: round(float(value), 3) for name, value in zip(("p50", "p90", "p95", "p99"), values, strict=True)}


async def _until_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            reader, writer = await _send(url, "GET", "/health", b"", "")
            status = await reader.readline()
            writer.close()
            if b" 200 " in status:
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(f"no server answers at {url}: {error}") from error
        if time.monotonic() > deadline:
            raise RunError(f"the server at {url} does not become ready")
        await asyncio.sleep(0.05)


async def _send(url: str, method: str, path: str, body: bytes, key: str) -> tuple[asyncio.StreamReader, Any]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    head = f"{method} {path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


async def _stream(url: str, load: Load, seen: _Seen, begin: float, end: float, seed: int) -> None:
    """One stream: text after text until the end; what falls between begin and end counts."""
    prompt = (PROMPT[seed % 50 :] + PROMPT * (load.prompt_chars // len(PROMPT) + 1))[: load.prompt_chars]
    fields = {"prompt": prompt, "max_tokens": load.tokens, "stream": True, "ignore_eos": True}
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
    reader, writer = await _send(url, "POST", "/v1/completions", body, key)
    try:
        if b" 200 " not in await reader.readline():
            return None
        times: list[float] = []
        before = b""
        while data := await reader.read(1 << 16):  # the client shares the machine: it looks no closer than it must
            if b"data: {" in data:
                times.append(time.perf_counter())
            if b'data: {"error"' in data:
                return None
            if b"data: [DONE]" in before + data:
                return times or None
            before = data[-12:]
        return None
    finally:
        writer.close()


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws tokens per second, and seconds to the first token, over the number of streams."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    numbers = [row["streams"] for row in rows]
    left.plot(numbers, [row["tokens_per_second"] for row in rows], "o-", color="#a63c17")
    left.set(xscale="log", xlabel="streams", ylabel="tokens per second", ylim=(0, None))
    for name, style in (("p50", "o-"), ("p95", "o--")):
        right.plot(
            numbers,
            [row["first_token_ms"][name] for row in rows],
            style,
            color="#186aa6",
            label=f"first token, {name}",
        )
        right.plot(
            numbers, [row["per_token_ms"][name] for row in rows], style, color="#a63c17", label=f"each token, {name}"
        )
    right.set(xscale="log", yscale="log", xlabel="streams", ylabel="milliseconds")
    right.legend(frameon=False, fontsize="small")
    for axes in (left, right):
        axes.set_xticks(numbers, [str(number) for number in numbers], minor=False)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)
