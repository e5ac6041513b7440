"""What is asked of a run, what was decided, and what came of it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textlstm.autopilot import Timetable
from textlstm.config import HELD_OUT, UNBOUNDED, CorpusConfig, ModelConfig, TrainConfig
from textlstm.corpus import Rows, absolute
from textlstm.errors import ConfigError, RunError, UsageError
from textlstm.model_file import ModelFile
from textlstm.tokenizer import absolute_name

DEFAULT_MINUTES = 3.0
_LENGTHS = ("minutes", "steps", "epochs")


@dataclass(frozen=True)
class Request:
    """What a user asked of a run.

    Attributes:
        sources: texts to learn from; may be empty when a run is resumed.
        out: the run folder; None makes `runs/NAME-N`.
        minutes, steps, epochs: length of the run, at most one of them; none is three minutes.
        preset: a name in `PRESETS`.
        settings: fields of CorpusConfig, ModelConfig and TrainConfig that the user set.
        init_from: a model to begin from; its vocabulary and shape are kept.
        resume: go on from the last whole checkpoint in `out`.
        time_to_loss: stop when the held-out text costs no more than this many nats per character.
        command: the command line, for the model card.
        resume_step: go on from the checkpoint of this step instead.
        workers: processes that encode a long text.
        device: where to train, one of `DEVICES`.
        deterministic: on a GPU, use only algorithms that give the same bits every time.
        started: when the clock of `minutes` began, by `time.perf_counter`; None is now. A command's imports count.
    """

    sources: Sequence[str | Rows]
    out: Path | None = None
    minutes: float | None = None
    steps: int | None = None
    epochs: float | None = None
    preset: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    resume: bool = False
    time_to_loss: float | None = None
    command: str = ""
    resume_step: int | None = None
    workers: int = 1
    device: str = "auto"
    deterministic: bool = False
    started: float | None = None


@dataclass(frozen=True)
class Result:
    """What came out of a run.

    Attributes:
        model: path of the model file.
        config: the contents of `config.json`.
        steps, seconds, train_chars, params: how much was done, and of what size.
        val: score of the held-out text, as JSON values; None where nothing was held out.
        seconds_to_loss: from the start of the process; None if not asked or never reached.
        predicted: the score of the held-out text that was predicted before the run, in nats per character.
        prompt: some words of the text to begin writing with, best of what was held out; "" where it has none.
    """

    model: Path
    config: Mapping[str, Any]
    steps: int
    seconds: float
    train_chars: int
    params: int
    val: Mapping[str, Any] | None
    seconds_to_loss: float | None = None
    predicted: float | None = None
    prompt: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"model": str(self.model)}


@dataclass(frozen=True)
class Setup:
    """A run with everything decided, as `config.json` stores it.

    Attributes:
        sources: texts to learn from, found from any folder.
        corpus, model, train: every setting.
        fingerprint: SHA-256 of the text.
        reasons: why `--minutes` chose what it chose.
        init_from, init_sha256: the model begun from, and the hash of its tensors.
        asked: the lengths, preset and target that were asked for, those of them that were.
        predicted: nats per character of the held-out text that `--minutes` expects; None where it cannot tell.
        began_from: what the card tells of the model begun from, which may be gone when the run is resumed.
        timetable: when a run planned for a time has to end.
        command: what the run was begun with.
    """

    sources: Sequence[str]
    corpus: CorpusConfig
    model: ModelConfig
    train: TrainConfig
    fingerprint: str
    reasons: Sequence[str]
    init_from: str | None
    init_sha256: str | None
    asked: Mapping[str, Any]
    predicted: float | None = None
    began_from: Mapping[str, Any] | None = None
    timetable: Timetable | None = None
    command: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"version": 1, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Setup:
        """The inverse of `to_dict`."""
        return cls(
            values["sources"],
            CorpusConfig.from_dict(values["corpus"]),
            ModelConfig.from_dict(values["model"]),
            TrainConfig.from_dict(values["train"]),
            values["fingerprint"],
            values["reasons"],
            values["init_from"],
            values.get("init_sha256"),
            dict(values.get("asked", {})),
            values.get("predicted"),
            values.get("began_from"),
            None if values.get("timetable") is None else Timetable(**values["timetable"]),
            values.get("command"),
        )

    @classmethod
    def read(cls, path: Path) -> Setup:
        """Reads a `config.json`."""
        try:
            values = json.loads(path.read_bytes())
            if values["version"] != 1:
                raise RunError(f"{path} was written by another version of textlstm; upgrade it")
            return cls.from_dict(values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise RunError(f"{path} cannot be read: {error}") from error


def process_seconds() -> float:
    """Seconds since this process was started, by the system's own account where it gives one."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - _IMPORTED


_IMPORTED = time.perf_counter()


def absolute_model(name: str) -> str:
    """A model's name as it is found from any folder; the names of shipped models stay."""
    return os.path.abspath(name) if Path(name).exists() else name


def with_absolute_val(config: CorpusConfig) -> CorpusConfig:
    """A configuration of the corpus that holds in any folder."""
    return config if config.val is None else config.replace(val=absolute(config.val))


