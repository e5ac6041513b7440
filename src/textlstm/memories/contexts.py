"""What the memories look at: the last tokens, and the word that is being written."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

_MASK = (1 << 64) - 1
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz'") | frozenset(range(128, 256))
_TO_WORDS = bytes(byte if byte in _LETTERS else 32 for byte in bytes(range(256)).lower())


class Contexts:
    """The keys of the contexts that the next token stands in; the same for the same history on every machine.

    There is one context for each order from 0 to `orders`: so many last tokens. With `token_bytes` there are two
    more: the letters since the last word ended, and these together with the word before. Letters are those of ASCII,
    in any case, the apostrophe, and all that UTF-8 writes in more than one byte.

    Args:
        orders: the highest order.
        token_bytes: what each token writes, or None.
    """

    def __init__(self, orders: int, token_bytes: Sequence[bytes] | None) -> None:
        self._written = None if token_bytes is None else [token.translate(_TO_WORDS) for token in token_bytes]
        self._history: tuple[int, ...] = (0,) * orders  # an id is kept as id + 1, so 0 is before the text
        self._word = self._before = b""
        self.count = orders + (1 if token_bytes is None else 3)

    def copy(self) -> Contexts:
        """One that goes on by itself."""
        other = object.__new__(Contexts)
        other.__dict__.update(self.__dict__)
        return other

    def push(self, token: int) -> None:
        """Takes the next token."""
        self._history = (token + 1, *self._history)[: len(self._history)]
        if self._written is not None:
            *ended, self._word = (self._word + self._written[token]).split(b" ")
            self._before = next((word for word in reversed(ended) if word), self._before)

    def keys(self) -> list[int]:
        """A number below 2^64 for each context."""
        key = 1
        keys = [key]
        for id in self._history:
            key = ((key ^ id) * 0x9E3779B97F4A7C15 + (key >> 29)) & _MASK
            keys.append(key)
        if self._written is not None:
            word = zlib.crc32(self._word)
            keys += [word, zlib.crc32(self._before) << 32 | word]
        return keys
