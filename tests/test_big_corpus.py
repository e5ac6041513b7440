"""Texts that do not fit into memory: the cache gives what memory would, block by block."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import textlstm
from textlstm import corpus as corpus_module
from textlstm.config import CorpusConfig
from textlstm.corpus import Part, Rows, StoredPart, encoding, read_corpus, read_sources, sources, store
from textlstm.errors import CorpusError, RunError
from textlstm.model_file import read_model
from textlstm.run import Request, train
from textlstm.tokenizer import PATTERNS, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

WORD_LIST = "the tide had gone out and left the small boats leaning in the mud while gulls walked about"
WORDS = WORD_LIST.split()


def make_text(size: int, seed: int = 1) -> str:
    rng = random.Random(seed)
    out: list[str] = []
    while sum(map(len, out)) < size:
        ends = rng.choice([".\n", ".\n\n", "!  ", ' "é," 潮が引いた。\n', "'s 12345 - \n", "\r\n", "\n \n"])
        out.append(" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) + ends)
    return "".join(out)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def small_limits(monkeypatch):
    """Everything in small pieces, so that a small text is a long one."""
    monkeypatch.setattr(corpus_module, "MOST_IN_MEMORY", 300)
    monkeypatch.setattr(sources, "_CHUNK", 97)
    monkeypatch.setattr(encoding, "_BLOCK", 211)
    monkeypatch.setattr(store, "_READ", 53)


def settle(*paths: Path) -> None:
    """Makes files look as if they had not been changed lately."""
    for path in paths:
        os.utime(path, (time.time() - 100, time.time() - 100))


def in_memory(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "MOST_IN_MEMORY", 1 << 40)
        return read_corpus(*arguments)


TEXT = make_text(8_000)
TOKENIZERS: dict[str, Tokenizer] = {
    "byte": ByteTokenizer(),
    "char": CharTokenizer.from_text(TEXT[:2000]),
    **{name: BPETokenizer(BPETokenizer.train(TEXT, 400).merges, name) for name in PATTERNS},
}


# --- the cache gives what memory gives -------------------------------------------------------------------------------


def check_same(stored, whole, tokenizer: Tokenizer, boundary_id: int | None) -> None:
    assert isinstance(stored.train, StoredPart) and isinstance(whole.train, Part)
    for name in ("train", "dev", "val"):
        one, other = getattr(stored, name), getattr(whole, name)
        assert (one.num_chars, one.num_bytes, one.continues) == (other.num_chars, other.num_bytes, other.continues)
    assert stored.fingerprint == whole.fingerprint
    ours, theirs = stored.encode(tokenizer, boundary_id), whole.encode(tokenizer, boundary_id)
    for name in ("train", "dev", "val"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert stored.train.head(50) == whole.train.head(50)
    assert "".join(whole.train.head(50)) == whole.train.text[:50]
    assert stored.training_text("bpe") == whole.training_text("bpe")
    assert stored.train.alphabet() == "".join(sorted(set(whole.train.text)))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("newlines", ["keep", "lf"])
def test_stored_is_whole(small_limits, tmp_path, name, newlines):
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT.encode())
    config = CorpusConfig(val_chars=777, newlines=newlines)
    check_same(read_corpus([str(path)], config), in_memory([str(path)], config), TOKENIZERS[name], 5000)


@given(
    texts=st.lists(st.one_of(st.text(), st.text("ab \n'sé\r"), st.just(TEXT[:700])), min_size=1, max_size=8),
    val=st.integers(0, 300), dev=st.sampled_from([0.0, 0.1, 0.5]), name=st.sampled_from(sorted(TOKENIZERS)),
    boundary=st.sampled_from([None, 5000]),
)  # fmt: skip
def test_stored_is_whole_for_any_documents(texts, val, dev, name, boundary):
    texts = [*texts, TEXT[:500]]
    with pytest.MonkeyPatch.context() as patch:
        for where, what, value in (
            (corpus_module, "MOST_IN_MEMORY", 300), (sources, "_CHUNK", 97), (encoding, "_BLOCK", 211),
            (store, "_READ", 53),
        ):  # fmt: skip
            patch.setattr(where, what, value)
        config = CorpusConfig(val_chars=val, dev_fraction=dev)
        rows = Rows([{"text": text} for text in texts])
        try:
            whole = in_memory([rows], config)
        except CorpusError:  # nothing left to learn from
            return
        check_same(read_corpus([rows], config), whole, TOKENIZERS[name], boundary)


def test_bytes_that_are_no_utf8(small_limits, tmp_path):
    path = tmp_path / "noise.bin"
    path.write_bytes(np.random.default_rng(3).integers(0, 256, 5000).astype(np.uint8).tobytes())
    config = CorpusConfig(encoding="bytes", val_chars=501)
    check_same(read_corpus([str(path)], config), in_memory([str(path)], config), TOKENIZERS["gpt2"], 400)


def test_several_processes_give_the_same(small_limits, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_BLOCK", 1000)
    path = tmp_path / "book.txt"
    path.write_bytes(make_text(20_000).encode())
    corpus = read_corpus([str(path)], CorpusConfig())
    ours = corpus.encode(TOKENIZERS["gpt2"], 400, workers=2).train
    assert np.array_equal(ours, in_memory([str(path)], CorpusConfig()).encode(TOKENIZERS["gpt2"], 400).train)
    assert ours.dtype == np.uint16 and isinstance(ours, np.memmap)


def test_many_short_documents_take_no_memory(small_limits, tmp_path):
    path = tmp_path / "many.csv"
    path.write_text("text\n" + "\n".join(f"{number:06}" for number in range(30_000)) + "\n")
    corpus = read_corpus([str(path)], CorpusConfig())
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    assert sum(size for size, data in corpus.train.data() if b"".join(data)) == corpus.train.num_bytes
    held = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert held < 1_500_000  # a list of all borders takes 4 MB


def test_large_vocabularies_take_four_bytes(small_limits, tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT.encode())
    corpus = read_corpus([str(path)], CorpusConfig())
    assert corpus.encode(ByteTokenizer(), 65_535).train.dtype == np.uint16
    ids = corpus.encode(ByteTokenizer(), 65_536).train
    assert ids.dtype == np.uint32 and ids[0] == 65_536


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_second_start_reads_nothing(small_limits, tmp_path, monkeypatch):
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT.encode())
    settle(path)
    first = read_corpus([str(path)], CorpusConfig())
    ids = first.encode(ByteTokenizer(), 256).train
    monkeypatch.setattr(sources, "_read_files", lambda *a: pytest.fail("the text was read again"))
    monkeypatch.setattr(encoding, "_encode", lambda *a: pytest.fail("the text was encoded again"))
    expected = first.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(StoredPart, "data", lambda self: pytest.fail("the text was hashed again"))
        second = read_corpus([str(path)], CorpusConfig())
        assert second.fingerprint == expected
    assert np.array_equal(second.encode(ByteTokenizer(), 256).train, ids)
    for damage in (b"", b"\xff\x00", expected[:-2].encode(), b"g" * 64):
        (kept,) = (corpus_module.cache_dir() / "fingerprints").iterdir()
        kept.write_bytes(damage)
        assert read_corpus([str(path)], CorpusConfig()).fingerprint == expected
    others = [read_corpus([str(path)], CorpusConfig(val_chars=n)) for n in (700, 701)]
    assert len({expected, *(corpus.fingerprint for corpus in others)}) == 3


@pytest.mark.parametrize("change", ["content", "same size", "just written", "column", "newlines"])
def test_a_changed_file_is_read_again(small_limits, tmp_path, change):
    path = tmp_path / "book.jsonl"
    lines = [json.dumps({"text": TEXT[:900] + "\r\n", "other": "x" * 900}) for _ in range(3)]
    path.write_text("\n".join(lines))
    if change != "just written":
        settle(path)
    before = read_corpus([str(path)], CorpusConfig())
    config = {"column": CorpusConfig(column="other"), "newlines": CorpusConfig(newlines="lf")}.get(change)
    if change in ("content", "same size", "just written"):
        path.write_text(path.read_text().replace("tide", "tide!" if change == "content" else "ebbs", 1))
        settle(path) if change == "content" else None
    after = read_corpus([str(path)], CorpusConfig() if config is None else config)
    assert after.fingerprint != before.fingerprint


def test_a_damaged_cache_is_made_anew(small_limits, tmp_path, monkeypatch):
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT.encode())
    settle(path)
    expected = read_corpus([str(path)], CorpusConfig()).encode(ByteTokenizer(), 256).train.tolist()
    base = Path(os.environ["TEXTLSTM_CACHE"])
    for pattern in ("tokens/*/tokens.bin", "tokens/*/progress.json", "texts/*/text.bin", "texts/*/meta.json"):
        (found,) = base.glob(pattern)
        found.write_bytes(found.read_bytes()[:-1])
        assert read_corpus([str(path)], CorpusConfig()).encode(ByteTokenizer(), 256).train.tolist() == expected


def test_a_stopped_encoding_goes_on(small_limits, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_NOTE_EVERY", 3)
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT.encode())
    corpus = read_corpus([str(path)], CorpusConfig())
    calls: list[int] = []
    real = encoding._encode_block

    def counted(job, tokenizer):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return real(job, tokenizer)

    monkeypatch.setattr(encoding, "_encode_block", counted)
    with pytest.raises(KeyboardInterrupt):
        corpus.encode(TOKENIZERS["gpt2"], 400)
    notices: list[str] = []
    ids = corpus.encode(TOKENIZERS["gpt2"], 400, notice=notices.append).train
    blocks = len(list(corpus.train.blocks(211)))
    assert len(calls) == 12 + blocks - 9 and any("going on at" in line for line in notices)  # 9 were noted
    assert np.array_equal(ids, in_memory([str(path)], CorpusConfig()).encode(TOKENIZERS["gpt2"], 400).train)


def test_a_cache_without_room_is_told(small_limits, tmp_path, monkeypatch):
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT.encode())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", full)
        with pytest.raises(CorpusError, match="No space left on device; TEXTLSTM_CACHE names another"):
            read_corpus([str(path)], CorpusConfig())
    assert not list(Path(os.environ["TEXTLSTM_CACHE"]).glob("texts/.*"))
    corpus = read_corpus([str(path)], CorpusConfig())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CorpusError, match="No space left on device"):
        corpus.encode(ByteTokenizer(), 256)


def test_long_parts_besides_training_are_bounded(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("x" * 100_000)
    corpus = read_corpus([str(path)], CorpusConfig(max_val_chars=900, max_dev_chars=300))
    assert (corpus.val.num_chars, corpus.dev.num_chars, corpus.train.num_chars) == (900, 300, 98_800)
    corpus = read_corpus([str(path)], CorpusConfig(val_chars=5000, max_val_chars=900, max_dev_chars=300))
    assert corpus.val.num_chars == 5000  # asked for


def test_the_sample_for_a_tokenizer_is_bounded_spread_and_told(small_limits, tmp_path, monkeypatch):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {k} of it\n" for k in range(20_000)))
    monkeypatch.setattr(corpus_module, "_SAMPLE_CHARS", 32_000)
    corpus = read_corpus([str(path)], CorpusConfig())
    notices: list[str] = []
    sample = "".join(corpus.training_text("bpe", notices.append))
    assert 31_000 < len(sample) < 36_000 and any("32,000 characters, evenly spread" in line for line in notices)
    numbers = [int(line.split()[1]) for line in sample.splitlines() if line.count(" ") == 3]
    assert numbers == sorted(numbers) and numbers[0] == 0 and numbers[-1] > 16_000
    assert corpus.training_text("char") == ("".join(sorted(set(path.read_text()[:10_000]) | set("0123456789"))),)


# --- runs ------------------------------------------------------------------------------------------------------------

TINY = {
    "embed_size": 12, "hidden_size": 16, "batch_size": 4, "seq_len": 24, "eval_every": 10, "vocab_size": 300,
}  # fmt: skip


def weights(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in read_model(path).weights.items()}


def test_a_run_on_a_stored_text_is_the_run_on_a_whole_one(tmp_path, small_limits, monkeypatch):
    path = tmp_path / "book.txt"
    path.write_bytes(TEXT.encode())
    settle(path)
    stored = train(Request([str(path)], tmp_path / "stored", steps=12, settings=TINY))
    again = train(Request([str(path)], tmp_path / "again", epochs=0.3, settings=TINY))  # the tokenizer is kept
    monkeypatch.setattr(corpus_module, "MOST_IN_MEMORY", 1 << 40)
    whole = train(Request([str(path)], tmp_path / "whole", steps=12, settings=TINY))
    assert weights(stored.model) == weights(whole.model) and stored.val == whole.val
    assert read_model(again.model).tokenizer.fingerprint == read_model(whole.model).tokenizer.fingerprint


class Table(list):
    """A dataset in the manner of Hugging Face: rows, and the names of their columns."""

    column_names = ("text", "id")


def test_rows_of_a_dataset(tmp_path):
    pieces = TEXT.split("\n\n")
    table = Table({"text": piece, "id": k} for k, piece in enumerate(pieces))
    model = textlstm.train(table, tmp_path / "run", steps=3, quiet=True, **TINY)
    assert model.card["split"]["train_chars"] + model.card["split"]["dev_chars"] + model.card["split"][
        "val_chars"
    ] == sum(map(len, pieces))
    (tmp_path / "run" / "log.jsonl").unlink()
    with pytest.raises(RunError, match="rows handed over in Python: hand the same ones over again"):
        textlstm.train([], tmp_path / "run", resume=True, quiet=True)
    again = textlstm.train(table, tmp_path / "run", resume=True, quiet=True)
    assert again.card["split"] == model.card["split"]
    with pytest.raises(CorpusError, match=r"row 1: no text in column 'body' \(it has text, id\)"):
        textlstm.train(table, tmp_path / "other", steps=3, quiet=True, column="body")


def test_rows_of_a_list(tmp_path):
    rows = [{"text": piece, "id": k} for k, piece in enumerate(TEXT.split("\n\n"))]
    for name, table in (("list", rows), ("tuple", tuple(rows)), ("table", Table(rows))):
        textlstm.train(table, tmp_path / name, steps=2, quiet=True, **TINY)
    assert weights(tmp_path / "list" / "model.safetensors") == weights(tmp_path / "table" / "model.safetensors")
    assert weights(tmp_path / "tuple" / "model.safetensors") == weights(tmp_path / "table" / "model.safetensors")
    with pytest.raises(CorpusError, match=r"row 2: no text in column 'text' \(it is no mapping\)"):
        textlstm.train([{"text": TEXT}, 3], tmp_path / "other", steps=2, quiet=True, **TINY)


# --- packed and tabular files ----------------------------------------------------------------------------------------


def test_zstd_and_parquet(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")

    texts = [TEXT[:3000], "second\n", "dritter Täxt", TEXT[3000:]]
    lines = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines[:900]) + zstandard.compress(lines[900:]))
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(TEXT.encode()))
    parquet.write_table(pyarrow.table({"text": texts, "n": [1, 2, 3, 4]}), tmp_path / "c.parquet", row_group_size=2)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines))
    for name in ("a.jsonl.zst", "c.parquet", "d.jsonl.gz"):
        documents = read_sources([str(tmp_path / name)], CorpusConfig(), print).documents
        assert [d.text for d in documents] == texts and documents[1].name == f"{tmp_path / name}:2"
    assert read_sources([str(tmp_path / "b.txt.zst")], CorpusConfig(), print).documents[0].text == TEXT
    assert len(read_sources([str(tmp_path)], CorpusConfig(), print).documents) == 13
    (tmp_path / "torn.txt.zst").write_bytes((tmp_path / "b.txt.zst").read_bytes()[:-9])
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "c.parquet").read_bytes()[:-9])
    (tmp_path / "no.txt.zst").write_bytes(b"plain text")
    for name, told in (
        ("torn.parquet", "not a whole parquet file"), ("no.txt.zst", "not a whole zstd file"),
        ("torn.txt.zst", "not a whole zstd file"),
    ):  # fmt: skip
        with pytest.raises(CorpusError, match=told):
            read_sources([str(tmp_path / name)], CorpusConfig(), print)
    with pytest.raises(CorpusError, match=r"no column 'body' \(it has text, n\)"):
        read_sources([str(tmp_path / "c.parquet")], CorpusConfig(column="body"), print)
    with pytest.raises(CorpusError, match="column 'n' holds int, not text"):
        read_sources([str(tmp_path / "c.parquet")], CorpusConfig(column="n"), print)


def test_a_zstd_bomb_is_not_unpacked(tmp_path, monkeypatch):
    zstandard = pytest.importorskip("zstandard")
    monkeypatch.setattr(sources, "_MOST_EXPANDED", 1 << 20)
    (tmp_path / "bomb.txt.zst").write_bytes(zstandard.compress(bytes(1 << 24)))
    with pytest.raises(CorpusError, match="unpacks to over 200 times its size"):
        read_sources([str(tmp_path / "bomb.txt.zst")], CorpusConfig(), print)


def test_an_error_deep_in_a_long_file_names_the_offset(tmp_path):
    path = tmp_path / "long.txt"
    data = bytearray(("é" * 1_600_000).encode())
    data[3_100_001] = 0xFF
    path.write_bytes(data)
    with pytest.raises(CorpusError, match="byte 0xc3 at offset 3100000 is not UTF-8"):
        read_sources([str(path)], CorpusConfig(), print)


@given(texts=st.lists(st.text(), max_size=6), size=st.integers(1, 40))
def test_lines_from_pieces_are_those_of_the_whole(texts, size):
    whole = "".join(texts)
    pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
    for newline in ("", "\n"):
        expected = list(io.StringIO(whole, newline=newline))
        assert list(sources._lines(iter(pieces), newline)) == expected


@pytest.mark.parametrize("number", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_folders_of_many_files(tmp_path, number, monkeypatch):
    monkeypatch.setattr(corpus_module, "MOST_IN_MEMORY", 1_000)
    for k in range(number):
        folder = tmp_path / "texts" / f"{k % 100:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:06}.txt").write_text(f"text {k}\n")
    corpus = read_corpus([str(tmp_path / "texts")], CorpusConfig(val_chars=9, dev_fraction=0.0))
    ids = corpus.encode(ByteTokenizer(), 256).train
    assert corpus.val.num_chars == 9
    order = sorted(range(number), key=lambda k: (k % 100, f"{k:06}"))
    assert ByteTokenizer().decode(ids[ids != 256]) == "".join(f"text {k}\n" for k in order)[:-9]
