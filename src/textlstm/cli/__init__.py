"""The command line: arguments and printing only. Everything else is imported inside the commands.

Results go to standard output, progress to standard error. `--json` prints one JSON object as the last line.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NoReturn

import click

from textlstm import __version__
from textlstm.cli.compressing import compress_, decompress_
from textlstm.cli.handing import corpora, export, import_, info, models
from textlstm.cli.measuring import bench
from textlstm.cli.options import print_json
from textlstm.cli.reading import inspect, score
from textlstm.cli.serving import serve
from textlstm.cli.training import demo, train, tune
from textlstm.cli.writing import generate
from textlstm.errors import COMES_AGAIN, TextLSTMError

SHORT_HELP = """textlstm trains a language model on your own text in minutes, and writes with it.

  textlstm demo                                watch it learn Shakespeare, then read what it writes
  textlstm train my-novel.txt --minutes 5      train on your own text
  textlstm generate runs/my-novel-1 "Once"     write with it
  textlstm generate shakespeare                write with a model that ships

textlstm --help lists everything.
"""


class _Group(click.Group):
    """Lists the commands in the order of a user's day, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of a pipe left, which click would call a failure
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


@click.group(cls=_Group, invoke_without_command=True, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="textlstm")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train an LSTM language model on your own text in minutes; write and score with it.

    \b
    textlstm demo                              watch it learn, then read what it writes
    textlstm train my-novel.txt --minutes 5    train on your own text
    textlstm generate runs/my-novel-1 "Once"   write with it
    textlstm COMMAND --help                    every option, with examples
    """
    if context.invoked_subcommand is None:
        click.echo(SHORT_HELP, nl=False)


_COMMANDS = (
    demo, train, tune, generate, score, inspect, compress_, decompress_, import_, export, info, models, corpora,
    serve, bench,
)  # fmt: skip
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Runs the command line and leaves with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo(err=True)
        _leave("stopped", 130)
    except click.ClickException as error:
        error.show()
        _leave(error.format_message(), error.exit_code, shown=True)
    except OSError as error:  # a full disk, a folder without permission: the system's words, and where
        _leave(f"{error.filename or 'writing'}: {error.strerror}", 1)
    except TextLSTMError as error:
        _leave(str(error), error.exit_code, comes_again=error.comes_again)


def _leave(problem: str, code: int, shown: bool = False, comes_again: bool = False) -> NoReturn:
    """Says why a command ends early, with --json also as the last line of standard output, and ends it."""
    if not shown:
        label = "" if code > 128 else click.style("error: ", fg="red", bold=True)
        with contextlib.suppress(OSError):  # the terminal may be gone
            click.echo(f"{label}{problem}", err=True)
    if "--json" in sys.argv:
        with contextlib.suppress(OSError):
            print_json({"error": problem, "exit_code": code})
            sys.stdout.flush()
    is_rank = "TORCHELASTIC_RUN_ID" in os.environ
    sys.exit(COMES_AGAIN if is_rank and comes_again and code == 1 else code)
