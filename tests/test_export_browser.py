"""The exported page in a real browser: the same numbers and texts as Python, no network, and good manners."""

from __future__ import annotations

import base64
import re
from itertools import product
from urllib.parse import urlencode

import numpy as np
import pytest
import tokenizers
from conftest import make_text
from hypothesis import example, given
from hypothesis import strategies as st
from test_network import SHAPES, make_config, numpy_network, random_ids, random_weights

from textlstm.config import ModelConfig, SamplingConfig
from textlstm.export import export
from textlstm.export.html import scripts
from textlstm.kernels import exponential
from textlstm.model import Model
from textlstm.model_file import ModelFile, model_bytes, read_model, write_model
from textlstm.sampling import Row, probabilities, reference, weights
from textlstm.tokenizer import PATTERNS, BPETokenizer, ByteTokenizer, CharTokenizer, gpt2_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.browser]

TEXT = make_text(20_000) + "naïve café — 中文 🙂 don't I'LL they've 1234567 x2\r\n\r\n  end \t"
PATTERN_TEXT = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
        st.sampled_from([
            "'s", "'S", "'ſ", "'LL", "'re", "don't", " the", "word", "Word", "WORD", "ǅ", "ʰ", "é", "e\u0301", "中文",
            "🙂", "12345", "²", "  ", "\n", "\r\n", " \n ", "\t", "\x85", "\xa0", "\u2028", "\u180e", "\ufeff", "\x1c",
            "\u200c", "\u200d", "می\u200cروم", "ක්\u200dර", "हिन्दी",
            "/", "...\n/", "_", "\x00", "K", "ß", "abc", "abcd", "bcbc",
        ]),
    ),
    max_size=12,
).map("".join)  # fmt: skip


@pytest.fixture(scope="module")
def lab(chromium):
    """An empty page that knows the scripts which need none."""
    page = chromium.new_page()
    page.add_script_tag(content=scripts())
    yield page
    page.close()


# --- the parts -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**200))
def test_random_stream_is_numpys(lab, seed):
    theirs = lab.evaluate(
        "(seed) => { const r = new RandomStream(BigInt(seed)); return Array.from({length: 5}, () => r.next()); }",
        str(seed),
    )
    assert theirs == np.random.default_rng(seed).random(5).tolist()


TOKENIZERS = {
    "byte": ByteTokenizer(),
    "char": CharTokenizer.from_text("hello, world? 中🙂"),
    "char-plain": CharTokenizer("abc d", byte_fallback=False),
    "bpe": BPETokenizer.train(TEXT, 500),
    # Two merges make "abc", and the later id stands for it.
    "bpe-doubled": BPETokenizer(np.array([[97, 98], [256, 99], [98, 99], [97, 258], [257, 100], [258, 258]])),
    "gpt2": gpt2_tokenizer(),
    "gpt2-pruned": gpt2_tokenizer().prune(TEXT),
    "cl100k": BPETokenizer(gpt2_tokenizer().merges[:5000], "cl100k"),
    "o200k": BPETokenizer(gpt2_tokenizer().merges[:5000], "o200k", gpt2_tokenizer().byte_order),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_agree(lab, name):
    tokenizer = TOKENIZERS[name]
    lab.evaluate("(fields) => { window.tokenizer = makeTokenizer(fields); }", tokenizer.to_json())
    assert lab.evaluate("tokenizer.size") == tokenizer.vocab_size
    table = lab.evaluate("Array.from({length: tokenizer.size}, (_, id) => Array.from(tokenizer.bytes(id)))")
    assert [bytes(token) for token in table] == [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]

    @given(PATTERN_TEXT)
    def agree(text):
        assert lab.evaluate("(text) => tokenizer.encode(text)", text) == tokenizer.encode(text).tolist()

    agree()
    assert lab.evaluate("(text) => tokenizer.encode(text)", TEXT) == tokenizer.encode(TEXT).tolist()


@pytest.mark.parametrize("name", PATTERNS)
def test_borders_of_words_agree(lab, name):
    splitter = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERNS[name]), "isolated")

    @given(PATTERN_TEXT)
    @example("it'ſabc x'Sa 'llama \x1c\x85\n ")
    def agree(text):
        theirs = lab.evaluate("([name, text]) => text.match(wordPattern(name)) ?? []", [name, text])
        assert theirs == [word for word, _ in splitter.pre_tokenize_str(text)]

    agree()


def test_a_word_without_end_is_encoded_in_time(lab):
    tokenizer = TOKENIZERS["gpt2"]
    lab.evaluate("(fields) => { window.tokenizer = makeTokenizer(fields); }", tokenizer.to_json())
    text = "ab" * 50_000
    assert lab.evaluate("(text) => tokenizer.encode(text)", text) == tokenizer.encode(text).tolist()


