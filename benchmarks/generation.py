"""Tokens per second of a 2 x 512 model with 1,024 ids in int8, the whole loop with sampling, in one process.

    python benchmarks/generation.py

The weights are random, which costs the same as trained ones. Beside it, alternating: a step by hand in torch in single
precision (one matrix product per layer and gate block, no autograd); a GPT-2 of the library transformers with as many
parameters, sampling with its cache (the extra `transformers`); a Llama of as many in llama.cpp in Q8_0, on one thread
and on two, of which the better counts (`benchmarks/llama.py`); and the reading of as many bytes as the weights have:
the ceiling of one row, which cannot write faster than its weights are read. Of three ways to read, the fastest counts.

Then what sampling costs beside a step, at 1,024 and at 50,257 ids.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import llama
import numpy as np
import torch
from card import report, spread

from textlstm.config import ModelConfig, SamplingConfig
from textlstm.engine.int8 import Int8Engine
from textlstm.model_file import ModelFile
from textlstm.sampling import Row, sample
from textlstm.tokenizer import ByteTokenizer

CONFIG = ModelConfig(vocab_size=1024, embed_size=512, hidden_size=512)
BATCHES = (1, 8, 64, 256, 512)
VOCABULARIES = (1024, 50_257)
SAMPLINGS = {
    "default": SamplingConfig(),
    "top-k 40": SamplingConfig(top_k=40),
    "top-p 0.95": SamplingConfig(top_p=0.95),
    "min-p 0.05": SamplingConfig(min_p=0.05),
    "greedy": SamplingConfig(temperature=0.0),
    "repetition penalty 1.1": SamplingConfig(repetition_penalty=1.1),
    "typical-p 0.9": SamplingConfig(typical_p=0.9),
}
TOKENS, RUNS = 500, 7


def random_weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """Weights of the size that training begins with."""
    rng = np.random.default_rng(0)
    shapes = config.tensor_shapes().items()
    return {name: (rng.standard_normal(s, np.float32) * np.float32(s[-1] ** -0.5)) for name, s in shapes}


def make_engine(config: ModelConfig, weights: dict[str, np.ndarray]) -> Int8Engine:
    """The engine that writes."""
    return Int8Engine(ModelFile(config, ByteTokenizer(), weights, {}, ""))


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


def readers(size: int) -> dict[str, Callable[[], None]]:
    """Ways for one core to read so many bytes; pages of fresh zeros would all be the same one, so they hold ones."""
    whole, floats = np.ones(size, np.int8).view(np.int64), torch.ones(size // 4)
    rows, ones = floats.view(-1, 512), torch.ones(512)
    ways = {"sum": whole.sum, "dot": lambda: floats.dot(floats), "rows": lambda: rows.mv(ones)}

    def often(read: Callable[[], object]) -> Callable[[], None]:
        return lambda: [read() for _ in range(TOKENS)] and None

    return {f"reading, {name}": often(read) for name, read in ways.items()}


def cost_of_sampling(vocab_size: int) -> dict[str, float]:
    """What drawing a token takes, as a share of a step of the engine, for one row, by its settings."""
    config = CONFIG.replace(vocab_size=vocab_size)
    engine = make_engine(config, random_weights(config))
    times: dict[str, list[float]] = {name: [] for name in ("step", *SAMPLINGS)}
    number = 200 if vocab_size < 10_000 else 50
    for attempt in range(RUNS + 1):
        logits_BV, state = engine.begin(1)
        for name in times:
            row = Row(SAMPLINGS.get(name, SamplingConfig()), np.random.default_rng(0), vocab_size)
            started = time.perf_counter()
            for _ in range(number):
                if name == "step":
                    engine.step(np.zeros(1, np.int64), state)
                else:
                    row.wrote(int(sample(logits_BV, [row])[0]))
            if attempt:
                times[name].append((time.perf_counter() - started) / number)
    medians = {name: statistics.median(values) for name, values in times.items()}
    shares = {name: round(medians[name] / medians["step"], 4) for name in SAMPLINGS}
    return {"step_us": round(1e6 * medians["step"], 1), **shares}


def seconds(run: Callable[[], None]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Measures all, alternating, after one run of each to warm up."""
    torch.set_num_threads(1)
    weights = random_weights(CONFIG)
    engine = make_engine(CONFIG, weights)
    size = 1024 * 512 + 3 * 2048 * 512  # all matrices but the first layer's for its input, whose products are kept
    runs = {f"int8, {rows} rows": ours(engine, rows) for rows in BATCHES} | {"torch by hand, 1 row": by_hand(weights)}
    runs["transformers, 1 row"] = transformer()
    llamas = llama.writers(TOKENS, (1, 2))
    runs |= {f"llama.cpp, {count} threads": run for count, run in (llamas or {}).items()}
    runs |= readers(size)
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
        """To the best of what begins so."""
        best = max((name for name in rates if name.startswith(other)), key=lambda name: statistics.median(rates[name]))
        return {"to": best} | spread([a / b for a, b in zip(one, rates[best], strict=True)])

    ceiling = ratio("reading")
    read = statistics.median(rates[ceiling["to"]])
    report(
        "generation",
        {
            "kernel": engine.kind,
            "tokens_per_second": {name: spread(values) for name, values in rates.items()},
            "ratio_to_torch": ratio("torch by hand"),
            "ratio_to_transformers": ratio("transformers"),
            "ratio_to_llama_cpp": ratio("llama.cpp") if llamas else "skipped: llama-cpp-python is not installed",
            "batch_64_to_batch_1": statistics.median(rates["int8, 64 rows"]) / statistics.median(one),
            "ceiling": {"bytes_per_token": size, "gb_per_second": read * size / 1e9, "tokens_per_second": read},
            "share_of_the_reading_ceiling": ceiling,
            "step_without_sampling_us": 1e6 * engine_only / TOKENS,
            "sampling_to_step": {f"{size:,} ids": cost_of_sampling(size) for size in VOCABULARIES},
        },
    )


if __name__ == "__main__":
    main()
