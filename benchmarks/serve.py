"""A server under load: a 2 x 512 model in int8 with 1,024 ids, client and server on one machine, over HTTP.

    python benchmarks/serve.py           measure, write results/serve.json, draw docs/load.svg
    python benchmarks/serve.py --draw    draw what was measured

The weights are random, which costs the same as trained ones; the tokenizer is the shipped model's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

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


def main() -> None:
    """Measures and draws."""
    if "--draw" not in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "noise.safetensors")
            write_noise(path)
            load = Load(seconds=10.0)
            rows = measure_models(Settings({"noise": path}, max_queue=2 * max(STREAMS)), STREAMS, load, print)
        from card import report

        report("serve", {"tokens": load.tokens, "prompt_chars": load.prompt_chars, "rows": rows})
    plot(json.loads(RESULTS.read_text())["rows"], PICTURE)


if __name__ == "__main__":
    main()
