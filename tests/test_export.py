"""Exports: what stands in the page, and ONNX graphs against the equations, torch, and a process without textlstm."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tokenizers
import torch
from click.testing import CliRunner
from conftest import make_text
from hypothesis import given
from hypothesis import strategies as st
from test_network import SHAPES, make_config, make_network, numpy_network, random_ids, random_weights

import textlstm
from textlstm.cli import cli
from textlstm.config import ModelConfig, SamplingConfig
from textlstm.errors import UsageError
from textlstm.export import export
from textlstm.export import html as html_module
from textlstm.model import Model
from textlstm.model_file import ModelFile, read_model, write_model
from textlstm.state import State
from textlstm.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, gpt2_tokenizer

TEXT = make_text(20_000)
LETTERS = CharTokenizer("abcdefghijklmnopqrstuv", byte_fallback=False)
TOKENIZERS = {
    "byte": ByteTokenizer(),
    "char": CharTokenizer.from_text("hello, world? 中🙂"),
    "char-plain": CharTokenizer("abc? d", byte_fallback=False),
    "bpe": BPETokenizer.train(TEXT, 500),
    "gpt2-pruned": gpt2_tokenizer().prune(TEXT),
    "cl100k": BPETokenizer(gpt2_tokenizer().merges[:2000], "cl100k", gpt2_tokenizer().byte_order),
}


def make_file(shape: str = "tied", seed: int = 0, card: dict | None = None) -> ModelFile:
    config = make_config(shape)
    return ModelFile(config, LETTERS, random_weights(config, seed), {} if card is None else card, "")


# --- the page --------------------------------------------------------------------------------------------------------


class Parts(HTMLParser):
    """Scripts and styles of a page, its policy, and every attribute that could load something."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.inline: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.policy, self._tag = "", ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        runs = values.get("type") != "application/octet-stream"
        self._tag = tag if tag == "style" or (tag == "script" and runs) else ""
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]
        assert not [k for k in values if k.startswith("on") or k == "style"], "the policy would stop it"
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]

    def handle_data(self, data):
        if self._tag:
            self.inline.append((self._tag, data))
            self._tag = ""


def test_page_is_one_file_within_its_size(tmp_path):
    shipped = Path(textlstm.__file__).parent / "models" / "shakespeare.safetensors"
    out = tmp_path / "shakespeare.html"
    Model.load("shakespeare").export(out)
    assert out.stat().st_size <= 1.4 * shipped.stat().st_size + 150_000
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    source = out.read_text("utf-8")
    data = base64.b64decode(re.search(r'id="model">([^<]+)<', source)[1], validate=True)
    (tmp_path / "inside").write_bytes(data)
    inside, whole = read_model(tmp_path / "inside"), read_model(shipped)
    for name, array in whole.weights.items():  # int8 stays as it is, bit for bit
        np.testing.assert_array_equal(inside.weights[name], array)


def test_page_loads_nothing_and_its_policy_names_what_it_runs():
    parts = Parts(html_module.page(make_file(), "a title"))
    assert [link[:5] for link in parts.links] == ["data:"]
    assert [tag for tag, _ in parts.inline] == ["style", "script", "script"]
    for _, content in parts.inline:
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in parts.policy
        assert "\r" not in content and "</script" not in content.lower()
    assert parts.policy.startswith("default-src 'none'; ") and "unsafe-inline" not in parts.policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", "".join(content for _, content in parts.inline))


def test_page_escapes_what_is_not_its_own():
    card = {"note": "</script><script>alert(1)</script>{{model}}"}
    source = html_module.page(make_file(card=card), "<b>&{{app}}")
    assert "alert(1)" not in source and "<b>" not in source
    assert source.count("&lt;b&gt;&amp;{{app}}") == 2


