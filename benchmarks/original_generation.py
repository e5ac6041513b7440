"""500 tokens from a checkpoint of the original program, 37.6 million parameters, through the command line.

    python benchmarks/original_generation.py

The checkpoint has random weights: its speed is that of a trained one. Whole processes are timed, loading included.
Beside it, once and without loading, what the original does: every token reads all before it again, with the cell from
its equations in torch; as it stands there, with logits for all that is read, and sparing all logits but the last.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from card import report, spread
from original_step import LoopLSTM

VOCAB, EMBED, HIDDEN = 50_257, 192, 512
TOKENS, RUNS = 500, 5


def write_checkpoint(path: Path) -> None:
    """A state dict with the original program's keys."""
    generator = torch.Generator().manual_seed(0)

    def filled(*shape: int) -> torch.Tensor:
        return torch.empty(shape).uniform_(-0.05, 0.05, generator=generator)

    state = {"emb.weight": filled(VOCAB, EMBED)}
    sizes = {"linear": (HIDDEN, EMBED), "lm_head": (VOCAB, HIDDEN)}
    sizes |= dict.fromkeys(
        ("forget_gate.0", "input_gate.0.0", "input_gate.1.0", "output_gate.0"), (HIDDEN, 2 * HIDDEN)
    )
    for name, (rows, columns) in sizes.items():
        state |= {f"{name}.weight": filled(rows, columns), f"{name}.bias": filled(rows)}
    torch.save(state, path)


def textlstm(*arguments: str) -> str:
    """Standard output of a command."""
    command = [sys.executable, "-m", "textlstm", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def seconds_of_reading_again(last_only: bool) -> float:
    """How long as many tokens take if each reads all before it again."""
    torch.manual_seed(0)
    network, ids = LoopLSTM(), torch.zeros(1, 1, dtype=torch.int64)
    started = time.perf_counter()
    with torch.inference_mode():
        for _ in range(TOKENS):
            outputs_1TH = network.outputs(ids)
            logits_1TV = network.lm_head(outputs_1TH[:, -1:] if last_only else outputs_1TH) * 0.1
            ids = torch.cat([ids, torch.multinomial(torch.softmax(logits_1TV[:, -1], 1), 1)], 1)
    return time.perf_counter() - started


def main() -> None:
    """Imports once, generates several times."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, model = Path(folder, "model.pt"), Path(folder, "original.safetensors")
        write_checkpoint(checkpoint)
        textlstm("import", str(checkpoint), str(model))
        whole, rates = [], []
        for run in range(RUNS + 1):
            started = time.perf_counter()
            answer = textlstm("generate", str(model), "--max-tokens", str(TOKENS), "--seed", "1", "--json")
            if run:
                whole.append(time.perf_counter() - started)
                rates.append(json.loads(answer.splitlines()[-1])["tokens_per_second"])
                print(f"run {run}: {whole[-1]:.2f} s, {rates[-1]:.0f} tokens/s without loading")
    again = {"all logits": seconds_of_reading_again(False), "the last logits": seconds_of_reading_again(True)}
    written = [TOKENS / rate for rate in rates]
    report(
        "original_generation",
        {
            "seconds_for_500_tokens": spread(whole),
            "tokens_per_second": spread(rates),
            "seconds_of_reading_again": again,
            "times_as_fast_loading_included": {way: spread([a / b for b in whole]) for way, a in again.items()},
            "times_as_fast": {way: spread([a / b for b in written]) for way, a in again.items()},
        },
    )


if __name__ == "__main__":
    main()
