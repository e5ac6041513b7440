"""Configurations: frozen dataclasses that are the single source of the flags, their help and the stored JSON.

Every field carries its help text; the command line derives its options from the fields, and `from_dict` reads
the JSON of a model file or run folder strictly, so that a misspelt key is an error that names the nearest known
one. Each class checks its own values when it is made.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from textlstm.errors import ConfigError

UNBOUNDED = ("val", "val_chars")  # of CorpusConfig: what is held out by them, `max_val_chars` does not bound
HELD_OUT = ("val", "val_chars", "val_fraction")  # of CorpusConfig: the first that is set says what is held out
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0  # that the logits of a finished model may be divided by


def option(default: Any, help: str, **extra: Any) -> Any:
    """A dataclass field with its help text.

    Args:
        default: its value where nobody sets it.
        help: for the command line.
        **extra: `choices`; `planned`, for what `--minutes` chooses by its rule.
    """
    return dataclasses.field(default=default, metadata={"help": help, **extra})


@dataclass(frozen=True)
class Config:
    """What all configurations share: strict reading, plain writing."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a configuration from JSON values.

        Args:
            values: field name to value; fields that are absent take their defaults.

        Raises:
            ConfigError: unknown key (the message names the nearest known one), wrong type, impossible value.
        """
        hints = typing.get_type_hints(cls)
        for key, value in values.items():
            if key not in hints:
                near = difflib.get_close_matches(key, hints, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(hints)}"
                raise ConfigError(f"{cls.__name__} has no setting {key!r}{hint}")
            if not _has_type(value, hints[key]):
                raise ConfigError(f"{cls.__name__}.{key} must be {_type_name(hints[key])}, not {value!r}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @classmethod
    def taken_from(cls, values: dict[str, Any]) -> Self:
        """Builds a configuration from those of some values that are its fields, and takes them out."""
        names = [field.name for field in dataclasses.fields(cls) if field.name in values]
        return cls.from_dict({name: values.pop(name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new one."""
        return type(self).from_dict({**self.to_dict(), **changes})

    def _require(self, condition: bool, field: str, must: str) -> None:
        if not condition:
            raise ConfigError(f"{field.replace('_', '-')} must be {must}, not {getattr(self, field)!r}")

    def _require_probabilities(self, *fields: str) -> None:
        for field in fields:
            self._require(0 <= getattr(self, field) < 1, field, "at least 0 and below 1")


