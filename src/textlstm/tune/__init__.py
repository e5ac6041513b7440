"""The search for good options: many short trainings of the same compute on the same text, one after the other.

OUT/search.json   what was asked, and the space that is searched
OUT/trials.db     every trial with its options, its course and its score (SQLite; optuna reads it too)
OUT/best.json     the best options so far, for `textlstm train --config`

Each trial is a run of the project's own trainer, scored on the development part, which is cut from the end of the
training text. The held-out text is cut off before and looked at by nothing here. The first trial takes what the rule
behind `--minutes` chooses for these options; optuna's sampler (tree-structured Parzen estimators, Bergstra et al.
2011) proposes the others, and its median rule ends a trial that is worse than half of those before it were at the same
share of their steps.

| option | searched |
|---|---|
| vocab-size | the sizes that the rule knows, from half to twice the one that it takes (own BPE only) |
| hidden-size, with embed-size | from half to twice what the rule takes, in steps of 64 |
| num-layers | 1 to 3 |
| batch-size | 4 to 32 lanes, in steps of 4 |
| seq-len | 32 to 128 tokens, in steps of 16 |
| lr | 1e-3 to 3e-2, on a logarithmic scale |
| weight-decay | 0.01 to 1, on a logarithmic scale |
| input-, layer-, output-, weight-dropout | 0 to 0.6 |

What a user sets is not searched. The activation penalty goes with the width, as the rule has it. The average of the
weights spans a twelfth of each trial, and its rate ends at 0, however often it reads the text; `--ema`, `--lr-final`
and `--merge-dropout` set what the rule takes for a text that is read often.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textlstm import autopilot, metrics, run
from textlstm.appraisal import appraise
from textlstm.config import CorpusConfig, ModelConfig, TrainConfig
from textlstm.corpus import Corpus, Part, Tokens, absolute, lanes_within, read_corpus, source_title
from textlstm.errors import DivergedError, Interrupted, MissingExtraError, RunError, UsageError
from textlstm.files import write_atomically
from textlstm.tokenizer import Tokenizer, absolute_name
from textlstm.trainer import Callbacks, Look, StepReport, Trainer, is_out_of_memory
from textlstm.trainer.device import choose_device, usual_precision
from textlstm.trainer.speed import measure_step, planning_peak
from textlstm.tune.show import TuneView

if TYPE_CHECKING:
    import optuna

SEARCH_FILE, TRIALS_FILE, BEST_FILE = "search.json", "trials.db", "best.json"
_BEGINNING = 8  # trials drawn at random before the sampler learns from them
_SHARES = 20  # of a trial, at which it is compared with the others
_FIRST_JUDGED = 5  # share from which on a trial may be ended: a quarter of its steps
_COMPARED = 5  # trials that must be complete before one is ended early


@dataclass(frozen=True)
class Search:
    """What a user asked of a search.

    Attributes:
        sources: texts to learn from.
        out: the folder of the search; one that holds the same search is gone on with. None makes `runs/NAME-tune-N`.
        trials: how many there shall be in all.
        flops: floating-point operations of each trial, of the matrix products.
        minutes: of each trial instead, by a measurement of each.
        prune: end trials early that are worse than half of the others.
        settings: fields of CorpusConfig, ModelConfig and TrainConfig that are not searched.
        workers: processes that encode a long text.
        device: where to train, one of `DEVICES`.
    """

    sources: Sequence[str]
    out: Path | None = None
    trials: int = 20
    flops: float | None = None
    minutes: float | None = None
    prune: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    device: str = "auto"


@dataclass(frozen=True)
class Row:
    """A trial that has ended.

    Attributes:
        number: counted from 1, in the order in which they were begun.
        nats_per_char: lowest of the development part; None where there is none.
        ended: "complete", "pruned" (worse than half of the others), "diverged" or "out of memory".
        steps, steps_done, seconds, params: planned (0 where it failed before that), done, how long they took, of what
            size.
        settings: what was searched and what was set.
    """

    number: int
    nats_per_char: float | None
    ended: str
    steps: int
    steps_done: int
    seconds: float
    params: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What came out of a search.

    Attributes:
        out: its folder.
        rows: all trials.
        best: the complete one with the lowest score; None where none was completed.
        command: how to train the same model again.
        config: the best options as a file for `train --config`.
    """

    out: Path
    rows: Sequence[Row]
    best: Row | None
    command: str | None
    config: Path | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**dataclasses.asdict(self), "out": str(self.out), "config": self.config and str(self.config)}


