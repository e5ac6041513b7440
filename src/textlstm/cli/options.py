"""What the commands have in common: options made of configurations, learning, and where words and results go."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from textlstm.config import Config, CorpusConfig, LearnConfig

Command = Callable[..., Any]


class FiniteRange(click.FloatRange):
    """Numbers of a range, without nan and infinity, which click lets pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that a word means."""
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is not a finite number.", param, ctx)


class Option(click.Option):
    """An option that stands under a heading in the help of a `SectionedCommand`."""

    def __init__(self, *arguments: Any, heading: str, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self.heading = heading


class SectionedCommand(click.Command):
    """A command of many options: its help lists them under headings, those without one first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(option, "heading", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


_HEADINGS = {"CorpusConfig": "Text", "ModelConfig": "Network", "TrainConfig": "Training", "LearnConfig": "Learning"}


def options_of(
    config: type[Config],
    skip: Sequence[str] = (),
    planned: str = "{default}",
    instead: Mapping[str, str] = types.MappingProxyType({}),
) -> Callable[[Command], Command]:
    """Options for the fields of a configuration, with their help; what is not given stays None.

    Args:
        config: the configuration.
        skip: fields that are no options of this command.
        planned: what is said of the default where `--minutes` plans it.
        instead: what is said of the default of some fields, by name, in this command.
    """

    def decorate(command: Command) -> Command:
        hints, heading = typing.get_type_hints(config), _HEADINGS.get(config.__name__, "Options")
        for field in reversed(dataclasses.fields(config)):
            if field.name in skip:
                continue
            flag, hint = "--" + field.name.replace("_", "-"), hints[field.name]
            told = planned.format(default=field.default) if field.metadata.get("planned") else field.default
            told = instead.get(field.name, told)
            default = "" if field.default is None else f"  [default: {told}]"
            text = field.metadata["help"]
            text = f"{text}.{default}" if text.startswith("bpe") else f"{text[0].upper()}{text[1:]}.{default}"
            if hint is bool:
                flag = f"{flag}/--no-{flag[2:]}"
                command = click.option(flag, default=None, help=text, cls=Option, heading=heading)(command)
                continue
            kinds = [k for k in (typing.get_args(hint) or [hint]) if k is not types.NoneType]
            choices = field.metadata.get("choices")
            kind = click.Choice(choices) if choices else kinds[0]
            command = click.option(flag, type=kind, help=text, cls=Option, heading=heading)(command)
        return command

    return decorate


def given(config: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """Takes the options of a configuration that were given out of a command's arguments."""
    names = [field.name for field in dataclasses.fields(config)]
    taken = {name: values.pop(name) for name in names if name in values}
    return {name: value for name, value in taken.items() if value is not None}


def common_options(command: Command) -> Command:
    """Options that every command has."""
    command = click.option("--quiet", "-q", is_flag=True, help="Show no progress.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")(command)


def learning_options(what: str, when: str = "") -> Callable[[Command], Command]:
    """Options of a command that can learn.

    Args:
        what: that it learns from.
        when: a condition of all this, in words.
    """

    def decorate(command: Command) -> Command:
        command = options_of(LearnConfig)(command)
        first = f", without {what}: memories read it first, and"
        command = click.option(
            "--learn-from",
            help=f"With --learn: what the model was trained on, a file or corpus{first} gradients are measured on it.",
        )(command)
        learn = f"{when}learn from {what} (dynamic evaluation)."
        return click.option("--learn", is_flag=True, help=learn[0].upper() + learn[1:])(command)

    return decorate


def learner_of(
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
    from textlstm.machine import require_torch

    require_torch()
    config = LearnConfig.from_dict(settings)
    if source is not None:
        from textlstm.corpus import read_sources

        documents = read_sources([source], CorpusConfig(), notice_of(quiet)).documents
        model = model.primed("\n".join(document.text for document in documents))
    where = statistics_of(model, source)
    notice_of(quiet)(f"learning, with statistics of gradients from {where}")
    return model, config


def statistics_of(model: Any, source: str | None) -> str:
    """Where the statistics of gradients come from, in words."""
    if source is not None:
        return source
    return "the model file" if model.has_statistics else "what is read: the model file has none"


def quoted(word: str | Path) -> str:
    """A word of a command as a shell reads it."""
    import shlex

    return shlex.quote(str(word))


def notice_of(quiet: bool) -> Callable[[str], None]:
    """What prints one line to standard error, unless nothing shall be said."""
    return lambda line: None if quiet else click.echo(line, err=True)


def print_json(value: Any) -> None:
    """Prints one JSON object as a line of standard output."""
    click.echo(json.dumps(value, ensure_ascii=True))


def command_line() -> str:
    """The command as it was typed."""
    import shlex

    return shlex.join(["textlstm", *sys.argv[1:]])
