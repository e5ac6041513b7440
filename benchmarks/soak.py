"""A server under hundreds of clients, a third of whom leave in the middle: what breaks, what leaks, what memory does.

    python benchmarks/soak.py [--clients 500] [--minutes 10]

A server of the shipped model is started. Each client asks for text after text, streamed or whole, and gives a third of
them up before they end. Expected: no answer but 200 and 429, no stream that breaks off, after the load no row of the
batch in use and no request waiting, and memory that stays where it is once all is warm: at most 5 % more in the last
quarter than in the second. The exit code is 1 where it is not so; the last line is the report in JSON, which runs of
at least five minutes also write to results/soak.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from textlstm.bench.serving import send

ROWS = 128  # fewer than the clients want, and as many as half of them may wait: some are refused
MOST_GROWTH, WARM = 0.05, 60.0  # of memory; shorter runs end before all is warm
LOOK = 2.0  # seconds between two looks at the memory
NUMBERS = ("textlstm_texts_running", "textlstm_requests_waiting", "process_open_fds", "process_resident_memory_bytes")


async def ask(url: str, rng: random.Random, counts: Counter[str]) -> None:
    """One request, read to its end or left in the middle."""
    stream, leaves = rng.random() < 0.5, rng.random() < 1 / 3
    fields = {"prompt": "ROMEO:\n" * rng.randrange(1, 20), "max_tokens": rng.randrange(1, 200), "ignore_eos": True}
    body = json.dumps({**fields, "seed": rng.randrange(1 << 30), "n": rng.choice([1, 1, 1, 2]), "stream": stream})
    reader, writer = await send(url, "POST", "/v1/completions", body.encode())
    with contextlib.closing(writer):
        if leaves:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1) if stream else asyncio.Event().wait(), rng.random())
            counts["left, streamed" if stream else "left"] += 1
            return
        status = (await reader.readline()).split(b" ")[1].decode()
        answer = await reader.read()
    if status == "429":
        await asyncio.sleep(rng.random())
    elif status == "200":
        whole = b'"error"' not in answer and (not stream or b"data: [DONE]\n\n" in answer)
        status = "200" if whole else "broken off"
    counts[f"{status}, streamed" if stream else status] += 1


async def client(url: str, seed: int, end: float, counts: Counter[str]) -> None:
    """Asks until the end."""
    rng = random.Random(seed)
    while time.monotonic() < end:
        try:
            await ask(url, rng, counts)
        except (OSError, IndexError) as error:  # an empty answer has no status
            counts[type(error).__name__] += 1
            await asyncio.sleep(0.1)


async def look(url: str) -> dict[str, float]:
    """What the server's metrics say."""
    reader, writer = await send(url, "GET", "/metrics")
    with contextlib.closing(writer):
        page = (await reader.read()).decode()
    return {name: float(re.findall(rf"^{name}(?:{{.*}})? (\S+)", page, re.MULTILINE)[0]) for name in NUMBERS}


async def soak(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Loads the server; returns the report."""
    counts: Counter[str] = Counter()
    begin = time.monotonic()
    before = await look(url)
    load = asyncio.gather(*(client(url, seed, begin + seconds, counts) for seed in range(clients)))
    memory = []
    while not load.done():
        now = await look(url)
        memory.append((round(time.monotonic() - begin, 1), round(now["process_resident_memory_bytes"] / 1e6, 1)))
        print(f"{memory[-1][0]:6.0f} s: {memory[-1][1]:.0f} MB, {dict(counts)}", file=sys.stderr, flush=True)
        await asyncio.wait([load], timeout=LOOK)
    await load
    deadline = time.monotonic() + 10
    while (after := await look(url))["textlstm_texts_running"] and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    second, last = (
        [size for at, size in memory if quarter <= at / seconds * 4 < quarter + 1] or [memory[-1][1]]
        for quarter in (1, 3)
    )
    growth = max(last) / max(second) - 1
    slots = after["textlstm_texts_running"] + after["textlstm_requests_waiting"]
    # One descriptor is the connection of the look itself, in both.
    files = after["process_open_fds"] - before["process_open_fds"]
    odd = {name: n for name, n in counts.items() if name.split(",")[0] not in ("200", "429", "left")}
    flat = growth <= MOST_GROWTH or seconds < WARM
    return {
        "clients": clients, "seconds": seconds, "answers": dict(sorted(counts.items())), "unexpected": odd,
        "slots_left": slots, "files_left": files, "memory_growth": round(growth, 4),
        "as_expected": not odd and not slots and files <= 0 and flat, "memory_mb": memory,
    }  # fmt: skip


def main() -> None:
    """Starts the server, loads it, and tells."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    command = [sys.executable, "-m", "textlstm", "serve", "shakespeare", "--port", "0", "--json", "--quiet"]
    command += ["--max-concurrency", str(min(ROWS, options.clients // 2)), "--max-queue", str(options.clients // 2)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        try:
            results = asyncio.run(ready_and_soak(url, options.clients, options.minutes * 60))
        finally:
            server.terminate()
    results["exit_code"] = server.returncode
    if options.minutes >= 5:
        from card import report

        report("soak", results)
    else:
        print(json.dumps(results))
    sys.exit(not results["as_expected"])


async def ready_and_soak(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Waits for the models, then loads the server."""
    while True:
        reader, writer = await send(url, "GET", "/health")
        with contextlib.closing(writer):
            if b" 200 " in await reader.readline():
                return await soak(url, clients, seconds)
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    main()