class Constant:
    """A random stream that always gives one number."""

    def __init__(self, value):
        self.random = lambda: value


COARSE = st.lists(st.integers(-20, 20), min_size=2, max_size=30).map(lambda v: [0.37 * x for x in v])  # many equals
FINE = st.lists(st.floats(-90, 90, width=32), min_size=2, max_size=30)
SHARES = st.sampled_from([0, 1]) | st.floats(0, 1)
DRAWS = """([logits, size, settings, seen, numbers]) => numbers.map((number) =>
    draw(new Float32Array(logits), size, settings, new Set(seen), {next: () => number}))"""


def test_exponential_and_weights_are_pythons_to_the_bit(lab):
    rng = np.random.default_rng(4)
    x_N = np.concatenate([
        rng.uniform(-90, 0, 50_000), -rng.exponential(1e-3, 5_000), np.log(np.arange(1, 4_000) / 2**31),
        rng.uniform(-1e30, 90, 1_000), rng.uniform(0, 90, 5_000), [0, -0.0, -87, -1e38, 88],
    ]).astype(np.float32)  # fmt: skip
    theirs = lab.evaluate("(x) => x.map(exponential)", x_N.tolist())
    assert list(map(float, theirs)) == exponential(x_N).tolist()
    x_N[x_N > 0] = 0
    theirs = lab.evaluate("(x) => Array.from(weigh(new Float32Array(x)).weights)", [*x_N.tolist(), -1e39])
    assert theirs == [*weights(x_N[None])[0].tolist(), 0]


@given(
    COARSE | FINE, st.sets(st.integers(0, 29)), st.sampled_from([0, 1]) | st.floats(0, 100), st.integers(0, 33),
    SHARES, SHARES, st.sampled_from([1, 1.3]) | st.floats(0.25, 4), st.floats(0, 1, exclude_max=True),
    st.integers(0, 1),
)  # fmt: skip
# Of equal tokens: the mass is reached exactly and the lowest ids stay; all that equal the k-th stay.
@example([0, 0, 0, 0], set(), 1, 0, 0.5, 0, 1, 0.9, 0)
@example([0, 0, 0, 0], set(), 1, 0, 0.5, 0, 1, 0.4, 0)
@example([0, 0, 0.37], set(), 1, 2, 1, 0, 1, 0.4, 0)
@example([0, 0.37, 0.74], set(), 1, 0, 1, 1, 1, 0.1, 0)
@example([0, 0, 0], set(), 1, 0, 1 - 2**-53, 0, 1, 1 - 2**-53, 0)
@example([1, 0.37], set(), 1e-320, 0, 1, 0, 1, 0.9, 0)
def test_draws_are_pythons_to_the_bit(lab, logits, seen, temperature, top_k, top_p, min_p, penalty, number, reserved):
    logits_V = np.array(logits, np.float32)
    size = len(logits) - reserved
    seen = [id for id in seen if id < size]
    settings = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    banned_V = np.arange(len(logits)) >= size

    def ours(number: float) -> int:
        row = Row(SamplingConfig.from_dict(settings), Constant(number), len(logits), banned_V)
        row.read(seen)
        [id] = reference(logits_V[None], [row])
        return id

    # Also where one token gives way to the next: there a single weight that is off by one shows.
    row = Row(SamplingConfig.from_dict(settings), Constant(0), len(logits), banned_V)
    row.read(seen)
    borders = probabilities(logits_V[None], [row])[0].cumsum()[:-1]
    near = [np.nextafter(border, side) for border in borders for side in (0, border, 1)]
    numbers = [number, *(float(one) for one in near if 0 <= one < 1)]
    theirs = lab.evaluate(DRAWS, [logits_V.tolist(), size, settings, seen, numbers])
    assert theirs == [ours(number) for number in numbers]


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 400, "min_p": 1e-4}, {"repetition_penalty": 1.3}])
def test_draws_of_a_large_vocabulary_are_pythons_to_the_bit(lab, options):
    """At borders far down the running sum, which a weight that is off by one anywhere before would move."""
    rng = np.random.default_rng(5)
    logits_V = rng.normal(0, 4, 50_257).astype(np.float32)
    seen = rng.integers(0, 50_256, 300).tolist()
    config = SamplingConfig.from_dict({"temperature": 1.1, **options})

    def row(number: float = 0) -> Row:
        made = Row(config, Constant(number), 50_257, np.arange(50_257) == 50_256)
        made.read(seen)
        return made

    chances_V = probabilities(logits_V[None], [row()])[0]
    likely = np.flatnonzero(chances_V > 1e-4)[-100:]
    borders = chances_V.cumsum()[likely]
    numbers = [
        float(near) for border in borders for near in (np.nextafter(border, 0), np.nextafter(border, 1)) if near < 1
    ]
    expected = [reference(logits_V[None], [row(number)])[0] for number in numbers]
    assert lab.evaluate(DRAWS, [logits_V.tolist(), 50_256, config.to_dict(), seen, numbers]) == expected
    assert len(set(expected)) > 90


