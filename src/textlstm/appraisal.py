"""What the rule behind `--minutes` wants to know of a text, measured in some seconds: how long its tokens come out,
how many digits it has, how much it changes on the way, what it costs by n-grams, and how hard it is to foretell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from textlstm.autopilot import ENGLISH, Text, candidate_sizes
from textlstm.corpus import Corpus
from textlstm.tokenizer import BPETokenizer, Ids, Tokenizer

_MEASURED_CHARS, _MEASURED_DOCUMENTS = 500_000, 4096
_COUNTED_CHARS = 1_000_000  # of half of them, pronunciations cost 0.5 % less with 288 ids than with 320, not 0.7 %
_CHANGE_IDS = 512


def appraise(corpus: Corpus, own: bool, chosen: bool = True) -> Text:
    """Measures a training text; of a long one some stretches, spread over it.

    Args:
        corpus: the text.
        own: whether a vocabulary is made for it; English stands for the tokens of others.
        chosen: whether its size is to be chosen.
    """
    documents = corpus.excerpt(_MEASURED_CHARS)
    digits = sum(map(str.isdigit, "".join(documents))) / max(1, sum(map(len, documents)))
    largest = BPETokenizer.train(documents, max(ENGLISH) if own else _CHANGE_IDS)
    some = documents[:: 1 + len(documents) // _MEASURED_DOCUMENTS]
    lengths = token_lengths(some, largest) if own else ENGLISH
    ids = np.concatenate([largest.cut(_CHANGE_IDS).encode(text) for text in some])
    text = Text(corpus.train.num_chars, lengths, digits, change(ids, _CHANGE_IDS))
    sizes = candidate_sizes(text) if own and chosen else ()
    return replace(text, costs=token_costs(corpus.excerpt(_COUNTED_CHARS), largest, sizes)) if sizes else text


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


def token_costs(documents: Sequence[str], largest: BPETokenizer, sizes: Sequence[int]) -> Mapping[int, float]:
    """What a tenth of a text costs by n-grams of the rest, in nats per character, by sizes of an own vocabulary.

    By the interpolated counts of `anchor`, but of the order up to which each is cheaper than the one before. What it
    costs a network goes by that, nearly: longer tokens reach further, and hide the letters that they share.

    Args:
        documents: some of the text.
        largest: the vocabulary from which smaller ones are cut.
        sizes: of these.

    Returns:
        The costs; none of less than 100,000 characters, of which no text was measured.
    """
    text = "\n".join(documents)
    if len(text) < _LEAST_COUNTED:
        return {}
    pieces = [text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS)]
    left_out = _PARTS // 2
    asked, seen = pieces[left_out::_PARTS], [piece for k, piece in enumerate(pieces) if k % _PARTS != left_out]
    costs = {}
    for size in sizes:
        smaller = largest.cut(size)
        seen_N, asked_M = (np.concatenate([smaller.encode(piece) for piece in part]) for part in (seen, asked))
        nats = _of_best_order(seen_N, asked_M, size) * len(asked_M)
        costs[size] = max(_CHEAP, nats / sum(map(len, asked)))
    return costs


def _of_best_order(seen_N: Ids, asked_M: Ids, vocab: int) -> float:
    """Nats per token by the longest n-grams that are cheaper than all shorter ones."""
    best = np.inf
    for p_M in _interpolated(seen_N, asked_M, vocab):
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
    p_M = next(itertools.islice(_interpolated(train_N, held_out_M, vocab), 2, None))
    return float(-np.log(p_M[2:]).mean()) * len(held_out_M) / chars


def _interpolated(train_N: Ids, held_out_M: Ids, vocab: int) -> Iterator[NDArray[np.float64]]:
    """The probability of each held-out id by n-grams of 1, 2, 3 and more ids, as many as 64 bits tell apart.

    The first ones have no n - 1 ids before them: by as many as they have.
    """
    seen, asked = train_N.astype(np.int64), held_out_M.astype(np.int64)
    p_M = np.full(len(asked), 1 / vocab)
    for n in range(1, 1 + int(63 / np.log2(max(2, vocab)))):
        if len(seen) >= n:
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
            longer = np.where(total > 0, (count + followed * shorter) / np.maximum(1, total + followed), shorter)
            p_M = np.concatenate([p_M[: n - 1], longer])
        yield p_M


def _ngrams(ids: NDArray[np.int64], n: int, vocab: int) -> NDArray[np.int64]:
    """Every n successive ids as one number."""
    many = max(0, len(ids) - n + 1)
    found = ids[:many]
    for k in range(1, n):
        found = found * vocab + ids[k : k + many]
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
_PIECE_CHARS, _LEAST_COUNTED = 2_000, 100_000  # of what is counted for `token_costs`
_CHEAP = 0.01  # nats per token or character below which a text repeats itself, and ratios of costs tell nothing
