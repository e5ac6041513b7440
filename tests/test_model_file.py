"""The model file: what comes back, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from test_network import SHAPES, make_config, random_ids, random_weights

from textlstm.config import ModelConfig
from textlstm.engine import load_engine
from textlstm.errors import ModelFileError, TextLSTMError, UsageError
from textlstm.model_file import ModelFile, read_model, write_model
from textlstm.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

LETTERS = CharTokenizer("abcdefghijklmnopqrstuv", byte_fallback=False)
CARD = {"name": "é語", "scores": {"stream": 1.25}, "list": [1, None, True]}


def write(
    path: Path, shape: str = "tied-output-projection", dtype="fp32", **changes: object
) -> tuple[ModelConfig, dict]:
    config = make_config(shape, **{"boundary": True, **changes})
    weights = random_weights(config)
    write_model(path, config, LETTERS, weights, CARD, dtype)
    return config, weights


def parts(path: Path) -> tuple[dict, dict]:
    """Metadata and tensors of a file."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header["__metadata__"], load(data)


def sign(metadata: dict, tensors: dict) -> None:
    """What a forger can do too: the documented digest, computed independently."""
    digest = hashlib.sha256()
    for key in ("config", "tokenizer", "card"):
        digest.update(f"{key}:{metadata[key]}\n".encode())
    for name in sorted(tensors):
        digest.update(f"{name}:{tensors[name].dtype.str}:{tensors[name].shape}\n".encode() + tensors[name].tobytes())
    metadata["sha256"] = digest.hexdigest()


def forge(path: Path, tensors: dict | None = None, changes: dict | None = None, **metadata: str) -> Path:
    """A file with changed content whose digest is right."""
    write(path)
    meta, old = parts(path)
    if changes is not None:
        meta["config"] = json.dumps({**json.loads(meta["config"]), **changes})
    meta |= metadata
    tensors = old if tensors is None else {n: a for n, a in {**old, **tensors}.items() if a is not None}
    sign(meta, tensors)
    path.write_bytes(save(tensors, metadata=meta))
    return path


