"""A score, looked at closely.

Nats are given to bytes: a token's are spread evenly over its own. So lines and words, which tokens may straddle, add
up to the score exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.engine import Engine
from textlstm.errors import UsageError
from textlstm.metrics import LEARNING, Progress, Score, lane_shape, no_progress, score, token_nats, total
from textlstm.scoring.baselines import baselines
from textlstm.tokenizer import Tokenizer, text_to_bytes

#: Window of the curve of loss against position, in tokens.
WINDOW = 512
PROTOCOLS = ("stream-16", "cold-256", "cold-64")  # besides stream
_CHUNK = 1 << 22  # logits at once
_LINES, _WORDS = re.compile(rb"[^\n]*\n|[^\n]+"), re.compile(rb"[\w'\x80-\xff]+")


@dataclass(frozen=True)
class Detail:
    """A text, token by token.

    Attributes:
        data: its bytes.
        sizes_T: bytes of each token.
        nats_T: what each cost.
        confidence_T: probability of the token that was thought likeliest.
        right_T: whether it was the one that came.
    """

    data: bytes
    sizes_T: NDArray[np.int64]
    nats_T: NDArray[np.float64]
    confidence_T: NDArray[np.float64]
    right_T: NDArray[np.bool_]

    @property
    def byte_nats(self) -> NDArray[np.float64]:
        """What each byte costs."""
        return np.repeat(self.nats_T / np.maximum(self.sizes_T, 1), self.sizes_T)


@dataclass(frozen=True)
class Piece:
    """A line or word and its cost.

    Attributes:
        file: where it stands.
        line: its number, or that of its line, from 1.
        text: itself.
        nats: what it costs.
    """

    file: str
    line: int
    text: str
    nats: float

    @property
    def nats_per_char(self) -> float:
        """Nats per character."""
        return self.nats / max(len(self.text), 1)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return {**self.__dict__, "nats_per_char": self.nats_per_char}


def read_closely(engine: Engine, tokenizer: Tokenizer, text: str, context: str = "") -> Detail:
    """Reads a text from the model's start, or after a context, under the protocol `stream`.

    Raises:
        UsageError: there is no text.
    """
    ids, config = tokenizer.encode(text).astype(np.int64), engine.config
    if not len(ids):
        raise UsageError("an empty text has no score")
    begin = [] if config.boundary_id is None else [config.boundary_id]
    before = np.array([*begin, *(tokenizer.encode(context).tolist() if context else [])], dtype=np.int64)
    stream = np.concatenate([before, ids])
    nats, confidence = np.full(len(stream), math.log(config.vocab_size)), np.full(len(stream), 1 / config.vocab_size)
    right = stream == 0  # of a uniform first prediction, the first id stands for the likeliest
    state, chunk = engine.zero_state(1), max(1, _CHUNK // config.vocab_size)
    for start in range(1, len(stream), chunk):
        here = slice(start, min(start + chunk, len(stream)))
        x, y = stream[here.start - 1 : here.stop - 1], stream[here]
        logits_BTV, state = engine.run(x[None], state, np.arange(len(x)))
        logits_TV = logits_BTV[0]
        peak = logits_TV.max(axis=1)
        log_total = np.log(np.exp(logits_TV - peak[:, None]).sum(axis=1, dtype=np.float64))
        nats[here] = log_total + peak - logits_TV[np.arange(len(y)), y]
        confidence[here] = np.exp(-log_total)
        right[here] = logits_TV.argmax(axis=1) == y
    kept = slice(len(before), None)
    table = [len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)]
    return Detail(tokenizer.decode_bytes(ids), np.array(table)[ids], nats[kept], confidence[kept], right[kept])


def pieces(detail: Detail, file: str) -> tuple[list[Piece], list[Piece]]:
    """The lines of a text, whose costs add up to its own, and its words; a word costs what its bytes do."""
    below = np.concatenate([[0.0], np.cumsum(detail.byte_nats)])

    def piece(match: re.Match[bytes], line: int) -> Piece:
        nats = float(below[match.end()] - below[match.start()])
        return Piece(file, line, match[0].rstrip(b"\n").decode("utf-8", "replace"), nats)

    lines, words = [], []
    for number, match in enumerate(_LINES.finditer(detail.data), 1):
        lines.append(piece(match, number))
        words += [piece(word, number) for word in _WORDS.finditer(detail.data, match.start(), match.end())]
    return lines, words


def calibration(
    confidence_T: NDArray[np.float64], right_T: NDArray[np.bool_], bins: int = 10
) -> tuple[list[dict[str, float]], float]:
    """Whether the likeliest token comes as often as it is said to: the reliability diagram (Niculescu-Mizil & Caruana
    2005), and the expected calibration error (Naeini et al. 2015).

    Returns:
        For each bin of confidence that is not empty its mean confidence, its share of right ones and its number; and
        the mean distance of the two, weighted by number.
    """
    bin_T = np.minimum((confidence_T * bins).astype(int), bins - 1)
    table, error = [], 0.0
    for number in range(bins):
        inside = bin_T == number
        if inside.any():
            confidence, right = float(confidence_T[inside].mean()), float(right_T[inside].mean())
            table.append({"confidence": confidence, "right": right, "tokens": int(inside.sum())})
            error += abs(confidence - right) * float(inside.mean())
    return table, error


def positions(engine: Engine, ids: NDArray[np.int32], window: int = WINDOW) -> list[dict[str, float]]:
    """Nats per token against the number of tokens read before: windows from the model's start, in powers of two."""
    lanes, length = lane_shape(len(ids), max(1, len(ids) // window))
    nats = token_nats(engine, ids, protocol=f"stream-{lanes}")
    filled = np.concatenate([nats, np.full(lanes * length - len(ids), np.nan)]).reshape(lanes, length)
    table, first = [], 0
    while first < length:
        after = max(1, 2 * first)
        part = filled[:, first:after]
        part = part[~np.isnan(part)]
        if len(part):
            last = min(after, length) - 1
            table.append({"first": first, "last": last, "nats": float(part.mean()), "tokens": len(part)})
        first = after
    return table


@dataclass(frozen=True)
class Report:
    """All that `score` finds out.

    Attributes:
        total: the score under `stream`, or `stream+learn`.
        protocols: the same text under other protocols.
        files: the score of each file.
        lines, words: every line and word.
        calibration, calibration_error: see `calibration`.
        positions: see `positions`.
        baselines: name to bits per byte, see `baselines`.
        shown: the beginning of the text: tokens and their nats.
    """

    total: Score
    protocols: list[Score]
    files: list[tuple[str, Score]]
    lines: list[Piece]
    words: list[Piece]
    calibration: list[dict[str, float]]
    calibration_error: float
    positions: list[dict[str, float]]
    baselines: dict[str, float]
    shown: list[tuple[str, float]]

    def surprising_lines(self, number: int = 20, least: int = 10) -> list[Piece]:
        """The lines that cost the most per character, of at least so many characters."""
        return sorted((p for p in self.lines if len(p.text) >= least), key=lambda p: -p.nats_per_char)[:number]

    def surprising_words(self, number: int = 20) -> list[Piece]:
        """The words that cost the most, each once."""
        found: dict[str, Piece] = {}
        for piece in sorted(self.words, key=lambda p: -p.nats):
            found.setdefault(piece.text, piece)
            if len(found) == number:
                break
        return list(found.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single tokens, as JSON values."""
        return {
            "protocols": {one.protocol: one.to_dict() for one in self.protocols},
            "lines": [piece.to_dict() for piece in self.lines],
            "surprising_lines": [piece.to_dict() for piece in self.surprising_lines()],
            "surprising_words": [piece.to_dict() for piece in self.surprising_words()],
            "calibration": self.calibration,
            "calibration_error": self.calibration_error,
            "positions": self.positions,
            "baselines_bits_per_byte": self.baselines,
        }


def report(
    engine: Engine,
    tokenizer: Tokenizer,
    files: Sequence[tuple[str, Sequence[str]]],
    context: str = "",
    progress: Progress = no_progress,
    learner: Callable[[], Engine] | None = None,
) -> Report:
    """Looks closely at the score of some files.

    Args:
        engine, tokenizer: the model.
        files: names, and the documents in them; each document is read from the model's start, or after the context.
        context: is read first and not scored; the baselines read it once.
        progress: told how many documents are done.
        learner: makes an engine that learns, for each file, in place of the one with fixed weights; that one gives
            the other protocols and the curve of positions.
    """
    protocol, others = ("stream", PROTOCOLS) if learner is None else (LEARNING, ("stream", *PROTOCOLS))
    texts = [text for _, documents in files for text in documents]
    scores, details, lines, words = [], [], [], []
    for name, documents in files:
        of_file = []
        reader = engine if learner is None else learner()
        for text in documents:
            details.append(read_closely(reader, tokenizer, text, context))
            found = pieces(details[-1], name)
            lines += found[0]
            words += found[1]
            nats = math.fsum(details[-1].nats_T)
            of_file.append(Score(protocol, len(text), len(text_to_bytes(text)), len(details[-1].nats_T), nats))
            progress(len(details), len(texts) + 2)
        scores.append((name, total(of_file)))
    before = tokenizer.encode(context) if context else None
    encoded = [(tokenizer.encode(text), len(text), len(text_to_bytes(text))) for text in texts]
    everything = total([one for _, one in scores])
    protocols = [everything]
    for other in others:
        read_first = None if other == "stream-16" else before
        protocols.append(total([score(engine, *one, context=read_first, protocol=other) for one in encoded]))
    progress(len(texts) + 1, len(texts) + 2)
    said, came = np.concatenate([d.confidence_T for d in details]), np.concatenate([d.right_T for d in details])
    table, error = calibration(said, came)
    data = b"\n".join(detail.data for detail in details)
    bits = baselines(data, text_to_bytes(context))
    longest = max((ids for ids, _, _ in encoded), key=len)
    first = details[0]
    ends = np.cumsum(first.sizes_T)[:2000].tolist()
    shown = [
        (first.data[start:end].decode("utf-8", "replace"), float(nats))
        for start, end, nats in zip([0, *ends[:-1]], ends, first.nats_T, strict=False)
    ]
    progress(len(texts) + 2, len(texts) + 2)
    return Report(
        everything, protocols, scores, lines, words, table, error,
        positions(engine, longest), {name: value / len(data) for name, value in bits.items()}, shown,
    )  # fmt: skip
