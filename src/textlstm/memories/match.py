"""The match model: where did the text last run as it runs now, and what came then (Mahoney 2005, PAQ)."""

from __future__ import annotations

import copy
from collections.abc import Iterable


class Match:
    """The most recent place after the same few tokens, followed as long as it predicts rightly.

    Args:
        least: tokens that must agree before a place is followed.
        most: the longest agreement that is told.
    """

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self._text: list[int] = []
        self._tail: tuple[int, ...] = ()  # the last tokens, whether kept in the text or passed
        self._places: dict[tuple[int, ...], int] = {}
        self._place, self.length = 0, 0

    def copy(self) -> Match:
        """One that goes on by itself."""
        other = copy.copy(self)
        other._text, other._places = self._text.copy(), self._places.copy()
        return other

    def past(self, id: int) -> Match:
        """One that stands after a token that it does not keep; it shares the text, and only predicts."""
        other = copy.copy(self)
        other._follow(id)
        if other._place == len(other._text):  # what would come next is not in the text
            other.length = 0
        return other

    @property
    def read(self) -> int:
        """Number of tokens read."""
        return len(self._text)

    @property
    def token(self) -> int | None:
        """The token that came after the place, None where there is none; `length` tokens before it agree."""
        return self._text[self._place] if self.length else None

    def extend(self, ids: Iterable[int]) -> None:
        """Takes the tokens that come next."""
        for id in ids:
            self._follow(id)
            self._text.append(id)
            if len(self._tail) >= self._least:
                self._places[self._tail[-self._least :]] = len(self._text)

    def _follow(self, id: int) -> None:
        """Goes on where the place predicted the token, else looks for another place."""
        if self.length and self._text[self._place] == id:
            self._place, self.length = self._place + 1, min(self.length + 1, self._most)
        else:
            self.length = 0
        self._tail = (*self._tail, id)[-max(self._least, self._most) :]
        place = self._places.get(self._tail[-self._least :])
        if not self.length and place is not None:
            self._place = place
            self.length = self._agreement()

    def _agreement(self) -> int:
        """Tokens before the place that are those at the end of the text."""
        length, text, tail = self._least, self._text, self._tail
        most = min(self._place, self._most, len(tail))
        while length < most and text[self._place - 1 - length] == tail[-1 - length]:
            length += 1
        return length
