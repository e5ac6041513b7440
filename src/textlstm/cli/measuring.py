"""The commands that measure: bench train, bench serve, bench quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from textlstm.cli.options import FiniteRange, common_options, given, notice_of, options_of, print_json
from textlstm.config import DEVICES, ENGINES, ModelConfig, TrainConfig


@click.group(short_help="Measure how good a model is, and how fast it is here.")
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
@click.option("--seconds", type=FiniteRange(min=0.1), default=5.0, show_default=True, help="For each number.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to train.")
@options_of(ModelConfig, skip=["boundary"])
@options_of(TrainConfig, skip=["tokenizer", "steps", "eval_every", "sample_every", "checkpoint_every", "patience"])
@common_options
def bench_train(
    processes: str, seconds: float, device: str, as_json: bool, quiet: bool, **values: Any
) -> None:  # fmt: skip
    """Measure training: tokens per second, share of the sgemm peak of the same minute, memory, more processes.

    The tokens are made up, which costs the same; all options of `train` that cost time can be given.

    \b
    textlstm bench train
    textlstm bench train --hidden-size 512 --embed-size 512 --batch-size 24 --processes 1,2 --json
    """
    from textlstm.machine import require_torch

    require_torch()
    from textlstm.bench.card import machine_card
    from textlstm.bench.training import counted, measure
    from textlstm.trainer.device import choose_device, usual_precision

    model, settings = ModelConfig.from_dict(given(ModelConfig, values)), given(TrainConfig, values)
    if "precision" not in settings:  # that of `train`
        settings["precision"] = usual_precision(choose_device(device, TrainConfig.precision, lambda line: None))
    train = TrainConfig.from_dict(settings)
    rows = measure(model, train, _numbers(processes, "--processes"), seconds, device, notice_of(quiet))
    if as_json:
        what = {"model": model.to_dict(), "train": train.to_dict(), "params": model.num_params, "device": device}
        print_json({"benchmark": "train", "machine": machine_card(), **what, "rows": rows})
    elif quiet:
        for row in rows:
            click.echo(f"{counted(row['processes'])}: {row['tokens_per_second']:,.0f} tokens/s")


@bench.command(name="serve", short_help="Throughput and waiting of a server under load.")
@click.argument("model", default="shakespeare")
@click.option("--url", help="Measure the server at this address instead of starting one.")
@click.option("--streams", default="1,8,64,256", show_default=True, help="Numbers of streams, one after the other.")
@click.option("--tokens", type=click.IntRange(min=2), default=128, show_default=True, help="Of each text.")
@click.option("--prompt-chars", type=click.IntRange(min=0), default=100, show_default=True, help="Of each prompt.")
@click.option("--seconds", type=FiniteRange(min=0.1), default=5.0, show_default=True, help="For each number.")
@click.option("--api-key", envvar="TEXTLSTM_API_KEY", default="none", help="Of the server at --url.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes of the server.")
@click.option("--engine", type=click.Choice(ENGINES), help="What computes.  [default: int8 writes, onnx scores]")
@click.option("--threads", type=click.IntRange(min=1), help="Cores that one step may use.  [default: the engine's]")
@click.option("--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the numbers here.")
@common_options
def bench_serve(
    model: str, url: str | None, streams: str, workers: int, engine: str | None, threads: int | None,
    picture: Path | None, as_json: bool, quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Measure a server of MODEL over HTTP: tokens per second, seconds to the first token, time between tokens.

    Client and server run on this machine; the server is started and ended here, unless --url names one.

    \b
    textlstm bench serve
    textlstm bench serve runs/my-novel-1 --streams 1,64 --seconds 10 --json
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
        rows = measure_models(settings, numbers, load, notice_of(quiet), workers)
    else:
        rows = measure(url, numbers, load, notice_of(quiet))
    if picture is not None:
        plot(rows, picture)
    report = {
        "benchmark": "serve", "model": model, "url": url, "workers": workers, "engine": engine, "threads": threads,
        "rows": rows,
    }  # fmt: skip
    if as_json:
        print_json({**report, **{k: v for k, v in values.items() if k != "api_key"}})
    elif quiet:
        for row in rows:
            noun = "stream" if row["streams"] == 1 else "streams"
            click.echo(f"{row['streams']} {noun}: {row['tokens_per_second']:,.0f} tokens/s")


@bench.command(name="quality", short_help="One table of scores: protocols, texts, compressors.")
@click.argument("model", default="shakespeare")
@click.argument("texts", nargs=-1)
@click.option(
    "--protocols",
    default="stream,cold-256,cold-64",
    show_default=True,
    help="As in `score`; stream+learn learns as it reads: slow, and needs torch.",
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
@common_options
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
    textlstm bench quality runs/my-novel-1 --protocols stream,stream+learn --write
    textlstm bench quality shakespeare sonnet.txt letter.txt --unit bits/byte --json
    """
    from textlstm.bench.quality import files, scoreboard, splits, training_corpus
    from textlstm.machine import require_torch
    from textlstm.metrics import LEARNING, parse_protocol
    from textlstm.model import Model
    from textlstm.model_file import amend_card
    from textlstm.registry import find_model
    from textlstm.report import SCOREBOARD, ScoreView, show_scoreboard

    wanted = protocols.split(",")
    for protocol in wanted:  # what cannot be met is said at once
        if protocol == LEARNING:
            require_torch()
        else:
            parse_protocol(protocol)
    path = find_model(model)
    loaded = Model.load(path, engine)
    corpus = training_corpus(path, loaded.card, notice_of(quiet))
    if corpus is None and not texts:
        raise click.UsageError(f"what was held out of {model} cannot be told from here: name texts to score")
    with ScoreView(quiet) as view:
        if texts:
            columns = files(texts, loaded, corpus, notice_of(quiet))
        else:
            assert corpus is not None
            columns = splits(loaded, corpus, notice_of(quiet))
        board = scoreboard(columns, wanted, view.progress("scoring"))
    if into_card:
        amend_card(path, {SCOREBOARD: board})
    if as_json:
        print_json({"benchmark": "quality", "model": model, **board})
        return
    show_scoreboard(board, unit)
    if into_card and not quiet:
        click.echo(f"written into {path}", err=True)
