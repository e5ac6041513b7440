"""The command that serves models: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from textlstm.cli.options import FiniteRange, common_options, print_json
from textlstm.config import ENGINES


@click.command(short_help="Serve models: an OpenAI-compatible API and a web page.")
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
@click.option("--timeout", type=FiniteRange(min=0.1), default=600.0, show_default=True, help="Seconds a request has.")
@click.option("--grace", type=FiniteRange(min=0), default=10.0, show_default=True, help="Seconds to end in.")
@click.option("--states", type=click.Path(path_type=Path, file_okay=False), help="Folder that keeps the named states.")
@click.option("--cors-origin", multiple=True, help="Web pages of this origin may use the API.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--engine", type=click.Choice(ENGINES), help="What computes.  [default: int8 writes, onnx scores]")
@click.option("--threads", type=click.IntRange(min=1), help="Cores that one step may use.  [default: the engine's]")
@common_options
def serve(
    models: tuple[str, ...], api_key: tuple[str, ...], max_tokens_limit: int, cors_origin: tuple[str, ...],
    workers: int, as_json: bool, quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Serve MODELS over HTTP: the API of OpenAI's completions, and a playground for the browser.

    A model's id is its name; ID=MODEL gives it another. Without --api-key any key is accepted. The log on standard
    error has one JSON object per line, and nothing that users wrote; --json prints the address as soon as it is open.

    \b
    textlstm serve shakespeare                           then open http://127.0.0.1:8000
    textlstm serve runs/my-novel-1 bard=shakespeare --port 9000
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
            print_json({"url": url, "models": list(settings.models)})
        else:
            click.echo(f"serving on {url}", err=True)

    run(settings, listening, workers, quiet)
