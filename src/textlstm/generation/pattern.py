"""Writing to a pattern: which tokens keep a text within it, and when the text is complete.

A token may be drawn if all its bytes keep the automaton alive and enough tokens are left to reach the end from there,
so a pattern is met at every border of tokens, by every tokenizer, and within `max_tokens`. A closed pattern describes
the whole text: where the text is complete, the model may go on as far as the pattern allows, and the text ends when
it draws anything else. An open pattern (`prefix`, `line_length`) describes all beginnings of a text; other limits end
it.

Shapes: V ids of the vocabulary, N nodes of its tree of bytes, S states of the automaton.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textlstm.config import PatternConfig
from textlstm.errors import UsageError
from textlstm.generation.automaton import DEAD, FAR, Automaton, Key
from textlstm.generation.regex import Choice, Node, Ranges, Repeat, Sequel, literal, parse
from textlstm.sampling import Bools
from textlstm.tokenizer import Tokenizer

_MASK_BYTES = 24 << 20  # of tables of tokens that a pattern keeps; then it begins anew
_REFINED_STATES = 2_000  # states whose distance is counted in tokens where bytes are too coarse
_LAST_WORD = 10  # characters at the end of a full line that hold no space
_FIELD = re.compile(r"(?P<name>[^\W\d]\w*)(?::(?P<pattern>.*))?", re.DOTALL)


class Vocabulary:
    """The bytes of all tokens as a tree, level by level, so that an automaton passes through all of them at once.

    Args:
        tokenizer: says what each id writes.
        vocab_size: ids in the model's softmax, V.

    Attributes:
        alphabet: the characters that can be written; None where single bytes are among the tokens.
        chars_V: characters that each token begins.
        spaced_V: whether each token begins with a space.
        line_break: the token that is a line break; None where there is none.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        tokens = [tokenizer.token_bytes(id) for id in range(vocab_size)]
        self.tokens = tokens
        self.spaced_V: Bools = np.array([token.startswith(b" ") for token in tokens])
        self.line_break = tokens.index(b"\n") if b"\n" in tokens else None
        lengths_V = np.array([len(token) for token in tokens])
        offsets_V = np.cumsum(lengths_V) - lengths_V
        data = np.frombuffer(b"".join(tokens), np.uint8)
        is_begun = np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])
        self.chars_V = (is_begun[offsets_V + lengths_V] - is_begun[offsets_V]).astype(np.int32)
        counts, heads, total = [], [np.zeros(1, np.uint8)], 1
        at_V, first, width = np.zeros(vocab_size, np.int64), 0, 1
        for depth in range(int(lengths_V.max(initial=0)) + 1):
            longer = np.flatnonzero(lengths_V > depth)
            steps = at_V[longer] * 256 + data[offsets_V[longer] + depth]
            nodes, places = np.unique(steps, return_inverse=True)
            counts.append(np.bincount(nodes // 256 - first, minlength=width))
            heads.append((nodes % 256).astype(np.uint8))
            at_V[longer] = total + places
            first, width, total = total, len(nodes), total + len(nodes)
        self._node_V = at_V  # where each token ends; what writes nothing stays at the root
        self._children_N = np.concatenate(counts)
        self._first_child_N = 1 + np.cumsum(self._children_N) - self._children_N
        self._byte_N = np.concatenate(heads)
        singles = {token for token in tokens if len(token) == 1}
        self.alphabet: Ranges | None = None
        if len(singles) < 256:
            codes = sorted({ord(c) for token in tokens for c in token.decode("utf-8", "ignore")})
            self.alphabet = tuple((code, code) for code in codes)

    def states_after(self, automaton: Automaton, state: int) -> NDArray[np.int32]:
        """The state that each token leads to, shape (V,); `DEAD` where it leaves the pattern."""
        reached_N = np.zeros(len(self._byte_N), np.int32)
        nodes, states = np.zeros(1, np.int64), np.array([state], np.int32)
        while len(nodes):
            counts = self._children_N[nodes]
            ends = np.cumsum(counts)
            inner = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
            children = np.repeat(self._first_child_N[nodes], counts) + inner
            before, heads = np.repeat(states, counts), self._byte_N[children]
            after = automaton.next_SC[before, heads]
            for unknown in np.unique(before[after < 0]).tolist():
                automaton.fill(unknown)
            after = automaton.next_SC[before, heads]
            alive = after != DEAD
            nodes, states = children[alive], after[alive]
            reached_N[nodes] = states
        return reached_N[self._node_V]


@dataclass(frozen=True)
class Allowance:
    """What the tokens do in one state of a pattern.

    Attributes:
        needs_V: tokens that are needed to complete the text after each token; `FAR` where it leaves the pattern.
        chars_V: characters that are needed after it.
        dead_V: whether it leaves the pattern.
        most: the greatest need of a token that stays.
    """

    needs_V: NDArray[np.int32]
    chars_V: NDArray[np.int32]
    dead_V: Bools
    most: int


class Pattern:
    """A pattern made ready for a vocabulary; shared by all texts that are written to it.

    Args:
        config: what the user asked for.
        vocabulary: of the model.

    Attributes:
        open: whether the pattern describes the beginnings of a text rather than the whole.
        lock: held while it is asked, since it grows with what is asked, and texts of several threads may share it.

    Raises:
        UsageError: the pattern cannot be read, or no text fits.
    """

    def __init__(self, config: PatternConfig, vocabulary: Vocabulary) -> None:
        try:
            tree, self.open = _tree(config)
            self.vocabulary, self.automaton = vocabulary, Automaton(tree, vocabulary.alphabet)
        except RecursionError as error:
            raise UsageError("the pattern is nested too deeply; write it flatter") from error
        self._allowances: dict[int, Allowance] = {}
        self._generation = self.automaton.generation
        self._refined = False
        self.lock = threading.RLock()

    @property
    def shortest(self) -> int:
        """Tokens that are enough for the shortest text."""
        return self.need(self.automaton.start)

    @property
    def fewest_chars(self) -> int:
        """Characters of the text with the fewest."""
        number = self.automaton.number(self.automaton.start)
        return int(self.automaton.chars_S[number])

    def need(self, key: Key) -> int:
        """Tokens that are enough from a state to the end."""
        number = self.automaton.number(key)  # before the table, which it may replace
        return int(self.automaton.distance_S[number])

    def refine(self) -> None:
        """Counts the way to the end in tokens, where so far each byte counted as one."""
        if not self._refined:
            self._refined = True
            self.automaton.refine(self._following, _REFINED_STATES)

    def _following(self, key: Key) -> list[Key]:
        after_V = self.vocabulary.states_after(self.automaton, self.automaton.number(key))
        return [self.automaton.key(state) for state in np.unique(after_V).tolist() if state != DEAD]

    def allowance(self, key: Key) -> Allowance:
        """What the tokens do in a state."""
        self.automaton.restart_if_full()
        if self._generation != self.automaton.generation:
            self._generation, self._allowances = self.automaton.generation, {}
        state = self.automaton.number(key)
        found = self._allowances.get(state)
        if found is None:
            after_V = self.vocabulary.states_after(self.automaton, state)
            needs_V, dead_V = self.automaton.distance_S[after_V], after_V == DEAD
            found = Allowance(needs_V, self.automaton.chars_S[after_V], dead_V, int(needs_V[~dead_V].max(initial=0)))
            if len(self._allowances) * (2 * needs_V.nbytes + dead_V.nbytes) > _MASK_BYTES:
                self._allowances = {}
            self._allowances[state] = found
        return found


class Guide:
    """One text on its way through a pattern.

    Args:
        pattern: the pattern.
        max_tokens, max_chars: what the text has to be complete within; None is no limit. An open pattern heeds
            neither: wherever its text is cut, there is a beginning. Within both, a text must be short in bytes.

    Raises:
        UsageError: the shortest text is longer than that.
    """

    def __init__(self, pattern: Pattern, max_tokens: int | None, max_chars: int | None) -> None:
        self._pattern, self._key = pattern, pattern.automaton.start
        self._tokens_left = FAR - 1 if max_tokens is None or pattern.open else max_tokens
        self._chars_left = None if pattern.open else max_chars
        self._by_chars = max_chars is not None and max_tokens is None
        with pattern.lock:
            if pattern.shortest > self._tokens_left and max_chars is None:
                pattern.refine()
            shortest, unit = (pattern.fewest_chars, "characters") if self._by_chars else (pattern.shortest, "tokens")
        if max_chars is not None and max_tokens is not None:
            unit = "bytes"  # which are no fewer than tokens, nor than characters
        for name, most in (("max-tokens", self._tokens_left), ("max-chars", self._chars_left)):
            if most is not None and shortest > most:
                raise UsageError(
                    f"the shortest text that fits the pattern takes {shortest} {unit}, {name} is {most}; allow more"
                )

    @property
    def is_open(self) -> bool:
        """Whether the pattern describes the beginnings of a text rather than the whole."""
        return self._pattern.open

    @property
    def is_complete(self) -> bool:
        """Whether the text matches as it is."""
        with self._pattern.lock:
            return self._pattern.need(self._key) == 0

    @property
    def can_end(self) -> bool:
        """Whether the model may end the text here by drawing what the pattern does not allow."""
        return self.is_complete and not self.is_open

    def stays(self) -> Bools:
        """Whether the text stays within the pattern, and can be completed, after each token; shape (V,)."""
        with self._pattern.lock:
            allowance, room = self._pattern.allowance(self._key), self._tokens_left - 1
        if self._chars_left is None and room >= allowance.most:
            return ~allowance.dead_V
        room_V: Any = room
        if self._chars_left is not None:
            room_V = np.minimum(room, self._chars_left - self._pattern.vocabulary.chars_V)
        stays_V: Bools = (allowance.chars_V if self._by_chars else allowance.needs_V) <= room_V
        return stays_V

    def breaks(self) -> tuple[Bools, int] | None:
        """Tokens that begin with a space and leave the pattern, shape (V,), and the line break that may stand there.

        A word that no longer fits goes to the next line: where its space were banned, the model would write what it
        thinks unlikely, such as the next word without a space.
        """
        vocabulary = self._pattern.vocabulary
        if not self.is_open or vocabulary.line_break is None:
            return None
        stays_V = self.stays()
        return (vocabulary.spaced_V & ~stays_V, vocabulary.line_break) if stays_V[vocabulary.line_break] else None

    def push(self, id: int) -> bool:
        """Takes a token; returns whether the text stayed within the pattern."""
        if self.can_end and not self.stays()[id]:
            return False
        with self._pattern.lock:
            after = self._pattern.automaton.advance(self._key, self._pattern.vocabulary.tokens[id])
        if after is None:
            raise UsageError(f"token {id} does not fit the pattern here")
        self._key = after
        self._tokens_left -= 1
        if self._chars_left is not None:
            self._chars_left -= int(self._pattern.vocabulary.chars_V[id])
        return True


def _tree(config: PatternConfig) -> tuple[Node, bool]:
    """What the automaton is made from, and whether it describes beginnings only."""
    tree: Node = Repeat(parse("(?s:.)"), 0, None)
    is_open = True
    if config.regex is not None:
        tree, is_open = parse(config.regex), False
    elif config.choices:
        tree, is_open = _choices(sorted(set(config.choices))), False
    elif config.template is not None:
        tree, is_open = _template(config.template), False
    elif config.blanks is not None:
        tree, is_open = _blanks(config.blanks), False
    elif config.line_length is not None:
        # No space near the end of a line: a word that begins late would be cut off, so the line ends before it.
        last = min(_LAST_WORD, config.line_length // 2)
        line = Sequel([Repeat(parse("."), 0, config.line_length - last), Repeat(parse(r"\S"), 0, last)])
        tree = Sequel([Repeat(Sequel([line, literal("\n")]), 0, None), line])
    return Sequel([literal(config.prefix or ""), tree]), is_open


def _choices(texts: list[str]) -> Node:
    """One of some texts in order, with what they begin alike written once: a tree, not a list."""
    options: list[Node] = []
    place = 0
    while place < len(texts):
        head = texts[place][:1]
        group = [text for text in texts[place:] if text[:1] == head] if head else [""]
        place += len(group)
        if len(group) == 1:
            options.append(literal(group[0]))
            continue
        least = min(map(len, group))
        alike = next((i for i in range(least) if group[0][i] != group[-1][i]), least)
        options.append(Sequel([literal(group[0][:alike]), _choices([text[alike:] for text in group])]))
    return options[0] if len(options) == 1 else Choice(options)


def _template(template: str) -> Node:
    """Text with fields in braces; doubled braces stand for themselves."""
    items: list[Node] = []
    names: set[str] = set()
    at = 0
    while at < len(template):
        character = template[at]
        if character not in "{}":
            items.append(literal(character))
            at += 1
        elif template[at : at + 2] in ("{{", "}}"):
            items.append(literal(character))
            at += 2
        elif character == "}":
            raise UsageError(f"the template has a }} without a {{ at position {at}; write }}}} for the sign itself")
        else:
            end = _closing_brace(template, at)
            field = _FIELD.fullmatch(template, at + 1, end)
            if field is None:
                raise UsageError(
                    f"the template's field {template[at : end + 1]!r} needs a name: {{name}} or {{name:REGEX}}"
                )
            if field["name"] in names:
                raise UsageError(f"the template's field {field['name']!r} appears twice; give each its own name")
            names.add(field["name"])
            items.append(parse(".+" if field["pattern"] is None else field["pattern"]))
            at = end + 1
    return Sequel(items)


def _closing_brace(template: str, start: int) -> int:
    """The place of the brace that closes the one at a place; escaped ones do not count."""
    depth = 0
    for mark in re.compile(r"\\.|[{}]", re.DOTALL).finditer(template, start):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.start()
    raise UsageError(f"the template's field that begins at position {start} is never closed by a }}")


def _blanks(text: str) -> Node:
    """Text with one free character for each underscore; an escaped underscore stands for itself."""
    free = parse(r"\S")
    parts = re.findall(r"\\_|.", text, re.DOTALL)
    return Sequel([free if part == "_" else literal(part[-1]) for part in parts])
