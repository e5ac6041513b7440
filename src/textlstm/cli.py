"""The command line: arguments and printing only. Everything else is imported inside the commands.

Results go to standard output, progress to standard error. `--json` prints one JSON object as the last line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sys
import time
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from textlstm import __version__
from textlstm.config import (
    DEVICES,
    ENGINES,
    PRESETS,
    Config,
    CorpusConfig,
    LearnConfig,
    ModelConfig,
    PatternConfig,
    SamplingConfig,
    TrainConfig,
    read_settings,
)
from textlstm.errors import TextLSTMError

if TYPE_CHECKING:
    from textlstm.corpus.document import Document
    from textlstm.run import Request
    from textlstm.trainer.launch import Host

Command = Callable[..., Any]

SHORT_HELP = """textlstm trains a language model on your own text in minutes, and writes with it.

  textlstm demo                                watch it learn Shakespeare, then read what it writes
  textlstm train my-text.txt --minutes 5       train on your own text
  textlstm generate runs/my-text-1 "Once"      write with it
  textlstm generate shakespeare                write with a model that ships

textlstm --help lists everything.
"""


def options_of(config: type[Config], skip: Sequence[str] = ()) -> Callable[[Command], Command]:
    """Options for the fields of a configuration, with their help; what is not given stays None."""

    def decorate(command: Command) -> Command:
        hints = typing.get_type_hints(config)
        for field in reversed(dataclasses.fields(config)):
            if field.name in skip:
                continue
            flag, hint = "--" + field.name.replace("_", "-"), hints[field.name]
            default = "" if field.default is None else f"  [default: {field.default}]"
            text = field.metadata["help"]
            text = f"{text}.{default}" if text.startswith("bpe") else f"{text[0].upper()}{text[1:]}.{default}"
            if hint is bool:
                flag = f"{flag}/--no-{flag[2:]}"
                command = click.option(flag, default=None, help=text)(command)
                continue
            kinds = [k for k in (typing.get_args(hint) or [hint]) if k is not types.NoneType]
            choices = field.metadata.get("choices")
            command = click.option(flag, type=click.Choice(choices) if choices else kinds[0], help=text)(command)
        return command

    return decorate


def given(config: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """Takes the options of a configuration that were given out of a command's arguments."""
    names = [field.name for field in dataclasses.fields(config)]
    taken = {name: values.pop(name) for name in names if name in values}
    return {name: value for name, value in taken.items() if value is not None}


def _common(command: Command) -> Command:
    command = click.option("--quiet", "-q", is_flag=True, help="Show no progress.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")(command)


def _learning(command: Command) -> Command:
    """Options of the commands that can learn while they read."""
    command = options_of(LearnConfig)(command)
    command = click.option(
        "--learn-from",
        help="With --learn: what the model was trained on (file or corpus, without the text that is scored): memories "
        "read it first, and gradients are measured on it.",
    )(command)
    return click.option("--learn", is_flag=True, help="Learn from what was read (dynamic evaluation).")(command)


def _learner(
    model: Any, values: dict[str, Any], quiet: bool, learn: bool | None = None
) -> tuple[Any, LearnConfig | None]:
    """The model, primed if that was asked for, and how it learns: None if it does not.

    Args:
        model: the model.
        values: options of a command; those of learning are taken out.
        quiet: say nothing.
        learn: whether it learns; None is for `--learn` to say.
    """
    learn = values.pop("learn") if learn is None else learn
    source, settings = values.pop("learn_from"), given(LearnConfig, values)
    if not learn:
        if settings or source is not None:
            option = "--" + next(iter(settings), "learn_from").replace("_", "-")
            raise click.BadParameter("goes with --learn", param_hint=option)
        return model, None
    from textlstm.api import require_torch

    require_torch()
    config = LearnConfig.from_dict(settings)
    if source is not None:
        from textlstm.corpus import read_sources

        documents = read_sources([source], CorpusConfig(), _notice(quiet)).documents
        model = model.primed("\n".join(document.text for document in documents))
    where = _statistics(model, source)
    _notice(quiet)(f"learning, with statistics of gradients from {where}")
    return model, config


def _statistics(model: Any, source: str | None) -> str:
    if source is not None:
        return source
    return "the model file" if model.has_statistics else "what is read: the model file has none"


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