def test_settings_of_the_page_begin_as_pythons():
    source = html_module.page(make_file(), "x")
    inputs = re.findall(r'<input type="range"[^>]* name="(\w+)" [^>]*value="([^"]+)"', source)
    defaults = SamplingConfig().to_dict()
    assert {name: float(value) for name, value in inputs if name != "max_tokens"} == {
        name: defaults[name] for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    }


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    """Contrast ratio (WCAG 2.2)."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def mixed(one: str, other: str, share: float) -> str:
    pairs = [(int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(scheme):
    style = (Path(html_module.__file__).parent / "page" / "page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    color = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[scheme]))
    for text, ground in [
        ("ink", "card"), ("ink", "paper"), ("muted", "card"), ("muted", "paper"), ("accent", "card"),
        ("on-accent", "accent"),
    ]:  # fmt: skip
        assert contrast(color[text], color[ground]) >= 4.5, (text, ground)
    assert contrast(color["ink"], mixed(color["heat"], color["card"], 0.6)) >= 4.5
    assert contrast(color["control"], color["card"]) >= 3  # borders of controls
    assert contrast(color["control"], color["paper"]) >= 3


# --- tokenizer.json --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer_json_encodes_and_decodes_alike(tmp_path, name):
    ours = TOKENIZERS[name]
    config = ModelConfig(ours.vocab_size + 1, 4, 4, 1)
    export(ModelFile(config, ours, random_weights(config), {}, ""), "onnx", tmp_path / "out")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert theirs.get_vocab_size() == ours.vocab_size

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def agree(text):
        ids = ours.encode(text).tolist()
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids) == ours.decode(ids)

    agree()
    assert theirs.encode(TEXT).ids == ours.encode(TEXT).tolist()


# --- ONNX ------------------------------------------------------------------------------------------------------------


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(params=SHAPES)
def graphs(request, tmp_path):
    file = make_file(request.param)
    export(file, "onnx", tmp_path / "out")
    return request.param, session(tmp_path / "out" / "step.onnx"), session(tmp_path / "out" / "sequence.onnx")


def test_graphs_agree_with_torch_and_the_equations(graphs):
    shape, step, sequence = graphs
    config = make_config(shape)
    network = make_network(config)
    rng = np.random.default_rng(3)
    for B, T in [(1, 1), (1, 40), (3, 17), (8, 2)]:
        ids = random_ids(B, T)
        h, c = (rng.normal(0, 0.5, (config.num_layers, B, config.hidden_size)).astype(np.float32) for _ in "hc")
        with torch.no_grad():
            expected, after = network(torch.from_numpy(ids), State(torch.from_numpy(h), torch.from_numpy(c)))
        logits, h_after, c_after = sequence.run(["logits", "h_after", "c_after"], {"ids": ids, "h": h, "c": c})
        assert logits.shape == (B, T, config.vocab_size)
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4, rtol=0)
        np.testing.assert_allclose(h_after, after.h_LBH.numpy(), atol=1e-4, rtol=0)
        np.testing.assert_allclose(c_after, after.c_LBH.numpy(), atol=1e-4, rtol=0)
        np.testing.assert_allclose(logits, numpy_network(config, random_weights(config), ids, h, c)[0], atol=1e-4)
        for t in range(T):
            one, h, c = step.run(["logits", "h_after", "c_after"], {"ids": ids[:, t], "h": h, "c": c})
            np.testing.assert_allclose(one, logits[:, t], atol=1e-5, rtol=0)
        np.testing.assert_allclose(c, c_after, atol=1e-5, rtol=0)


def test_graphs_say_what_they_are(tmp_path):
    file = make_file(card={"corpus": {"name": "é"}})
    export(file, "onnx", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["boundary_id"] == 22 and about["text_ids"] == 22 and about["vocab_size"] == 23
    assert about["card"] == file.card and ModelConfig.from_dict(about["config"]) == file.config
    axes = {"step.onnx": ["B"], "sequence.onnx": ["B", "T"]}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*axes, "tokenizer.json", "model.json"}
    for name, expected in axes.items():
        model = onnx.load(tmp_path / "out" / name)
        onnx.checker.check_model(model, full_check=True)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", about["opset"])]
        shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)
        }
        state = [2, "B", 12]
        assert shapes == {
            "ids": expected, "h": state, "c": state, "logits": [*expected, 23], "h_after": state, "c_after": state
        }  # fmt: skip
        assert {prop.key: prop.value for prop in model.metadata_props}["boundary_id"] == "22"


PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime, tokenizers

folder, prompt, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
about = json.loads((folder / "model.json").read_text())
tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
sequence, step = (onnxruntime.InferenceSession(folder / name) for name in ("sequence.onnx", "step.onnx"))
ids = [about["boundary_id"], *tokenizer.encode(prompt).ids]
shape = about["config"]["num_layers"], 1, about["config"]["hidden_size"]
zeros = np.zeros(shape, np.float32)
logits, h, c = sequence.run(None, {"ids": np.array([ids]), "h": zeros, "c": zeros})
logits, written = logits[:, -1], []
for _ in range(number):
    written.append(int(logits[0, : about["text_ids"]].argmax()))
    logits, h, c = step.run(None, {"ids": np.array(written[-1:]), "h": h, "c": c})
assert not [name for name in sys.modules if name.split(".")[0] in ("textlstm", "torch")]
print(json.dumps(tokenizer.decode(written)))
"""


