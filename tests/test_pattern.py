"""Writing to a pattern: the automaton against Python's `re`, masks against brute force, texts of tiny models."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from textlstm.config import ModelConfig, PatternConfig, SamplingConfig
from textlstm.errors import ConfigError, UsageError
from textlstm.generation import Limits, Writer, read_prompt
from textlstm.generation import automaton as automaton_module
from textlstm.generation.automaton import DEAD, FAR, Automaton
from textlstm.generation.pattern import Pattern, Vocabulary
from textlstm.generation.regex import members, parse
from textlstm.model import Model
from textlstm.model_file import ModelFile
from textlstm.sampling import sample
from textlstm.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, gpt2_tokenizer

LETTERS = "abAé語😀 \n_1"
ATOMS = [
    "a", "b", "é", "語", "😀", " ", r"\n", ".", "[ab]", "[^a]", "[a-é]", r"\w", r"\d", r"\S", "(?i:a)", "(?s:.)",
    r"[^\W_]", r"\x61", r"\u8a9e", "[]a]", r"[\]a-]", "_", "(?a:\\w)", r"\U0001F600", "[語-😀]",
]  # fmt: skip


def bracketed(part: str) -> str:
    return f"(?:{part})"


patterns = st.recursive(
    st.sampled_from([*ATOMS, ""]),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map("".join)
        | st.lists(inner, min_size=1, max_size=3).map("|".join).map(bracketed)
        | st.tuples(
            inner.map(bracketed), st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?", "+?"])
        ).map("".join)
    ),
    max_leaves=6,
)


def complete(automaton: Automaton, data: bytes) -> bool:
    key = automaton.advance(automaton.start, data)
    return key is not None and automaton.distance_S[automaton.number(key)] == 0


@settings(max_examples=400)
@given(patterns, st.lists(st.text(st.sampled_from(LETTERS), max_size=5), min_size=1, max_size=8))
def test_automaton_accepts_what_python_matches(pattern, texts):
    automaton = Automaton(parse(pattern))
    for text in texts:
        assert complete(automaton, text.encode()) == bool(re.fullmatch(pattern, text)), text


@settings(max_examples=100)
@given(patterns, st.data())
def test_what_is_alive_can_be_finished_in_the_stated_bytes(pattern, data):
    automaton = Automaton(parse(pattern))
    state, text = automaton.number(automaton.start), b""
    for _ in range(data.draw(st.integers(0, 6))):
        automaton.fill(state)
        alive = np.flatnonzero(automaton.next_SC[state] != DEAD)
        if not len(alive):
            break
        byte = int(data.draw(st.sampled_from(alive.tolist())))
        state, text = int(automaton.next_SC[state, byte]), text + bytes([byte])
    while distance := int(automaton.distance_S[state]):
        automaton.fill(state)
        after_C = automaton.distance_S[automaton.next_SC[state]]
        assert after_C.min() == distance - 1
        byte = int(after_C.argmin())
        state, text = int(automaton.next_SC[state, byte]), text + bytes([byte])
    assert re.fullmatch(pattern, text.decode())


@pytest.mark.parametrize(
    "pattern", ["(?:ab|b)*a{2,3}", "[ab]*b[ab]{3}", "a(?:b|aa)+b?", "(?:a?){4}b", "(?:a|ab)(?:c|bcd)?"]
)
def test_automaton_against_all_short_texts(pattern):
    automaton = Automaton(parse(pattern))
    shortest = None
    for length in range(7):
        for letters in itertools.product("abc", repeat=length):
            text = "".join(letters)
            matches = bool(re.fullmatch(pattern, text))
            assert complete(automaton, text.encode()) == matches
            alive = automaton.advance(automaton.start, text.encode()) is not None
            assert alive == bool(regex.fullmatch(pattern, text, partial=True))
            shortest = length if matches and shortest is None else shortest
    assert automaton.distance_S[automaton.number(automaton.start)] == shortest


@pytest.mark.parametrize(
    "pattern", [r"a[^\x00-\U0010ffff]|b", r"a(?:ab)*[^\x00-\U0010ffff]b*|b", "aé|b", "a(?:b|é)*語|b"]
)
def test_dead_ends_are_not_entered(pattern):
    """What cannot be finished is dead from where it begins, also for want of characters that can be written."""
    automaton = Automaton(parse(pattern), alphabet=((0x20, 0x7F),))
    assert automaton.advance(automaton.start, b"a") is None and complete(automaton, b"b")


@pytest.mark.parametrize("source", [r"\w", r"\d", r"\s", ".", "[^a-z]", r"[^\W\d]", "(?i:ſ)", "[à-é]", "(?a:\\W)"])
def test_members_of_classes(source):
    ranges = members(source)
    inside = {code for first, last in ranges for code in range(first, last + 1)}
    for code in [*range(0x3000), *range(0xD700, 0xE100), *range(0x1F500, 0x1F700), 0x10FFFF]:
        if not 0xD800 <= code < 0xE000:
            assert (code in inside) == bool(re.fullmatch(source, chr(code))), hex(code)
    assert not any(0xD800 <= code < 0xE000 for code in inside)


@pytest.mark.parametrize(
    "pattern", ["^abc$", r"\Aabc\Z", "^a|^b$", "(?i)abc", "(?s).", "(a)(?P<x>b)", "a(?#note)b", "x{", "{}", "a{,}"]
)
def test_syntax_that_is_known(pattern):
    automaton = Automaton(parse(pattern))
    for text in ("abc", "ABC", "a", "b", "ab", "\n", "x{", "{}", "aaa", ""):
        assert complete(automaton, text.encode()) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("a(", "not a regular expression"), ("[b-a]", "not a regular expression"), ("a**", "multiple repeat"),
        (r"(a)\1", "back-reference"), (r"a\b", "word border"), ("(?=a)a", "group"), ("(?<!a)b", "group"),
        ("(?>a)", "group"), ("a++", "possessive"), ("a^b", "anchor"), ("(^a)", "anchor"), ("a$b", "anchor"),
        ("(?x)a", "group"), ("(?P<n>a)(?P=n)", "group"), ("(?:x{1000}){1000}", "too large"),
        ("(" * 5000 + ")" * 5000, "nested too deeply"), ("a" * 200_001, "characters"), ("a{5000000000}", "repeats"),
        ("(?:(?:(?:a{9}){9}){9}){99}", "too large"), ("(?:){1000000}", "too large"), ("[^\x00-\U0010ffff]", "no text"),
        ("\udc80", "no text"),
    ],
)  # fmt: skip
def test_patterns_that_are_refused(pattern, problem):
    with pytest.raises(UsageError, match=problem):
        Pattern(PatternConfig(regex=pattern), Vocabulary(ByteTokenizer(), 257))


def test_work_is_bounded(monkeypatch):
    """Every state of the graph is in every set: quadratic in the pattern, so it is given up rather than followed."""
    monkeypatch.setattr(automaton_module, "_MAX_WORK", 300_000)
    pattern = Pattern(PatternConfig(regex="(?:a?b?){8000}"), Vocabulary(ByteTokenizer(), 257))
    key = pattern.automaton.start
    with pytest.raises(UsageError, match="too complex"):
        for _ in range(10_000):
            key = pattern.automaton.advance(key, b"a")
            pattern.allowance(key)


# --- tokens ----------------------------------------------------------------------------------------------------------


# ab, abc, abcab, ba, " a", cd, two bytes of 語, 語, d with the first byte of é
MERGES = [[97, 98], [256, 99], [257, 256], [98, 97], [32, 97], [99, 100], [0xE8, 0xAA], [262, 0x9E], [100, 0xC3]]
TOKENIZERS: dict[str, Tokenizer] = {
    "byte": ByteTokenizer(),
    "char": CharTokenizer("abcdé語 "),
    "plain": CharTokenizer("abcdé語 \nAB", byte_fallback=False),
    "bpe": BPETokenizer(np.array(MERGES)),
}


def make_model(
    tokenizer: Tokenizer, seed: int = 0, boundary: bool = True, spare: int = 0, scale: float = 0.7
) -> Model:
    config = ModelConfig(tokenizer.vocab_size + boundary + spare, 8, 8, 1, boundary=boundary)
    rng = np.random.default_rng(seed)
    weights = {n: rng.normal(0, scale, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    return Model(ModelFile(config, tokenizer, weights, {}, ""))


MODELS = {name: make_model(tokenizer) for name, tokenizer in TOKENIZERS.items()}
MODELS["no boundary"] = make_model(TOKENIZERS["bpe"], boundary=False)
MODELS["spare id"] = make_model(TOKENIZERS["bpe"], boundary=False, spare=1)


@settings(max_examples=150)
@given(patterns, st.sampled_from(list(MODELS)), st.integers(0, 1000), st.integers(0, 8), st.booleans())
def test_texts_match(pattern, name, seed, room, by_chars):
    """Whatever the model, the pattern and the room: the text matches as a whole, or the request is refused."""
    model = MODELS[name]
    try:
        made = model.pattern(PatternConfig(regex=pattern))
    except UsageError as error:
        assert name == "plain" and "no text that this model can write" in str(error)
        return
    most = room + (made.fewest_chars if by_chars else made.shortest)
    limits = {"max_chars" if by_chars else "max_tokens": most}
    pieces = list(model.stream("ab", regex=pattern, seed=seed, temperature=1.5, **limits))
    text = "".join(pieces)
    assert re.fullmatch(pattern, text) and "\ufffd" not in text
    assert len(text) <= most
    assert text == model.generate("ab", regex=pattern, seed=seed, temperature=1.5, **limits)


@settings(max_examples=150)
@given(patterns)
def test_fewest_characters_are_those_of_brute_force(pattern):
    made = MODELS["byte"].pattern(PatternConfig(regex=pattern))
    alphabet = sorted({*"".join(ATOMS), *"xZ7_🙂 \n"})
    fits = (n for n in range(3) for text in itertools.product(alphabet, repeat=n)
            if re.fullmatch(pattern, "".join(text)))  # fmt: skip
    found = next(fits, 3)
    assert made.fewest_chars == found if found < 3 else made.fewest_chars >= 3
    if made.fewest_chars:
        with pytest.raises(UsageError, match=f"{made.fewest_chars} characters"):
            MODELS["byte"].generate(regex=pattern, max_chars=made.fewest_chars - 1)


def test_long_characters_fit_where_so_many_characters_do():
    for name, model in MODELS.items():
        assert model.generate("a", regex="é{3}語|a{5}", max_chars=4, seed=1) == "ééé語", name
        assert re.fullmatch("é{3}語|a{5}", model.generate("a", regex="é{3}語|a{5}", max_chars=9, max_tokens=9, seed=1))
        with pytest.raises(UsageError, match="5 bytes, max-chars is 4"):
            model.generate("a", regex="é{3}語|a{5}", max_chars=4, max_tokens=9)


@pytest.mark.parametrize("pattern", ["[A-Z][a-z]+, .{5,9}!", r"\w{3}語", "(?:yes|no|maybe)?", "[^a]{4}"])
def test_texts_of_gpt2s_vocabulary_match(pattern):
    model = make_model(gpt2_tokenizer(), scale=0.2)
    limits = Limits(max_tokens=40)
    for texts in (4, 1):
        writers = model.writers(texts, SamplingConfig(), limits, 5, model.pattern(PatternConfig(regex=pattern)))
        for _ in model.write("Once", writers):
            pass
        assert all(re.fullmatch(pattern, writer.text) for writer in writers)
        alone = [model.generate("Once", regex=pattern, seed=5 + i, max_tokens=40) for i in range(texts)]
        assert [writer.text for writer in writers] == alone


@pytest.mark.parametrize("pattern", ["[a-c]{2,5}d", "(?:abc)*d?", "a.{3}b|cab", "(?:ab|ba|c)+d", ".*cd"])
def test_mask_of_each_step_equals_brute_force(pattern):
    """A token stays if an independent engine says that the text with it is a beginning of a match."""
    model = MODELS["bpe"]
    writer = model.writers(1, SamplingConfig(temperature=2.0), Limits(max_tokens=400), 3, None)[0]
    tokens = [model.tokenizer.token_bytes(id) for id in range(model.tokenizer.vocab_size)]
    for seed in range(4):
        writer = model.writers(
            1, SamplingConfig(), Limits(max_tokens=400), seed, model.pattern(PatternConfig(regex=pattern))
        )[0]
        rng = np.random.default_rng(seed)
        for _ in range(6):
            stays_V = writer.stays_V()
            for id, token in enumerate(tokens):
                if token.isascii():
                    text = writer.text + token.decode()
                    assert stays_V[id] == bool(regex.fullmatch(pattern, text, partial=True)), (writer.text, token)
            assert not stays_V[len(tokens) :].any()
            can_end = bool(re.fullmatch(pattern, writer.text))
            ascii_V = stays_V & np.array([t.isascii() for t in [*tokens, b""]])
            banned_V = np.zeros(len(stays_V), bool) if writer.row.banned is None else writer.row.banned
            if writer.reason is None:
                assert (~banned_V).all() if can_end else ((~banned_V) == stays_V).all()
                np.testing.assert_array_equal(writer.ends_V(), ~stays_V if can_end else np.zeros_like(stays_V))
            if writer.reason is not None or not ascii_V.any():
                break
            writer.push(int(rng.choice(np.flatnonzero(ascii_V))))


def fewest_tokens(tokens: list[bytes], pattern: str, text: str, most: int) -> int | None:
    """By trying all: tokens that complete a text."""
    texts = {text}
    for number in range(most + 1):
        if any(re.fullmatch(pattern, t) for t in texts):
            return number
        texts = {
            t + s.decode() for t in texts for s in tokens if regex.fullmatch(pattern, t + s.decode(), partial=True)
        }
    return None


@pytest.mark.parametrize(
    "pattern", ["abcabcd", "(?:abc){2,}d", "[ab]{5}c", "abc|bababa", "d(?:abc|ba){2}", "(?:cd)+b"]
)
def test_tight_room_against_brute_force(pattern):
    """Where bytes are too many, tokens are counted: exactly what is possible is allowed at every step."""
    model = MODELS["bpe"]
    tokens = [
        t for id in range(model.tokenizer.vocab_size) if set(t := model.tokenizer.token_bytes(id)) <= set(b"abcd")
    ]
    ids = {
        token: id
        for id, token in reversed(list(enumerate(map(model.tokenizer.token_bytes, range(model.tokenizer.vocab_size)))))
    }
    least = fewest_tokens(tokens, pattern, "", 8)
    assert least is not None
    with pytest.raises(UsageError, match="max-tokens"):
        model.generate("", regex=pattern, max_tokens=least - 1)
    for room in (0, 1):
        limits = Limits(max_tokens=least + room)
        made = Pattern(PatternConfig(regex=pattern), Vocabulary(model.tokenizer, model.config.vocab_size))
        made.refine()
        assert made.shortest == least
        for seed in range(5):
            writer = model.writers(1, SamplingConfig(temperature=3.0), limits, seed, made)[0]
            rng = np.random.default_rng(seed)
            while writer.reason is None:
                left = least + room - writer.tokens
                stays_V = writer.stays_V()
                for token in tokens:
                    text = writer.text + token.decode()
                    fewest = fewest_tokens(tokens, pattern, text, left - 1)
                    assert stays_V[ids[token]] == (fewest is not None), (writer.text, token, left)
                if not stays_V.any():
                    break
                writer.push(int(rng.choice(np.flatnonzero(stays_V))))
            assert re.fullmatch(pattern, writer.text)


def test_ends_follow_the_models_own_distribution():
    """`a|ab`: after "a" the text goes on with the model's probability of "b", and ends with all the rest."""
    model = make_model(CharTokenizer("abc", byte_fallback=False))
    after = model.next_token_probs("ca")
    writers = model.writers(
        4000, SamplingConfig(temperature=1.0), Limits(), 0, model.pattern(PatternConfig(regex="ab?"))
    )
    for _ in model.write("c", writers):
        pass
    share = np.mean([writer.text == "ab" for writer in writers])
    assert {writer.text for writer in writers} == {"a", "ab"}
    assert {writer.reason for writer in writers if writer.text == "a"} == {"end"}
    assert {writer.reason for writer in writers if writer.text == "ab"} == {"pattern"}
    assert share == pytest.approx(after[1], abs=0.03)


