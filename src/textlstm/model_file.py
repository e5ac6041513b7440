"""The one-file model: a safetensors file that holds everything, and runs nothing.

The tensors stand under the names of `ModelConfig.tensor_shapes`, as fp32, fp16, or int8 with one scale per row
(`NAME.scale`). Beside them may stand statistics of their gradients, a byte for each row and column (`NAME.rms_rows`,
`NAME.rms_columns`; `learning.statistics` has their meaning). The metadata holds, as JSON: the configuration, the
whole tokenizer, the model card, the version of this format, and a SHA-256 over all of these and the tensors, so that a
single damaged bit is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from textlstm import tokenizer as tokenizers
from textlstm.config import MAX_TEMPERATURE, MIN_TEMPERATURE, ModelConfig
from textlstm.errors import ConfigError, ModelFileError, UsageError
from textlstm.files import write_atomically
from textlstm.tokenizer import Tokenizer

FORMAT_VERSION = 1
CALIBRATION = "calibration_temperature"  # of the card: what the logits of the finished model are divided by
DType = Literal["fp32", "fp16", "int8"]
_KEYS = ("config", "tokenizer", "card")
_STATISTICS = (".rms_rows", ".rms_columns")


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds, read into memory.

    Attributes:
        config: the network's shape.
        tokenizer: its tokenizer.
        weights: tensor name to float32 array, dequantised.
        card: the model card: where it comes from, what it scores.
        sha256: of the whole content.
        statistics: of gradients, coded, by name of the tensor and what is told of it; empty where nobody measured.
        dtype: how its file stores matrices.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    weights: dict[str, NDArray[np.float32]]
    card: dict[str, Any]
    sha256: str
    statistics: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    dtype: DType = "fp32"

    @cached_property
    def identity(self) -> str:
        """SHA-256 of what computes: configuration, tokenizer and weights, but not the card, which may be amended."""
        digest = hashlib.sha256(json.dumps([self.config.to_dict(), self.tokenizer.fingerprint]).encode())
        for name in self.config.tensor_shapes():
            digest.update(np.ascontiguousarray(self.weights[name], dtype="<f4").data)
        return digest.hexdigest()

    @property
    def uncalibrated(self) -> ModelConfig:
        """The network's shape as it was trained, before a temperature that the card tells was made part of it."""
        temperature = self.card.get(CALIBRATION)
        if not isinstance(temperature, int | float) or not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            return self.config
        return self.config.replace(logit_scale=round(self.config.logit_scale * temperature, 12))


def write_model(
    path: str | Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    weights: Mapping[str, NDArray[np.float32]],
    card: Mapping[str, Any],
    dtype: DType = "fp32",
    statistics: Mapping[str, NDArray[np.uint8]] | None = None,
) -> str:
    """Writes a model file, whole or not at all; arguments, result and errors as in `model_bytes`."""
    data, digest = model_bytes(config, tokenizer, weights, card, dtype, statistics=statistics)
    write_atomically(Path(path), data)
    return digest


def model_bytes(
    config: ModelConfig,
    tokenizer: Tokenizer,
    weights: Mapping[str, NDArray[np.float32]],
    card: Mapping[str, Any],
    dtype: DType = "fp32",
    container: str = "textlstm",
    statistics: Mapping[str, NDArray[np.uint8]] | None = None,
) -> tuple[bytes, str]:
    """The content of a model file.

    Args:
        config, tokenizer, weights, card: what it holds.
        dtype: how matrices are stored; vectors stay fp32.
        container: what the safetensors file calls itself; transformers wants `pt`.
        statistics: of gradients, coded; None writes none.

    Returns:
        The bytes, and the SHA-256 of the content that stands in them.

    Raises:
        ModelFileError: the weights do not fit the configuration or are not finite.
    """
    from safetensors.numpy import save

    _check_shapes({name: array.shape for name, array in weights.items()}, config)
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ModelFileError(f"tensor {name} has numbers that are not finite; a model is not written with them")
    tensors: dict[str, NDArray[Any]] = {} if statistics is None else dict(statistics)
    for name, array in weights.items():
        tensors |= _store(name, np.ascontiguousarray(array, dtype=np.float32), dtype)
    values = {"config": config.to_dict(), "tokenizer": tokenizer.to_json(), "card": dict(card)}
    metadata = {key: json.dumps(value, ensure_ascii=True) for key, value in values.items()}
    digest = _digest(metadata, tensors)
    metadata |= {"format": container, "format_version": str(FORMAT_VERSION), "sha256": digest}
    return save(tensors, metadata=metadata), digest


def read_model(path: str | Path) -> ModelFile:
    """Reads a model file and verifies it.

    Raises:
        UsageError: there is no such file.
        ModelFileError: it is something else, damaged, or written by a newer version.
    """
    return _opened(path, _read_bytes(path))[0]


def amend_card(path: str | Path, entries: Mapping[str, Any]) -> str:
    """Sets entries of the card in a model file; its tensors stay as they are stored, so its identity does too.

    Args:
        path: the model file; a link to one stays a link.
        entries: what to set, as JSON values.

    Returns:
        The SHA-256 of the new content.

    Raises:
        UsageError, ModelFileError: as `read_model`.
        OSError: the file cannot be written; the old one stays.
        ValueError: an entry is no JSON value.
    """
    from safetensors.numpy import save

    file, metadata, tensors = _opened(path, _read_bytes(path))
    metadata["card"] = json.dumps({**file.card, **entries}, ensure_ascii=True, allow_nan=False)
    metadata["sha256"] = _digest({key: metadata[key] for key in _KEYS}, tensors)
    write_atomically(Path(path).resolve(), save(tensors, metadata=metadata))
    return metadata["sha256"]


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"there is no model file {str(path)!r}") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error