def with_header(path: Path, change) -> None:
    """Rewrites the header as text."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = change(data[8 : 8 + size].decode()).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_comes_back_exactly(tmp_path, shape):
    config, weights = write(tmp_path / "m", shape)
    file = read_model(tmp_path / "m")
    assert file.config == config and file.card == CARD
    assert file.tokenizer.to_json() == LETTERS.to_json() and set(file.weights) == set(weights)
    for name, array in weights.items():
        assert file.weights[name].dtype == np.float32 and np.array_equal(file.weights[name], array)


def test_fp16_comes_back_rounded_to_fp16(tmp_path):
    _, weights = write(tmp_path / "m", dtype="fp16")
    file = read_model(tmp_path / "m")
    for name, array in weights.items():
        expected = array if array.ndim == 1 else array.astype(np.float16).astype(np.float32)
        assert file.weights[name].dtype == np.float32 and np.array_equal(file.weights[name], expected)


def test_int8_error_is_at_most_half_a_step(tmp_path):
    _, weights = write(tmp_path / "m", dtype="int8")
    file = read_model(tmp_path / "m")
    assert set(file.weights) == set(weights)
    for name, array in weights.items():
        if array.ndim == 1:
            assert np.array_equal(file.weights[name], array)
            continue
        step = np.abs(array).max(axis=1, keepdims=True) / 127
        error = np.abs(file.weights[name] - array)
        assert (error <= step / 2 * (1 + 1e-4)).all() and error.max() > step.min() / 4
    size = {d: (write(tmp_path / d, dtype=d), (tmp_path / d).stat().st_size)[1] for d in ("fp32", "fp16", "int8")}
    assert size["int8"] < size["fp16"] < size["fp32"]


def test_int8_of_a_row_of_zeros(tmp_path):
    config = make_config()
    weights = random_weights(config)
    weights["embedding.weight"][3] = 0
    write_model(tmp_path / "m", config, LETTERS, weights, {}, "int8")
    assert not read_model(tmp_path / "m").weights["embedding.weight"][3].any()


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), BPETokenizer(np.array([[104, 105], [256, 33]])), CharTokenizer("é語")]
)
def test_tokenizers_come_back(tmp_path, tokenizer):
    config = make_config(vocab_size=tokenizer.vocab_size + 1)
    write_model(tmp_path / "m", config, tokenizer, random_weights(config), {})
    back = read_model(tmp_path / "m").tokenizer
    assert back.fingerprint == tokenizer.fingerprint
    text = "hi! é語 \udc80"
    assert back.encode(text).tolist() == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_engines_run_what_was_read(tmp_path, engine, dtype):
    config, _ = write(tmp_path / "m", dtype=dtype)
    file = read_model(tmp_path / "m")
    ids = random_ids(2, 6)
    logits, _ = load_engine(file, engine).prefill(ids, load_engine(file, engine).zero_state(2))
    exact = ModelFile(config, LETTERS, random_weights(config), {}, "")
    expected, _ = load_engine(exact, "torch").prefill(ids, load_engine(exact, "torch").zero_state(2))
    np.testing.assert_allclose(logits, expected, atol={"fp32": 1e-5, "fp16": 1e-2, "int8": 0.15}[dtype])


def test_same_content_same_digest_and_no_other_files(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    # The bytes may differ: safetensors writes the metadata in any order.
    assert read_model(tmp_path / "a").sha256 == read_model(tmp_path / "b").sha256
    metadata, tensors = parts(tmp_path / "a")
    recorded = metadata["sha256"]
    sign(metadata, tensors)
    assert metadata["sha256"] == recorded == read_model(tmp_path / "a").sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_every_other_reader_of_safetensors_reads_it(tmp_path):
    _, weights = write(tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for name, array in weights.items():
        start, end = header[name]["data_offsets"]
        raw = np.frombuffer(data[8 + size + start : 8 + size + end], "<f4").reshape(header[name]["shape"])
        assert header[name]["dtype"] == "F32" and np.array_equal(raw, array)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_mode_follows_umask(tmp_path, umask):
    old = os.umask(umask)
    try:
        write(tmp_path / "m")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o666 & ~umask


def test_reading_imports_no_torch(tmp_path):
    write(tmp_path / "m")
    code = (
        "import sys; from textlstm.model import Model; m = Model.load(sys.argv[1]); "
        "m.generate('ab', max_tokens=3, seed=1); m.score('ab'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], check=True, timeout=60)


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fp32", "int8"])
def small(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("small") / "m"
    config = make_config(vocab_size=4, embed_size=2, hidden_size=2, num_layers=1)
    write_model(path, config, CharTokenizer("aé語", False), random_weights(config), CARD, request.param)
    return path


@settings(derandomize=True, max_examples=200, deadline=None, database=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(small, where, bit):
    data = bytearray(small.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    damaged = small.with_name("damaged")
    damaged.write_bytes(data)
    with pytest.raises(ModelFileError):
        read_model(damaged)


def test_every_flipped_bit_of_the_header_is_noticed(small):
    """Not a sample: all bits of the length, of the names and offsets, and of the padding."""
    data = small.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    damaged = small.with_name("damaged")
    for place in [*range(80), *range(size - 400, size)]:
        for bit in range(8):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            damaged.write_bytes(broken)
            with pytest.raises(ModelFileError):
                read_model(damaged)


def test_truncated_or_extended(small):
    data = small.read_bytes()
    damaged = small.with_name("damaged")
    for length in [*range(20), *range(20, len(data), 37), len(data) - 1]:
        damaged.write_bytes(data[:length])
        with pytest.raises(ModelFileError):
            read_model(damaged)
    for extra in (b"\0", b" ", b"x" * 100):
        damaged.write_bytes(data + extra)
        with pytest.raises(ModelFileError):
            read_model(damaged)


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 10**9, 101_000_000])
def test_header_too_large(tmp_path, size):
    write(tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(size.to_bytes(8, "little") + data[8:])
    with pytest.raises(ModelFileError, match="cut off"):
        read_model(tmp_path / "m")


@pytest.mark.parametrize(
    "data", [b"{}", b"hello world, this is plain text", b"\0" * 100, (2).to_bytes(8, "little") + b"{}",
             (2).to_bytes(8, "little") + b"[]", (4).to_bytes(8, "little") + b"null",
             (20).to_bytes(8, "little") + b'{"__metadata__":[1]}', (100_000).to_bytes(8, "little") + b"[" * 100_000]
)  # fmt: skip
def test_other_files(tmp_path, data):
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(ModelFileError):
        read_model(tmp_path / "m")


def test_duplicate_names_in_the_header(tmp_path):
    write(tmp_path / "m")
    with_header(tmp_path / "m", lambda h: h)
    read_model(tmp_path / "m")
    header = (tmp_path / "m").read_bytes()
    size = int.from_bytes(header[:8], "little")
    entry = json.dumps(json.loads(header[8 : 8 + size])["head.bias"])
    with_header(tmp_path / "m", lambda h: '{"head.bias":' + entry + "," + h[1:])
    with pytest.raises(ModelFileError, match="twice"):
        read_model(tmp_path / "m")


def test_duplicate_names_in_the_metadata(tmp_path):
    write(tmp_path / "m")
    with_header(tmp_path / "m", lambda h: h.replace('"format":"textlstm"', '"format":"other","format":"textlstm"'))
    with pytest.raises(ModelFileError, match="twice"):
        read_model(tmp_path / "m")


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickle_under_another_name_runs_nothing(tmp_path, protocol):
    path, marker = tmp_path / "m.safetensors", tmp_path / "marker"
    path.write_bytes(pickle.dumps(Payload(marker), protocol=protocol))
    with pytest.raises(ModelFileError):
        read_model(path)
    assert not marker.exists()


def test_torch_checkpoint_under_another_name_runs_nothing(tmp_path):
    import torch

    path, marker = tmp_path / "m.safetensors", tmp_path / "marker"
    torch.save({"emb.weight": Payload(marker)}, path)
    with pytest.raises(ModelFileError, match="textlstm import"):
        read_model(path)
    assert not marker.exists()


# --- forgery: the digest is right, the content is not ---------------------------------------------------------------


def test_forgery_itself_is_sound(tmp_path):
    assert read_model(forge(tmp_path / "m")).card == CARD


@pytest.mark.parametrize(
    "config",
    [
        {"colour": "red"},
        {"hidden_size": 13},
        {"embed_size": 9},
        {"num_layers": 3},
        {"num_layers": 1},
        {"tie_embeddings": False},
        {"hidden_size": 0},
        {"hidden_size": "12"},
        {"hidden_size": 10**12},
        {"vocab_size": True},
        {"logit_scale": float("nan")},
        {"logit_scale": 10**400},
        {"input_projection": True},
    ],
)
def test_configuration_that_does_not_fit(tmp_path, config):
    with pytest.raises(ModelFileError):
        read_model(forge(tmp_path / "m", changes=config))


@pytest.mark.parametrize("text", ["[]", "null", "3", "{", "[" * 100_000, '{"vocab_size": 1e999}'])
@pytest.mark.parametrize("key", ["config", "tokenizer"])
def test_metadata_that_is_no_object(tmp_path, key, text):
    with pytest.raises(ModelFileError):
        read_model(forge(tmp_path / "m", **{key: text}))


@pytest.mark.parametrize(
    "tensors",
    [
        {"head.bias": None},
        {"more": np.zeros(3, np.float32)},
        {"head.bias": np.zeros(24, np.float32)},
        {"head.bias": np.zeros((23, 1), np.float32)},
        {"head.bias": np.zeros(23, np.float64)},
        {"head.bias": np.zeros(23, np.int64)},
        {"head.bias": np.zeros(23, np.int8)},
        {"head.bias": np.zeros((), np.int8), "head.bias.scale": np.ones((), np.float32)},
        {"head.bias": np.zeros(23, np.int8), "head.bias.scale": np.ones(23, np.float32)},
        {"embedding.weight": np.zeros((23, 8), np.int8), "embedding.weight.scale": np.ones(8, np.float32)},
        {"embedding.weight.scale": np.ones(23, np.float32)},
    ],
)
def test_tensors_that_do_not_fit(tmp_path, tensors):
    with pytest.raises(ModelFileError):
        read_model(forge(tmp_path / "m", tensors=tensors))


def test_tokenizer_and_network_that_do_not_belong_together(tmp_path):
    for tokenizer in (
        ByteTokenizer(),
        CharTokenizer("abc", False),
        CharTokenizer("abcdefghijklmnopqrstuvwxyz", False),
    ):
        path = forge(tmp_path / "m", tokenizer=json.dumps(tokenizer.to_json()))
        with pytest.raises(ModelFileError, match="belong together"):
            read_model(path)


@pytest.mark.parametrize("version", ["2", "0", "", "01"])
def test_other_format_version(tmp_path, version):
    with pytest.raises(ModelFileError, match="format version"):
        read_model(forge(tmp_path / "m", format_version=version))


def test_wrong_digest(tmp_path):
    write(tmp_path / "m")
    metadata, tensors = parts(tmp_path / "m")
    tensors["head.bias"] = tensors["head.bias"] + 1
    (tmp_path / "m").write_bytes(save(tensors, metadata=metadata))
    with pytest.raises(ModelFileError, match="SHA-256"):
        read_model(tmp_path / "m")


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_written(tmp_path, value):
    write(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    config = make_config()
    weights = random_weights(config)
    weights["lstm.1.bias"][5] = value
    with pytest.raises(ModelFileError, match=r"lstm\.1\.bias"):
        write_model(tmp_path / "m", config, LETTERS, weights, {})
    assert (tmp_path / "m").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_weights_of_another_shape_are_not_written(tmp_path):
    config = make_config()
    weights = random_weights(config)
    del weights["head.bias"]
    weights["more"] = np.zeros(2, np.float32)
    weights["lstm.0.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ModelFileError) as caught:
        write_model(tmp_path / "m", config, LETTERS, weights, {})
    for part in ("head.bias is missing", "more is unknown", "lstm.0.bias has shape (3,) instead of (48,)"):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_fp16_do_not_become_infinite(tmp_path):
    config = make_config()
    weights = random_weights(config)
    weights["embedding.weight"][0, 0] = 1e6
    with pytest.raises(TextLSTMError):
        write_model(tmp_path / "m", config, LETTERS, weights, {}, "fp16")
    assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="no model file"):
        read_model(tmp_path / "absent")


def test_folder(tmp_path):
    with pytest.raises(ModelFileError):
        read_model(tmp_path)