def _notice(quiet: bool) -> Callable[[str], None]:
    return lambda line: None if quiet else click.echo(line, err=True)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=True))


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
    textlstm train my-text.txt --minutes 5     train on your own text
    textlstm generate runs/my-text-1 "Once"    write with it
    textlstm COMMAND --help                    every option, with examples
    """
    if context.invoked_subcommand is None:
        click.echo(SHORT_HELP, nl=False)


@cli.command(short_help="Train on Tiny Shakespeare for two minutes, then read.")
@click.option("--minutes", type=float, default=2.0, show_default=True, help="How long to train.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/demo-N]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the training.")
@_common
def demo(minutes: float, out: Path | None, seed: int, as_json: bool, quiet: bool) -> None:
    """The main job in one go: train on Tiny Shakespeare, then type out what the model writes.

    \b
    textlstm demo
    textlstm demo --minutes 10
    """
    started = time.perf_counter()
    from textlstm.run import Request, free_run_folder

    out = free_run_folder("demo") if out is None else out
    request = Request(
        ["tiny-shakespeare"], out, minutes, settings={"seed": seed}, command=_command_line(), started=started
    )
    result = _train(request, quiet)
    if as_json:
        _print_json(result.to_dict())
        return
    from textlstm.model import Model

    click.echo(f"\nThe model is {result.model}. It writes:\n")
    model = Model.load(result.model)
    pace = 90.0 if sys.stdout.isatty() else 0.0
    _type_out(model.stream("", max_chars=700, temperature=0.7, seed=1), pace)
    click.echo(
        f'\n\nMore of it:  textlstm generate {_quoted(out)} "ROMEO:"\nYour text:   textlstm train FILE --minutes 5'
    )


def _train(request: Any, quiet: bool) -> Any:
    from textlstm.api import require_torch

    require_torch()
    if not quiet:
        with contextlib.suppress(BrokenPipeError):
            click.echo("starting ...", err=True)
    from textlstm.run import train
    from textlstm.view import choose_view

    with choose_view(quiet) as view:
        return train(request, view)


@cli.command(short_help="Train a model on your own text.")
@click.argument("sources", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/NAME-N, never overwritten]")
@click.option("--minutes", type=float, help="Plan a run that fits this time.  [default: 3]")
@click.option("--steps", type=int, help="Train this many optimizer steps instead.")
@click.option("--epochs", type=float, help="Train this many passes over the text instead.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Settings of the original program.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="Settings of a search's best.json or a run's config.json."
)
@click.option("--init-from", help="Begin from this model; its vocabulary and shape are kept.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out from its last whole checkpoint.")
@click.option("--resume-step", type=int, help="With --resume: go on from the checkpoint of this step instead.")
@click.option("--time-to-loss", type=float, help="Stop when the held-out text costs this many nats per character.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to train.")
@click.option(
    "--deterministic", is_flag=True, help="On a GPU: the same bits every time; a processor gives them anyway."
)
@click.option("--processes", type=click.IntRange(min=1), default=1, help="Train with so many processes on this host.")
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    default=2,
    help="With --processes or --host: begin again so often from the last checkpoint.",
)
@click.option("--host", metavar="K/N", help="This is host K of N that train together; give it on each of them.")
@click.option("--meet", metavar="ADDRESS:PORT", help="With --host: where the first host is found by the others.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes that encode a long text.  [default: the cores, at most 8]"
)
@options_of(CorpusConfig)
@options_of(ModelConfig, skip=["boundary"])
@options_of(TrainConfig, skip=["steps"])
@_common
def train(as_json: bool, quiet: bool, **values: Any) -> None:
    """Train a model on SOURCES: files, folders, glob patterns, '-', or named corpora.

    Reads .txt .md .jsonl .csv (plain, .gz or .zst), .parquet, and any other file as plain text, of any length. The
    run folder holds the model, checkpoints, log, samples and a picture of the loss, and can be given wherever a model
    can.

    \b
    textlstm train my-novel.txt                          about three minutes, everything chosen for you
    textlstm train notes/ 'letters/**/*.txt' --minutes 20
    cat *.log | textlstm train - --minutes 1
    textlstm train tiny-shakespeare --out runs/bard --minutes 30
    textlstm train --resume --out runs/bard              after Ctrl-C or a crash
    textlstm train sonnets.txt --init-from shakespeare   fine-tune
    textlstm train big/ --processes 4 --minutes 600      several processes
    textlstm train big/ --out RUN --host 1/2 --meet 10.0.0.1:29500    and 2/2 on the second host
    """
    started = time.perf_counter()
    from textlstm.run import Request

    stored = {} if (path := values.pop("config")) is None else read_settings(path)
    settings = {**given(CorpusConfig, values), **given(ModelConfig, values)}
    steps = values.pop("steps")
    settings |= given(TrainConfig, values)
    if steps is None and values["minutes"] is None and values["epochs"] is None:
        steps = stored.get("steps")
    settings = {k: v for k, v in stored.items() if k != "steps"} | settings
    if values["workers"] is None:
        values["workers"] = min(8, os.cpu_count() or 1)
    processes, restarts = values.pop("processes"), values.pop("restarts")
    host = _host(values.pop("host"), values.pop("meet"))
    request = Request(steps=steps, settings=settings, command=_command_line(), started=started, **values)
    if (processes > 1 or host is not None) and "WORLD_SIZE" not in os.environ:
        sys.exit(_launch(request, processes, restarts, host))
    if host is not None:
        host.place()
    rank = int(os.environ.get("RANK", "0"))
    result = _train(request, quiet or rank > 0)
    if rank > 0:
        return
    report = result.to_dict()
    target = result.config["asked"].get("time_to_loss")  # also where a resumed run was begun with one
    if target is None:
        del report["seconds_to_loss"]
    if as_json:
        _print_json(report)
    else:
        click.echo(
            f"model: {result.model}\n"
            f'write with it: textlstm generate {_quoted(result.model.parent)} "Once upon a time"'
        )
    if target is not None and result.seconds_to_loss is None:
        click.echo(f"the held-out text never cost as little as {target:g} nats per character", err=True)
        sys.exit(1)


def _host(place: str | None, meeting: str | None) -> Host | None:
    from textlstm.trainer.launch import Host

    if place is None and meeting is None:
        return None
    if place is None or meeting is None:
        raise click.UsageError("--host and --meet go together")
    return Host.parse(place, meeting)


def _launch(request: Request, processes: int, restarts: int, host: Host | None) -> int:
    from textlstm.run import run_folder
    from textlstm.trainer.launch import launch

    arguments = sys.argv[1:]
    if host is None:
        arguments = [*arguments, "--out", str(run_folder(request))]
    elif request.out is None:
        raise click.UsageError("several hosts need --out RUN")
    return launch(processes, arguments, restarts, host)


@cli.command(short_help="Search for the best options for your text.")
@click.argument("sources", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the search.  [default: runs/NAME-tune-N]")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="How many, in all.")
@click.option("--minutes", type=float, help="Train each trial about this long.")
@click.option("--flops", type=float, help="Train each trial for so many floating-point operations instead.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to train.")
@click.option("--prune/--no-prune", default=True, show_default=True, help="End trials early that fall behind.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes that encode a long text.  [default: the cores, at most 8]"
)
@options_of(CorpusConfig)
@options_of(ModelConfig, skip=["boundary"])
@options_of(TrainConfig, skip=["steps"])
@_common
def tune(sources: tuple[str, ...], as_json: bool, quiet: bool, **values: Any) -> None:
    """Search for the best options for SOURCES: short trainings of the same compute, one after the other.

    Sizes, lanes, learning rate, weight decay and dropouts are searched, but for those that you give. Trials are judged
    on the development part; the held-out text is not looked at. The same command goes on with a search that was
    stopped, or adds --trials to it, if --out names its folder. With --flops the same seed gives the same trials. What
    is best in two minutes is not best in an hour: give trials as much as you can of the time you mean to train for.

    
    textlstm tune my-novel.txt --minutes 2 --out runs/search
    textlstm tune my-novel.txt --minutes 2 --out runs/search --trials 50       goes on
    textlstm tune tiny-shakespeare --flops 2e13 --vocab-size 1024 --num-layers 2
    textlstm train my-novel.txt --config runs/search/best.json --minutes 30
    """
    from textlstm.api import require_torch

    require_torch()
    from textlstm.tune import Search
    from textlstm.tune import tune as search
    from textlstm.tune.show import choose_tune_view, show_found

    settings = {**given(CorpusConfig, values), **given(ModelConfig, values), **given(TrainConfig, values)}
    if values["workers"] is None:
        values["workers"] = min(8, os.cpu_count() or 1)
    with choose_tune_view(quiet) as view:
        found = search(Search(sources, settings=settings, **values), view)
    if as_json:
        _print_json(found.to_dict())
    else:
        show_found(found)
    if found.best is None:
        sys.exit(1)


@cli.command(short_help="Write with a model.")
@click.argument("model")
@click.argument("prompt", default="")
@click.option("--max-tokens", type=int, help="End after this many tokens.  [default: 500]")
@click.option("--max-chars", type=int, help="End after this many characters.")
@click.option("--stop", multiple=True, help="End before this string; may be given several times.")
@click.option("--stop-at-end", is_flag=True, help="End where the model ends the document.")
@click.option("--seed", type=int, help="Seed of the text; the same seed gives the same text.  [default: a new one]")
@click.option("--n", type=click.IntRange(min=1), default=1, help="Write this many texts.")
@click.option("--copy-source", help="Text, file or corpus in which copied runs are looked for, and reported.")
@click.option(
    "--max-copy",
    type=click.IntRange(min=1),
    help="Write no verbatim run of the copy-source longer than this.  [default source: what a run was trained on]",
)
@click.option("--no-echo", is_flag=True, help="Do not repeat the prompt; --json never does.")
@click.option(
    "--typewriter",
    type=click.FloatRange(min=0),
    is_flag=False,
    flag_value=40.0,
    default=0.0,
    help="Characters per second.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="What computes.  [default: int8, or onnx where its kernel does not run]",
)
@click.option("--threads", type=click.IntRange(min=1), help="Cores that one step may use; int8 takes one.")
@options_of(SamplingConfig)
@click.option("--choices", help="Write one of these texts: a,b,c, or with quotation marks as in a .csv file.")
@options_of(PatternConfig, skip=["choices"])
@click.option("--beams", type=int, help="Look for the likeliest text by beam search, with this many beginnings.")
@click.option("--interactive", "-i", is_flag=True, help="Write together: type texts and commands, /help lists them.")
@_learning
@click.option("--best-of", type=int, help="Write this many texts and keep the likeliest, by the mean over its tokens.")
@_common
def generate(model: str, prompt: str, as_json: bool, quiet: bool, **values: Any) -> None:
    """Write with MODEL, a model file, a run folder or a model that ships; PROMPT is continued ('-' reads it).

    \b
    textlstm generate shakespeare
    textlstm generate runs/my-text-1 "Once upon a time" --max-chars 400 --temperature 0.7
    textlstm generate shakespeare "HAMLET:" --stop "\\n\\n" --n 3 --seed 1
    textlstm generate shakespeare --regex "[A-Z][a-z]+, my (lord|lady|dear [a-z]+)[.!]"
    textlstm generate shakespeare --template "Dear {name:[A-Z][a-z]+},\\nI {what}\\nYours, {who:[A-Z][a-z]+}"
    textlstm generate shakespeare --blanks "The q___k br___ fox" --beams 32
    textlstm generate shakespeare --interactive --learn
    """
    from textlstm.generation import Limits
    from textlstm.generation.search import check_search
    from textlstm.model import Model

    sampling = SamplingConfig.from_dict(given(SamplingConfig, values))
    pattern = _pattern(given(PatternConfig, values))
    beams, best_of = values["beams"], values["best_of"]
    check_search(values["n"], beams, best_of, sampling)
    stops = tuple(stop.replace("\\n", "\n") for stop in values["stop"])
    ends = {"stop": stops, **{name: values[name] for name in ("max_tokens", "max_chars", "stop_at_end")}}
    limits = Limits(**ends)
    prompt = _prompt(prompt)
    seed = int.from_bytes(os.urandom(4), "little") if values["seed"] is None else values["seed"]
    loaded = Model.load(model, values["engine"], values["threads"])
    index = _copy_index(model, values, quiet)
    guard = loaded.copy_guard(values["max_copy"], index)
    if values["interactive"]:
        if as_json or values["n"] > 1 or beams is not None or best_of is not None:
            raise click.UsageError(
                "--interactive writes one text at a time: leave out --json, --n, --beams, --best-of"
            )
        loaded, learn = _learner(loaded, values, quiet)
        copies = {"max_copy": values["max_copy"], "copy_source": index}
        _converse(loaded, prompt, sampling, {**ends, **pattern.to_dict(), **copies}, seed, quiet, learn)
        return
    if values["learn"]:
        raise click.BadParameter("goes with --interactive: it learns from what you write", param_hint="--learn")
    engine = loaded.engine
    number = values["n"] if best_of is None else best_of
    writers = loaded.writers(number, sampling, limits, seed, loaded.pattern(pattern), guard)
    started, first = time.perf_counter(), None
    if beams is None and best_of is None:
        pieces = loaded.write(prompt, writers)
    else:
        found = loaded.search(prompt, writers[0], beams, values["n"]) if beams is not None else None
        writers = loaded.write_best(prompt, writers, values["n"]) if found is None else found
        pieces = iter([(0, writers[0].text)])
    shown = 0
    if not as_json:
        _heading(0, len(writers), prompt, values["no_echo"])
    for number, text in itertools.chain(pieces, [(-1, "")]):  # once more at the end: a last piece may be empty
        first = time.perf_counter() - started if first is None and text else first
        if number == shown and not as_json:
            _type_out([text], values["typewriter"])
        while not as_json and shown + 1 < len(writers) and writers[shown].reason is not None:
            shown += 1  # the next text was written meanwhile: show what there is of it
            _heading(shown, len(writers), prompt, values["no_echo"])
            _type_out([writers[shown].text], values["typewriter"])
    seconds = time.perf_counter() - started
    tokens = sum(writer.tokens for writer in writers)
    novelty = [] if index is None else [index.novelty(writer.text) for writer in writers]
    if as_json:
        _print_json(
            {
                "texts": [writer.text for writer in writers],
                "tokens": tokens,
                "seconds": seconds,
                "tokens_per_second": tokens / seconds if seconds else 0.0,
                "first_token_seconds": first,
                "engine": engine.name,
                "seed": seed,
                **({} if index is None else {"novelty": [one.to_dict() for one in novelty]}),
            }
        )
    else:
        click.echo()
        for one in novelty if not quiet else []:
            click.echo(_copied(one), err=True)


def _prompt(given: str) -> str:
    """The prompt itself, or standard input for "-"; bytes that are no text would come out as others."""
    data, what = (sys.stdin.buffer.read(), "standard input") if given == "-" else (os.fsencode(given), "PROMPT")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"{what}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8 text; a prompt must be"
        ) from error


def _suffix_index(source: str, quiet: bool) -> Any:
    return _index_of([source], CorpusConfig(), quiet)


def _copy_index(model: str, values: dict[str, Any], quiet: bool) -> Any:
    """The index of the copy-source; without one, where copies are limited, of the text a run was trained on."""
    from textlstm.registry import find_model, training_text

    if values["copy_source"] is not None:
        return _suffix_index(values["copy_source"], quiet)
    found = None if values["max_copy"] is None else training_text(find_model(model))
    return None if found is None else _index_of(*found, quiet)


def _index_of(sources: Sequence[str], config: CorpusConfig, quiet: bool) -> Any:
    from textlstm.corpus import read_sources
    from textlstm.novelty import SuffixIndex

    loaded = read_sources(sources, config, _notice(quiet))
    return SuffixIndex.of_texts(document.text for document in loaded.documents)


def _copied(novelty: Any) -> str:
    shares = ", ".join(f"{share:.1%} in runs of {length} or more" for length, share in novelty.copied.items())
    return f"longest verbatim run {novelty.longest} characters; of all characters {shares}"


def _pattern(values: dict[str, Any]) -> PatternConfig:
    """The pattern that was asked for; in texts \\n is a line break, as in a stop string."""
    import csv

    texts = {k: v.replace("\\n", "\n") if isinstance(v, str) and k != "regex" else v for k, v in values.items()}
    if "choices" in texts:
        texts["choices"] = [text for row in csv.reader([texts["choices"]]) for text in row]
        if not texts["choices"]:
            raise click.BadParameter("there is nothing to choose from", param_hint="--choices")
    return PatternConfig.from_dict(texts)


def _converse(
    model: Any, prompt: str, sampling: SamplingConfig, options: dict[str, Any], seed: int, quiet: bool,
    learn: LearnConfig | None,
) -> None:  # fmt: skip
    from textlstm.interactive import Conversation, answer, converse, read_stdin, terminal_reader

    if all(options[name] is None for name in ("max_tokens", "max_chars")):
        options["max_chars"] = 300
    session = model.session(seed, **sampling.to_dict())
    find = functools.partial(_suffix_index, quiet=quiet)
    conversation = Conversation(model, session, options, index=find, learn=learn)
    in_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if in_terminal and not quiet:
        click.echo("Type a text and the model goes on; /help lists the commands, Ctrl-D leaves.", err=True)

    def show(text: str) -> None:
        click.echo(text, nl=False)

    if prompt:
        show(click.style(prompt, bold=True))
        answer(conversation, prompt, show)
    converse(conversation, terminal_reader(conversation) if in_terminal else read_stdin, show)


def _heading(number: int, of: int, prompt: str, no_echo: bool) -> None:
    if of > 1:
        click.echo(("" if number == 0 else "\n\n") + click.style(f"--- {number + 1} of {of} ---", dim=True))
    if prompt and not no_echo:
        click.echo(click.style(prompt, bold=True), nl=False)


def _type_out(pieces: Any, characters_per_second: float) -> None:
    """Prints pieces of text as they come, at a typewriter's pace if one is asked."""
    for piece in pieces:
        if not characters_per_second:
            click.echo(piece, nl=False)
            continue
        for character in piece:
            click.echo(character, nl=False)
            time.sleep(1 / characters_per_second)


