"""The rule behind `--minutes`: from a time and a text to a vocabulary, a size, a regularisation and a number of steps.

The machine is measured first (`trainer.speed`): its peak rate of matrix multiplication, then real training steps of
the size that the rule proposes. Then everything is fixed but the number of steps, which is counted again while the run
is young (`Timetable`). This module only decides; it measures nothing, so that it can be tested with any machine.

The rule (V ids, H hidden, P parameters, D tokens read in the run, N tokens of text; `docs/autopilot.md` says it at
length, `docs/log.md` has the runs):

- V is 512, or 320 where 512 do not make tokens a fifth longer: in tables and music. It is 1024, 2048 and 4096 from
  0.3, 1 and 9 million tokens of that size on, or from 25 for each id where those of half as many ids are less than a
  character, as in Chinese; each if they are a tenth longer (in tables and music a fifth) than with half as many ids.
  How long they come out is measured (`appraisal.token_lengths`). Instead of 512 it is 320, and instead of 320 it is
  288, where the text costs 0.6 % less by n-grams of such tokens (`appraisal.token_costs`), or 512 where it costs 1.5 %
  less.
- H is the multiple of 64 for which P comes nearest to the lesser of sqrt(C / 7.2), C being the floating-point
  operations that the time allows (about 1.2 tokens read per parameter), and 18 N.
- Outputs of the last layer are kept small: 0.02 of their squared norm is added to the loss (an activation penalty of
  0.02 H). It is worth 0.02 to 0.09 nats per character from half an epoch to 12, most where little time is spent.
- The more epochs D / N, the more dropout: d is the lesser of 0.11 log2(epochs / 4.5) and 0.055 log2(P / N), or
  0.03 log2(P / N) in tables and music, between 0 and 0.45, on the input, between layers, on the output and as weight
  drop; 0.4 (d - 0.2) of whole tokens.
- The learning rate falls with the width: 8e-3 sqrt(320 / H), 1e-2 at most.
- Up to 60 epochs there is no development part: all text is learnt from, and the end of the schedule is the best
  point. The logits of the finished model are divided by 1 + 0.05 log2(epochs / 4.5), between 0.9 and 1, and by
  0.16 (change - 1) log2(epochs) more, up to 1.3, `change` being how much the text changes on the way; by 1 + 0.07
  log2(epochs), at most 1.15, where that is more and a quarter of the characters are digits (these two from one epoch
  on). A text is read 100 times at most.
- 12 lanes of 64 tokens, 16 where C is above 3e14: a short run wants steps (at 2e13 operations 12 lanes cost 0.05
  nats per character less than 24, for 15 % fewer tokens a second). Short texts have fewer.
- Averaging spans a twelfth of the run. Above 12 epochs it spans a quarter, the learning rate ends at a fifth, and
  merge dropout begins at 0.1; that also above 3, where an id occurs less than 50 times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from textlstm.config import LEAST_APART, LOOKS

USUAL_SHARE = 0.6  # of the peak rate that training reaches, for the first guess of the size
ENGLISH: Mapping[int, float] = {320: 1.5, 512: 2.0, 1024: 2.4, 2048: 2.8, 4096: 3.2}  # characters per token, own BPE


@dataclass(frozen=True)
class Text:
    """What the rule knows of a training text (`appraisal` measures it).

    Attributes:
        chars: its length.
        lengths: characters per token, by size of the vocabulary.
        digits: how many of its characters are digits, as a share.
        change: how much it changes on the way, as `appraisal.change` tells.
        costs: what it costs by n-grams, in nats per character, by each size of the vocabulary between which these
            decide (`candidate_sizes`); empty where none do.
    """

    chars: int
    lengths: Mapping[int, float] = field(default_factory=lambda: ENGLISH)
    digits: float = 0.0
    change: float = 1.0
    costs: Mapping[int, float] = field(default_factory=dict)

    @property
    def has_words(self) -> bool:
        """Whether letters often occur together; in tables and music they do not. Short texts pass as having them."""
        return self.chars < _WORDS_TOLD_FROM or self.lengths[512] >= _WORDS_LONGER * self.lengths[320]

    def tokens(self, vocab: int) -> float:
        """Its length in tokens, of the nearest vocabulary whose lengths are known."""
        return self.chars / min(self.lengths.items(), key=lambda item: abs(item[0] - vocab))[1]


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


def propose(seconds: float, text: Text, peak: float, fixed: Mapping[str, Any]) -> Proposal:
    """Chooses everything but the number of steps.

    Args:
        seconds: time for training.
        text: what is known of the training text.
        peak: the machine's rate, in floating-point operations per second.
        fixed: settings that the user made; they stand.
    """
    suitable, why = vocabulary(text)
    vocab = int(fixed.get("vocab_size", suitable))
    operations = seconds * peak * USUAL_SHARE
    tokens = max(1.0, text.tokens(vocab))
    affordable, borne = math.sqrt(operations / 7.2), most_params(tokens)
    wanted = _soft_minimum(affordable, borne)
    hidden = int(fixed.get("hidden_size", min(_WIDTHS, key=lambda h: abs(math.log(_params(h, vocab) / wanted)))))
    tokens_read = min(operations / (6 * _params(hidden, vocab)), MOST_EPOCHS * tokens)
    epochs = tokens_read / tokens
    batch, length = next(
        sizes
        for most_tokens, most_operations, sizes in _BATCHES
        if tokens < most_tokens and operations <= most_operations
    )
    steps = max(1.0, tokens_read / (batch * length))
    kept = regularisation(steps, epochs, _params(hidden, vocab) / tokens, text.has_words)
    model = {"vocab_size": vocab, "embed_size": hidden, "hidden_size": hidden, **kept.model}
    lr = round(min(1e-2, 8e-3 * math.sqrt(320 / hidden)), 5)
    sizes = {"batch_size": batch, "seq_len": length}
    train = {**sizes, "lr": lr, "activation_penalty": activation_penalty(hidden), **kept.train}
    development = epochs > _MOST_EPOCHS_WITHOUT_DEVELOPMENT
    sure = temperature(epochs, text, fixed)
    return Proposal(model, train, development, tokens_read, sure, why, borne < affordable)


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
        words: whether the text has words (`Text.has_words`).
    """
    d = _dropout(epochs, params_per_token, words)
    often = epochs > _OFTEN
    return Regularisation(
        {
            "embed_dropout": round(max(0.0, 0.4 * (d - 0.2)), 3),
            **dict.fromkeys(("input_dropout", "layer_dropout", "output_dropout", "weight_dropout"), d),
        },
        {
            "weight_decay": max(0.1, d),
            "ema": averaging(steps, _LONG_AVERAGE) if often else averaging(steps),
            "lr_final": _LR_FINAL if often else 0.0,
        },
    )


