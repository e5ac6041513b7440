"""Runs the application with uvicorn, in one process or several."""

from __future__ import annotations

import errno
import functools
import gc
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from textlstm.errors import TextLSTMError, UsageError
from textlstm.model_file import read_model
from textlstm.server.app import create_app
from textlstm.server.guard import JsonLines, is_loopback
from textlstm.server.hub import Settings

# A worker that does not answer for so long is replaced; on a busy machine its imports take longer than uvicorn's 5.
WORKER_SECONDS = 60


def serve(settings: Settings, listening: Callable[[str], None], workers: int = 1, quiet: bool = False) -> None:
    """Serves until a signal ends it.

    Args:
        settings: of the server; without a folder for the states they live as long as the server.
        listening: told the address as soon as connections are taken.
        workers: processes; each has its own models and batches, and they share the port and the named states.
        quiet: log warnings only.

    Raises:
        UsageError: the port is taken, or the address is open to others without a key.
        TextLSTMError: a model cannot be loaded.
    """
    if not is_loopback(settings.host) and not settings.api_keys:
        print(f"warning: anyone who reaches {settings.host} may use this server; --api-key closes it", file=sys.stderr)
    listener = _listen(settings.host, settings.port)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    listening(f"http://{host}:{listener.getsockname()[1]}")
    failures: list[BaseException] = []
    with listener:
        if workers > 1:
            return _serve_with(settings, workers, quiet, listener)
        _settle(quiet)

        def failed(error: BaseException) -> None:
            failures.append(error)
            server.should_exit = True

        server = uvicorn.Server(uvicorn.Config(create_app(settings, failed), **_options(settings)))
        # uvicorn ends in the handlers that stood before its own: Ctrl-C leaves by 130, SIGTERM by 143, and neither is
        # a failure to be told as JSON, since it is how a server ends.
        ends = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(end, lambda number, frame: sys.exit(128 + number)) for end in ends]
        try:
            server.run([listener])
        finally:
            for end, handler in zip(ends, before, strict=True):
                signal.signal(end, handler)
    if failures:
        error = failures[0]
        raise error if isinstance(error, TextLSTMError) else TextLSTMError(f"the models were not loaded: {error}")


def _serve_with(settings: Settings, workers: int, quiet: bool, listener: socket.socket) -> None:
    for path in settings.models.values():
        read_model(path)  # so that a damaged file is told once, and here
    with tempfile.TemporaryDirectory(prefix="textlstm-states-") as folder:
        shared = settings if settings.states is not None else replace(settings, states=Path(folder))
        create = functools.partial(_create, shared, quiet)
        options = {**_options(shared), "timeout_worker_healthcheck": WORKER_SECONDS}
        config = uvicorn.Config(create, factory=True, workers=workers, **options)
        Multiprocess(config, [listener]).run()


def _create(settings: Settings, quiet: bool) -> object:
    _settle(quiet)
    return create_app(settings)


def _settle(quiet: bool) -> None:
    """Makes the process one that serves: neither the scheduler nor the event loop lets the other wait for long."""
    log_lines(quiet)
    sys.setswitchinterval(0.0001)
    gc.freeze()  # what is loaded by now stays; looking through all of it for garbage takes a tenth of a second


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "log_config": None, "access_log": False, "server_header": False, "proxy_headers": False, "ws": "none",
        "timeout_graceful_shutdown": int(settings.grace) + 2, "timeout_keep_alive": 15,
        "h11_max_incomplete_event_size": 1 << 16,
    }  # fmt: skip


def log_lines(quiet: bool = False) -> None:
    """Sends the server's log to standard error, one JSON object per line, without anything that users wrote."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("textlstm.server", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING if quiet or name == "uvicorn" else logging.INFO)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        why = f"port {port} is taken; choose another with --port" if taken else (error.strerror or str(error))
        raise UsageError(f"cannot listen on {host}: {why}") from error
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener
