"""The X-ray against the equations, against counting, and in a real browser."""

from __future__ import annotations

import io
import itertools
import json
import math
import platform
import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_network import SHAPES, log_softmax, make_config, numpy_network, random_weights

from textlstm import cli
from textlstm.config import ModelConfig
from textlstm.engine import load_engine
from textlstm.errors import MissingExtraError, UsageError
from textlstm.inspection import cells, find_cells, gate_report, influence, nearest_tokens, properties, trace
from textlstm.inspection.cells import matthews
from textlstm.inspection.memory import half_lives
from textlstm.inspection.show import show, values_of, write_html, write_png
from textlstm.inspection.trace import Trace
from textlstm.inspection.xray import OWN_CHARS
from textlstm.model import Model
from textlstm.model_file import ModelFile
from textlstm.network import reference_lstm
from textlstm.tokenizer import ByteTokenizer, CharTokenizer

IDS = np.random.default_rng(2).integers(0, 20, 25).astype(np.int32)


def make_file(shape: str, **changes: object) -> ModelFile:
    config = make_config(shape, **changes)
    return ModelFile(config, CharTokenizer("abcdefghijklmnopqrstuv"), random_weights(config), {}, "")


# --- the trace -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_trace_follows_the_network(shape, boundary):
    file = make_file(shape, boundary=boundary)
    found = trace(file, IDS)
    begin = [file.config.boundary_id] if boundary else []
    read = np.array([[*begin, *IDS]])
    logits, h, c = numpy_network(file.config, file.weights, read)
    np.testing.assert_allclose(found.values["h"][:, -1], h[:, 0], atol=1e-5)
    np.testing.assert_allclose(found.values["c"][:, -1], c[:, 0], atol=1e-5)
    expected = -log_softmax(logits)[0, np.arange(read.shape[1] - 1), read[0, 1:]]
    if not boundary:
        expected = np.concatenate([[math.log(file.config.vocab_size)], expected])
    np.testing.assert_allclose(found.nats_T, expected, atol=1e-4)
    assert found.nats_T.shape == IDS.shape and found.values["f"].shape[1] == len(IDS)


def test_gates_and_outputs_are_those_of_the_reference_recurrence():
    file = make_file("tied", boundary=False)
    found = trace(file, IDS)
    w = {name: torch.from_numpy(array) for name, array in file.weights.items()}
    x, H = w["embedding.weight"][IDS.astype(np.int64)][:, None], file.config.hidden_size
    for layer in range(file.config.num_layers):
        parts = [w[f"lstm.{layer}.{name}"] for name in ("weight_ih", "weight_hh", "bias")]
        outputs, _, c = reference_lstm(x, torch.zeros(1, H), torch.zeros(1, H), *parts)
        np.testing.assert_allclose(found.values["h"][layer], outputs[:, 0].numpy(), atol=1e-6)
        before = torch.cat([torch.zeros(1, 1, H), outputs[:-1]])
        gates = (x @ parts[0].T + before @ parts[1].T + parts[2])[:, 0].chunk(4, 1)
        for name, gate in zip("ifgo", gates, strict=True):
            expected = torch.tanh(gate) if name == "g" else torch.sigmoid(gate)
            np.testing.assert_allclose(found.values[name][layer], expected.numpy(), atol=1e-6)
        np.testing.assert_allclose(found.values["c"][layer, -1], c[0].numpy(), atol=1e-6)
        x = outputs


def test_trace_keeps_what_is_asked_and_refuses_nothing_to_read():
    file = make_file("tied")
    assert set(trace(file, IDS, ("c",)).values) == {"c"}
    with pytest.raises(UsageError):
        trace(file, IDS[:0])


# --- properties and cells --------------------------------------------------------------------------------------------


def true_of(text: str, name: str) -> str:
    """A property after every byte, written as 0 and 1."""
    data = text.encode()
    found = properties(data, np.arange(1, len(data) + 1))[name]
    return "".join(str(int(v)) for v in found)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("inside double quotes", 'a "bc" d', "00111000"),
        ("inside double quotes", '"a\n\nb', "1110" + "0"),
        ("inside double quotes", '"""a\n\n"b""" c', "1" + "0" + "1" * 8 + "000"),
        ("inside triple quotes", '"""a\n\n"b""" "c"', "00" + "1" * 8 + "00000"),
        ("inside double quotes", 'x = "" + "a\\"b"', "000010000" + "1" * 5 + "0"),
        ("inside brackets", "a(b[c])d", "01111100"),
        ("in a run of capitals", "aBC DEf", "0010010"),
        ("inside a word", "ab, c", "11001"),
        ("inside a number", "a12 b", "01100"),
        ("at the start of a line", "a\n\nb", "0110"),
        ("in an indented line", "  a b\nc", "1111100"),
        ("in a line indented by 8 or more", " " * 9 + "x", "0000000111"),
        ("in a comment after #", 'a # b\nc "#"', "00111" + "0" * 6),
        ("in the first line of a paragraph", "a\nb\n\nc\n", "1000" + "110"),
        ("after a colon in the line", "a:b\nc", "01100"),
        ("after the end of a sentence", "a. b", "0110"),
        ("more than 10 characters into the line", "x" * 12 + "\n", "0" * 10 + "110"),
    ],
)
def test_properties(name, text, expected):
    assert true_of(text, name) == expected


