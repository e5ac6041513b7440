"""`generate --interactive`: a conversation with a session, in a terminal.

`Conversation` knows the commands and no terminal; `converse` reads lines, shows the text as it is written, and turns
Ctrl-C into the end of a text.
"""

from __future__ import annotations

import difflib
import re
import signal
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from textlstm.config import LearnConfig, PatternConfig, SamplingConfig
from textlstm.corpus.named import cache_dir
from textlstm.errors import TextLSTMError, UsageError
from textlstm.generation.session import Session
from textlstm.model import Model
from textlstm.novelty import SuffixIndex

_MAX_UNDO = 20
_NAME = re.compile(r"\w[\w.-]*")
_LIMITS: dict[str, Any] = {
    "max_tokens": int, "max_chars": int, "stop": str, "stop_at_end": bool, "copy_source": SuffixIndex, "max_copy": int,
}  # fmt: skip
_YES, _NO = ("on", "yes", "true"), ("off", "no", "none", "false")
_KEEP = "/keep FILE writes the model that it goes on with"
_WORDS = {int: "a whole number", float: "a number", bool: "on or off", str: "a text"}

HELP = """Type a text: the model reads it and goes on. Enter alone lets it write on.
In a text \\n is a line break. Ctrl-C stops the text, Ctrl-D leaves.

  /again              write the last answer once more, differently
  /undo, /redo        take back the last step, or the taking back
  /branch [NAME]      remember this point under a name; alone, list the names
  /save NAME          write the session to sessions/NAME.safetensors
  /load NAME          go to a branch, or to a session that was saved
  /reset              begin anew
  /set                show all settings
  /set NAME VALUE     change one: temperature 0.7, max-chars 500, stop \\n
  /set NAME off       leave it out: regex off
  /learn [on|off]     learn from what you type; alone, tell whether it does
  /keep FILE          write the model that has learnt to FILE.safetensors
  /help, /quit

A text that begins with a slash is written with two: //"""


