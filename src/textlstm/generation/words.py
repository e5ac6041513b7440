"""Words that a text must not contain."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from textlstm.tokenizer import Tokenizer, text_to_bytes


class BadWords:
    """Says which tokens would complete a word, wherever tokens begin and end in it, and within longer words too.

    Args:
        words: none of them empty.
        tokenizer: says which bytes an id writes.
    """

    def __init__(self, words: Sequence[str], tokenizer: Tokenizer) -> None:
        tokens = sorted((tokenizer.token_bytes(id), id) for id in range(tokenizer.vocab_size))
        self._always: list[int] = []  # tokens that hold a word in themselves
        self._after: dict[bytes, list[int]] = {}  # by the beginning of a word: tokens that begin with the rest of it
        for word in map(text_to_bytes, words):
            self._always += [id for token, id in tokens if word in token]
            for place in range(1, len(word)):
                begun, rest = word[:place], word[place:]
                for token, id in tokens[bisect_left(tokens, (rest, 0)) :]:
                    if not token.startswith(rest):
                        break
                    self._after.setdefault(begun, []).append(id)

    def forbidden(self, written: bytes | bytearray) -> NDArray[np.int64]:
        """The ids that must not follow some bytes."""
        ids = list(self._always)
        for begun, completing in self._after.items():
            if written.endswith(begun):
                ids += completing
        return np.array(ids, np.int64)