def test_properties_are_those_at_the_ends_of_tokens():
    data, ends = b'a "b c" d', np.array([2, 4, 9])
    assert properties(data, ends)["inside double quotes"].tolist() == [False, True, False]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_matthews_is_the_correlation_of_two_binary_variables(pairs):
    one, two = np.array(pairs).T
    expected = 0.0
    if one.any() and two.any() and not one.all() and not two.all():
        expected = np.corrcoef(one.astype(float), two.astype(float))[0, 1]
    assert matthews(one, two) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 1000))
def test_best_split_is_that_of_trying_all(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, (30, 2)).astype(np.float32) / 2  # with ties
    true = rng.random((30, 3)) < 0.4
    true[0], true[1] = True, False
    scores, thresholds = cells._best_splits(values, true)
    for cell in range(2):
        levels = np.unique(values[:, cell])
        for p in range(3):
            tried = [matthews(values[:, cell] > (a + b) / 2, true[:, p]) for a, b in itertools.pairwise(levels)]
            assert abs(scores[cell, p]) == pytest.approx(max(map(abs, tried)))
            assert matthews(values[:, cell] > thresholds[cell, p], true[:, p]) == pytest.approx(scores[cell, p])


def fake_trace(rng: np.random.Generator, true: dict[str, np.ndarray]) -> Trace:
    """Noise, but cell 3 of layer 1 follows `quoted` upwards, and output 2 of layer 0 follows `indented` downwards."""
    T = len(true["quoted"])
    values = {name: rng.normal(0, 1, (2, T, 6)).astype(np.float32) for name in "ch"}
    values["c"][1, :, 3] = true["quoted"] * 2.0 + rng.normal(0, 0.3, T)
    values["h"][0, :, 2] = 5 - true["indented"] * 1.0 + rng.normal(0, 0.1, T)
    return Trace(np.arange(T), values, np.zeros(T))


def test_cells_that_follow_a_property_are_found_and_luck_is_not_reported():
    rng = np.random.default_rng(1)
    true = [{name: rng.random(400) < 0.3 for name in ("quoted", "indented", "luck")} for _ in range(2)]
    for one in true:
        one["rare"] = np.arange(400) < 5
    traces = [fake_trace(rng, one) for one in true]
    found = find_cells(traces[0], true[0], traces[1], true[1])
    best = {}
    for one in found:
        best.setdefault(one.what, one)
    assert best["quoted"].name == "c1.3" and best["quoted"].above and best["quoted"].held_out > 0.95
    assert best["indented"].name == "h0.2" and not best["indented"].above and best["indented"].held_out > 0.95
    assert abs(best["luck"].held_out) < 0.2 < 0.9 < min(best["quoted"].chosen, best["indented"].chosen)
    assert "rare" not in best and len(found) == 9 and found[-1].what == "luck"
    expected = matthews(traces[1].values["c"][1, :, 3] > best["quoted"].threshold, true[1]["quoted"])
    assert best["quoted"].held_out == pytest.approx(expected)


def test_a_cell_is_found_in_a_model_made_by_hand():
    """Cell 0 is set by a line end and forgets at once; cell 1 tells blanks from letters."""
    tokenizer = CharTokenizer('ab "\n', byte_fallback=False)
    config = ModelConfig(6, 6, 2, 1, tie_embeddings=False)
    weights = {n: np.zeros(s, dtype=np.float32) for n, s in config.tensor_shapes().items()}
    weights["embedding.weight"] = np.eye(6, dtype=np.float32)
    ih, bias = weights["lstm.0.weight_ih"], weights["lstm.0.bias"]
    bias[0:2], bias[2:4], bias[6:8] = 9, -9, 9  # i open, f shut, o open
    newline, blank = tokenizer.encode("\n ").tolist()
    ih[4, newline] = 9  # g of cell 0: a line begins
    ih[5, blank], bias[5] = 9, -3  # g of cell 1: no word
    file = ModelFile(config, tokenizer, weights, {}, "")
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab \n", k=600)) for _ in range(2)]
    found = Model(file).inspect(*texts)
    best = {}
    for one in found.findings:
        best.setdefault(one.what, one)
    line = best["at the start of a line"]
    assert (line.layer, line.cell, line.above) == (0, 0, True) and line.held_out == 1
    assert gate_report(found.shown)[0]["gates"]["f"] == {"shut": 1.0, "open": 0.0}


