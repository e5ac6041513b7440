"""The command that writes: generate."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import click

from textlstm.cli.copying import copied_line, index_of, suffix_index
from textlstm.cli.options import (
    FiniteRange,
    common_options,
    given,
    learner_of,
    learning_options,
    options_of,
    print_json,
    quoted,
)
from textlstm.config import ENGINES, LearnConfig, PatternConfig, SamplingConfig


@click.command(short_help="Write with a model.")
@click.argument("model")
@click.argument("words", metavar="[PROMPT]", nargs=-1)
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
    type=FiniteRange(min=0),
    is_flag=False,
    flag_value=40.0,
    default=0.0,
    help="Characters per second; without a number 40.",
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
@learning_options("what you type", when="with --interactive: ")
@click.option("--best-of", type=int, help="Write this many texts and keep the likeliest, by the mean over its tokens.")
@common_options
def generate(model: str, words: tuple[str, ...], as_json: bool, quiet: bool, **values: Any) -> None:
    """Write with MODEL, a model file, a run folder or a model that ships; PROMPT is continued ('-' reads it).

    \b
    textlstm generate shakespeare
    textlstm generate runs/my-novel-1 "Once upon a time" --max-chars 400 --temperature 0.7
    textlstm generate shakespeare "HAMLET:" --stop "\\n\\n" --n 3 --seed 1
    textlstm generate shakespeare --regex "[A-Z][a-z]+, my (lord|lady|dear [a-z]+)[.!]"
    textlstm generate shakespeare --template "Dear {name:[A-Z][a-z]+},\\nI {what}\\nYours, {who:[A-Z][a-z]+}"
    textlstm generate shakespeare --blanks "The q___k br___ fox" --beams 32
    textlstm generate shakespeare --interactive --learn
    """
    from textlstm.generation import Limits
    from textlstm.generation.search import check_search
    from textlstm.model import Model

    if values["dry_breakers"] is not None:
        values["dry_breakers"] = values["dry_breakers"].replace("\\n", "\n")
    sampling = SamplingConfig.from_dict(given(SamplingConfig, values))
    pattern = _pattern(given(PatternConfig, values))
    beams, best_of = values["beams"], values["best_of"]
    check_search(values["n"], beams, best_of, sampling)
    stops = tuple(stop.replace("\\n", "\n") for stop in values["stop"])
    ends = {"stop": stops, **{name: values[name] for name in ("max_tokens", "max_chars", "stop_at_end")}}
    limits = Limits(**ends)
    prompt = _prompt(words)
    seed = int.from_bytes(os.urandom(4), "little") if values["seed"] is None else values["seed"]
    if values["learn"] and not values["interactive"]:
        raise click.BadParameter("goes with --interactive: it learns from what you type", param_hint="--learn")
    loaded, learn = learner_of(Model.load(model, values["engine"], values["threads"]), values, quiet)
    index = _copy_index(model, values["copy_source"], values["max_copy"] is not None, quiet)
    guard = loaded.copy_guard(values["max_copy"], index)
    if values["interactive"]:
        if as_json or values["n"] > 1 or beams is not None or best_of is not None:
            raise click.UsageError(
                "--interactive writes one text at a time: leave out --json, --n, --beams, --best-of"
            )
        copies = {"max_copy": values["max_copy"], "copy_source": index}
        find = functools.partial(_copy_index, model, limited=True, quiet=quiet)
        _converse(loaded, prompt, sampling, {**ends, **pattern.to_dict(), **copies}, seed, quiet, learn, find)
        return
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
            type_out([text], values["typewriter"])
        while not as_json and shown + 1 < len(writers) and writers[shown].reason is not None:
            shown += 1  # the next text was written meanwhile: show what there is of it
            _heading(shown, len(writers), prompt, values["no_echo"])
            type_out([writers[shown].text], values["typewriter"])
    seconds = time.perf_counter() - started
    tokens = sum(writer.tokens for writer in writers)
    novelty = [] if index is None else [index.novelty(writer.text) for writer in writers]
    if as_json:
        print_json(
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
            click.echo(copied_line(one), err=True)


def _prompt(words: Sequence[str]) -> str:
    """The one word that there may be, or standard input for "-"; bytes that are no text would come out as others."""
    if len(words) > 1:
        raise click.UsageError(f"a prompt of several words needs quotation marks: {quoted(' '.join(words))}")
    given = "".join(words)
    data, what = (sys.stdin.buffer.read(), "standard input") if given == "-" else (os.fsencode(given), "PROMPT")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"{what}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8 text; a prompt must be"
        ) from error


def _copy_index(model: str, source: str | None, limited: bool, quiet: bool) -> Any:
    """The index of the copy-source; without one, where copies are limited, of the text a run was trained on."""
    from textlstm.registry import find_model, training_text

    if source is not None:
        return suffix_index(source, quiet)
    found = training_text(find_model(model)) if limited else None
    return None if found is None else index_of(*found, quiet)


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
    learn: LearnConfig | None, find: Callable[[str | None], Any],
) -> None:  # fmt: skip
    from textlstm.interactive import Conversation, answer, converse, read_stdin, silent_keys, terminal_reader

    if all(options[name] is None for name in ("max_tokens", "max_chars")):
        options["max_chars"] = 300
    model = model if learn is None else model.learning(learn)
    session = model.session(seed, **sampling.to_dict())
    conversation = Conversation(model, session, options, index=find, learn=learn)
    in_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if in_terminal and not quiet:
        click.echo("Type a text and the model goes on; /help lists the commands, Ctrl-D leaves.", err=True)

    def show(text: str) -> None:
        click.echo(text, nl=False)

    # Where stdin is read without a prompt, the terminal alone shows what is typed.
    with silent_keys() if in_terminal else nullcontext():
        if prompt:
            show(click.style(prompt, bold=True))
            answer(conversation, prompt, show)
        converse(conversation, terminal_reader(conversation) if in_terminal else read_stdin, show)


def _heading(number: int, of: int, prompt: str, no_echo: bool) -> None:
    if of > 1:
        click.echo(("" if number == 0 else "\n\n") + click.style(f"--- {number + 1} of {of} ---", dim=True))
    if prompt and not no_echo:
        click.echo(click.style(prompt, bold=True), nl=False)


def type_out(pieces: Any, characters_per_second: float) -> None:
    """Prints pieces of text as they come, at a typewriter's pace if one is asked."""
    for piece in pieces:
        if not characters_per_second:
            click.echo(piece, nl=False)
            continue
        for character in piece:
            click.echo(character, nl=False)
            time.sleep(1 / characters_per_second)
