"""A run: from sources of text to a finished model in a run folder.

RUN/model.safetensors    the best weights so far, averaged
RUN/checkpoints/step-N/  all that going on needs
RUN/config.json          what was asked, what was chosen, and why
RUN/log.jsonl            a line per report: steps, looks, the end
RUN/samples.md           what the model wrote on the way
RUN/loss.svg             its loss as a picture
RUN/novelty.svg          how much of what it wrote is copied from the training text, with the extra `novelty`
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from textlstm import metrics
from textlstm.config import PRESETS, CorpusConfig, ModelConfig, TrainConfig
from textlstm.corpus import Corpus, LaneReader, Part, Rows, Tokens, absolute, cache_dir, read_corpus, steps_per_epoch
from textlstm.corpus.sources import ROWS
from textlstm.engine.torch import TorchEngine
from textlstm.errors import ConfigError, Interrupted, MissingExtraError, ModelFileError, RunError, UsageError
from textlstm.files import append_whole, insist, sync_file, write_atomically
from textlstm.learning import measure
from textlstm.model_file import ModelFile, read_model, write_model
from textlstm.network import RecurrentLM
from textlstm.novelty import RUN_LENGTHS, CopyMeter, SuffixIndex
from textlstm.planning import SAMPLE_CHARS, SAMPLES, SHOWN_TOKENS, Plan, lighter, portions, samples_of
from textlstm.registry import MODEL_FILE, find_model
from textlstm.scoring.parts import score_held_out
from textlstm.tokenizer import Tokenizer, absolute_name, bytes_to_text, from_json, make_tokenizer
from textlstm.trainer import Callbacks, Development, Look, StepReport, Trainer, Weights, is_out_of_memory, weights_of
from textlstm.trainer.checkpoint import Checkpoint, load_newest, load_step, save_checkpoint
from textlstm.trainer.device import choose_device, deterministic
from textlstm.trainer.distributed import Group, joined
from textlstm.trainer.speed import sgemm_peak
from textlstm.view import Facts, View, loss_svg, novelty_svg

DEFAULT_MINUTES = 3.0
GPT2_TOKENS_OF_ORIGINAL_SPLIT = 33_803  # in the last 104,217 characters of Tiny Shakespeare
ORIGINAL_SPLIT_CHARS = 104_217
_FEW_STEPS = 100


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

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "version": 1,
            "sources": list(self.sources),
            "corpus": self.corpus.to_dict(),
            "model": self.model.to_dict(),
            "train": self.train.to_dict(),
            "fingerprint": self.fingerprint,
            "reasons": list(self.reasons),
            "init_from": self.init_from,
            "init_sha256": self.init_sha256,
            "asked": dict(self.asked),
            "predicted": self.predicted,
        }

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


def train(request: Request, view: View | None = None) -> Result:
    """Trains a model.

    Args:
        request: what is asked.
        view: what is shown meanwhile.

    Returns:
        The result; the run folder holds everything else.

    Raises:
        UsageError, ConfigError: a request that cannot be meant.
        CorpusError: text that cannot be read, or too little of it.
        RunError: a run folder that cannot be used or resumed, or too little memory.
        DivergedError: the numbers stopped being finite.
        Interrupted: a signal came; everything was saved.
    """
    try:
        view = View() if view is None else view
        with deterministic(request.deterministic), joined(view.notice) as group:
            run = _train if group.rank == 0 else _follow
            started = time.perf_counter() if request.started is None else request.started
            return run(request, view, started, group)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"memory ran out ({str(error).splitlines()[0] if str(error) else 'of the machine'}); a smaller "
            "--batch-size, --seq-len or --hidden-size takes less. Checkpoints that were written are kept"
        ) from error


def _train(request: Request, view: View, started: float, group: Group) -> Result:
    if group.size > 1:
        request = _for_several(request)
    folder = run_folder(request)
    resumed = request.resume and (folder / "config.json").exists()
    if resumed:
        setup = Setup.read(folder / "config.json")
        _check_same(setup, request, folder)
        done = _finished_result(folder)
        if done is not None:
            view.notice(f"{folder} is complete; nothing is left to do")
            group.share(json.dumps({"result": done.to_dict()}).encode())
            return done
        with alone_in(folder):
            corpus, tokenizer, checkpoint, initial = _resume(folder, setup, request, view)
            device = choose_device(request.device, setup.train.precision, view.notice)
            return Run(folder, setup, corpus, tokenizer, request, view, started, group, device).go(checkpoint, initial)
    initial = _initial(request.init_from)
    _check_writable(folder)  # said before a long text is read
    setup, corpus, tokenizer, device = _plan(request, initial, view, started)
    while request.out is None and folder.exists():  # another run took the name while this one was planned
        folder = run_folder(request)
    try:
        folder.mkdir(parents=True, exist_ok=request.out is not None)
    except OSError as error:
        raise RunError(f"the run folder {folder} cannot be made: {error.strerror}") from error
    with alone_in(folder):
        if (folder / "config.json").exists():
            raise RunError(f"another run was begun in {folder} meanwhile; name another --out")
        try:
            write_atomically(folder / "config.json", json.dumps(setup.to_dict(), indent=1).encode())
        except OSError as error:
            raise RunError(f"the run folder {folder} cannot be written: {error.strerror}") from error
        return Run(folder, setup, corpus, tokenizer, request, view, started, group, device).go(None, initial)


def _for_several(request: Request) -> Request:
    """A request to several processes; after one has died, torchrun starts all of them with the same words."""
    if request.out is None:
        raise UsageError("several processes need --out RUN, so that they find their run again")
    if any(isinstance(source, Rows) or source == "-" for source in request.sources):
        raise UsageError("several processes read the text each: it cannot come from standard input or from rows")
    if request.time_to_loss is not None:
        raise UsageError("--time-to-loss works with one process only")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return dataclasses.replace(request, resume=request.resume or restarted)


def _follow(request: Request, view: View, started: float, group: Group) -> Result:
    """What all ranks but the first do: the same steps, and nothing else."""
    message = json.loads(group.share(None))
    if "result" not in message:
        setup = Setup.from_dict(message["setup"])
        corpus = read_corpus(setup.sources, setup.corpus)
        if corpus.fingerprint != setup.fingerprint:
            raise RunError(f"rank {group.rank} finds another text than the first one in {' '.join(setup.sources)}")
        folder, tokenizer = Path(message["folder"]), from_json(message["tokenizer"])
        device = choose_device(request.device, setup.train.precision, view.notice)
        Run(folder, setup, corpus, tokenizer, request, View(), started, group, device).follow(message["resumed"])
        message = json.loads(group.share(None))
    values = message["result"]
    return Result(**{**values, "model": Path(values["model"])})


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"the run folder {folder} cannot be made: {there} is not writable; name another --out")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds the lock of a run folder; the system frees it when the process ends, however it ends.

    Raises:
        RunError: another process holds it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # comes with torch

    path = folder / ".lock"
    holder = ""
    with suppress(OSError):
        holder = path.read_text(encoding="utf-8", errors="replace")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        who = f" ({holder})" if holder else ""
        raise RunError(f"another process{who} is training in {folder}; wait for it, or name another --out") from error
    except OSError as error:
        raise RunError(f"the run folder {folder} cannot be written: {error.strerror}") from error
    try:
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def run_folder(request: Request) -> Path:
    """Where the run that is asked for goes.

    Raises:
        UsageError: the folder is something else, or in use.
    """
    if request.out is not None:
        if request.out.exists() and not request.out.is_dir():
            raise UsageError(f"{request.out} is a file; --out names a folder")
        # A temporary file that a kill left behind begins with a dot; it is no run, and no obstacle to one.
        begun = request.out.is_dir() and any(not path.name.startswith(".") for path in request.out.iterdir())
        if begun and not request.resume:
            raise UsageError(f"{request.out} is not empty; add --resume to go on with it, or name another --out")
        if begun and not (request.out / "config.json").exists():
            raise UsageError(f"{request.out} is not a run folder: it has no config.json; name another --out")
        if request.sources or begun:
            return request.out
        if request.resume:
            raise UsageError(f"there is no run in {request.out}; name its text to begin one there")
    elif request.resume:
        raise UsageError("--resume needs --out RUN, the run folder to go on with")
    if not request.sources:
        raise UsageError("name a text to learn from: a file, a folder, '-', or a corpus such as tiny-shakespeare")
    first = request.sources[0]
    return free_run_folder("rows" if isinstance(first, Rows) else "stdin" if first == "-" else Path(first).stem)


def free_run_folder(name: str) -> Path:
    """The first of `runs/NAME-1`, `runs/NAME-2`, ... that does not exist yet."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".-") or "run"
    return next(p for n in range(1, 1_000_000) if not (p := Path("runs", f"{name}-{n}")).exists())


