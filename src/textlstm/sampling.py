"""From logits to a token: bans, penalties, temperature, truncation, then a draw from the row's own stream.

The operators apply in the order of the fields of `SamplingConfig`. Each takes a block of rows and parameters,
one for each row, sets removed tokens to -inf and always leaves one. `top_k` and `min_p` keep or drop equal
logits together; `top_p` and `typical_p` keep the smallest set, of equal tokens at its edge the lowest ids.

A token's weight is a whole number, `weights`, so that sums are exact and what a row draws depends on its own logits
and stream only, bit for bit, on every machine. `kernels` does all of it again, compiled; `sample` takes that where it
can, and the tests hold both equal. What few ask for (DRY, top-n-sigma, XTC, mirostat, another order) is not
compiled, and done row by row.

Shapes: B rows of a batch, V ids of the vocabulary, D rows that draw (those with a temperature above 0).
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from textlstm import kernels
from textlstm.config import SamplingConfig
from textlstm.errors import DivergedError, TextLSTMError, UsageError

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]

_DIVERGED = "the logits hold NaN or infinity; train again with a smaller lr, or take an earlier checkpoint"
_NOTHING = "no token is left to draw; ban fewer tokens, use smaller penalties, or allow longer copies"
_LONGEST_REPEAT = 50  # tokens that DRY compares
_PARTS = 65536  # of which a logit is a whole number where logits are summed, so that their sums are exact


class Row:
    """One row of a batch: how it is sampled, its random stream, and which tokens it has met.

    Args:
        config: the sampling settings.
        rng: the stream that every draw of this row comes from, and no other.
        vocab_size: number V of ids.
        banned: which tokens must not be drawn, bool (V,); None bans nothing.
        breaks: which tokens hold a breaker of DRY, bool (V,); None if none does.

    Attributes:
        instead: which tokens stand for another, bool (V,), and that one, which is taken where they are drawn.
    """

    def __init__(
        self, config: SamplingConfig, rng: np.random.Generator, vocab_size: int, banned: Bools | None = None,
        breaks: Bools | None = None,
    ) -> None:  # fmt: skip
        self.config, self.rng, self.banned, self.vocab_size = config, rng, banned, vocab_size
        self.instead: tuple[Bools, int] | None = None
        self.breaks: Bools = np.zeros(vocab_size, np.bool_) if breaks is None else breaks
        self.penalties = (config.repetition_penalty, config.frequency_penalty, config.presence_penalty)
        self.penalized = self.penalties != (1, 0, 0)
        self.seen: Bools = np.zeros(vocab_size if self.penalized else 0, np.bool_)
        self.counts: npt.NDArray[np.int32] = np.zeros(self.seen.shape, np.int32)
        self.is_plain = config.is_plain
        self.last: deque[int] = deque(maxlen=config.dry_window)  # tokens, the newest last
        self.most_surprise = 2 * config.mirostat_tau  # bits that mirostat lets a token have
        self._packed: tuple[Bools | None, bytes] | None = None  # with what is banned there

    def packed(self) -> bytes:
        """The row as the compiled draw has it, with the next number of its stream, or none at temperature 0."""
        if self._packed is None or self._packed[0] is not self.banned:
            self.banned = None if self.banned is None else np.ascontiguousarray(self.banned, np.bool_)
            config, penalized = self.config, self.penalized
            least = math.log(config.min_p) if config.min_p > 0 else -math.inf
            settings = kernels.SETTINGS.pack(
                config.temperature, config.typical_p, config.top_p, least, *self.penalties, config.top_k,
                0 if self.banned is None else kernels.address(self.banned),
                kernels.address(self.seen) if penalized else 0, kernels.address(self.counts) if penalized else 0,
            )  # fmt: skip
            self._packed = self.banned, settings
        return kernels.MARK.pack(self.rng.random() if self.config.temperature > 0 else 0.0) + self._packed[1]

    def read(self, ids: npt.ArrayLike) -> None:
        """Notes tokens of the prompt (T,), which only the repetition penalty and DRY heed."""
        if self.penalized:
            self.seen[np.asarray(ids, np.intp)] = True
        if self.last.maxlen:
            self.last.extend(np.asarray(ids)[-self.last.maxlen :].tolist())

    def wrote(self, id: int) -> None:
        """Notes one generated token, which all penalties heed."""
        if self.penalized:
            self.seen[id] = True
            self.counts[id] += 1
        self.last.append(id)


@np.errstate(over="ignore", invalid="ignore")
def penalize(
    logits_BV: Floats, repetition_B: Floats, frequency_B: Floats, presence_B: Floats,
    seen_BV: Bools, counts_BV: Ints,
) -> Floats:  # fmt: skip
    """Makes tokens less likely that were met (repetition: CTRL, Keskar et al. 2019; the others: OpenAI).

    Args:
        logits_BV: logits (B, V).
        repetition_B: divides positive and multiplies negative logits of seen tokens, once; 1 is off.
        frequency_B: is subtracted for every time that the token was generated; 0 is off.
        presence_B: is subtracted once if the token was generated; 0 is off.
        seen_BV: whether the token stands in the prompt or the generated text.
        counts_BV: how often the token was generated.

    Returns:
        Logits (B, V).
    """
    repetition_B1 = repetition_B[:, None]
    repeated_BV = np.where(logits_BV > 0, logits_BV / repetition_B1, logits_BV * repetition_B1)
    logits_BV = np.where(seen_BV, repeated_BV, logits_BV)
    return logits_BV - counts_BV * frequency_B[:, None] - (counts_BV > 0) * presence_B[:, None]


@np.errstate(over="ignore")
def scale_temperature(logits_BV: Floats, temperature_B: Floats) -> Floats:
    """Divides logits by a temperature.

    Args:
        logits_BV: logits (B, V).
        temperature_B: above 0; 1 is off.

    Returns:
        Logits (B, V).
    """
    return logits_BV / np.clip(temperature_B, 1e-30, 1e30).astype(logits_BV.dtype)[:, None]


@np.errstate(over="ignore")
def weights(logits_BV: Floats) -> npt.NDArray[np.int64]:
    """Whole numbers in proportion to the probabilities of tokens: 2^30 for the likeliest of a row.

    Args:
        logits_BV: logits (B, V), the largest of each row 0.

    Returns:
        Weights (B, V); 0 where the probability is below 5e-10 of the likeliest token's.
    """
    whole_BV: npt.NDArray[np.int64] = np.rint(
        kernels.exponential(logits_BV.astype(np.float32)) * np.float32(2**30)
    ).astype(np.int64)
    return whole_BV


def top_k(logits_BV: Floats, k_B: Ints) -> Floats:
    """Keeps the k likeliest tokens and all that equal the k-th (Fan et al. 2018).

    Args:
        logits_BV: logits (B, V).
        k_B: number of tokens; 0 is off, as is a number above V.

    Returns:
        Logits (B, V), -inf where removed.
    """
    V = logits_BV.shape[-1]
    place_B = V - np.minimum(np.where(k_B > 0, k_B, V), V).astype(np.intp)
    parted_BV = np.partition(logits_BV, np.unique(place_B), axis=-1)
    return np.where(logits_BV >= np.take_along_axis(parted_BV, place_B[:, None], axis=-1), logits_BV, -np.inf)


def typical_p(logits_BV: Floats, mass_B: Floats) -> Floats:
    """Keeps the tokens whose surprise is nearest to the entropy, up to a mass (Meister et al. 2023).

    Args:
        logits_BV: logits (B, V).
        mass_B: probability that the smallest such set must reach; 1 is off, 0 keeps one token.

    Returns:
        Logits (B, V), -inf where removed.
    """
    x_BV = logits_BV - logits_BV.max(-1, keepdims=True)
    whole_BV = weights(x_BV)
    # A surprise is as far from the entropy, which is the mean surprise, as its logit from the mean logit.
    parts_BV = np.rint(np.where(whole_BV > 0, x_BV, 0) * _PARTS).astype(np.int64)
    mean_B1 = (whole_BV * parts_BV).sum(-1, keepdims=True) / whole_BV.sum(-1, keepdims=True) / _PARTS
    return _keep_mass(logits_BV, whole_BV, np.abs(x_BV - mean_B1.astype(x_BV.dtype)), mass_B)


def top_p(logits_BV: Floats, mass_B: Floats) -> Floats:
    """Keeps the likeliest tokens up to a mass: the nucleus (Holtzman et al. 2020).

    Args:
        logits_BV: logits (B, V).
        mass_B: probability that the smallest such set must reach; 1 is off, 0 keeps one token.

    Returns:
        Logits (B, V), -inf where removed.
    """
    return _keep_mass(logits_BV, weights(logits_BV - logits_BV.max(-1, keepdims=True)), -logits_BV, mass_B)


@np.errstate(divide="ignore")
def min_p(logits_BV: Floats, share_B: Floats) -> Floats:
    """Keeps the tokens that are at least this likely relative to the likeliest (Nguyen et al. 2024).

    Args:
        logits_BV: logits (B, V).
        share_B: share of the likeliest token's probability, from 0 (off) to 1.

    Returns:
        Logits (B, V), -inf where removed.
    """
    least_B1 = logits_BV.max(-1, keepdims=True) + np.log(share_B)[:, None]
    return np.where(logits_BV >= least_B1, logits_BV, -np.inf)


@np.errstate(over="ignore")
def dry(logits_V: Floats, last: Sequence[int], breaks_V: Bools, config: SamplingConfig) -> Floats:
    """Makes tokens less likely that would go on with a repeat, the more the longer it is (DRY, as llama.cpp has it).

    Args:
        logits_V: logits (V,).
        last: tokens that were read and written, the newest last.
        breaks_V: which tokens a repeat neither reaches past nor ends with.
        config: the fields that begin with `dry_`; a repeat of more than 50 tokens counts as one of 50.

    Returns:
        Logits (V,).
    """
    ids_T = np.array(last, np.intp)
    breaks = np.flatnonzero(breaks_V[ids_T])
    whole = len(ids_T) - 1 - (breaks[-1] if len(breaks) else -1)  # tokens since the last breaker
    longest_V = np.full(len(logits_V), -1)
    next_N = np.arange(1, len(ids_T))  # places whose token went on with what now ends the text
    for length in range(min(whole, _LONGEST_REPEAT)):
        next_N = next_N[next_N > length]
        next_N = next_N[ids_T[next_N - 1 - length] == ids_T[-1 - length]]
        longest_V[ids_T[next_N]] = length + 1
    excess_V = longest_V - config.dry_allowed_length
    penalty_V = config.dry_multiplier * float(config.dry_base) ** np.maximum(excess_V, 0)
    return logits_V - np.where((excess_V >= 0) & ~breaks_V, penalty_V, 0)


def top_n_sigma(logits_V: Floats, number: float) -> Floats:
    """Keeps the tokens whose logits are within some standard deviations of the largest (Tang et al. 2024).

    Args:
        logits_V: logits (V,); those that were removed do not count.
        number: of standard deviations; 0 is off.

    Returns:
        Logits (V,), -inf where removed.
    """
    if number <= 0:
        return logits_V
    finite = logits_V[np.isfinite(logits_V)]
    mean = math.fsum(finite) / len(finite)  # exact sums, so that all machines agree
    sigma = math.sqrt(math.fsum((finite - mean) ** 2) / len(finite))
    return np.where(logits_V >= logits_V.max() - number * sigma, logits_V, -np.inf)


def xtc(logits_V: Floats, threshold: float) -> Floats:
    """Leaves out the tokens that are at least so likely, but for the least likely of them (XTC, as llama.cpp has it).

    Args:
        logits_V: logits (V,).
        threshold: probability.

    Returns:
        Logits (V,), -inf where removed.
    """
    whole_V = weights(logits_V - logits_V.max())
    likely_V = whole_V >= threshold * whole_V.sum()
    if threshold > 0.5 or likely_V.sum() < 2:
        return logits_V
    return np.where(likely_V & (logits_V > logits_V[likely_V].min()), -np.inf, logits_V)


def keep_surprise(logits_V: Floats, most: float) -> Floats:
    """Keeps the tokens whose surprise is at most so many bits, and the likeliest: how mirostat 2 truncates.

    Args:
        logits_V: logits (V,).
        most: bits.

    Returns:
        Logits (V,), -inf where removed.
    """
    whole_V = weights(logits_V - logits_V.max())
    least = 2.0 ** -min(max(most, 0.0), 64.0)
    kept_V = (whole_V >= least * whole_V.sum()) | (logits_V == logits_V.max())
    return np.where(kept_V, logits_V, -np.inf)


_OPERATORS: dict[str, tuple[Callable[[Floats, Any], Floats], str, int]] = {
    # by name: operator, the field of SamplingConfig that feeds it, the value at which it does nothing
    "temperature": (scale_temperature, "temperature", 1),
    "top_k": (top_k, "top_k", 0),
    "typ_p": (typical_p, "typical_p", 1),
    "top_p": (top_p, "top_p", 1),
    "min_p": (min_p, "min_p", 0),
}


def probabilities(logits_BV: Floats, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """The distribution that each row draws from next; at temperature 0 all of it lies on the likeliest token.

    Args:
        logits_BV: logits (B, V) as the network gives them; they are not changed.
        rows: the B rows.

    Returns:
        Probabilities (B, V).

    Raises:
        DivergedError: the logits of a row hold NaN or +inf, or nothing but -inf.
        UsageError: the bans and penalties of a row leave nothing to draw.
    """
    probs_BV = np.zeros(logits_BV.shape)
    plain = [i for i, row in enumerate(rows) if row.is_plain]
    if plain:
        best_B, drawing, whole_DV = _distributions(logits_BV[plain], [rows[i] for i in plain])
        probs_BV[plain, best_B] = 1
        probs_BV[np.array(plain)[drawing]] = whole_DV / whole_DV.sum(-1, keepdims=True)
    for i, row in enumerate(rows):
        if not row.is_plain:
            whole_V = _distribution(logits_BV[i], row, copy.deepcopy(row.rng), i)
            probs_BV[i] = whole_V / whole_V.sum()
    return probs_BV


def sample(logits_BV: Floats, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
    """Draws one token per row, with one number from the row's stream, or none at temperature 0; XTC takes one before.

    Args:
        logits_BV: logits (B, V) as the network gives them; they are not changed.
        rows: the B rows; telling them what was drawn (`Row.wrote`) is left to the caller.

    Returns:
        Ids (B,), each of a token whose probability is above 0.

    Raises:
        DivergedError, UsageError: as `probabilities`; then the streams stand where they stood.
    """
    if len(rows) != len(logits_BV):
        raise ValueError(f"{len(rows)} rows for {len(logits_BV)} rows of logits")
    kernel = kernels.load()
    if not all(row.is_plain for row in rows):
        ids_B = _sample_apart(logits_BV, rows)
    elif kernel is None or logits_BV.dtype != np.float32 or not rows:
        ids_B = reference(logits_BV, rows)
    else:
        ids_B = _draw(kernel, logits_BV, rows)
    for place, row in enumerate(rows):
        if row.instead is not None and row.instead[0][ids_B[place]]:
            ids_B[place] = row.instead[1]
    return ids_B


def reference(logits_BV: Floats, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
    """What `sample` does, slow and obvious."""
    best_B, drawing, whole_DV = _distributions(logits_BV, rows)
    below_DV = np.cumsum(whole_DV, axis=-1)
    total_D = below_DV[:, -1]
    marks_D = np.array([rows[i].rng.random() for i in drawing]) * total_D
    place_D = np.minimum(marks_D.astype(np.int64), total_D - 1)  # the product can round up to the total
    best_B[drawing] = (below_DV > place_D[:, None]).argmax(-1)
    return best_B


def _sample_apart(logits_BV: Floats, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
    """The same where some rows have operators that are not compiled."""
    ids_B = np.zeros(len(rows), np.int64)
    plain = [i for i, row in enumerate(rows) if row.is_plain]
    others = [(i, row) for i, row in enumerate(rows) if not row.is_plain]
    before = [row.rng.bit_generator.state for _, row in others]
    try:
        whole_NV = [_distribution(logits_BV[i], row, row.rng, i) for i, row in others]
        if plain:
            ids_B[plain] = sample(logits_BV[plain], [rows[i] for i in plain])
    except TextLSTMError:
        for (_, row), state in zip(others, before, strict=True):
            row.rng.bit_generator.state = state
        raise
    for (i, row), whole_V in zip(others, whole_NV, strict=True):
        ids_B[i] = _pick(whole_V, row)
    return ids_B


def _pick(whole_V: npt.NDArray[np.int64], row: Row) -> int:
    """Draws a token by the weights of a row, and tells mirostat how surprising it was."""
    total = int(whole_V.sum())
    if row.config.temperature == 0:
        return int(whole_V.argmax())
    place = min(int(row.rng.random() * total), total - 1)
    id = int((np.cumsum(whole_V) > place).argmax())
    if row.config.mirostat:
        surprise = math.log2(total / int(whole_V[id]))
        row.most_surprise -= row.config.mirostat_eta * (surprise - row.config.mirostat_tau)
    return id


def _distribution(logits_V: Floats, row: Row, rng: np.random.Generator, number: int) -> npt.NDArray[np.int64]:
    """The weights (V,) that a row draws by, its operators one after the other in double precision."""
    _require_finite(logits_V.max(keepdims=True), DivergedError, _DIVERGED, number)
    config = row.config
    x_V: Floats = np.array(logits_V, np.float64)
    if row.banned is not None:
        x_V[row.banned] = -np.inf
    greedy = config.temperature == 0
    order: Sequence[str] = config.order
    if greedy or config.mirostat:
        order = [name for name in order if name in ("penalties", "dry")]
    for name in order:
        x_V = _apply(name, x_V, row, rng)
        _require_finite(x_V.max(keepdims=True), UsageError, _NOTHING, number)
    if config.mirostat and not greedy:
        x_V = keep_surprise(_apply("temperature", x_V, row, rng), row.most_surprise)
    _require_finite(x_V.max(keepdims=True), UsageError, _NOTHING, number)
    if greedy:
        x_V = np.where(np.arange(len(x_V)) == x_V.argmax(), x_V, -np.inf)
    return weights(x_V - x_V.max())


def _apply(name: str, x_V: Floats, row: Row, rng: np.random.Generator) -> Floats:
    """One operator on the logits (V,) of one row."""
    config = row.config
    if name == "penalties":
        if not row.penalized:
            return x_V
        repetition, frequency, presence = np.array(row.penalties, np.float64)[:, None]
        penalized_1V: Floats = penalize(x_V[None], repetition, frequency, presence, row.seen[None], row.counts[None])
        x_V = penalized_1V[0]
        return x_V
    if name == "dry":
        return dry(x_V, row.last, row.breaks, config) if row.last else x_V
    if name == "top_n_sigma":
        return top_n_sigma(x_V, config.top_n_sigma)
    if name == "xtc":
        return xtc(x_V, config.xtc_threshold) if _happens(config.xtc_probability, rng) else x_V
    operator, field, off = _OPERATORS[name]
    value = getattr(config, field)
    return x_V if value == off else operator(x_V[None], np.array([value]))[0]


def _happens(probability: float, rng: np.random.Generator) -> bool:
    """Tosses a coin, where there is a doubt."""
    return probability > 0 and rng.random() < probability


def _draw(kernel: kernels.Kernel, logits_BV: Floats, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
    """The same, compiled."""
    B, V = logits_BV.shape
    for row in rows:
        if row.vocab_size != V or (row.banned is not None and row.banned.shape != (V,)):
            raise ValueError(f"a row has or bans another number of ids than {V}")
    logits_BV = np.ascontiguousarray(logits_BV)
    settings = b"".join([row.packed() for row in rows])
    ids = np.empty(B + 2 * V, np.int64)  # behind them is room for the kernel to work in
    if kernel.draw(B, V, kernels.address(logits_BV), settings, kernels.address(ids)):
        _put_back(rows)
        _distributions(logits_BV, rows)  # which says what is wrong
    return ids[:B].copy()


def _put_back(rows: Sequence[Row]) -> None:
    """Gives the streams of some rows the last number back."""
    for row in rows:
        if row.config.temperature > 0:
            row.rng.bit_generator.advance(-1)  # type: ignore[attr-defined]


def _distributions(
    logits_BV: Floats, rows: Sequence[Row]
) -> tuple[npt.NDArray[np.int64], list[int], npt.NDArray[np.int64]]:
    """The likeliest token of each row (B,), which D rows draw, and the weights of their tokens (D, V)."""
    _require_finite(logits_BV.max(-1), DivergedError, _DIVERGED)
    x_BV: Floats = np.array(logits_BV, np.float32)
    for x_V, row in zip(x_BV, rows, strict=True):
        if row.banned is not None:
            x_V[row.banned] = -np.inf
    on = [i for i, row in enumerate(rows) if row.penalized]
    if on:
        repetition, frequency, presence = np.array([rows[i].penalties for i in on], np.float64).T
        seen, counts = np.stack([rows[i].seen for i in on]), np.stack([rows[i].counts for i in on])
        with np.errstate(over="ignore"):  # infinities are found below
            x_BV[on] = penalize(x_BV[on].astype(np.float64), repetition, frequency, presence, seen, counts)
    best_B = x_BV.argmax(-1).astype(np.int64)
    top_B = x_BV[np.arange(len(rows)), best_B]
    _require_finite(top_B, UsageError, _NOTHING)
    with np.errstate(over="ignore"):
        x_BV -= top_B[:, None]  # so that a tiny temperature sends logits to -inf, never to +inf
    drawing = [i for i, row in enumerate(rows) if row.config.temperature > 0]
    x_DV: Floats = x_BV if len(drawing) == len(rows) else x_BV[drawing]
    for operator, field, off in _OPERATORS.values():
        values = [getattr(rows[i].config, field) for i in drawing]
        on = [d for d, value in enumerate(values) if value != off]
        if on and len(on) == len(values):
            x_DV = operator(x_DV, np.array(values))
        elif on:
            x_DV[on] = operator(x_DV[on], np.array(values)[on])
        x_DV = x_DV - x_DV.max(-1, keepdims=True)  # of which typical_p may have removed the likeliest
    return best_B, drawing, weights(x_DV)


def _require_finite(top_B: Floats, error: type[TextLSTMError], problem: str, first: int = 0) -> None:
    finite_B = np.isfinite(top_B)
    if not finite_B.all():
        raise error(f"row {first + int(finite_B.argmin())}: {problem}")


def log_softmax(logits_V: Floats) -> npt.NDArray[np.float64]:
    """Natural logarithms of the probabilities that some logits stand for, along the last axis."""
    x_V = np.asarray(logits_V, np.float64) - np.max(logits_V, axis=-1, keepdims=True)
    log_probs_V: npt.NDArray[np.float64] = x_V - np.log(np.exp(x_V).sum(-1, keepdims=True))
    return log_probs_V


def _keep_mass(logits_BV: Floats, whole_BV: Ints, rank_BV: Floats, mass_B: Floats) -> Floats:
    """Keeps tokens by ascending rank, lowest ids first, until their weights reach the mass."""
    order_BV = rank_BV.argsort(-1)
    reached_BV = np.take_along_axis(whole_BV, order_BV, -1).cumsum(-1)
    wanted_B1 = np.where(mass_B < 1, mass_B * whole_BV.sum(-1), np.inf)[:, None]
    kept_B1 = 1 + (reached_BV[:, :-1] < wanted_B1).sum(-1, keepdims=True)
    last_B1 = np.take_along_axis(rank_BV, np.take_along_axis(order_BV, kept_B1 - 1, -1), -1)
    # A stable sort would put equal ranks in order as well, but takes five times as long at V = 50,257.
    under_BV, equal_BV = rank_BV < last_B1, rank_BV == last_B1
    before_BV = (whole_BV * under_BV).sum(-1, keepdims=True) + (whole_BV * equal_BV).cumsum(-1) - whole_BV
    edge_BV = equal_BV & ((before_BV < wanted_B1) | (equal_BV.cumsum(-1) == 1))
    return np.where(under_BV | edge_BV, logits_BV, -np.inf)