def test_greedy_ends_where_the_likeliest_token_leaves():
    model = MODELS["bpe"]
    free = model.generate("ab", temperature=0, max_tokens=30)
    stay = f"[{re.escape(''.join(sorted(set(free[:5]))))}]+"
    text = model.generate("ab", temperature=0, regex=stay)
    assert text == re.match(stay, model.generate("ab", temperature=0, max_tokens=400, prefix=text))[0]


def test_table_that_is_begun_anew_changes_nothing(monkeypatch):
    model = make_model(TOKENIZERS["bpe"])
    options = dict(regex=r"(?:\w{3,5} )*(?:語|[a-d]{2,9})\.", seed=2, max_tokens=60)
    expected = model.generate("ab", **options)
    monkeypatch.setattr(automaton_module, "_MAX_ROWS", 20)
    monkeypatch.setattr("textlstm.generation.pattern._MASK_BYTES", 5000)
    assert make_model(TOKENIZERS["bpe"]).generate("ab", **options) == expected


def test_vocabulary_passes_the_automaton_as_each_token_does():
    vocabulary = Vocabulary(gpt2_tokenizer(), 50_257)
    automaton = Automaton(parse(r" ?(?:[A-Z][a-zé]+|\d+|語.*)"))
    state = automaton.number(automaton.start)
    after_V = vocabulary.states_after(automaton, state)
    assert 5_000 < (after_V != DEAD).sum() < 40_000
    for id in [*range(0, 50_256, 37), 50_256]:
        key = automaton.advance(automaton.start, vocabulary.tokens[id]) if vocabulary.tokens[id] else None
        assert (automaton.key(int(after_V[id])) if after_V[id] != DEAD else None) == key
        assert vocabulary.chars_V[id] == sum(byte & 0xC0 != 0x80 for byte in vocabulary.tokens[id])
    assert vocabulary.alphabet is None and automaton.distance_S[DEAD] == FAR


