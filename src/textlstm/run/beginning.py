"""How a run begins, and how it is taken up again: text, tokenizer, plan."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from textlstm import autopilot
from textlstm.config import PRESETS, CorpusConfig, ModelConfig, TrainConfig
from textlstm.corpus import Corpus, Part, absolute, cache_dir, lanes_within, merges_of, read_corpus, steps_per_epoch
from textlstm.corpus.sources import ROWS, check_sources
from textlstm.errors import ConfigError, CorpusError, ModelFileError, RunError, UsageError
from textlstm.files import write_atomically
from textlstm.model_file import ModelFile, read_model
from textlstm.planning import Plan, Planned
from textlstm.registry import MODEL_FILE, find_model
from textlstm.run.card import began_from
from textlstm.run.setup import (
    Request,
    Setup,
    absolute_model,
    asked_of,
    check_length,
    minutes_of,
    penalty_of,
    shape_of,
    split_settings,
    with_absolute_val,
)
from textlstm.tokenizer import Tokenizer, absolute_name, from_json, make_tokenizer
from textlstm.trainer.checkpoint import Checkpoint, load_newest, load_step
from textlstm.trainer.device import choose_device, usual_precision
from textlstm.view import View

_FEW_STEPS = 100


def initial_model(init_from: str | None) -> ModelFile | None:
    """The model that a run begins from."""
    return None if init_from is None else read_model(find_model(init_from))


def begin(
    request: Request, initial: ModelFile | None, view: View, started: float
) -> tuple[Setup, Corpus, Tokenizer, str]:
    """Decides everything about a new run."""
    check_length(request)
    preset = _preset_of(request)
    for_corpus, for_model, for_train = _settled(request, preset, initial)
    held_out = CorpusConfig.from_dict(for_corpus).val
    check_sources([*request.sources, *([] if held_out is None else [held_out])])
    device = device_of(request, for_train, view)
    minutes = minutes_of(request, preset)
    plan: Plan | None = None
    planned: Planned | None = None
    if minutes is not None:
        plan = Plan(minutes, started, device, for_train["precision"], view.notice)
        for_corpus.setdefault("max_val_chars", plan.most_held_out(initial is not None))
    corpus = read_corpus(request.sources, CorpusConfig.from_dict(for_corpus), view.notice)
    if request.time_to_loss is not None and not corpus.val.num_chars:
        raise UsageError("--time-to-loss needs a held-out text; leave out --val-fraction 0")
    view.notice(
        f"text: {corpus.train.num_chars + corpus.dev.num_chars:,} characters, held out {corpus.val.num_chars:,}"
    )
    if plan is not None:
        choice = plan.choose(corpus, for_corpus, for_model, for_train, initial)
        corpus = choice.corpus
    if initial is not None:
        tokenizer = initial.tokenizer
    else:
        boundary = bool(for_model.get("boundary", ModelConfig.boundary))
        wanted = int(for_model.get("vocab_size", ModelConfig.vocab_size)) - boundary
        name = for_train["tokenizer"] = absolute_name(for_train.get("tokenizer", TrainConfig.tokenizer))
        tokenizer = tokenizer_of(name, corpus, wanted, view)
        for_model["vocab_size"] = tokenizer.vocab_size + boundary
        _tell_vocabulary(request, preset["train"].get("tokenizer", name), name, for_model["vocab_size"], view)
    _check_merges(for_train, tokenizer)
    model = ModelConfig.from_dict(for_model)
    _check_length(corpus, tokenizer, model, view)
    _tell_large(for_model, model, corpus, view)
    train = TrainConfig.from_dict(for_train)
    if plan is not None:
        planned = plan.count_steps(choice, model, train, tokenizer)
        model, train = planned.model, planned.train
        if train.steps < min(_FEW_STEPS, planned.timetable.most_steps):  # else more time would not help
            fit = "1 step fits" if train.steps == 1 else f"{train.steps:,} steps fit"
            view.notice(f"{fit}: too few to learn much; give it more --minutes")
    elif request.epochs is not None:
        tokens = len(corpus.encode(tokenizer, model.boundary_id, request.workers, view.notice).train)
        train = _for_epochs(request.epochs, train, tokens, view)
    setup = Setup(
        [absolute(str(source)) for source in request.sources],
        with_absolute_val(CorpusConfig.from_dict(for_corpus)),
        model,
        train,
        corpus.fingerprint,
        [] if planned is None else planned.reasons,
        None if request.init_from is None else absolute_model(request.init_from),
        None if initial is None else initial.sha256,
        asked_of(request) | ({} if minutes is None else {"minutes": minutes}),
        None if planned is None else planned.predicted,
        None if initial is None else began_from(str(request.init_from), initial),
        None if planned is None else planned.timetable,
        request.command,
    )
    return setup, corpus, tokenizer, device


def _preset_of(request: Request) -> Mapping[str, Mapping[str, Any]]:
    """What a preset sets for corpus, model and training; nothing where none is asked for."""
    if request.preset is None:
        return {"corpus": {}, "model": {}, "train": {}}
    if request.preset not in PRESETS:
        raise UsageError(f"there is no preset {request.preset!r}; known are {', '.join(PRESETS)}")
    return PRESETS[request.preset]


def _settled(
    request: Request, preset: Mapping[str, Mapping[str, Any]], initial: ModelFile | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What is fixed for corpus, model and training before a text is read; impossible values are refused here."""
    for_corpus, for_model, for_train = split_settings(request.settings)
    for_corpus = {**preset["corpus"], **for_corpus}
    for_model, for_train = {**preset["model"], **for_model}, {**preset["train"], **for_train}
    if initial is not None:
        for_model = shape_of(initial, for_model, for_train)
        for_train.setdefault("activation_penalty", penalty_of(initial))
    elif "vocab_size" in request.settings and "tokenizer" not in request.settings:
        for_train["tokenizer"] = "bpe"  # also where a preset has another
    if request.steps is not None:
        for_train["steps"] = request.steps
    _check_vocabulary(TrainConfig.from_dict(for_train).tokenizer, ModelConfig.from_dict(for_model))
    return for_corpus, for_model, for_train


