"""Configurations: strict reading, ranges, and sizes worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textlstm.config import PRESETS, CorpusConfig, ModelConfig, SamplingConfig, TrainConfig
from textlstm.errors import ConfigError

ALL = [ModelConfig, CorpusConfig, TrainConfig, SamplingConfig]


@pytest.mark.parametrize("cls", ALL)
def test_defaults_survive_json(cls):
    stored = json.loads(json.dumps(cls().to_dict()))
    assert cls.from_dict(stored) == cls.from_dict({}) == cls()
    assert cls.from_dict(stored).to_dict() == stored


@given(
    hidden=st.integers(1, 1 << 15),
    tie=st.booleans(),
    dropout=st.floats(0, 1, exclude_max=True),
    scale=st.floats(1e-3, 1e3),
)
def test_values_survive_json(hidden, tie, dropout, scale):
    config = ModelConfig(hidden_size=hidden, tie_embeddings=tie, layer_dropout=dropout, logit_scale=scale)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_optional_values_survive_json():
    config = CorpusConfig(val_chars=5, val=None, encoding="latin-1")
    assert CorpusConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert TrainConfig.from_dict({"clip": None}).clip is None
    assert TrainConfig.from_dict({"lr": 1}).lr == 1


@pytest.mark.parametrize(
    ("cls", "key", "near"),
    [
        (ModelConfig, "hiden_size", "'hidden_size'"),
        (ModelConfig, "embed-size", "'embed_size'"),
        (ModelConfig, "MAX_SIZES", ""),
        (ModelConfig, "num_params", ""),
        (TrainConfig, "batchsize", "'batch_size'"),
        (CorpusConfig, "val_faction", "'val_fraction'"),
        (SamplingConfig, "temprature", "'temperature'"),
        (SamplingConfig, "qqq", "top_k"),
    ],
)
def test_unknown_keys_name_the_nearest(cls, key, near):
    with pytest.raises(ConfigError) as caught:
        cls.from_dict({key: 1})
    assert repr(key) in str(caught.value)
    assert near in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (ModelConfig, "hidden_size", "8"), (ModelConfig, "hidden_size", 8.0), (ModelConfig, "hidden_size", True),
        (ModelConfig, "hidden_size", None), (ModelConfig, "hidden_size", [8]), (ModelConfig, "tie_embeddings", 1),
        (ModelConfig, "tie_embeddings", "true"), (ModelConfig, "logit_scale", "1"), (ModelConfig, "logit_scale", True),
        (ModelConfig, "logit_scale", 10**400), (TrainConfig, "lr", None), (TrainConfig, "clip", "none"),
        (TrainConfig, "tokenizer", 3), (TrainConfig, "eval_every", 1.5), (CorpusConfig, "val", 3),
        (CorpusConfig, "val_chars", "3"), (CorpusConfig, "encoding", None), (SamplingConfig, "top_k", 1.0),
    ],
)  # fmt: skip
def test_wrong_types_are_refused(cls, key, value):
    with pytest.raises(ConfigError, match=f"{cls.__name__}.{key}"):
        cls.from_dict({key: value})


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        *((ModelConfig, k, v) for k in ("embed_size", "hidden_size") for v in (0, -1, (1 << 15) + 1)),
        *((ModelConfig, "vocab_size", v) for v in (0, 1, (1 << 21) + 1)),
        *((ModelConfig, "num_layers", v) for v in (0, 65)),
        *((ModelConfig, "logit_scale", v) for v in (0.0, -1.0, math.nan, math.inf)),
        *((ModelConfig, f"{k}_dropout", v) for k in ("embed", "input", "layer", "output", "weight")
          for v in (1.0, -0.1, math.nan)),
        *((CorpusConfig, k, v) for k in ("val_fraction", "dev_fraction") for v in (1.0, -0.1, math.nan)),
        (CorpusConfig, "val_chars", -1), (CorpusConfig, "newlines", "crlf"),
        *((TrainConfig, k, 0) for k in ("steps", "batch_size", "seq_len", "eval_every", "sample_every")),
        *((TrainConfig, k, v) for k in ("lr", "clip") for v in (0.0, -1.0, math.nan, math.inf)),
        *((TrainConfig, k, v) for k in ("weight_decay", "lr_final", "temporal_penalty", "activation_penalty")
          for v in (-0.1, math.nan, math.inf)),
        *((TrainConfig, k, v) for k in ("jitter", "beta1", "beta2", "ema", "label_smoothing", "merge_dropout")
          for v in (1.0, -0.1)),
        *((TrainConfig, "calibration_temperature", v) for v in (0.0, 0.009, 101.0, math.nan, math.inf)),
        (TrainConfig, "warmup", 1.1), (TrainConfig, "seed", -1), (TrainConfig, "seed", 1 << 63),
        (TrainConfig, "patience", -1), (SamplingConfig, "temperature", -0.1),
        (SamplingConfig, "temperature", math.nan),
        (SamplingConfig, "temperature", math.inf), (SamplingConfig, "repetition_penalty", 0.0),
        (SamplingConfig, "top_k", -1), (SamplingConfig, "top_p", 1.1), (SamplingConfig, "top_p", -0.1),
        (SamplingConfig, "samplers", "top_k;nothing"), (SamplingConfig, "samplers", "dry;dry"),
        (SamplingConfig, "mirostat", 1), (SamplingConfig, "dry_penalty_last_n", 4097),
        (SamplingConfig, "xtc_probability", 1.1), (SamplingConfig, "dry_allowed_length", 0),
        (SamplingConfig, "typical_p", 0.0), (SamplingConfig, "min_p", 1.5), (SamplingConfig, "min_p", math.nan),
        (SamplingConfig, "presence_penalty", math.inf), (SamplingConfig, "frequency_penalty", math.nan),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(cls, key, value):
    for make in (
        lambda: cls(**{key: value}),
        lambda: cls.from_dict({key: value}),
        lambda: cls().replace(**{key: value}),
    ):
        with pytest.raises(ConfigError, match=key.replace("_", "-")):
            make()


def test_edges_are_allowed():
    ModelConfig(vocab_size=2, embed_size=1, hidden_size=1 << 15, num_layers=64, weight_dropout=0.0)
    TrainConfig(steps=1, warmup=1.0, seed=(1 << 63) - 1, patience=0, weight_decay=0.0, clip=None)
    SamplingConfig(temperature=0.0, top_p=0.0, typical_p=1.0, min_p=1.0, top_k=0)
    CorpusConfig(val_chars=0, val_fraction=0.0)


def test_replace_changes_one_field_only():
    config = ModelConfig(hidden_size=5).replace(embed_size=7)
    assert config == ModelConfig(hidden_size=5, embed_size=7)
    with pytest.raises(ConfigError, match="hidden_size"):
        config.replace(hidden=5)


def test_presets_are_valid_and_of_the_original_size():
    # embedding 50257 x 192;
    # input 512 x 192 + 512; four gates of 512 x (512 + 512) and a bias; output 50257 x 512 + 50257
    original = ModelConfig.from_dict(PRESETS["original"]["model"])
    assert 50_257 * 192 + (512 * 192 + 512) + 4 * (512 * 1024 + 512) + (50_257 * 512 + 50_257) == 37_629_201
    assert original.num_params == 37_629_201
    # 12,480 + 98,816 + 2,099,200 + 33,345
    assert ModelConfig.from_dict(PRESETS["original-char"]["model"]).num_params == 2_243_841
    for preset in PRESETS.values():
        assert CorpusConfig.from_dict(preset["corpus"]).dev_fraction == 0
        assert ModelConfig.from_dict(preset["model"]).to_dict().items() >= preset["model"].items()
        assert TrainConfig.from_dict(preset["train"]).to_dict().items() >= preset["train"].items()


def test_boundary_id():
    assert ModelConfig(vocab_size=300).boundary_id == 299
    assert ModelConfig(vocab_size=300, boundary=False).boundary_id is None


def test_sizes_of_a_tied_network_with_projection():
    config = ModelConfig(vocab_size=11, embed_size=3, hidden_size=5, num_layers=2)
    assert config.tensor_shapes() == {
        "embedding.weight": (11, 3),
        "lstm.0.weight_ih": (20, 3),
        "lstm.0.weight_hh": (20, 5),
        "lstm.0.bias": (20,),
        "lstm.1.weight_ih": (20, 5),
        "lstm.1.weight_hh": (20, 5),
        "lstm.1.bias": (20,),
        "projection.weight": (3, 5),
        "head.bias": (11,),
    }
    assert config.num_params == 33 + 60 + 100 + 20 + 100 + 100 + 20 + 15 + 11
    # matrix-vector products: layer 0, layer 1, projection 5 -> 3, output 3 -> 11
    assert config.flops_per_token == 2 * (20 * 8 + 20 * 10 + 15 + 33)
    assert config.training_flops(7) == 7 * 6 * (20 * 8 + 20 * 10 + 15 + 33)


def test_sizes_of_an_untied_network_with_input_projection():
    config = ModelConfig(
        vocab_size=7, embed_size=2, hidden_size=4, num_layers=1, tie_embeddings=False, input_projection=True
    )
    assert config.tensor_shapes() == {
        "embedding.weight": (7, 2),
        "input.weight": (4, 2),
        "input.bias": (4,),
        "lstm.0.weight_ih": (16, 4),
        "lstm.0.weight_hh": (16, 4),
        "lstm.0.bias": (16,),
        "head.weight": (7, 4),
        "head.bias": (7,),
    }
    assert config.num_params == 14 + 8 + 4 + 64 + 64 + 16 + 28 + 7
    assert config.flops_per_token == 2 * (8 + 128 + 28)


def test_equal_widths_need_no_projection():
    config = ModelConfig(vocab_size=7, embed_size=4, hidden_size=4, num_layers=1)
    assert "projection.weight" not in config.tensor_shapes()
    assert config.flops_per_token == 2 * (16 * 8 + 28)
