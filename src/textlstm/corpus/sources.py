"""Where text comes from: files, folders, patterns, standard input, and corpora that have a name.

Text is kept byte for byte. A file that is not in the encoding named is an error that says which byte; UTF-16 and
UTF-32 announce themselves by a byte order mark and are decoded (their bytes are not valid UTF-8, so nothing is
guessed). Without the mark their bytes may be valid UTF-8, but with NULs, which stand nearly all at even or all at odd
places: that is an error which names the encoding that it looks like. `--encoding bytes` takes anything.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import encodings
import glob
import gzip
import io
import itertools
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from textlstm.config import CorpusConfig
from textlstm.corpus.document import Document
from textlstm.corpus.named import CORPORA, PREFIX, LoadedCorpus, find
from textlstm.errors import CorpusError, MissingExtraError, UsageError

SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet")
_CHUNK = 1 << 20  # bytes or characters at once
_STDIN = "standard input"
_PACKED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}  # how packed data begins, and no UTF-8 text
_ZSTD_CHUNK = 1 << 12  # a packed byte may stand for 30,000
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE, _NULS = 4096, 4  # bytes, a multiple of 4, that tell UTF-16 without a mark, if so many of them are NUL
# A packed file may grow to this many times its size, or to the size below: real text shrinks about 3 to 20 times.
_MOST_EXPANSION, _MOST_EXPANDED = 200, 1 << 28


@dataclass(frozen=True)
class Piece:
    """A piece of a document, so that none has to be in memory whole.

    Attributes:
        name: of its document.
        text: never empty.
        begins: whether the document begins here.
    """

    name: str
    text: str
    begins: bool


@dataclass(frozen=True)
class Source:
    """A source that was found, and not read yet.

    Attributes:
        pieces: reads it.
        source, licence, canonical: as `LoadedCorpus` has them.
        files: the files behind it; empty where it is not made of files.
    """

    pieces: Callable[[], Iterator[Piece]]
    source: str
    licence: str
    canonical: bool
    files: tuple[Path, ...] = ()


class Rows:
    """Rows of a table as a source: any iterable of mappings, such as a dataset of Hugging Face.

    Args:
        rows: the table; its `column_names` say what a row has.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows = rows

    def __str__(self) -> str:
        return ROWS


ROWS = "rows handed over in Python"


def find_sources(sources: Sequence[str | Rows], config: CorpusConfig, notice: Callable[[str], None]) -> list[Source]:
    """Finds sources, in the order given; files of folders and patterns by name.

    Args:
        sources: paths, folders, glob patterns, "-" for standard input, names of corpora, rows.
        config: encoding, newlines, column.
        notice: called with one line about anything that was done differently than asked.

    Raises:
        UsageError: a source that does not exist.
    """
    return [_find_source(source, config, notice) for source in sources]


def check_sources(sources: Sequence[str | Rows]) -> None:
    """Refuses names of what does not exist, before anything slow is done; nothing is read or looked through.

    Raises:
        UsageError: there is no such file, folder or corpus.
    """
    for source in sources:
        if isinstance(source, Rows) or source == "-" or Path(source).exists() or glob.has_magic(source):
            continue
        if find(source) is None:
            raise _missing(source)


def _missing(source: str) -> UsageError:
    near = difflib.get_close_matches(source, CORPORA, n=1)
    hint = f"did you mean the corpus {near[0]!r}?" if near else f"named corpora are {', '.join(CORPORA)}"
    return UsageError(f"there is no file or folder {source!r}; {hint}")


def read_sources(sources: Sequence[str | Rows], config: CorpusConfig, notice: Callable[[str], None]) -> LoadedCorpus:
    """Reads all sources as documents; arguments as in `find_sources`.

    Raises:
        UsageError: a source that does not exist.
        CorpusError: a file that cannot be read as text.
    """
    found = find_sources(sources, config, notice)
    documents = as_documents(piece for one in found for piece in one.pieces())
    if not documents:
        raise CorpusError(f"{', '.join(map(str, sources))}: there is no text in it")
    return LoadedCorpus(documents, *describe(found, config))


def describe(found: Sequence[Source], config: CorpusConfig) -> tuple[str, str, bool]:
    """Source, licence and whether it is canonical, of all sources together."""
    return (
        "; ".join(one.source for one in found),
        "; ".join(dict.fromkeys(one.licence for one in found)),
        len(found) == 1 and found[0].canonical and config.newlines == "keep",
    )