@pytest.mark.parametrize("plain", [False, True], ids=["WebAssembly", "JavaScript"])
@pytest.mark.parametrize("shape", SHAPES)
def test_network_agrees_with_the_equations(lab, tmp_path, shape, plain):
    config = make_config(shape)
    data, _ = model_bytes(config, CharTokenizer("abcdefghijklmnopqrstuv", False), random_weights(config), {}, "int8")
    (tmp_path / "m.safetensors").write_bytes(data)
    [ids] = random_ids(1, 40).tolist()
    kernel, theirs = lab.evaluate(
        """([model, plain, ids]) => {
            const network = new Network(readModel(fromBase64(model)), plain);
            let state = network.zeroState();
            const logits = ids.map((id) => {
                const after = network.step(id, state);
                state = after.state;
                return Array.from(after.logits);
            });
            return [network.kernel, logits];
        }""",
        [base64.b64encode(data).decode(), plain, ids],
    )
    assert kernel == ("JavaScript" if plain else "WebAssembly")
    weights = read_model(tmp_path / "m.safetensors").weights
    expected, _, _ = numpy_network(config, weights, np.array([ids]))
    np.testing.assert_allclose(theirs, expected[0], atol=2e-5, rtol=0)


# --- the page --------------------------------------------------------------------------------------------------------


class Page:
    """An exported page, opened from disk in a browser that is offline and tells of everything it asks for.

    Args:
        browser: the browser.
        path: the page.
        values: what the address says.
        script: runs before the page.
        context: further options of the browser's context.
    """

    def __init__(self, browser, path, values=(), script="", **context):
        self.context = browser.new_context(**{"reduced_motion": "reduce", **context})
        self.context.set_offline(True)
        self.asked, self.said = [], []
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.add_init_script(script)
        self.url = path.as_uri()
        self.page.goto(f"{self.url}#{urlencode(dict(values))}" if values else self.url)

    def __enter__(self):
        return self

    def __exit__(self, error, *rest):
        self.context.close()
        if error is None:
            assert self.said == []
            assert [url for url in self.asked if not url.startswith((self.url, "blob:"))] == []

    def finished(self) -> str:
        """Waits for the end of a text; returns it with its prompt."""
        from playwright.sync_api import expect

        expect(self.page.locator("#status")).to_contain_text(re.compile(r"\d tokens"), timeout=30_000)
        return self.page.locator("#text").text_content()

    def __getattr__(self, name):
        return getattr(self.page, name)


def embedded(path) -> ModelFile:
    """The model that stands in a page."""
    data = re.search(r'id="model">([^<]+)<', path.read_text("utf-8"))[1]
    out = path.with_suffix(".safetensors")
    out.write_bytes(base64.b64decode(data))
    return read_model(out)