def _has_type(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_has_type(value, part) for part in typing.get_args(hint))
    if hint is float:
        return isinstance(value, float) or (_has_type(value, int) and abs(value) < 1 << 1000)  # others overflow
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if not isinstance(hint, types.UnionType) else str(hint)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file: the `best.json` of a search, or the `config.json` of a run.

    Args:
        path: a JSON object with the sections `corpus`, `model` and `train`, any of which may be absent.

    Returns:
        Field name to value.

    Raises:
        ConfigError: no such file, or one with something else in it.
    """
    wanted = "take the best.json of a search or the config.json of a run"
    try:
        data = path.read_bytes()
        if not data.strip():
            raise ConfigError(f"{path} is empty, and no configuration; {wanted}")
        values = json.loads(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; {wanted}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no configuration, which is one JSON object; {wanted}") from error
    settings: dict[str, Any] = {}
    for section, kind in (("corpus", CorpusConfig), ("model", ModelConfig), ("train", TrainConfig)):
        part = values.get(section, {}) if isinstance(values, dict) else None
        if not isinstance(part, dict):
            raise ConfigError(f"{path} is no configuration: it has no section {section!r} of settings")
        kind.from_dict(part)
        settings |= part
    for name in [name for name in HELD_OUT if settings.get(name) is not None][1:]:
        del settings[name]  # a run's file has every field, also those that did not count
    if any(settings.get(name) is not None for name in UNBOUNDED):
        settings.pop("max_val_chars", None)
    if values.get("timetable") is not None and "eval_every" not in values.get("asked", {}):
        settings.pop("eval_every", None)  # it suited the time of that run
    if not settings:
        raise ConfigError(f"{path} is no configuration: none of the sections corpus, model and train is in it")
    return settings


@dataclass(frozen=True)
class ModelConfig(Config):
    """The shape of a network and the regularisation it is trained with."""

    vocab_size: int = option(1024, "ids in the softmax, the document boundary included", planned=True)
    embed_size: int = option(384, "width E of the token embedding", planned=True)
    hidden_size: int = option(384, "width H of each LSTM layer", planned=True)
    num_layers: int = option(2, "number L of LSTM layers")
    tie_embeddings: bool = option(True, "share the embedding with the output layer")
    input_projection: bool = option(False, "put a linear layer E -> H between embedding and LSTM")
    logit_scale: float = option(1.0, "factor on the logits")
    boundary: bool = option(True, "the last id marks where a document begins; else a uniform first prediction")
    embed_dropout: float = option(0.0, "drop whole rows of the embedding, that is token types", planned=True)
    input_dropout: float = option(0.1, "locked dropout on the input of the first layer", planned=True)
    layer_dropout: float = option(0.15, "locked dropout between layers", planned=True)
    output_dropout: float = option(0.2, "locked dropout on the output of the last layer", planned=True)
    weight_dropout: float = option(0.1, "drop single recurrent weights (DropConnect)", planned=True)

    # Caps that no sensible model reaches, so that a hostile file is refused before anything is allocated.
    MAX_SIZES = types.MappingProxyType(
        {"vocab_size": 1 << 21, "embed_size": 1 << 15, "hidden_size": 1 << 15, "num_layers": 64}
    )

    def __post_init__(self) -> None:
        for field, most in self.MAX_SIZES.items():
            self._require(1 <= getattr(self, field) <= most, field, f"between 1 and {most}")
        self._require(self.vocab_size >= 2, "vocab_size", "at least 2")
        self._require(math.isfinite(self.logit_scale) and self.logit_scale > 0, "logit_scale", "above 0")
        self._require_probabilities(
            "embed_dropout", "input_dropout", "layer_dropout", "output_dropout", "weight_dropout"
        )

    @property
    def boundary_id(self) -> int | None:
        """The id that marks the beginning of a document, or None."""
        return self.vocab_size - 1 if self.boundary else None

    @property
    def input_size(self) -> int:
        """Width of what the first LSTM layer reads."""
        return self.hidden_size if self.input_projection else self.embed_size

    @property
    def has_output_projection(self) -> bool:
        """Whether a linear layer H -> E stands before a tied output."""
        return self.tie_embeddings and self.embed_size != self.hidden_size

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the network with its shape, in the order of the computation."""
        V, E, H = self.vocab_size, self.embed_size, self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (V, E)}
        if self.input_projection:
            shapes |= {"input.weight": (H, E), "input.bias": (H,)}
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else H
            shapes[f"lstm.{layer}.weight_ih"] = (4 * H, width)
            shapes[f"lstm.{layer}.weight_hh"] = (4 * H, H)
            shapes[f"lstm.{layer}.bias"] = (4 * H,)
        if self.has_output_projection:
            shapes["projection.weight"] = (E, H)
        if not self.tie_embeddings:
            shapes["head.weight"] = (V, H)
        return shapes | {"head.bias": (V,)}

    @property
    def num_params(self) -> int:
        """Number of trained numbers."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def cooled(self, temperature: float) -> ModelConfig:
        """The same network with its logits divided by a temperature."""
        return self.replace(logit_scale=self.logit_scale / temperature)

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of one forward pass for one token, counted from the matrix sizes.

        A multiplication and an addition count as two; the embedding is a table look-up and counts nothing,
        element-wise work is left out.
        """
        shapes = self.tensor_shapes()
        matrices = sum(math.prod(s) for n, s in shapes.items() if len(s) == 2 and n != "embedding.weight")
        tied_output = self.vocab_size * self.embed_size if self.tie_embeddings else 0
        return 2 * (matrices + tied_output)

    def training_flops(self, tokens: int) -> int:
        """Floating-point operations of training on so many tokens: thrice those of reading them.

        Each product of the forward pass has two on the way back, for its weights and for its inputs.
        """
        return 3 * self.flops_per_token * tokens


