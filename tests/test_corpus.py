"""Reading and splitting text, what is said about files that cannot be used, and the order of training batches."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import random
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from textlstm import corpus as corpus_module
from textlstm.config import CorpusConfig
from textlstm.corpus import (
    Corpus,
    Document,
    LaneReader,
    Part,
    Rows,
    StoredPart,
    read_corpus,
    read_sources,
    sources,
    steps_per_epoch,
)
from textlstm.errors import CorpusError, UsageError
from textlstm.tokenizer import ByteTokenizer, text_to_bytes

EXACT = CorpusConfig(val_fraction=0.0, dev_fraction=0.0)
LONG = "All of this is one line of text with words.\n" * 10


def whole_text(names, config=EXACT, notice=lambda line: None):
    """The text that is read, all in the training part; names may be paths."""
    corpus = read_corpus([str(name) for name in names], config, notice)
    assert corpus.dev.text == corpus.val.text == ""
    return corpus.train.text


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# Kinds of sources


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a", "a.py", "a.TXT", "strange [name]*.txt"])
def test_plain_files_are_kept_byte_for_byte(tmp_path, name):
    data = "\ufeffOne\r\ntwo\rthree\n\té €\x00 end".encode() + LONG.encode()
    corpus = read_corpus([str(write(tmp_path / name, data))], EXACT)
    assert text_to_bytes(corpus.train.text) == data
    assert corpus.train.num_bytes == len(data)
    assert corpus.train.num_chars == len(data.decode())


def test_jsonl_has_a_document_a_line(tmp_path):
    texts = [LONG, "é\n\u2028x", "last"]
    lines = [json.dumps({"id": i, "text": t}, ensure_ascii=i == 0) for i, t in enumerate(texts)]
    path = write(tmp_path / "a.jsonl", "\n".join([lines[0], "", *lines[1:]]) + "\n")
    corpus = read_corpus([str(path)], EXACT)
    assert [d.text for d in corpus.train.documents] == texts
    path = write(tmp_path / "b.jsonl", json.dumps({"body": LONG, "text": "no"}))
    assert whole_text([path], EXACT.replace(column="body")) == LONG


def test_csv_has_a_document_a_row(tmp_path):
    texts = [LONG, 'quoted "x", and\r\ntwo lines', "é", "x" * 200_000]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    corpus = read_corpus([str(write(tmp_path / "a.csv", file.getvalue()))], EXACT)
    assert [d.text for d in corpus.train.documents] == texts


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", f'text,id\n"{LONG}",1\n'), ("a.jsonl", json.dumps({"text": LONG}))]
)
def test_a_byte_order_mark_before_records_is_no_text(tmp_path, name, content):
    assert whole_text([write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())]) == LONG


def test_gzip_is_unpacked(tmp_path):
    record = json.dumps({"text": LONG}).encode()
    assert whole_text([write(tmp_path / "a.txt.gz", gzip.compress(LONG.encode()))]) == LONG
    assert (
        whole_text([write(tmp_path / "a.jsonl.gz", gzip.compress(record) + gzip.compress(b"\n" + record))]) == 2 * LONG
    )


def test_folders_are_read_in_the_order_of_names(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.txt", "sub/a.txt.gz", "x.png", ".hidden/h.txt", "also/z.jsonl"):
        data = json.dumps({"text": f"[{name}]" + LONG}) if name.endswith("jsonl") else f"[{name}]" + LONG
        write(tmp_path / name, gzip.compress(data.encode()) if name.endswith("gz") else data)
    said = []
    found = re.findall(r"\[(.*?)\]", whole_text([tmp_path], notice=said.append))
    assert found == ["a.md", "b.txt", "also/z.jsonl", "sub/a.txt.gz", "sub/c.txt"]
    assert len(said) == 1 and f"1 file is left out, {tmp_path / 'x.png'} first" in said[0]


def test_a_folder_tells_of_files_that_it_leaves_out_only_where_there_are_some(tmp_path):
    write(tmp_path / "a.txt", LONG)
    write(tmp_path / ".hidden", LONG)
    said = []
    whole_text([tmp_path], notice=said.append)
    assert not said
    for number in range(1200):
        write(tmp_path / "sub" / f"{number:04}.py", "x")
    whole_text([tmp_path], notice=said.append)
    assert len(said) == 1 and f"1,200 files are left out, {tmp_path / 'sub' / '0000.py'} first" in said[0]


def test_patterns_and_several_sources(tmp_path):
    for name in ("b.txt", "a.txt", "c.md", "deep/er/d.txt"):
        write(tmp_path / name, f"[{name}]" + LONG)

    def names(*patterns):
        return re.findall(r"\[(.*?)\]", whole_text([tmp_path / p for p in patterns]))

    assert names("*.txt") == ["a.txt", "b.txt"]
    assert names("**/*.txt") == ["a.txt", "b.txt", "deep/er/d.txt"]
    assert names("c.md", "[b].txt", "a.txt") == ["c.md", "b.txt", "a.txt"]
    corpus = read_corpus([str(tmp_path / "c.md"), str(tmp_path / "a.txt")], EXACT)
    assert [d.name for d in corpus.train.documents] == [str(tmp_path / "c.md"), str(tmp_path / "a.txt")]


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(("é\r\n" + LONG).encode())))
    assert whole_text(["-"]) == "é\r\n" + LONG


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_packed_standard_input(monkeypatch, pack):
    data = ("é\r\n" + LONG).encode()

    def read(piped: bytes, config: CorpusConfig = EXACT) -> str:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(piped)))
        return whole_text(["-"], config)

    assert read(pack(data)) == read(pack(data) + pack(b"")) == data.decode()
    assert text_to_bytes(read(pack(data) * 9, EXACT.replace(encoding="bytes"))) == pack(data) * 9
    with pytest.raises(CorpusError, match="standard input is not a whole"):
        read(pack(data)[:-3])


def test_encodings(tmp_path):
    path = write(tmp_path / "a.txt", ("é\r\n" + LONG).encode("latin-1"))
    assert whole_text([path], EXACT.replace(encoding="latin-1")) == "é\r\n" + LONG
    data = random.Random(0).randbytes(5000)
    path = write(tmp_path / "b.txt", data)
    assert text_to_bytes(whole_text([path], EXACT.replace(encoding="bytes"))) == data
    with pytest.raises(UsageError, match="hex"):
        whole_text([path], EXACT.replace(encoding="hex"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_marked_utf16_and_utf32_are_decoded_with_a_notice(tmp_path, encoding):
    path = write(tmp_path / "a.txt", ("\ufeff" + "é🙂\n" + LONG).encode(encoding))
    said = []
    assert whole_text([path], notice=said.append) == "é🙂\n" + LONG
    assert len(said) == 1
    assert str(path) in said[0]
    assert encoding[:6].upper() in said[0]


@pytest.mark.parametrize(
    "language",
    ["Plain words.\n", "Größe ist nicht alles.\n", "Съешь ещё этих мягких булок\n", "天地 玄黄 宇宙 洪荒\n"],
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_unmarked_utf16_and_utf32_are_named(tmp_path, encoding, language):
    text, (_, width, order) = language * 40, encoding.split("-")
    path = write(tmp_path / "a.txt", text.encode(encoding))
    end = {"le": "little", "be": "big"}[order]
    with pytest.raises(CorpusError, match=rf"a\.txt looks like UTF-{width} \({end} endian\)") as caught:
        whole_text([path])
    assert f"--encoding {encoding} " in str(caught.value)
    assert f"iconv -f UTF-{width}{order.upper()} -t UTF-8" in str(caught.value)
    assert whole_text([path], EXACT.replace(encoding=encoding)) == text
    assert text_to_bytes(whole_text([path], EXACT.replace(encoding="bytes"))) == text.encode(encoding)


@pytest.mark.parametrize(
    "text",
    [
        LONG + "\0", "\0" * 500, "a line\0another\0" * 50, "\0", "abc\0", "ab\0\0", "one.txt\0three.txt\0",
        "hello\0world\n" * 400, "hell\0worlds\n" * 400, "é\0-\0—:" * 600, "12\0 4567 12\n" * 300,
    ],
)  # fmt: skip
def test_a_utf8_text_may_have_nuls(tmp_path, text):
    (document,) = read_sources([str(write(tmp_path / "a.txt", text))], EXACT, print).documents
    assert document.text == text


def test_newlines(tmp_path):
    path = write(tmp_path / "a.txt", "a\r\nb\rc\n\r\n\n" + LONG)
    assert whole_text([path], EXACT.replace(newlines="lf")) == "a\nb\nc\n\n\n" + LONG


# Splitting


@pytest.mark.parametrize(
    ("settings", "val", "dev"),
    [
        ({}, 100, 45),
        ({"val_fraction": 0.25, "dev_fraction": 0.5}, 250, 375),
        ({"val_fraction": 0.0}, 0, 50),
        ({"val_chars": 7, "dev_fraction": 0.0}, 7, 0),
        ({"val_chars": 0}, 0, 50),
        ({"val_chars": 880}, 880, 6),
    ],
)
def test_parts_are_exact_tails(tmp_path, settings, val, dev):
    rng = random.Random(1)
    text = "".join(rng.choice("abcé\n ") for _ in range(1000))
    paths = [write(tmp_path / f"{i}.txt", part) for i, part in enumerate((text[:300], text[300:905], text[905:]))]
    corpus = read_corpus([str(p) for p in paths], CorpusConfig(**settings))
    assert corpus.val.text == text[1000 - val :]
    assert corpus.dev.text == text[1000 - val - dev : 1000 - val]
    assert corpus.train.text == text[: 1000 - val - dev]
    assert corpus.val_follows


def test_held_out_file(tmp_path):
    text = "".join(random.Random(1).choices("abc\n ", k=1000))
    main, held = write(tmp_path / "a.txt", text), write(tmp_path / "b.txt", "held out")
    corpus = read_corpus([str(main)], CorpusConfig(val=str(held)))
    assert (corpus.train.text, corpus.dev.text, corpus.val.text) == (text[:950], text[950:], "held out")
    assert not corpus.val_follows


def test_a_boundary_stands_where_a_document_begins_and_not_at_a_cut(tmp_path):
    texts = ["a" * 120, "b" * 50, "c" * 30, "d" * 20]
    paths = [str(write(tmp_path / f"{i}.txt", text)) for i, text in enumerate(texts)]
    # 220 characters: 60 held out cut b after 40 of 50; a quarter of the other 160 is those 40
    corpus = read_corpus(paths, CorpusConfig(val_chars=60, dev_fraction=0.25))
    B = 256
    tokens = corpus.encode(ByteTokenizer(), B)
    a, b, c, d = map(ord, "abcd")
    assert tokens.train.tolist() == [B] + [a] * 120
    assert tokens.dev.tolist() == [B] + [b] * 40
    assert tokens.val.tolist() == [b] * 10 + [B] + [c] * 30 + [B] + [d] * 20
    assert B not in np.concatenate(list(vars(corpus.encode(ByteTokenizer(), None)).values()))


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    val=st.integers(0, 100),
    dev=st.sampled_from([0.0, 0.25, 0.5]),
)
def test_boundaries_of_all_parts_together_are_those_of_the_whole(sizes, val, dev):
    documents = (Document("first", "x" * 300), *(Document(str(i), chr(97 + i) * n) for i, n in enumerate(sizes)))
    total = 300 + sum(sizes)
    rows = Rows([{"text": d.text} for d in documents])
    corpus = read_corpus([rows], CorpusConfig(val_chars=val, dev_fraction=dev))
    tokens = corpus.encode(ByteTokenizer(), 256)
    expected = [id for d in documents for id in [256, *d.text.encode()]]
    assert np.concatenate([tokens.train, tokens.dev, tokens.val]).tolist() == expected
    assert corpus.val.num_chars == val
    assert corpus.dev.num_chars == total - val - int((total - val) * (1 - dev))


def test_an_empty_part_has_no_tokens():
    assert Part(()).encode(ByteTokenizer(), 256).tolist() == []


def test_the_fingerprint_is_of_the_text_and_its_cuts(tmp_path):
    path, copy = write(tmp_path / "a.txt", LONG * 3), write(tmp_path / "b.txt", LONG * 3)
    other = write(tmp_path / "c.txt", "X" + (LONG * 3)[1:])
    prints = [
        read_corpus([str(p)], config).fingerprint
        for p, config in [
            (path, EXACT),
            (copy, EXACT),
            (other, EXACT),
            (path, CorpusConfig()),
            (path, CorpusConfig(dev_fraction=0.1)),
        ]
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


# Errors name the file and the place


def refusal(path, config=EXACT, error=CorpusError):
    with pytest.raises(error) as caught:
        read_corpus([str(path)], config)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_invalid_utf8_is_named_with_its_offset(tmp_path):
    message = refusal(write(tmp_path / "a.txt", "é".encode() * 50 + b"ab\xff" + LONG.encode()))
    assert "0xff at offset 102" in message
    message = refusal(write(tmp_path / "b.txt", LONG.encode() + b"\xe2\x82"))
    assert f"0xe2 at offset {len(LONG)}" in message
    refusal(write(tmp_path / "c.txt", random.Random(0).randbytes(1 << 20)))
    refusal(write(tmp_path / "d.txt", b"\xff\xfe" + b"a\0" * 200 + b"x"))


@pytest.mark.parametrize("content", [b"", b"five!", b"a" * 99, b"\n"])
def test_too_little_text(tmp_path, content):
    refusal(write(tmp_path / "a.txt", content))


def test_a_hundred_characters_are_enough(tmp_path):
    path = write(tmp_path / "a.txt", b"a" * 100)
    assert len(whole_text([path])) == 100
    assert "99 characters" in refusal(path, EXACT.replace(val_chars=1))


def test_sources_that_are_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty")
    write(tmp_path / "pictures" / "a.png", b"\x89PNG")
    refusal(tmp_path / "pictures")
    refusal(tmp_path / "missing.txt", error=UsageError)
    refusal("", error=UsageError)
    refusal(tmp_path / "*.nothing", error=UsageError)
    with pytest.raises(UsageError, match="tiny-shakespeare"):
        read_corpus(["tiny-shakespear"], CorpusConfig())
    path = write(tmp_path / "a.txt", LONG)
    refusal_of_val = EXACT.replace(val=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="nowhere"):
        read_corpus([str(path)], refusal_of_val)


@pytest.mark.parametrize(
    "line", ["{", "[1]", '"text"', '{"txt": "a"}', '{"text": 3}', "[" * 100_000, "1" * 5000, "\ufeff{}"]
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, line):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": LONG}) + "\n\n" + line + "\n")
    assert f"{path}, line 3" in refusal(path)


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    message = refusal(write(tmp_path / "a.csv", "id,body\n1,x\n"))
    assert "'text'" in message
    assert "id, body" in message
    refusal(write(tmp_path / "empty.csv", ""))
    assert "offset 10" in refusal(write(tmp_path / "b.csv", b"text,id\nab\xff,1\n"))


def test_damaged_gzip_files(tmp_path):
    whole = gzip.compress(random.Random(0).randbytes(2000).hex().encode())
    for data in (LONG.encode(), b"", whole[:-1], whole[:500], whole[:600] + b"\0\0\0" + whole[603:], whole + b"junk"):
        path = write(tmp_path / "a.txt.gz", data)
        refusal(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_MOST_EXPANDED", 1000)
    monkeypatch.setattr(sources, "_MOST_EXPANSION", 10)
    assert "10 times" in refusal(write(tmp_path / "a.txt.gz", gzip.compress(b"a" * 1001)))
    assert whole_text([write(tmp_path / "b.txt.gz", gzip.compress(b"a" * 1000))]) == "a" * 1000
    data = random.Random(0).randbytes(2000).hex().encode()  # more than 1,000 bytes, but not ten times as many
    assert whole_text([write(tmp_path / "c.txt.gz", gzip.compress(data))]) == data.decode()


# Lanes

V = 50
LINE_END = np.zeros(V, dtype=bool)
LINE_END[10] = True


def make_lanes(ids, B=4, T=16, jitter=0.25, seed=0, boundary=None, line_end=None):
    line_end = np.zeros(max(ids, default=0) + 1, dtype=bool) if line_end is None else line_end
    return LaneReader(np.asarray(ids, dtype=np.int32), B, T, jitter, seed, boundary, line_end)


def epoch_of(reader, first=None):
    """All batches of one epoch, and the first of the next."""
    batches = [first or next(reader)]
    while not (batch := next(reader)).fresh_B.any():
        batches.append(batch)
    return batches, batch


@given(
    N=st.integers(16, 400),
    B=st.integers(1, 30),
    T=st.integers(1, 64),
    jitter=st.sampled_from([0.0, 0.25, 0.9]),
    seed=st.integers(0, 99),
)
def test_lanes_cover_the_stream_in_order(N, B, T, jitter, seed):
    reader = make_lanes(np.arange(N), B, T, jitter, seed)
    rows = min(B, N // 16)
    lane = N // rows
    following = None
    for _ in range(2):
        batches, following = epoch_of(reader, following)
        x = np.concatenate([b.x_BT for b in batches], axis=1)
        y = np.concatenate([b.y_BT for b in batches], axis=1)
        assert x.dtype == y.dtype == np.int64
        assert (y == (x + 1) % N).all()  # every target is the next token of the stream
        assert (x == (x[:, :1] + np.arange(x.shape[1])) % N).all()  # each lane goes on where its last segment ended
        assert x.shape[0] == rows
        assert lane - 8 < x.shape[1] <= lane
        assert len(np.unique(x)) == x.size  # no token is read twice
        assert all(b.fresh_B.shape == (rows,) and b.fresh_B.all() == (i == 0) for i, b in enumerate(batches))


@given(after=st.integers(0, 60), seed=st.integers(0, 9), more=st.integers(1, 30))
def test_a_reader_resumes_where_it_stood(after, seed, more):
    ids = np.random.default_rng(1).integers(0, V, 777)
    settings = dict(B=3, T=24, boundary=V, line_end=LINE_END)
    first = make_lanes(ids, seed=seed, **settings)
    for _ in range(after):
        next(first)
    stored = json.loads(json.dumps(first.state_dict()))
    second = make_lanes(ids, seed=seed + 1, **settings)
    next(second)
    second.load_state_dict(stored)
    for _ in range(more):
        a, b = next(first), next(second)
        assert a.x_BT.tolist() == b.x_BT.tolist()
        assert a.y_BT.tolist() == b.y_BT.tolist()
        assert a.fresh_B.tolist() == b.fresh_B.tolist()
    assert first.epoch == second.epoch


def test_fresh_lanes_begin_behind_a_line_end_with_the_boundary():
    # ids 10 end lines of 13 tokens that count 20 .. 31
    ids = np.tile([*range(20, 32), 10], 100)
    reader = make_lanes(ids, B=5, T=32, boundary=49, line_end=LINE_END)
    following = None
    for _ in range(5):
        batches, following = epoch_of(reader, following)
        first = batches[0]
        assert first.fresh_B.all()
        assert (first.x_BT[:, 0] == 49).all()
        assert (first.y_BT[:, 0] == 20).all()
        assert (first.x_BT[:, 1] == 20).all()
        assert not any((b.x_BT == 49).any() for b in batches[1:])
        assert not any((b.y_BT == 49).any() for b in batches)


def test_without_a_boundary_the_line_end_itself_is_read():
    reader = make_lanes(np.tile([*range(20, 32), 10], 100), B=5, T=32, line_end=LINE_END)
    assert (next(reader).x_BT[:, 0] == 10).all()


@pytest.mark.parametrize(
    ("T", "jitter", "allowed"),
    [
        (64, 0.25, {48, 56, 64, 72, 80}),
        (64, 0.0, {64}),
        (37, 0.0, {37}),
        (8, 0.5, {8, 16}),
        (16, 0.99, {8, 16, 24, 32}),
    ],
)
def test_lengths(T, jitter, allowed):
    reader = make_lanes(np.zeros(200_000, dtype=np.int32), B=2, T=T, jitter=jitter)
    seen = [next(reader).x_BT.shape[1] for _ in range(400)]
    assert set(seen) <= allowed
    assert len(allowed) == 1 or set(seen) == allowed
    assert abs(np.mean(seen) - np.mean(sorted(allowed))) < 1.5


def test_starts_and_seeds():
    ids = np.arange(1000)
    starts = {int(epoch_of(make_lanes(ids, seed=seed))[0][0].x_BT[0, 0]) for seed in range(20)}
    assert len(starts) > 15
    reader = make_lanes(ids)
    batches, following = epoch_of(reader)
    assert following.x_BT[0, 0] != batches[0].x_BT[0, 0]
    assert reader.epoch == 2
    again = make_lanes(ids)
    assert all(next(again).x_BT.tolist() == b.x_BT.tolist() for b in batches)


def test_too_few_tokens():
    assert make_lanes(np.arange(16), B=8).batch_size == 1
    for N in (0, 1, 15):
        with pytest.raises(CorpusError, match=f"{N} tokens"):
            make_lanes(np.arange(N))


@given(st.integers(16, 3000), st.integers(1, 9), st.integers(8, 70), st.integers(0, 99))
def test_steps_per_epoch_are_those_that_a_reader_takes(tokens, lanes, length, seed):
    ids = np.zeros(tokens, dtype=np.int32)
    reader = LaneReader(ids, lanes, length, 0.0, seed, None, np.zeros(2, dtype=bool))
    taken = 0
    while next(reader) and reader.epoch == 1:
        taken += 1
    assert steps_per_epoch(tokens, lanes, length, 0.0) == taken


def test_steps_per_epoch_with_jitter_are_right_on_average():
    reader = LaneReader(np.zeros(9000, dtype=np.int32), 4, 40, 0.25, 0, None, np.zeros(2, dtype=bool))
    taken = 0
    while next(reader) and reader.epoch <= 200:
        taken += 1
    assert taken / 200 == pytest.approx(steps_per_epoch(9000, 4, 40, 0.25), rel=0.02)


@pytest.mark.parametrize(("fraction", "held"), [(0.07, 70), (0.1, 100), (0.29, 290), (0.0, 0), (0.0005, 1)])
def test_a_share_of_a_text_is_not_off_by_one(tmp_path, fraction, held):
    (tmp_path / "a.txt").write_text("abcdefghij" * 100)
    corpus = read_corpus([str(tmp_path / "a.txt")], CorpusConfig(val_fraction=fraction, dev_fraction=0.0))
    assert corpus.val.num_chars == held


def test_a_codec_that_takes_every_name_is_not_asked(tmp_path):
    def any_name(name: str) -> codecs.CodecInfo | None:
        return codecs.lookup("latin-1") if name == "klingon" else None

    codecs.register(any_name)
    try:
        (tmp_path / "a.txt").write_text("abc" * 100)
        with pytest.raises(UsageError, match="no text encoding 'klingon'"):
            read_corpus([str(tmp_path / "a.txt")], CorpusConfig(encoding="klingon"))
    finally:
        codecs.unregister(any_name)


@pytest.mark.parametrize("sizes", [[3000], [1000, 1000, 1000], [900, 1500, 40, 700]])
def test_without_dev_is_dev_fraction_zero(tmp_path, sizes):
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.txt").write_text("".join(chr(97 + (number + i * i) % 26) for i in range(size)))
    corpus = read_corpus([str(tmp_path)], CorpusConfig(dev_fraction=0.3))
    whole = read_corpus([str(tmp_path)], CorpusConfig(dev_fraction=0.0))
    assert corpus.dev.num_chars and not corpus.without_dev().dev.num_chars
    assert corpus.without_dev().fingerprint == whole.fingerprint
    assert corpus.without_dev().train.documents == whole.train.documents
    assert whole.without_dev() is whole


def lines(documents: int, number: int) -> list[str]:
    """Documents of numbered lines of 21 characters, so that each line tells where it stood."""
    return ["".join(f"{d:04} {n:06} ........\n" for n in range(number)) for d in range(documents)]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("number", [1, 3])
def test_a_sample_is_stretches_spread_over_the_text_up_to_its_end(tmp_path, monkeypatch, stored, number):
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus_module, "_STRETCH_CHARS", 1000)
    if stored:
        monkeypatch.setattr(corpus_module, "MOST_IN_MEMORY", 500)
    for k, text in enumerate(lines(number, 6000 // number)):
        (tmp_path / f"{k}.txt").write_text(text)
    asked = {"val_fraction": 0.1, "dev_fraction": 0.0}
    whole = read_corpus([str(tmp_path / "*.txt")], CorpusConfig(**asked))
    text = "".join("".join(b.decode() for b in data) for _, data in whole.train.data())
    place = {line: at for at, line in enumerate(text.splitlines())}

    def sample(seed: int) -> Corpus:
        return read_corpus(
            [str(tmp_path / "*.txt")], CorpusConfig(**asked, sample_chars=12_000, sample_seed=seed)
        )  # fmt: skip

    one = sample(0)
    assert one.sampled_from == len(text) == 113_400 and one.val == whole.val and one.val_follows
    assert 11_000 <= one.train.num_chars <= 13_000
    read = [place[line] for line in one.train.text.splitlines()]
    assert read == sorted(set(read)) and read[-1] == 5399  # nothing twice, in order, up to the held-out text
    jumps = [(a, b) for a, b in itertools.pairwise(read) if b != a + 1]
    assert len(jumps) >= 8  # 12 stretches; neighbours may touch
    per_section = np.histogram(read, bins=12, range=(0, 5400))[0]
    assert per_section.min() >= 1 and per_section.max() <= 120
    assert sample(0).fingerprint == one.fingerprint != sample(1).fingerprint
    assert one.encode(ByteTokenizer(), 256).train[0] == 256


def test_a_sample_of_all_or_more_is_the_text_itself(tmp_path):
    (tmp_path / "a.txt").write_text(lines(1, 100)[0])
    whole = read_corpus([str(tmp_path / "a.txt")], CorpusConfig())
    assert whole.sampled(whole.train.num_chars, 0) is whole and whole.sampled_from is None
    assert read_corpus([str(tmp_path / "a.txt")], CorpusConfig(sample_chars=5000)).fingerprint == whole.fingerprint


@given(st.lists(st.text("ab\n", max_size=60), min_size=1, max_size=5), st.integers(1, 200), st.integers(0, 9))
def test_a_stretch_is_a_part_of_a_document(texts, chars, seed):
    part = Part(tuple(Document(str(k), text) for k, text in enumerate(texts)))
    if not part.num_chars:
        return
    whole = Corpus("", part, Part(()), Part(()), "", "", False, True)
    for document in whole.sampled(chars, seed).train.documents:
        assert document.text in texts[int(document.name)]
    assert whole.sampled(chars, seed).train.text.endswith(part.text[-1:]) or part.text.endswith("\n")


def test_the_development_part_of_a_stored_text_can_be_given_back(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus_module, "MOST_IN_MEMORY", 500)
    (tmp_path / "a.txt").write_text(lines(1, 100)[0])
    (tmp_path / "b.txt").write_text(lines(1, 50)[0])
    sources = [str(tmp_path / "*.txt")]
    with_dev = read_corpus(sources, CorpusConfig(dev_fraction=0.4))
    assert isinstance(with_dev.train, StoredPart) and with_dev.dev.num_chars
    without = read_corpus(sources, CorpusConfig(dev_fraction=0.0))
    assert with_dev.without_dev().fingerprint == without.fingerprint
    assert with_dev.without_dev().train == without.train
