"""Tokens per second of a 2 x 512 model with 1,024 ids in int8, the whole loop with sampling, in one process.

    python benchmarks/generation.py

The weights are random, which costs the same as trained ones. Beside it, alternating, a step by hand in torch in
single precision (one matrix product per layer and gate block, no autograd), and the reading of as many bytes as the
weights have: the ceiling of one row, which cannot write faster than its weights are read. And a GPT-2 of the library
transformers with as many parameters, sampling with its cache (the extra `transformers`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from card import report, spread

from textlstm.config import ModelConfig, SamplingConfig
from textlstm.engine.int8 import Int8Engine
from textlstm.model_file import ModelFile
from textlstm.sampling import Row, sample
from textlstm.tokenizer import ByteTokenizer

CONFIG = ModelConfig(vocab_size=1024, embed_size=512, hidden_size=512)
BATCHES = (1, 8, 64, 256)
TOKENS, RUNS = 500, 7


def random_weights() -> dict[str, np.ndarray]:
    """Weights of the size that training begins with."""
    rng = np.random.default_rng(0)
    shapes = CONFIG.tensor_shapes().items()
    return {name: (rng.standard_normal(s) * s[-1] ** -0.5).astype(np.float32) for name, s in shapes}


def ours(engine: Int8Engine, rows: int) -> Callable[[], None]:
    """Writes TOKENS tokens in every row."""

    def run() -> None:
        streams = [Row(SamplingConfig(), np.random.default_rng(row), CONFIG.vocab_size) for row in range(rows)]
        logits_BV, state = engine.begin(rows)
        for _ in range(TOKENS):
            logits_BV, state = engine.step(sample(logits_BV, streams), state)

    return run


def by_hand(weights: dict[str, np.ndarray]) -> Callable[[], None]:
    """One row, as torch would be written by hand: the products of both halves of a layer in one."""
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    layers = [
        (torch.cat([tensors[f"lstm.{n}.weight_ih"], tensors[f"lstm.{n}.weight_hh"]], 1).T, tensors[f"lstm.{n}.bias"])
        for n in range(2)
    ]
    generator = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def run() -> None:
        h, c, id = [torch.zeros(1, 512)] * 2, [torch.zeros(1, 512)] * 2, torch.tensor([0])
        for _ in range(TOKENS):
            x = tensors["embedding.weight"][id]
            for n, (weight, bias) in enumerate(layers):
                i, f, g, o = torch.addmm(bias, torch.cat([x, h[n]], 1), weight).chunk(4, 1)
                c[n] = torch.sigmoid(f) * c[n] + torch.sigmoid(i) * torch.tanh(g)
                h[n] = x = torch.sigmoid(o) * torch.tanh(c[n])
            logits = torch.addmm(tensors["head.bias"], x, tensors["embedding.weight"].T) / 0.8
            id = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)[0]

    return run


def transformer() -> Callable[[], None]:
    """A GPT-2 of 4.6 M parameters (6 layers of 240, 1,024 ids), as its library generates."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=1024, n_positions=1024, n_embd=240, n_layer=6, n_head=6, bos_token_id=0, eos_token_id=None
    )
    model = GPT2LMHeadModel(config).eval()
    start = torch.zeros(1, 1, dtype=torch.int64)
    options = {"do_sample": True, "top_k": 0, "temperature": 0.8, "use_cache": True, "pad_token_id": 0}

    def run() -> None:
        with torch.inference_mode():
            model.generate(start, attention_mask=start + 1, max_new_tokens=TOKENS, min_new_tokens=TOKENS, **options)

    return run


def seconds(run: Callable[[], None]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Measures all, alternating, after one run of each to warm up."""
    torch.set_num_threads(1)
    weights = random_weights()
    engine = Int8Engine(ModelFile(CONFIG, ByteTokenizer(), weights, {}, ""))
    # What a step reads: all matrices but the first layer's for its input, whose products are kept. Ones,
    # because pages of fresh zeros are all the same one.
    read = np.ones(1024 * 512 + 3 * 2048 * 512, np.int8).view(np.int64)
    runs = {f"int8, {rows} rows": ours(engine, rows) for rows in BATCHES} | {"torch by hand, 1 row": by_hand(weights)}
    runs["transformers, 1 row"] = transformer()
    runs["reading the weights"] = lambda: [read.sum() for _ in range(TOKENS)] and None
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for attempt in range(RUNS + 1):
        for name, run in runs.items():
            rows = int(name.split()[-2]) if name.startswith("int8") else 1
            rate = rows * TOKENS / seconds(run)
            if attempt:
                rates[name].append(rate)
    engine_only = seconds(lambda: [engine.step(np.zeros(1, np.int64), engine.zero_state(1)) for _ in range(TOKENS)])
    one = rates["int8, 1 rows"]

    def ratio(other: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(one, rates[other], strict=True)])

    report(
        "generation",
        {
            "kernel": engine.kind,
            "tokens_per_second": {name: spread(values) for name, values in rates.items()},
            "ratio_to_torch": ratio("torch by hand, 1 row"),
            "ratio_to_transformers": ratio("transformers, 1 row"),
            "share_of_the_reading_ceiling": ratio("reading the weights"),
            "step_without_sampling_us": 1e6 * engine_only / TOKENS,
        },
    )


if __name__ == "__main__":
    main()