# --- memory ----------------------------------------------------------------------------------------------------------


def test_half_life():
    f = np.array([[0.5, 0.25, 0.9], [0.5, 1.0, 0.9]], dtype=np.float32)
    np.testing.assert_allclose(half_lives(f), [1, 1, math.log(0.5) / math.log(0.9)], rtol=1e-6)


def test_influence_is_the_divergence_of_two_readings():
    """Against the equations, with places and exchanges drawn from an equal generator."""
    file = make_file("tied")
    engine = load_engine(file)
    ids = np.random.default_rng(3).integers(0, 6, 60).astype(np.int32)
    found = influence(engine, ids, np.random.default_rng(5), (1, 3, 16, 999), samples=4)
    rng = np.random.default_rng(5)
    starts = rng.integers(16, 60 - 16 + 1, 4)
    total = np.zeros(3)
    for start in starts:
        window = ids[start : start + 16].copy()
        others = ids[ids != window[0]]
        changed = window.copy()
        changed[0] = rng.choice(others)
        logs = []
        for end in (window, changed):
            read = np.array([[22, *ids[start - 16 : start], *end]])
            logs.append(log_softmax(numpy_network(file.config, file.weights, read)[0][0, 17:]))
        divergence = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1)
        total += divergence[[0, 2, 15]]
    assert list(found) == [1, 3, 16]
    np.testing.assert_allclose(list(found.values()), total / 4, atol=1e-5)
    assert influence(engine, ids[:1], np.random.default_rng(0)) == {}


def test_nearest_tokens():
    file = make_file("tied")
    table = file.weights["embedding.weight"][:22].astype(float)
    near = nearest_tokens(file, [4], 3)[4]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = unit @ unit[4]
    expected = sorted((i for i in range(22) if i != 4), key=lambda i: -cosines[i])[:3]
    assert [id for id, _ in near] == expected and near[0][1] == pytest.approx(cosines[expected[0]])


# --- what is shown ---------------------------------------------------------------------------------------------------

NASTY = 'a </script><script>alert(1)</script> "b" <!-- & é \u2028 '


@pytest.fixture(scope="module")
def found():
    return byte_model().inspect(NASTY * 30, NASTY * 20)


def byte_model() -> Model:
    config = ModelConfig(257, 8, 8, 2)
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    return Model(ModelFile(config, ByteTokenizer(), weights, {}, ""))


def test_terminal(found):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    show(found, "c1.3", console)
    text = console.file.getvalue()
    assert "coloured by c1.3" in text and "half-life" in text and "held out" in text
    plain = Console(file=io.StringIO(), width=1000)
    show(found, "surprise", plain)
    assert "</script>" in plain.file.getvalue() and "\x1b" not in plain.file.getvalue()


def test_a_narrow_terminal_cuts_nothing_off(found):
    console = Console(file=io.StringIO(), width=60)
    show(found, "surprise", console)
    text = console.file.getvalue()
    table = text[text.index("gates:") : text.index(" token  ")]
    assert "…" not in table and max(map(len, table.splitlines())) <= 60
    assert "half-life, tokens" in table and "change of prediction, nats" in table


def test_without_a_text_a_model_reads_its_own():
    model = Model(make_file("tied"))
    text = model.generate("", max_chars=OWN_CHARS, seed=0)
    assert model.inspect().to_dict() == model.inspect(text).to_dict()


def test_characters_of_several_tokens_are_shown_whole():
    found = byte_model().inspect("né 日本 🙂\n" * 90, "né 日本 🙂\n" * 60)
    assert "".join(found.tokens)[:30] == ("né 日本 🙂\n" * 4)[:30] and len(found.tokens) == len(found.shown.nats_T)
    assert found.tokens[:4] == ["n", "", "é", " "]


def test_colours(found):
    np.testing.assert_allclose(values_of(found, "surprise"), np.minimum(found.shown.nats_T / 6, 1))
    np.testing.assert_allclose(values_of(found, "c1.3"), np.tanh(found.shown.values["c"][1, :, 3]), rtol=1e-6)
    np.testing.assert_allclose(values_of(found, "h0.7"), found.shown.values["h"][0, :, 7])
    for wrong in ("c2.0", "c0.8", "x0.1", "", "c0", "f0.1"):
        with pytest.raises(UsageError, match="surprise"):
            values_of(found, wrong)