# --- what users ask for ----------------------------------------------------------------------------------------------


def write(model: Model, seed: int = 1, **options) -> str:
    return model.generate("ab", seed=seed, temperature=1.5, max_tokens=options.pop("max_tokens", 60), **options)


@pytest.mark.parametrize("name", ["byte", "bpe", "char", "plain"])
def test_choices(name):
    model = MODELS[name]
    choices = ["a", "ab", "abc", "bad", "bé", "語"]
    texts = {model.generate("ab", choices=choices, seed=seed, temperature=9.0) for seed in range(60)}
    assert texts <= set(choices) and len(texts) >= 3
    assert write(model, choices=["", "c"]) in ("", "c")
    assert write(model, choices=["cab"]) == "cab"


def test_ten_thousand_choices():
    choices = [f"choice {n:05d} of many" for n in range(10_000)]
    assert write(MODELS["bpe"], choices=choices) in choices
    characters = list(map(chr, range(0x4E00, 0x4E00 + 10_000)))
    assert write(MODELS["byte"], choices=characters) in characters


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("ab {x:[a-d]{2,3}} cd", "ab [a-d]{2,3} cd"), ("{x}", ".+"), ("a{x:b*}{y:(?:c|d)}", "ab*(?:c|d)"),
        ("{{a}} {x:a|b}", r"\{a\} (?:a|b)"), (r"{x:\{+}", r"\{+"), ("", ""), ("a.b*", r"a\.b\*"), ("{é_1:b}\n", "b\n"),
    ],
)  # fmt: skip
def test_templates(template, expected):
    for seed in range(5):
        assert re.fullmatch(expected, write(MODELS["bpe"], seed, template=template))


