"""What the rule behind `--minutes` wants to know of a text, measured in about a second: how long its tokens come out,
how many digits it has, how much it changes on the way, and how hard it is to foretell.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from textlstm.autopilot import ENGLISH, Text
from textlstm.corpus import Corpus
from textlstm.tokenizer import BPETokenizer, Ids, Tokenizer

_MEASURED_CHARS, _MEASURED_DOCUMENTS = 500_000, 4096  # for the length of tokens, and for the change
_COUNTED_CHARS = 100_000  # for the share of digits
_CHANGE_IDS = 512


def appraise(corpus: Corpus, own: bool) -> Text:
    """Measures a training text; of a long one some half a million characters, spread over it.

    Args:
        corpus: the text.
        own: whether a vocabulary is made for it, whose size is chosen; English stands for the tokens of others.
    """
    lengths = token_lengths(corpus) if own else ENGLISH
    return Text(corpus.train.num_chars, lengths, digit_share(corpus), change_of(corpus))


def token_lengths(corpus: Corpus) -> Mapping[int, float]:
    """Characters per token of a training text, by each size of an own vocabulary that the rule knows.

    The boundaries of documents are tokens, too. Of many documents some thousand are enough.
    """
    documents = corpus.excerpt(_MEASURED_CHARS)
    largest = BPETokenizer.train(documents, max(ENGLISH))
    counted = documents[:: 1 + len(documents) // _MEASURED_DOCUMENTS]
    chars = max(1, sum(map(len, counted)))
    return {
        size: chars / max(1, sum(len(smaller.encode(text)) + 1 for text in counted))
        for size in ENGLISH
        for smaller in [largest.cut(size)]
    }


def digit_share(corpus: Corpus) -> float:
    """How many of the characters of a training text are digits; of a long one some are counted, spread over it."""
    documents = corpus.excerpt(_COUNTED_CHARS)
    counted = "".join(text[: 1 + _COUNTED_CHARS // len(documents)] for text in documents)
    return sum(map(str.isdigit, counted)) / max(1, len(counted))


def change_of(corpus: Corpus) -> float:
    """How much a training text changes on the way, as `change` tells by stretches from all of it."""
    documents = corpus.excerpt(_MEASURED_CHARS)
    tokenizer = BPETokenizer.train(documents, _CHANGE_IDS)
    ids = [tokenizer.encode(text) for text in documents[:: 1 + len(documents) // _MEASURED_DOCUMENTS]]
    return change(np.concatenate(ids), _CHANGE_IDS)


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
    seen, asked = train_N.astype(np.int64), held_out_M.astype(np.int64)
    p_M = np.full(max(0, len(asked) - 2), 1 / vocab)
    for n in (1, 2, 3):
        kinds, counts = np.unique(_ngrams(seen, n, vocab), return_counts=True)
        contexts, first = np.unique(kinds // vocab, return_index=True)
        followers, totals = np.diff([*first, len(kinds)]), np.add.reduceat(counts, first)
        looked_up = _ngrams(asked, n, vocab)[3 - n :]
        count, followed, total = (
            _counts(keys, values, query)
            for keys, values, query in (
                (kinds, counts, looked_up),
                (contexts, followers, looked_up // vocab),
                (contexts, totals, looked_up // vocab),
            )
        )
        p_M = np.where(total > 0, (count + followed * p_M) / np.maximum(1, total + followed), p_M)
    return float(-np.log(p_M).mean()) * len(asked) / chars


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
    return float(np.mean(tenths)) / pieces if pieces > 0 else 1.0  # what repeats itself for ever costs nothing


_PARTS, _PIECE, _LEAST_CHANGING = 10, 300, 10_000  # parts; tokens of a piece, and of a text that can tell