def asked_of(request: Request) -> dict[str, Any]:
    """What `config.json` remembers of a request besides its settings."""
    asked = {name: getattr(request, name) for name in ("minutes", "epochs", "preset", "time_to_loss")}
    # A short text has fewer pairs, a small memory wants smaller portions, a short time has fewer looks.
    for name in ("vocab_size", "accumulate", "eval_every"):
        asked[name] = request.settings.get(name)
    return {name: value for name, value in asked.items() if value is not None}


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The settings of the corpus, of the model and of the training.

    Raises:
        ConfigError: a setting of none of them.
        UsageError: more than one that says what is held out.
    """
    if sum(settings.get(name) is not None for name in HELD_OUT) > 1:
        raise UsageError("name one way to hold text out: --val, --val-chars or --val-fraction")
    if settings.get("max_val_chars") is not None and any(settings.get(name) is not None for name in UNBOUNDED):
        raise UsageError("--max-val-chars bounds a share of the text; --val and --val-chars hold out what they say")
    kinds = (CorpusConfig, ModelConfig, TrainConfig)
    known = [name for kind in kinds for name in kind.__dataclass_fields__]
    for name in settings.keys() - known:
        near = difflib.get_close_matches(name, [*known, *_LENGTHS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"there is no setting {name!r}; {hint}")
    corpus, model, train = ({k: v for k, v in settings.items() if k in kind.__dataclass_fields__} for kind in kinds)
    return corpus, model, train


def check_length(request: Request) -> None:
    """Sees that a request names one length.

    Raises:
        UsageError: it names two, or an impossible one.
    """
    if sum(x is not None for x in (request.minutes, request.steps, request.epochs)) > 1:
        raise UsageError("name one length of the run: --minutes, --steps or --epochs")
    for name, value, most in (
        ("minutes", request.minutes, 1e7),
        ("epochs", request.epochs, 1e9),
        ("time-to-loss", request.time_to_loss, 1e9),
    ):
        if value is not None and not 0 < value <= most:
            raise UsageError(f"--{name} must be above 0 and at most {most:g}, not {value:g}")


def shape_of(initial: ModelFile, for_model: Mapping[str, Any], for_train: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model that a run begins from, with other dropouts if they are asked."""
    config = initial.uncalibrated
    dropouts = {k: v for k, v in for_model.items() if k.endswith("dropout")}
    changed = {k for k in for_model.keys() - dropouts.keys() if for_model[k] != getattr(config, k)}
    if changed or "tokenizer" in for_train:
        named = ", ".join("--" + name.replace("_", "-") for name in sorted(changed) or ["tokenizer"])
        raise UsageError(f"--init-from keeps the vocabulary and shape of its model; leave out {named}")
    return config.to_dict() | dropouts


def penalty_of(initial: ModelFile) -> float:
    """The activation penalty that a model was trained with; one that does not tell had none.

    Under another one a network would first have to learn outputs of another size: `shakespeare`, which had none, is at
    1.225 nats per character of Alice after 150 steps without, at 1.241 with 10.
    """
    train = initial.card.get("train")
    known = train.get("activation_penalty") if isinstance(train, Mapping) else None
    try:
        return TrainConfig.from_dict({"activation_penalty": known}).activation_penalty
    except ConfigError:
        return 0.0


def minutes_of(request: Request, preset: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The time that a run is planned for, if nothing else sets its length."""
    if request.steps is not None or request.epochs is not None or "steps" in preset["train"]:
        return request.minutes
    return DEFAULT_MINUTES if request.minutes is None else request.minutes


def check_same(setup: Setup, request: Request, folder: Path, instead: str | None = None) -> None:
    """Sees that a request to go on asks nothing that the run was not begun with; repeating the command is fine.

    Args:
        setup, folder: of the run.
        request: to go on with it.
        instead: what to do otherwise, in words, where the run cannot go on.

    Raises:
        RunError: something else is asked.
    """
    stored = setup.corpus.to_dict() | setup.model.to_dict() | setup.train.to_dict()
    stored |= {"init_from": setup.init_from, **setup.asked}
    asked = dict(request.settings) | asked_of(request)
    if request.steps is not None:
        asked["steps"] = request.steps
    if request.init_from is not None:  # the run needs no more of that model, which may be gone
        same = setup.init_from in (request.init_from, os.path.abspath(request.init_from))
        asked["init_from"] = setup.init_from if same else request.init_from
    for key, found_anywhere in (("val", absolute), ("tokenizer", absolute_name)):
        if asked.get(key) is not None:
            asked[key] = found_anywhere(asked[key])
    different = [f"{k}: {stored.get(k)!r} there, {v!r} asked" for k, v in asked.items() if stored.get(k) != v]
    if different:
        otherwise = "leave them out, or begin anew" if instead is None else instead
        raise RunError(f"{folder} was begun with other settings ({'; '.join(different)}); {otherwise}")
    sources = [absolute(str(source)) for source in request.sources]
    if sources and sources != list(setup.sources):
        otherwise = "" if instead is None else f"; {instead}"
        raise RunError(f"{folder} was begun with {' '.join(setup.sources)}, not {' '.join(sources)}{otherwise}")