def test_blanks():
    for seed in range(5):
        text = write(MODELS["char"], seed, blanks=r"a_c __ d\_ (*)")
        assert re.fullmatch(r"a\Sc \S\S d_ \(\*\)", text)


def test_prefix_goes_with_everything():
    model = MODELS["bpe"]
    assert re.fullmatch("abca[bc]{3}", write(model, prefix="abca", regex="[bc]{3}"))
    assert write(model, prefix="ab", choices=["cd"]) == "abcd"
    text = model.generate("", prefix="dé語.", seed=1, max_tokens=50)
    assert text.startswith("dé語.") and len(text) > 30
    assert model.generate("", prefix="abc", seed=1, max_chars=2) == "ab"


def test_prefix_may_end_within_a_token():
    """Tokens that reach over the end of the prefix are drawn too, unlike after a prompt."""
    texts = set()
    model = MODELS["bpe"]
    for seed in range(40):
        writer = model.writers(
            1, SamplingConfig(temperature=2.0), Limits(max_tokens=1), seed, model.pattern(PatternConfig(prefix="a"))
        )
        for _ in model.write("", writer):
            pass
        texts.add(writer[0].text)
    assert texts == {"a", "ab", "abc", "abcab"}


@pytest.mark.parametrize("name", ["byte", "bpe", "char", "plain"])
def test_line_length(name):
    for seed in range(3):
        text = MODELS[name].generate("ab", seed=seed, max_tokens=200, line_length=7)
        assert max(map(len, text.split("\n"))) == 7 and text.count("\n") > 10


