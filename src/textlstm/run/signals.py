"""Ctrl-C, SIGTERM and the end of the terminal, as a wish to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from textlstm.trainer.launch import is_hang_up_ignored

#: What a terminal sends that is closed; 0, which is no signal, on Windows.
HANG_UP = 0 if sys.platform == "win32" else int(signal.SIGHUP)


class Signals:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP within it into a wish to stop; a second one acts at once.

    Not so a second SIGHUP: a shell hands on what the terminal has sent already, perhaps while what is written last is
    written, so it is ignored from then on. Where SIGHUP is ignored, as under nohup, it stays ignored.

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
            for watched in (signal.SIGINT, signal.SIGTERM, *([] if is_hang_up_ignored() else [HANG_UP])):
                self._previous[watched] = signal.signal(watched, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if number == HANG_UP == self.received else handler)

    def _note(self, number: int, frame: object) -> None:
        if self.received is not None and (self._hold or number == HANG_UP):
            return  # a launcher knows how to kill, and a shell repeats the terminal
        self.received = number
        if not self._hold and number != HANG_UP:
            signal.signal(number, self._previous[number])
        self._notice("saving; once more stops at once")

    def reason(self) -> str | None:
        """The name of the signal, for a trainer that asks whether to stop."""
        return None if self.received is None else signal.Signals(self.received).name