def _opened(path: str | Path, data: bytes) -> tuple[ModelFile, dict[str, str], dict[str, NDArray[Any]]]:
    """What a model file holds, verified; also its metadata and tensors as they are stored."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        metadata = _read_metadata(path, data)
        tensors = load(data)
        if _digest({key: metadata[key] for key in _KEYS}, tensors) != metadata["sha256"]:
            raise ModelFileError(f"{path} is damaged: its content does not match its SHA-256; get a fresh copy")
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
        card = json.loads(metadata["card"])
        tokenizer = tokenizers.from_json(json.loads(metadata["tokenizer"]))
    except (
        SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ConfigError
    ) as error:  # fmt: skip
        raise ModelFileError(f"{path} is damaged or is not a model of textlstm: {error}") from error
    statistics = {name: array for name, array in tensors.items() if name.endswith(_STATISTICS)}
    weights = {name: _restore(name, tensors) for name in tensors if not name.endswith((".scale", *_STATISTICS))}
    _check_shapes({name: array.shape for name, array in weights.items()}, config)
    _check_statistics(path, statistics, config)
    if not 0 <= config.vocab_size - config.boundary - tokenizer.vocab_size <= 1:
        raise ModelFileError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} ids and its network {config.vocab_size}; they do not "
            "belong together"
        )
    stored = {tensors[name].dtype for name in weights}
    dtype: DType = "int8" if np.dtype(np.int8) in stored else "fp16" if np.dtype(np.float16) in stored else "fp32"
    return ModelFile(config, tokenizer, weights, card, metadata["sha256"], statistics, dtype), metadata, tensors


def _read_metadata(path: str | Path, data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file; duplicate names, which safetensors lets pass, are refused."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:  # asked first: a header may well be 0x80 or "PK" bytes long
        if data[:2] == b"PK" or data[:1] == b"\x80":
            raise ModelFileError(
                f"{path} is a pickled checkpoint, which is never opened as a model because it can run code; a "
                "checkpoint of the original program becomes a model by: textlstm import CHECKPOINT OUT"
            )
        raise ModelFileError(f"{path} is not a model file, or is cut off")
    header = json.loads(data[8 : 8 + size], object_pairs_hook=_without_duplicates)
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    if metadata.get("format") not in ("textlstm", "pt") or "format_version" not in metadata:
        raise ModelFileError(f"{path} is not a model of textlstm")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        version = metadata.get("format_version")
        raise ModelFileError(f"{path} has format version {version}, this textlstm reads {FORMAT_VERSION}; upgrade it")
    return dict(metadata)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return names


def _store(name: str, array: NDArray[np.float32], dtype: DType) -> dict[str, NDArray[Any]]:
    if array.ndim < 2 or dtype == "fp32":
        return {name: array}
    if dtype == "fp16":
        if np.abs(array).max() > np.finfo(np.float16).max:
            raise ModelFileError(f"tensor {name} has numbers that are too large for fp16; write fp32 instead")
        return {name: array.astype(np.float16)}
    whole, scale = quantise(array)
    return {name: whole, f"{name}.scale": scale}


def quantise(array_RK: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix as whole numbers from -127 to 127, shape (R, K), and the scale of each row, shape (R,)."""
    whole_RK, scale_R = np.empty(array_RK.shape, np.int8), np.empty(len(array_RK), np.float32)
    for first in range(0, len(array_RK), 128):  # so few rows that what is made of them stays in the processor's cache
        rows = slice(first, first + 128)
        scale_R[rows] = np.maximum(np.abs(array_RK[rows]).max(axis=1), np.float32(1e-12)) / np.float32(127)
        whole_RK[rows] = np.rint(array_RK[rows] / scale_R[rows, None])
    return whole_RK, scale_R


def _restore(name: str, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    array, scale = tensors[name], tensors.get(f"{name}.scale")
    if array.dtype == np.int8 and array.ndim == 2 and scale is not None and scale.shape == array.shape[:1]:
        return array.astype(np.float32) * scale.astype(np.float32)[:, None]
    if array.dtype in (np.float32, np.float16) and scale is None:
        return array.astype(np.float32, copy=False)
    raise ModelFileError(f"tensor {name} is stored as {array.dtype}, which this textlstm cannot read")


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    expected = config.tensor_shapes()
    wrong = [f"{name} is missing" for name in expected if name not in shapes]
    wrong += [f"{name} is unknown" for name in shapes if name not in expected]
    wrong += [
        f"{name} has shape {shapes[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if wrong:
        raise ModelFileError("the weights do not fit the configuration: " + "; ".join(wrong))


def statistics_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the statistics of a network: for each tensor its rows, for a matrix its columns too."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in config.tensor_shapes().items():
        shapes |= {f"{name}{suffix}": (size,) for suffix, size in zip(_STATISTICS, shape, strict=False)}
    return shapes


def _check_statistics(path: str | Path, statistics: Mapping[str, NDArray[Any]], config: ModelConfig) -> None:
    found = {name: array.shape for name, array in statistics.items() if array.dtype == np.uint8}
    if statistics and (len(found) < len(statistics) or found != statistics_shapes(config)):
        raise ModelFileError(f"{path}: the statistics of its gradients do not fit its network; get a fresh copy")


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for key in _KEYS:
        digest.update(f"{key}:{metadata[key]}\n".encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