def _for_epochs(epochs: float, train: TrainConfig, tokens: int, view: View) -> TrainConfig:
    """A configuration with the steps that read a text so often."""
    per_epoch = steps_per_epoch(tokens, train.batch_size, train.seq_len, train.jitter)
    train = train.replace(steps=max(1, math.ceil(epochs * per_epoch)))
    if train.steps < _FEW_STEPS:
        view.notice(f"{train.steps} steps in all: too few to learn much; raise --epochs, or leave the length out")
    return train


def _check_vocabulary(name: str, model: ModelConfig) -> None:
    """Refuses a vocabulary that has no room for the bytes, by the number that the user gave."""
    if name == "bpe" and model.vocab_size < 256 + model.boundary:
        besides = " and the document boundary" if model.boundary else ""
        raise ConfigError(f"{256 + model.boundary} is the smallest --vocab-size: the single bytes{besides}")


def _tell_vocabulary(request: Request, usual: str, name: str, ids: int, view: View) -> None:
    """Says so if `--vocab-size` took a preset's tokenizer away, or has no effect."""
    asked = request.settings.get("vocab_size")
    if asked is not None and usual != name and "tokenizer" not in request.settings:
        view.notice(f"--vocab-size takes the tokenizer bpe instead of {usual}, which --preset {request.preset} has")
    if asked is not None and name != "bpe" and asked != ids:
        view.notice(f"--vocab-size {asked} has no effect: the tokenizer {name} has {ids} ids")


