"""The rule behind `--minutes`: from a time and a text to a vocabulary, a size, a regularisation and a number of steps.

The machine is measured first (`trainer.speed`): its peak rate of matrix multiplication, then real training steps of
the size that the rule proposes. Then everything is fixed but the number of steps, which is counted again while the run
is young (`Timetable`). This module only decides; it measures nothing, so that it can be tested with any machine.

The rule (V ids, H hidden, P parameters, D tokens read in the run, N tokens of text; `docs/autopilot.md` says it at
length, `docs/log.md` has the runs):

- V is 512, or 320 where 512 do not make tokens a fifth longer: in tables and music. It is 1024, 2048 and 4096 from
  0.3, 1 and 9 million of these tokens on, or from 25 for each id where those of half as many ids are less than a
  character, as in Chinese; each if they are a tenth longer (in tables and music a fifth) than with half as many ids.
  How long they come out is measured (`planning.token_lengths`).
- H is the multiple of 64 for which P comes nearest to the lesser of sqrt(C / 7.2), C being the floating-point
  operations that the time allows (about 1.2 tokens read per parameter), and 18 N.
- The more epochs D / N, the more regularisation: d is the lesser of 0.11 log2(epochs / 4.5) and 0.055 log2(P / N),
  or 0.03 log2(P / N) in tables and music, between 0 and 0.45, on the input and as weight drop; 0.05 + 0.75 d between
  layers, d + 0.1 on the output, 0.4 (d - 0.2) of whole tokens.
- The learning rate falls with the width: 8e-3 sqrt(320 / H), 1e-2 at most.
- Up to 60 epochs there is no development part: all text is learnt from, and the end of the schedule is the best
  point. The logits of the finished model are divided by 1 + 0.04 log2(epochs / 5), between 1 and 1.15, and by
  0.16 (change - 1) log2(epochs) more, up to 1.3, `change` being how much the text changes on the way; by 1 + 0.07
  log2(epochs), at most 1.15, where that is more and a quarter of the characters are digits. A text is read 100 times
  at most.
- 12 lanes of 64 tokens, 16 where C is above 3e14: a short run wants steps (at 2e13 operations 12 lanes cost 0.05
  nats per character less than 24, for 15 % fewer tokens a second). Short texts have fewer.
- Averaging spans a twelfth of the run. Above 12 epochs it spans a quarter, the learning rate ends at a fifth, and
  merge dropout begins at 0.1; that also above 3, where an id occurs less than 50 times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.tokenizer import Ids

USUAL_SHARE = 0.6  # of the peak rate that training reaches, for the first guess of the size
ENGLISH: Mapping[int, float] = {320: 1.5, 512: 2.0, 1024: 2.4, 2048: 2.8, 4096: 3.2}  # characters per token, own BPE


@dataclass(frozen=True)
class Proposal:
    """What the rule chose before the steps are counted.

    Attributes:
        model: settings of ModelConfig.
        train: settings of TrainConfig, without steps.
        development: whether a development part should pick the best weights.
        tokens_read: how many tokens the run will read, about.
        temperature: what the logits of the finished model are divided by where no development part can tell.
        why_vocabulary: what it says for the number of ids that it chose.
        text_bounds: whether the text keeps the network from being larger, more than the time does.
    """

    model: Mapping[str, Any]
    train: Mapping[str, Any]
    development: bool
    tokens_read: float
    temperature: float
    why_vocabulary: str
    text_bounds: bool


def propose(
    seconds: float, chars: int, peak: float, fixed: Mapping[str, Any], lengths: Mapping[int, float] = ENGLISH,
    digits: float = 0.0, change: float = 1.0,
) -> Proposal:  # fmt: skip
    """Chooses everything but the number of steps.

    Args:
        seconds: time for training.
        chars: length of the training text.
        peak: the machine's rate, in floating-point operations per second.
        fixed: settings that the user made; they stand.
        lengths: characters of this text per token, by size of the vocabulary.
        digits: how many of its characters are digits, as a share.
        change: how much it changes on the way, as `change` tells.
    """
    suitable, why = vocabulary(chars, lengths)
    vocab = int(fixed.get("vocab_size", suitable))
    operations = seconds * peak * USUAL_SHARE
    tokens = chars / chars_per_token(vocab, lengths)
    affordable, borne = math.sqrt(operations / 7.2), most_params(tokens)
    wanted = _soft_minimum(affordable, borne)
    hidden = int(fixed.get("hidden_size", min(_WIDTHS, key=lambda h: abs(math.log(_params(h, vocab) / wanted)))))
    tokens_read = min(operations / (6 * _params(hidden, vocab)), MOST_EPOCHS * max(1.0, tokens))
    epochs = tokens_read / max(1.0, tokens)
    batch, length = next(
        sizes
        for most_tokens, most_operations, sizes in _BATCHES
        if tokens < most_tokens and operations <= most_operations
    )
    steps = max(1.0, tokens_read / (batch * length))
    kept = regularisation(steps, epochs, _params(hidden, vocab) / max(1.0, tokens), has_words(chars, lengths))
    model = {"vocab_size": vocab, "embed_size": hidden, "hidden_size": hidden, **kept.model}
    lr = round(min(1e-2, 8e-3 * math.sqrt(320 / hidden)), 5)
    train = {"batch_size": batch, "seq_len": length, "lr": lr, **kept.train}
    development = epochs > _MOST_EPOCHS_WITHOUT_DEVELOPMENT
    return Proposal(
        model, train, development, tokens_read, temperature(epochs, digits, change, fixed), why, borne < affordable
    )


@dataclass(frozen=True)
class Regularisation:
    """What keeps a network from learning a text by heart: settings of ModelConfig and of TrainConfig."""

    model: Mapping[str, float]
    train: Mapping[str, float]


def regularisation(steps: float, epochs: float, params_per_token: float, words: bool) -> Regularisation:
    """What suits a run of so many steps and epochs.

    Args:
        steps, epochs: of the run.
        params_per_token: parameters of the network for each token of the text.
        words: whether the text has words (`has_words`).
    """
    d = _dropout(epochs, params_per_token, words)
    often = epochs > _OFTEN
    return Regularisation(
        {
            "embed_dropout": round(max(0.0, 0.4 * (d - 0.2)), 3),
            "input_dropout": d,
            "layer_dropout": round(0.05 + 0.75 * d, 3),
            "output_dropout": round(d + 0.1, 3),
            "weight_dropout": d,
        },
        {
            "weight_decay": max(0.1, d),
            "ema": averaging(steps, _LONG_AVERAGE) if often else averaging(steps),
            "lr_final": _LR_FINAL if often else 0.0,
        },
    )


def temperature(epochs: float, digits: float, change: float, fixed: Iterable[str]) -> float:
    """What to divide the logits of the finished model by where no development part can tell.

    Args:
        epochs: of the run.
        digits: share of the characters of the text.
        change: of the text, as `change` tells.
        fixed: names of settings that the user made.
    """
    return _temperature(epochs, digits, change) if _REGULARISATION.isdisjoint(fixed) else 1.0


def _dropout(epochs: float, params_per_token: float, words: bool) -> float:
    """What a text wants that is read so often by a network of so many parameters for each of its tokens."""
    read = 0.11 * math.log2(max(1.0, epochs / 4.5))
    borne = (0.055 if words else 0.03) * math.log2(max(1.0, params_per_token))
    return round(min(read, borne, _MOST_DROPOUT), 3)


def _temperature(epochs: float, digits: float, change: float) -> float:
    """Networks grow too sure of what they read often, of numbers sooner, and of what does not go on as it was."""
    read = math.log2(max(1.0, epochs))
    by_heart = min(0.15, 0.04 * math.log2(max(1.0, epochs / 5)))
    of_numbers = min(0.15, 0.07 * read) if digits >= _MANY_DIGITS else 0.0
    of_the_old = 0.16 * (max(1.0, change) - 1) * read
    return round(1 + min(_MOST_SURE, max(by_heart + of_the_old, of_numbers)), 2)


# Settings of the user under which another temperature may be right.
_REGULARISATION = frozenset(
    ("input_dropout", "layer_dropout", "output_dropout", "weight_dropout", "embed_dropout", "label_smoothing")
)
# Share of the characters. Numbers that nothing foretells are learnt by heart: after 14 epochs of a table of places the
# loss is 1.496, divided by 1.06 1.484, by 1.15 1.473; after 5 of one of countries by years 2.31, and by 1.15 2.22.
_MANY_DIGITS = 1 / 4
_MOST_SURE = 0.3  # the highest that was measured
LEAST_VOCABULARY = 320
# With 512 ids instead of 320 the tokens of prose, verse and code are 1.31 to 1.6 times as long, those of a table and
# of music 1.10 and 1.13 times.
_WORDS_LONGER = 1.2
_WORDS_TOLD_FROM = 2_000  # characters; in fewer pairs of English run out before 512 ids
# Ids, and tokens of text that they want. Tokens of words are 1.27 to 1.41 times as long with 1024 ids as with 512.
# Parts of characters are worth no tokens: 175,000 characters of Chinese, three bytes each, end at 5.375 with 512 ids
# (0.66 characters a token), 5.330 with 1024 (0.86), 5.179 with 2048 (1.03) and 5.184 with 4096 (1.16); a third of them
# at 5.625, 5.572, 5.532 and, where an id occurs 12 times, 5.639.
_VOCABULARIES = ((1024, 300_000), (2048, 1_000_000), (4096, 9_000_000))
_LONGER = 1.1
_SELDOM = 25  # occurrences of an id on average
MOST_EPOCHS = 100  # of a text; more of them teach nothing more, and a run ends early
_PARAMS_PER_TOKEN = 18  # of text: 2 x 640 for a million characters
_MOST_DROPOUT = 0.45
_OFTEN = 12  # epochs from which on a run ends at a fifth of its rate, and averages weights over its last quarter
_LR_FINAL, _LONG_AVERAGE = 0.2, 1 / 4
_RARE = 50  # occurrences of an id on average
_MOST_EPOCHS_WITHOUT_DEVELOPMENT = 60
_WIDTHS = (128, *range(192, 1025, 64), 1280, 1536)
# Tokens of text below, operations up to: 3e14 are about 20 minutes of two cores. Only short runs were swept so far.
_BATCHES = (
    (5_000, math.inf, (4, 32)),
    (100_000, math.inf, (8, 48)),
    (math.inf, 3e14, (12, 64)),
    (math.inf, math.inf, (16, 64)),
)


def vocabulary(chars: int, lengths: Mapping[int, float] = ENGLISH) -> tuple[int, str]:
    """How many ids suit a text, and why: more while its tokens grow, and are enough, or are parts of characters.

    Args:
        chars: length of the training text.
        lengths: characters of it per token, by size of the vocabulary.
    """
    if has_words(chars, lengths):
        vocab, longer, why = 512, _LONGER, f"suits {chars:,} characters"
    else:
        vocab, longer, why = LEAST_VOCABULARY, _WORDS_LONGER, "more ids would hardly make its tokens longer"
    before = 512
    for larger, wanted in _VOCABULARIES:
        tokens, parts = chars / lengths[larger], lengths[before] < 1
        enough = tokens >= wanted or (parts and tokens >= _SELDOM * larger)
        if not enough or lengths[larger] < longer * lengths[before]:
            break
        vocab = before = larger
        why = "fewer ids make tokens of less than a character" if tokens < wanted else f"suits {chars:,} characters"
    return vocab, why


def has_words(chars: int, lengths: Mapping[int, float]) -> bool:
    """Whether letters of a text often occur together, as in words; in tables and music they do not.

    Args:
        chars: length of the text; of a short one nobody can tell, and it is taken to have words.
        lengths: characters of it per token, by size of the vocabulary.
    """
    return chars < _WORDS_TOLD_FROM or lengths[512] >= _WORDS_LONGER * lengths[LEAST_VOCABULARY]


def chars_per_token(vocab: int, lengths: Mapping[int, float] = ENGLISH) -> float:
    """Characters per token of the nearest vocabulary whose rate is known."""
    return min(lengths.items(), key=lambda item: abs(item[0] - vocab))[1]


def most_params(tokens: float) -> float:
    """Parameters beyond which a text of so many tokens teaches a network no more."""
    return _PARAMS_PER_TOKEN * tokens


def _soft_minimum(one: float, other: float) -> float:
    """The smaller of two numbers where they differ much, and less than both where they are near each other."""
    return float((one**-4 + other**-4) ** -0.25)


def _params(hidden: int, vocab: int) -> int:
    """Parameters that are multiplied: two layers of width H on a tied embedding of width H."""
    return 16 * hidden * hidden + vocab * hidden


def averaging(steps: float, share: float = 1 / 12) -> float:
    """Decay of the averaged weights that spans a share of a run of so many steps."""
    return round(min(0.9999, max(0.9, 1 - 1 / (share * steps))), 4)


def merge_dropout(epochs: float, tokens_per_id: float) -> float:
    """The rate for a text that is read often, or whose tokens are seldom met.

    Args:
        epochs: passes over the text.
        tokens_per_id: its length, over the size of the vocabulary.
    """
    return 0.1 if epochs > _OFTEN or (tokens_per_id < _RARE and epochs > _OFTEN / 4) else 0.0


def most_held_out(seconds: float, peak: float) -> int:
    """How many characters to hold out at most, so that scoring them takes no more than a seventh of the time.

    One of four numbers, so that the same machine holds out the same text twice. 200,000 are always allowed.

    Args:
        seconds: the whole time.
        peak: the machine's rate, in floating-point operations per second.
    """
    params = math.sqrt(0.85 * seconds * peak * USUAL_SHARE / 7.2)
    per_char = (2 * params / (_SCORING_SHARE * peak) + 2e-5) / chars_per_token(2048)
    return next((chars for chars in (2_000_000, 1_000_000, 500_000) if chars * per_char < seconds / 7), 200_000)


_SCORING_SHARE = 0.05  # of the peak rate that one lane reaches


def sample_size(chars: int, seconds: float, encoding: float, wanted: float) -> int | None:
    """How many characters of a long text to learn from; None is all of them.

    All where it costs less than a twentieth of the time to make a tokenizer and to encode; else a quarter more than
    the run will read, since the rest would never be looked at.

    Args:
        chars: length of the training text.
        seconds: the whole time.
        encoding: seconds per character to encode.
        wanted: characters that the run will read.
    """
    preparing = encoding * (chars + 2 * min(chars, _TOKENIZER_CHARS))  # making takes twice as long as encoding
    sample = max(LEAST_SAMPLE, int(1.25 * wanted))
    return sample if preparing > 0.05 * seconds and sample < chars else None


_TOKENIZER_CHARS = 10_000_000
LEAST_SAMPLE = 1_000_000


def steps_within(
    seconds: float,
    per_step: float,
    final: float,
    look: float = 0.0,
    save: float = 0.0,
    looks: int = 20,
    apart: int = 25,
) -> int:
    """Number of steps that fit.

    Args:
        seconds: time left for everything.
        per_step: seconds per step.
        final: seconds that the final score takes.
        look: seconds per look at the development part, sample and files included.
        save: seconds per checkpoint, one with every second look.
        looks, apart: how many looks a run takes, unless they come nearer to each other than so many steps.
    """
    left, besides, step = seconds - final - save, look + save / 2, per_step * (1 + _SMALL_THINGS)
    few, many = left / (step + besides / apart), (left - looks * besides) / step
    return max(1, int(max(few, many)))


_SMALL_THINGS = 0.03  # share of a step's time that goes into the log, the screen and the memory


@dataclass(frozen=True)
class Timetable:
    """When a run that was planned for a time has to end, and how many steps it may take until then.

    A machine is not always as fast as in the two seconds in which it was measured: laptops grow hot, other programs
    begin and end. Of eight runs of three minutes on a shared machine one ended some 45 s early, another 20 s.

    Attributes:
        seconds: that the run may take.
        ending: seconds of them that what comes after the last step takes.
        steps: as many as were planned.
        most_steps: beyond which the text teaches no more.
    """

    seconds: float
    ending: float
    steps: int
    most_steps: int

    def recount(self, looks: Sequence[tuple[int, float]], steps: int) -> int:
        """How many steps the run should take in all.

        Counted between a tenth and half of the run: before, too little is known; after, the learning rate falls too
        fast for its schedule to be stretched. Never fewer than half of what was planned: a process that was stopped
        for a while only seems slow. More are right, up to what the text bears: the peak chose all else. No more than
        thrice as many at once, which keeps the learning rate from warming up again.

        Args:
            looks: steps done and seconds passed at each look. From one to the next is told how fast steps are; before
                the first one they carry what a process does once.
            steps: of the whole run, as it stands.

        Returns:
            Another number of steps where the run would miss its end by a twentieth of them, else the same one.
        """
        step, passed = looks[-1]
        if not 0.1 <= step / steps <= 0.5 or len(looks) < 2:
            return steps
        fit = step + int(max(0.0, self.seconds - self.ending - passed) / pace(looks))
        wanted = max(step + 1, min(max(fit, self.steps // 2), self.most_steps, 3 * steps))
        return steps if abs(wanted - steps) <= steps / 20 else wanted

    def projected(self, looks: Sequence[tuple[int, float]], steps: int) -> float:
        """Seconds that the run will have taken at this pace.

        Args:
            looks, steps: as `recount` takes them.
        """
        step, passed = looks[-1]
        return passed + pace(looks) * (steps - step) + self.ending


def pace(looks: Sequence[tuple[int, float]]) -> float:
    """Seconds per step, looks and checkpoints included, over the later half of the looks.

    Args:
        looks: steps done and seconds passed at each look; two of them at least.
    """
    (first, before), (last, after) = looks[(len(looks) - 1) // 2], looks[-1]
    return (after - before) / (last - first)


def anchor(train_N: Ids, held_out_M: Ids, vocab: int, chars: int) -> float:
    """How hard a text is, told in a moment: nats per character of an n-gram model of three tokens that learns nothing.

    Interpolated as Witten and Bell do (Chen and Goodman 1999, equation 2.13 and after): a context that was followed
    by T kinds of tokens gives the shorter context the weight of T occurrences.

    Args:
        train_N: ids of some of the training text.
        held_out_M: ids of some of the held-out text.
        vocab: number of ids.
        chars: length of the held-out text that these ids stand for.
    """
    seen, asked = train_N.astype(np.int64), held_out_M.astype(np.int64)
    p_M = np.full(max(0, len(asked) - 2), 1 / vocab)
    for n in (1, 2, 3):
        kinds, counts = np.unique(_ngrams(seen, n, vocab), return_counts=True)
        contexts, first = np.unique(kinds // vocab, return_index=True)
        followers, totals = np.diff([*first, len(kinds)]), np.add.reduceat(counts, first)
        looked_up = _ngrams(asked, n, vocab)[3 - n :]
        count, followed, total = (
            _counts(keys, values, query)
            for keys, values, query in (
                (kinds, counts, looked_up),
                (contexts, followers, looked_up // vocab),
                (contexts, totals, looked_up // vocab),
            )
        )
        p_M = np.where(total > 0, (count + followed * p_M) / np.maximum(1, total + followed), p_M)
    return float(-np.log(p_M).mean()) * len(asked) / chars


def _ngrams(ids: NDArray[np.int64], n: int, vocab: int) -> NDArray[np.int64]:
    """Every n successive ids as one number."""
    found = ids[: len(ids) - n + 1]
    for k in range(1, n):
        found = found * vocab + ids[k : len(ids) - n + 1 + k]
    return found


def _counts(keys: NDArray[np.int64], values: NDArray[np.int64], query: NDArray[np.int64]) -> NDArray[np.int64]:
    """The value of each number that is asked for, 0 where it is no key; keys are sorted."""
    places = np.minimum(np.searchsorted(keys, query), len(keys) - 1)
    return np.where(keys[places] == query, values[places], 0)


def change(ids_N: Ids, vocab: int) -> float:
    """How much a text changes on the way: what a tenth of it costs where it is left out as a whole, over what it costs
    where it is left out in small pieces from everywhere; both by the counts of `anchor`.

    1 is a text that is the same everywhere (1.04 Tiny Shakespeare, 1.12 articles, 1.3 files of code, 1.4 a table that
    is sorted by country). A network is too sure of what does not go on as it was.

    Args:
        ids_N: ids of the text, or of some stretches of it.
        vocab: number of ids.
    """
    place_N = np.arange(len(ids_N))

    def cost(held_N: NDArray[np.bool_]) -> float:
        return anchor(ids_N[~held_N], ids_N[held_N], vocab, int(held_N.sum()))

    if len(ids_N) < _LEAST_CHANGING:
        return 1.0
    tenths = [cost(place_N * _PARTS // len(ids_N) == part) for part in range(_PARTS)]
    pieces = cost(place_N // _PIECE % _PARTS == _PARTS // 2)
    return float(np.mean(tenths)) / pieces if pieces > 0 else 1.0  # what repeats itself for ever costs nothing


_PARTS, _PIECE, _LEAST_CHANGING = 10, 300, 10_000  # parts; tokens of a piece, and of a text that can tell


@dataclass(frozen=True)
class Law:
    """Loss = anchor x (floor + missed x (C / 1e13)^-alpha x (N / 1e5)^beta).

    The share of the anchor that no training takes away, and the share that this one does not yet: it falls with the
    operations C, and the more text there is, of N tokens, the more of them it wants.
    """

    floor: float
    missed: float
    alpha: float
    beta: float


#: Fitted by `benchmarks/quality/law.py` to `benchmarks/results/law.jsonl`.
LAW = Law(0.7943, 0.0794, 0.44, 0.16)


def predict(operations: float, tokens: float, anchor: float, law: Law = LAW) -> float:
    """The loss that a run of the rule ends with, in nats per character of the held-out text.

    Args:
        operations: C, floating-point operations of all training steps.
        tokens: N, length of the training text in tokens of the vocabulary.
        anchor: of the text, as `anchor` gives it.
        law: the numbers.
    """
    return float(anchor * (law.floor + law.missed * (operations / 1e13) ** -law.alpha * (tokens / 1e5) ** law.beta))