def _initial(init_from: str | None) -> ModelFile | None:
    return None if init_from is None else read_model(find_model(init_from))


def _absolute_model(name: str) -> str:
    """A model's name as it is found from any folder; the names of shipped models stay."""
    return os.path.abspath(name) if Path(name).exists() else name


def _with_absolute_val(config: CorpusConfig) -> CorpusConfig:
    return config if config.val is None else config.replace(val=absolute(config.val))


def _asked(request: Request) -> dict[str, Any]:
    """What `config.json` remembers of a request besides its settings."""
    asked = {name: getattr(request, name) for name in ("minutes", "epochs", "preset", "time_to_loss")}
    for name in ("vocab_size", "accumulate"):  # a short text has fewer pairs, a small memory wants smaller portions
        asked[name] = request.settings.get(name)
    return {name: value for name, value in asked.items() if value is not None}


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The settings of the corpus, of the model and of the training.

    Raises:
        ConfigError: a setting of none of them.
    """
    kinds = (CorpusConfig, ModelConfig, TrainConfig)
    unknown = [name for name in settings if not any(name in kind.__dataclass_fields__ for kind in kinds)]
    if unknown:
        kinds[1].from_dict({unknown[0]: settings[unknown[0]]})  # raises, and names the nearest known one
    corpus, model, train = ({k: v for k, v in settings.items() if k in kind.__dataclass_fields__} for kind in kinds)
    return corpus, model, train


def _check_length(request: Request) -> None:
    if sum(x is not None for x in (request.minutes, request.steps, request.epochs)) > 1:
        raise UsageError("name one length of the run: --minutes, --steps or --epochs")
    for name, value, most in (
        ("minutes", request.minutes, 1e7),
        ("epochs", request.epochs, 1e9),
        ("time-to-loss", request.time_to_loss, 1e9),
    ):
        if value is not None and not 0 < value <= most:
            raise UsageError(f"--{name} must be above 0 and at most {most:g}, not {value:g}")


def _shape_of(initial: ModelFile, for_model: Mapping[str, Any], for_train: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model that a run begins from, with other dropouts if they are asked."""
    dropouts = {k: v for k, v in for_model.items() if k.endswith("dropout")}
    changed = {k for k in for_model.keys() - dropouts.keys() if for_model[k] != getattr(initial.config, k)}
    if changed or "tokenizer" in for_train:
        named = ", ".join(sorted(changed) or ["tokenizer"])
        raise UsageError(f"--init-from keeps the vocabulary and shape of its model; leave out {named}")
    return initial.config.to_dict() | dropouts


