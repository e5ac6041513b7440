"""The commands that train: demo, train, tune."""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from textlstm.config import DEVICES, HELD_OUT, PRESETS, CorpusConfig, ModelConfig, TrainConfig, read_settings

if TYPE_CHECKING:
    from textlstm.run import Request
    from textlstm.trainer.launch import Host
from textlstm.cli.options import (
    Option,
    SectionedCommand,
    command_line,
    common_options,
    given,
    options_of,
    print_json,
    quoted,
)
from textlstm.cli.writing import type_out
from textlstm.machine import usable_cores

machine_option = functools.partial(click.option, cls=Option, heading="Processes, hosts, device")


@click.command(short_help="Train on Tiny Shakespeare for two minutes, then read.")
@click.option("--minutes", type=float, default=2.0, show_default=True, help="How long to train.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/demo-N]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the training.")
@common_options
def demo(minutes: float, out: Path | None, seed: int, as_json: bool, quiet: bool) -> None:
    """The main job in one go: train on Tiny Shakespeare, then type out what the model writes.

    \b
    textlstm demo
    textlstm demo --minutes 10
    """
    started = time.perf_counter()
    _load_trainer(quiet)
    from textlstm.run import Request, free_run_folder

    out = free_run_folder("demo") if out is None else out
    request = Request(
        ["corpus:tiny-shakespeare"], out, minutes, settings={"seed": seed}, command=command_line(), started=started
    )
    result = _train(request, quiet)
    if as_json:
        print_json(result.to_dict())
        return
    from textlstm.model import Model

    click.echo(f"\nThe model is {result.model}. It writes:\n")
    model = Model.load(result.model)
    pace = 90.0 if sys.stdout.isatty() else 0.0
    type_out(model.stream("", max_chars=700, temperature=0.7, seed=1), pace)
    click.echo(
        f'\n\nMore of it:  textlstm generate {quoted(out)} "ROMEO:"\n'
        f"Better:      textlstm demo --minutes {max(2.0, 5 * minutes):g}    more time, better text\n"
        "Your text:   textlstm train FILE --minutes 5"
    )


def _load_trainer(quiet: bool) -> None:
    """Imports what trains, which takes some seconds; a terminal says so as long as it lasts."""
    from textlstm.machine import require_torch

    require_torch()
    shown = not quiet and sys.stderr.isatty()
    if shown:
        click.echo("starting ...", nl=False, err=True)
    import textlstm.run  # noqa: F401

    if shown:
        click.echo("\r\x1b[K", nl=False, err=True)  # back to the begin of the line, and clear it


def _train(request: Any, quiet: bool) -> Any:
    from textlstm.run import train
    from textlstm.view import choose_view

    with choose_view(quiet) as view:
        return train(request, view)


@click.command(cls=SectionedCommand, short_help="Train a model on your own text.")
@click.argument("sources", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/NAME-N, never overwritten]")
@click.option("--minutes", type=float, help="Plan a run that fits this time.  [default: 3]")
@click.option("--steps", type=int, help="Train this many optimizer steps instead.")
@click.option("--epochs", type=float, help="Train this many passes over the text instead.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Settings of the original program.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="Settings of a search's best.json or a run's config.json."
)
@click.option("--init-from", help="Begin from this model; its vocabulary, shape and activation penalty are kept.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out from its last whole checkpoint.")
@click.option("--resume-step", type=int, help="With --resume: go on from the checkpoint of this step instead.")
@click.option("--time-to-loss", type=float, help="Stop when the held-out text costs this many nats per character.")
@machine_option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to train.")
@machine_option(
    "--deterministic", is_flag=True, help="On a GPU: the same bits every time; a processor gives them anyway."
)
@machine_option(
    "--processes", type=click.IntRange(min=1), default=1, help="Train with so many processes on this host."
)
@machine_option(
    "--restarts",
    type=click.IntRange(min=0),
    help="With --processes or --host: begin again so often from the last checkpoint.  [default: 2]",
)
@machine_option("--host", metavar="K/N", help="This is host K of N that train together; give it on each of them.")
@machine_option("--meet", metavar="ADDRESS:PORT", help="With --host: where the first host is found by the others.")
@machine_option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that encode a long text.  [default: the cores that may be used, at most 8]",
)
@options_of(CorpusConfig, planned="planned by --minutes, else {default}")
@options_of(ModelConfig, skip=["boundary"], planned="planned by --minutes, else {default}")
@options_of(
    TrainConfig,
    skip=["steps"],
    planned="planned by --minutes, else {default}",
    instead={"precision": "bf16 with AMX, else fp32"},
)
@common_options
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
    started, rank = time.perf_counter(), int(os.environ.get("RANK", "0"))
    _load_trainer(quiet or rank > 0)
    from textlstm.run import Request

    stored = {} if (path := values.pop("config")) is None else read_settings(path)
    settings = {**given(CorpusConfig, values), **given(ModelConfig, values)}
    steps = values.pop("steps")
    settings |= given(TrainConfig, values)
    if steps is None and values["minutes"] is None and values["epochs"] is None:
        steps = stored.get("steps")
    beside = {"steps", *((*HELD_OUT, "max_val_chars") if settings.keys() & set(HELD_OUT) else ())}
    settings = {k: v for k, v in stored.items() if k not in beside} | settings
    if values["workers"] is None:
        values["workers"] = min(8, usable_cores())
    processes, restarts = values.pop("processes"), values.pop("restarts")
    host = _host(values.pop("host"), values.pop("meet"))
    if restarts is not None and processes == 1 and host is None:
        raise click.BadParameter("goes with --processes (2 or more) or --host", param_hint="--restarts")
    request = Request(steps=steps, settings=settings, command=command_line(), started=started, **values)
    if (processes > 1 or host is not None) and "WORLD_SIZE" not in os.environ:
        sys.exit(_launch(request, processes, 2 if restarts is None else restarts, host))
    if host is not None:
        host.place()
        rank = int(os.environ["RANK"])
    result = _train(request, quiet or rank > 0)
    if rank > 0:
        return
    report = result.to_dict()
    target = result.config["asked"].get("time_to_loss")  # also where a resumed run was begun with one
    if target is None:
        del report["seconds_to_loss"]
    if as_json:
        print_json(report)
    else:
        from textlstm.planning import duration

        words = [quoted(word) for word in (result.model.parent, result.prompt) if word]
        click.echo(f"model: {result.model} ({duration(result.seconds / 60)})")
        click.echo(f"write with it: textlstm generate {' '.join(words)}")
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

    words = sys.argv[sys.argv.index("train", 1) + 1 :]
    if host is None:
        words = ["--out", str(run_folder(request)), *words]  # in front, since what stands behind a "--" is no option
    elif request.out is None:
        raise click.UsageError("several hosts need --out RUN")
    return launch(processes, ["train", *words], restarts, host)