def as_documents(pieces: Iterable[Piece]) -> tuple[Document, ...]:
    """Puts pieces together."""
    documents: list[tuple[str, list[str]]] = []
    for piece in pieces:
        if piece.begins:
            documents.append((piece.name, []))
        documents[-1][1].append(piece.text)
    return tuple(Document(name, "".join(texts)) for name, texts in documents)


def source_title(source: str) -> str:
    """What a source is called in a report."""
    return _STDIN if source == "-" else source.removeprefix(PREFIX)


def title_of(sources: Iterable[str | Rows]) -> str:
    """What texts are called together: files and folders without the way to them, so the same from any folder."""
    return " ".join(Path(name).name or name for name in (source_title(str(source)) for source in sources))


def absolute(source: str) -> str:
    """A source as it is found from any folder; standard input and named corpora stay as they are."""
    named = not Path(source).exists() and find(source) is not None
    if source in ("-", ROWS) or named or os.path.isabs(source):
        return source
    if not Path(source).exists() and glob.has_magic(source):
        return os.path.join(glob.escape(os.getcwd()), source)
    return os.path.abspath(source)


def _find_source(source: str | Rows, config: CorpusConfig, notice: Callable[[str], None]) -> Source:
    if isinstance(source, Rows):
        return Source(lambda: _rows(source.rows, config), str(source), "unknown", False)
    if not source:  # a variable of a shell that is not set; as a path it would be the folder one is in
        raise UsageError("a source is an empty word; name a file, a folder, or a corpus")
    path = Path(source)
    files: list[Path] = []
    if source == "-":
        chunks = _standard_input(config, notice)
        return Source(lambda: _document(_STDIN, chunks, config, notice), source, "unknown", False)
    if path.exists() and find(source) is not None:
        kind = "folder" if path.is_dir() else "file"
        notice(f"{source} is taken for the {kind} of that name here, which hides the corpus: {PREFIX}{source}")
    if path.is_dir():
        files = _files_below(path, notice)
    elif path.exists():
        files = [path]
    elif named := find(source):
        loaded = named.load(notice)
        return Source(lambda: _loaded(loaded, config), loaded.source, loaded.licence, loaded.canonical)
    elif glob.has_magic(source):
        files = [Path(p) for p in sorted(glob.glob(source, recursive=True)) if Path(p).is_file()]
        if not files:
            raise UsageError(f"no file matches {source!r}")
    else:
        raise _missing(source)
    return Source(lambda: _read_files(files, config, notice), source, "unknown", False, tuple(files))


def _files_below(folder: Path, notice: Callable[[str], None]) -> list[Path]:
    found, others = list[Path](), list[Path]()
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".") or _is_text(name)):
            (found if _is_text(name) else others).append(Path(root, name))
    kinds = f"{' '.join(SUFFIXES)}, plain, .gz or .zst"
    if not found:
        raise CorpusError(f"{folder} has no text files in it (looked for {kinds}); name files instead")
    if others:
        left = "1 file is" if len(others) == 1 else f"{len(others):,} files are"
        notice(f"of {folder} {left} left out, {others[0]} first: in a folder only {kinds} is read; name other files")
    return found


def _is_text(name: str) -> bool:
    return _unpacked_name(name).endswith(SUFFIXES)


def _unpacked_name(name: str) -> str:
    return name.lower().removesuffix(".gz").removesuffix(".zst")


def _read_files(paths: Sequence[Path], config: CorpusConfig, notice: Callable[[str], None]) -> Iterator[Piece]:
    for path in paths:
        if not path.is_file():
            raise CorpusError(f"{path} is not a regular file")
        name = _unpacked_name(path.name)
        if name.endswith(".parquet"):
            yield from _records(path, _parquet(path, config.column), config)
            continue
        try:
            with path.open("rb") as file:
                chunks = _unpacked(str(path), path.suffix.lower(), file, path.stat().st_size)
                if name.endswith(".jsonl"):
                    texts = _jsonl(path, _decoded(str(path), chunks, config, notice), config.column)
                    yield from _records(path, texts, config)
                elif name.endswith(".csv"):
                    texts = _csv(path, _decoded(str(path), chunks, config, notice), config.column)
                    yield from _records(path, texts, config)
                else:
                    yield from _document(str(path), chunks, config, notice)
        except OSError as error:
            raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


