"""Scores of the parts of a corpus that are not learnt from."""

from __future__ import annotations

import numpy as np

from textlstm import metrics
from textlstm.corpus import Corpus, Tokens


def score_held_out(predictor: metrics.Predictor, corpus: Corpus, tokens: Tokens, protocol: str) -> metrics.Score:
    """The score of the held-out text; where it follows the training text, the end of that was read before it."""
    part, ids = corpus.val, tokens.val
    context = np.concatenate([tokens.train[-metrics.WARM_UP :], tokens.dev])[-metrics.WARM_UP :]
    before = context if corpus.val_follows else None
    warm_up = metrics.WARM_UP if corpus.val_follows else 0
    if not corpus.val_follows and predictor.config.boundary_id is not None:
        ids = ids[1:]  # a text that stands alone is read after the boundary anyway, and not after two
    return metrics.score(predictor, ids, part.num_chars, part.num_bytes, before, protocol, warm_up)


def score_development(predictor: metrics.Predictor, corpus: Corpus, tokens: Tokens, protocol: str) -> metrics.Score:
    """The score of the development part, which follows the training text."""
    before = tokens.train[-metrics.WARM_UP :]
    part = corpus.dev
    return metrics.score(predictor, tokens.dev, part.num_chars, part.num_bytes, before, protocol, metrics.WARM_UP)
