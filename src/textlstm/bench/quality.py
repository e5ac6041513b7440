"""The scoreboard of a model: what texts cost under each protocol, and what others make of the same bytes.

Two kinds stand apart. Static: fixed weights, or counts of the training text. Adaptive: whatever learns from the text
while it reads it, which every compressor does; it has read the training text first, where that is at hand.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from textlstm.config import CorpusConfig
from textlstm.corpus import CORPORA, Corpus, Part, StoredPart, Tokens, read_corpus, read_sources, source_title
from textlstm.corpus.named import PREFIX
from textlstm.engine import Engine
from textlstm.errors import UsageError
from textlstm.metrics import LEARNING, Progress, Score, no_progress, score, total
from textlstm.model import Model
from textlstm.registry import training_text
from textlstm.scoring import baselines, fixed_baselines
from textlstm.scoring.parts import score_development, score_held_out
from textlstm.tokenizer import bytes_to_text, text_to_bytes

PROTOCOLS = ("stream", "cold-256", "cold-64")
#: Bytes at the end of the training text that compressors read before a text.
MOST_READ_BEFORE = 1 << 23
HELD_OUT, DEVELOPMENT = "held-out", "development"


@dataclass(frozen=True)
class Column:
    """A text of the scoreboard.

    Attributes:
        name: how it is called.
        data: its bytes.
        chars: its characters.
        training: the end of the training text, which others read before it; empty where that is not at hand.
        score: gives its score under a protocol.
    """

    name: str
    data: bytes
    chars: int
    training: bytes
    score: Callable[[str], Score]


def training_corpus(model: Path, card: dict[str, Any], notice: Callable[[str], None]) -> Corpus | None:
    """The text that a model was trained on, split as it was then, or None where it cannot be told from the model.

    Args:
        model: the model file; the run folder that it lies in knows its sources.
        card: the model's card; it may name a corpus that others have too.
        notice: called with one line about anything that takes a while or goes differently.

    Raises:
        CorpusError, UsageError: the text is gone.
    """
    known, split = card.get("corpus"), card.get("split")
    if not isinstance(known, dict) or not isinstance(split, dict):
        return None
    described = training_text(model)
    if described is not None:
        sources, config = described
    elif known.get("name") in CORPORA:
        dev, rest = split["dev_chars"], split["train_chars"] + split["dev_chars"]
        sources = [PREFIX + known["name"]]  # no file here that is called so
        config = CorpusConfig(val_chars=split["val_chars"], dev_fraction=dev / max(1, rest))
    else:
        return None
    corpus = read_corpus(sources, config, notice)
    if corpus.fingerprint != known.get("sha256"):
        notice(f"{' '.join(sources)} is not the text that the model was trained on; it is left out")
        return None
    return corpus


def splits(model: Model, corpus: Corpus, notice: Callable[[str], None]) -> list[Column]:
    """The held-out text of a model, and the development part, which chose its weights.

    Raises:
        UsageError: neither is there.
    """
    tokens = corpus.encode(model.tokenizer, model.config.boundary_id, 1, notice)
    before = _end_of(corpus.train)

    def column(
        name: str, part: Part, training: bytes, judge: Callable[[Engine, Corpus, Tokens, str], Score]
    ) -> Column:
        def cost(protocol: str) -> Score:
            engine, under = _reader(model, protocol, training)
            return judge(engine, corpus, tokens, under)

        return Column(name, text_to_bytes(part.text), part.num_chars, training, cost)

    columns = []
    if corpus.val.num_chars:
        training = (before + text_to_bytes(corpus.dev.text))[-MOST_READ_BEFORE:]
        columns.append(column(HELD_OUT, corpus.val, training, score_held_out))
    if corpus.dev.num_chars:
        columns.append(column(DEVELOPMENT, corpus.dev, before, score_development))
    if not columns:
        raise UsageError("the model was trained with nothing held out: name texts to score")
    return columns


def files(names: Sequence[str], model: Model, corpus: Corpus | None, notice: Callable[[str], None]) -> list[Column]:
    """Texts of a user's own, each document read from the model's start.

    Raises:
        CorpusError, UsageError: there is no text.
    """
    training = b"" if corpus is None else _end_of(corpus.train)
    return [_file(name, model, training, notice) for name in names]


def _file(name: str, model: Model, training: bytes, notice: Callable[[str], None]) -> Column:
    texts = [document.text for document in read_sources([name], CorpusConfig(), notice).documents if document.text]
    encoded = [(model.tokenizer.encode(text), len(text), len(text_to_bytes(text))) for text in texts]

    def cost(protocol: str) -> Score:
        engine, under = _reader(model, protocol, training)
        return total([score(engine, *one, protocol=under) for one in encoded])

    return Column(source_title(name), b"".join(map(text_to_bytes, texts)), sum(map(len, texts)), training, cost)


def _reader(model: Model, protocol: str, training: bytes) -> tuple[Engine, str]:
    """What reads a text, and under which protocol; one that learns has read the training text, as compressors have."""
    if protocol != LEARNING:
        return model.scoring_engine, protocol
    return (model.primed(bytes_to_text(training)) if training else model).learner(), "stream"


def _end_of(part: Part | StoredPart) -> bytes:
    """The last bytes of a training part, whole characters or not."""
    pieces: list[bytes] = []
    for _, data in part.data():
        pieces += data
        while sum(map(len, pieces)) - len(pieces[0]) >= MOST_READ_BEFORE:
            pieces.pop(0)
    return b"".join(pieces)[-MOST_READ_BEFORE:]


def scoreboard(
    columns: Sequence[Column], protocols: Sequence[str] = PROTOCOLS, progress: Progress = no_progress
) -> dict[str, Any]:
    """Scores every text under every protocol, and by other means.

    Args:
        columns: the texts.
        protocols: of `textlstm.metrics`; `stream+learn` is adaptive.
        progress: told how many of the scores are done.

    Returns:
        JSON values: `date`; `texts`, with their lengths, hashes and how much was read before; `rows`, each a method,
        whose it is (`model` or `others`), whether it is adaptive, and for each text its cost or null.
    """
    steps, done = len(columns) * (len(protocols) + 1), 0
    found: dict[tuple[str, str, bool], list[dict[str, float] | None]] = {}
    for number, column in enumerate(columns):
        bits: dict[tuple[str, str, bool], float] = {}
        for protocol in protocols:
            bits[protocol, "model", protocol == LEARNING] = column.score(protocol).nats / math.log(2)
            done += 1
            progress(done, steps)
        for name, cost in fixed_baselines(column.data, column.training).items():
            bits[name, "others", False] = cost
        for name, cost in baselines(column.data, column.training).items():
            bits[name, "others", True] = cost
        done += 1
        progress(done, steps)
        for key, cost in bits.items():
            found.setdefault(key, [None] * len(columns))[number] = _ratios(cost, column)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "texts": [
            {
                "name": column.name, "chars": column.chars, "bytes": len(column.data),
                "sha256": hashlib.sha256(column.data).hexdigest(), "training_bytes_read_before": len(column.training),
            }
            for column in columns
        ],
        "rows": [
            {"method": method, "of": of, "adaptive": adaptive, "scores": scores}
            for (method, of, adaptive), scores in sorted(found.items(), key=lambda item: item[0][1:])
        ],
    }  # fmt: skip


def _ratios(bits: float, column: Column) -> dict[str, float]:
    per_char = bits / column.chars
    return {
        "bits": bits, "nats_per_char": per_char * math.log(2), "bits_per_char": per_char,
        "bits_per_byte": bits / len(column.data),
    }  # fmt: skip
