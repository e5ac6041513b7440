"""Checkpoints of the original one-file program, made into models.

Its state dict holds, with [h; x] the last output and the input side by side and sigma the logistic function,

    x = linear(emb[id])
    f = sigma(forget_gate.0 [h; x])         i = sigma(input_gate.0.0 [h; x])
    o = sigma(output_gate.0 [h; x])         g = tanh(input_gate.1.0 [h; x])
    c <- f * c + i * g                      h <- o * tanh(c)
    logits = 0.1 lm_head(h)                 (the character version: without the 0.1)

from a zero state, the first prediction being uniform. Each gate is cut into its half for h and its half for x.
Which version it is follows from the size of the vocabulary.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textlstm.config import CorpusConfig, ModelConfig
from textlstm.corpus import read_sources
from textlstm.errors import ModelFileError, UsageError
from textlstm.model_file import DType, write_model
from textlstm.tokenizer import CharTokenizer, Tokenizer, gpt2_tokenizer

GPT2_IDS = 50_257
_GATES = ("input_gate.0.0", "forget_gate.0", "input_gate.1.0", "output_gate.0")  # our order: i, f, g, o
_KEYS = {f"{name}.{part}" for name in ("linear", "lm_head", *_GATES) for part in ("weight", "bias")} | {"emb.weight"}


def import_checkpoint(checkpoint: Path, out: Path, corpus: str | None = None, dtype: DType = "fp32") -> int:
    """Writes the model that a checkpoint of the original program holds.

    Args:
        checkpoint: a state dict saved by `torch.save`. It is read with `weights_only=True` and nothing else.
        out: the model file to write.
        corpus: for the character version, the text that it was trained on.
        dtype: how the matrices are stored.

    Returns:
        The number of parameters.

    Raises:
        UsageError: no such file, or a character version without its corpus.
        ModelFileError: anything but such a state dict.
    """
    arrays = _read(checkpoint)
    vocab_size, embed_size = arrays["emb.weight"].shape
    hidden_size = arrays["linear.bias"].shape[0]
    subword = vocab_size == GPT2_IDS
    tokenizer = gpt2_tokenizer() if subword else _character_table(corpus, vocab_size)
    config = ModelConfig(
        vocab_size=vocab_size,
        embed_size=embed_size,
        hidden_size=hidden_size,
        num_layers=1,
        tie_embeddings=False,
        input_projection=True,
        logit_scale=0.1 if subword else 1.0,
        boundary=False,
        **dict.fromkeys(("input_dropout", "layer_dropout", "output_dropout", "weight_dropout"), 0.0),
    )
    gates = [arrays[f"{gate}.weight"] for gate in _GATES]
    weights = {
        "embedding.weight": arrays["emb.weight"],
        "input.weight": arrays["linear.weight"],
        "input.bias": arrays["linear.bias"],
        "lstm.0.weight_ih": np.concatenate([gate[:, hidden_size:] for gate in gates]),
        "lstm.0.weight_hh": np.concatenate([gate[:, :hidden_size] for gate in gates]),
        "lstm.0.bias": np.concatenate([arrays[f"{gate}.bias"] for gate in _GATES]),
        "head.weight": arrays["lm_head.weight"],
        "head.bias": arrays["lm_head.bias"],
    }
    source = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    card = {"imported_from": f"checkpoint of the original program, SHA-256 {source}", "scores": {}}
    write_model(out, config, tokenizer, weights, card, dtype)
    return config.num_params


def _read(checkpoint: Path) -> dict[str, NDArray[np.float32]]:
    if not checkpoint.is_file():
        raise UsageError(f"there is no checkpoint {str(checkpoint)!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused anyway
            values: Any = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # over a damaged pickle torch raises almost anything
        raise ModelFileError(  # torch's own words would advise to read it with weights_only=False
            f"{checkpoint} is damaged or holds more than a state dict of plain tensors; since what else a pickle has "
            "could run code, it is not opened; write one by: torch.save(network.state_dict(), FILE)"
        ) from error
    if not isinstance(values, dict) or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise ModelFileError(f"{checkpoint} is not a state dict: it must map names to tensors")
    if set(values) != _KEYS:
        wrong = [f"{k} is missing" for k in sorted(_KEYS - set(values))]
        wrong += [f"{k} is unknown" for k in sorted(set(map(str, values)) - _KEYS)]
        raise ModelFileError(f"{checkpoint} is not of the original program: {'; '.join(wrong[:6])}")
    arrays = {name: np.asarray(tensor.float().numpy()) for name, tensor in values.items()}
    hidden = arrays["linear.bias"].size
    vocab, embed = arrays["emb.weight"].shape if arrays["emb.weight"].ndim == 2 else (0, 0)
    expected = {"linear.weight": (hidden, embed), "lm_head.weight": (vocab, hidden), "lm_head.bias": (vocab,)}
    expected |= {"linear.bias": (hidden,), "emb.weight": (vocab, embed)}
    expected |= {f"{gate}.weight": (hidden, 2 * hidden) for gate in _GATES}
    expected |= {f"{gate}.bias": (hidden,) for gate in _GATES}
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise ModelFileError(f"{checkpoint}: {name} has shape {arrays[name].shape} instead of {shape}")
    return arrays


def _character_table(corpus: str | None, vocab_size: int) -> Tokenizer:
    if corpus is None:
        raise UsageError(
            f"this is the character version ({vocab_size} characters); name the text it was trained on with --corpus, "
            "for its table of characters"
        )
    documents = read_sources([corpus], CorpusConfig(), lambda line: None).documents
    tokenizer = CharTokenizer.from_text("".join(d.text for d in documents), byte_fallback=False)
    if tokenizer.vocab_size != vocab_size:
        raise UsageError(
            f"{corpus} has {tokenizer.vocab_size} different characters and the checkpoint {vocab_size}; it was "
            "trained on another text"
        )
    return tokenizer
