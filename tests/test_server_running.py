"""A server as a process and under strain: readiness, disconnects, back-pressure, metrics, the end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from serving import serving, write_models
from test_generation import make_model

import textlstm
from textlstm.cli import cli
from textlstm.errors import ModelFileError
from textlstm.server import guard, hub, stream
from textlstm.server.hub import Hub

ENDLESS = {"prompt": "hallo", "max_tokens": 100_000, "ignore_eos": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), letters=make_model())


@pytest.fixture(scope="module")
def site(models):
    with serving(models) as site:
        yield site


def numbers(site):
    """The metrics by name and labels; that the page parses is part of it."""
    page = site.get("/metrics")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def asked(site, **fields):
    """A request that was sent and is not read; the connection closes at the end."""
    body = json.dumps({**ENDLESS, **fields}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        yield connection


def test_ready_only_when_the_models_are(models, monkeypatch):
    seen = []
    load = Hub.load
    monkeypatch.setattr(Hub, "load", lambda hub, *rest: seen.append(hub.ready) or load(hub, *rest))
    with serving(models) as site:
        assert seen == [False]
        assert site.get("/health") == site.get("/ready") == {"status": "ok"}
        for name, value in (("ready", False), ("draining", True)):
            setattr(site.hub, name, value)
            status, headers, content = site.request("GET", "/health")
            assert (status, headers["retry-after"], content["error"]["type"]) == (503, "1", "unavailable_error")
            setattr(site.hub, name, not value)


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_who_leaves_frees_its_rows(site, stream):
    scheduler = site.hub.served["letters"].scheduler
    before = scheduler.counts.cancelled
    with asked(site, stream=stream, n=3) as connection:
        until(lambda: scheduler.running == 3)
        if stream:
            assert connection.recv(10)
    until(lambda: scheduler.running == 0)
    assert scheduler.counts.cancelled == before + 1
    assert site.text("hallo", max_tokens=3, ignore_eos=True)


def test_who_leaves_the_queue_never_starts_and_a_full_one_refuses(models):
    with serving(models, max_concurrency=1, max_queue=2) as site:
        scheduler = site.hub.served["letters"].scheduler
        with asked(site, stream=True), contextlib.ExitStack() as waiting:
            until(lambda: scheduler.running == 1)
            for number in (1, 2):
                waiting.enter_context(asked(site, stream=number == 1))
                until(lambda number=number: scheduler.waiting == number)
            status, headers, content = site.request("POST", "/v1/completions", ENDLESS)
            assert status == 429 and int(headers["retry-after"]) >= 1
            assert content["error"]["type"] == "rate_limit_error"
            waiting.close()
            until(lambda: scheduler.waiting == 0)
            assert scheduler.running == 1
        until(lambda: scheduler.running == 0)
        assert scheduler.counts.prompt_tokens == 5, "only the first one was ever read"


def test_a_storm_leaves_nothing_behind(site):
    """Many clients at once; a third of them leaves in the middle."""
    scheduler = site.hub.served["letters"].scheduler
    failures: list[object] = []

    def client(number):
        try:
            if number % 3 == 0:
                with asked(site, stream=number % 2 == 0) as connection:
                    connection.settimeout(5)
                    with contextlib.suppress(TimeoutError):
                        number % 2 == 0 and connection.recv(100)
                return
            text = site.text("hallo", seed=number, max_tokens=40, ignore_eos=True)
            if len(text) != 40:
                failures.append(text)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(90)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    until(lambda: scheduler.running == 0 and scheduler.waiting == 0)


def test_who_waits_long_hears_so(models, monkeypatch):
    monkeypatch.setattr(hub, "QUIET", 0.03)
    with serving(models, max_concurrency=1) as site, asked(site, stream=True):
        until(lambda: site.hub.served["letters"].scheduler.running)
        with asked(site, stream=True) as second:
            heard = b""
            while heard.count(b"\n: ping\n\n") < 3:
                heard += second.recv(1 << 16)
    assert heard.startswith(b"HTTP/1.1 200") and b"data: " not in heard


def test_who_takes_nothing_is_let_go(monkeypatch):
    monkeypatch.setattr(stream, "PATIENCE", 0.03)
    sent, closed = [], []

    async def chunks():
        try:
            while True:
                yield b"data: 1\n\n"
        finally:
            closed.append(True)

    async def send(message):
        sent.append(message)
        if len(sent) == 4:
            await asyncio.Event().wait()

    asyncio.run(stream.EventStream(chunks(), {"x-y": "z"}).send(send))
    assert [message["type"].rpartition(".")[2] for message in sent] == ["start", "body", "body", "body"]
    assert all(message["more_body"] for message in sent[1:]) and closed == [True]
    assert {(b"x-y", b"z"), (b"content-type", b"text/event-stream")} <= set(sent[0]["headers"])


def test_a_body_that_never_comes_is_given_up(site, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head + b'content-length: 100\r\n\r\n{"prompt":')
        assert b" 408 " in connection.recv(1000).split(b"\r\n")[0]


def test_metrics(site):
    before = numbers(site)
    site.text("hallo", max_tokens=7, ignore_eos=True, user="someone")
    site.get("/no/such/path", 404)
    site.get("/another", 404)
    until(lambda: len(numbers(site)) and numbers(site).get(("textlstm_requests_total", OTHERS), 0) >= 2)
    after = numbers(site)
    model = (("model", "letters"),)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["textlstm_generation_tokens_total", model] == 7
    assert grown["textlstm_prompt_tokens_total", model] == 5
    assert grown["textlstm_time_to_first_token_seconds_count", model] == 1
    assert after["textlstm_texts_running", model] == 0
    assert all(value >= 0 for (name, _), value in grown.items() if name.endswith(("_total", "_count", "_bucket")))
    routes = {dict(labels).get("route") for _, labels in after} - {None}
    assert routes <= {"-", "/metrics", "/health", "/ready", "/v1/completions"}
    assert "someone" not in site.get("/metrics")


OTHERS = (("route", "-"), ("status", "404"))


# --- as a process ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(*arguments, path=None):
    paths = [str(one) for one in (path, Path(textlstm.__file__).parents[1]) if one is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "textlstm", "serve", *map(str, arguments)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    with running:
        try:
            yield running
        finally:
            running.kill()


def healthy(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        try:
            return connection.getresponse().status == 200
        except TimeoutError:
            return False


@pytest.mark.parametrize(
    ("number", "grace"),
    [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow), (signal.SIGINT, 600)],
)
def test_the_end_lets_streams_finish_or_says_so(models, number, grace):
    with process(models["letters"], "--port", "0", "--json", "--grace", str(grace)) as server:
        said = json.loads(server.stdout.readline())
        assert said["models"] == ["letters"]
        port = int(said["url"].rsplit(":", 1)[1])
        until(lambda: healthy(port), 30)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with contextlib.closing(connection):
            body = json.dumps({**ENDLESS, "prompt": "hallosecret", "stream": True})
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.readline().startswith(b"data: ")
            server.send_signal(number)
            if grace == 600:  # who cannot wait asks again
                assert any("ending" in line for line in server.stderr)
                server.send_signal(number)
            events = [line for line in answer.read().lstrip().split(b"\n\n") if line.startswith(b"data: ")]
        assert events[-1] == b"data: [DONE]"
        assert json.loads(events[-2][6:])["error"]["type"] == "unavailable_error"
        out, log = server.communicate(timeout=20)
        assert server.returncode == 128 + number
    assert out == ""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line.get("route") == "/v1/completions"]
    assert line["model"] == "letters" and line["completion_tokens"] > 0 and line["error"] == 503
    assert "secret" not in log and "Traceback" not in log


def serve(*arguments):
    return CliRunner().invoke(cli, ["serve", *map(str, arguments)])


def test_what_cannot_be_served(models, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in str(serve(models["letters"], "--port", port).exception)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(models["letters"].read_bytes()[:-1])
    for more in ([], ["--workers", 2], ["--host", "0.0.0.0"]):
        done = serve(broken, "--port", 0, *more)
        assert isinstance(done.exception, ModelFileError) and "broken.safetensors" in str(done.exception)
        assert ("--api-key closes it" in done.stderr) == ("0.0.0.0" in more)
    assert "two models are called 'letters'" in str(serve(models["letters"], models["letters"]).exception)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_several_workers_share_port_and_states(models):
    with process(models["letters"], "--port", "0", "--json", "--workers", "2", "--quiet") as server:
        port = int(json.loads(server.stdout.readline())["url"].rsplit(":", 1)[1])
        until(lambda: healthy(port), 30)

        def ask(**fields):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(connection):
                body = json.dumps({**ENDLESS, "max_tokens": 5, "seed": 1, **fields})
                connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                content = json.loads(answer.read())
            assert answer.status in (200, 503), content  # 503 is a worker that still loads
            return content["choices"][0]["text"] if answer.status == 200 else None

        until(lambda: ask(save_state="s") is not None, 30)
        texts = {ask(state="s", prompt="") for _ in range(20)} - {None}
        assert len(texts) == 1
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


@pytest.mark.slow
def test_workers_that_begin_slowly_are_waited_for(models, tmp_path):
    slowly = 'import sys, time; time.sleep(12 * any("pipe_handle" in one for one in sys.orig_argv))'
    (tmp_path / "sitecustomize.py").write_text(slowly)
    with process(models["letters"], "--port", "0", "--json", "--workers", "2", "--quiet", path=tmp_path) as server:
        port = int(json.loads(server.stdout.readline())["url"].rsplit(":", 1)[1])
        until(lambda: healthy(port), 40)
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


@pytest.mark.slow
def test_a_short_soak():
    program = Path(__file__).parents[1] / "benchmarks" / "soak.py"
    command = [sys.executable, str(program), "--clients", "60", "--minutes", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and report["as_expected"], done.stdout + done.stderr
    answers = report["answers"]
    assert {"200", "200, streamed", "left", "left, streamed"} <= set(answers)
    assert answers.get("429", 0) + answers.get("429, streamed", 0) > 0
