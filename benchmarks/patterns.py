"""What a pattern costs: time per token of constrained writing beside free writing, in one run.

    python benchmarks/patterns.py

Tables of tokens are kept per state of the automaton, so the first text of a pattern costs more than later ones; both
are shown, with the time that making the pattern ready takes. The model with GPT-2's vocabulary has random weights.
"""

from __future__ import annotations

import time

import numpy as np
from card import report, spread

import textlstm
from textlstm.config import ModelConfig, PatternConfig, SamplingConfig
from textlstm.generation import Limits, write
from textlstm.generation.pattern import Pattern, Vocabulary
from textlstm.model import Model
from textlstm.model_file import ModelFile
from textlstm.tokenizer import gpt2_tokenizer

TOKENS, RUNS = 100, 5
PATTERNS = {
    "letters": PatternConfig(regex="[a-z ]{1000}"),
    "words of Unicode": PatternConfig(regex=r"(?:\w+[ ,.!?\n]+){300}"),
    "line length": PatternConfig(line_length=50),
    "fixed text": PatternConfig(regex="It was the best of times, it was the worst of times. " * 20),
}


def big_model() -> Model:
    """The shape of the original program, with GPT-2's vocabulary."""
    config = ModelConfig(50_257, 192, 512, 1, tie_embeddings=False, input_projection=True)
    rng = np.random.default_rng(0)
    weights = {n: rng.uniform(-0.05, 0.05, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    return Model(ModelFile(config, gpt2_tokenizer(), weights, {}, ""))


def milliseconds(model: Model, pattern: Pattern | None) -> float:
    """Per token, of the process's own time: other programs on the machine do not count."""
    writer = model.writers(1, SamplingConfig(), Limits(max_tokens=5_000), 1, pattern)[0]
    logits_BV, state = model.engine.begin(1)
    started = time.process_time()
    for _ in write(model.engine, [writer], logits_BV, state):
        if writer.tokens >= TOKENS or writer.reason is not None:
            break
    return (time.process_time() - started) / writer.tokens * 1e3


def main() -> None:
    """Each model, each pattern."""
    results = {}
    for name, model in {"1,024 ids": textlstm.load("shakespeare"), "50,257 ids": big_model()}.items():
        started = time.process_time()
        vocabulary = Vocabulary(model.tokenizer, model.config.vocab_size)
        tree = (time.process_time() - started) * 1e3
        milliseconds(model, None)
        free = spread([milliseconds(model, None) for _ in range(RUNS)])
        results[name] = rows = {"tree_of_vocabulary_ms": tree, "free_ms": free}
        print(f"{name}: tree of the vocabulary {tree:.0f} ms, free {free['median']:.2f} ms a token")
        for label, config in PATTERNS.items():
            builds, firsts, laters = [], [], []
            for _ in range(RUNS):
                started = time.process_time()
                pattern = Pattern(config, vocabulary)
                builds.append((time.process_time() - started) * 1e3)
                firsts.append(milliseconds(model, pattern))
                laters.append(milliseconds(model, pattern))
            rows[label] = row = {"ready_ms": spread(builds), "first_ms": spread(firsts), "later_ms": spread(laters)}
            ready, first, later = (row[key]["median"] for key in row)
            print(
                f"  {label}: ready in {ready:.1f} ms, first text {first:.2f} ms a token, later {later:.2f} "
                f"({later / free['median']:.2f} of free)",
                flush=True,
            )
    report("patterns", results)


if __name__ == "__main__":
    main()
