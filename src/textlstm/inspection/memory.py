"""How long things are remembered: by single cells, and by the whole state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.engine import Engine
from textlstm.inspection.trace import Trace
from textlstm.model_file import ModelFile

SHUT, OPEN = 0.1, 0.9  # below and above these a gate counts as saturated
DISTANCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def gate_report(trace: Trace) -> list[dict[str, Any]]:
    """For each layer: the shares of saturated gates, and how long its cells keep what they hold.

    A cell's half-life in tokens is ln 2 / -mean(ln f): what is left of its content after n tokens is the product of
    the forget gates on the way.
    """
    report = []
    for layer in range(len(trace.values["f"])):
        shares: dict[str, dict[str, float]] = {}
        for name in ("i", "f", "o"):
            gate_TH = trace.values[name][layer]
            shares[name] = {"shut": float((gate_TH < SHUT).mean()), "open": float((gate_TH > OPEN).mean())}
        half_H = half_lives(trace.values["f"][layer])
        quartiles = dict(
            zip(("min", "q1", "median", "q3", "max"), np.percentile(half_H, (0, 25, 50, 75, 100)), strict=True)
        )
        report.append(
            {
                "layer": layer,
                "gates": shares,
                "half_life_tokens": {name: float(value) for name, value in quartiles.items()},
                "half_lives": [round(float(value), 2) for value in half_H],
            }
        )
    return report


def half_lives(f_TH: NDArray[np.float32]) -> NDArray[np.float64]:
    """Tokens after which half of each cell's content is forgotten, shape (H,)."""
    log_H = np.log(np.maximum(f_TH.astype(np.float64), 1e-30)).mean(axis=0)
    halves: NDArray[np.float64] = np.log(2) / np.maximum(-log_H, 1e-9)
    return halves


def influence(
    engine: Engine,
    ids_T: NDArray[np.int32],
    rng: np.random.Generator,
    distances: Sequence[int] = DISTANCES,
    samples: int = 32,
) -> dict[int, float]:
    """How much a single changed token still changes the prediction, so many tokens later.

    At random places one token is exchanged for another one of the text. Both versions are read on, and the
    Kullback-Leibler divergence of the changed prediction from the true one is averaged.

    Args:
        engine: the model.
        ids_T: a text.
        rng: source of the places and the other tokens.
        distances: in tokens; 1 is the prediction right after the changed one.
        samples: number of places.

    Returns:
        Distance to mean nats; distances that the text is too short for are left out.
    """
    distances = [d for d in distances if d <= len(ids_T) // 2]
    if not distances:
        return {}
    reach, ids = max(distances), ids_T.astype(np.int64)
    before = min(reach, len(ids) - reach)  # tokens that are read ahead of each place
    starts = rng.integers(before, len(ids) - reach + 1, samples)
    windows_BT = ids[starts[:, None] + np.arange(reach)]
    changed_BT = windows_BT.copy()
    for row in range(samples):
        others = ids[ids != windows_BT[row, 0]]
        if len(others):
            changed_BT[row, 0] = rng.choice(others)
    both_BT = np.concatenate([windows_BT, changed_BT])
    context_BT = np.tile(ids[starts[:, None] + np.arange(-before, 0)], (2, 1))
    state = engine.begin(2 * samples)[1]
    if before:
        state = engine.prefill(context_BT, state)[1]
    logits_BPV, _ = engine.run(both_BT, state, np.array(distances) - 1)
    log_BPV = logits_BPV.astype(np.float64)
    log_BPV -= log_BPV.max(axis=2, keepdims=True)
    log_BPV -= np.log(np.exp(log_BPV).sum(axis=2, keepdims=True))
    true_BPV, other_BPV = log_BPV[:samples], log_BPV[samples:]
    nats_BP = (np.exp(true_BPV) * (true_BPV - other_BPV)).sum(axis=2)
    return {distance: float(nats) for distance, nats in zip(distances, nats_BP.mean(axis=0), strict=True)}


def nearest_tokens(file: ModelFile, ids: Sequence[int], number: int = 5) -> dict[int, list[tuple[int, float]]]:
    """The tokens whose embeddings point in the most similar direction: id to (id, cosine), the nearest first."""
    table = file.weights["embedding.weight"][: file.tokenizer.vocab_size].astype(np.float64)
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-30)
    near = {}
    for id in ids:
        cosines = table @ table[id]
        order = [int(other) for other in np.argsort(-cosines, kind="stable") if other != id][:number]
        near[id] = [(other, float(cosines[other])) for other in order]
    return near