def temperature(epochs: float, text: Text, fixed: Iterable[str]) -> float:
    """What to divide the logits of the finished model by where no development part can tell.

    With the activation penalty networks are not sure enough of what they have read little of; they grow too sure of
    numbers, and of what does not go on as it was. With a regularisation of the user's, nobody knows.

    Args:
        epochs: of the run.
        text: what is known of it.
        fixed: names of settings that the user made.
    """
    if not _REGULARISATION.isdisjoint(fixed):
        return 1.0
    read = math.log2(max(1.0, epochs))
    unsure = max(-0.1, min(0.0, 0.05 * math.log2(epochs / 4.5)))
    of_the_old = 0.16 * (max(1.0, text.change) - 1) * read
    of_numbers = min(0.15, 0.07 * read) if text.digits >= _MANY_DIGITS else -math.inf
    return round(1 + min(_MOST_SURE, max(unsure + of_the_old, of_numbers)), 2)


def _dropout(epochs: float, params_per_token: float, words: bool) -> float:
    """What a text wants that is read so often by a network of so many parameters for each of its tokens."""
    read = 0.11 * math.log2(max(1.0, epochs / 4.5))
    borne = (0.055 if words else 0.03) * math.log2(max(1.0, params_per_token))
    return round(min(read, borne, _MOST_DROPOUT), 3)


