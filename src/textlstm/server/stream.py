"""Server-sent events: one write for each chunk, a comment where nothing comes, and an end where nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
PATIENCE = 30.0  # seconds in which a reader must make room for the next chunk

encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode  # in ASCII, so that lone surrogates pass


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: %s\n\n" % encode(value).encode()


async def unless_left(receive: Receive, work: Awaitable[T]) -> T | None:
    """The result of some work, or None if the client left before; then the work is cancelled."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.ensure_future(work), asyncio.create_task(left())
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


class EventStream(Response):
    """Sends events as they come, each chunk as a whole; a client that does not take them is let go.

    Args:
        chunks: one or more events each; closed when the stream ends, however it ends.
        headers: more of them.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        own = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(headers={**own, **headers})
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer while the client is there."""
        await unless_left(receive, self.send(send))

    async def send(self, send: Send) -> None:
        """Sends the answer."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        now = asyncio.get_running_loop().time
        async with contextlib.aclosing(self._chunks):
            try:
                async with asyncio.timeout(None) as patience:  # one for all chunks; they must cost little
                    async for chunk in self._chunks:
                        patience.reschedule(now() + PATIENCE)
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                        patience.reschedule(None)
            except TimeoutError:
                return  # without an end, so that the server closes the connection
        await send({"type": "http.response.body", "body": b"", "more_body": False})
