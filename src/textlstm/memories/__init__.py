"""Memories that adapt to a text, mixed with a network's predictions token by token.

A network with fixed weights forgets what its state does not hold. The memories keep it: how often each token came
after the last few tokens and after the word that is being written, in the text so far and in a text that was read
first; what came last; where the text ran the same way before; what came when the network's state was like this one.

A token is predicted as the turns on the way to its leaf in a tree of the vocabulary. At each turn the network and
every memory give a logit, and a mixer learns while it reads how far to trust each of them: context mixing as in PAQ
(Mahoney 2005), with a network as one model among others, as in cmix (Knoll). Everything predicts before it learns,
and depends on nothing but the calls that were made, so that the reader of a compressed file can repeat it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.errors import UsageError
from textlstm.memories.contexts import Contexts
from textlstm.memories.counts import FrozenCounts, LiveCounts, Seen
from textlstm.memories.match import Match
from textlstm.memories.mixing import LIMIT, Mixer, Rows, log_squash
from textlstm.memories.neural import NeuralCache
from textlstm.memories.tree import TokenTree
from textlstm.memories.voices import CountVoice, LeafVoice

__all__ = ["Mixture", "MixtureSettings"]

_CONSTANT = 0.3  # the input that gives the mixer its bias
_LONGEST = 64  # tokens of a match that are told apart
_MATCH_ROWS = 16  # and by which the mixer chooses weights


@dataclass(frozen=True)
class MixtureSettings:
    """How the memories are kept and mixed; chosen on training text.

    Attributes:
        orders: contexts of 0 to so many tokens.
        match: tokens that must agree before a match is followed.
        network_weight, cache_weight, memory_weight: what the mixer's weights begin with: of the network's logit, of
            the one that it has together with the neural cache, and of each other memory's.
        rate, final_rate: steps of the mixer's two layers.
        cache_window, cache_scale: states of the neural cache, and its theta; a window of 0 is no cache.
        cache_share: weight of the neural cache in the logit that it has together with the network.
        map_rate, run_rate: least weight of an observation in the maps from counts, and from runs, to probabilities.
    """

    orders: int = 4
    match: int = 4
    network_weight: float = 0.8
    cache_weight: float = 0.2
    memory_weight: float = 0.05
    rate: float = 0.005
    final_rate: float = 0.0005
    cache_window: int = 2000
    cache_scale: float = 0.3
    cache_share: float = 0.8
    map_rate: float = 0.004
    run_rate: float = 0.005


class Mixture:
    """A network's predictions, improved by memories of the text.

    Args:
        vocab_size: number V of tokens.
        settings: how memories are kept and mixed.
        token_bytes: what each token writes, V of them; None does without memories of words.

    Attributes:
        origin: SHA-256 of the tokens that it was primed with; empty if it was not.
    """

    def __init__(
        self,
        vocab_size: int,
        settings: MixtureSettings | None = None,
        token_bytes: Sequence[bytes] | None = None,
    ) -> None:
        if token_bytes is not None and len(token_bytes) != vocab_size:
            raise UsageError(f"{len(token_bytes)} tokens are spelled, the vocabulary has {vocab_size}")
        self.settings = MixtureSettings() if settings is None else settings
        self._tree = TokenTree(vocab_size, token_bytes)
        self._contexts = Contexts(self.settings.orders, token_bytes)
        self._match = Match(self.settings.match, _LONGEST)
        self._neural = NeuralCache(self.settings.cache_window, self.settings.cache_scale)
        self._live = LiveCounts(self._contexts.count)
        self._frozen: FrozenCounts | None = None
        self.origin = b""
        self._start()

    def _start(self) -> None:
        """Voices and mixer that have learnt nothing."""
        own, contexts = self.settings, self._contexts.count * (1 if self._frozen is None else 2)
        self._counts = CountVoice(contexts, own.map_rate)
        self._last = LeafVoice(contexts, 16, own.run_rate)
        self._matched = LeafVoice(1, _LONGEST + 1, own.run_rate)
        start_K = np.full(2 * contexts + 4, own.memory_weight)
        start_K[:3] = own.network_weight, 0.0, own.cache_weight
        rows = (self._tree.depth, _MATCH_ROWS * (own.orders + 2), self._tree.nodes)
        self._mixer = Mixer(start_K, rows, self._tree.depth, own.rate, own.final_rate)
        self._inputs_NK: NDArray[np.float64] | None = None
        self._hidden_H: NDArray[np.float32] | None = None
        self._row = 0

    def prime(self, ids: NDArray[np.integer[Any]] | Sequence[int]) -> None:
        """Lets the memories read a text before the first prediction; once, and what it says stays apart.

        Raises:
            UsageError: something was read already, or an id is not of the vocabulary.
        """
        if self._frozen is not None or self._match.read:
            raise UsageError("memories are primed once, before they read anything else")
        ids_T = self._checked(ids)
        keys_TC = np.empty((len(ids_T), self._contexts.count), dtype=np.uint64)
        for place, id in enumerate(ids_T.tolist()):
            keys_TC[place] = self._contexts.keys()
            self._contexts.push(id)
        self._match.extend(ids_T.tolist())
        self.origin = hashlib.sha256(ids_T.astype("<i8").tobytes()).digest()
        self._frozen = FrozenCounts(keys_TC, self._tree.leaf_V[ids_T])
        self._start()

    def _checked(self, ids: NDArray[np.integer[Any]] | Sequence[int]) -> NDArray[np.int64]:
        ids_T = np.asarray(ids, dtype=np.int64)
        if ids_T.size and not 0 <= ids_T.min() <= ids_T.max() < len(self._tree.leaf_V):
            raise UsageError(f"the ids must be from 0 to {len(self._tree.leaf_V) - 1}")
        return ids_T

    def copy(self) -> Mixture:
        """One that has read the same and goes on by itself; a text that it was primed with is shared."""
        other = copy.copy(self)
        other._contexts, other._match, other._live = self._contexts.copy(), self._match.copy(), self._live.copy()
        other._counts, other._last, other._matched = self._counts.copy(), self._last.copy(), self._matched.copy()
        other._mixer, other._neural = self._mixer.copy(), self._neural.copy()
        return other

    def past(self, token: int | None) -> Mixture:
        """One that stands after a token that it does not learn from; None is where this one stands.

        It shares what was learnt, so that it costs little, and may predict; to learn, take a `copy` of it.
        """
        other = copy.copy(self)
        # What a voice said last is its own, what it has learnt is shared.
        other._counts, other._last = copy.copy(self._counts), copy.copy(self._last)
        other._matched = copy.copy(self._matched)
        other._inputs_NK = other._hidden_H = None
        if token is not None:
            other._contexts = self._contexts.copy()
            other._contexts.push(token)
            other._match = self._match.past(token)
        return other

    def predict(
        self, logprobs_V: NDArray[np.floating[Any]], hidden_H: NDArray[np.floating[Any]] | None = None
    ) -> NDArray[np.float64]:
        """The next token's distribution.

        Args:
            logprobs_V: the network's, natural logarithms; a constant may be added.
            hidden_H: the network's last hidden state, from which they come; None does without the neural cache.

        Returns:
            Natural logarithms, shape (V,), of probabilities that sum to 1.

        Raises:
            UsageError: `logprobs_V` has another length, or holds NaN.
        """
        if np.shape(logprobs_V) != self._tree.leaf_V.shape or not np.isfinite(np.max(logprobs_V)):
            raise UsageError(f"logarithms of {len(self._tree.leaf_V)} probabilities are needed, not all of them -inf")
        self._hidden_H = None
        if hidden_H is not None and self.settings.cache_window:
            self._hidden_H = np.array(hidden_H, dtype=np.float32)
        tree = self._tree
        self._inputs_NK = np.concatenate([self._network_3N(logprobs_V), *self._memories_XN()]).T.copy()
        _, mixed_N = self._mixer.mix(self._inputs_NK, self._rows(slice(None)), tree.level_N)
        logs_V = tree.token_logs(log_squash(-mixed_N), log_squash(mixed_N))
        logs_V -= logs_V.max()
        result: NDArray[np.float64] = logs_V - np.log(np.exp(logs_V).sum())
        return result

    def update(self, token: int) -> None:
        """Takes the token that came; voices and mixer learn from it what was predicted, if anything was."""
        token = int(self._checked([token])[0])
        leaf = int(self._tree.leaf_V[token])
        if self._inputs_NK is not None:
            nodes_D, bits_D = self._tree.path(leaf)
            self._mixer.learn(self._inputs_NK[nodes_D], self._rows(nodes_D), self._tree.level_N[nodes_D], bits_D)
            for voice in (self._counts, self._last, self._matched):
                voice.learn(nodes_D, bits_D)
            self._inputs_NK = None
        if self._hidden_H is not None:
            self._neural.push(self._hidden_H, leaf)
            self._hidden_H = None
        self._live.push(self._contexts.keys(), leaf)
        self._contexts.push(token)
        self._match.extend([token])

    def _network_3N(self, logprobs_V: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The logits of the network; a constant; those of the network and the neural cache together."""
        tree, share = self._tree, self.settings.cache_share
        weights_2N = np.zeros((2, tree.nodes))
        weights_2N[:, tree.leaf_V] = np.exp(np.asarray(logprobs_V, dtype=np.float64) - np.max(logprobs_V))
        cached_N = None if self._hidden_H is None else self._neural.look(self._hidden_H, tree.nodes)
        if cached_N is not None:
            weights_2N[1] = (1 - share) * weights_2N[1] / weights_2N[1].sum() + share * cached_N
        left_2N, right_2N = (np.maximum(sides_2N, 1e-300) for sides_2N in tree.sides(weights_2N))
        logits_2N = np.clip(np.log(right_2N / left_2N), -LIMIT, LIMIT)
        return np.stack([logits_2N[0], np.full(tree.nodes, _CONSTANT), logits_2N[1]])

    def _memories_XN(self) -> Iterator[NDArray[np.float64]]:
        """The logits of the memories; on the way, what the mixer's rows depend on."""
        keys, tree = self._contexts.keys(), self._tree
        seen = Seen(len(keys), tree.nodes)
        self._live.add_to(seen, keys)
        if self._frozen is not None:
            whole = Seen(len(keys), tree.nodes)
            self._frozen.add_to(whole, keys)
            self._live.add_to(whole, keys)
            seen = seen.beside(whole)
        yield self._counts.look(*tree.sides(seen.counts_CN))
        yield self._last.look(tree, seen.last_C, seen.run_C)
        token, length = self._match.token, self._match.length
        yield self._matched.look(tree, np.array([-1 if token is None else tree.leaf_V[token]]), np.array([length]))
        known = seen.last_C[-len(keys) :][: self.settings.orders + 1] >= 0  # an order is known only if those below are
        self._row = int(known.sum()) * _MATCH_ROWS + min(length, _MATCH_ROWS - 1)

    def _rows(self, nodes_N: NDArray[np.int64] | slice) -> tuple[Rows, ...]:
        """What chooses the mixer's weights: the level; the longest context known and the match; the turn itself."""
        return self._tree.level_N[nodes_N], self._row, nodes_N