@dataclass(frozen=True)
class CorpusConfig(Config):
    """Which text is read, how, and what is held out."""

    encoding: str = option("utf-8", "encoding of the files; 'bytes' takes anything, byte for byte")
    newlines: str = option("keep", "'lf' turns CRLF and CR into LF", choices=("keep", "lf"))
    column: str = option("text", "field of .jsonl files and column of .csv and .parquet files that holds the text")
    val_fraction: float = option(0.1, "share of the text, cut from its end, that is held out for the final score")
    val_chars: int | None = option(None, "hold out exactly this many characters instead")
    val: str | None = option(None, "hold out the text of this file instead")
    max_val_chars: int = option(
        2_000_000, "hold out at most this many characters, however long the text", planned=True
    )
    max_dev_chars: int = option(500_000, "let at most this many characters pick the best weights")
    dev_fraction: float = option(
        0.05, "share of the training text, cut from its end, that picks the best weights; 0 keeps the last",
        planned=True,
    )  # fmt: skip
    sample_chars: int | None = option(
        None, "learn from about this many characters only, in stretches spread over the training text"
    )
    sample_seed: int = option(0, "seed of where these stretches lie")

    def __post_init__(self) -> None:
        self._require_probabilities("val_fraction", "dev_fraction")
        self._require(self.val_chars is None or self.val_chars >= 0, "val_chars", "0 or more")
        self._require(self.sample_chars is None or self.sample_chars >= 1000, "sample_chars", "at least 1000")
        for field in ("max_val_chars", "max_dev_chars", "sample_seed"):
            self._require(getattr(self, field) >= 0, field, "0 or more")
        self._require(self.newlines in ("keep", "lf"), "newlines", "'keep' or 'lf'")


LOOKS, LEAST_APART = 20, 25  # looks of a run, unless they come nearer to each other than so many steps


