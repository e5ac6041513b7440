"""A run: from sources of text to a finished model in a run folder.

RUN/model.safetensors    the best weights so far, averaged; the latest ones where nothing chooses
RUN/checkpoints/step-N/  all that going on needs
RUN/config.json          what was asked, what was chosen, and why
RUN/log.jsonl            a line per report: steps, looks, the end
RUN/samples.md           what the model wrote on the way
RUN/loss.svg             its loss as a picture
RUN/novelty.svg          how much of what it wrote is copied from the training text, with the extra `novelty`
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import time
from pathlib import Path

from textlstm.corpus import Rows, read_corpus
from textlstm.errors import NoMemoryError, RunError, UsageError
from textlstm.files import write_atomically
from textlstm.run.beginning import begin, initial_model, take_up, tokenizer_of
from textlstm.run.folder import alone_in, check_writable, finished_result, free_run_folder, run_folder
from textlstm.run.loop import Run, development, lane_reader
from textlstm.run.setup import Request, Result, Setup, check_same, process_seconds, split_settings
from textlstm.run.signals import Signals
from textlstm.tokenizer import from_json
from textlstm.trainer import is_out_of_memory
from textlstm.trainer.device import choose_device, deterministic
from textlstm.trainer.distributed import Group, joined
from textlstm.view import View

__all__ = [
    "Request",
    "Result",
    "Setup",
    "Signals",
    "alone_in",
    "development",
    "free_run_folder",
    "lane_reader",
    "process_seconds",
    "run_folder",
    "split_settings",
    "tokenizer_of",
    "train",
]


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
        RunError: a run folder that cannot be used or resumed.
        NoMemoryError: too little memory.
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
        raise NoMemoryError(
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
        done = finished_result(folder) if request.resume_step is None else None
        onward = f"train on from it with: textlstm train TEXT --init-from {shlex.quote(str(folder))}"
        check_same(setup, request, folder, None if done is None else f"it is complete; {onward}")
        if done is not None:
            view.notice(f"{folder} is complete; nothing is left to do; {onward}")
            group.share(json.dumps({"result": done.to_dict()}).encode())
            return done
        with alone_in(folder):
            corpus, tokenizer, checkpoint, initial = take_up(folder, setup, request, view)
            device = choose_device(request.device, setup.train.precision, view.notice)
            return Run(folder, setup, corpus, tokenizer, request, view, started, group, device).go(checkpoint, initial)
    initial = initial_model(request.init_from)
    check_writable(folder)  # said before a long text is read
    setup, corpus, tokenizer, device = begin(request, initial, view, started)
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
