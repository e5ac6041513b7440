"""`generate --interactive`: its commands, prompt_toolkit's own pipe for keys, and a real terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from test_cli import environment, make_model

from textlstm import interactive
from textlstm.errors import UsageError
from textlstm.interactive import Conversation, answer, converse, terminal_reader
from textlstm.model import Model
from textlstm.novelty import SuffixIndex

pytestmark = pytest.mark.usefixtures("own_cache")

OPTIONS = {"max_chars": 20}


@pytest.fixture
def model(tmp_path) -> Path:
    return make_model(tmp_path / "tiny.safetensors")


@pytest.fixture
def conversation(model) -> Conversation:
    loaded = Model.load(model)
    return Conversation(loaded, loaded.session(3), dict(OPTIONS))


def hear(conversation: Conversation, line: str) -> str:
    return "".join(conversation.hear(line))


def test_texts_and_empty_lines(conversation):
    session = conversation.model.session(3)
    session.feed("Once\n")
    assert hear(conversation, "Once\\n") == session.generate(**OPTIONS)
    assert hear(conversation, "") == session.generate(**OPTIONS)
    hear(conversation, "//x")
    assert "/x" in conversation.session.text and "//x" not in conversation.session.text


def test_undo_and_redo(conversation):
    texts = [""]
    for line in ("Once", "", "more"):
        hear(conversation, line)
        texts.append(conversation.session.text)
    for expected in reversed(texts[:-1]):
        hear(conversation, "/undo")
        assert conversation.session.text == expected
    with pytest.raises(UsageError, match="nothing to take back"):
        hear(conversation, "/undo")
    for expected in texts[1:]:
        hear(conversation, "/redo")
        assert conversation.session.text == expected
    hear(conversation, "/undo")
    hear(conversation, "else")
    with pytest.raises(UsageError, match="nothing was taken back"):
        hear(conversation, "/redo")


def test_only_so_many_steps_are_kept(conversation):
    for _ in range(30):
        hear(conversation, "a")
    assert len(conversation._past) == interactive._MAX_UNDO


def test_again_writes_another_answer_to_the_same(conversation):
    with pytest.raises(UsageError, match="nothing was written"):
        hear(conversation, "/again")
    answers = [hear(conversation, "Once"), *(hear(conversation, "/again") for _ in range(3))]
    assert len(set(answers)) == 4 and conversation.session.text == "Once" + answers[-1]
    hear(conversation, "/undo")
    assert conversation.session.text == ""


def test_branches_and_files(conversation, tmp_path):
    hear(conversation, "Once")
    here = conversation.session.text
    hear(conversation, "/branch first")
    assert "sessions" in hear(conversation, "/save kept") and (tmp_path / "sessions" / "kept.safetensors").is_file()
    texts = []
    for place in ("first", "kept", "sessions/kept.safetensors"):
        hear(conversation, "/reset")
        assert conversation.session.text == ""
        hear(conversation, f"/load {place}")
        assert conversation.session.text == here
        texts.append(hear(conversation, ""))
    assert len(set(texts)) == 1
    assert hear(conversation, "/branch") == "branches: first"
    assert conversation.names() == ["first", "kept"]
    hear(conversation, "/undo")
    hear(conversation, "/undo")
    assert conversation.session.text == ""  # a load is a step like others


def test_settings_stay(conversation):
    hear(conversation, "/set temperature 0.25")
    hear(conversation, "/set max-chars 5")
    hear(conversation, "/set stop x\\n")
    assert conversation.options == {"max_chars": 5, "stop": "x\n"}
    assert len(hear(conversation, "Once")) <= 5
    for command in ("/undo", "/redo", "/reset", "/branch a", "/load a"):
        hear(conversation, command)
        assert conversation.session.sampling.temperature == 0.25
    hear(conversation, "/set max-chars off")
    hear(conversation, "/set stop off")
    hear(conversation, "/set regex [ab]{3}\\n")
    assert re.fullmatch("[ab]{3}\n", hear(conversation, "Once"))
    hear(conversation, "/set regex off")
    hear(conversation, "/set stop-at-end on")
    shown = hear(conversation, "/set")
    assert "temperature 0.25\n" in shown and "stop-at-end on\n" in shown


def test_settings_are_shown_as_they_are_typed(conversation):
    """What `/set` shows can be typed behind `/set`, and changes nothing."""
    conversation.options = {"max_chars": 20, "stop": ("x\n",), "choices": [], "max_copy": None}
    assert hear(conversation, "/set") == (
        "repetition-penalty 1\nfrequency-penalty 0\npresence-penalty 0\ndry-multiplier 0\ndry-base 1.75\n"
        "dry-allowed-length 2\ndry-penalty-last-n -1\ndry-breakers off\ntemperature 0.8\ntop-k 0\n"
        "typical-p 1\ntop-p 1\nmin-p 0\ntop-n-sigma 0\nxtc-probability 0\nxtc-threshold 0.1\nmirostat 0\n"
        "mirostat-tau 5\nmirostat-eta 0.1\nsamplers off\ntemperature-last off\nmax-tokens off\nmax-chars 20\n"
        "stop x\\n\nstop-at-end off\ncopy-source off\nmax-copy off\nregex off\ntemplate off\nblanks off\n"
        "line-length off\nprefix off"
    )
    conversation.options["choices"] = ["a", "b"]  # cannot be typed, but holds
    assert hear(conversation, "/set").endswith("\nprefix off\nchoices a or b")
    conversation.options["choices"] = []
    for command in ("stop-at-end on", "stop x\\n", "temperature 1e-05", "prefix a b"):
        assert hear(conversation, f"/set {command}") == command
    before = hear(conversation, "/set")
    for line in before.splitlines()[:-1]:
        assert hear(conversation, f"/set {line}") == line
    assert hear(conversation, "/set") == before


def test_copies_are_limited_across_answers(conversation):
    whole = conversation.session.branch().generate(max_chars=60)
    conversation._index = {"itself": SuffixIndex.of_texts([whole])}.get
    with pytest.raises(UsageError, match=r"needs a copy-source.*/set copy-source FILE.*learnt from a .b. c"):
        hear(conversation, "/set max-copy 4")
    del conversation.model.card["corpus"]
    with pytest.raises(UsageError, match=r"/set copy-source FILE$"):
        hear(conversation, "/set max-copy 4")
    with pytest.raises(UsageError, match=r"must not be copied$"):
        conversation.session.generate(max_copy=4)
    hear(conversation, "/set copy-source itself")
    hear(conversation, "/set max-copy 4")
    assert "\nmax-copy 4\n" in hear(conversation, "/set")
    for _ in range(12):
        hear(conversation, "/set max-chars 3")
        hear(conversation, "")
    assert conversation._index("itself").novelty(conversation.session.text).longest == 4
    with pytest.raises(UsageError, match="needs a copy-source"):
        hear(conversation, "/set copy-source off")
    hear(conversation, "/set max-copy off")
    hear(conversation, "/set copy-source off")
    conversation._index = {None: SuffixIndex.of_texts([whole])}.get  # what the model was trained on is known
    hear(conversation, "/set max-copy 9")
    assert "a text of" in hear(conversation, "/set") and conversation.options["max_copy"] == 9


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/lod a", "did you mean /load"), ("/re", "/redo or /reset"),
        ("/set temp 1", "temperature or temperature-last or template"),
        ("/zzz", "/help"), ("/load absent", "no session"), ("/load", "a name"),
        ("/save a b", "a name"), ("/save ..", "a name"), ("/branch a?", "a name"),
        ("/set temprature 1", "temperature"), ("/set temperature hot", "a number, not 'hot'"),
        ("/set temperature -1", "0 or more"), ("/set max-chars 1.5", "a whole number"),
        ("/set stop-at-end maybe", "on or off"), ("/set regex a(", "regular"),
        ("/set max-tokens -1", "0 or more"), ("/set regex", "a text"), ("/set zzz 1", "known are"),
        ("/load ../x/y", "no session"), ("/", "no command"), ("/set max-copy 4", "copy-source"),
        ("/set copy-source", "a file"), ("/set max-copy few", "a whole number"),
        ("/set choices a,b", "--choices when a conversation begins"),
    ],
)  # fmt: skip
def test_commands_that_cannot_be_meant(conversation, line, problem):
    hear(conversation, "Once")
    before, options = conversation.session.text, dict(conversation.options)
    with pytest.raises(UsageError, match=problem):
        hear(conversation, line)
    assert conversation.session.text == before and conversation.options == options
    shown: list[str] = []
    answer(conversation, line, shown.append)
    assert shown[0].startswith("error: ") and shown[-1].endswith("\n")


def test_help_names_all_commands_within_80_columns():
    assert all(f"/{name}" in interactive.HELP for name in interactive.commands())
    assert max(map(len, interactive.HELP.splitlines())) <= 79


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        ("/l", ["/learn", "/load"]), ("/re", ["/redo", "/reset"]), ("/load ", ["one", "two"]), ("/save tw", ["two"]),
        ("/set tempe", ["temperature", "temperature-last"]), ("/set max-", ["max-tokens", "max-chars", "max-copy"]),
        ("Once /l", []), ("/undo ", []), ("", []),
    ],
)  # fmt: skip
def test_completion(conversation, begun, expected):
    hear(conversation, "/branch one")
    hear(conversation, "/save two")
    found = interactive._Names(conversation).get_completions(Document(begun), CompleteEvent())
    completed = [completion.text for completion in found]
    assert completed == expected


def type_in(conversation: Conversation, keys: str) -> str:
    """What is shown while keys are pressed."""
    shown: list[str] = []
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        converse(conversation, terminal_reader(conversation), shown.append)
    return "".join(shown)


def test_keys(conversation, tmp_path):
    text = Model.load(tmp_path / "tiny.safetensors").generate("Once", seed=3, max_chars=20)
    shown = type_in(conversation, "Once\r/branch here\rnot thi\x03/load here\r/quit\r")
    assert shown.startswith(text) and "/load here comes back" in shown and conversation.over
    assert conversation.session.text == "Once" + text  # Ctrl-C threw the line away
    history = (tmp_path / "cache" / "history").read_text()
    assert "+Once" in history and "+/load here" in history
    other = Conversation(conversation.model, conversation.model.session(0), dict(OPTIONS))
    type_in(other, "\x1b[A\x1b[A\x1b[A\x1b[A\r\x04")  # four lines up is the text; Ctrl-D leaves
    assert other.session.text.startswith("Once") and not other.over


def test_a_signal_while_the_terminal_changes_over_is_no_end(conversation, monkeypatch):
    """Before and behind a prompt Ctrl-C is a signal, not a key."""
    prompts, ask = [], interactive.PromptSession.prompt

    def signalled(self, **options):
        prompts.append(options)
        assert len(prompts) < 9
        os.kill(os.getpid(), signal.SIGINT)
        line = ask(self, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return line

    monkeypatch.setattr(interactive.PromptSession, "prompt", signalled)
    type_in(conversation, "Once\r/quit\r")
    assert len(prompts) == 2 and conversation.session.text.startswith("Once") and conversation.over
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_history_that_cannot_be_kept(conversation, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "file" / "cache"))
    assert type_in(conversation, "Once\r\x04")


def test_ctrl_c_stops_the_text_and_keeps_what_was_shown(conversation):
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        if len(shown) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    conversation.options = {"max_chars": 10_000}
    answer(conversation, "Once", show)
    assert len(shown) == 5 + (not shown[4].endswith("\n"))
    assert conversation.session.text == "Once" + "".join(shown[:5])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fresh = conversation.model.session(3)
    fresh.feed("Once")
    whole = fresh.generate(max_chars=60)
    conversation.options = {"max_chars": 60 - len("".join(shown[:5]))}
    assert "".join(shown[:5]) + hear(conversation, "") == whole


# --- the command -----------------------------------------------------------------------------------------------------


def test_lines_from_a_pipe(model):
    command = [
        sys.executable,
        "-m",
        "textlstm",
        "generate",
        str(model),
        "Once",
        "-i",
        "--seed",
        "3",
        "--max-chars",
        "20",
    ]
    lines = "/set max-chars 5\n\n/nope\n"
    done = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment(), timeout=30)
    session = Model.load(model).session(3)
    session.feed("Once")
    first, second = session.generate(max_chars=20), session.generate(max_chars=5)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("Once" + first) and second in done.stdout and "error: there is no" in done.stdout


def test_a_line_of_a_pipe_that_is_no_text(model):
    command = [sys.executable, "-m", "textlstm", "generate", str(model), "-i", "--max-chars", "5"]
    done = subprocess.run(command, input=b"Once\nA\xff\n", capture_output=True, env=environment(), timeout=30)
    assert done.returncode == 2 and b"byte 0xff at offset 1 of a line" in done.stderr and done.stdout


@pytest.mark.parametrize("more", [["--json"], ["--n", "2"], ["--beams", "2"], ["--best-of", "2"]])
def test_what_is_not_interactive(run, model, more):
    assert run("generate", model, "-i", *more).code == 2


PROGRAM = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from textlstm.cli import main; main()"


class Terminal:
    """A program in a terminal of its own, and what it shows."""

    def __init__(self, *arguments: str, program: str = PROGRAM) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, env={**environment(), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, pattern: str) -> None:
        """Reads until something new matches."""
        begun, end = len(self.shown), time.monotonic() + 30
        while not re.search(pattern, self.shown[begun:], re.DOTALL):
            assert time.monotonic() < end, self.shown
            if select.select([self._ours], [], [], 1)[0]:
                try:
                    self.shown += os.read(self._ours, 65536).decode(errors="replace")
                except OSError:  # it has ended
                    raise AssertionError(self.shown) from None

    @property
    def echoes(self) -> bool:
        """Whether it shows keys by itself."""
        return bool(termios.tcgetattr(self._ours)[3] & termios.ECHO)

    def leave(self) -> int:
        """Closes the terminal while the program runs; returns the exit code."""
        os.close(self._ours)
        return self.process.wait(timeout=30)

    def close(self) -> int:
        """Reads what is left; returns the exit code."""
        while select.select([self._ours], [], [], 10)[0]:
            try:
                self.shown += os.read(self._ours, 65536).decode(errors="replace")
            except OSError:
                break
        return self.leave()


PROMPT = r"\x1b\[\?2004h.*>"  # a prompt that takes keys: it has just asked for pasted text to be marked


def test_in_a_real_terminal(model):
    terminal = Terminal("generate", str(model), "-i", "--seed", "3", "--max-chars", "100000000")
    terminal.wait_for(PROMPT)
    terminal.press("Once\r")
    terminal.wait_for(".{2000}")
    terminal.press("\x03")  # stops the text
    terminal.wait_for(PROMPT)
    terminal.press("/set max-chars 9\r")
    terminal.wait_for("max-chars 9.*" + PROMPT)
    terminal.press("\x03")  # a new line
    terminal.press("/bra\t")
    terminal.wait_for("nch")  # what Tab added
    terminal.press(" x\r")
    terminal.wait_for("/load x comes back here.*" + PROMPT)
    terminal.press("\x04")
    assert terminal.close() == 0 and "Traceback" not in terminal.shown
    assert "/help lists the commands" in terminal.shown and "^C" not in terminal.shown


BETWEEN = """
import termios
from textlstm import interactive