@cli.command(short_help="Score texts: nats, bits, perplexity.")
@click.argument("model")
@click.argument("files", nargs=-1, required=True)
@click.option("--protocol", default="stream", show_default=True, help="stream, or cold-N for windows of N tokens.")
@click.option("--lanes", type=click.IntRange(min=1), default=1, help="Read in this many lanes, each from its start.")
@click.option("--copy-source", help="Text, file or corpus in which copied runs are looked for, and reported.")
@click.option(
    "--report", "detailed", is_flag=True, help="Also lines, words, calibration, position, other compressors."
)
@click.option("--csv", type=click.Path(path_type=Path), help="Write a row for each line of the text.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as one HTML file.")
@click.option("--context", help="Text that is read first and not scored: the end of the training text, say.")
@click.option("--engine", type=click.Choice(ENGINES), default="onnx", show_default=True, help="What computes.")
@_learning
@options_of(CorpusConfig, skip=["val_fraction", "val_chars", "val", "dev_fraction", "max_val_chars", "max_dev_chars"])
@_common
def score(
    model: str, files: tuple[str, ...], protocol: str, lanes: int, context: str | None, copy_source: str | None,
    detailed: bool, csv: Path | None, html: Path | None, engine: str, as_json: bool, quiet: bool, **reading: Any,
) -> None:  # fmt: skip
    """Score FILES with MODEL: nats and bits per character, bits per byte, perplexity.

    Files are read as `train` reads them: .txt .md .jsonl .csv, plain or .gz, folders, patterns, '-' and named
    corpora; the files of a folder or pattern are told one by one. Weights are fixed and every token counts, the first
    included. Each document is read from the model's start, or after the context.

    With --learn the weights take a step after each segment that was predicted, through all documents of a file; the
    next file, and the model, begin with the trained weights again.

    \b
    textlstm score shakespeare my-sonnet.txt
    textlstm score runs/my-text-1 other.txt --protocol cold-256 --json
    textlstm score shakespeare my-sonnet.txt --report --html report.html --csv lines.csv
    textlstm score runs/my-text-1 chapter.txt --learn
    """
    from textlstm import metrics
    from textlstm.corpus import read_sources
    from textlstm.model import Model
    from textlstm.report import ScoreView, output
    from textlstm.scoring.show import show, write_files

    _check_outs(csv, html)
    protocol = _lanes_protocol(protocol, lanes, context)
    if reading["learn"] and protocol != "stream":
        raise click.BadParameter("goes along one text: leave out --protocol and --lanes", param_hint="--learn")
    config = CorpusConfig.from_dict(given(CorpusConfig, reading))

    def read(source: str) -> Sequence[Document]:
        return read_sources([source], config, _notice(quiet)).documents

    source = reading["learn_from"]
    loaded, learn = _learner(Model.load(model, engine), reading, quiet)
    before = "" if context is None else "".join(document.text for document in read(context))
    texts = [row for name in files for row in _by_file(name, read(name))]
    index = None if copy_source is None else _suffix_index(copy_source, quiet)
    wanted = detailed or csv is not None or html is not None
    with ScoreView(quiet) as view:
        scores = [(name, loaded.score(text, protocol, before, view.progress(name), learn)) for name, text in texts]
        report = loaded.score_report(texts, before, view.progress("report"), learn) if wanted else None
    total = metrics.total([one for _, one in scores])
    novelty = [] if index is None else [(name, index.novelty("\n".join(text))) for name, text in texts]
    if report is not None:
        write_files(report, csv, html, f"{Path(model).name} reads {', '.join(files)}")
    if as_json:
        answer = {**total.to_dict(), "model": model, **({} if report is None else report.to_dict())}
        if learn is not None:
            answer["learn"] = {**learn.to_dict(), "statistics": _statistics(loaded, source)}
        if index is not None:
            answer["novelty"] = [{"file": name, **one.to_dict()} for name, one in novelty]
        if len(scores) > 1:
            answer["files"] = [{"file": name, **one.to_dict()} for name, one in scores]
        _print_json(answer)
        return
    view.table(scores, total)
    if report is not None:
        click.echo()
        show(report, output())
    for name, one in novelty:
        click.echo(f"{name}: {_copied(one)}")