# Settings of the user under which another temperature may be right.
_REGULARISATION = frozenset(
    (
        "input_dropout", "layer_dropout", "output_dropout", "weight_dropout", "embed_dropout",
        "activation_penalty", "label_smoothing",
    )
)  # fmt: skip
# Share of the characters. Numbers that nothing foretells are learnt by heart: after 14 epochs of a table of places the
# loss is 1.496, divided by 1.06 1.484, by 1.15 1.473; after 5 of one of countries by years 2.31, and by 1.15 2.22. All
# without the activation penalty; with it the first wants 1.02 after 6 epochs, the second 1.3 or more after 3.
_MANY_DIGITS = 1 / 4
_MOST_SURE = 0.3  # the highest that was measured
VOCABULARIES = (288, 320, 512, 1024, 2048, 4096)  # sizes that are chosen
# With 512 ids instead of 320 the tokens of prose, verse and code are 1.31 to 1.6 times as long, those of a table and
# of music 1.10 and 1.13 times.
_WORDS_LONGER = 1.2
_WORDS_TOLD_FROM = 2_000  # characters; in fewer pairs of English run out before 512 ids
# Ids, and tokens of text that they want. Tokens of words are 1.27 to 1.41 times as long with 1024 ids as with 512.
# Parts of characters are worth no tokens: 175,000 characters of Chinese, three bytes each, end at 5.375 with 512 ids
# (0.66 characters a token), 5.330 with 1024 (0.86), 5.179 with 2048 (1.03) and 5.184 with 4096 (1.16); a third of them
# at 5.625, 5.572, 5.532 and, where an id occurs 12 times, 5.639.
_LARGER = ((1024, 300_000), (2048, 1_000_000), (4096, 9_000_000))
_LONGER = 1.1
# Between these sizes n-grams decide. Where fewer ids cost 0.6 % less by them, networks end lower, too: Dante (-1.4 %)
# 1.366 with 320 ids, 1.379 with 512; airs (-1.2 %) 1.281 with 288, 1.287 with 320; a dictionary of pronunciations
# (-0.7 %) 0.655 and 0.699. A play in German (-0.51 %) does not care. More ids have to cost less by more: a list of
# restaurants (-3.0 %) ends at 0.320 with 512, 0.331 with 320, parts of countries (-0.56 %) at 0.604 and 0.562.
_CANDIDATES: Mapping[int, tuple[int, ...]] = {320: (288, 320, 512), 512: (320, 512)}
_FEWER, _MORE = 0.994, 0.985
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


def vocabulary(text: Text) -> tuple[int, str]:
    """How many ids suit a text, and why: what the length of its tokens asks for, or what n-grams are better at."""
    vocab, why = _by_token_length(text)
    if vocab not in text.costs:
        return vocab, why
    shares = {size: cost / text.costs[vocab] for size, cost in text.costs.items()}
    best = min(shares, key=lambda size: shares[size] / (_FEWER if size < vocab else _MORE))
    if shares[best] < (_FEWER if best < vocab else _MORE):
        return best, f"by n-grams of its tokens the text costs {1 - shares[best]:.1%} less than with {vocab}"
    return vocab, why


def candidate_sizes(text: Text) -> tuple[int, ...]:
    """The sizes of the vocabulary between which n-grams decide; none where tokens' lengths ask for 1,024 or more."""
    return _CANDIDATES.get(_by_token_length(text)[0], ())


def _by_token_length(text: Text) -> tuple[int, str]:
    """More ids while its tokens grow, and are enough, or are parts of characters; and why so many."""
    if text.has_words:
        vocab, longer, why = 512, _LONGER, None
    else:
        vocab, longer, why = 320, _WORDS_LONGER, "with 512 its tokens would hardly be longer"
    before = 512
    for larger, wanted in _LARGER:
        tokens, parts = text.tokens(larger), text.lengths[before] < 1
        if text.lengths[larger] < longer * text.lengths[before]:
            more = f"with {larger:,} its tokens would hardly be longer"
            break
        if tokens < wanted and not (parts and tokens >= _SELDOM * larger):
            more = f"{larger:,} want {wanted:,} tokens; with them this text has {tokens:,.0f}"
            break
        vocab = before = larger
        why = "fewer ids make tokens of less than a character" if tokens < wanted else None
    else:
        more = "the most that are chosen"
    return vocab, more if why is None else why


def most_params(tokens: float) -> float:
    """Parameters beyond which a text of so many tokens teaches a network no more."""
    return _PARAMS_PER_TOKEN * tokens


def _soft_minimum(one: float, other: float) -> float:
    """The smaller of two numbers where they differ much, and less than both where they are near each other."""
    return float((one**-4 + other**-4) ** -0.25)