@dataclass(frozen=True)
class TrainConfig(Config):
    """How a network is trained."""

    tokenizer: str = option(
        "bpe",
        "bpe, char, byte, gpt2, gpt2-pruned, another tiktoken name, or a .tiktoken file, which can write any text; or "
        "char-plain, which reads an unseen character as '?' or a space",
    )
    steps: int = option(1000, "number of optimizer steps")
    batch_size: int = option(16, "number B of lanes read side by side", planned=True)
    seq_len: int = option(64, "mean length T of truncated backpropagation, in tokens", planned=True)
    accumulate: int = option(1, "compute each step in this many portions of its lanes: less memory, the same result")
    jitter: float = option(0.25, "lengths vary by this share around the mean, in steps of 8 tokens")
    lr: float = option(7e-3, "peak learning rate of AdamW", planned=True)
    lr_final: float = option(0.0, "learning rate at the end of the cosine, as a share of the peak", planned=True)
    warmup: float = option(0.03, "share of the steps over which the learning rate rises to its peak")
    beta1: float = option(0.9, "decay of AdamW's mean of gradients")
    beta2: float = option(0.999, "decay of AdamW's mean of squared gradients")
    weight_decay: float = option(0.1, "decoupled weight decay on matrices; biases have none", planned=True)
    clip: float | None = option(1.0, "gradients are scaled down to this norm; none in the original's preset")
    spike_sigmas: float = option(
        6.0, "skip a step whose loss or gradient is this many standard deviations above the last 128; 0 skips none"
    )
    ema: float = option(0.99, "decay of the averaged weights; 0 turns averaging off", planned=True)
    activation_penalty: float = option(
        5.0, "weight of the mean of the squared outputs of the last layer (AR)", planned=True
    )
    temporal_penalty: float = option(0.0, "weight of the squared change of these outputs in time (TAR)")
    label_smoothing: float = option(0.0, "share of the target spread evenly over the vocabulary")
    merge_dropout: float = option(
        0.0,
        "probability that a token falls back into the two it was merged from, anew at each pass; it falls to 0 at "
        "80 % of the steps (bpe, gpt2 and others with merges). A pass has more tokens then; --epochs does not count "
        "them",
        planned=True,
    )
    calibration_temperature: float | None = option(
        None,
        "the model's logits are divided by this when training is over, and at each look: above 1 for one that is too "
        "sure of itself; default: what suits the development part best; without one, 1 or what --minutes chooses",
    )
    precision: str = option(
        "fp32",
        "of the products: fp32, tf32 (Nvidia's GPUs), or bf16; weights and sums are fp32; train takes bf16 by itself "
        "where the processor has tiles for it (AMX)",
        choices=("fp32", "tf32", "bf16"),
    )
    unigram_bias: bool = option(True, "begin the output bias at the logarithms of the tokens' frequencies")
    seed: int = option(0, "seed of initialisation, dropout and order of the text")
    eval_every: int | None = option(
        None,
        "steps between looks at the development part, or the held-out text; default: 20 looks a run, 25 steps apart "
        "at least; fewer where they would take more than 4 % of --minutes",
    )
    sample_every: int | None = option(None, "samples only at looks whose step is a multiple of this; default: at each")
    checkpoint_every: int | None = option(
        None, "steps between checkpoints; default: with every second look, and every ten minutes"
    )
    patience: int = option(8, "stop after this many looks without a new best; 0 never stops early")

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "seq_len", "accumulate", "eval_every", "sample_every", "checkpoint_every")
        for field in counts:
            value = getattr(self, field)
            self._require(value is None or value >= 1, field, "at least 1")
        for field in ("lr", "clip"):
            value = getattr(self, field)
            self._require(value is None or (math.isfinite(value) and value > 0), field, "above 0")
        temperature = self.calibration_temperature
        bounds = f"between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}"
        in_bounds = temperature is None or MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE
        self._require(in_bounds, "calibration_temperature", bounds)
        for field in ("weight_decay", "lr_final", "patience", "spike_sigmas"):
            value = getattr(self, field)
            self._require(math.isfinite(value) and value >= 0, field, "0 or more")
        for field in ("activation_penalty", "temporal_penalty"):
            self._require(0 <= getattr(self, field) <= 1e4, field, "between 0 and 10000")
        self._require_probabilities("jitter", "beta1", "beta2", "ema", "label_smoothing", "merge_dropout")
        self._require(self.precision in ("fp32", "tf32", "bf16"), "precision", "fp32, tf32 or bf16")
        self._require(0 <= self.warmup <= 1, "warmup", "between 0 and 1")
        self._require(0 <= self.seed < 2**63, "seed", "0 or more and below 2^63")


@dataclass(frozen=True)
class LearnConfig(Config):
    """How a model learns from what it reads; `textlstm.learning` has the equations, `textlstm.memories` the rest."""

    learn_rate: float = option(1e-3, "with --learn: length of the steps that weights take")
    learn_decay: float = option(1e-3, "with --learn: share by which weights go back to the trained ones at each step")
    learn_segment: int = option(20, "with --learn: tokens that are read before the model learns from them")
    learn_memories: bool = option(True, "with --learn: mix in what n-grams, matches and states of the text predict")

    def __post_init__(self) -> None:
        for field in ("learn_rate", "learn_decay"):
            self._require(0 <= getattr(self, field) <= 1, field, "between 0 and 1")
        self._require(1 <= self.learn_segment <= 4096, "learn_segment", "between 1 and 4096")


