"""What all tests share: reproducible examples, no network, and a small text."""

from __future__ import annotations

import ipaddress
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("textlstm", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("textlstm")

WORD_LIST = """
the of and to in a is that it was for on are with as his they be at one have this from or had by hot but some what
there we can out other were all your when up use word how said an each she which do their time if will way about many
then them would write like so these her long make thing see him two has look more day could go come did my sound no
most number who over know water than call first people may down side been now find any new work part take get place
made live where after back little only round man year came show every good me give our under name very through just
form much great think say help low line before turn cause same mean differ move right boy old too does tell sentence
"""
WORDS = WORD_LIST.split()


def make_text(size: int, seed: int = 7) -> str:
    """English-like sentences and paragraphs; frequent words come first in the list."""
    rng = random.Random(seed)
    weights = [1 / (rank + 3) for rank in range(len(WORDS))]
    paragraphs: list[str] = []
    length = 0
    while length < size:
        sentences = []
        for _ in range(rng.randint(1, 5)):
            words = rng.choices(WORDS, weights, k=rng.randint(3, 14))
            if len(words) > 8:
                words[4] += ","
            sentences.append(" ".join(words).capitalize() + rng.choice("...?!"))
        paragraphs.append(" ".join(sentences) + "\n\n"[: rng.randint(1, 2)])
        length += len(paragraphs[-1])
    return "".join(paragraphs)


@pytest.fixture(scope="session", autouse=True)
def heed_signals() -> Iterator[None]:
    """Processes that tests start heed signals also where pytest was told to ignore them, by nohup or a shell's `&`."""
    defaults = {"SIGHUP": signal.SIG_DFL, "SIGINT": signal.default_int_handler}
    numbers = {getattr(signal, name): handler for name, handler in defaults.items() if hasattr(signal, name)}
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, numbers[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def text() -> str:
    """About 20,000 characters of English-like text, the same in every session."""
    return make_text(20_000)


def _is_local(host: object) -> bool:
    if host in ("localhost", "", None):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Any connection that would leave this machine fails the test, even where the code forgives an OSError."""

    def guarded(method):
        def connect(self, address, *rest):
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
                pytest.fail(f"a test tried to reach {address!r}")
            return method(self, address, *rest)

        return connect

    look_up = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if not _is_local(host.decode() if isinstance(host, bytes) else host):
            pytest.fail(f"a test tried to look up {host!r}")
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory):
    """What tests put into the cache is gone with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXTLSTM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache and a working folder of the test's own."""
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


class Done:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict:
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def run(monkeypatch, capsys):
    """Calls `main` as the shell would; an exception that is not turned into an exit code fails the test."""
    from textlstm import cli

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["textlstm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Done(end.value.code or 0, out, err)

    return call


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium, driven by Playwright; where it is missing the test skips, or fails if one is required."""
    path = shutil.which("chromium")
    if path is None:
        problem = "chromium is not installed: make browser"
        if os.environ.get("TEXTLSTM_REQUIRE_BROWSER"):
            pytest.fail(problem)
        pytest.skip(problem)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, in a container, Chromium does not start with its sandbox.
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


@pytest.fixture
def quiet_page(chromium):
    """A page for files that ask for nothing but themselves; it fails the test on any error, message or dialog."""
    page = chromium.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text))
    page.on("dialog", lambda dialog: troubles.append("a dialog") or dialog.dismiss())
    page.on("request", lambda request: request.url.startswith("file:") or troubles.append(request.url))
    yield page
    page.close()
    assert not troubles