def _params(hidden: int, vocab: int) -> int:
    """Parameters that are multiplied: two layers of width H on a tied embedding of width H."""
    return 16 * hidden * hidden + vocab * hidden


def activation_penalty(hidden: int) -> float:
    """The weight of the mean that makes 0.02 of the squared norm of so many outputs, so as strong at any width."""
    return round(0.02 * hidden, 2)


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
    per_char = (2 * params / (_SCORING_SHARE * peak) + 2e-5) / ENGLISH[2048]
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
    seconds: float, per_step: float, final: float, look: float = 0.0, save: float = 0.0, every: int | None = None
) -> int:
    """Number of steps that fit.

    Args:
        seconds: time left for everything.
        per_step: seconds per step.
        final: seconds that the final score takes.
        look: seconds per look at the development part, sample and files included.
        save: seconds per checkpoint, one with every second look.
        every: steps from one look to the next; None is as `steps_apart` says.
    """
    left, besides, step = seconds - final - save, look + save / 2, per_step * (1 + _SMALL_THINGS)
    looks = _looks(left, besides)
    steps = (left - looks * besides) / step
    if every is not None or steps < looks * LEAST_APART:
        steps = left / (step + besides / (LEAST_APART if every is None else every))
    return max(1, int(steps))


def steps_apart(steps: int, per_step: float, look: float, save: float) -> int | None:
    """Steps from one look to the next where 20 of them would take more than 4 % of the time; else None.

    Args:
        steps: of the run.
        per_step, look, save: as `steps_within` takes them.
    """
    besides = look + save / 2
    looks = _looks(steps * per_step * (1 + _SMALL_THINGS) / (1 - _LOOKING), besides)
    return None if looks == LOOKS or steps < looks * LEAST_APART else math.ceil(steps / looks)


def _looks(seconds: float, each: float) -> float:
    """How many looks take 4 % of some time; four all the same, so that there is something to choose from."""
    return max(_FEWEST_LOOKS, min(LOOKS, _LOOKING * seconds / max(each, 1e-9)))


# With the log a run should spend under 5 % besides steps; with 0.05 half a minute and one spent 5.6 and 5.4 %.
_LOOKING, _FEWEST_LOOKS = 0.04, 4
_SMALL_THINGS = 0.03  # share of a step's time that goes into the log, the screen and the memory


COUNTED_UNTIL = 0.75  # of the steps of a run, they may become others


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

    def recount(self, looks: Sequence[tuple[int, float]], steps: int, warmup: float) -> int:
        """How many steps the run should take in all.

        Counted from a tenth to three quarters of the run, and after the warm-up: before, too little is known; after,
        what is left is what the learning rate needs to fall. Never fewer than half of what was planned: a process that
        was stopped for a while only seems slow. More are right, up to what the text bears: the peak chose all else. No
        more than thrice as many at once, and none with which the rate would warm up again. In the second half never
        more, since the rate has fallen and would rise, and at most a tenth fewer at once.

        Args:
            looks: steps done and seconds passed, some times. From one to the next is told how fast steps are; before
                the first one they carry what a process does once.
            steps: of the whole run, as it stands.
            warmup: share of them over which the learning rate rises.

        Returns:
            Another number of steps where the run would miss its end by a twentieth of them, else the same one.
        """
        step, passed = looks[-1]
        if not max(0.1, warmup) <= step / steps <= COUNTED_UNTIL or len(looks) < 2:
            return steps
        least, most = self.steps // 2, min(self.most_steps, 3 * steps, int(step / warmup) if warmup else 3 * steps)
        if 2 * step > steps:
            least, most = max(least, int(0.9 * steps)), min(most, steps)
        fit = step + int(max(0.0, self.seconds - self.ending - passed) / pace(looks))
        wanted = max(step + 1, min(max(fit, least), most))
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
LAW = Law(0.7941, 0.0649, 0.42, 0.1)


def predict(operations: float, tokens: float, anchor: float, law: Law = LAW) -> float:
    """The loss that a run of the rule ends with, in nats per character of the held-out text.

    Args:
        operations: C, floating-point operations of all training steps.
        tokens: N, length of the training text in tokens of the vocabulary.
        anchor: of the text, as `appraisal.anchor` gives it.
        law: the numbers.
    """
    return float(anchor * (law.floor + law.missed * (operations / 1e13) ** -law.alpha * (tokens / 1e5) ** law.beta))
