"""What the rule behind `--minutes` wants to know of a text, measured in a second or two: how long its tokens come out,
how many digits it has, how much it changes on the way, and how hard it is to foretell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from textlstm.autopilot import ENGLISH, Text, counted
from textlstm.corpus import Corpus
from textlstm.tokenizer import BPETokenizer, Ids, Tokenizer

_MEASURED_CHARS, _MEASURED_DOCUMENTS = 500_000, 4096
_COUNTED_CHARS = 1_000_000  # of half of them, pronunciations cost 0.5 % less with 288 ids than with 320, not 0.7 %
_CHANGE_IDS = 512


def appraise(corpus: Corpus, own: bool) -> Text:
    """Measures a training text; of a long one some half a million characters, spread over it.

    Args:
        corpus: the text.
        own: whether a vocabulary is made for it, whose size is chosen; English stands for the tokens of others.
    """
    documents = corpus.excerpt(_MEASURED_CHARS)
    digits = sum(map(str.isdigit, "".join(documents))) / max(1, sum(map(len, documents)))
    largest = BPETokenizer.train(documents, max(ENGLISH) if own else _CHANGE_IDS)
    some = documents[:: 1 + len(documents) // _MEASURED_DOCUMENTS]
    lengths = token_lengths(some, largest) if own else ENGLISH
    ids = np.concatenate([largest.cut(_CHANGE_IDS).encode(text) for text in some])
    text = Text(corpus.train.num_chars, lengths, digits, change(ids, _CHANGE_IDS))
    return replace(text, costs=token_costs(corpus.excerpt(_COUNTED_CHARS), counted(text))) if own else text


def token_lengths(documents: Sequence[str], largest: BPETokenizer) -> Mapping[int, float]:
    """Characters per token by each size of an own vocabulary that the rule knows; boundaries are tokens, too.

    Args:
        documents: some of the text.
        largest: the vocabulary from which smaller ones are cut.
    """
    chars = max(1, sum(map(len, documents)))
    return {
        size: chars / max(1, sum(len(smaller.encode(text)) + 1 for text in documents))
        for size in ENGLISH
        for smaller in [largest.cut(size)]
    }


def token_costs(documents: Sequence[str], sizes: Sequence[int]) -> Mapping[int, float]:
    """What a tenth of a text costs by counts in the rest, in nats per character, by sizes of an own vocabulary.

    By the counts of `anchor`, but of as many tokens as make it cheapest. What it costs a network goes by that, nearly:
    longer tokens reach further, and hide the letters that they share.

    Args:
        documents: some of the text.
        sizes: of the vocabularies.

    Returns:
        The costs; none of less than 100,000 characters, of which no text was measured.
    """
    text = "\n".join(documents)
    if len(text) < _LEAST_COUNTED or not sizes:
        return {}
    pieces = [text[at : at + _STRETCH] for at in range(0, len(text), _STRETCH)]
    asked, seen = pieces[5::_PARTS], [piece for k, piece in enumerate(pieces) if k % _PARTS != 5]
    largest = BPETokenizer.train(text, max(sizes))
    costs = {}
    for size in sizes:
        smaller = largest.cut(size)
        seen_N, asked_M = (np.concatenate([smaller.encode(piece) for piece in part]) for part in (seen, asked))
        costs[size] = _cheapest(seen_N, asked_M, size) * len(asked_M) / sum(map(len, asked))
    return costs


_STRETCH, _LEAST_COUNTED = 2_000, 100_000  # characters


def _cheapest(seen_N: Ids, asked_M: Ids, vocab: int) -> float:
    """Nats per token by the order from which on longer contexts cost more."""
    best = np.inf
    for p_M in itertools.islice(_by_counts(seen_N, asked_M, vocab), int(62 / np.log2(vocab))):  # in 64 bits
        if (cost := float(-np.log(p_M).mean())) > best:
            break
        best = cost
    return best


def anchor_of(corpus: Corpus, tokenizer: Tokenizer, vocab: int) -> float:
    """How hard the held-out text is, for `autopilot.predict`: by counts in the training text; nothing is chosen by it.

    Args:
        corpus: the text.
        tokenizer: how it is cut.
        vocab: number of ids.
    """
    text = corpus.val.text
    length = min(25_000, -(-len(text) // 4))
    pieces = [text[start : start + length] for start in (k * len(text) // 4 for k in range(4))]
    ids = [tokenizer.encode(piece) for piece in pieces]
    seen = tokenizer.encode("".join(corpus.train.head(1_000_000)))
    return anchor(seen, np.concatenate(ids), vocab, sum(map(len, pieces)))


def anchor(train_N: Ids, held_out_M: Ids, vocab: int, chars: int) -> float:
    """How hard a text is, told in a moment: nats per character of an n-gram model of three tokens that learns nothing.

    Interpolated as Witten and Bell do (Chen and Goodman 1999, equation 2.13 and after): a context that was followed
    by T kinds of tokens gives the shorter context the weight of T occurrences.

    Args:
        train_N: ids of some of the training text.
        held_out_M: ids of some of the held-out text.
        vocab: number of ids.
        chars: length of the held-out text that these ids stand for.
    """
    p_M = next(itertools.islice(_by_counts(train_N, held_out_M, vocab), 2, None))
    return float(-np.log(p_M[2:]).mean()) * len(held_out_M) / chars


def _by_counts(train_N: Ids, held_out_M: Ids, vocab: int) -> Iterator[NDArray[np.float64]]:
    """The probability of each id after those before it, by contexts of 0, 1, 2 and more of them."""
    seen, asked = train_N.astype(np.int64), held_out_M.astype(np.int64)
    p_M = np.full(len(asked), 1 / vocab)
    for n in itertools.count(1):
        kinds, counts = np.unique(_ngrams(seen, n, vocab), return_counts=True)
        contexts, first = np.unique(kinds // vocab, return_index=True)
        followers, totals = np.diff([*first, len(kinds)]), np.add.reduceat(counts, first)
        looked_up, shorter = _ngrams(asked, n, vocab), p_M[n - 1 :]
        count, followed, total = (
            _counts(keys, values, query)
            for keys, values, query in (
                (kinds, counts, looked_up),
                (contexts, followers, looked_up // vocab),
                (contexts, totals, looked_up // vocab),
            )
        )
        p_M = p_M.copy()
        p_M[n - 1 :] = np.where(total > 0, (count + followed * shorter) / np.maximum(1, total + followed), shorter)
        yield p_M


def _ngrams(ids: NDArray[np.int64], n: int, vocab: int) -> NDArray[np.int64]:
    """Every n successive ids as one number."""
    found = ids[: len(ids) - n + 1]
    for k in range(1, n):
        found = found * vocab + ids[k : len(ids) - n + 1 + k]
    return found


def _counts(keys: NDArray[np.int64], values: NDArray[np.int64], query: NDArray[np.int64]) -> NDArray[np.int64]:
    """The value of each number that is asked for, 0 where it is no key; keys are sorted."""
    places = np.minimum(np.searchsorted(keys, query), len(keys) - 1)
    return np.where(keys[places] == query, values[places], 0)


def change(ids_N: Ids, vocab: int) -> float:
    """How much a text changes on the way: what a tenth of it costs where it is left out as a whole, over what it costs
    where it is left out in small pieces from everywhere; both by the counts of `anchor`.

    1 is a text that is the same everywhere (1.04 Tiny Shakespeare, 1.12 articles, 1.3 files of code, 1.4 a table that
    is sorted by country). A network is too sure of what does not go on as it was.

    Args:
        ids_N: ids of the text, or of some stretches of it.
        vocab: number of ids.
    """
    place_N = np.arange(len(ids_N))

    def cost(held_N: NDArray[np.bool_]) -> float:
        return anchor(ids_N[~held_N], ids_N[held_N], vocab, int(held_N.sum()))

    if len(ids_N) < _LEAST_CHANGING:
        return 1.0
    tenths = [cost(place_N * _PARTS // len(ids_N) == part) for part in range(_PARTS)]
    pieces = cost(place_N // _PIECE % _PARTS == _PARTS // 2)
    return max(_CHEAP, float(np.mean(tenths))) / max(_CHEAP, pieces)


_PARTS, _PIECE, _LEAST_CHANGING = 10, 300, 10_000  # parts; tokens of a piece, and of a text that can tell
_CHEAP = 0.01  # nats per token below which a text repeats itself, and the ratio of two costs tells nothing