def tune(search: Search, view: TuneView) -> Found:
    """Searches for options, or goes on with a search.

    Args:
        search: what is asked.
        view: what is shown meanwhile.

    Returns:
        All trials; the best options are in the folder too.

    Raises:
        MissingExtraError: optuna is not installed.
        UsageError, ConfigError: a request that cannot be meant.
        CorpusError: text that cannot be read, or too little of it.
        RunError: a folder that cannot be used or gone on with.
        Interrupted: a signal came; all trials but the one under way are kept.
    """
    require_optuna()
    for_corpus, for_model, for_train = _check(search)
    name = Path(source_title(search.sources[0])).stem
    folder = run.free_run_folder(f"{name}-tune") if search.out is None else search.out
    begun = _begun(folder)
    # What is held out is dropped here, before anything is chosen.
    text = replace(read_corpus(search.sources, CorpusConfig.from_dict(for_corpus), view.notice), val=Part(()))
    if not text.dev.num_chars:
        raise UsageError("a search needs a development part to choose by; leave out --dev-fraction 0")
    device = choose_device(search.device, for_train.get("precision", TrainConfig.precision), view.notice)
    for_train.setdefault("precision", usual_precision(device))
    fixed = {"corpus": for_corpus, "model": for_model, "train": for_train}
    asked = {
        "sources": [absolute(source) for source in search.sources], "text": text.fingerprint, "flops": search.flops,
        "minutes": search.minutes, "prune": search.prune, "fixed": fixed,
    }  # fmt: skip
    plan = _Plan.made(asked, text, device) if begun is None else _Plan.read(folder / SEARCH_FILE, asked)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the folder {folder} cannot be made: {error.strerror}") from error
    with run.alone_in(folder), _study(folder, plan) as study, run.Signals(view.notice) as signals:
        if begun is None:
            write_atomically(folder / SEARCH_FILE, json.dumps(plan.to_dict(), indent=1).encode())
        return _Tuner(search, folder, plan, text, study, signals, view, device).go()


def require_optuna() -> None:
    """Sees that optuna is installed.

    Raises:
        MissingExtraError: it is not.
    """
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        raise MissingExtraError("optuna", "tune")


def _check(search: Search) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    if not search.sources:
        raise UsageError("name a text to learn from: a file, a folder, or a corpus such as tiny-shakespeare")
    if "-" in search.sources:
        raise UsageError("a search reads its text again when it goes on: it cannot come from standard input")
    if (search.flops is None) == (search.minutes is None):
        raise UsageError("name the compute of a trial: --minutes, or --flops")
    for name, value, most in (("flops", search.flops, 1e22), ("minutes", search.minutes, 1e5)):
        if value is not None and not 0 < value <= most:
            raise UsageError(f"--{name} must be above 0 and at most {most:g}, not {value:g}")
    for_corpus, for_model, for_train = run.split_settings(search.settings)
    if for_corpus.get("val") is not None:
        for_corpus["val"] = absolute(for_corpus["val"])
    ModelConfig.from_dict(for_model), TrainConfig.from_dict(for_train)
    if "tokenizer" in for_train:
        for_train["tokenizer"] = absolute_name(for_train["tokenizer"])
    return for_corpus, for_model, for_train