def test_onnxruntime_alone_writes_the_same_text(tmp_path):
    model = Model.load("shakespeare", engine="torch")
    model.export(tmp_path / "out", to="onnx")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "out"), "KING HENRY V:\n", "200"],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == model.generate("KING HENRY V:\n", temperature=0, max_tokens=200)


# --- the command, and what is refused --------------------------------------------------------------------------------


def run(*arguments: object) -> object:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_command(tmp_path):
    model = tmp_path / "m.safetensors"
    config = make_config()
    write_model(model, config, LETTERS, random_weights(config), {})
    for to, out in (("html", "page.html"), ("onnx", "graphs")):
        done = run("export", model, "--to", to, tmp_path / out, "--json")
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout.splitlines()[-1])
        files = [Path(name) for name in report["files"]]
        assert report["bytes"] == sum(file.stat().st_size for file in files) and report["to"] == to
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "page.html", "graphs"}
    assert run("export", model, "--to", "html", tmp_path / "page.html").exit_code == 0  # a page is replaced
    for wrong in ([], ["--to", "nope", "x"], ["--to", "html", tmp_path / "absent" / "x"], ["--to", "onnx", tmp_path]):
        done = run("export", model, *wrong)
        assert done.exit_code == 2 or getattr(done.exception, "exit_code", None) == 2, wrong
    assert "export" in run("--help").output and "--to" in run("export", "--help").output


def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path):
    file = make_file()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for to, out, message in [
        ("htm", "x", "no export format 'htm'"), ("html", "absent/x.html", "there is no folder"),
        ("html", "full", "is a folder"), ("onnx", "full", "is there already"), ("onnx", "full/a", "is there already"),
        ("onnx", "absent/x", "there is no folder"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=message):
            export(file, to, tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before
    export(file, "onnx", tmp_path / "empty")
    assert (tmp_path / "empty" / "step.onnx").is_file()


def test_a_model_file_of_a_quarter_of_the_size(tmp_path):
    """It holds what the int8 engine makes of the weights anyway, and all else as it was."""
    model = Model.load("shakespeare")
    model.save(tmp_path / "large", "fp32")
    large = Model.load(tmp_path / "large")
    assert run("export", tmp_path / "large", "--to", "int8", tmp_path / "small").exit_code == 0
    before, after = read_model(tmp_path / "large"), read_model(tmp_path / "small")
    assert (before.dtype, after.dtype) == ("fp32", "int8") and after.card == before.card
    assert (tmp_path / "small").stat().st_size < 0.27 * (tmp_path / "large").stat().st_size
    options = {"temperature": 0, "max_tokens": 60}
    assert Model.load(tmp_path / "small", "onnx").generate("", **options) == large.generate("", **options)
    with pytest.raises(UsageError, match="is there already"):  # a model is never written over
        export(before, "int8", tmp_path / "large")


def test_a_folder_is_whole_or_absent(tmp_path, monkeypatch):
    def full_disk(path, data):
        if path.name == "sequence.onnx":
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(data)

    monkeypatch.setattr("textlstm.files.write_atomically", full_disk)
    with pytest.raises(OSError, match="No space"):
        export(make_file(), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_too_large_for_onnx_is_refused(tmp_path):
    file = make_file()
    config = ModelConfig(vocab_size=1 << 20, embed_size=1024, hidden_size=1024)
    with pytest.raises(UsageError, match="2 GB"):
        export(ModelFile(config, file.tokenizer, {}, {}, ""), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
