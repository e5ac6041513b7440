"""Scores of the parts of a corpus that are not learnt from."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from textlstm import metrics
from textlstm.corpus import Corpus, Tokens

FITTED_ON = 1 << 15  # tokens that a temperature is fitted on at most: they settle the second digit
FITTING_READS = 15  # times that they are read
# Tokens at least. Drawn from a long text whose best temperature was 0.98, 45 of them made the model worse on the rest
# by 0.005 nats per token on average, 300 by 0.0006, 1,000 by 0.0001 and by 0.0013 at worst.
FITTED_FROM = 1000
_COLDEST, _HOTTEST = 0.5, 2.0


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


def fitted_temperature(at: Callable[[float], metrics.Predictor], tokens: Tokens) -> float:
    """What the logits of a model are best divided by, judged by the development part (Guo et al. 2017).

    The loss is convex in the inverse of the temperature, so a golden-section search finds its lowest point.

    Args:
        at: the model, its logits divided by a temperature.
        tokens: the text; its development part follows the training part.

    Returns:
        Between 0.5 and 2, to two digits; 1 where that gains nothing, or too little text could tell.
    """
    ids, before = tokens.dev[:FITTED_ON], tokens.train[-metrics.WARM_UP :]
    if len(ids) < FITTED_FROM:
        return 1.0
    protocol = metrics.lanes_for(len(ids))[1]

    def cost(inverse: float) -> float:
        return float(metrics.token_nats(at(1 / inverse), ids, before, protocol, metrics.WARM_UP).sum())

    low, high, golden = 1 / _HOTTEST, 1 / _COLDEST, (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    cost_left, cost_right = cost(left), cost(right)
    while high - low > 0.01:
        if cost_left <= cost_right:
            high, right, cost_right = right, left, cost_left
            left = high - golden * (high - low)
            cost_left = cost(left)
        else:
            low, left, cost_left = left, right, cost_right
            right = low + golden * (high - low)
            cost_right = cost(right)
    found = round(2 / (low + high), 2)
    return found if cost(1 / found) < cost(1.0) else 1.0  # nor where a cost is no number