def _chunks_of(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _standard_input(config: CorpusConfig, notice: Callable[[str], None]) -> Iterator[bytes]:
    """The content of standard input in chunks, unpacked as its first bytes say where it must be UTF-8."""
    file, suffix = sys.stdin.buffer, ""
    file = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file))
    if config.encoding == "utf-8":
        head = file.peek(4)
        suffix = next((suffix for mark, suffix in _PACKED.items() if head.startswith(mark)), "")
    if suffix:
        notice(f"{_STDIN}: unpacked as {suffix}, as its first bytes say")
    yield from _unpacked(_STDIN, suffix, file, None)


def _unpacked(name: str, suffix: str, file: BinaryIO, size: int | None) -> Iterator[bytes]:
    """The content of a file in chunks, unpacked as a suffix says; its size is None where it is not known."""
    unpack = {".gz": _gunzip, ".zst": _unzstd}.get(suffix)
    if unpack is None:
        return _chunks_of(file)
    return unpack(name, file) if size is None else _bounded(name, unpack(name, file), size)


def _gunzip(name: str, file: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.open(file) as unpacked:
            yield from _chunks_of(cast(BinaryIO, unpacked))
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{name} is not a whole gzip file: {error}") from error


def _unzstd(name: str, file: BinaryIO) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "corpora") from error
    try:
        frame = zstandard.ZstdDecompressor().decompressobj()
        begun = False
        while packed := file.read(_ZSTD_CHUNK):
            while packed:
                yield frame.decompress(packed)
                begun, packed = not frame.eof, frame.unused_data
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
        if begun:
            raise CorpusError(f"{name} is not a whole zstd file: it is cut off")
    except zstandard.ZstdError as error:
        raise CorpusError(f"{name} is not a whole zstd file: {error}") from error


def _bounded(name: str, chunks: Iterator[bytes], packed: int) -> Iterator[bytes]:
    limit, size = max(_MOST_EXPANDED, _MOST_EXPANSION * packed), 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise CorpusError(
                f"{name} unpacks to over {_MOST_EXPANSION} times its size; unpack it by hand if it is meant so"
            )
        yield chunk


def _loaded(loaded: LoadedCorpus, config: CorpusConfig) -> Iterator[Piece]:
    for document in loaded.documents:
        yield from _document_pieces(document.name, iter([document.text]), config)


def _document(
    name: str, chunks: Iterator[bytes], config: CorpusConfig, notice: Callable[[str], None]
) -> Iterator[Piece]:
    return _document_pieces(name, _decoded(name, chunks, config, notice), config)


