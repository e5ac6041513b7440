"""The commands that take models in, hand them on, and list what is there: import, export, info, models, corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from textlstm.cli.options import common_options, print_json


@click.command(name="import", short_help="Convert a checkpoint of the original program.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--corpus", help="Of the character version: the text it was trained on, for its table of characters.")
@click.option(
    "--dtype", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True, help="Of the matrices."
)
@common_options
def import_(checkpoint: Path, out: Path, corpus: str | None, dtype: Any, as_json: bool, quiet: bool) -> None:
    """Turn a CHECKPOINT of the original one-file program (a .pt state dict) into a model file OUT.

    \b
    textlstm import model.pt original.safetensors
    textlstm import char-model.pt original-char.safetensors --corpus data.txt
    """
    from textlstm.machine import require_torch

    require_torch()
    from textlstm.legacy import import_checkpoint

    params = import_checkpoint(checkpoint, out, corpus, dtype)
    if as_json:
        print_json({"model": str(out), "params": params})
    else:
        click.echo(f"{out}: {params:,} parameters")


@click.command(short_help="Hand a model on: small, as one web page, as ONNX, or for transformers.")
@click.argument("model")
@click.option("--to", type=click.Choice(["int8", "html", "onnx", "transformers"]), required=True, help="The format.")
@click.argument("out", type=click.Path(path_type=Path))
@common_options
def export(model: str, to: str, out: Path, as_json: bool, quiet: bool) -> None:
    """Write a MODEL as a smaller file, or as something that works without textlstm.

    int8 is a model file with weights of one byte, a quarter of the size that training leaves. html is one file that
    opens from disk in any browser and writes there, with no network. onnx is a folder with two graphs, a step and a
    sequence, with the state going in and out. transformers is a folder for Hugging Face's library, and can be given
    wherever a model can.

    \b
    textlstm export runs/my-novel-1 --to int8 my-novel.safetensors
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
        print_json({"model": model, "to": to, "out": str(out), "bytes": size, "files": [str(f) for f in files]})
    else:
        click.echo(f"{out}: {size:,} bytes")


@click.command(short_help="Show what is in a model file.")
@click.argument("model")
@click.option("--verbose", "-v", is_flag=True, help="Show the whole model card.")
@common_options
def info(model: str, verbose: bool, as_json: bool, quiet: bool) -> None:
    """Show what is in a MODEL file: its shape, where it comes from, what it scores.

    \b
    textlstm info shakespeare
    textlstm info shakespeare --verbose
    """
    from textlstm.model_file import read_model
    from textlstm.registry import find_model
    from textlstm.report import model_report, show_card, show_model

    path = find_model(model)
    report = model_report(path, read_model(path))
    if as_json:
        print_json(report)
        return
    show_model(report, model)
    if verbose:
        click.echo()
        show_card(report["card"])


@click.command()
@common_options
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
        print_json({"models": [{key: report[key] for key in keys} for report in reports]})
    else:
        show_models(reports)


@click.command()
@common_options
def corpora(as_json: bool, quiet: bool) -> None:
    """List the corpora that can be named instead of a file; corpus:NAME where a file of that name is, too.

    \b
    textlstm corpora
    """
    from textlstm.corpus import CORPORA

    if as_json:
        rows = [{"name": c.name, "summary": c.summary, "licence": c.licence} for c in CORPORA.values()]
        print_json({"corpora": rows})
        return
    width = max(map(len, CORPORA))
    for corpus in CORPORA.values():
        click.echo(f"{corpus.name:<{width}}  {corpus.summary} ({corpus.licence})")
