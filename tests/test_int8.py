"""The int8 engine: its arithmetic against the equations, and the kernel against the arithmetic, bit for bit."""

from __future__ import annotations

import ctypes
import hashlib
import platform
from pathlib import Path

import numpy as np
import pytest
from conftest import make_text
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import make_file, random_state
from test_network import SHAPES, make_config, numpy_network, random_ids, random_weights

from textlstm import kernels
from textlstm.config import ModelConfig
from textlstm.engine import int8 as int8_module
from textlstm.engine import load_engine, writing_engine
from textlstm.engine.int8 import Int8Engine, hyperbolic, round_rows, sigmoid
from textlstm.kernels import exponential
from textlstm.model import Model
from textlstm.model_file import quantise
from textlstm.state import State

KINDS = kernels.kinds()
needs_kernel = pytest.mark.skipif(not KINDS, reason="the kernel does not run on this machine")
LINE = np.linspace(-95, 95, 200_001, dtype=np.float32)


def equal(one: tuple[np.ndarray, State], other: tuple[np.ndarray, State]) -> bool:
    """Whether logits and states agree in every bit."""
    pairs = [(one[0], other[0]), (one[1].h_LBH, other[1].h_LBH), (one[1].c_LBH, other[1].c_LBH)]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


# --- the arithmetic -------------------------------------------------------------------------------------------------


def test_exponential_is_exact_to_two_parts_in_ten_million():
    inside = LINE[np.abs(LINE) < 87]
    exact = np.exp(inside.astype(np.float64))
    assert np.abs(exponential(inside) / exact - 1).max() < 2e-7
    assert np.isfinite(exponential(LINE)).all()


def test_gates_are_near_the_true_functions():
    x = LINE.astype(np.float64)
    assert np.abs(sigmoid(LINE) - 1 / (1 + np.exp(-x))).max() < 2e-7
    assert np.abs(hyperbolic(LINE) - np.tanh(x)).max() < 3e-7
    assert sigmoid(LINE).min() >= 0 and sigmoid(LINE).max() <= 1 and np.abs(hyperbolic(LINE)).max() <= 1