def test_lines_do_not_break_within_words():
    """Every full line ends with so many characters without a space, or where the model ended it."""
    for seed in range(3):
        text = MODELS["char"].generate("ab", seed=seed, max_tokens=900, line_length=30, temperature=1.5)
        lines = text.split("\n")[:-1]
        assert all(re.fullmatch(r".{0,20}\S{0,10}", line) for line in lines) and max(map(len, lines)) > 20


def test_a_space_that_does_not_fit_is_a_line_break():
    """After "a" the model's chances of all else are its own, and the line break has those of the space, too."""
    model = make_model(TOKENIZERS["plain"], scale=1.5)
    tokens = [model.tokenizer.token_bytes(id) for id in range(model.tokenizer.vocab_size)]
    chances_V = model.next_token_probs("a")[: len(tokens)]
    chances = dict(zip(tokens, chances_V / chances_V.sum(), strict=True))
    assert chances[b" "] > 0.03
    made = model.pattern(PatternConfig(line_length=2))
    [writer] = model.writers(1, SamplingConfig(temperature=1.0), Limits(max_tokens=9), 0, made)
    writer.push(tokens.index(b"a"))
    logits_BV, _ = read_prompt(model.scoring_engine, model.tokenizer, "a")
    found = [tokens[int(sample(logits_BV, [writer.row])[0])] for _ in range(4000)]
    chances[b"\n"] += chances.pop(b" ")
    assert b" " not in found
    for token, chance in chances.items():
        assert found.count(token) / 4000 == pytest.approx(chance, abs=0.025), token