@dataclass(frozen=True)
class SamplingConfig(Config):
    """How a token is drawn from the logits; the operators apply in the order of these fields, or of `samplers`.

    The meaning of each operator and their order follow Hugging Face and vLLM (temperature before truncation), with
    typical-p before top-p, and llama.cpp for what these have not; `textlstm.sampling` has the definitions.
    """

    repetition_penalty: float = option(1.0, "divide positive logits of seen tokens by this, multiply negative ones")
    frequency_penalty: float = option(0.0, "subtract this for every time that a token was generated")
    presence_penalty: float = option(0.0, "subtract this once if a token was generated")
    dry_multiplier: float = option(0.0, "subtract this from a token that would go on with a repeat (DRY); 0 is off")
    dry_base: float = option(1.75, "DRY: the factor for each token by which the repeat is longer than allowed")
    dry_allowed_length: int = option(2, "DRY: the longest repeat that costs nothing, in tokens")
    dry_penalty_last_n: int = option(-1, "DRY: look at so many tokens; 0 is off, -1 as many as it can, which is 4096")
    dry_breakers: str | None = option(
        None, "DRY: a repeat does not reach past a token with one of these; by default line end, colon, quote, star"
    )
    temperature: float = option(0.8, "divide the logits by this; 0 always takes the likeliest token")
    top_k: int = option(0, "keep the K likeliest tokens; 0 is off")
    typical_p: float = option(1.0, "keep tokens of typical surprise up to this mass; 1 is off")
    top_p: float = option(1.0, "keep the likeliest tokens up to this mass; 1 is off")
    min_p: float = option(0.0, "keep tokens at least this likely relative to the likeliest; 0 is off")
    top_n_sigma: float = option(0.0, "keep logits within so many standard deviations of the largest; 0 is off")
    xtc_probability: float = option(0.0, "how often the likeliest tokens are left out (XTC); 0 is off")
    xtc_threshold: float = option(0.1, "XTC: of the tokens at least this likely all but the least likely; 0.5 is off")
    mirostat: int = option(0, "2 keeps the surprise at mirostat-tau, instead of all truncation; 0 is off")
    mirostat_tau: float = option(5.0, "mirostat: the surprise that is wanted, in bits per token")
    mirostat_eta: float = option(0.1, "mirostat: how fast it is corrected")
    samplers: str | None = option(
        None, "these only, in this order: penalties, dry, temperature, top_k, typ_p, top_p, min_p, top_n_sigma, xtc"
    )
    temperature_last: bool = option(False, "truncate first and apply the temperature last, as llama.cpp does")

    #: Operators in their order, by llama.cpp's names.
    ORDER = ("penalties", "dry", "temperature", "top_k", "typ_p", "top_p", "min_p", "top_n_sigma", "xtc")
    DRY_BREAKERS = '\n:"*'
    DRY_MOST = 4096  # tokens that it looks at

    def __post_init__(self) -> None:
        finite = (
            "temperature", "frequency_penalty", "presence_penalty", "repetition_penalty", "dry_multiplier", "dry_base",
            "top_n_sigma", "mirostat_tau", "mirostat_eta",
        )  # fmt: skip
        for field in finite:
            self._require(math.isfinite(getattr(self, field)), field, "a finite number")
        self._require(self.temperature >= 0, "temperature", "0 or more")
        self._require(self.repetition_penalty > 0, "repetition_penalty", "above 0")
        self._require(self.top_k >= 0, "top_k", "0 or more")
        self._require(0 < self.typical_p <= 1, "typical_p", "above 0 and at most 1")
        self._require(0 <= self.top_p <= 1, "top_p", "between 0 and 1")
        self._require(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        self._require(self.dry_multiplier >= 0, "dry_multiplier", "0 or more")
        self._require(self.dry_base > 0, "dry_base", "above 0")
        self._require(self.dry_allowed_length >= 1, "dry_allowed_length", "1 or more")
        self._require(
            -1 <= self.dry_penalty_last_n <= self.DRY_MOST, "dry_penalty_last_n", f"between -1 and {self.DRY_MOST}"
        )
        for field in ("xtc_probability", "xtc_threshold"):
            self._require(0 <= getattr(self, field) <= 1, field, "between 0 and 1")
        self._require(self.mirostat in (0, 2), "mirostat", "0 or 2")
        self._require(self.mirostat_tau >= 0, "mirostat_tau", "0 or more")
        names = self.ORDER if self.samplers is None else self.order
        known = set(names) <= set(self.ORDER) and len(set(names)) == len(names)
        self._require(known, "samplers", f"names of {', '.join(self.ORDER)}, each once at most")
        if self.temperature_last and self.samplers is not None:
            raise ConfigError("samplers says already where the temperature comes; leave temperature-last out")

    @property
    def order(self) -> tuple[str, ...]:
        """The operators that apply, in their order, by the names in `ORDER`."""
        if self.samplers is not None:
            names = [name.strip().replace("typical_p", "typ_p") for name in re.split("[;,]", self.samplers)]
            return tuple(name for name in names if name)
        if self.temperature_last:
            return (*(name for name in self.ORDER if name != "temperature"), "temperature")
        return self.ORDER

    @property
    def dry_window(self) -> int:
        """How many tokens DRY looks at; 0 if it is off."""
        if not self.dry_multiplier or "dry" not in self.order:
            return 0
        return self.DRY_MOST if self.dry_penalty_last_n < 0 else self.dry_penalty_last_n

    @property
    def is_plain(self) -> bool:
        """Whether the usual operators apply in the usual order, which is compiled."""
        rest = self.dry_window or self.top_n_sigma > 0 or self.xtc_probability > 0 or self.mirostat
        return not rest and self.order == self.ORDER


@dataclass(frozen=True)
class PatternConfig(Config):
    """What a text must look like; one of these at most, but for `prefix`, which goes with each of the others."""

    regex: str | None = option(None, "write a text that this regular expression matches as a whole")
    choices: tuple[str, ...] = option((), "write one of these texts")
    template: str | None = option(None, "write this text and fill its fields, {name:REGEX} or {name} for some words")
    blanks: str | None = option(None, "write this text with each _ replaced by one character that is no space")
    line_length: int | None = option(None, "write lines of at most this many characters")
    prefix: str | None = option(None, "begin the text with this")

    def __post_init__(self) -> None:
        given = [name for name in ("regex", "template", "blanks", "line_length") if getattr(self, name) is not None]
        given += ["choices"] * bool(self.choices)
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} cannot go together; put them into one regex".replace("_", "-"))
        self._require(self.line_length is None or self.line_length >= 1, "line_length", "at least 1")


