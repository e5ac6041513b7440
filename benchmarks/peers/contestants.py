"""Runs one contestant of the race in this process, and prints its result as JSON.

    python benchmarks/peers/contestants.py gpt-small TEXTFILE --minutes 3

The clock begins with the process and counts all that a contestant does with the training text, imports and encoding
included. It stands still while the held-out text is scored for the curve.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpt
import lstm
import torch
from baseline import Clock, Curve, train
from report import NAMES
from texts import split

from textlstm import run
from textlstm.metrics import Score
from textlstm.model import Model
from textlstm.registry import MODEL_FILE
from textlstm.scoring import baselines
from textlstm.view import Facts, View

CONTEXT = 4096  # characters of the training text that the held-out text is read after, in a look


def on_characters(name: str, text: str, minutes: float, seed: int) -> dict[str, Any]:
    """A GPT or the plain LSTM; its vocabulary is that of the whole text, and the lowest of its scores counts."""
    clock = Clock(run.process_seconds())
    torch.manual_seed(seed)
    number_of = {character: number for number, character in enumerate(sorted(set(text)))}
    ids_N, border = torch.tensor([number_of[character] for character in text]), len(split(text)[0])
    network: gpt.GPT | lstm.PlainLSTM
    if name == "lstm":
        network, recipe, judge = lstm.PlainLSTM(len(number_of)), lstm.RECIPE, lstm.held_out_nats
        batches = lstm.lanes(ids_N[:border], recipe)
    else:
        shape, recipe = (gpt.LARGE, gpt.LARGE_RECIPE) if name == "gpt-large" else (gpt.SMALL, gpt.SMALL_RECIPE)
        network, judge = gpt.GPT(shape, len(number_of)), gpt.held_out_nats
        batches = gpt.crops(ids_N[:border], recipe, seed)
    curve = Curve(clock, 60 * minutes)
    train(network, batches, recipe, curve, lambda: float(judge(network, ids_N, border).mean(dtype=float)))
    seconds, steps, nats = min(curve.points, key=lambda point: point[2])
    params = sum(parameter.numel() for parameter in network.parameters())
    return _result(params, steps, seconds, curve, nats)


class Watch(View):
    """Keeps the model that lies in a run folder at each look when a mark has passed: it is scored after the run.

    A run that is planned for a time has a clock of its own, which nobody could stop while a score is taken.

    Args:
        curve: whose marks count.
        model: its file.
    """

    def __init__(self, curve: Curve, model: Path) -> None:
        self._curve, self._model, self._steps = curve, model, 0
        self.kept: list[tuple[float, int, Path]] = []  # seconds, steps, the model of then

    def begin(self, facts: Facts, step: int) -> None:
        self._steps = facts.steps

    def recount(self, steps: int) -> None:
        self._steps = steps

    def look(self, step: int, dev: Score | None, best: bool) -> None:
        seconds = self._curve.clock.seconds
        # The last score is the run's own.
        if step < self._steps and self._model.exists() and self._curve.passed(seconds):
            copy = self._model.with_name(f"at-{step}.safetensors")
            shutil.copyfile(self._model, copy)
            self.kept.append((seconds, step, copy))


def by_textlstm(preset: str | None, text: str, minutes: float, seed: int) -> dict[str, Any]:
    """What `textlstm train --minutes` makes of it, all as for a user; its last score counts."""
    began = time.perf_counter() - run.process_seconds()
    curve = Curve(Clock(run.process_seconds()), 60 * minutes)
    training, held_out = split(text)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "text.txt"), Path(folder, "run")
        source.write_bytes(text.encode())
        watch, settings = Watch(curve, out / MODEL_FILE), {"val_chars": len(held_out), "seed": seed}
        request = run.Request([str(source)], out, minutes, preset=preset, settings=settings, started=began)
        result = run.train(request, watch)
        seconds = curve.clock.seconds
        with curve.clock.stop():
            for passed, step, path in watch.kept:
                score = Model.load(path, engine="torch").score(held_out, context=training[-CONTEXT:])
                curve.points.append((passed, step, score.nats_per_char))
    assert result.val is not None
    nats = result.val["nats_per_char"]
    curve.points.append((seconds, result.steps, nats))
    return _result(result.params, result.steps, seconds, curve, nats) | {"predicted": result.predicted}


def _result(params: int, steps: int, seconds: float, curve: Curve, nats: float) -> dict[str, Any]:
    return {
        "nats_per_char": nats, "params": params, "steps": steps, "seconds": seconds,
        "seconds_of_scoring": curve.clock.stopped, "curve": curve.points,
    }  # fmt: skip


def compressors(text: str) -> dict[str, Any]:
    """What compressors make of the held-out text after the training text; they go on learning from it."""
    training, held_out = (part.encode() for part in split(text))
    bits = baselines(held_out, training)
    if not any(name.startswith("PPMd") for name in bits):
        print("PPMd is left out: pyppmd is not installed", file=sys.stderr)
    if "zpaq -m5" not in bits:
        try:
            bits["zpaq -m5"] = 8.0 * (zpaq_size(training + held_out) - zpaq_size(training))
        except FileNotFoundError:
            print("zpaq is left out: there is no such command (Debian's package is called zpaq)", file=sys.stderr)
    nats = math.log(2) / len(split(text)[1])
    return {"nats_per_char_by_method": {name: cost * nats for name, cost in bits.items()}}


def zpaq_size(data: bytes) -> int:
    """Bytes of the archive that Debian's zpaq makes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "text").write_bytes(data)
        command = ["zpaq", "add", "archive.zpaq", "text", "-method", "5", "-threads", "1"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return Path(folder, "archive.zpaq").stat().st_size


def result(name: str, text: str, minutes: float, seed: int) -> dict[str, Any]:
    """What a contestant reached."""
    if name == "compressors":
        return compressors(text)
    if name in ("textlstm", "original"):
        return by_textlstm("original" if name == "original" else None, text, minutes, seed)
    return on_characters(name, text, minutes, seed)


def main() -> None:
    """Runs one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=NAMES)
    parser.add_argument("text", type=Path, help="a file in UTF-8; its last tenth is held out")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    text = given.text.read_bytes().decode()
    print(json.dumps(result(given.contestant, text, given.minutes, given.seed)))


if __name__ == "__main__":
    main()
