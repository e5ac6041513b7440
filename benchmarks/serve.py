"""A server under load: a 2 x 512 model in int8 with 1,024 ids, client and server on one machine, over HTTP.

    python benchmarks/serve.py           measure, write results/serve.json, draw docs/load.svg
    python benchmarks/serve.py --draw    draw what was measured

The weights are random, which costs the same as trained ones; the tokenizer is the shipped model's. It is measured with
one worker and with two (`--workers 2`), and what 64 streams get is told over what a single one gets.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from textlstm.bench.serving import Load, measure_models, plot
from textlstm.model_file import read_model, write_model
from textlstm.registry import named_models
from textlstm.server.hub import Settings

HERE = Path(__file__).parent
RESULTS, PICTURE = HERE / "results" / "serve.json", HERE.parent / "docs" / "load.svg"
STREAMS = (1, 8, 64, 256)


def write_noise(path: Path) -> None:
    """Writes the model."""
    from generation import CONFIG, random_weights  # not above: the server's process would import torch as well

    (shipped,) = named_models(["shakespeare"]).values()
    write_model(path, CONFIG, read_model(shipped).tokenizer, random_weights(CONFIG), {"corpus": "none"})


def gain(*runs: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens per second of 64 streams over those of one, by the number of workers; all against the faster one."""
    rates = [{row["streams"]: row["tokens_per_second"] for row in rows} for rows in runs]
    one = max(rate[1] for rate in rates)
    return {f"{workers} workers": rate[64] / one for workers, rate in enumerate(rates, start=1)}


def main() -> None:
    """Measures and draws."""
    if "--draw" not in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "noise.safetensors")
            write_noise(path)
            load = Load(seconds=10.0)
            settings = Settings({"noise": path}, max_queue=2 * max(STREAMS))
            rows, with_two = (measure_models(settings, STREAMS, load, print, workers) for workers in (1, 2))
        from card import report

        results = {"rows": rows, "rows_with_two_workers": with_two, "to_one_stream": gain(rows, with_two)}
        report("serve", {"tokens": load.tokens, "prompt_chars": load.prompt_chars, **results})
    plot(json.loads(RESULTS.read_text())["rows"], PICTURE)


if __name__ == "__main__":
    main()