def test_open_patterns_heed_stop_strings_and_the_boundary():
    model = MODELS["plain"]
    whole = model.generate("ab", seed=1, max_tokens=200, line_length=7)
    cut = model.generate("ab", seed=1, max_tokens=200, line_length=7, stop="\n")
    assert cut == whole[: whole.index("\n")]
    ended = model.writers(
        1, SamplingConfig(), Limits(max_tokens=900, stop_at_end=True), 1, model.pattern(PatternConfig(prefix="abc"))
    )
    for _ in model.write("", ended):
        pass
    assert ended[0].reason == "end" and ended[0].text.startswith("abc")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(regex="a", choices=["b"]), "cannot go together"), (dict(regex="a", stop="b"), "stop string"),
        (dict(template="{x"), "never closed"), (dict(template="x}"), "without"), (dict(template="{:a}"), "name"),
        (dict(template="{x}{x}"), "twice"), (dict(template="{x:(}"), "not a regular"),
        (dict(line_length=0), "at least 1"), (dict(choices=[1]), "choices"),
        (dict(regex="a{61}"), "max-tokens is 60"), (dict(regex="ab", max_tokens=0), "max-tokens is 0"),
        (dict(regex="a{9}", max_chars=8), "max-chars is 8"), (dict(regexp="a"), "regexp"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(options, problem):
    with pytest.raises(UsageError, match=problem):
        write(MODELS["bpe"], **options)


def test_characters_that_the_model_cannot_write():
    with pytest.raises(UsageError, match="no text that this model can write"):
        write(MODELS["plain"], regex="ax")
    assert re.fullmatch(r"\w[A-Z]", text := write(MODELS["plain"], regex=r"\w[A-Z]")) and set(text) <= set("abcdé語AB")


def test_unknown_pattern_option():
    with pytest.raises(ConfigError, match="PatternConfig has no setting 'regexes'"):
        PatternConfig.from_dict({"regexes": "a"})


def test_an_unfit_token_is_refused():
    writer = Writer(
        ByteTokenizer(), 257, 256, SamplingConfig(), Limits(), 0, MODELS["byte"].pattern(PatternConfig(regex="ab"))
    )
    with pytest.raises(UsageError, match="does not fit"):
        writer.push(98)
