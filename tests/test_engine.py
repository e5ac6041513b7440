"""The engines in single precision against each other and against the equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_network import SHAPES, log_softmax, make_config, numpy_network, random_ids, random_weights

from textlstm.config import ModelConfig, SamplingConfig
from textlstm.engine import Engine, load_engine
from textlstm.engine.torch import TorchEngine
from textlstm.errors import UsageError
from textlstm.generation import Limits
from textlstm.model import Model
from textlstm.model_file import ModelFile, read_model, write_model
from textlstm.state import State
from textlstm.tokenizer import ByteTokenizer, CharTokenizer

#: `static` is the torch engine's step in fixed memory, as on a GPU but not captured; `cuda` is that on a GPU.
NAMES = ("onnx", "torch", "static", pytest.param("cuda", marks=pytest.mark.gpu))


def make_file(config: ModelConfig, seed: int = 0, scale: float = 1.0) -> ModelFile:
    weights = {n: (scale * a).astype(np.float32) for n, a in random_weights(config, seed).items()}
    return ModelFile(config, CharTokenizer("abcdefghijklmnopqrstuv"), weights, {}, "")


def load(file: ModelFile, name: str, threads: int | None = None) -> Engine:
    if name not in ("static", "cuda"):
        return load_engine(file, name, threads)
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return TorchEngine(file, threads, {"static": "cpu"}.get(name, name), static=True)


def random_state(config: ModelConfig, rows: int) -> State:
    rng = np.random.default_rng(4)
    shape = (config.num_layers, rows, config.hidden_size)
    return State(*(rng.normal(0, 0.5, shape).astype(np.float32) for _ in "hc"))


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("shape", SHAPES)
def test_engines_agree_with_each_other_and_the_equations(shape, name):
    file = make_file(make_config(shape))
    onnx, other = load(file, "onnx", 1), load(file, name, 1)
    config = onnx.config
    for B in (1, 2, 7):
        for T in (1, 5, 33):
            ids, state = random_ids(B, T), random_state(config, B)
            everywhere = np.arange(T)
            ours, after = onnx.run(ids, state, everywhere)
            theirs, after_other = other.run(ids, state, everywhere)
            assert ours.shape == theirs.shape == (B, T, 23) and ours.dtype == theirs.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
            np.testing.assert_allclose(after.h_LBH, after_other.h_LBH, atol=1e-5, rtol=0)
            np.testing.assert_allclose(after.c_LBH, after_other.c_LBH, atol=1e-5, rtol=0)
            expected, h, c = numpy_network(config, random_weights(config), ids, state.h_LBH, state.c_LBH)
            np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
            np.testing.assert_allclose(after.h_LBH, h, atol=1e-5, rtol=0)
            np.testing.assert_allclose(after.c_LBH, c, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_positions_pick_logits(name):
    engine = load(make_file(make_config()), name)
    ids, state = random_ids(2, 9), engine.zero_state(2)
    every, _ = engine.run(ids, state, np.arange(9))
    some, after = engine.run(ids, state, np.array([7, 0, 3]))
    np.testing.assert_allclose(some, every[:, [7, 0, 3]], atol=1e-6)
    np.testing.assert_allclose(after.h_LBH, engine.run(ids, state, np.array([8]))[1].h_LBH, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_equal_run(name, shape):
    engine = load(make_file(make_config(shape)), name)
    ids, state = random_ids(3, 12), engine.zero_state(3)
    whole, end = engine.run(ids, state, np.arange(12))
    for t in range(12):
        logits, state = engine.step(ids[:, t], state)
        np.testing.assert_allclose(logits, whole[:, t], atol=3e-6, rtol=0)
    np.testing.assert_allclose(state.c_LBH, end.c_LBH, atol=3e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1, 511, 512, 513, 1300])
def test_prefill_of_any_length_equals_one_pass(name, length):
    engine = load(make_file(make_config()), name)
    ids = random_ids(2, length)
    logits, state = engine.prefill(ids, engine.zero_state(2))
    whole, end = engine.run(ids, engine.zero_state(2), np.array([length - 1]))
    np.testing.assert_allclose(logits, whole[:, 0], atol=1e-6, rtol=0)
    np.testing.assert_allclose(state.h_LBH, end.h_LBH, atol=1e-6, rtol=0)
    expected = numpy_network(engine.config, random_weights(engine.config), ids)[0][:, -1]
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nll_is_minus_log_softmax(name, shape):
    engine = load(make_file(make_config(shape)), name)
    x, y = random_ids(3, 20), random_ids(3, 20, seed=8)
    logits, h, _ = numpy_network(engine.config, random_weights(engine.config), x)
    nats, state = engine.nll(x, y, engine.zero_state(3))
    np.testing.assert_allclose(nats, -np.take_along_axis(log_softmax(logits), y[:, :, None], 2)[:, :, 0], atol=1e-5)
    np.testing.assert_allclose(state.h_LBH, h, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nll_survives_enormous_logits(name):
    file = make_file(make_config("untied", logit_scale=1000.0))
    engine = load(file, name)
    x, y = random_ids(2, 6), random_ids(2, 6, seed=8)
    logits, _, _ = numpy_network(engine.config, file.weights, x)
    expected = -np.take_along_axis(log_softmax(logits), y[:, :, None], 2)[:, :, 0]
    np.testing.assert_allclose(engine.nll(x, y, engine.zero_state(2))[0], expected, rtol=1e-4, atol=5e-2)


@pytest.mark.parametrize(
    ("name", "logit_atol", "state_atol"),
    [("onnx", 0, 0), ("torch", 3e-6, 1e-6), pytest.param("cuda", 3e-6, 1e-6, marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_row_equals_row_alone(name, logit_atol, state_atol, shape):
    """ONNX Runtime's rows are equal bit for bit, torch's (another kernel for one row) up to rounding."""
    engine = load(make_file(make_config(shape)), name, threads=1)
    for T in (1, 33):
        ids, state = random_ids(7, T), random_state(engine.config, 7)
        for positions in (np.arange(T), np.array([T - 1])):
            together, end = engine.run(ids, state, positions)
            for row in range(7):
                alone, after = engine.run(ids[row : row + 1], state.select([row]), positions)
                np.testing.assert_allclose(alone[0], together[row], atol=logit_atol, rtol=0)
                np.testing.assert_allclose(after.h_LBH[:, 0], end.h_LBH[:, row], atol=state_atol, rtol=0)
                np.testing.assert_allclose(after.c_LBH[:, 0], end.c_LBH[:, row], atol=state_atol, rtol=0)


@pytest.mark.parametrize("name", [*NAMES, "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_join_and_leave_between_steps(name, shape):
    """Each row's numbers are those of its text alone, whoever stands beside it."""
    engine = load(make_file(make_config(shape)), name, threads=1)
    ids_BT = random_ids(9, 8)
    alone = [engine.run(row_T[None], engine.zero_state(1), np.arange(8)) for row_T in ids_BT]
    state, here, results = engine.zero_state(0), [], []
    for rows in ([0], [0, 1, 2], [2, 0], [2, 0, 3, 4, 5, 6, 7, 8], [8, 2, 5, 4, 7]):
        known = State.stack([state, engine.zero_state(9)])
        state = known.select([here.index(row) if row in here else len(here) for row in rows])
        times = [sum(row in before for before, _, _ in results) for row in rows]
        here = rows
        logits_BV, state = engine.step(ids_BT[rows, times], state)
        results.append((rows, times, logits_BV))
    for rows, times, logits_BV in results:  # at the end: a step must not write over what an earlier one gave
        for row, time, logits_V in zip(rows, times, logits_BV, strict=True):
            np.testing.assert_allclose(logits_V, alone[row][0][0, time], atol=3e-6, rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_onnx_batch_row_is_exact_in_a_larger_network(threads):
    config = make_config("tied-output-projection", embed_size=60, hidden_size=100, vocab_size=257)
    engine = load(make_file(config, scale=0.3), "onnx", threads)
    ids, state = random_ids(16, 9, 257), random_state(config, 16)
    together, end = engine.run(ids, state, np.arange(9))
    for row in range(16):
        alone, after = engine.run(ids[row : row + 1], state.select([row]), np.arange(9))
        assert np.array_equal(alone[0], together[row]) and np.array_equal(after.c_LBH[:, 0], end.c_LBH[:, row])


@pytest.mark.parametrize("other", NAMES[1:])
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_text_of_300_tokens_is_the_same_in_two_engines(shape, other):
    config = make_config(shape)
    if not config.boundary:
        config = config.replace(vocab_size=22)

    weights = {n: (1.5 * a).astype(np.float32) for n, a in random_weights(config, 11).items()}
    file = ModelFile(config, CharTokenizer("abcdefghijklmnopqrstuv", byte_fallback=False), weights, {}, "")
    texts = []
    for name in ("onnx", other):
        model = Model(file)
        model.engine = load(file, name)
        [writer] = model.writers(1, SamplingConfig(temperature=0), Limits(max_tokens=300), 0)
        texts.append("".join(text for _, text in model.write("abc", [writer])))
        assert writer.tokens == 300
    assert len(texts[0]) == 300 and texts[0] == texts[1]


@pytest.mark.parametrize("name", NAMES)
def test_begin(name):
    engine = load(make_file(make_config()), name)
    logits, state = engine.begin(3)
    expected, h, c = numpy_network(engine.config, random_weights(engine.config), np.full((3, 1), 22))
    np.testing.assert_allclose(logits, expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(state.h_LBH, h, atol=1e-5)
    np.testing.assert_allclose(state.c_LBH, c, atol=1e-5)
    engine = load(make_file(make_config(boundary=False)), name)
    logits, state = engine.begin(3)
    assert logits.shape == (3, 23) and np.ptp(logits) == 0
    assert not state.h_LBH.any() and not state.c_LBH.any() and state.rows == 3


@pytest.mark.parametrize("name", NAMES)
def test_engine_of_a_file_that_was_read(tmp_path, name):
    config = make_config(vocab_size=257)
    write_model(tmp_path / "m.safetensors", config, ByteTokenizer(), random_weights(config), {})
    engine = load(read_model(tmp_path / "m.safetensors"), name)
    ids = random_ids(2, 5, 257)
    logits, _ = engine.prefill(ids, engine.zero_state(2))
    np.testing.assert_allclose(logits, numpy_network(config, random_weights(config), ids)[0][:, -1], atol=1e-5)


def test_unknown_engine():
    with pytest.raises(UsageError, match=r"tensorflow.*onnx, torch"):
        load(make_file(make_config()), "tensorflow")