class Conversation:
    """A session, and the commands that change it.

    Args:
        model: what writes.
        session: where it begins.
        options: how each answer is written, as of `Session.stream`.
        folder: where sessions are saved by name.
        index: makes the index of a text that must not be copied; of None, of what the model was trained on, if known.
        learn: how the model learns from what it is told; None if it does not.
    """

    def __init__(
        self,
        model: Model,
        session: Session,
        options: dict[str, Any],
        folder: Path = Path("sessions"),
        index: Callable[[str | None], SuffixIndex | None] | None = None,
        learn: LearnConfig | None = None,
    ) -> None:
        self.session, self.options, self.folder, self.learn = session, options, folder, learn
        self._index = index
        self.over = False
        self._start, self._branches = session.branch(), dict[str, Session]()
        self._past: list[Session] = []
        self._future: list[Session] = []
        self._last: str | None = None  # text that the last answer answered

    def hear(self, line: str) -> Iterator[str]:
        """Takes a line; yields what is to be shown, piece by piece.

        Raises:
            TextLSTMError: a command that cannot be meant, or that failed; nothing has changed.
        """
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].partition(" ")
            method = getattr(self, f"_command_{name}", None)
            if method is None:
                near = _nearest(f"/{name}", [f"/{known}" for known in commands()])
                raise UsageError(f"there is no command /{name}; {near or '/help lists them'}")
            yield from method(rest.strip())
            return
        text = line.removeprefix("/") if line.startswith("//") else line
        self.session.stream(**self.options)  # says what is wrong with a setting before anything has changed
        self._remember()
        yield from self._answer(text.replace("\\n", "\n"))

    def names(self) -> list[str]:
        """Branches, and sessions that were saved."""
        saved = [path.stem for path in self.folder.glob("*.safetensors")] if self.folder.is_dir() else []
        return sorted({*self._branches, *saved})

    @property
    def model(self) -> Model:
        """What writes, with what it has learnt."""
        return cast(Model, self.session.model)

    def _answer(self, text: str) -> Iterator[str]:
        self._last = text
        if text:
            if self.learn is None:
                self.session.feed(text)
            else:
                self.session.learn(text, self.learn)
        yield from self.session.stream(**self.options)

    def _remember(self) -> None:
        self._past = [*self._past[1 - _MAX_UNDO :], self.session.branch()]
        self._future = []

    def _go_to(self, session: Session) -> None:
        """Goes on from another session; settings stay."""
        session.sampling = self.session.sampling
        self.session = session

    def _command_again(self, _: str) -> Iterator[str]:
        if self._last is None or not self._past:
            raise UsageError("nothing was written since here; type a text, Enter alone, or /redo after /undo")
        self._go_to(self._past[-1].branch(seed=self.session.rng))  # the stream goes on: another answer
        yield from self._answer(self._last)

    def _command_undo(self, _: str) -> Iterator[str]:
        yield from self._step_back(self._past, self._future, "there is nothing to take back")

    def _command_redo(self, _: str) -> Iterator[str]:
        yield from self._step_back(self._future, self._past, "nothing was taken back")

    def _step_back(self, from_: list[Session], to: list[Session], nothing: str) -> Iterator[str]:
        if not from_:
            raise UsageError(nothing)
        to.append(self.session)
        self._go_to(from_.pop())
        self._last = None
        yield self._where()

    def _command_branch(self, name: str) -> Iterator[str]:
        if not name:
            yield "branches: " + (", ".join(self._branches) or "none yet")
            return
        self._branches[_checked(name)] = self.session.branch()
        yield f"/load {name} comes back here"

    def _command_save(self, name: str) -> Iterator[str]:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.session.save(path)
        learnt = self.model.card.get("learnt") != cast(Model, self._start.model).card.get("learnt")
        yield f"saved to {path}" + (f", without what was learnt: {_KEEP}" if learnt else "")

    def _command_load(self, name: str) -> Iterator[str]:
        branch = self._branches.get(name)
        session = Session.load(self._path(name), self._model_of) if branch is None else branch.branch()
        self._remember()
        self._go_to(session)
        self._last = None
        yield self._where()

    def _model_of(self, identity: str) -> Model:
        """The model that a saved session belongs to, as far as it had learnt then; else the one that writes."""
        known = [self.session, self._start, *self._branches.values(), *self._past, *self._future]
        models = [cast(Model, session.model) for session in known]
        return next((model for model in models if model.identity == identity), self.model)

    def _command_reset(self, _: str) -> Iterator[str]:
        self._remember()
        self._go_to(self._start.branch())
        self._last = None
        yield "a new text"

    def _command_learn(self, value: str) -> Iterator[str]:
        if value:
            if value.lower() not in _YES + _NO:
                raise UsageError(f"/learn takes on or off, not {value!r}")
            if value.lower() in _NO:
                self.learn = None
            elif self.learn is None:
                self.model.learner()  # says what is missing
                self.learn = LearnConfig()
        yield "learning from what you type" if self.learn is not None else "not learning"

    def _command_keep(self, name: str) -> Iterator[str]:
        if not name:
            raise UsageError("/keep needs a name: /keep FILE")
        path = Path(name if name.endswith(".safetensors") else f"{name}.safetensors")
        if path.exists():
            raise UsageError(f"{path} exists; name another file")
        self.model.save(path)
        yield f"written: {path}"

    def _command_set(self, rest: str) -> Iterator[str]:
        name, _, value = rest.partition(" ")
        name = name.replace("-", "_")
        if not name:
            current = {**self.session.sampling.to_dict(), **{k: v for k, v in self.options.items() if v is not None}}
            names = [*settings(), *(["choices"] if current.get("choices") else [])]
            yield "\n".join(f"{key.replace('_', '-')} {_written(current.get(key))}" for key in names)
            return
        known = settings()
        if name == "choices":
            raise UsageError("choices are given by --choices when a conversation begins, and stay")
        if name not in known:
            hint = _nearest(name, list(known)) or f"known are {', '.join(known)}"
            raise UsageError(f"there is no setting {name}; {hint}".replace("_", "-"))
        value = value.strip()
        if name == "copy_source" and self._index is not None and value.lower() not in ("", *_NO):
            read: Any = self._index(value)
        else:
            read = _read(name, known[name], value)
        if name in _sampling_settings():
            self.session.sampling = self.session.sampling.replace(**{name: read})
        else:
            options = {**self.options, name: read}
            if name == "max_copy" and read is not None:
                options["copy_source"] = self._copy_source()
            self.session.branch().stream(**options)  # says what is wrong with it
            self.options = options
        yield f"{name.replace('_', '-')} {_written(read)}"

    def _copy_source(self) -> SuffixIndex:
        """What must not be copied: as it was set, else what the model was trained on."""
        found = self.options.get("copy_source")
        if found is None and self._index is not None:
            found = self._index(None)
        if found is None:
            learnt = f" (this model learnt from {self.model.title})" if "corpus" in self.model.card else ""
            hint = f"/set copy-source FILE{learnt}"
            raise UsageError(f"max-copy needs a copy-source, the text that must not be copied: {hint}")
        return cast(SuffixIndex, found)

    def _command_help(self, _: str) -> Iterator[str]:
        yield HELP

    def _command_quit(self, _: str) -> Iterator[str]:
        self.over = True
        yield from ()

    def _path(self, name: str) -> Path:
        if name.endswith(".safetensors") or "/" in name or "\\" in name:
            return Path(name)
        return self.folder / f"{_checked(name)}.safetensors"

    def _where(self) -> str:
        end = self.session.text[-60:]
        return f"... {end}" if self.session.chars > len(end) else end or "the beginning"


def commands() -> list[str]:
    """The names of all commands."""
    return sorted(name.removeprefix("_command_") for name in dir(Conversation) if name.startswith("_command_"))