def _plan(
    request: Request, initial: ModelFile | None, view: View, started: float
) -> tuple[Setup, Corpus, Tokenizer, str]:
    """Decides everything about a new run."""
    _check_length(request)
    if request.preset is not None and request.preset not in PRESETS:
        raise UsageError(f"there is no preset {request.preset!r}; known are {', '.join(PRESETS)}")
    for_corpus, for_model, for_train = split_settings(request.settings)
    preset = PRESETS.get(request.preset or "", {"model": {}, "train": {}})
    for_model, for_train = preset["model"] | for_model, preset["train"] | for_train
    if "vocab_size" in request.settings and "tokenizer" not in request.settings:
        for_train["tokenizer"] = "bpe"
    if initial is not None:
        for_model = _shape_of(initial, for_model, for_train)
    ModelConfig.from_dict(for_model), TrainConfig.from_dict(for_train)  # impossible values, before a long text is read
    device = choose_device(request.device, for_train.get("precision", TrainConfig.precision), view.notice)
    minutes = _minutes_of(request, preset)
    plan: Plan | None = None
    if minutes is not None:
        plan = Plan(minutes, started, device, view.notice)
        for_corpus.setdefault("max_val_chars", plan.most_held_out)
    corpus = read_corpus(request.sources, CorpusConfig.from_dict(for_corpus), view.notice)
    if request.time_to_loss is not None and not corpus.val.num_chars:
        raise UsageError("--time-to-loss needs a held-out text; leave out --val-fraction 0")
    view.notice(
        f"text: {corpus.train.num_chars + corpus.dev.num_chars:,} characters, held out {corpus.val.num_chars:,}"
    )
    if plan is not None:
        corpus = plan.choose(corpus, for_corpus, for_model, for_train, initial)
    if initial is not None:
        tokenizer = initial.tokenizer
    else:
        boundary = bool(for_model.get("boundary", ModelConfig.boundary))
        wanted = int(for_model.get("vocab_size", ModelConfig.vocab_size)) - boundary
        name = for_train["tokenizer"] = absolute_name(for_train.get("tokenizer", TrainConfig.tokenizer))
        tokenizer = tokenizer_of(name, corpus, wanted, view)
        for_model["vocab_size"] = tokenizer.vocab_size + boundary
    model = ModelConfig.from_dict(for_model)
    if request.steps is not None:
        for_train["steps"] = request.steps
    train = TrainConfig.from_dict(for_train)
    if plan is not None:
        train = plan.count_steps(model, train, corpus, tokenizer)
    elif request.epochs is not None:
        tokens = len(corpus.encode(tokenizer, model.boundary_id, request.workers, view.notice).train)
        per_epoch = steps_per_epoch(tokens, train.batch_size, train.seq_len, train.jitter)
        train = train.replace(steps=max(1, math.ceil(request.epochs * per_epoch)))
        if train.steps < _FEW_STEPS:
            view.notice(f"{train.steps} steps in all: too few to learn much; raise --epochs, or leave the length out")
    setup = Setup(
        [absolute(str(source)) for source in request.sources],
        _with_absolute_val(CorpusConfig.from_dict(for_corpus)),
        model,
        train,
        corpus.fingerprint,
        [] if plan is None else plan.reasons,
        None if request.init_from is None else _absolute_model(request.init_from),
        None if initial is None else initial.sha256,
        _asked(request) | ({} if minutes is None else {"minutes": minutes}),
        None if plan is None else plan.predicted,
    )
    return setup, corpus, tokenizer, device