def _document_pieces(name: str, texts: Iterator[str], config: CorpusConfig) -> Iterator[Piece]:
    """The pieces of one document, its line ends as they are wanted."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True) if config.newlines == "lf" else None
    begins = True
    for text in itertools.chain(texts, [""]):
        if newlines is not None:
            text = newlines.decode(text, final=not text)  # it takes text where it has no decoder
        for start in range(0, len(text), _CHUNK):
            yield Piece(name, text[start : start + _CHUNK], begins)
            begins = False


def _decoded(name: str, chunks: Iterator[bytes], config: CorpusConfig, notice: Callable[[str], None]) -> Iterator[str]:
    """Text from bytes, chunk by chunk; an error names the offset in the whole."""
    first = next(chunks, b"")
    encoding = "utf-8" if config.encoding == "bytes" else config.encoding
    errors = "surrogateescape" if config.encoding == "bytes" else "strict"
    # Python's own codecs only: an installed package may have registered one that takes every name.
    if encodings.search_function(encoding.lower()) is None:
        raise UsageError(f"there is no text encoding {encoding!r}")
    if config.encoding == "utf-8":
        for mark, marked in _MARKS:
            if first.startswith(mark):
                notice(f"{name}: read as {marked.upper()}, as its byte order mark says")
                encoding = marked
                break
        else:
            _refuse_unmarked(name, first[:_SAMPLE])
    before = 0
    try:
        if not getattr(codecs.lookup(encoding), "_is_text_encoding", True):  # hex, say
            raise LookupError("it turns bytes into bytes")
        decoder = codecs.getincrementaldecoder(encoding)(errors)
        for chunk in itertools.chain([first], chunks, [b""]):
            before += len(chunk)
            yield decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        data, offset = error.object, before - len(error.object) + error.start
        raise CorpusError(
            f"{name}: byte 0x{data[error.start]:02x} at offset {offset} is not {encoding.upper()} text; name the "
            "right encoding (--encoding latin-1, say), or take the file byte for byte with --encoding bytes"
        ) from error
    except (LookupError, UnicodeError) as error:
        raise UsageError(f"there is no text encoding {encoding!r}: {error}") from error


def _refuse_unmarked(name: str, sample: bytes) -> None:
    """Raises CorpusError for what looks like UTF-16 or UTF-32 without a byte order mark, by where its NULs stand."""
    nuls = [sample[place::4].count(0) for place in range(4)]
    if sum(nuls) < _NULS:  # a few stand somewhere by chance
        return
    if _is_text_with_nuls(sample):
        return
    even, odd, quarter = nuls[0] + nuls[2], nuls[1] + nuls[3], len(sample) // 4
    if quarter and nuls[3] >= quarter and nuls[2] > nuls[0]:  # no code point needs the highest byte
        kind = "32", "LE", "little"
    elif quarter and nuls[0] >= quarter and nuls[1] > nuls[3]:
        kind = "32", "BE", "big"
    elif odd > len(sample) / 20 and even < odd / 10:  # a tenth: in other alphabets only spaces and line ends have one
        kind = "16", "LE", "little"
    elif even > len(sample) / 20 and odd < even / 10:
        kind = "16", "BE", "big"
    else:
        return
    width, order, end = kind
    raise CorpusError(
        f"{name} looks like UTF-{width} ({end} endian) without a byte order mark; read it with --encoding "
        f"utf-{width}-{order.lower()} or convert it (iconv -f UTF-{width}{order} -t UTF-8), or take the file byte for "
        "byte with --encoding bytes"
    )


def _is_text_with_nuls(sample: bytes) -> bool:
    """Whether bytes are a UTF-8 text that has NULs in it.

    UTF-16 of an alphabet is UTF-8 too, but of its pairs of bytes nearly each has one below 32, at the same place.
    """
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # its last character may be cut
    except UnicodeDecodeError:
        return False
    low = [sum(byte < 32 for byte in sample[place::2]) for place in range(2)]
    return max(low) < 3 / 4 * (len(sample) / 2)


def _records(path: Path, texts: Iterator[str], config: CorpusConfig) -> Iterator[Piece]:
    for number, text in enumerate(texts, start=1):
        yield from _document_pieces(f"{path}:{number}", iter([text]), config)


def _rows(rows: Iterable[Mapping[str, Any]], config: CorpusConfig) -> Iterator[Piece]:
    for number, row in enumerate(rows, start=1):
        text = row.get(config.column) if isinstance(row, Mapping) else None
        if not isinstance(text, str):
            has = f"it has {', '.join(map(str, row))}" if isinstance(row, Mapping) else "it is no mapping"
            raise CorpusError(f"row {number}: no text in column {config.column!r} ({has}); name it with column=")
        yield from _document_pieces(f"row {number}", iter([text]), config)


def _parquet(path: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "corpora") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                has = ", ".join(file.schema_arrow.names)
                raise CorpusError(f"{path}: no column {column!r} (it has {has}); name it with --column")
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str | None):
                        raise CorpusError(f"{path}: column {column!r} holds {type(text).__name__}, not text")
                    yield text or ""
    except (OSError, pyarrow.ArrowException) as error:
        raise CorpusError(f"{path} is not a whole parquet file: {error}") from error


def _lines(texts: Iterator[str], newline: str) -> Iterator[str]:
    """Lines with their ends, from text in pieces; `newline` as in `io.StringIO`."""
    rest: list[str] = []
    for text in texts:
        rest.append(text)
        if "\n" in text:
            lines = list(io.StringIO("".join(rest), newline=newline))
            rest = [] if lines[-1].endswith("\n") else [lines.pop()]
            yield from lines
    yield from io.StringIO("".join(rest), newline=newline)


def _unmarked(texts: Iterator[str]) -> Iterator[str]:
    """Text without the byte order mark that may stand before it."""
    first = next((text for text in texts if text), "")
    return itertools.chain([first.removeprefix("\ufeff")], texts)


def _jsonl(path: Path, texts: Iterator[str], field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(_unmarked(texts), "\n"), start=1):
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


def _csv(path: Path, texts: Iterator[str], column: str) -> Iterator[str]:
    csv.field_size_limit(1 << 30)  # a field is a whole document; Python's own limit is 128 kB
    reader = csv.DictReader(_lines(_unmarked(texts), ""))
    try:
        if column not in (reader.fieldnames or []):
            has = ", ".join(reader.fieldnames or [])
            raise CorpusError(
                f"{path}: no column {column!r} (it has {has}); name it with --column, or hand the whole table over as "
                "plain text, on standard input (-)"
            )
        for row in reader:
            yield row[column] or ""
    except csv.Error as error:
        raise CorpusError(f"{path}, line {reader.line_num}: not CSV: {error}") from error
