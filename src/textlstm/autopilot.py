"""The rule behind `--minutes`: from a time and a text to a vocabulary, a size, a regularisation and a number of steps.

The machine is measured first (`trainer.speed`): its peak rate of matrix multiplication, then real training steps of
the size that the rule proposes. Then everything is fixed, so that a run's result follows from its configuration and
seed alone. This module only decides; it measures nothing, so that it can be tested with any machine.

The rule (V ids, H hidden, P parameters, D tokens read in the run, N tokens of text; `docs/log.md` has the runs):

- V grows with the text: 512 below 200 kB, 1024 below 3 MB, 2048 below 30 MB, else 4096.
- H is the multiple of 64 for which P = sqrt(C / 7.2) comes nearest, C being the floating-point operations that the
  time allows: about 1.2 tokens read per parameter.
- The more epochs D / N, the more regularisation: dropout d = 0.11 log2(epochs / 4.5), between 0 and 0.4.
- The learning rate falls with the width: 8e-3 sqrt(320 / H), 1e-2 at most.
- Up to 40 epochs there is no development part: all text is learnt from, and the end of the schedule is the best point.
- 12 lanes of 64 tokens, 16 where C is above 3e14: a short run wants steps (at 2e13 operations 12 lanes cost 0.05
  nats per character less than 24, for 15 % fewer tokens a second). Short texts have fewer.
- Averaging spans a twelfth of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

USUAL_SHARE = 0.6  # of the peak rate that training reaches, for the first guess of the size
_BESIDES = 0.07  # share of the time for looks, samples, checkpoints and the start
_CHARS_PER_TOKEN = {512: 2.0, 1024: 2.4, 2048: 2.8, 4096: 3.2}  # English, own BPE


@dataclass(frozen=True)
class Proposal:
    """What the rule chose before the steps are counted.

    Attributes:
        model: settings of ModelConfig.
        train: settings of TrainConfig, without steps.
        development: whether a development part should pick the best weights.
    """

    model: Mapping[str, Any]
    train: Mapping[str, Any]
    development: bool


def propose(seconds: float, chars: int, peak: float, fixed: Mapping[str, Any]) -> Proposal:
    """Chooses everything but the number of steps.

    Args:
        seconds: time for training.
        chars: length of the training text.
        peak: the machine's rate, in floating-point operations per second.
        fixed: settings that the user made; they stand.
    """
    vocab = int(fixed.get("vocab_size", next((v for v, most in _VOCABULARIES if chars < most), 4096)))
    operations = seconds * peak * USUAL_SHARE
    wanted = math.sqrt(operations / 7.2)
    hidden = int(fixed.get("hidden_size", min(_WIDTHS, key=lambda h: abs(math.log(_params(h, vocab) / wanted)))))
    tokens_read = operations / (6 * _params(hidden, vocab))
    tokens = chars / min(_CHARS_PER_TOKEN.items(), key=lambda item: abs(item[0] - vocab))[1]
    epochs = tokens_read / max(1.0, tokens)
    d = round(min(0.4, max(0.0, 0.11 * math.log2(max(1.0, epochs / 4.5)))), 3)
    batch, length = next(
        sizes
        for most_tokens, most_operations, sizes in _BATCHES
        if tokens < most_tokens and operations <= most_operations
    )
    steps = max(1.0, tokens_read / (batch * length))
    model = {
        "vocab_size": vocab,
        "embed_size": hidden,
        "hidden_size": hidden,
        "input_dropout": d,
        "layer_dropout": round(d + 0.05, 3),
        "output_dropout": round(d + 0.1, 3),
        "weight_dropout": d,
    }
    train = {
        "batch_size": batch,
        "seq_len": length,
        "lr": round(min(1e-2, 8e-3 * math.sqrt(320 / hidden)), 5),
        "weight_decay": max(0.1, d),
        "ema": averaging(steps),
    }
    return Proposal(model, train, epochs > _MOST_EPOCHS_WITHOUT_DEVELOPMENT)


_VOCABULARIES = ((512, 200_000), (1024, 3_000_000), (2048, 30_000_000))
_MOST_EPOCHS_WITHOUT_DEVELOPMENT = 40
_WIDTHS = (128, *range(192, 1025, 64), 1280, 1536)
# Tokens of text below, operations up to: 3e14 are about 20 minutes of two cores. Only short runs were swept so far.
_BATCHES = (
    (5_000, math.inf, (4, 32)),
    (100_000, math.inf, (8, 48)),
    (math.inf, 3e14, (12, 64)),
    (math.inf, math.inf, (16, 64)),
)


def _params(hidden: int, vocab: int) -> int:
    """Parameters that are multiplied: two layers of width H on a tied embedding of width H."""
    return 16 * hidden * hidden + vocab * hidden


def averaging(steps: float) -> float:
    """Decay of the averaged weights that spans a twelfth of a run of so many steps."""
    return round(min(0.999, max(0.9, 1 - 12 / steps)), 4)


def steps_within(seconds: float, per_step: float, final: float) -> int:
    """Number of steps that fit.

    Args:
        seconds: time left for everything.
        per_step: seconds per step.
        final: seconds that the final score takes.
    """
    return max(1, int((seconds - final) * (1 - _BESIDES) / per_step))