def settings() -> dict[str, Any]:
    """What `/set` knows, with types."""
    pattern = {f.name: _kind(PatternConfig, f.name) for f in fields(PatternConfig) if f.name != "choices"}
    return {**_sampling_settings(), **_LIMITS, **pattern}


def _sampling_settings() -> dict[str, Any]:
    return {field.name: _kind(SamplingConfig, field.name) for field in fields(SamplingConfig)}


def _kind(config: type, name: str) -> Any:
    hint = typing.get_type_hints(config)[name]
    return next((kind for kind in typing.get_args(hint) if kind is not type(None)), hint)


def _read(name: str, kind: Any, value: str) -> Any:
    if kind is bool and value.lower() in _YES + _NO:
        return value.lower() in _YES
    if (kind is str or name not in _sampling_settings()) and value.lower() in _NO:
        return () if name == "stop" else None
    if kind is str and value:
        return value if name == "regex" else value.replace("\\n", "\n")
    try:
        return {float: float, int: int}[kind](value)
    except (KeyError, ValueError) as error:
        words = _WORDS.get(kind, "a text, a file or a corpus")
        raise UsageError(f"{name.replace('_', '-')} must be {words}, not {value!r}") from error


def _written(value: Any) -> str:
    """A setting as it is typed."""
    if value is None or value is False or value in ((), []):
        return "off"
    if isinstance(value, tuple | list):
        return " or ".join(map(_written, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "on" if value is True else str(value).replace("\n", "\\n")


def _nearest(word: str, known: Sequence[str]) -> str:
    """Which of some names was meant, as a question: those that begin so, else the nearest; "" if none is near."""
    near = [name for name in known if name.startswith(word)] or difflib.get_close_matches(word, known, n=1)
    return f"did you mean {' or '.join(near)}?" if near else ""


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"a name is made of letters, digits, '_', '.' and '-', unlike {name!r}")
    return name


class _Names(Completer):
    """Completes commands, names of sessions and settings."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What may stand at the cursor."""
        command, space, begun = document.text_before_cursor.partition(" ")
        if not command.startswith("/"):
            return
        options = [f"/{name}" for name in commands()]
        if space:
            names = {"/load": self._conversation.names, "/save": self._conversation.names}
            known = [name.replace("_", "-") for name in settings()] if command == "/set" else []
            options = names[command]() if command in names else known
        word = begun if space else command
        yield from (Completion(name, -len(word)) for name in options if name.startswith(word))


def terminal_reader(conversation: Conversation) -> Callable[[], str]:
    """A function that asks for a line in the terminal, with history and completion; Ctrl-C begins a new line."""
    prompt: PromptSession[str] = PromptSession(
        "> ", history=_history(cache_dir() / "history"), completer=_Names(conversation), complete_while_typing=False
    )

    def read() -> str:
        # At a prompt Ctrl-C is a key. The signal comes where it is pressed while the terminal changes over, and would
        # end the program, or leave the prompt half set up.
        with _interruptible():
            while True:
                with suppress(KeyboardInterrupt):
                    return prompt.prompt(handle_sigint=False)

    return read


def _history(path: Path) -> History:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError:  # a history is not worth failing for
        return InMemoryHistory()
    return FileHistory(str(path))


def converse(conversation: Conversation, read: Callable[[], str], show: Callable[[str], None]) -> None:
    """Reads lines and shows answers until the end.

    Args:
        conversation: what is talked to.
        read: gives the next line; raises EOFError at the end.
        show: shows a piece of text at once.
    """
    while not conversation.over:
        try:
            line = read()
        except EOFError:
            return
        answer(conversation, line, show)


def answer(conversation: Conversation, line: str, show: Callable[[str], None]) -> None:
    """Shows what one line brings; Ctrl-C ends it, and the session stands where the text was stopped."""
    last = "\n"
    try:
        with _interruptible() as stopped, silent_keys():
            for piece in conversation.hear(line):
                show(piece)
                last = piece
                if stopped():
                    break
    except (TextLSTMError, OSError) as error:
        last = f"error: {error}"
        show(last)
    if not last.endswith("\n"):
        show("\n")


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within it, Ctrl-C is noted instead of raised, so that it never falls between a token and its state."""
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def silent_keys() -> Iterator[None]:
    """Within it, the terminal shows no key by itself: neither amid the text nor between it and a prompt."""
    try:
        import termios
    except ImportError:  # Windows, whose terminals show nothing by themselves
        yield
        return
    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, OSError, ValueError):  # no terminal
        yield
        return
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def read_stdin() -> str:
    """The next line of a pipe.

    Raises:
        UsageError: it is not UTF-8.
    """
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        problem = f"byte 0x{line[error.start]:02x} at offset {error.start} of a line is not UTF-8 text"
        raise UsageError(f"standard input: {problem}") from error