def _check_merges(for_train: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Refuses, before anything is written, to take merges apart where there are none."""
    if for_train.get("merge_dropout"):
        merges_of(tokenizer)


def _check_length(corpus: Corpus, tokenizer: Tokenizer, model: ModelConfig, view: View) -> None:
    """Refuses, before anything is written, a text that repeats itself so evenly that hardly a token is left of it."""
    head = sum(len(tokenizer.encode(text)) for text in corpus.train.head(_HEAD))
    if lanes_within(head, 1) >= 1:
        return
    tokens = len(corpus.encode(tokenizer, model.boundary_id, notice=view.notice).train)
    if lanes_within(tokens, 1) < 1:
        raise CorpusError(
            f"{corpus.name}: the {corpus.train.num_chars:,} characters to learn from are {tokens} tokens, which are "
            "too few; a smaller --vocab-size, or --tokenizer byte, makes more of them"
        )


_HEAD = 100_000  # characters: enough of nearly every text, and quickly encoded


def device_of(request: Request, for_train: dict[str, Any], view: View) -> str:
    """Where to train; the usual precision there is put among the settings if none was asked for."""
    device = choose_device(request.device, for_train.get("precision", TrainConfig.precision), view.notice)
    if "precision" not in for_train and usual_precision(device) == "bf16":
        view.notice("products in bf16, which this processor multiplies faster than fp32; --precision sets it")
    for_train.setdefault("precision", usual_precision(device))
    return device


def _tell_large(chosen: Mapping[str, Any], model: ModelConfig, corpus: Corpus, view: View) -> None:
    """Says so if nothing chose the size of the network, and it is larger than `--minutes` would take for the text."""
    chars = corpus.train.num_chars
    by_default = not chosen.keys() & {"embed_size", "hidden_size", "num_layers"}
    suits = autopilot.most_params(autopilot.Text(chars).tokens(model.vocab_size))
    if by_default and model.num_params > suits:
        view.notice(
            f"the default network, {model.num_layers} x {model.hidden_size}, is large for {chars:,} characters: "
            "--minutes plans one that fits, --hidden-size sets it"
        )


def take_up(
    folder: Path, setup: Setup, request: Request, view: View
) -> tuple[Corpus, Tokenizer, Checkpoint | None, ModelFile | None]:
    """Takes up a run where it was left; without a checkpoint, the model to begin from comes too."""
    if "-" in (*setup.sources, setup.corpus.val):
        if sys.stdin is None or sys.stdin.isatty():
            raise RunError(f"{folder} was begun with a text from standard input: pipe the same text in again")
        view.notice("reading the text from standard input again")
    if ROWS in setup.sources and not request.sources:
        raise RunError(f"{folder} was begun with {ROWS}: hand the same ones over again")
    corpus = read_corpus(request.sources or setup.sources, setup.corpus, view.notice)
    if corpus.fingerprint != setup.fingerprint:
        raise RunError(f"the text has changed since {folder} was begun, so going on would not be the same run")
    checkpoints, step = folder / "checkpoints", request.resume_step
    checkpoint = load_newest(checkpoints, view.notice) if step is None else load_step(checkpoints, step)
    if checkpoint is not None:
        return corpus, from_json(checkpoint.values["tokenizer"]), checkpoint, None
    if any(path.name.removeprefix("step-").isdigit() for path in (folder / "checkpoints").glob("step-*")):
        raise RunError(
            f"no checkpoint of {folder} is whole; its {MODEL_FILE} is kept as it is: go on from it in another "
            f"folder with --init-from {folder}"
        )
    view.notice("no checkpoint yet; beginning afresh")
    initial = initial_model(setup.init_from)
    if initial is not None:
        if initial.sha256 != setup.init_sha256:
            raise RunError(f"{setup.init_from} has changed since {folder} was begun from it; begin anew")
        return corpus, initial.tokenizer, None, initial
    wanted = setup.model.vocab_size - setup.model.boundary
    return corpus, tokenizer_of(setup.train.tokenizer, corpus, wanted, view), None, None


def tokenizer_of(name: str, corpus: Corpus, vocab_size: int, view: View) -> Tokenizer:
    """The tokenizer of a run; one made for a long text is kept in the cache."""
    if isinstance(corpus.train, Part):
        return make_tokenizer(name, corpus.training_text(name), vocab_size)
    key = hashlib.sha256(json.dumps([3, corpus.fingerprint, name, vocab_size]).encode()).hexdigest()
    path = cache_dir() / "tokenizers" / f"{key}.json"
    if path.exists():
        with suppress(ModelFileError, ValueError, OSError):
            return from_json(json.loads(path.read_bytes()))
    tokenizer = make_tokenizer(name, corpus.training_text(name, view.notice), vocab_size)
    with suppress(OSError):  # without room it is made again the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(tokenizer.to_json()).encode())
    return tokenizer
