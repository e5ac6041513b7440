"""The report of `score`: sums that agree, diagrams against counting, baselines against what they claim."""

from __future__ import annotations

import csv
import io
import json
import lzma
import math
import re
import sys
import time
from html import unescape

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_network import log_softmax, numpy_network

from textlstm import cli
from textlstm.config import ModelConfig
from textlstm.engine import load_engine
from textlstm.errors import UsageError
from textlstm.metrics import token_nats
from textlstm.model import Model
from textlstm.model_file import ModelFile, write_model
from textlstm.report import ScoreView
from textlstm.scoring import baselines, calibration, fixed_baselines, ngram_bits, pieces, positions, read_closely
from textlstm.scoring.show import show, write_csv, write_html
from textlstm.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

TEXT = make_text(4_000, seed=4)
NASTY = '<script>alert(1)</script>, "quoted"\n=1+1 é\u2028\n\n  last line without an end'


def make_model(tokenizer, boundary: bool = True, seed: int = 0) -> Model:
    config = ModelConfig(tokenizer.vocab_size + boundary, 8, 8, 1, boundary=boundary)
    rng = np.random.default_rng(seed)
    weights = {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    return Model(ModelFile(config, tokenizer, weights, {}, ""))


MODELS = {
    "bpe": make_model(BPETokenizer.train(TEXT, 300)),
    "byte": make_model(ByteTokenizer()),
    "char": make_model(CharTokenizer.from_text(TEXT)),
    "no-boundary": make_model(ByteTokenizer(), boundary=False),
}


# --- token by token --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_detail_follows_the_equations(name):
    model, text = MODELS[name], TEXT[:150] + NASTY
    detail = read_closely(model.scoring_engine, model.tokenizer, text)
    ids = model.tokenizer.encode(text)
    begin = [] if name == "no-boundary" else [model.config.boundary_id]
    logits = numpy_network(model.config, model._file.weights, np.array([[*begin, *ids]]))[0][0]
    logs = log_softmax(logits)[: len(ids) + len(begin) - 1]
    targets = ids[1 - len(begin) :]
    skip = 1 - len(begin)
    np.testing.assert_allclose(detail.nats_T[skip:], -logs[np.arange(len(targets)), targets], atol=1e-5)
    np.testing.assert_allclose(detail.confidence_T[skip:], np.exp(logs.max(1)), atol=1e-5)
    assert detail.right_T[skip:].tolist() == (logs.argmax(1) == targets).tolist()
    if skip:
        assert detail.nats_T[0] == pytest.approx(math.log(256)) and detail.confidence_T[0] == 1 / 256
    assert detail.sizes_T.sum() == len(text.encode()) and detail.data == text.encode()


@pytest.mark.parametrize("context", ["", "A text before.\n"])
@pytest.mark.parametrize("name", MODELS)
def test_lines_add_up_to_the_score(name, context):
    model = MODELS[name]
    for text in (TEXT, NASTY, "\n", "no end", "\n\na\n"):
        lines, words = pieces(read_closely(model.scoring_engine, model.tokenizer, text, context), "f")
        nats = model.score(text, context=context).nats
        assert math.fsum(line.nats for line in lines) == pytest.approx(nats, rel=1e-6)
        expected = text.split("\n")[:-1] if text.endswith("\n") else text.split("\n")
        assert [line.text for line in lines] == expected
        assert [line.line for line in lines] == list(range(1, len(lines) + 1))
        assert all(word.text in lines[word.line - 1].text for word in words)


def test_word_costs_what_its_bytes_cost():
    model = MODELS["byte"]
    detail = read_closely(model.scoring_engine, model.tokenizer, "ab, cd'e\nf é!")
    _, words = pieces(detail, "f")
    assert [(w.text, w.line) for w in words] == [("ab", 1), ("cd'e", 1), ("f", 2), ("é", 2)]
    assert words[1].nats == pytest.approx(detail.nats_T[4:8].sum())
    assert words[3].nats_per_char == pytest.approx(detail.nats_T[11:13].sum())


def test_an_empty_text_has_no_detail():
    with pytest.raises(UsageError):
        read_closely(MODELS["byte"].scoring_engine, ByteTokenizer(), "")


# --- calibration and position ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80), st.integers(1, 12))
def test_calibration_is_counted(pairs, bins):
    confidence, right = np.array([p for p, _ in pairs]), np.array([r for _, r in pairs])
    table, error = calibration(confidence, right, bins)
    groups: dict[int, list[tuple[float, bool]]] = {}
    for p, r in pairs:
        groups.setdefault(min(int(p * bins), bins - 1), []).append((p, r))
    assert [row["tokens"] for row in table] == [len(groups[key]) for key in sorted(groups)]
    expected = 0.0
    for row, key in zip(table, sorted(groups), strict=True):
        said, came = (sum(column) / len(groups[key]) for column in zip(*groups[key], strict=True))
        assert row["confidence"] == pytest.approx(said) and row["right"] == pytest.approx(came)
        expected += len(groups[key]) / len(pairs) * abs(said - came)
    assert error == pytest.approx(expected, abs=1e-12)


def test_a_model_that_says_the_truth_is_calibrated():
    rng = np.random.default_rng(0)
    confidence = rng.random(200_000)
    assert calibration(confidence, rng.random(200_000) < confidence)[1] < 0.01
    assert calibration(confidence, rng.random(200_000) < confidence / 2)[1] == pytest.approx(0.25, abs=0.01)


def test_positions_are_means_over_windows_from_the_start():
    model = MODELS["byte"]
    ids = model.tokenizer.encode(TEXT[:100])
    table = positions(model.scoring_engine, ids, window=30)  # three lanes of 34 tokens, the last one short
    nats = [token_nats(model.scoring_engine, ids[start : start + 34]) for start in (0, 34, 68)]
    assert [(row["first"], row["last"]) for row in table] == [
        (0, 0),
        (1, 1),
        (2, 3),
        (4, 7),
        (8, 15),
        (16, 31),
        (32, 33),
    ]
    for row in table:
        part = np.concatenate([one[row["first"] : row["last"] + 1] for one in nats])
        assert row["nats"] == pytest.approx(part.mean(), abs=1e-6) and row["tokens"] == len(part)


# --- baselines -------------------------------------------------------------------------------------------------------


def slow_ngram(history: bytes, byte: int, order: int) -> float:
    """The probability from the equation, by searching all that was read."""
    p = 1 / 256
    padded = bytes(order) + history
    for k in range(order + 1):
        last = padded[len(padded) - k :]
        followed = [padded[i] for i in range(order, len(padded)) if padded[i - k : i] == last]
        if followed:
            u = len(set(followed))
            p = (followed.count(byte) + u * p) / (len(followed) + u)
    return p


@given(
    st.binary(max_size=40) | st.text("ab", max_size=40).map(str.encode),
    st.text("ab").map(str.encode),
    st.integers(0, 4),
)
def test_ngram_model_is_its_equation(data, context, order):
    text = context + data
    bits = [-math.log2(slow_ngram(text[:i], text[i], order)) for i in range(len(context), len(text))]
    assert ngram_bits(data, context, order) == pytest.approx(sum(bits), abs=1e-9)


def slow_fixed_ngram(context: bytes, history: bytes, byte: int, order: int) -> float:
    """The same, where only the context is counted."""
    p, padded, history = 1 / 256, bytes(order) + context, bytes(order) + history
    for k in range(order + 1):
        last = history[len(history) - k :]
        followed = [padded[i] for i in range(order, len(padded)) if padded[i - k : i] == last]
        if followed:
            u = len(set(followed))
            p = (followed.count(byte) + u * p) / (len(followed) + u)
    return p


@given(
    st.binary(max_size=9) | st.text("ab", max_size=40).map(str.encode),
    st.text("ab").map(str.encode),
    st.integers(0, 4),
)
def test_ngram_model_that_stands_still(data, context, order):
    text, start = context + data, len(context)
    bits = [-math.log2(slow_fixed_ngram(context, text[:i], text[i], order)) for i in range(start, len(text))]
    assert ngram_bits(data, context, order, learn=False) == pytest.approx(sum(bits), abs=1e-9)
    assert fixed_baselines(data, context)["even guess among 256 bytes"] == 8 * len(data)


def test_fixed_baselines_need_a_training_text():
    data, training = TEXT[:1000].encode(), TEXT[1000:].encode()
    found = fixed_baselines(data, training)
    assert list(found) == ["even guess among 256 bytes", "frequency of bytes", "n-gram of 5 bytes"]
    assert found["n-gram of 5 bytes"] < found["frequency of bytes"] < 8 * len(data)
    assert set(fixed_baselines(data, b"")) == {"even guess among 256 bytes"}


@pytest.mark.parametrize("history", [b"", b"abracadabra", b"\0\0\0\xff"])
def test_ngram_probabilities_sum_to_one(history):
    total = sum(2 ** -ngram_bits(bytes([byte]), history) for byte in range(256))
    assert total == pytest.approx(1)


def test_baselines_are_the_sizes_of_files():
    pyppmd = pytest.importorskip("pyppmd")
    data, context = TEXT[:2000].encode(), TEXT[2000:].encode()
    found = baselines(data)
    assert found["xz -9e"] == 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    assert found["PPMd order 6"] == pytest.approx(8 * len(pyppmd.compress(data, variant="H")), abs=8 * 4)
    primed = baselines(data, context)
    assert all(primed[name] < found[name] for name in found) and set(primed) == set(found)


def test_what_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyppmd", None)
    monkeypatch.setitem(sys.modules, "zpaq", None)
    assert set(baselines(b"some text")) == {"xz -9e", "n-gram of 5 bytes"}


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    return MODELS["bpe"].score_report([("a<b>.txt", [NASTY + "\n" + TEXT]), ("b.txt", ["One.\n", "Two words.\n"])])


def test_report_agrees_with_score(report):
    model = MODELS["bpe"]
    texts = [NASTY + "\n" + TEXT, "One.\n", "Two words.\n"]
    assert report.total.nats == pytest.approx(model.score(texts).nats, rel=1e-6)
    assert report.files[1][1].chars == 16 and report.total.chars == sum(map(len, texts))
    for one in report.protocols:
        assert one.nats == pytest.approx(model.score(texts, one.protocol).nats, rel=1e-6)
    worst = report.surprising_lines(3)
    long = [line for line in report.lines if len(line.text) >= 10]
    assert [w.nats_per_char for w in worst] == sorted((line.nats_per_char for line in long), reverse=True)[:3]
    words = report.surprising_words(5)
    assert len({w.text for w in words}) == 5 and words[0].nats == max(w.nats for w in report.words)


def test_csv_holds_every_line(report, tmp_path):
    write_csv(report, tmp_path / "a.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(encoding="utf-8"), newline="")))
    assert [row["text"] for row in rows] == [line.text for line in report.lines]
    assert sum(float(row["nats"]) for row in rows) == pytest.approx(report.total.nats, rel=1e-4)
    assert rows[-1]["file"] == "b.txt" and rows[-1]["line"] == "1"


def test_terminal(report):
    console = Console(file=io.StringIO(), width=200)
    show(report, console)
    text = console.file.getvalue()
    for part in ("cold-256", "PPMd", "learn as they read", "most surprising words", "calibration error", "<script>"):
        assert part in text
    assert "\u2028" not in text
    narrow = Console(file=io.StringIO(), width=60)
    show(report, narrow)
    assert "…" not in narrow.file.getvalue().partition("tokens read before")[2]


def test_progress_is_told_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr("textlstm.report._EVERY", 0.01)
    for quiet in (False, True):
        with ScoreView(quiet) as view:
            view.progress("a [b] file")(1, 4)
            time.sleep(0.2)
        out, err = capsys.readouterr()
        assert not out and ("a [b] file: 25 %" in err) != quiet


def test_html_shows_text_and_runs_nothing(report, tmp_path):
    write_html(report, tmp_path / "a.html", "A <title>")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script" not in page and "://" not in page and "&lt;script&gt;" in page
    shown = re.search(r'<div class="text">(.*?)</div>', page, re.DOTALL)
    assert unescape(re.sub(r"<span [^>]*>|</span>", "", shown[1])) == "".join(token for token, _ in report.shown)
    assert not re.search("[<&](?!span |/span>|lt;|gt;|amp;|quot;|#x27;)", shown[1])
    assert page.count("<svg") == 4 and "A &lt;title&gt;" in page and "a&lt;b&gt;.txt" in page


@pytest.mark.slow
@pytest.mark.browser
def test_html_in_chromium(report, tmp_path, quiet_page):
    write_html(report, tmp_path / "a.html", "Report")
    page = quiet_page
    page.goto((tmp_path / "a.html").as_uri())
    assert page.title() == "Report" and page.locator("svg").count() == 4
    assert page.locator(".text").inner_text().startswith("<script>alert(1)</script>")
    box = page.locator("svg polyline").first.bounding_box()
    assert box is not None and box["width"] > 100


# --- the command -----------------------------------------------------------------------------------------------------


def test_score_writes_the_report(tmp_path, monkeypatch, capsys):
    file = MODELS["bpe"]._file
    write_model(tmp_path / "m.safetensors", file.config, file.tokenizer, file.weights, {})
    (tmp_path / "a.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: bytes = b""):
        monkeypatch.setattr(sys, "argv", ["textlstm", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    code, out, _ = run("score", "m.safetensors", "a.txt", "--csv", "a.csv", "--html", "a.html", "--json")
    answer = json.loads(out.splitlines()[-1])
    assert code == 0 and answer["protocols"]["stream"]["nats"] == pytest.approx(answer["nats"], rel=1e-6)
    lines = TEXT.splitlines()
    assert [one["text"] for one in answer["lines"]] == lines
    assert sum(one["nats"] for one in answer["lines"]) == pytest.approx(answer["nats"], rel=1e-6)
    page = (tmp_path / "a.html").read_text()
    assert (tmp_path / "a.csv").exists() and f"<summary>{len(lines):,} lines</summary>" in page
    assert all(f"<td>a.txt:{number}</td>" in page for number in range(1, len(lines) + 1))
    code, out, _ = run("score", "m.safetensors", "a.txt", "--lines")
    table = out[out.index("  lines") : out.index("most surprising lines")]
    assert code == 0 and all(f" a.txt:{number} " in table for number in range(1, len(lines) + 1))
    assert f"a.txt:{len(lines)} " not in run("score", "m.safetensors", "a.txt", "--report")[1]
    code, out, _ = run("score", "m.safetensors", "-", "--report", "--html", "b.html", stdin=TEXT.encode())
    assert code == 0 and "most surprising lines" in out and "standard input:1" in out
    assert "reads standard input</title>" in (tmp_path / "b.html").read_text()
    assert run("score", "m.safetensors", "a.txt", "--html", "no/a.html")[0] == 2
    assert "protocols" not in json.loads(run("score", "m.safetensors", "a.txt", "--json")[1].splitlines()[-1])


def test_engine_of_torch_gives_the_same_detail():
    model = MODELS["bpe"]
    one = read_closely(model.scoring_engine, model.tokenizer, TEXT[:500])
    two = read_closely(load_engine(model._file, "torch"), model.tokenizer, TEXT[:500])
    np.testing.assert_allclose(one.nats_T, two.nats_T, atol=1e-4)