@pytest.fixture(scope="module")
def shakespeare(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "shakespeare.html"
    Model.load("shakespeare").export(path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A page with a small model, for what does not depend on its text."""
    path = tmp_path_factory.mktemp("page") / "tiny.html"
    export(tiny_model(TOKENIZERS["bpe"]), "html", path)
    return path


def tiny_model(tokenizer, **shape) -> ModelFile:
    values = {"embed_size": 24, "hidden_size": 24, "num_layers": 2, "boundary": True, **shape}
    config = ModelConfig(tokenizer.vocab_size + values["boundary"], **values)
    weights = {n: (0.6 * a).astype(np.float32) for n, a in random_weights(config, 3).items()}
    return ModelFile(config, tokenizer, weights, {}, "")


@pytest.mark.parametrize("prompt", ["", "KING HENRY V:\n", "O, “naïve” 中文 🙂"])
def test_300_greedy_tokens_are_pythons(chromium, shakespeare, prompt):
    with Page(chromium, shakespeare, {"prompt": prompt, "temperature": 0, "max_tokens": 300, "seed": 1}) as page:
        text = page.finished()
    reference = Model(embedded(shakespeare), "torch")
    assert text == prompt + reference.generate(prompt, temperature=0, max_tokens=300)


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"temperature": 1.5, "seed": 2**80}, {"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.2},
        {"repetition_penalty": 1.3}, {"temperature": 1.1, "top_k": 90, "top_p": 0.9, "min_p": 0.02, "seed": 0},
    ],
    ids=str,
)  # fmt: skip
def test_sampled_text_is_pythons(chromium, shakespeare, settings):
    settings = {"seed": 7, "max_tokens": 300, **settings}
    with Page(chromium, shakespeare, {"prompt": "ROMEO:\n", **settings}) as page:
        text = page.finished()
    assert text == "ROMEO:\n" + Model(embedded(shakespeare), "torch").generate("ROMEO:\n", **settings)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_of_every_tokenizer_is_pythons(chromium, tmp_path, name):
    """Random weights write random bytes: half characters and broken ones must come out alike, too."""
    path = tmp_path / "a b.html"
    boundary = name != "char-plain"
    shape = dict(tie_embeddings=False, input_projection=True, logit_scale=0.1) if name == "gpt2" else {}
    file = tiny_model(TOKENIZERS[name], boundary=boundary, **shape)
    file.weights["head.bias"][TOKENIZERS[name].vocab_size :] = 99  # ids that no text has are never drawn
    export(file, "html", path)
    reference = Model(embedded(path), "torch")
    for settings in ({"temperature": 0, "seed": 1}, {"temperature": 1, "seed": 5}):
        values = {"prompt": "\ufeffa café", "max_tokens": 200, **settings}
        with Page(chromium, path, values) as page:
            text = page.finished()
        prompt = TOKENIZERS[name].decode(TOKENIZERS[name].encode("\ufeffa café"))
        assert text == prompt + reference.generate("\ufeffa café", max_tokens=200, **settings)


@pytest.mark.parametrize(
    ("script", "kernel"),
    [("delete window.Worker", "WebAssembly"), ("delete window.Worker; delete window.WebAssembly", "JavaScript")],
)
def test_it_writes_without_a_worker_and_without_webassembly(chromium, tiny, script, kernel):
    values = {"prompt": "the", "seed": 3, "max_tokens": 200}
    with Page(chromium, tiny, values) as page:
        expected = page.finished()
        assert page.evaluate("document.documentElement.dataset.kernel") == "WebAssembly"
        assert page.evaluate("typeof Worker") == "function"
    with Page(chromium, tiny, values, script) as page:
        assert page.finished() == expected
        assert page.evaluate("document.documentElement.dataset.kernel") == kernel


def test_policy_stops_what_the_page_does_not_need(chromium, tiny):
    page = Page(chromium, tiny)
    with pytest.raises(Exception, match=r"Failed to fetch|violates"):
        page.evaluate("fetch('data:text/plain,x')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'https://example.org/x.png'}))")
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    said = "\n".join(page.said)
    assert all(re.search(f"violates.*{what}", said) for what in ("fetch|connect", "script", "image|img"))
    page.context.close()


def test_by_keyboard_alone(chromium, tiny):
    with Page(chromium, tiny) as page:
        page.locator("#write:enabled").wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "prompt"
        page.keyboard.type("the word")
        page.keyboard.press("Control+Enter")
        first = page.finished()
        assert first.startswith("the word") and len(first) > 300
        reached = []
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
            outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outlined == "solid" or reached[-1] == "BODY", reached[-1]
        controls = ["write", "another", "SUMMARY", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"]
        controls += ["max_tokens", "seed", "colored", "typewriter", "copy-text", "copy-link", "save-model"]
        assert reached[: len(controls)] == controls
        page.locator("#temperature").focus()
        page.keyboard.press("Home")
        assert page.locator("output[for=temperature]").text_content() == "0"
        seed = page.locator("#seed").input_value()
        page.keyboard.press("Control+Shift+Enter")
        page.wait_for_url(re.compile("temperature=0&"))
        page.finished()
        assert page.locator("#seed").input_value() != seed


def test_address_holds_a_text_and_back_returns_to_it(chromium, tiny):
    with Page(chromium, tiny, {"prompt": "a & b\n=c", "seed": 11, "temperature": 0.73, "max_tokens": 40}) as page:
        first = page.finished()
        assert first.startswith("a & b\n=c")
        assert page.locator("output[for=temperature]").text_content() == "0.73"
        page.locator("#another").click()
        page.locator("#status", has_text="40 tokens").wait_for()
        assert page.finished() != first
        link = page.evaluate("location.href")
        page.go_back()
        page.locator("#seed").wait_for()
        page.wait_for_timeout(300)
        assert page.finished() == first and page.locator("#seed").input_value() == "11"
        second = page.context.new_page()
        second.goto(link)
        second.locator("#status", has_text="40 tokens").wait_for()
        assert second.locator("#seed").input_value() in link


def test_an_address_with_nonsense_still_opens(chromium, tiny):
    with Page(chromium, tiny, {"seed": "-1", "temperature": "hot", "top_k": "1e9", "x": "y"}) as page:
        page.locator("#write:enabled").wait_for()
        assert page.locator("#text").text_content() == ""
        assert re.fullmatch("[0-9]+", page.locator("#seed").input_value())
        page.locator("#write").click()
        assert page.finished()


@pytest.mark.parametrize("script", ["", "delete window.Worker"], ids=["worker", "no worker"])
def test_typewriter_stops_in_the_middle(chromium, tiny, script):
    values = {"prompt": "one", "seed": 1, "max_tokens": 2000}
    with Page(chromium, tiny, values, script, reduced_motion="no-preference") as page:
        assert page.locator("#typewriter").is_checked()
        page.wait_for_timeout(700)
        assert page.locator("#write").text_content() == "Stop"
        page.locator("#text span:not(.prompt)").nth(2).wait_for()
        page.keyboard.press("Escape")
        text = page.finished()
        assert page.locator("#write").text_content() == "Write" and 5 < len(text) < 1000
        page.wait_for_timeout(200)
        assert page.locator("#text").text_content() == text
        page.locator("#typewriter").uncheck()
        page.locator("#write").click()
        assert page.finished().startswith(text)


def test_surprise_is_what_the_model_says(chromium, tmp_path):
    path = tmp_path / "letters.html"
    export(tiny_model(TOKENIZERS["char-plain"]), "html", path)  # every text has one way to be written
    with Page(chromium, path, {"prompt": "bad", "seed": 4, "temperature": 0.8, "max_tokens": 50}) as page:
        text = page.finished()
        titles = [span.get_attribute("title") for span in page.locator("#text span").all()]
        total = sum(float(title.removesuffix(" bits")) for title in titles)
        colors = page.locator("#text span").evaluate_all(
            "spans => spans.map(s => getComputedStyle(s).backgroundColor)"
        )
        assert len(set(colors)) > 10
        page.locator("#colored").uncheck()
        plain = page.locator("#text span").evaluate_all("spans => spans.map(s => getComputedStyle(s).backgroundColor)")
        assert set(plain) == {"rgba(0, 0, 0, 0)"}
    nats = Model(embedded(path), "torch").score(text).nats
    assert len(titles) == 53
    assert total == pytest.approx(nats / np.log(2), abs=0.05 * len(titles))


def test_the_model_can_be_taken_out_again(chromium, shakespeare, tmp_path):
    with Page(chromium, shakespeare, accept_downloads=True) as page:
        with page.expect_download() as download:
            page.locator("#save-model").click()
        download.value.save_as(tmp_path / "out.safetensors")
        assert download.value.suggested_filename == "shakespeare.safetensors"
    ours, theirs = read_model(tmp_path / "out.safetensors"), Model.load("shakespeare")
    assert ours.card == theirs.card and ours.config == theirs.config


@pytest.mark.parametrize(("width", "scheme"), list(product((320, 390, 820, 1280), ("light", "dark"))))
def test_nothing_overflows_and_everything_has_a_name(chromium, tiny, width, scheme):
    size = {"width": width, "height": 800}
    values = {"prompt": "W" * 300, "seed": 1}
    with Page(chromium, tiny, values, viewport=size, color_scheme=scheme, has_touch=width < 500) as page:
        page.finished()
        page.locator("#settings").evaluate("settings => { settings.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        names = page.locator("input, textarea, button").evaluate_all(
            "all => all.map(e => (e.labels?.[0] ?? e).textContent.trim())"
        )
        assert all(names) and len(set(names)) == len(names)
        heights = page.locator("button").evaluate_all("all => all.map(e => e.getBoundingClientRect().height)")
        assert min(heights) >= 40


def test_other_dtypes_are_exported_as_int8(chromium, tmp_path):
    file = tiny_model(TOKENIZERS["byte"])
    for dtype in ("fp32", "fp16", "int8"):
        path = tmp_path / f"{dtype}.safetensors"
        write_model(path, file.config, file.tokenizer, file.weights, {}, dtype)
        Model.load(path).export(path.with_suffix(".html"))
        with Page(chromium, path.with_suffix(".html"), {"seed": 1, "temperature": 0, "max_tokens": 50}) as page:
            text = page.finished()
        assert text == Model(embedded(path.with_suffix(".html")), "torch").generate("", temperature=0, max_tokens=50)