_ORIGINAL_TRAIN = {
    "batch_size": 8, "seq_len": 256, "jitter": 0.0, "lr": 3e-4, "lr_final": 1.0, "warmup": 0.0, "beta2": 0.999,
    "weight_decay": 0.01, "clip": None, "ema": 0.0, "steps": 50_000, "patience": 0, "unigram_bias": False,
    "spike_sigmas": 0.0, "merge_dropout": 0.0, "activation_penalty": 0.0,
}  # fmt: skip
_ORIGINAL_MODEL = {
    "embed_size": 192, "hidden_size": 512, "num_layers": 1, "tie_embeddings": False, "input_projection": True,
    "embed_dropout": 0.0, "input_dropout": 0.0, "layer_dropout": 0.0, "output_dropout": 0.0, "weight_dropout": 0.0,
}  # fmt: skip
_ORIGINAL_CORPUS = {"dev_fraction": 0.0}  # nothing chose its weights: it was validated once, at the end

#: Where a model can be trained: the first that there is, in this order.
DEVICES = ("auto", "cuda", "mps", "xpu", "cpu")

#: What can run a finished model.
ENGINES = ("int8", "onnx", "torch")

#: Named starting points for `--preset`: what they set in CorpusConfig, ModelConfig and TrainConfig. The precision of
#: products is left to the machine; weights and sums are fp32 as the original's.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "original": {
        "corpus": _ORIGINAL_CORPUS,
        "model": {**_ORIGINAL_MODEL, "vocab_size": 50_257, "logit_scale": 0.1},
        "train": {**_ORIGINAL_TRAIN, "tokenizer": "gpt2"},
    },
    "original-char": {
        "corpus": _ORIGINAL_CORPUS,
        "model": {**_ORIGINAL_MODEL, "vocab_size": 65, "boundary": False},
        "train": {**_ORIGINAL_TRAIN, "tokenizer": "char-plain"},
    },
}