def mark():
    print("echo", "on" if termios.tcgetattr(0)[3] & termios.ECHO else "off", flush=True)

def reader(conversation, make=interactive.terminal_reader):
    ask = make(conversation)

    def read():
        mark()
        line = ask()
        mark()
        return line

    return read

interactive.terminal_reader = reader
"""


def test_keys_do_not_show_between_a_prompt_and_the_text(model):
    terminal = Terminal("generate", str(model), "Once", "-i", "--max-chars", "9", program=BETWEEN + PROGRAM)
    terminal.wait_for(PROMPT)
    terminal.press("/help\r")
    terminal.wait_for("/help, /quit.*" + PROMPT)
    terminal.press("/quit\r")
    terminal.wait_for("echo off\r\n")
    terminal.process.wait(timeout=30)
    assert terminal.echoes  # as it was
    assert terminal.close() == 0 and terminal.shown.count("echo off") == 4 and "echo on" not in terminal.shown


def test_a_terminal_that_is_gone_ends_in_one_line(model, tmp_path):
    """The signal that tells of it is ignored, as under nohup."""
    errors = tmp_path / "errors.txt"
    ignoring = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    program = f"{ignoring}sys.stderr = open({str(errors)!r}, 'w')\n{PROGRAM}"
    terminal = Terminal("generate", str(model), "-i", program=program)
    terminal.wait_for(PROMPT)
    code = terminal.leave()
    assert (code, errors.read_text().splitlines()[1:]) == (1, ["error: writing: Input/output error"])
