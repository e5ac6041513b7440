"""A server in a thread, for tests: the real application behind real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from textlstm.model_file import write_model
from textlstm.server.app import create_app
from textlstm.server.hub import Hub, Settings
from textlstm.server.run import _options

TIMEOUT = 30


class Site:
    """Where a server listens, and what it is made of."""

    def __init__(self, port: int, hub: Hub) -> None:
        self.port, self.hub = port, hub
        self.url = f"http://127.0.0.1:{port}"

    def request(self, method, path, body=None, headers=None, raw=None):
        """Status, headers and parsed body of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            sent = {"content-type": "application/json"} if body is not None or raw is not None else {}
            data = json.dumps(body) if raw is None and body is not None else raw
            connection.request(method, path, data, {**sent, **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
            kind = answer.headers.get("content-type", "")
            return (
                answer.status,
                answer.headers,
                json.loads(content) if "json" in kind and content else content.decode(),
            )

    def post(self, path, body, status=200, **headers):
        got, _, content = self.request("POST", path, body, headers)
        assert got == status, content
        return content

    def get(self, path, status=200, **headers):
        got, _, content = self.request("GET", path, headers=headers)
        assert got == status, content
        return content

    def complete(self, prompt=None, status=200, **fields):
        body = {"prompt": prompt, "seed": 1, **fields}
        return self.post("/v1/completions", body, status)

    def text(self, prompt=None, **fields):
        return self.complete(prompt, **fields)["choices"][0]["text"]

    def stream(self, path="/v1/completions", **fields):
        """The chunks of a stream; its end is checked."""
        content = self.post(path, {"stream": True, "seed": 1, **fields})
        lines = content.split("\n\n")
        assert lines.pop() == "" and lines.pop() == "data: [DONE]"
        assert all(line.startswith("data: ") and "\n" not in line for line in lines)
        return [json.loads(line[6:]) for line in lines]


@contextlib.contextmanager
def serving(models: dict[str, Path], **options) -> Iterator[Site]:
    """Runs a server until the block is left."""
    settings = Settings(models, port=0, **options)
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, **_options(settings)))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        site = Site(listener.getsockname()[1], app.state.hub)
        try:
            deadline = time.monotonic() + TIMEOUT
            while not site.hub.ready:
                assert time.monotonic() < deadline and thread.is_alive()
                time.sleep(0.005)
            yield site
        finally:
            server.should_exit = True
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def write_models(folder: Path, **models) -> dict[str, Path]:
    """Writes models to files."""
    paths = {}
    for name, model in models.items():
        paths[name] = folder / f"{name}.safetensors"
        file = model._file
        write_model(paths[name], file.config, file.tokenizer, file.weights, {"corpus": name})
    return paths
