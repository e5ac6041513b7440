"""Training here: tokens per second, the share of the sgemm peak, memory, and what more processes bring.

For each number of processes real training steps are taken on made-up tokens, in processes of their own, which are
started as `train --processes` starts them. The peak of matrix multiplication is measured right before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from textlstm.config import ModelConfig, TrainConfig
from textlstm.errors import UsageError
from textlstm.trainer.device import choose_device
from textlstm.trainer.distributed import joined
from textlstm.trainer.launch import call
from textlstm.trainer.speed import measure_step, peak_memory, sgemm_peak


def measure(
    model: ModelConfig, train: TrainConfig, processes: Sequence[int], seconds: float, device: str,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Measures training with several numbers of processes.

    Args:
        model, train: what is trained; the steps are not looked at.
        processes: numbers of processes on this host, one after the other.
        seconds: how long steps are taken with each.
        device: one of `DEVICES`.
        tell: told each result in words.

    Returns:
        One row for each number. `share_of_sgemm` is against the whole machine's peak, `speedup` against the first row,
        and memory is the peak of the largest process and of all together.

    Raises:
        UsageError: more processes than lanes, or no such device.
        RunError: a process failed.
    """
    if max(processes) > train.batch_size:
        raise UsageError(f"{max(processes)} processes need as many lanes; --batch-size gives {train.batch_size}")
    here = choose_device(device, train.precision, tell)
    tokens, rows = train.batch_size * train.seq_len, list[dict[str, Any]]()
    for number in processes:
        before = sgemm_peak(here)
        ranks = call(number, _rank, model, train, device, seconds)
        peak = max(before, sgemm_peak(here))
        per_step = max(step for step, _ in ranks)
        memory = [size / 1e6 for _, size in ranks]
        rate = tokens / per_step
        row = {
            "processes": number,
            "tokens_per_second": rate,
            "step_ms": 1e3 * per_step,
            "sgemm_gflops": round(peak / 1e9),
            "share_of_sgemm": model.training_flops(1) * rate / peak,
            "speedup": rate / rows[0]["tokens_per_second"] if rows else 1.0,
            "peak_megabytes": {"largest": max(memory), "together": sum(memory)},
        }
        rows.append(row)
        tell(
            f"{counted(number):>13}: {rate:>8,.0f} tokens/s, {1e3 * per_step:.1f} ms a step, "
            f"{row['share_of_sgemm']:.0%} of {peak / 1e9:.0f} GFLOP/s, {sum(memory):,.0f} MB"
            + (f", {row['speedup']:.2f} times the first" if len(rows) > 1 else "")
        )
    return rows


def counted(processes: int) -> str:
    """So many processes, in words."""
    return f"{processes} process" + ("" if processes == 1 else "es")


def _rank(model: ModelConfig, train: TrainConfig, device: str, seconds: float) -> tuple[float, int]:
    """What one process measures: seconds a step, and its peak of memory in bytes."""
    with joined() as group:
        own = choose_device(device, train.precision, lambda line: None)
        return measure_step(model, train, own, seconds, group), peak_memory(own)
