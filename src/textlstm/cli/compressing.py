"""The commands that make files smaller and give them back: compress, decompress."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from textlstm.cli.options import common_options, learner_of, learning_options, notice_of, print_json

_SOURCE = click.Path(exists=True, dir_okay=False, allow_dash=True)
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

    The size of the file is the score: times eight, it is the bits of `score` (with --lanes N, of `score --lanes N`).
    What the model does not help with, such as pictures, is stored as it is or by LZMA. Who decompresses needs the
    same model; the machine may be another, since int8 gives the same numbers on each.

    With --learn the model learns from what it has coded: smaller and slower, for decompress too, and only the same
    machine with the same versions is sure to give the file back. The file says how it was written.

    \b
    textlstm compress shakespeare sonnets.txt sonnets.tlz
    textlstm compress runs/my-text-1 chapter.txt chapter.tlz --lanes 16
    textlstm compress runs/my-text-1 chapter.txt chapter.tlz --learn
    cat chapter.txt | textlstm compress runs/my-text-1 - - > chapter.tlz
    """
    from textlstm.model import Model
    from textlstm.report import ScoreView

    check_out(source, out, as_json)
    if learning["learn"] and lanes > 1:
        raise click.BadParameter("goes along one text: leave out --lanes", param_hint="--learn")
    _ask_to_replace(out, force)
    loaded, learn = learner_of(Model.load(model), learning, quiet)
    data = _read_bytes(source)
    started = time.perf_counter()
    with ScoreView(quiet) as view:
        done = loaded.compress(data, lanes, view.progress("compressing"), learn)
    seconds = time.perf_counter() - started
    _write_bytes(out, done.data)
    report = {
        "bytes": len(data), "compressed_bytes": len(done.data), "method": done.method, "why": done.why or None,
        "bits_per_byte": 8 * len(done.data) / len(data) if data else None, "tokens": done.tokens, "lanes": done.lanes,
        "seconds": seconds, "model": model, "identity": loaded.coder.identity,
    }  # fmt: skip
    if as_json:
        print_json(report)
    elif not quiet:
        share = f", {report['bits_per_byte']:.3f} bits per byte" if data else ""
        why = f" ({done.why})" if done.why else ""
        click.echo(f"{len(data):,} bytes -> {len(done.data):,}{share}; method {done.method}{why}", err=True)


@click.command(name="decompress", short_help="Give back what compress was given.")
@click.argument("source", metavar="IN", type=_SOURCE)
@click.argument("out")
@click.option("--model", help="The model it was written with.  [default: found among those that ship and the cache]")
@click.option("--learn-from", help="As it was given to compress.")
@_force
@common_options
def decompress_(
    source: str, out: str, model: str | None, learn_from: str | None, force: bool, as_json: bool, quiet: bool
) -> None:  # fmt: skip
    """Give back in OUT the file that was compressed into IN; '-' is standard input or output.

    A damaged file, another model, or a machine that computes differently is an error, and nothing is written.

    \b
    textlstm decompress sonnets.tlz sonnets.txt
    textlstm decompress chapter.tlz chapter.txt --model runs/my-text-1
    """
    from textlstm.coding import Coder, decompress, method_of
    from textlstm.model import Model
    from textlstm.registry import find_model_by_identity
    from textlstm.report import ScoreView

    def find(identity: str) -> Coder:
        file = find_model_by_identity(identity) if model is None else None
        loaded = Model.load(str(model)) if file is None else Model(file)
        coder: Coder = learner_of(loaded, {"learn_from": learn_from}, True, learn_from is not None)[0].coder
        return coder

    check_out(source, out, as_json)
    _ask_to_replace(out, force)
    data = _read_bytes(source)
    method = method_of(data)
    if model is not None and not method.startswith("model"):
        notice_of(quiet)(f"no model is needed, the method is {method}: --model {model} is not used")
    if learn_from is not None and method != "model that learns":
        notice_of(quiet)(f"the method is {method}: --learn-from {learn_from} is not used")
        learn_from = None
    started = time.perf_counter()
    with ScoreView(quiet) as view:
        content = decompress(data, find, view.progress("decompressing"))
    _write_bytes(out, content)
    if as_json:
        seconds = time.perf_counter() - started
        print_json({"compressed_bytes": len(data), "bytes": len(content), "seconds": seconds})


def check_out(source: str, out: str, as_json: bool) -> None:
    """Sees that a result can go where it shall."""
    if out == "-":
        if as_json:
            raise click.BadParameter("would mix with the data on standard output", param_hint="--json")
    elif source != "-" and Path(out).exists() and Path(out).samefile(source):
        raise click.BadParameter("is the same file as IN", param_hint="OUT")
    elif Path(out).is_dir() or not Path(out).parent.is_dir():
        raise click.BadParameter(f"{out} is a folder, or lies in none that exists", param_hint="OUT")


def _ask_to_replace(out: str, force: bool) -> None:
    """Asks before a file is replaced, where somebody can answer."""
    if force or out == "-" or not Path(out).exists() or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not click.confirm(f"{out} exists; replace it?", err=True):
        raise click.BadParameter(f"{out} exists, and stays as it is", param_hint="OUT")


def _read_bytes(source: str) -> bytes:
    return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()


def _write_bytes(out: str, data: bytes) -> None:
    from textlstm.files import write_atomically

    if out == "-":
        sys.stdout.buffer.write(data)
    else:
        write_atomically(Path(out), data)
