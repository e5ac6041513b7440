"""Ctrl-C and SIGTERM, as a wish to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Signals:
    """Turns the first Ctrl-C or SIGTERM within it into a wish to stop; a second one acts at once.

    Args:
        notice: told that the wish was heard.
        hold: let no second one act, because a launcher hands on what the terminal has sent already.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self, notice: Callable[[str], None], hold: bool = False) -> None:
        self.received: int | None = None
        self._notice, self._hold = notice, hold
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        with suppress(ValueError):  # not in the main thread, where Python has no signals
            for watched in (signal.SIGINT, signal.SIGTERM):
                self._previous[watched] = signal.signal(watched, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self._hold and self.received is not None:
            return  # the launcher knows how to kill
        self.received = number
        if not self._hold:
            signal.signal(number, self._previous[number])
        self._notice("saving; once more stops at once")

    def reason(self) -> str | None:
        """The name of the signal, for a trainer that asks whether to stop."""
        return None if self.received is None else signal.Signals(self.received).name