#: What a trial takes for an option that is not given, where that is not the default of its field.
_IN_A_TRIAL = {
    **dict.fromkeys(("hidden_size", "num_layers", "batch_size", "seq_len", "lr", "weight_decay"), "searched"),
    **dict.fromkeys(("input_dropout", "layer_dropout", "output_dropout", "weight_dropout"), "searched"),
    "vocab_size": "searched with bpe",
    "embed_size": "as --hidden-size",
    "ema": "spans a twelfth of the trial",
    "activation_penalty": "0.02 of --hidden-size",
    "precision": "bf16 with AMX, else fp32",
}


@click.command(cls=SectionedCommand, short_help="Search for the best options for your text.")
@click.argument("sources", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the search.  [default: runs/NAME-tune-N]")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="How many, in all.")
@click.option("--minutes", type=float, help="Train each trial about this long.")
@click.option("--flops", type=float, help="Train each trial for so many floating-point operations instead.")
@machine_option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to train.")
@click.option("--prune/--no-prune", default=True, show_default=True, help="End trials early that fall behind.")
@machine_option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that encode a long text.  [default: the cores that may be used, at most 8]",
)
@options_of(CorpusConfig)
@options_of(ModelConfig, skip=["boundary"], instead=_IN_A_TRIAL)
@options_of(TrainConfig, skip=["steps"], instead=_IN_A_TRIAL)
@common_options
def tune(sources: tuple[str, ...], as_json: bool, quiet: bool, **values: Any) -> None:
    """Search for the best options for SOURCES: short trainings of the same compute, one after the other.

    Sizes, lanes, learning rate, weight decay and dropouts are searched, but for those that you give. Trials are judged
    on the development part; the held-out text is not looked at. The same command goes on with a search that was
    stopped, or with more --trials adds to it, if --out names its folder. With --flops the same seed gives the same
    trials. What is best in two minutes is not best in an hour: give trials as much as you can of the time you mean to
    train for.

    \b
    textlstm tune my-novel.txt --minutes 2 --out runs/search
    textlstm tune my-novel.txt --minutes 2 --out runs/search --trials 50       goes on
    textlstm tune tiny-shakespeare --flops 2e13 --vocab-size 1024 --num-layers 2
    textlstm train my-novel.txt --config runs/search/best.json --minutes 30
    """
    from textlstm.machine import require_torch

    require_torch()
    from textlstm.tune import Search
    from textlstm.tune import tune as search
    from textlstm.tune.show import choose_tune_view, show_found

    settings = {**given(CorpusConfig, values), **given(ModelConfig, values), **given(TrainConfig, values)}
    if values["workers"] is None:
        values["workers"] = min(8, usable_cores())
    with choose_tune_view(quiet) as view:
        found = search(Search(sources, settings=settings, **values), view)
    if as_json:
        print_json(found.to_dict())
    else:
        show_found(found)
    if found.best is None:
        sys.exit(1)