def _begun(folder: Path) -> Path | None:
    """The description of the search in a folder, or None where a new one may begin."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --out names a folder")
    if (folder / SEARCH_FILE).exists():
        return folder / SEARCH_FILE
    # Databases without a description are of a search that was killed before it began.
    known = (TRIALS_FILE, f"{TRIALS_FILE}-journal")
    if folder.is_dir() and any(not p.name.startswith(".") and p.name not in known for p in folder.iterdir()):
        raise UsageError(f"{folder} is not empty and holds no search; name another --out")
    return None


@dataclass(frozen=True)
class _Plan:
    """A search with everything decided.

    Attributes:
        asked: what must be the same when it is gone on with.
        space: for each option its choices, or its low and high end with step or log.
        first: the options of the first trial.
    """

    asked: Mapping[str, Any]
    space: Mapping[str, Mapping[str, Any]]
    first: Mapping[str, Any]

    @classmethod
    def made(cls, asked: Mapping[str, Any], text: Corpus, device: str) -> _Plan:
        """The plan of a new search."""
        fixed = asked["fixed"]["model"] | asked["fixed"]["train"]
        own = fixed.get("tokenizer", TrainConfig.tokenizer) == "bpe"
        known = appraise(text, own, chosen="vocab_size" not in fixed)
        if asked["flops"] is None:
            peak = planning_peak(device, fixed["precision"])
            proposal = autopilot.propose(60 * asked["minutes"], known, peak, fixed)
        else:
            seconds = asked["flops"] / autopilot.USUAL_SHARE  # of a machine with a peak of one operation a second
            proposal = autopilot.propose(seconds, known, 1.0, fixed)
        first = {"num_layers": ModelConfig.num_layers, **proposal.model, **proposal.train}
        space = {name: values for name, values in _space(first).items() if name not in fixed}
        if fixed.get("tokenizer", TrainConfig.tokenizer) != "bpe":
            space.pop("vocab_size", None)
        if not space:
            raise UsageError("every option is set, and nothing is left to search; leave some out")
        return cls(asked, space, {name: first[name] for name in space})

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"version": 1, **dataclasses.asdict(self)}

    @classmethod
    def read(cls, path: Path, asked: Mapping[str, Any]) -> _Plan:
        """Reads the plan of a search, and sees that the same is asked."""
        try:
            values = json.loads(path.read_bytes())
            if values["version"] != 1:
                raise RunError(f"{path} was written by another version of textlstm; upgrade it")
            plan = cls(values["asked"], values["space"], values["first"])
            before = dict(plan.asked)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path} cannot be read: {error}") from error
        now = json.loads(json.dumps(asked))
        different = [f"{k}: {before.get(k)!r} there, {now[k]!r} asked" for k in now if before.get(k) != now[k]]
        if different:
            raise RunError(f"{path.parent} holds another search ({'; '.join(different)}); name another --out")
        return plan


def _space(first: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is searched, around the rule's choice; the table above."""
    vocab, hidden = first["vocab_size"], first["hidden_size"]
    dropouts = ("input_dropout", "layer_dropout", "output_dropout", "weight_dropout")
    return {
        "vocab_size": {"choices": [size for size in autopilot.VOCABULARIES if vocab / 2 <= size <= 2 * vocab]},
        "hidden_size": {"low": max(64, hidden // 128 * 64), "high": hidden // 64 * 128, "step": 64},
        "num_layers": {"low": 1, "high": 3, "step": 1},
        "batch_size": {"low": 4, "high": 32, "step": 4},
        "seq_len": {"low": 32, "high": 128, "step": 16},
        "lr": {"low": 1e-3, "high": 3e-2, "log": True},
        "weight_decay": {"low": 0.01, "high": 1.0, "log": True},
        **{name: {"low": 0.0, "high": 0.6} for name in dropouts},
    }


def _distribution(values: Mapping[str, Any]) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if "choices" in values:
        return CategoricalDistribution(values["choices"])
    return IntDistribution(**values) if "step" in values else FloatDistribution(**values)


@contextmanager
def _study(folder: Path, plan: _Plan) -> Iterator[optuna.Study]:
    """The study in a folder's database.

    Raises:
        RunError: the database cannot be read or written.
    """
    import sqlite3

    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the view tells what there is to tell
    path = folder / TRIALS_FILE
    storage = None
    try:
        # Opened by its path: in a URL, signs such as ? and { in it would mean something.
        connect = {"creator": lambda: sqlite3.connect(path, timeout=60, check_same_thread=False)}
        storage = optuna.storages.RDBStorage("sqlite:///trials.db", connect)
        pruner = (
            optuna.pruners.MedianPruner(_COMPARED, _FIRST_JUDGED)
            if plan.asked["prune"]
            else optuna.pruners.NopPruner()
        )
        yield optuna.create_study(storage=storage, study_name="textlstm", pruner=pruner, load_if_exists=True)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise RunError(f"{path} cannot be read or written: {str(error.__cause__ or error).splitlines()[0]}") from error
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


@dataclass
class _Course:
    """How a trial goes.

    Attributes:
        trial, view, signals: what is trained, who is shown it, and who may stop it.
        steps, done: planned, 0 before that is known, and done so far.
        best: lowest nats per character of the development part so far.
        ended: as in `Row`.
    """

    trial: optuna.Trial
    view: TuneView
    signals: run.Signals
    steps: int = 0
    done: int = 0
    best: float | None = None
    ended: str = "complete"
    _share: int = 0  # at which it was compared last

    def on_step(self, report: StepReport) -> None:
        """Counts a step, which stays done whatever becomes of the next one."""
        self.done = report.step
        self.view.report(report)

    def on_look(self, look: Look, _: object) -> None:
        """Notes a score, and whether it is worse than half of the others."""
        assert look.dev is not None
        if look.best:
            self.best = look.dev.nats_per_char
        self.view.look(look.step, look.dev, look.best)
        share = round(_SHARES * look.step / self.steps)
        if share > self._share and np.isfinite(look.dev.nats):
            self.trial.report(look.dev.nats_per_char, share)
            self._share = share
            if look.step < self.steps and self.trial.should_prune():
                self.ended = "pruned"

    def stop(self) -> str | None:
        """Why to stop, if so."""
        return self.signals.reason() or (self.ended if self.ended == "pruned" else None)


class _Tuner:
    """A search under way."""

    def __init__(
        self, search: Search, folder: Path, plan: _Plan, text: Corpus, study: optuna.Study, signals: run.Signals,
        view: TuneView, device: str,
    ) -> None:  # fmt: skip
        self.search, self.folder, self.plan, self.text = search, folder, plan, text
        self.study, self.signals, self.view, self.device = study, signals, view, device
        self.distributions = {name: _distribution(values) for name, values in plan.space.items()}
        self.fixed: Mapping[str, dict[str, Any]] = plan.asked["fixed"]
        self.seed = int(self.fixed["train"].get("seed", TrainConfig.seed))
        self._encoded: dict[tuple[str, int], tuple[Tokenizer, Tokens]] = {}

    def go(self) -> Found:
        """Makes trials until there are as many as were asked for."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # a kill ended it
            self.study.tell(trial.number, state=TrialState.FAIL)
        rows = self.rows()
        self._keep_best(rows)
        self.view.begin_search(rows, self.search.trials, str(self.folder))
        while len(rows) < self.search.trials:
            self._make(len(rows))
            rows = self.rows()
            self.view.trial_ended(rows[-1], _best(rows))
            self._keep_best(rows)
        best = _best(rows)
        command = None if best is None else self._command(best)
        return Found(self.folder, rows, best, command, None if best is None else self.folder / BEST_FILE)

    def _ended(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that have ended by themselves; one that was interrupted is begun again, and counts once."""
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def rows(self) -> list[Row]:
        """What has ended."""
        return [Row(**trial.user_attrs["row"]) for trial in self._ended()]

    def _make(self, ended: int) -> None:
        """One trial. What it tries follows from the seed and the trials before it, whatever was interrupted."""
        import optuna
        from optuna.trial import TrialState

        seed = int(np.random.SeedSequence([self.seed, ended]).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=_BEGINNING, seed=seed)
        if not ended and not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self.study.enqueue_trial(dict(self.plan.first))
        trial = self.study.ask(self.distributions)
        settings = {**{name: _rounded(value) for name, value in trial.params.items()}, **self.fixed["model"]}
        settings |= self.fixed["train"]
        try:
            value = self._train(trial, settings, ended + 1)
        except Interrupted:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        self.study.tell(trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)

    def _train(self, trial: optuna.Trial, settings: dict[str, Any], number: int) -> float | None:
        """Trains one configuration; its score, or None where it was not brought to its end."""
        started = time.perf_counter()
        tokenizer, tokens, model, train = self._prepared(settings)
        course = _Course(trial, self.view, self.signals)
        try:
            # Where `minutes` are asked, this trains for a while: it may run out of memory or diverge as a trial does.
            train = self._with_length(model, train, max(1, lanes_within(len(tokens.train), train.batch_size)))
            counted = {"steps": train.steps, "ema": train.ema, "activation_penalty": train.activation_penalty}
            settings = settings | counted
            course.steps = train.steps
            chars_per_token = self.text.train.num_chars / max(1, len(tokens.train))
            self.view.trial_begins(number, settings, train.steps, chars_per_token)
            trainer = Trainer(
                model, train, run.lane_reader(tokens, tokenizer, model, train), run.development(self.text, tokens),
                device=self.device,
                frequencies_V=metrics.frequencies(metrics.token_counts(tokens.train, model.vocab_size)),
            )  # fmt: skip
            stopped = trainer.run(Callbacks(on_step=course.on_step, on_look=course.on_look, stop=course.stop))
            if stopped is not None and course.ended == "complete":
                raise self._interrupted(number)
        except DivergedError:
            course.ended = "diverged"
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            course.ended = "out of memory"
        if course.ended == "complete" and course.best is None:
            course.ended = "diverged"  # no look gave a finite number
        seconds = round(time.perf_counter() - started, 3)
        row = Row(number, course.best, course.ended, course.steps, course.done, seconds, model.num_params, settings)
        trial.set_user_attr("row", dataclasses.asdict(row))
        trial.set_user_attr("config", {"model": model.to_dict(), "train": train.to_dict()})
        return course.best if course.ended == "complete" else None

    def _prepared(self, settings: Mapping[str, Any]) -> tuple[Tokenizer, Tokens, ModelConfig, TrainConfig]:
        """Tokenizer and tokens of a trial, and its configurations but for the length."""
        for_model = {k: v for k, v in settings.items() if k in ModelConfig.__dataclass_fields__}
        for_train = {k: v for k, v in settings.items() if k in TrainConfig.__dataclass_fields__}
        if "hidden_size" in for_model:
            for_model.setdefault("embed_size", for_model["hidden_size"])
        name = for_train.get("tokenizer", TrainConfig.tokenizer)
        boundary = bool(for_model.get("boundary", ModelConfig.boundary))
        wanted = int(for_model.get("vocab_size", ModelConfig.vocab_size)) - boundary
        if (name, wanted) not in self._encoded:
            tokenizer = run.tokenizer_of(name, self.text, wanted, self.view)
            boundary_id = tokenizer.vocab_size if boundary else None
            tokens = self.text.encode(tokenizer, boundary_id, self.search.workers, self.view.notice)
            self._encoded[name, wanted] = tokenizer, tokens
        tokenizer, tokens = self._encoded[name, wanted]
        for_model["vocab_size"] = tokenizer.vocab_size + boundary
        hidden = int(for_model.get("hidden_size", ModelConfig.hidden_size))
        for_train.setdefault("activation_penalty", autopilot.activation_penalty(hidden))
        return tokenizer, tokens, ModelConfig.from_dict(for_model), TrainConfig.from_dict(for_train)

    def _with_length(self, model: ModelConfig, train: TrainConfig, lanes: int) -> TrainConfig:
        """The steps that a trial's compute allows, and the averaging that goes with them."""
        if self.search.flops is not None:
            # A training step costs three times a forward pass.
            steps = round(self.search.flops / model.training_flops(lanes * train.seq_len))
        else:
            assert self.search.minutes is not None
            minutes = self.search.minutes
            per_step = measure_step(model, train, self.device, seconds=min(2.0, 2 * minutes))
            steps = autopilot.steps_within(60 * minutes, per_step, 0.0)
        steps = max(1, steps)
        averaging = {} if "ema" in self.fixed["train"] else {"ema": autopilot.averaging(steps)}
        return train.replace(steps=steps, **averaging)

    def _keep_best(self, rows: Sequence[Row]) -> None:
        """Writes the best options as a file that `train` takes."""
        best = _best(rows)
        if best is not None:
            config = self._ended()[best.number - 1].user_attrs["config"]
            values = {"version": 1, "corpus": self.fixed["corpus"], **config}
            write_atomically(self.folder / BEST_FILE, json.dumps(values, indent=1).encode())

    def _command(self, best: Row) -> str:
        """The command line that trains the best trial's model again."""
        words = ["textlstm", "train", *self.search.sources]
        settings = {**self.fixed["corpus"], **best.settings}
        if "hidden_size" in settings:
            settings.setdefault("embed_size", settings["hidden_size"])
        for name, value in settings.items():
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            elif value is not None:
                words += [flag, str(value)]
        return shlex.join(words)

    def _interrupted(self, number: int) -> Interrupted:
        assert self.signals.received is not None
        return Interrupted(
            f"stopped in trial {number} of {self.search.trials}; those before it are kept in {self.folder}, and the "
            "same command with this --out goes on there",
            self.signals.received,
        )


def _best(rows: Sequence[Row]) -> Row | None:
    scored = [(row.nats_per_char, row) for row in rows if row.ended == "complete" and row.nats_per_char is not None]
    return min(scored, key=lambda pair: pair[0], default=(None, None))[1]


def _rounded(value: Any) -> Any:
    """Three digits say enough, and make a command line that can be read."""
    return float(f"{value:.3g}") if isinstance(value, float) else value
