"""The commands that make files smaller and give them back: compress, decompress."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import click

from textlstm.cli.options import common_options, learner_of, learning_options, notice_of, print_json, quoted
from textlstm.errors import Interrupted

_SOURCE = click.Path(exists=True, dir_okay=False, allow_dash=True)
_OPEN = ("/dev/std", "/dev/fd/", "/proc/")  # links to what is open, to a file perhaps: renaming would replace the link
_force = click.option(
    "--force", "-f", is_flag=True, help="Replace OUT without asking; only on a terminal one is asked."
)


@click.command(name="compress", short_help="Compress any file with a model.")
@click.argument("model")
@click.argument("source", metavar="IN", type=_SOURCE)
@click.argument("out")
@click.option("--lanes", type=click.IntRange(1, 4096), default=1, help="Parts side by side: faster.  [default: 1]")
@learning_options("the data that is compressed")
@_force
@common_options
def compress_(
    model: str, source: str, out: str, lanes: int, force: bool, as_json: bool, quiet: bool, **learning: Any
) -> None:  # fmt: skip
    """Compress the file IN with MODEL into OUT; '-' is standard input or output.

    The size of the file is the score: behind a header of 17 to 19 bytes (some more with --learn), times eight, it is
    the bits of `score` (with --lanes N, of `score --lanes N`). What the model does not help with, such as pictures, is
    stored as it is or by LZMA. Who decompresses needs the same model; the machine may be another, since int8 gives the
    same numbers on each. It goes by blocks of a megabyte (or 64 kB for each lane, if that is more), so that a file may
    be larger than memory.

    With --learn the model learns from what it has coded: smaller and slower, for decompress too, and only the same
    machine with the same versions is sure to give the file back. The file says how it was written. Memories take about
    a kilobyte for each token that they have read; --no-learn-memories does without them.

    \b
    textlstm compress shakespeare sonnets.txt sonnets.tlz
    textlstm compress runs/my-novel-1 chapter.txt chapter.tlz --lanes 16
    textlstm compress runs/my-novel-1 chapter.txt chapter.tlz --learn
    cat chapter.txt | textlstm compress runs/my-novel-1 - - > chapter.tlz
    """
    from textlstm.model import Model
    from textlstm.report import ScoreView

    check_out(source, out, as_json)
    if learning["learn"] and lanes > 1:
        raise click.BadParameter("goes along one text: leave out --lanes", param_hint="--learn")
    _ask_to_replace(out, force)
    learning_from = learning["learn_from"]
    loaded, learn = learner_of(Model.load(model), learning, quiet)
    started = time.perf_counter()
    with ScoreView(quiet) as view, _reading(source) as data, _writing(out) as packed:
        told = view.progress("compressing")
        done = loaded.compress_stream(data, packed, lanes, told, learn, _size_of(data))
    seconds = time.perf_counter() - started
    report = {
        "bytes": done.bytes, "compressed_bytes": done.compressed_bytes, "method": done.method,
        "blocks": dict(done.blocks), "why": done.why or None,
        "bits_per_byte": 8 * done.compressed_bytes / done.bytes if done.bytes else None, "tokens": done.tokens,
        "lanes": done.lanes, "seconds": seconds, "model": model, "identity": loaded.coder.identity,
    }  # fmt: skip
    if as_json:
        print_json(report)
    elif not quiet:
        share = f", {report['bits_per_byte']:.3f} bits per byte" if done.bytes else ""
        why = f" ({done.why})" if done.why else ""
        sizes = f"{done.bytes:,} bytes -> {done.compressed_bytes:,}"
        click.echo(f"{sizes}{share}; method {done.method}{why}", err=True)
        if out != "-":
            needed = model if done.tokens else None
            click.echo(f"back again: {_undoing(out, needed, learning_from)}", err=True)


def _undoing(out: str, model: str | None, learn_from: str | None) -> str:
    """The command that gives a compressed file back; models that ship are found without being named."""
    from textlstm.registry import find_model, shipped_models

    words = ["textlstm", "decompress", out, "FILE"]
    if model is not None:
        words += [] if find_model(model) in shipped_models().values() else ["--model", model]
        words += [] if learn_from is None else ["--learn-from", learn_from]
    return " ".join(map(quoted, words))


@click.command(name="decompress", short_help="Give back what compress was given.")
@click.argument("source", metavar="IN", type=_SOURCE)
@click.argument("out")
@click.option(
    "--model", help="The model it was written with.  [default: found among those that ship, the cache and the runs]"
)
@click.option("--learn-from", help="As it was given to compress.")
@_force
@common_options
def decompress_(
    source: str, out: str, model: str | None, learn_from: str | None, force: bool, as_json: bool, quiet: bool
) -> None:  # fmt: skip
    """Give back in OUT the file that was compressed into IN; '-' is standard input or output.

    A damaged file, another model, or a machine that computes differently is an error, and nothing is written. To
    standard output goes, block by block, what has been proved; after an error it is the beginning of the content.

    \b
    textlstm decompress sonnets.tlz sonnets.txt
    textlstm decompress chapter.tlz chapter.txt --model runs/my-novel-1
    textlstm decompress huge.tlz - --model runs/my-novel-1 | wc
    """
    from dataclasses import replace

    from textlstm.coding import Coder, decompress_stream
    from textlstm.model import Model
    from textlstm.registry import find_model_by_identity
    from textlstm.report import ScoreView

    def find(identity: str) -> Coder:
        file = find_model_by_identity(identity) if model is None else None
        loaded = Model.load(str(model)) if file is None else Model(file)

        def that_learnt(settings: bytes) -> Coder | None:
            primed = learner_of(loaded, {"learn_from": learn_from}, True, learn_from is not None)[0].coder
            return None if primed.that_learnt is None else primed.that_learnt(settings)

        return replace(loaded.coder, that_learnt=that_learnt)

    check_out(source, out, as_json)
    _ask_to_replace(out, force)
    started = time.perf_counter()
    with ScoreView(quiet) as view, _reading(source) as data, _writing(out) as content:
        done = decompress_stream(data, content, find, view.progress("decompressing"), _size_of(data))
    if model is not None and not done.tokens:
        notice_of(quiet)(f"no model was needed, the method is {done.method}: --model {model} is not used")
    if learn_from is not None and "model that learns" not in done.blocks:
        notice_of(quiet)(f"the method is {done.method}: --learn-from {learn_from} is not used")
    if as_json:
        seconds = time.perf_counter() - started
        print_json({"compressed_bytes": done.compressed_bytes, "bytes": done.bytes, "seconds": seconds})
    else:
        notice_of(quiet)(f"{done.compressed_bytes:,} bytes -> {done.bytes:,}")


def check_out(source: str, out: str, as_json: bool, name: str = "OUT") -> None:
    """Sees that a result can go where it shall; `name` is what it is called on the command line."""
    if out == "-":
        if as_json:
            raise click.BadParameter("would mix with the data on standard output", param_hint="--json")
    elif source != "-" and Path(out).exists() and Path(out).samefile(source):
        raise click.BadParameter("is the same file as IN", param_hint=name)
    elif Path(out).exists() and not Path(out).is_dir() and (not Path(out).is_file() or out.startswith(_OPEN)):
        raise click.BadParameter(f"{out} is no file that could be replaced", param_hint=name)
    elif Path(out).is_dir():
        raise click.BadParameter(f"{out} is a folder; name a file in it", param_hint=name)
    elif not Path(out).parent.is_dir():
        raise click.BadParameter(f"there is no folder {Path(out).parent}; make it, or name another", param_hint=name)


def _ask_to_replace(out: str, force: bool) -> None:
    """Asks before a file is replaced, where somebody can answer."""
    if force or out == "-" or not Path(out).exists() or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not click.confirm(f"{out} exists; replace it?", err=True):
        raise click.BadParameter(f"{out} exists, and stays as it is", param_hint="OUT")


def _reading(source: str) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb")


@contextmanager
def _writing(out: str) -> Iterator[BinaryIO]:
    from textlstm.files import writing_atomically

    if out == "-":
        yield sys.stdout.buffer
    else:
        with _unwinding(), writing_atomically(Path(out)) as file:
            yield file


@contextmanager
def _unwinding() -> Iterator[None]:
    """Has SIGTERM and the end of the terminal leave as Ctrl-C does, so that no half of a file stays behind."""
    ends = [signal.SIGTERM] if sys.platform == "win32" else [signal.SIGTERM, signal.SIGHUP]
    ends = [end for end in ends if signal.getsignal(end) == signal.SIG_DFL]  # nohup has it ignored

    def handle_by(handler: Any) -> None:
        for end in ends:
            signal.signal(end, handler)

    def leave(number: int, _: object) -> None:
        handle_by(signal.SIG_IGN)  # a shell hands on what the terminal has sent, in the middle of the removal
        raise Interrupted("stopped", number)

    handle_by(leave)
    try:
        yield
    finally:
        handle_by(signal.SIG_DFL)


def _size_of(file: BinaryIO) -> int | None:
    """Bytes of a file; None of what is no file on a disk: a pipe, say."""
    try:
        status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
