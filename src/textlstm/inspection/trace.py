"""The recurrence in numpy, slow and obvious, with every gate kept.

Shape letters as everywhere: L layers, T time, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textlstm.errors import UsageError
from textlstm.metrics import Progress, no_progress
from textlstm.model_file import ModelFile

GATES = ("i", "f", "g", "o")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Trace:
    """What happened inside a network while it read a text.

    Attributes:
        ids_T: what it read; the first prediction is made before.
        values: `i`, `f`, `g`, `o` (gates, after their function), `c` (cells) and `h` (outputs), each (L, T, H), as
            they are after each token; those that were asked for.
        nats_T: what each token cost, before it was read.
    """

    ids_T: NDArray[np.int64]
    values: dict[str, Floats]
    nats_T: NDArray[np.float64]


def trace(
    file: ModelFile,
    ids_T: NDArray[np.int32],
    keep: Sequence[str] = (*GATES, "c", "h"),
    progress: Progress = no_progress,
) -> Trace:
    """Reads a text from the model's start and writes down what happens.

    Args:
        file: the model, its weights dequantised.
        ids_T: the text.
        keep: which values to keep; each takes 4 L T H bytes.
        progress: told how many steps are done.

    Raises:
        UsageError: there is no text.
    """
    if not len(ids_T):
        raise UsageError("there is no text to look at")
    config, weights = file.config, file.weights
    begin = [] if config.boundary_id is None else [config.boundary_id]
    read = np.array([*begin, *ids_T.tolist()], dtype=np.int64)
    x_TI = weights["embedding.weight"][read]
    if config.input_projection:
        x_TI = x_TI @ weights["input.weight"].T + weights["input.bias"]
    layers: dict[str, list[Floats]] = {name: [] for name in keep}
    for layer in range(config.num_layers):
        parts = (weights[f"lstm.{layer}.{name}"] for name in ("weight_ih", "weight_hh", "bias"))
        values = _layer(x_TI, *parts)
        for name in keep:
            layers[name].append(values[name][len(begin) :])
        x_TI = values["h"]
        progress(layer + 1, config.num_layers)
    nats_T = _nats(file, x_TI[:-1] if begin else x_TI[: len(ids_T) - 1], ids_T[0 if begin else 1 :].astype(np.int64))
    if not begin:
        nats_T = np.concatenate([[np.log(config.vocab_size)], nats_T])
    return Trace(ids_T.astype(np.int64), {name: np.stack(found) for name, found in layers.items()}, nats_T)


def _layer(x_TI: Floats, weight_ih: Floats, weight_hh: Floats, bias: Floats) -> dict[str, Floats]:
    """One LSTM layer: i, f, o = sigmoid(W x + U h + b), g = tanh(W x + U h + b), c = f c + i g, h = o tanh(c)."""
    T, H = len(x_TI), weight_hh.shape[1]
    found = {name: np.empty((T, H), dtype=np.float32) for name in (*GATES, "c", "h")}
    inputs_T4H = x_TI @ weight_ih.T + bias
    h_H, c_H = np.zeros(H, dtype=np.float32), np.zeros(H, dtype=np.float32)
    for t in range(T):
        i, f, g, o = np.split(inputs_T4H[t] + weight_hh @ h_H, 4)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c_H = f * c_H + i * g
        h_H = o * np.tanh(c_H)
        for name, value in zip(found, (i, f, g, o, c_H, h_H), strict=True):
            found[name][t] = value
    return found


def _sigmoid(x: Floats) -> Floats:
    half = (1 + np.tanh(x / 2)) / 2  # the same function, and it never overflows
    return half.astype(np.float32, copy=False)


def _nats(file: ModelFile, features_TH: Floats, targets_T: NDArray[np.int64]) -> NDArray[np.float64]:
    """Nats of each target, some tokens at a time."""
    config, weights = file.config, file.weights
    nats = np.empty(len(targets_T))
    for start in range(0, len(targets_T), 512):
        part = features_TH[start : start + 512]
        if config.has_output_projection:
            part = part @ weights["projection.weight"].T
        head = weights["embedding.weight"] if config.tie_embeddings else weights["head.weight"]
        logits_TV = ((part @ head.T + weights["head.bias"]) * config.logit_scale).astype(np.float64)
        logits_TV -= logits_TV.max(axis=1, keepdims=True)
        targets = targets_T[start : start + 512]
        nats[start : start + 512] = np.log(np.exp(logits_TV).sum(axis=1)) - logits_TV[np.arange(len(targets)), targets]
    return nats
