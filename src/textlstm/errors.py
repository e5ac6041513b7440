"""Every error that textlstm raises on purpose.

    TextLSTMError                 exit 1   anything below; catch this one
    ├── UsageError                exit 2   an option, value or file name that cannot be meant
    │   └── ConfigError           exit 2   a configuration with an unknown key or an impossible value
    ├── CorpusError               exit 1   text that cannot be read or is too short to learn from
    ├── ModelFileError            exit 1   a model file or checkpoint that is damaged, foreign or too new
    ├── CodingError               exit 1   a compressed file that is damaged, foreign, or of another model
    ├── RunError                  exit 1   a run folder that cannot be used or resumed
    │   ├── LostRankError         exit 1   another process that trains along is gone, or never came
    │   └── NoMemoryError         exit 1   memory ran out
    ├── MissingExtraError         exit 1   an optional part of textlstm is not installed
    ├── DivergedError             exit 3   training produced numbers that are not finite
    ├── BusyError                 exit 1   a server that has no room or no time for a request
    └── Interrupted               exit 130 (Ctrl-C), 143 (SIGTERM) or 129 (terminal closed), after everything was saved

Each message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations

#: What a rank ends with instead of 1 after an error that comes again, so that who started it knows. A user sees 1:
#: `trainer.launch` and torchrun end with that.
COMES_AGAIN = 4


class TextLSTMError(Exception):
    """Base of all errors that textlstm raises on purpose."""

    exit_code = 1
    comes_again = True  # if the same is tried once more


class UsageError(TextLSTMError):
    """An option, a value or a file name that cannot be meant."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration with an unknown key or an impossible value."""


class CorpusError(TextLSTMError):
    """Text that cannot be read, or that is too short to learn from."""


class ModelFileError(TextLSTMError):
    """A model file or checkpoint that is damaged, foreign or written by a newer version."""


class CodingError(TextLSTMError):
    """A compressed file that is damaged, foreign, or written with another model or machine."""


class RunError(TextLSTMError):
    """A run folder that cannot be used or resumed."""


class LostRankError(RunError):
    """Another process that trains along is gone, or never came; beginning again may go better."""

    comes_again = False


class NoMemoryError(RunError):
    """Memory ran out; another time other programs may leave more."""

    comes_again = False


class MissingExtraError(TextLSTMError):
    """An optional part of textlstm is not installed.

    Args:
        package: the distribution that is missing.
        extra: the extra of textlstm that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed: pip install 'textlstm[{extra}]'"
        )


class DivergedError(TextLSTMError):
    """Training produced numbers that are not finite."""

    exit_code = 3


class BusyError(TextLSTMError):
    """A server has no room or no time for a request; trying again later may help."""


class Interrupted(TextLSTMError):
    """A signal stopped the work after everything was saved.

    Args:
        message: how to go on.
        signal_number: the signal; the exit code is 128 plus it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