def _by_file(source: str, documents: Iterable[Document]) -> list[tuple[str, list[str]]]:
    """A source and its texts; of a folder or pattern each file."""
    from textlstm.corpus import CORPORA

    if Path(source).is_file() or source == "-" or source in CORPORA:
        return [(source, [document.text for document in documents])]
    found: dict[str, list[str]] = {}
    for document in documents:
        place, _, number = document.name.rpartition(":")  # a record has its line behind the name of its file
        found.setdefault(place if number.isdecimal() else document.name, []).append(document.text)
    return list(found.items())


def _lanes_protocol(protocol: str, lanes: int, context: str | None) -> str:
    if lanes == 1:
        return protocol
    if protocol != "stream":
        raise click.BadParameter("works with the protocol stream only", param_hint="--lanes")
    if context is not None:
        raise click.BadParameter("reads each lane from its own start: leave out --context", param_hint="--lanes")
    return f"stream-{lanes}"


def _check_outs(*outs: Path | None) -> None:
    for out in outs:
        if out is not None:
            _check_out("-", str(out), False)


@cli.command(short_help="Look inside: cells, gates, memory, surprise.")
@click.argument("model")
@click.argument("files", nargs=-1)
@click.option("--held-out", help="Text that judges the cells.  [default: the last third of what is read]")
@click.option("--chars", type=click.IntRange(min=200), default=90_000, show_default=True, help="Read at most so much.")
@click.option("--colour", default="surprise", show_default=True, help="Colour text by surprise, or a cell: c1.204.")
@click.option("--html", type=click.Path(path_type=Path), help="Write one interactive HTML file.")
@click.option("--png", type=click.Path(path_type=Path), help="Draw a picture.")
@_common
def inspect(
    model: str, files: tuple[str, ...], held_out: str | None, chars: int, colour: str, html: Path | None,
    png: Path | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Look inside MODEL while it reads FILES: which cells mean something, how long they remember, what surprises it.

    Without files it is the end of the text that the model was trained on, and the beginning of what was held out then;
    where that text is not at hand, the model reads what it writes itself. Cells and thresholds are chosen on the first
    part of the text, and judged on the held-out one.

    \b
    textlstm inspect shakespeare
    textlstm inspect shakespeare my-play.txt --html inside.html
    textlstm inspect runs/my-text-1 my-text.txt --held-out other.txt --colour c1.204
    """
    from textlstm.corpus import read_sources
    from textlstm.inspection.show import show, values_of, write_html, write_png
    from textlstm.model import Model
    from textlstm.report import ScoreView, output

    def read(sources: Sequence[str]) -> str:
        documents = read_sources(sources, CorpusConfig(), _notice(quiet)).documents
        return "\n".join(document.text for document in documents)

    _check_outs(html, png)
    loaded = Model.load(model)
    with ScoreView(quiet) as view:
        told = view.progress("looking inside")
        text, judge = (read(files)[:chars], None) if files else _own_texts(loaded, model, chars, _notice(quiet))
        judge = judge if held_out is None else read([held_out])[:chars]
        found = loaded.inspect(text, judge, told)
    values_of(found, colour)
    if html is not None:
        write_html(found, html, f"Inside {Path(model).name}")
    if png is not None:
        write_png(found, png, f"Inside {Path(model).name}")
    if as_json:
        _print_json({"model": model, **found.to_dict()})
    else:
        show(found, colour, output())


def _own_texts(loaded: Any, name: str, chars: int, notice: Callable[[str], None]) -> tuple[str, str | None]:
    """The end of a model's training text and the beginning of its held-out one, or what it writes itself."""
    from textlstm.bench.quality import training_corpus
    from textlstm.corpus import Part
    from textlstm.registry import find_model

    corpus = None
    try:
        corpus = training_corpus(find_model(name), loaded.card, notice)
    except TextLSTMError as error:
        notice(f"the text that the model was trained on is not at hand: {error}")
    if corpus is None or not corpus.val.num_chars or not isinstance(corpus.train, Part):
        notice("the model reads what it writes itself")
        return loaded.generate("", max_chars=min(chars, 12_000), seed=0), None
    held_out = corpus.val.documents
    if corpus.val.continues and len(held_out) > 1:  # in the middle of a document nobody knows which quotes are open
        held_out = held_out[1:]
    judge = "".join(document.text for document in held_out)[: chars // 3]
    return _end_of((*corpus.train.documents, *corpus.dev.documents), chars * 2 // 3), judge


def _end_of(documents: Sequence[Document], chars: int) -> str:
    """The end of some documents: the last whole ones that it has room for, else of the last one."""
    left, found = chars, ""
    for document in reversed(documents):
        left -= len(document.text)
        if left < 0:
            break
        found = document.text + found
    return found or "".join(document.text for document in documents)[-chars:]


_SOURCE = click.Path(exists=True, dir_okay=False, allow_dash=True)


@cli.command(name="compress", short_help="Compress any file with a model.")
@click.argument("model")
@click.argument("source", metavar="IN", type=_SOURCE)
@click.argument("out")
@click.option("--lanes", type=click.IntRange(1, 4096), default=1, help="Parts side by side: faster.  [default: 1]")
@_learning
@_common
def compress_(model: str, source: str, out: str, lanes: int, as_json: bool, quiet: bool, **learning: Any) -> None:
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

    _check_out(source, out, as_json)
    if learning["learn"] and lanes > 1:
        raise click.BadParameter("goes along one text: leave out --lanes", param_hint="--learn")
    loaded, learn = _learner(Model.load(model), learning, quiet)
    data = _read_bytes(source)
    started = time.perf_counter()
    with ScoreView(quiet) as view:
        done = loaded.compress(data, lanes, view.progress("compressing"), learn)
    seconds = time.perf_counter() - started
    _write_bytes(out, done.data)
    report = {
        "bytes": len(data), "compressed_bytes": len(done.data), "method": done.method,
        "bits_per_byte": 8 * len(done.data) / len(data) if data else None, "tokens": done.tokens, "lanes": done.lanes,
        "seconds": seconds, "model": model, "identity": loaded.coder.identity,
    }  # fmt: skip
    if as_json:
        _print_json(report)
    elif not quiet:
        share = f", {report['bits_per_byte']:.3f} bits per byte" if data else ""
        click.echo(f"{len(data):,} bytes -> {len(done.data):,}{share}; method {done.method}", err=True)


@cli.command(name="decompress", short_help="Give back what compress was given.")
@click.argument("source", metavar="IN", type=_SOURCE)
@click.argument("out")
@click.option("--model", help="The model it was written with.  [default: found among those that ship and the cache]")
@click.option("--learn-from", help="As it was given to compress.")
@_common
def decompress_(source: str, out: str, model: str | None, learn_from: str | None, as_json: bool, quiet: bool) -> None:
    """Give back in OUT the file that was compressed into IN; '-' is standard input or output.

    A damaged file, another model, or a machine that computes differently is an error, and nothing is written.

    \b
    textlstm decompress sonnets.tlz sonnets.txt
    textlstm decompress chapter.tlz chapter.txt --model runs/my-text-1
    """
    from textlstm.coding import Coder, decompress
    from textlstm.model import Model
    from textlstm.registry import find_model_by_identity
    from textlstm.report import ScoreView

    def find(identity: str) -> Coder:
        file = find_model_by_identity(identity) if model is None else None
        loaded = Model.load(str(model)) if file is None else Model(file)
        coder: Coder = _learner(loaded, {"learn_from": learn_from}, True, learn_from is not None)[0].coder
        return coder

    _check_out(source, out, as_json)
    data = _read_bytes(source)
    started = time.perf_counter()
    with ScoreView(quiet) as view:
        content = decompress(data, find, view.progress("decompressing"))
    _write_bytes(out, content)
    if as_json:
        seconds = time.perf_counter() - started
        _print_json({"compressed_bytes": len(data), "bytes": len(content), "seconds": seconds})


def _check_out(source: str, out: str, as_json: bool) -> None:
    if out == "-":
        if as_json:
            raise click.BadParameter("would mix with the data on standard output", param_hint="--json")
    elif source != "-" and Path(out).exists() and Path(out).samefile(source):
        raise click.BadParameter("is the same file as IN", param_hint="OUT")
    elif Path(out).is_dir() or not Path(out).parent.is_dir():
        raise click.BadParameter(f"{out} is a folder, or lies in none that exists", param_hint="OUT")


def _read_bytes(source: str) -> bytes:
    return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()


def _write_bytes(out: str, data: bytes) -> None:
    from textlstm.files import write_atomically

    if out == "-":
        sys.stdout.buffer.write(data)
    else:
        write_atomically(Path(out), data)


@cli.command(name="import", short_help="Convert a checkpoint of the original program.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--corpus", help="Of the character version: the text it was trained on, for its table of characters.")
@click.option(
    "--dtype", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True, help="Of the matrices."
)
@_common
def import_(checkpoint: Path, out: Path, corpus: str | None, dtype: Any, as_json: bool, quiet: bool) -> None:
    """Turn a CHECKPOINT of the original one-file program (a .pt state dict) into a model file OUT.

    \b
    textlstm import model.pt original.safetensors
    textlstm import char-model.pt original-char.safetensors --corpus data.txt
    """
    from textlstm.api import require_torch

    require_torch()
    from textlstm.legacy import import_checkpoint

    params = import_checkpoint(checkpoint, out, corpus, dtype)
    if as_json:
        _print_json({"model": str(out), "params": params})
    else:
        click.echo(f"{out}: {params:,} parameters")


@cli.command(short_help="Hand a model on: one web page, ONNX, or transformers.")
@click.argument("model")
@click.option("--to", type=click.Choice(["html", "onnx", "transformers"]), required=True, help="The format.")
@click.argument("out", type=click.Path(path_type=Path))
@_common
def export(model: str, to: str, out: Path, as_json: bool, quiet: bool) -> None:
    """Write a MODEL as something that works without textlstm.

    html is one file that opens from disk in any browser and writes there, with no network. onnx is a folder with two
    graphs, a step and a sequence, with the state going in and out. transformers is a folder for Hugging Face's
    library, and can be given wherever a model can.

    \b
    textlstm export shakespeare --to html shakespeare.html
    textlstm export runs/my-novel-1 --to onnx my-novel-onnx
    textlstm export shakespeare --to transformers shakespeare-hf
    """
    from textlstm.export import export as write
    from textlstm.model_file import read_model
    from textlstm.registry import find_model

    write(read_model(find_model(model)), to, out)
    files = [out] if out.is_file() else sorted(out.iterdir())
    size = sum(file.stat().st_size for file in files)
    if as_json:
        _print_json({"model": model, "to": to, "out": str(out), "bytes": size, "files": [str(f) for f in files]})
    else:
        click.echo(f"{out}: {size:,} bytes")


@cli.command(short_help="Show what is in a model file.")
@click.argument("model")
@_common
def info(model: str, as_json: bool, quiet: bool) -> None:
    """Show what is in a MODEL file: its shape, where it comes from, what it scores.

    \b
    textlstm info shakespeare
    """
    from textlstm.model_file import read_model
    from textlstm.registry import find_model
    from textlstm.report import model_report, show_model

    path = find_model(model)
    report = model_report(path, read_model(path))
    if as_json:
        _print_json(report)
    else:
        show_model(report)


@cli.command()
@_common
def models(as_json: bool, quiet: bool) -> None:
    """List the models that ship with textlstm.

    \b
    textlstm models
    """
    from textlstm.model_file import read_model
    from textlstm.registry import shipped_models
    from textlstm.report import model_report, show_models

    reports = [{"name": name, **model_report(path, read_model(path))} for name, path in shipped_models().items()]
    if as_json:
        keys = ("name", "params", "bytes", "card")
        _print_json({"models": [{key: report[key] for key in keys} for report in reports]})
    else:
        show_models(reports)


@cli.command()
@_common
def corpora(as_json: bool, quiet: bool) -> None:
    """List the corpora that can be named instead of a file.

    \b
    textlstm corpora
    """
    from textlstm.corpus import CORPORA

    if as_json:
        rows = [{"name": c.name, "summary": c.summary, "licence": c.licence} for c in CORPORA.values()]
        _print_json({"corpora": rows})
        return
    width = max(map(len, CORPORA))
    for corpus in CORPORA.values():
        click.echo(f"{corpus.name:<{width}}  {corpus.summary} ({corpus.licence})")


@cli.command(short_help="Serve models: an OpenAI-compatible API and a web page.")
@click.argument("models", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--api-key", multiple=True, envvar="TEXTLSTM_API_KEY", help="Key that clients must send.")
@click.option("--max-concurrency", type=click.IntRange(min=1), default=256, show_default=True, help="Texts at once.")
@click.option("--max-queue", type=click.IntRange(min=1), default=512, show_default=True, help="Waiting requests.")
@click.option("--max-tokens-limit", type=click.IntRange(min=1), default=100_000, show_default=True, help="For a text.")
@click.option("--max-prompt-tokens", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Each.")
@click.option("--max-n", type=click.IntRange(1, 128), default=16, show_default=True, help="Texts of one prompt.")
@click.option("--max-logprobs", type=click.IntRange(min=0), default=20, show_default=True, help="Likeliest tokens.")
@click.option("--max-body", type=click.IntRange(min=1024), default=1 << 20, show_default=True, help="Bytes.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=600.0, show_default=True, help="Seconds a request has."
)
@click.option("--grace", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds to end in.")
@click.option("--states", type=click.Path(path_type=Path, file_okay=False), help="Folder that keeps the named states.")
@click.option("--cors-origin", multiple=True, help="Web pages of this origin may use the API.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--engine", type=click.Choice(ENGINES), help="What computes.  [default: int8 writes, onnx scores]")
@click.option("--threads", type=click.IntRange(min=1), help="Cores that one step may use.  [default: the engine's]")
@_common
def serve(
    models: tuple[str, ...], api_key: tuple[str, ...], max_tokens_limit: int, cors_origin: tuple[str, ...],
    workers: int, as_json: bool, quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Serve MODELS over HTTP: the API of OpenAI's completions, and a playground for the browser.

    A model's id is its name; ID=MODEL gives it another. Without --api-key any key is accepted. The log on standard
    error has one JSON object per line, and nothing that users wrote; --json prints the address as soon as it is open.

    \b
    textlstm serve shakespeare                           then open http://127.0.0.1:8000
    textlstm serve runs/my-text-1 bard=shakespeare --port 9000
    TEXTLSTM_API_KEY=secret textlstm serve shakespeare --host 0.0.0.0
    """
    from textlstm.api import require_serve

    require_serve()
    from textlstm.registry import named_models
    from textlstm.server.hub import Settings
    from textlstm.server.run import serve as run

    values |= {"api_keys": api_key, "max_tokens": max_tokens_limit, "cors_origins": cors_origin}
    settings = Settings(named_models(models), **values)

    def listening(url: str) -> None:
        if as_json:
            _print_json({"url": url, "models": list(settings.models)})
        else:
            click.echo(f"serving on {url}", err=True)

    run(settings, listening, workers, quiet)


@cli.group(short_help="Measure how good a model is, and how fast it is here.")
def bench() -> None:
    """Measure how good a model is, and how fast it is on this machine.

    \b
    textlstm bench quality shakespeare
    textlstm bench train --processes 1,2
    textlstm bench serve shakespeare --json
    """


def _numbers(text: str, name: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter("give numbers like 1,2,8", param_hint=name)
    return numbers


@bench.command(name="train", short_help="Tokens per second of training, and its share of the machine.")
@click.option("--processes", default="1", show_default=True, help="Numbers of processes, one after the other.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="For each number.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to train.")
@options_of(ModelConfig, skip=["boundary"])
@options_of(TrainConfig, skip=["tokenizer", "steps", "eval_every", "sample_every", "checkpoint_every", "patience"])
@_common
def bench_train(
    processes: str, seconds: float, device: str, as_json: bool, quiet: bool, **values: Any
) -> None:  # fmt: skip
    """Measure training: tokens per second, share of the sgemm peak of the same minute, memory, more processes.

    The tokens are made up, which costs the same; all options of `train` that cost time can be given.

    \b
    textlstm bench train
    textlstm bench train --hidden-size 512 --embed-size 512 --batch-size 24 --processes 1,2 --json
    """
    from textlstm.api import require_torch

    require_torch()
    from textlstm.bench.card import machine_card
    from textlstm.bench.training import measure

    model = ModelConfig.from_dict(given(ModelConfig, values))
    train = TrainConfig.from_dict(given(TrainConfig, values))
    rows = measure(model, train, _numbers(processes, "--processes"), seconds, device, _notice(quiet))
    if as_json:
        settings = {"model": model.to_dict(), "train": train.to_dict(), "params": model.num_params, "device": device}
        _print_json({"benchmark": "train", "machine": machine_card(), **settings, "rows": rows})
    elif quiet:
        for row in rows:
            click.echo(f"{row['processes']} processes: {row['tokens_per_second']:,.0f} tokens/s")


@bench.command(name="serve", short_help="Throughput and waiting of a server under load.")
@click.argument("model", default="shakespeare")
@click.option("--url", help="Measure the server at this address instead of starting one.")
@click.option("--streams", default="1,8,64,256", show_default=True, help="Numbers of streams, one after the other.")
@click.option("--tokens", type=click.IntRange(min=2), default=128, show_default=True, help="Of each text.")
@click.option("--prompt-chars", type=click.IntRange(min=0), default=100, show_default=True, help="Of each prompt.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="For each number.")
@click.option("--api-key", envvar="TEXTLSTM_API_KEY", default="none", help="Of the server at --url.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes of the server.")
@click.option("--engine", type=click.Choice(ENGINES), help="What computes.  [default: int8 writes, onnx scores]")
@click.option("--threads", type=click.IntRange(min=1), help="Cores that one step may use.  [default: the engine's]")
@click.option("--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the numbers here.")
@_common
def bench_serve(
    model: str, url: str | None, streams: str, workers: int, engine: str | None, threads: int | None,
    picture: Path | None, as_json: bool, quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Measure a server of MODEL over HTTP: tokens per second, seconds to the first token, time between tokens.

    Client and server run on this machine; the server is started and ended here, unless --url names one.

    \b
    textlstm bench serve
    textlstm bench serve runs/my-text-1 --streams 1,64 --seconds 10 --json
    textlstm bench serve --url http://127.0.0.1:8000 --plot load.svg
    """
    from textlstm.api import require_serve

    require_serve()
    from textlstm.bench.serving import Load, measure, measure_models, plot
    from textlstm.registry import named_models
    from textlstm.server.hub import Settings

    numbers = _numbers(streams, "--streams")
    load = Load(**values)
    if url is None:
        settings = Settings(named_models([model]), engine=engine, threads=threads, max_queue=2 * max(numbers))
        rows = measure_models(settings, numbers, load, _notice(quiet), workers)
    else:
        rows = measure(url, numbers, load, _notice(quiet))
    if picture is not None:
        plot(rows, picture)
    report = {
        "benchmark": "serve", "model": model, "url": url, "workers": workers, "engine": engine, "threads": threads,
        "rows": rows,
    }  # fmt: skip
    if as_json:
        _print_json({**report, **{k: v for k, v in values.items() if k != "api_key"}})
    elif quiet:
        for row in rows:
            click.echo(f"{row['streams']} streams: {row['tokens_per_second']:,.0f} tokens/s")


@bench.command(name="quality", short_help="One table of scores: protocols, texts, compressors.")
@click.argument("model", default="shakespeare")
@click.argument("texts", nargs=-1)
@click.option(
    "--protocols", default="stream,cold-256,cold-64", show_default=True, help="As in `score`, one after the other."
)
@click.option(
    "--unit",
    type=click.Choice(["nats/char", "bits/char", "bits/byte"]),
    default="nats/char",
    show_default=True,
    help="Of the table.",
)
@click.option("--engine", type=click.Choice(ENGINES), default="onnx", show_default=True, help="What computes.")
@click.option("--write", "into_card", is_flag=True, help="Keep the table in the model's card; `info` shows it.")
@_common
def bench_quality(
    model: str, texts: tuple[str, ...], protocols: str, unit: str, engine: str, into_card: bool, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Score MODEL on TEXTS under several protocols, beside compressors and simple models on the same bytes.

    Without TEXTS: on what was held out when it was trained, which a run folder or a named corpus tells. What learns
    from a text while it reads it, as compressors do, stands in columns of its own; it reads the training text first
    where that is at hand. PPMd and zpaq are in the table if pyppmd and zpaq are installed.

    \b
    textlstm bench quality shakespeare
    textlstm bench quality runs/my-text-1 --write
    textlstm bench quality shakespeare sonnet.txt letter.txt --unit bits/byte --json
    """
    from textlstm.bench.quality import files, scoreboard, splits, training_corpus
    from textlstm.engine import load_engine
    from textlstm.model_file import amend_card, read_model
    from textlstm.registry import find_model
    from textlstm.report import SCOREBOARD, ScoreView, show_scoreboard

    path = find_model(model)
    file = read_model(path)
    corpus = training_corpus(path, file.card, _notice(quiet))
    if corpus is None and not texts:
        raise click.UsageError(f"what was held out of {model} cannot be told from here: name texts to score")
    loaded = load_engine(file, engine)
    with ScoreView(quiet) as view:
        if texts:
            columns = files(texts, file, loaded, corpus, _notice(quiet))
        else:
            assert corpus is not None
            columns = splits(file, loaded, corpus, _notice(quiet))
        board = scoreboard(columns, protocols.split(","), view.progress("scoring"))
    if into_card:
        amend_card(path, {SCOREBOARD: board})
    if as_json:
        _print_json({"benchmark": "quality", "model": model, **board})
        return
    show_scoreboard(board, unit)
    if into_card and not quiet:
        click.echo(f"written into {path}", err=True)


def _command_line() -> str:
    import shlex

    return shlex.join(["textlstm", *sys.argv[1:]])


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
        _leave(str(error), error.exit_code)


def _leave(problem: str, code: int, shown: bool = False) -> NoReturn:
    """Says why a command ends early, with --json also as the last line of standard output, and ends it."""
    if not shown:
        label = "" if code > 128 else click.style("error: ", fg="red", bold=True)
        click.echo(f"{label}{problem}", err=True)
    if "--json" in sys.argv:
        with contextlib.suppress(OSError):
            _print_json({"error": problem, "exit_code": code})
            sys.stdout.flush()
    sys.exit(code)
