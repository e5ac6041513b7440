"""Root mean squares of gradients, small enough to travel in the model file.

The mean squares of a matrix are taken to be the product of those of its rows and of its columns over their mean, as
Adafactor does (Shazeer & Stern 2018, arXiv 1804.04235), and of each row and column the root is kept as one byte: its
logarithm, eight steps to an octave. A model of three million weights takes 15 kB.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from textlstm.config import ModelConfig

_STEPS, _LOWEST = 8, -29  # steps to an octave; the exponent that code 0 stands for: 2e-9, the highest is 6.7


def code(mean_squares: Mapping[str, tuple[NDArray[np.float64], ...]]) -> dict[str, NDArray[np.uint8]]:
    """Codes the statistics of a network.

    Args:
        mean_squares: for each tensor the mean squares of its gradients by row, shape (R,), and for a matrix by column
            too, shape (K,).

    Returns:
        What stands in the model file, by name.
    """
    coded = {}
    for name, parts in mean_squares.items():
        for suffix, part in zip(("rms_rows", "rms_columns"), parts, strict=False):
            logarithm = np.log2(np.maximum(np.sqrt(part), 2.0**_LOWEST)) - _LOWEST
            coded[f"{name}.{suffix}"] = np.minimum(np.rint(logarithm * _STEPS), 255).astype(np.uint8)
    return coded


def decode(config: ModelConfig, coded: Mapping[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
    """The root mean square of every weight's gradients, by name of the tensor."""
    rms = {}
    for name, shape in config.tensor_shapes().items():
        rows_R = _roots(coded[f"{name}.rms_rows"])
        if len(shape) == 1:
            rms[name] = rows_R.astype(np.float32)
        else:
            columns_K = _roots(coded[f"{name}.rms_columns"])
            mean = np.sqrt(np.mean(rows_R**2))
            rms[name] = (rows_R[:, None] * columns_K / mean).astype(np.float32)
    return rms


def _roots(coded: NDArray[np.uint8]) -> NDArray[np.float64]:
    roots: NDArray[np.float64] = np.exp2(coded / _STEPS + _LOWEST)
    return roots