def test_png(found, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    write_png(found, tmp_path / "a.png", "title")
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 10_000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"textlstm\[plot\]"):
        write_png(found, tmp_path / "b.png", "title")
    assert not (tmp_path / "b.png").exists()


def test_html_holds_everything_and_nothing_of_the_text_is_markup(found, tmp_path):
    write_html(found, tmp_path / "a.html", "Inside <b>")
    page = (tmp_path / "a.html").read_text()
    assert "http://www.w3.org/2000/svg" in page and page.count("://") == 1  # the name of a format, no address
    block = page.split('<script id="data" type="application/json">')[1].split("</script>")[0]
    data = json.loads(block)
    assert "<" not in block and "".join(data["tokens"][:5]) == NASTY[:5] and data["shape"] == [2, 600, 8]
    assert data["title"] == "Inside <b>" and data["nats"][0] == round(float(found.shown.nats_T[0]), 3)


@pytest.mark.slow
@pytest.mark.browser
def test_html_in_chromium(found, tmp_path, quiet_page):
    write_html(found, tmp_path / "a.html", "Inside")
    page = quiet_page
    page.goto((tmp_path / "a.html").as_uri())
    assert page.title() == "Inside" and page.locator("#text span").count() == 600
    assert page.locator("#text").inner_text().startswith(NASTY[:20])
    surprise = page.locator("#text span").nth(3).evaluate("e => e.style.background")
    page.fill("#name", "c1.3")
    page.locator("#name").dispatch_event("change")
    shade = values_of(found, "c1.3")[3]
    mixed = [255 + (full - 255) * abs(shade) for full in ((240, 120, 20) if shade >= 0 else (60, 130, 230))]
    painted = page.locator("#text span").nth(3).evaluate("e => e.style.background")
    assert painted != surprise
    numbers = [int(n) for n in painted.removeprefix("rgb(").removesuffix(")").split(",")]
    np.testing.assert_allclose(numbers, mixed, atol=3)
    page.click("#after")
    assert page.input_value("#name") == "c1.4"
    page.locator("tr[data-name]").first.click()
    assert page.input_value("#name") == found.findings[0].name
    page.fill("#name", "c9.9")
    page.locator("#name").dispatch_event("change")
    assert "there is no c9.9" in page.locator("#error").inner_text()
    page.locator("#text span").nth(2).hover()
    assert "nats" in page.locator("#about").inner_text()
    assert page.locator("svg polyline").count() >= 3


# --- the command and the promise -------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["textlstm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


@pytest.mark.skipif(platform.python_version() != "3.11.7", reason="it learnt from the library of 3.11.7")
def test_command_finds_cells_in_the_shipped_model(run, tmp_path):
    """Chosen on the end of its training text, judged on what was held out: at least three properties above 0.6."""
    code, out, err = run("inspect", "python", "--chars", "6000", "--json", "--html", "x.html")
    assert "writes itself" not in err
    report = json.loads(out.splitlines()[-1])
    assert code == 0 and (tmp_path / "x.html").stat().st_size > 100_000
    good = {one["what"] for one in report["cells"] if one["held_out"] is not None and one["held_out"] >= 0.6}
    assert len(good) >= 3 and "in an indented line" in good
    assert set(report) == {"model", "reads", "nats_per_token", "gates", "cells", "influence", "nearest"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["absent.txt"], ["a.txt", "--colour", "c7.1"], ["a.txt", "--html", "no/x.html"], ["a.txt", "--chars", "3"],
        ["b.txt"],
    ],
)  # fmt: skip
def test_commands_that_cannot_be_meant(run, tmp_path, arguments):
    (tmp_path / "a.txt").write_text("Some lines of text.\n" * 12)
    (tmp_path / "b.txt").write_text("x")
    code, out, err = run("inspect", "shakespeare", *arguments)
    assert code == 2 and err and not out


@pytest.mark.parametrize(("wish", "words"), [(["--colour", "blue"], "'blue'"), (["--png", "x.png"], "textlstm[plot]")])
def test_what_cannot_be_met_is_said_before_the_work(run, tmp_path, monkeypatch, wish, words):
    (tmp_path / "a.txt").write_text("Some lines of text.\n" * 12)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(Model, "inspect", lambda *_: pytest.fail("the work was begun"))
    code, out, err = run("inspect", "shakespeare", "a.txt", *wish)
    assert code and words in err and not out
