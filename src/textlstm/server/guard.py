"""What stands before the API: request ids, who may ask, what may be sent, one log line per request."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from textlstm.server.hub import Settings
from textlstm.server.protocol import ApiError

LOG = logging.getLogger("textlstm.server")
Observe = Callable[[str, int, float, dict[str, Any]], None]
BODY_SECONDS = 15.0  # a body that takes longer to arrive is given up
PUBLIC = ("/health", "/ready", "/ping", "/version")  # besides the page; everything else asks for a key if there is one
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """An ASGI application around another that lets through what may pass.

    Args:
        app: what is guarded.
        settings: of the server.
        observe: told route, status, seconds and log line of each request.
    """

    def __init__(self, app: ASGIApp, settings: Settings, observe: Observe) -> None:
        self._app, self._settings, self._observe = app, settings, observe
        self._keys = [key.encode() for key in settings.api_keys]
        self._local_only = is_loopback(settings.host)
        self._origins = set(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, started, status = Headers(scope=scope), time.perf_counter(), 0
        request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["log"] = line = {"id": request_id}

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    out[name] = value
            await send(message)

        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope  # the server leaves the body out
        try:
            self._check(scope, headers)
            await self._app(inner, _Body(receive, self._settings.max_body), answer)
        except ApiError as error:
            await send_error(error, answer)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(inner.get("route"), "path", "-")  # never the path itself: it is the client's text
            self._observe(route, status, seconds, line)
            fields = {"event": "request", "method": scope["method"] if route != "-" else "-", "route": route}
            LOG.info("request", extra={"fields": {**fields, "status": status, "ms": round(seconds * 1e3, 1), **line}})

    def _check(self, scope: Scope, headers: Headers) -> None:
        hosts = headers.getlist("host")
        name = urlsplit(f"//{hosts[0]}").hostname if len(hosts) == 1 else None
        if len(hosts) != 1 or (self._local_only and not is_loopback((name or "").rstrip("."))):
            raise ApiError(403, "this server answers to localhost only; start it with --host to change that")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and urlsplit(origin).netloc != hosts[0]:
            raise ApiError(403, "web pages of other origins may not use this server; --cors-origin allows one")
        if origin is None and headers.get("sec-fetch-site") == "cross-site":
            raise ApiError(403, "web pages of other origins may not use this server; --cors-origin allows one")
        if scope["method"] == "OPTIONS" and origin in self._origins:
            return
        path: str = scope["path"]
        if self._keys and path != "/" and path not in PUBLIC and not path.startswith("/page/"):
            self._check_key(headers)
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, "send JSON, with the header content-type: application/json")
            size = headers.get("content-length", "0")
            if size.isascii() and size.isdigit() and int(size[:20]) > self._settings.max_body:
                raise ApiError(413, f"a request has at most {self._settings.max_body} bytes")

    def _check_key(self, headers: Headers) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        # Every key is compared, each in constant time, so that time tells nothing.
        if not sum(hmac.compare_digest(given, known) for known in self._keys):
            raise ApiError(401, "the API key is missing or wrong: Authorization: Bearer KEY", code="invalid_api_key")


class _Body:
    """A receive channel that bounds a body in bytes and in time."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left, self._most = receive, most, most
        self._deadline = time.monotonic() + BODY_SECONDS
        self._done = False

    async def __call__(self) -> Message:
        if self._done:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._deadline - time.monotonic())
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS:g} seconds") from None
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, f"a request has at most {self._most} bytes")
        self._done = not message.get("more_body", False)
        return message


async def send_error(error: ApiError, send: Send) -> None:
    """Answers with an error object."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None) or {"event": "log", "message": record.getMessage()}
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), **fields}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
