"""Tokens per second of several streams over HTTP: textlstm against the servers of transformers and llama-cpp-python.

    python benchmarks/serve_peers.py [--streams 16] [--tokens 128] [--seconds 20] [--llama PYTHON]

Models of about 4.6 million parameters with random weights and 1,024 ids: ours 2 x 512 in int8; a GPT-2 of 6 layers of
240 in single precision under `transformers serve`, once as it starts and once with its continuous batching (it needs
the package `accelerate` besides); with --llama a Llama in Q8_0 under `python -m llama_cpp.server`, run by the
interpreter PYTHON, which has `llama-cpp-python[server]` and `gguf`. The same client measures all, one after the other,
twice around, streamed and whole. A prompt has 100 characters; server and client share the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from card import report
from serve import HERE, write_noise

from textlstm.bench.serving import Load, measure
from textlstm.model_file import read_model
from textlstm.registry import named_models

PATIENCE = 300.0  # seconds in which a server must be ready
ROUNDS = 2
WAYS = {"streamed": True, "whole": False}


def write_gpt2(folder: Path) -> int:
    """Writes a GPT-2 for transformers, with the shipped model's tokenizer; returns how many parameters it has."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from textlstm.tokenizer import to_hugging_face

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=1024, n_positions=1024, n_embd=240, n_layer=6, n_head=6, bos_token_id=0, eos_token_id=None
    )
    model = GPT2LMHeadModel(config)
    model.generation_config.update(do_sample=True, top_k=0, pad_token_id=0)
    model.save_pretrained(folder)
    (shipped,) = named_models(["shakespeare"]).values()
    (folder / "tokenizer.json").write_text(to_hugging_face(read_model(shipped).tokenizer).to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return int(model.num_parameters())


@contextlib.contextmanager
def running(name: str, command: list[str], port: int) -> Iterator[str]:
    """Starts a server, waits until it answers, and ends it."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            deadline = time.monotonic() + PATIENCE
            while not answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{name} did not start:\n{log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def answers(port: int) -> bool:
    """Whether a server takes connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def contenders(folder: Path, llama: str | None) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """By name: the command of each server, but for its port, and what requests say besides."""
    noise, gpt2, gguf = folder / "noise.safetensors", folder / "gpt2", folder / "random.gguf"
    write_noise(noise)
    print(f"GPT-2: {write_gpt2(gpt2):,} parameters")
    program = "from transformers.cli.transformers import main; main()"
    transformers = [sys.executable, "-c", program, "serve", str(gpt2), "--device", "cpu"]
    ours = [sys.executable, "-m", "textlstm", "serve", str(noise), "--quiet"]
    servers: dict[str, tuple[list[str], dict[str, Any]]] = {
        "textlstm": (ours, {"ignore_eos": True}),
        "transformers": (transformers, {}),
        "transformers, continuous batching": ([*transformers, "--continuous-batching"], {}),
    }
    if llama is not None:
        write = f"from pathlib import Path; import llama; print(llama.write_gguf(Path({str(gguf)!r})))"
        subprocess.run([llama, "-c", write], cwd=HERE, check=True)
        # A request that comes must not interrupt the one that runs.
        options = ["--model", str(gguf), "--n_ctx", "1024", "--interrupt_requests", "False"]
        options += ["--n_threads", "2", "--n_threads_batch", "2"]
        servers["llama.cpp"] = ([llama, "-m", "llama_cpp.server", *options], {"logit_bias": {"2": -100}})
    return servers


def main() -> None:
    """Measures all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0, help="longer than a text of the slowest takes")
    parser.add_argument("--tokens", type=int, default=128, help="of each text")
    parser.add_argument("--llama", metavar="PYTHON", help="interpreter that has llama-cpp-python[server] and gguf")
    options = parser.parse_args()
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {way: {} for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        servers = contenders(Path(folder), options.llama)
        for _, (name, (command, fields)) in itertools.product(range(ROUNDS), servers.items()):
            port = free_port()
            with running(name, [*command, "--port", str(port)], port) as url:
                for way, stream in WAYS.items():
                    load = Load(tokens=options.tokens, seconds=options.seconds, fields={**fields, "stream": stream})
                    measure(url, [1], replace(load, seconds=1.0), lambda line: None)  # what is made at first use
                    print(f"{name}, {way}", end=":")
                    rows[way].setdefault(name, []).extend(measure(url, [options.streams], load, print))
    results = {way: compare(its, way) for way, its in rows.items()}
    report("serve_peers", {"streams": options.streams, "tokens": options.tokens, **results, "rows": rows})


def compare(rows: dict[str, list[dict[str, Any]]], way: str) -> dict[str, dict[str, float]]:
    """Medians of tokens per second, and how many times as many textlstm makes."""
    speeds = {name: statistics.median(row["tokens_per_second"] for row in its) for name, its in rows.items()}
    ratios = {name: round(speeds["textlstm"] / max(speed, 1.0), 2) for name, speed in speeds.items()}
    for name, speed in speeds.items():
        print(f"{name + ', ' + way:>44}: {speed:>8,.0f} tokens/s, textlstm makes {ratios[name]:.1f} times as many")
    return {"tokens_per_second": speeds, "ratio": ratios}


if __name__ == "__main__":
    main()
