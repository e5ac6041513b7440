"""Merge dropout: at each pass over a text some tokens fall back into the two that they were merged from.

The same words come in other tokens each time, so a network that reads a text often learns how tokens are spelled
instead of learning the text by heart. It is the idea of BPE-dropout (Provilkov, Emelianenko & Voita 2020, arXiv
1910.13267), which leaves merges out while a text is encoded; undoing them afterwards needs the ids alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.errors import UsageError
from textlstm.tokenizer import Tokenizer

_CHUNK = 1 << 22  # tokens at once
_ENDS = 0.8  # share of the run after which tokens stay whole: they are, where the network will be used


def merges_of(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """The two ids that each id was merged from, shape (V, 2), -1 where there are none.

    Args:
        tokenizer: any.

    Raises:
        UsageError: nothing was merged in its vocabulary.
    """
    parts_V2 = tokenizer.parts()
    if (parts_V2 < 0).all():
        raise UsageError(
            f"--merge-dropout takes merges apart, and this vocabulary ({tokenizer.kind}, {tokenizer.vocab_size} ids) "
            "has none: leave it out, or take --tokenizer bpe with more --vocab-size, or gpt2"
        )
    return parts_V2


@dataclass(frozen=True)
class MergeDropout:
    """Which tokens fall apart, and how often.

    Attributes:
        parts_V2: the two ids that each id was merged from, -1 where there are none.
        rate: the probability at the beginning of the run; the parts of a token fall apart with it, too.
        steps: steps of the run.
    """

    parts_V2: NDArray[np.int32]
    rate: float
    steps: int

    def rate_at(self, step: int) -> float:
        """The probability of a pass that begins at a step: it falls along a line to 0 at 80 % of the run."""
        return self.rate * max(0.0, 1 - step / (_ENDS * self.steps))

    def applied(self, ids_N: NDArray[Any], rate: float, random: np.random.Generator) -> NDArray[Any]:
        """The text as it is read in a pass.

        Args:
            ids_N: the text.
            rate: the probability of this pass.
            random: source of what falls apart.

        Returns:
            The ids, shape (M,), M >= N; they write the same bytes.
        """
        if rate == 0:
            return ids_N
        starts = range(0, len(ids_N), _CHUNK)
        return np.concatenate([split(ids_N[k : k + _CHUNK], self.parts_V2, rate, random) for k in starts])


def split(
    ids_N: NDArray[Any], parts_V2: NDArray[np.int32], rate: float, random: np.random.Generator
) -> NDArray[np.int32]:
    """Lets tokens fall apart with a probability, and what comes of them with the same one, until nothing does.

    Args:
        ids_N: a text.
        parts_V2: as in `MergeDropout`.
        rate: the probability.
        random: source of what falls apart.
    """
    ids = np.asarray(ids_N, dtype=np.int32)
    asked = np.arange(len(ids))  # places of tokens that have not been asked yet
    while True:
        asked = asked[parts_V2[ids[asked], 0] >= 0]
        asked = asked[random.random(len(asked)) < rate]
        if not len(asked):
            return ids
        wide = np.repeat(ids, 1 + np.bincount(asked, minlength=len(ids)))
        first = asked + np.arange(len(asked))
        wide[first], wide[first + 1] = parts_V2[ids[asked]].T
        ids, asked = wide, np.stack([first, first + 1], 1).reshape(-1)
