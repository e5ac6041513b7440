"""Server-sent events: one write for each chunk, a comment where nothing comes, and an end where nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Send

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
PATIENCE = 30.0  # seconds in which a reader must make room for the next chunk

encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode  # in ASCII, so that lone surrogates pass


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: %s\n\n" % encode(value).encode()


class EventStream(StreamingResponse):
    """Sends events as they come, each chunk as a whole; a client that does not take them is let go.

    Args:
        chunks: one or more events each; closed when the stream ends, however it ends.
        headers: more of them.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        own = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(chunks, headers={**own, **headers})
        self._chunks = chunks

    async def stream_response(self, send: Send) -> None:
        """Sends the answer; Starlette calls this, and cancels it when the client leaves."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._chunks):
            try:
                async for chunk in self._chunks:
                    async with asyncio.timeout(PATIENCE):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except TimeoutError:
                return  # without an end, so that the server closes the connection
        await send({"type": "http.response.body", "body": b"", "more_body": False})
