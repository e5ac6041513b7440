"""Where text comes from: files, folders, patterns, standard input, and corpora that have a name.

Text is kept byte for byte. A file that is not in the encoding named is an error that says which byte; UTF-16 and
UTF-32 announce themselves by a byte order mark and are decoded (their bytes are not valid UTF-8, so nothing is
guessed). `--encoding bytes` takes anything.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import encodings
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from textlstm.config import CorpusConfig
from textlstm.corpus.document import Document
from textlstm.corpus.named import CORPORA, LoadedCorpus, find
from textlstm.errors import CorpusError, UsageError
from textlstm.tokenizer import bytes_to_text

SUFFIXES = (".txt", ".md", ".jsonl", ".csv")
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A gzip file may grow to this many times its size, or to the size below: real text shrinks about 3 to 20 times.
_MOST_EXPANSION, _MOST_EXPANDED = 200, 1 << 28


def read_sources(sources: Sequence[str], config: CorpusConfig, notice: Callable[[str], None]) -> LoadedCorpus:
    """Reads all sources as documents, in the order given; files of folders and patterns by name.

    Args:
        sources: paths, folders, glob patterns, "-" for standard input, names of corpora.
        config: encoding, newlines, column.
        notice: called with one line about anything that was done differently than asked.

    Raises:
        UsageError: a source that does not exist.
        CorpusError: a file that cannot be read as text.
    """
    loaded = [_read_source(source, config, notice) for source in sources]
    documents = tuple(d for part in loaded for d in part.documents if d.text)
    if not documents:
        raise CorpusError(f"{', '.join(sources)}: there is no text in it")
    if config.newlines == "lf":
        documents = tuple(Document(d.name, d.text.replace("\r\n", "\n").replace("\r", "\n")) for d in documents)
    return LoadedCorpus(
        documents,
        source="; ".join(part.source for part in loaded),
        licence="; ".join(dict.fromkeys(part.licence for part in loaded)),
        canonical=len(loaded) == 1 and loaded[0].canonical and config.newlines == "keep",
    )


def absolute(source: str) -> str:
    """A source as it is found from any folder; standard input and named corpora stay as they are."""
    named = not Path(source).exists() and find(source) is not None
    if source == "-" or named or os.path.isabs(source):
        return source
    if not Path(source).exists() and glob.has_magic(source):
        return os.path.join(glob.escape(os.getcwd()), source)
    return os.path.abspath(source)


def _read_source(source: str, config: CorpusConfig, notice: Callable[[str], None]) -> LoadedCorpus:
    path = Path(source)
    if source == "-":
        documents = [_document("standard input", sys.stdin.buffer.read(), config, notice)]
    elif path.is_dir():
        documents = list(_read_files(_files_below(path), config, notice))
    elif path.exists():
        documents = list(_read_files([path], config, notice))
    elif named := find(source):
        return named.load(notice)
    elif glob.has_magic(source):
        matches = [Path(p) for p in sorted(glob.glob(source, recursive=True)) if Path(p).is_file()]
        if not matches:
            raise UsageError(f"no file matches {source!r}")
        documents = list(_read_files(matches, config, notice))
    else:
        near = difflib.get_close_matches(source, CORPORA, n=1)
        hint = f"did you mean the corpus {near[0]!r}?" if near else f"named corpora are {', '.join(CORPORA)}"
        raise UsageError(f"there is no file or folder {source!r}; {hint}")
    return LoadedCorpus(tuple(documents), source=source, licence="unknown", canonical=False)


def _files_below(folder: Path) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if name.removesuffix(".gz").endswith(SUFFIXES)]
    if not found:
        kinds = " ".join(SUFFIXES)
        raise CorpusError(f"{folder} has no text files in it (looked for {kinds}, plain or .gz); name files instead")
    return found


def _read_files(paths: Sequence[Path], config: CorpusConfig, notice: Callable[[str], None]) -> Iterator[Document]:
    for path in paths:
        if not path.is_file():
            raise CorpusError(f"{path} is not a regular file")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
        name = path.name.lower()
        if name.endswith(".gz"):
            data, name = _unzip(path, data), name[:-3]
        if name.endswith(".jsonl"):
            yield from _records(path, _jsonl(path, _decode(str(path), data, config, notice), config.column))
        elif name.endswith(".csv"):
            yield from _records(path, _csv(path, _decode(str(path), data, config, notice), config.column))
        else:
            yield _document(str(path), data, config, notice)


def _unzip(path: Path, data: bytes) -> bytes:
    limit = max(_MOST_EXPANDED, _MOST_EXPANSION * len(data))
    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is not a whole gzip file: {error}") from error
    if len(text) > limit:
        raise CorpusError(
            f"{path} unpacks to over {_MOST_EXPANSION} times its size; unpack it by hand if it is meant so"
        )
    return text


def _document(name: str, data: bytes, config: CorpusConfig, notice: Callable[[str], None]) -> Document:
    return Document(name, _decode(name, data, config, notice))


def _decode(name: str, data: bytes, config: CorpusConfig, notice: Callable[[str], None]) -> str:
    if config.encoding == "bytes":
        return bytes_to_text(data)
    encoding = config.encoding
    # Python's own codecs only: an installed package may have registered one that takes every name.
    if encodings.search_function(encoding.lower()) is None:
        raise UsageError(f"there is no text encoding {encoding!r}")
    if encoding == "utf-8":
        for mark, marked in _MARKS:
            if data.startswith(mark):
                notice(f"{name}: read as {marked.upper()}, as its byte order mark says")
                encoding = marked
                break
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{name}: byte 0x{data[error.start]:02x} at offset {error.start} is not {encoding.upper()} text; name the "
            "right encoding (--encoding latin-1, say), or take the file byte for byte with --encoding bytes"
        ) from error
    except (LookupError, UnicodeError) as error:
        raise UsageError(f"there is no text encoding {encoding!r}: {error}") from error


def _records(path: Path, texts: Iterator[str]) -> Iterator[Document]:
    for number, text in enumerate(texts, start=1):
        yield Document(f"{path}:{number}", text)


def _jsonl(path: Path, text: str, field: str) -> Iterator[str]:
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path}, line {number}: not JSON: {error}") from error
        value = record.get(field) if isinstance(record, dict) else None
        if not isinstance(value, str):
            has = f"it has {', '.join(map(str, record))}" if isinstance(record, dict) else "it is no object"
            raise CorpusError(f"{path}, line {number}: no text in field {field!r} ({has}); name it with --column")
        yield value


def _csv(path: Path, text: str, column: str) -> Iterator[str]:
    csv.field_size_limit(1 << 30)  # a field is a whole document; Python's own limit is 128 kB
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    try:
        if column not in (reader.fieldnames or []):
            has = ", ".join(reader.fieldnames or [])
            raise CorpusError(f"{path}: no column {column!r} (it has {has}); name it with --column")
        for row in reader:
            yield row[column] or ""
    except csv.Error as error:
        raise CorpusError(f"{path}, line {reader.line_num}: not CSV: {error}") from error