def test_rounded_rows_by_hand():
    x = np.array([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [-3e-30, 1e-30, 0.0, 3e-30]], np.float32)
    q, scale = round_rows(x)
    assert q.tolist() == [[64, -127, 32, 0], [0, 0, 0, 0], [-127, 42, 0, 127]]
    np.testing.assert_allclose(scale, [2 / 127, 0, 3e-30 / 127], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_equals_the_equations_on_rounded_numbers(shape):
    """The equations in double precision, with weights and inputs rounded as the module says."""
    config = make_config(shape)
    weights = {n: a.astype(np.float32) for n, a in random_weights(config).items()}

    def rounded(x_NK: np.ndarray) -> np.ndarray:
        a_N1 = np.abs(x_NK).max(axis=1, keepdims=True) / 127
        return np.where(a_N1 > 0, np.rint(x_NK / np.where(a_N1 > 0, a_N1, 1)) * a_N1, 0)

    def matrix(name: str) -> np.ndarray:
        return rounded(weights[name].astype(np.float64))

    def squash(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    ids, state = random_ids(3, 9), random_state(config, 3)
    x_VI = weights["embedding.weight"].astype(np.float64)
    if config.input_projection:
        x_VI = x_VI @ weights["input.weight"].T.astype(np.float64) + weights["input.bias"]
    x_TBI = rounded(x_VI)[ids.T]
    for n in range(config.num_layers):
        h, c, outputs = state.h_LBH[n].astype(np.float64), state.c_LBH[n].astype(np.float64), []
        for x in x_TBI:
            z = x @ matrix(f"lstm.{n}.weight_ih").T + rounded(h) @ matrix(f"lstm.{n}.weight_hh").T
            i, f, g, o = np.split(z + weights[f"lstm.{n}.bias"], 4, axis=1)
            c = squash(f) * c + squash(i) * np.tanh(g)
            h = squash(o) * np.tanh(c)
            outputs.append(h)
        x_TBI = np.stack([rounded(h) for h in outputs])
    y = x_TBI.reshape(-1, config.hidden_size)
    if config.has_output_projection:
        y = rounded(y @ matrix("projection.weight").T)
    head = matrix("embedding.weight" if config.tie_embeddings else "head.weight")
    expected = (y @ head.T + weights["head.bias"]) * config.logit_scale
    logits, after = Int8Engine(make_file(config), "numpy").run(ids, state, np.arange(9))
    expected = expected.reshape(9, 3, -1).transpose(1, 0, 2)
    # Where single precision falls on the other side of a half, a number is rounded elsewhere: one step of 1/127.
    assert np.median(np.abs(logits - expected)) < 1e-5
    np.testing.assert_allclose(logits, expected, atol=0.02, rtol=0)
    np.testing.assert_allclose(after.c_LBH[-1], c, atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_near_single_precision(shape):
    config = make_config(shape)
    ids, state = random_ids(2, 20), random_state(config, 2)
    logits, _ = Int8Engine(make_file(config), "numpy").run(ids, state, np.arange(20))
    exact, _, _ = numpy_network(config, random_weights(config), ids, state.h_LBH, state.c_LBH)
    spread = exact.std()
    assert np.abs(logits - exact).mean() < 0.02 * spread


def test_matrix_rows_come_back_within_half_a_step():
    array = np.random.default_rng(0).normal(0, 1, (50, 30)).astype(np.float32)
    whole, scale = quantise(array)
    assert whole.min() >= -127 and np.abs(whole).max(axis=1).tolist() == [127] * 50
    assert (np.abs(whole * scale[:, None] - array) <= 0.5001 * scale[:, None]).all()


# --- the kernel -----------------------------------------------------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_reference(kind, shape):
    file = make_file(make_config(shape))
    reference, kernel = Int8Engine(file, "numpy"), Int8Engine(file, kind)
    assert (reference.kind, kernel.kind) == ("numpy", kind)
    for B, T in ((1, 1), (1, 17), (2, 5), (13, 3), (67, 1)):
        ids, state = random_ids(B, T), random_state(file.config, B)
        places = np.arange(T)[::-2]
        assert equal(reference.run(ids, state, places), kernel.run(ids, state, places)), (B, T)


@needs_kernel
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_kernel_equals_reference_for_any_size(data):
    V, E, H = data.draw(st.integers(2, 150)), data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    config = ModelConfig(
        vocab_size=V, embed_size=E, hidden_size=H, num_layers=data.draw(st.integers(1, 3)),
        tie_embeddings=data.draw(st.booleans()), input_projection=data.draw(st.booleans()),
        logit_scale=data.draw(st.sampled_from([1.0, 0.1])),
    )  # fmt: skip
    file = make_file(config, data.draw(st.integers(0, 9)), data.draw(st.sampled_from([0.01, 1.0, 30.0])))
    B, T = data.draw(st.integers(1, 15)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    ids, state = rng.integers(0, V, (B, T)), random_state(config, B)
    expected = Int8Engine(file, "numpy").run(ids, state, np.arange(T))
    for kind in KINDS:
        assert equal(expected, Int8Engine(file, kind).run(ids, state, np.arange(T)))


@needs_kernel
@pytest.mark.parametrize("table", [True, False])
def test_kept_products_change_nothing(monkeypatch, table):
    file = make_file(make_config())
    if not table:
        monkeypatch.setattr(int8_module, "_TABLE", 0)
    engine = Int8Engine(file)
    ids, state = random_ids(3, 30), random_state(file.config, 3)
    expected = Int8Engine(file, "numpy").run(ids, state, np.arange(30))
    assert equal(expected, engine.run(ids, state, np.arange(30)))
    assert equal(expected, engine.run(ids, state, np.arange(30)))  # the second time all tokens are known


@pytest.mark.parametrize("kind", [*KINDS, "numpy"])
def test_row_alone_equals_row_in_company_and_pieces_the_whole(kind):
    file = make_file(make_config("tied-output-projection"))
    engine = Int8Engine(file, kind)
    ids, state = random_ids(9, 14), random_state(file.config, 9)
    logits, after = engine.run(ids, state, np.arange(14))
    for b in range(9):
        alone = engine.run(ids[b : b + 1], state.select([b]), np.arange(14))
        assert equal((logits[b : b + 1], after.select([b])), alone)
    pieces, now = [], state
    for start, end in ((0, 1), (1, 6), (6, 14)):
        part, now = engine.run(ids[:, start:end], now, np.arange(end - start))
        pieces.append(part)
    assert equal((np.concatenate(pieces, axis=1), now), (logits, after))


@needs_kernel
def test_large_batches_and_long_texts_are_cut(monkeypatch):
    monkeypatch.setattr(int8_module, "_ROWS", 4)
    monkeypatch.setattr(int8_module, "_TOKENS", 12)
    file = make_file(make_config())
    ids, state, places = random_ids(10, 8), random_state(file.config, 10), np.array([7, 0, 3, 3])
    expected = Int8Engine(file, "numpy").run(ids, state, places)
    assert equal(expected, Int8Engine(file).run(ids, state, places))


@needs_kernel
def test_strided_inputs_and_shrinking_batches():
    file = make_file(make_config())
    engine, reference = Int8Engine(file), Int8Engine(file, "numpy")
    state = random_state(file.config, 6)
    for rows in ([5, 0, 3, 2], [1, 2], [0]):
        state = state.select(rows)
        ids = np.asfortranarray(random_ids(len(rows), 5))[:, ::-1]
        wide = State(state.h_LBH[:, :, ::-1], state.c_LBH[:, :, ::-1])
        expected = reference.run(ids, wide, np.array([4]))
        assert equal(expected, engine.run(ids, wide, np.array([4])))


# --- where it runs --------------------------------------------------------------------------------------------------


def test_library_was_built_from_the_source():
    folder = Path(kernels.__file__).parent
    library = (folder / "linux-x86_64.so").read_bytes()
    sources = b"".join(
        (folder / name).read_bytes() for name in ("vector.h", "int8.c", "sampling.c", "softmax.c", "lstm.c")
    )
    assert hashlib.sha256(sources).hexdigest().encode() in library


@needs_kernel
def test_library_needs_no_other_library():
    library = ctypes.CDLL(str(Path(kernels.__file__).with_name("linux-x86_64.so")), mode=ctypes.RTLD_LOCAL)
    assert all(hasattr(library, f"run_{kind}") for kind in kernels.KINDS)
    assert b"libc.so" not in Path(library._name).read_bytes()


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "aarch64")])
def test_elsewhere_the_reference_runs_and_onnx_writes(monkeypatch, system, machine):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    kernels.kinds.cache_clear()
    kernels.load.cache_clear()
    try:
        assert kernels.kinds() == ()
        assert writing_engine() == "onnx"
        assert Int8Engine(make_file(make_config())).kind == "numpy"
    finally:
        kernels.kinds.cache_clear()
        kernels.load.cache_clear()


@needs_kernel
def test_int8_writes_where_it_runs():
    assert writing_engine() == "int8"
    assert isinstance(load_engine(make_file(make_config()), writing_engine()), Int8Engine)
    assert kernels.load("no such instruction set") is None


def test_computing_in_int8_costs_less_than_three_thousandths_of_a_nat():
    """The rounded weights of the model that ships, in both engines: on text of its kind, and of another."""
    exact, rounded = (Model.load("shakespeare", engine) for engine in ("onnx", "int8"))
    for text in (rounded.generate("", max_chars=2_000, seed=0), make_text(2_000)):
        costs = [model.score(text).nats_per_char for model in (exact, rounded)]
        assert abs(costs[0] - costs[1]) <= 0.003


@needs_kernel
def test_what_does_not_fit_is_refused_and_not_read():
    """Compiled code would read memory that is not its own."""
    file = make_file(make_config())
    engine, ids, at = Int8Engine(file), random_ids(2, 5), np.array([4])
    state = engine.zero_state(2)
    for bad in (-1, file.config.vocab_size, 2**62):
        wrong = ids.copy()
        wrong[1, 3] = bad
        with pytest.raises(IndexError, match="between 0 and"):
            engine.run(wrong, state, at)
    for place in (-1, 5):
        with pytest.raises(IndexError, match="positions"):
            engine.run(ids, state, np.array([place]))
    with pytest.raises(ValueError, match="state of shape"):
        engine.run(ids, engine.zero_state(1), at)
    assert engine.run(ids, state, at)[0].shape == (2, 1, file.config.vocab_size)
