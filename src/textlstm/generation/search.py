"""The likeliest of several texts: beam search, and the best of some samples.

Texts of different lengths are compared by their mean log-probability per token, in nats, by the model as it is: no
temperature, nothing renormalised. The end counts as a token where the model drew it (see `Writer.ends_V`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from textlstm.config import SamplingConfig
from textlstm.engine import Engine
from textlstm.errors import UsageError
from textlstm.generation import Writer, whole_number, write
from textlstm.state import State

#: Gives ids (B,) and the rows that go on with them, is sent the logits (B, V) after them, and ends with the texts.
Beams = Generator[tuple[NDArray[np.intp], NDArray[np.intp]], NDArray[np.float32], list[Writer]]

MAX_TEXTS = 1024  # that are looked for side by side


def mean_log_prob(writer: Writer, length_penalty: float = 1.0) -> float:
    """Natural logarithm of the probability per token of a text that was weighed.

    Another `length_penalty` than 1 is the power of the number of tokens that it is divided by: 0 prefers short texts.
    """
    return float(writer.log_prob / np.float64(max(writer.tokens, 1)) ** length_penalty)


def check_search(number: int, beams: int | None, best_of: int | None, sampling: SamplingConfig) -> None:
    """Refuses what does not go together.

    Raises:
        UsageError: beams and samples at once, more texts than are looked for, or settings that beams do not heed.
    """
    if beams is not None and best_of is not None:
        raise UsageError("beams and best-of cannot go together: beam search draws no samples; leave one out")
    for name, value in (("beams", beams), ("best-of", best_of)):
        if value is not None and not number <= whole_number(name, value) <= MAX_TEXTS:
            raise UsageError(
                f"{name} must be between {number} (the number of texts wanted) and {MAX_TEXTS}, not {value}"
            )
    if beams is not None and sampling != SamplingConfig():
        changed = [f.name for f in fields(sampling) if getattr(sampling, f.name) != f.default]
        raise UsageError(f"beam search draws nothing, so {', '.join(changed)} would do nothing; leave it out")


def write_best(
    engine: Engine, writers: Sequence[Writer], logits_BV: NDArray[np.float32], state: State, keep: int
) -> list[Writer]:
    """Writes texts side by side; returns the `keep` likeliest, best first. Arguments as of `write`."""
    for _ in write(engine, writers, logits_BV, state, weigh=True):
        pass
    return sorted(writers, key=mean_log_prob, reverse=True)[:keep]


def beam_search(
    engine: Engine, writer: Writer, logits_BV: NDArray[np.float32], state: State, beams: int, keep: int = 1
) -> list[Writer]:
    """Looks for the likeliest texts by extending the best beginnings side by side.

    All beginnings of a step have the same number of tokens; the `beams` of them with the highest probability go on.
    It ends when no beginning can become better than the texts that are complete.

    Args:
        engine: the model.
        writer: stands where the texts begin.
        logits_BV: for the first token, shape (1, V).
        state: to go on from, of one row.
        beams: beginnings that are kept at each step.
        keep: complete texts that are wanted.

    Returns:
        Writers that have ended, best first.

    Raises:
        UsageError: the copy guard leaves no way to the end of any text.
    """
    steps = beam_steps(writer, logits_BV, beams, keep)
    try:
        ids, rows = next(steps)
        while True:
            logits_BV, state = engine.step(ids, state.select(rows.tolist()))
            ids, rows = steps.send(logits_BV)
    except StopIteration as end:
        found: list[Writer] = end.value
        return found


def beam_steps(
    writer: Writer, logits_BV: NDArray[np.float32], beams: int, keep: int, length_penalty: float = 1.0
) -> Beams:
    """The search without the engine, for who steps that himself; arguments and errors as of `beam_search`."""

    def worth(one: Writer) -> float:
        return mean_log_prob(one, length_penalty)

    alive, ended = ([writer], []) if writer.reason is None else ([], [writer])
    while alive:
        weighed = [one.weigh(logits_V) for one, logits_V in zip(alive, logits_BV, strict=True)]
        for one, (_, end) in zip(alive, weighed, strict=True):
            if np.isfinite(end):
                ended.append(_extended(one, int(one.ends_V().argmax()), end))
        log_probs_BV = np.stack([
            np.where(one.stays_V(), one.log_prob + log_probs_V, -np.inf)
            for one, (log_probs_V, _) in zip(alive, weighed, strict=True)
        ])  # fmt: skip
        rows, ids = np.unravel_index(_largest(log_probs_BV.reshape(-1), beams), log_probs_BV.shape)
        twins = [
            _extended(alive[row], id, weighed[row][0][id]) for row, id in zip(rows.tolist(), ids.tolist(), strict=True)
        ]
        ended += [twin for twin in twins if twin.reason is not None]
        ended = sorted(ended, key=worth, reverse=True)[: max(keep, 1)]
        places = [place for place, twin in enumerate(twins) if twin.reason is None]
        alive = [twins[place] for place in places]
        if len(ended) >= keep and all(one.at_best(length_penalty) <= worth(ended[-1]) for one in alive):
            break
        if alive:
            logits_BV = yield ids[places], rows[places]
    if not ended:
        raise UsageError("no token is left to write in any of the texts; use more beams, or allow longer copies")
    return ended


def _extended(writer: Writer, id: int, log_prob: float) -> Writer:
    twin = writer.copy()
    twin.push(id)
    twin.log_prob += log_prob
    return twin


def _largest(values: NDArray[np.float64], number: int) -> NDArray[np.intp]:
    """Places of the largest finite values, largest first; of equal ones the first."""
    order = np.argsort(-values, kind="stable")[:number]
    return order[np.isfinite(values[order])]
