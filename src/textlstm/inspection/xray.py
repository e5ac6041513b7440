"""All that `inspect` finds out about a model on a text."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from textlstm.engine import Engine
from textlstm.errors import UsageError
from textlstm.inspection.cells import Finding, find_cells, properties, token_ends
from textlstm.inspection.memory import gate_report, influence, nearest_tokens
from textlstm.inspection.trace import Trace, trace
from textlstm.metrics import Progress, no_progress
from textlstm.model_file import ModelFile

SHOWN = 600  # tokens whose gates are looked at and that are shown
OWN_CHARS = 12_000  # characters that a model writes where it is given no text to read


@dataclass(frozen=True)
class XRay:
    """What was found.

    Attributes:
        tokens: the text that is shown, token by token; a character of several tokens is the last one's.
        shown: its trace.
        gates: see `gate_report`.
        findings: see `find_cells`.
        influence: see `influence`.
        nearest: token to the nearest ones, as text.
    """

    tokens: list[str]
    shown: Trace
    gates: list[dict[str, Any]]
    findings: list[Finding]
    influence: dict[int, float]
    nearest: dict[str, list[tuple[str, float]]]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single values, as JSON values."""
        return {
            "nats_per_token": float(self.shown.nats_T.mean()),
            "gates": self.gates,
            "cells": [finding.to_dict() for finding in self.findings],
            "influence": {str(distance): nats for distance, nats in self.influence.items()},
            "nearest": {token: [list(pair) for pair in near] for token, near in self.nearest.items()},
        }


def xray(
    file: ModelFile, engine: Engine, text: str, held_out: str, seed: int = 0, progress: Progress = no_progress
) -> XRay:
    """Looks at a model while it reads.

    Args:
        file: the model.
        engine: runs it, for `influence`.
        text: chooses the cells that mean something.
        held_out: judges them; its beginning is shown.
        seed: of the places that `influence` changes.
        progress: told how far it is.

    Raises:
        UsageError: a text is too short.
    """
    tokenizer = file.tokenizer
    parts = [tokenizer.encode(text), tokenizer.encode(held_out)]
    if min(map(len, parts)) < 2:
        raise UsageError("there is too little text to look at")
    traces, true = [], []
    for number, ids in enumerate(parts):
        traces.append(trace(file, ids, ("c", "h")))
        true.append(properties(tokenizer.decode_bytes(ids), token_ends(tokenizer, traces[-1].ids_T)))
        progress(number + 1, 4)
    findings = find_cells(traces[0], true[0], traces[1], true[1])
    progress(3, 4)
    shown = trace(file, parts[1][:SHOWN])
    spelled = [_spell(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)]
    frequent = [id for id, _ in Counter(parts[0].tolist()).most_common() if spelled[id].strip().isalpha()][:12]
    near = nearest_tokens(file, frequent)
    found = XRay(
        _spell_text(tokenizer.token_bytes(id) for id in shown.ids_T.tolist()),
        shown,
        gate_report(shown),
        findings,
        influence(engine, parts[0], np.random.default_rng(seed)),
        {spelled[id]: [(spelled[other], cosine) for other, cosine in pairs] for id, pairs in near.items()},
    )
    progress(4, 4)
    return found


def _spell_text(tokens: Iterable[bytes]) -> list[str]:
    """What each token of a text adds to it: nothing, where it ends within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(token) for token in tokens]


def _spell(token: bytes) -> str:
    return token.decode("utf-8", "replace")