def _minutes_of(request: Request, preset: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The time that a run is planned for, if nothing else sets its length."""
    if request.steps is not None or request.epochs is not None or "steps" in preset["train"]:
        return request.minutes
    return DEFAULT_MINUTES if request.minutes is None else request.minutes


def _check_same(setup: Setup, request: Request, folder: Path) -> None:
    """Sees that a request to go on asks nothing that the run was not begun with; repeating the command is fine."""
    stored = setup.corpus.to_dict() | setup.model.to_dict() | setup.train.to_dict()
    stored |= {"init_from": setup.init_from, **setup.asked}
    asked = dict(request.settings) | _asked(request) | ({"steps": request.steps} if request.steps is not None else {})
    if request.init_from is not None:  # the run needs no more of that model, which may be gone
        same = setup.init_from in (request.init_from, os.path.abspath(request.init_from))
        asked["init_from"] = setup.init_from if same else request.init_from
    for key, found_anywhere in (("val", absolute), ("tokenizer", absolute_name)):
        if asked.get(key) is not None:
            asked[key] = found_anywhere(asked[key])
    different = [f"{k}: {stored.get(k)!r} there, {v!r} asked" for k, v in asked.items() if stored.get(k) != v]
    if different:
        raise RunError(
            f"{folder} was begun with other settings ({'; '.join(different)}); leave them out, or begin anew"
        )
    sources = [absolute(str(source)) for source in request.sources]
    if sources and sources != list(setup.sources):
        raise RunError(f"{folder} was begun with {' '.join(setup.sources)}, not {' '.join(sources)}")


def _resume(
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
    initial = _initial(setup.init_from)
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
    key = hashlib.sha256(json.dumps([1, corpus.fingerprint, name, vocab_size]).encode()).hexdigest()
    path = cache_dir() / "tokenizers" / f"{key}.json"
    if path.exists():
        with suppress(ModelFileError, ValueError, OSError):
            return from_json(json.loads(path.read_bytes()))
    tokenizer = make_tokenizer(name, corpus.training_text(name, view.notice), vocab_size)
    with suppress(OSError):  # without room it is made again the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(tokenizer.to_json()).encode())
    return tokenizer


def _finished_result(folder: Path) -> Result | None:
    """The result that the last line of a finished run's log tells."""
    try:
        last = json.loads((folder / "log.jsonl").read_bytes().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return None
    if not isinstance(last, dict) or last.get("event") != "end" or not (folder / MODEL_FILE).exists():
        return None
    return Result(folder / MODEL_FILE, json.loads((folder / "config.json").read_bytes()), **last["result"])


class Signals:
    """Turns the first Ctrl-C or SIGTERM within it into a wish to stop; a second one acts at once.

    Args:
        notice: told that the wish was heard.
        hold: let no second one act, because a launcher hands on what the terminal has sent already.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self, notice: Callable[[str], None], hold: bool = False) -> None:
        self.received: int | None = None
        self._notice, self._hold = notice, hold
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        with suppress(ValueError):  # not in the main thread, where Python has no signals
            for watched in (signal.SIGINT, signal.SIGTERM):
                self._previous[watched] = signal.signal(watched, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self._hold and self.received is not None:
            return  # the launcher knows how to kill
        self.received = number
        if not self._hold:
            signal.signal(number, self._previous[number])
        self._notice("saving; once more stops at once")

    def reason(self) -> str | None:
        """The name of the signal, for a trainer that asks whether to stop."""
        return None if self.received is None else signal.Signals(self.received).name


def lane_reader(tokens: Tokens, tokenizer: Tokenizer, model: ModelConfig, train: TrainConfig) -> LaneReader:
    """The reader of a training text."""
    line_end_V = np.zeros(model.vocab_size, dtype=bool)
    for id in range(tokenizer.vocab_size):
        line_end_V[id] = tokenizer.token_bytes(id).endswith(b"\n")
    lanes, length, jitter, seed = train.batch_size, train.seq_len, train.jitter, train.seed
    return LaneReader(tokens.train, lanes, length, jitter, seed, model.boundary_id, line_end_V)


def development(corpus: Corpus, tokens: Tokens) -> Development | None:
    """The part of a text that picks the best weights, or None where there is none."""
    if not len(tokens.dev):
        return None
    return Development(tokens.dev, tokens.train[-metrics.WARM_UP :], corpus.dev.num_chars, corpus.dev.num_bytes)


class Run:
    """A run under way: the trainer, and everything that watches it."""

    def __init__(
        self, folder: Path, setup: Setup, corpus: Corpus, tokenizer: Tokenizer, request: Request, view: View,
        started: float, group: Group, device: str,
    ) -> None:  # fmt: skip
        self.group, self.device = group, device
        self.folder, self.setup, self.corpus, self.tokenizer = folder, setup, corpus, tokenizer
        self.request, self.view, self.started = request, view, started
        self.tokens: Tokens = corpus.encode(tokenizer, setup.model.boundary_id, request.workers, view.notice)
        self.seconds_before = 0.0
        self.seconds_to_loss: float | None = None
        self.train_curve: list[tuple[int, float]] = []
        self.dev_curve: list[tuple[int, float]] = []
        self.copied_curve: list[tuple[int, float, float]] = []  # step, longest run, share of copied characters
        self.chooses = bool(len(self.tokens.dev))  # whether a development part picks the best weights
        self.shown = "development" if self.chooses else "held-out"
        self.best_step: int | None = None
        self._signals = Signals(view.notice, hold=group.size > 1)
        self._began = (0, 0.0)  # step and time at which training began here
        self._told_late = False
        self._failing: set[str] = set()  # what could not be written the last time
        self._unwritten: tuple[Weights, Mapping[str, Any]] | None = None  # a model that the disk has not taken yet
        self._lightened = False  # memory ran out here, and training went on in smaller portions
        self._unsaved: str | None = None  # why the last checkpoint could not be written

    @property
    def seconds(self) -> float:
        """Seconds spent on the run, earlier ones before an interruption included."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def chars_per_token(self) -> float:
        """Characters of training text per token."""
        return self.corpus.train.num_chars / max(1, len(self.tokens.train))

    def go(self, checkpoint: Checkpoint | None, initial: ModelFile | None) -> Result:
        """Trains to the end, scores, and finishes the run folder."""
        if self.group.size > 1:
            message = {
                "folder": str(self.folder),
                "setup": self.setup.to_dict(),
                "tokenizer": self.tokenizer.to_json(),
            }
            self.group.share(json.dumps({**message, "resumed": checkpoint is not None}).encode())
        while True:
            try:
                trainer, reason = self._trained(checkpoint, initial)
                break
            except (MemoryError, RuntimeError) as error:
                smaller = lighter(self.setup.train) if is_out_of_memory(error) and self.group.size == 1 else None
                if smaller is None:
                    raise
            checkpoint = self._go_on_with(smaller)  # here the failed trainer is gone
        if reason is not None:
            self._interrupted(trainer)
        result = self._finish(trainer)
        self.group.share(json.dumps({"result": result.to_dict()}).encode())
        return result

    def _go_on_with(self, train: TrainConfig) -> Checkpoint | None:
        """Changes the configuration of a run whose memory ran out; the checkpoint to go on from, if there is one.

        The steps stay the same, up to rounding, so that checkpoints of before fit; from here on they follow from
        `config.json` again.
        """
        gc.collect()
        self._lightened = True
        self.setup = dataclasses.replace(self.setup, train=train)
        insist(
            lambda: write_atomically(self.folder / "config.json", json.dumps(self.setup.to_dict(), indent=1).encode())
        )
        checkpoint = load_newest(self.folder / "checkpoints", self.view.notice)
        where = "the beginning" if checkpoint is None else f"step {checkpoint.step}"
        self.view.notice(f"memory ran out; going on from {where}: {portions(train)}")
        self.train_curve.clear()
        self.dev_curve.clear()
        return checkpoint

    def _trained(self, checkpoint: Checkpoint | None, initial: ModelFile | None) -> tuple[Trainer, str | None]:
        """Trains from a checkpoint or the beginning; the trainer, and why it was stopped, if it was."""
        trainer = self._trainer(initial)
        if self.group.size > 1:
            self.group.share_checkpoint(trainer.checkpoint() if checkpoint is None else checkpoint)
        if checkpoint is None:
            for name in ("log.jsonl", "samples.md", MODEL_FILE):
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)  # what a kill left while it wrote the first
        else:
            trainer.restore(checkpoint)
            self._rewind(checkpoint)
        self.view.begin(self._facts(), trainer.step)
        self._began = (trainer.step, time.perf_counter())
        callbacks = Callbacks(
            on_step=self._on_step,
            on_look=self._on_look,
            save=self._save,
            stop=self._signals.reason,
            reached=self._reached,
        )
        with self._signals:
            return trainer, trainer.run(callbacks)

    def follow(self, resumed: bool) -> None:
        """Trains as one of the ranks that write nothing."""
        trainer = self._trainer(None)
        trainer.restore(self.group.share_checkpoint(None if resumed else trainer.checkpoint()))
        with self._signals:
            reason = trainer.run(Callbacks(stop=self._signals.reason))
        if reason is not None:
            raise Interrupted(
                f"rank {self.group.rank} stopped with the others", self._signals.received or signal.SIGTERM
            )

    def _trainer(self, initial: ModelFile | None) -> Trainer:
        model, train = self.setup.model, self.setup.train
        reader = lane_reader(self.tokens, self.tokenizer, model, train)
        if reader.batch_size < train.batch_size:
            self.view.notice(f"the text is short: {reader.batch_size} lanes instead of {train.batch_size}")
        dev = development(self.corpus, self.tokens)
        if dev is None and len(self.tokens.val) and self.corpus.val_follows:
            ids = self.tokens.val[:SHOWN_TOKENS]
            data = self.tokenizer.decode_bytes(ids[ids < self.tokenizer.vocab_size].tolist())
            before = self.tokens.train[-metrics.WARM_UP :]
            dev = Development(ids, before, max(1, len(bytes_to_text(data))), max(1, len(data)), chooses=False)
        weights = None if initial is None else initial.weights
        counts_V = metrics.token_counts(self.tokens.train, model.vocab_size)
        return Trainer(model, train, reader, dev, weights, self.device, self.group, counts_V)

    def _facts(self) -> Facts:
        model = self.setup.model
        return Facts(
            title=f"{self.corpus.name} -> {self.folder}",
            lines=self.setup.reasons,
            steps=self.setup.train.steps,
            chars_per_token=self.chars_per_token,
            uniform=math.log(model.vocab_size),
            unigram=metrics.unigram_nats(self.tokens.train, model.vocab_size),
            flops_per_token=3 * model.flops_per_token,
            peak=sgemm_peak(self.device),
            shown=self.shown,
        )

    def _log(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(_finite(record), allow_nan=False) + "\n"
        self._attempt("log.jsonl", lambda: append_whole(self.folder / "log.jsonl", line))

    def _attempt(self, name: str, write: Callable[[], None]) -> None:
        """Writes something that training can do without for a while; a failure is told once."""
        try:
            write()
        except OSError as error:
            if name not in self._failing:
                self.view.notice(f"{name} cannot be written ({error.strerror}); training goes on")
            self._failing.add(name)
        else:
            self._failing.discard(name)

    def _on_step(self, report: StepReport) -> None:
        self.view.step(report.step, report.nats, report.lr, report.epoch, report.tokens, report.seconds)
        if report.skipped is not None:
            self.view.notice(f"step {report.step} was skipped: {_SKIPPED[report.skipped]}")
        every = max(1, report.steps // 1000)
        if report.step % every == 0 or report.skipped is not None:
            nats = report.nats
            per_char = nats / self.chars_per_token
            if math.isfinite(per_char) and report.skipped is None:
                self.train_curve.append((report.step, per_char))
            self._log(
                {
                    "event": "step", "step": report.step, "nats_per_token": nats, "nats_per_char": per_char,
                    "lr": report.lr, "epoch": report.epoch, "tokens_per_second": report.tokens / report.seconds,
                    **({} if report.skipped is None else {"skipped": report.skipped}),
                }
            )  # fmt: skip

    def _on_look(self, look: Look, network: RecurrentLM) -> None:
        record: dict[str, Any] = {
            "event": "look",
            "step": look.step,
            "best": look.best,
            "seconds": look.seconds,
        }
        if look.dev is not None:
            self.dev_curve.append((look.step, look.dev.nats_per_char))
            record["dev" if self.chooses else "held_out_begin"] = look.dev.to_dict()
        self._log(record)
        if look.best:
            self.best_step = look.step
            self._write_model(network, look.step, {"dev": record.get("dev")})
        self.view.look(look.step, look.dev, look.best)
        self._watch_plan(look.step)
        every = self.setup.train.sample_every
        finite = look.dev is None or math.isfinite(look.dev.nats)  # else the logits are not, and nothing can be drawn
        if finite and (every is None or look.step % every == 0):
            texts = self._samples(network)
            told, text = self._tell_copied(look.step, texts), texts[0]
            quoted = "".join(f"    {line}\n" for line in text.split("\n"))
            entry = f"## step {look.step}\n\n{quoted}\n" + (f"{told}\n\n" if told else "")
            self._attempt("samples.md", lambda: append_whole(self.folder / "samples.md", entry))
            self.view.sample(look.step, text)
        picture = loss_svg(self.train_curve, self.dev_curve, self.shown).encode()
        self._attempt("loss.svg", lambda: write_atomically(self.folder / "loss.svg", picture))

    def _watch_plan(self, step: int) -> None:
        """Says once if a run that was planned for a time falls far behind it."""
        minutes, steps = self.setup.asked.get("minutes"), self.setup.train.steps
        first, began = self._began
        if minutes is None or self._told_late or step - first < steps / 10 or step == steps:
            return
        per_step = (time.perf_counter() - began) / (step - first)
        projected = (self.seconds + per_step * (steps - step)) / 60
        if projected > 1.25 * minutes:
            self._told_late = True
            self.view.notice(
                f"slower than when this machine was measured: about {projected:.1f} minutes in all instead of "
                f"{minutes:g}; other programs may be using it (Ctrl-C saves)"
            )

    def _samples(self, network: RecurrentLM) -> list[str]:
        return samples_of(network, self.tokenizer, 1 if self._copies is None else SAMPLES)

    @cached_property
    def _copies(self) -> CopyMeter | None:
        """What measures copies, or None: the text is long beside the run, or the extra is not installed."""
        train, config = self.corpus.train, self.setup.train
        flops = 3 * self.setup.model.flops_per_token * config.steps * config.batch_size * config.seq_len
        if not isinstance(train, Part) or not CopyMeter.pays(train.num_bytes, flops):
            return None
        human = self.corpus.dev.text if self.chooses else self.corpus.val.text
        try:
            return CopyMeter(SuffixIndex.of_texts(d.text for d in train.documents), human, SAMPLE_CHARS)
        except (MissingExtraError, OSError):  # nobody asked for it, and a cache without room stops no run
            return None

    def _tell_copied(self, step: int, texts: Sequence[str]) -> str:
        """Measures, logs and draws what of some samples is copied; returns it in words."""
        written = None if self._copies is None else self._copies.measure(texts)
        if self._copies is None or written is None:
            return ""
        human = self._copies.human
        record = {"event": "novelty", "step": step, "samples": written.to_dict()}
        self._log(record | ({} if human is None else {"people": human.to_dict()}))
        self.copied_curve.append((step, written.longest, written.copied[RUN_LENGTHS[0]]))
        picture = novelty_svg(
            [(at, longest) for at, longest, _ in self.copied_curve],
            [(at, share) for at, _, share in self.copied_curve],
            None if human is None else (human.longest, human.copied[RUN_LENGTHS[0]]), RUN_LENGTHS[0],
        )  # fmt: skip
        self._attempt("novelty.svg", lambda: write_atomically(self.folder / "novelty.svg", picture.encode()))
        told = self._copies.tell(written)
        self.view.copied(told)
        return f"copied word for word: {told}"

    def _reached(self, network: RecurrentLM) -> bool:
        wanted, val = self.setup.asked.get("time_to_loss"), self.tokens.val
        if wanted is None or not len(val):
            return False
        # Several lanes are quick and nearly right; one lane decides. A score that is not a number reaches nothing.
        if not all(
            score_held_out(network, self.corpus, self.tokens, kind).nats_per_char <= wanted
            for kind in ("stream-16", "stream")
        ):
            return False
        self.seconds_to_loss = self.seconds_before + process_seconds()
        self._write_model(network, None, {}, f"first look at which the held-out text cost {wanted} nats per character")
        return True

    def _save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint; where the disk refuses, training goes on and the next one is tried."""
        try:
            self._flush_model()  # a checkpoint promises that the best model so far is there
            insist(lambda: self._write_checkpoint(checkpoint))
            self._unsaved = None
        except OSError as error:
            self._unsaved = error.strerror or str(error)
            self.view.notice(
                f"the checkpoint of step {checkpoint.step} cannot be written ({self._unsaved}); the one before stays, "
                "and training goes on to the next"
            )

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        values = {
            **checkpoint.values,
            "tokenizer": self.tokenizer.to_json(),
            "seconds": self.seconds,
            "best_step": self.best_step,
            "seconds_to_loss": self.seconds_to_loss,
            "sizes": {name: _size(self.folder / name) for name in ("log.jsonl", "samples.md")},
        }
        for name in ("log.jsonl", "samples.md"):  # the sizes above are a promise
            if (self.folder / name).exists():
                sync_file(self.folder / name)
        save_checkpoint(self.folder / "checkpoints", Checkpoint(checkpoint.step, checkpoint.tensors, values))

    def _rewind(self, checkpoint: Checkpoint) -> None:
        """Cuts log and samples back to where the checkpoint was taken, and takes up the curves."""
        if not self._lightened:  # else the clock of this process has counted them already
            self.seconds_before = checkpoint.values["seconds"]
        self.best_step = checkpoint.values["best_step"]
        self.seconds_to_loss = checkpoint.values.get("seconds_to_loss")
        for name, size in checkpoint.values["sizes"].items():
            if _size(self.folder / name) > size:
                os.truncate(self.folder / name, size)
        if not _size(self.folder / "log.jsonl"):  # a long run logs only every so many steps
            return
        for line in (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # torn by a power cut; the checkpoint is whole
                continue
            if record["event"] == "novelty":
                seen = record["samples"]
                self.copied_curve.append((record["step"], seen["longest"], seen[f"copied_{RUN_LENGTHS[0]}"]))
            elif record["event"] == "step" and record["nats_per_char"] is not None:
                self.train_curve.append((record["step"], record["nats_per_char"]))
            elif (seen := record.get("dev") or record.get("held_out_begin")) and seen["nats_per_char"] is not None:
                self.dev_curve.append((record["step"], seen["nats_per_char"]))

    def _write_model(
        self, network: RecurrentLM, step: int | None, scores: Mapping[str, Any], chosen_by: str | None = None
    ) -> None:
        card = self._card(step, scores)
        card["chosen_by"] = card["chosen_by"] if chosen_by is None else chosen_by
        self._unwritten = weights_of(network), card
        self._attempt(MODEL_FILE, self._flush_model)

    def _flush_model(self) -> None:
        """Writes the model that is waiting to be written, if one is."""
        if self._unwritten is not None:
            weights, card = self._unwritten
            path = self.folder / MODEL_FILE
            insist(lambda: write_model(path, self.setup.model, self.tokenizer, weights, card))
            self._unwritten = None

    def _card(self, step: int | None, scores: Mapping[str, Any]) -> dict[str, Any]:
        corpus = self.corpus
        return {
            "corpus": {
                "name": " ".join(Path(s).name or s for s in self.setup.sources),
                "source": "the user's own text" if "unknown" in corpus.licence.split("; ") else corpus.source,
                "licence": corpus.licence,
                "canonical": corpus.canonical,
                "sha256": corpus.fingerprint,
            },
            "split": {
                "train_chars": corpus.train.num_chars,
                "dev_chars": corpus.dev.num_chars,
                "val_chars": corpus.val.num_chars,
                **({} if corpus.sampled_from is None else {"train_chars_sampled_from": corpus.sampled_from}),
            },
            "chosen_by": "lowest loss on the development part" if corpus.dev.num_chars else "end of the run",
            "step": step,
            "steps": self.setup.train.steps,
            "train": self.setup.train.to_dict() | {"tokenizer": Path(self.setup.train.tokenizer).name},
            "seconds": round(self.seconds, 3),
            "machine": {
                "processor": processor(),
                "cores": os.cpu_count(),
                "system": platform.system(),
                "device": self.device,
            },
            "versions": {name: _version(name) for name in ("textlstm", "torch", "numpy", "tokenizers")},
            "date": datetime.now(UTC).date().isoformat(),
            "command": self.request.command,
            "scores": dict(scores),
        }

    def _interrupted(self, trainer: Trainer) -> None:
        if not self.chooses or not (self.folder / MODEL_FILE).exists():
            self._write_model(trainer.averaged, trainer.step, {})
        if self._unsaved is not None:
            raise RunError(
                f"stopped at step {trainer.step} of {self.setup.train.steps}, but what was done since the last whole "
                f"checkpoint in {self.folder} could not be saved: {self._unsaved}"
            )
        raise Interrupted(
            f"stopped at step {trainer.step} of {self.setup.train.steps}; everything is saved. Go on with: "
            f"textlstm train --resume --out {shlex.quote(str(self.folder))}"
            + (", with the same text on standard input" if "-" in self.setup.sources else ""),
            self._signals.received or signal.SIGTERM,  # another rank got it
        )

    def _finish(self, trainer: Trainer) -> Result:
        try:
            return self._finished(trainer)
        except OSError as error:
            raise RunError(
                f"the run is over, but {self.folder} cannot be written: {error.strerror}. Make room, then finish it "
                f"with: textlstm train --resume --out {shlex.quote(str(self.folder))}"
            ) from error

    def _finished(self, trainer: Trainer) -> Result:
        self._flush_model()
        if not (self.folder / MODEL_FILE).exists():  # no look at the development part gave a finite number
            self._write_model(trainer.averaged, trainer.step, {}, "end of the run: no look gave a finite number")
        file = read_model(self.folder / MODEL_FILE)
        val: dict[str, Any] | None = None
        if len(self.tokens.val):
            self.view.notice("scoring the held-out text ...")
            score = score_held_out(TorchEngine(file), self.corpus, self.tokens, "stream")
            val = score.to_dict()
            if self.corpus.canonical and score.chars == ORIGINAL_SPLIT_CHARS:
                val["nats_per_gpt2_token"] = score.nats / GPT2_TOKENS_OF_ORIGINAL_SPLIT
            self.view.score(score)
            if self.setup.predicted is not None:
                off = self.setup.predicted / score.nats_per_char - 1
                self.view.notice(
                    f"predicted before it began: {self.setup.predicted:.3f} nats per character, {abs(off):.1%} too "
                    + ("high" if off > 0 else "low")
                )
        scores = {**file.card["scores"], **({"val": val} if val else {})}
        card = {**file.card, "scores": scores, "seconds": round(self.seconds, 3)}
        statistics = measure(file, self.tokens.train)  # what `--learn` will go by
        write_model(self.folder / MODEL_FILE, file.config, file.tokenizer, file.weights, card, statistics=statistics)
        values: dict[str, Any] = {
            "steps": trainer.step,
            "seconds": round(self.seconds, 3),
            "train_chars": self.corpus.train.num_chars,
            "params": self.setup.model.num_params,
            "val": val,
            "seconds_to_loss": self.seconds_to_loss,
            "predicted": self.setup.predicted,
        }
        append_whole(self.folder / "log.jsonl", json.dumps(_finite({"event": "end", "result": values})) + "\n")
        return Result(self.folder / MODEL_FILE, self.setup.to_dict(), **values)


_SKIPPED = {
    "not finite": "its numbers are not finite",
    "spike": "its loss or gradient stands far out from those before",
}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
