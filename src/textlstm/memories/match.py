"""The match model: where did the text last run as it runs now, and what came then (Mahoney 2005, PAQ)."""

from __future__ import annotations

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
        self._places: dict[tuple[int, ...], int] = {}
        self._place, self.length = 0, 0

    def copy(self) -> Match:
        """One that goes on by itself."""
        other = Match(self._least, self._most)
        other._text, other._places = self._text.copy(), self._places.copy()
        other._place, other.length = self._place, self.length
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
            if self.length and self._text[self._place] == id:
                self._place, self.length = self._place + 1, min(self.length + 1, self._most)
            else:
                self.length = 0
            self._text.append(id)
            if len(self._text) < self._least:
                continue
            tail = tuple(self._text[-self._least :])
            if not self.length and tail in self._places:
                self._place = self._places[tail]
                self.length = self._agreement()
            self._places[tail] = len(self._text)

    def _agreement(self) -> int:
        """Tokens before the place that are those at the end of the text."""
        length, text = self._least, self._text
        while length < min(self._place, self._most) and text[self._place - 1 - length] == text[-1 - length]:
            length += 1
        return length
