"""The network against its equations, written out once more in numpy (float64), and against nn.LSTM."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from textlstm.config import ModelConfig
from textlstm.metrics import frequencies
from textlstm.network import RecurrentLM, fused_lstm, reference_lstm
from textlstm.state import State

NO_DROPOUT = dict.fromkeys(("input_dropout", "layer_dropout", "output_dropout", "weight_dropout"), 0.0)
SHAPES = {
    "tied": dict(embed_size=12, hidden_size=12),
    "tied-output-projection": dict(embed_size=8, hidden_size=12),
    "tied-both-projections": dict(embed_size=8, hidden_size=12, input_projection=True, num_layers=1),
    "untied": dict(embed_size=8, hidden_size=12, tie_embeddings=False),
    "untied-input-projection-scaled": dict(
        embed_size=8, hidden_size=12, tie_embeddings=False, input_projection=True, logit_scale=0.1, boundary=False
    ),
    "tied-scaled-deep": dict(embed_size=12, hidden_size=12, num_layers=3, logit_scale=2.5),
    "tied-input-projection": dict(embed_size=12, hidden_size=12, input_projection=True),
}


def make_config(shape: str = "tied", **changes: object) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 23, **NO_DROPOUT, **SHAPES[shape], **changes})


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of every tensor, biases included, large enough that each of them matters."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.5, shape).astype(np.float32) for n, shape in config.tensor_shapes().items()}


def make_network(config: ModelConfig, seed: int = 0) -> RecurrentLM:
    network = RecurrentLM(config)
    network.load_state_dict({n: torch.from_numpy(a) for n, a in random_weights(config, seed).items()})
    return network


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def numpy_network(config: ModelConfig, weights: dict, ids_BT: np.ndarray, h=None, c=None):
    """Logits (B, T, V), and h and c (L, B, H), one token at a time, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    B, H, L = len(ids_BT), config.hidden_size, config.num_layers
    h = [np.zeros((B, H))] * L if h is None else list(h)
    c = [np.zeros((B, H))] * L if c is None else list(c)
    logits = []
    for ids_B in ids_BT.T:
        x = w["embedding.weight"][ids_B]
        if config.input_projection:
            x = x @ w["input.weight"].T + w["input.bias"]
        for n in range(L):
            a = x @ w[f"lstm.{n}.weight_ih"].T + h[n] @ w[f"lstm.{n}.weight_hh"].T + w[f"lstm.{n}.bias"]
            i, f, g, o = a[:, :H], a[:, H : 2 * H], a[:, 2 * H : 3 * H], a[:, 3 * H :]
            c[n] = sigmoid(f) * c[n] + sigmoid(i) * np.tanh(g)
            h[n] = x = sigmoid(o) * np.tanh(c[n])
        if config.tie_embeddings:
            x = x @ w["projection.weight"].T if config.embed_size != H else x
            matrix = w["embedding.weight"]
        else:
            matrix = w["head.weight"]
        logits.append((x @ matrix.T + w["head.bias"]) * config.logit_scale)
    return np.stack(logits, axis=1), np.stack(h), np.stack(c)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def random_ids(rows: int, length: int, vocab_size: int = 23, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, (rows, length))


def random_state(config: ModelConfig, rows: int, seed: int = 2) -> State:
    rng = np.random.default_rng(seed)
    shape = (config.num_layers, rows, config.hidden_size)
    return State(*(torch.from_numpy(rng.normal(0, 0.5, shape).astype(np.float32)) for _ in "hc"))


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- one layer ------------------------------------------------------------------------------------------------------


def layer_arguments() -> list[torch.Tensor]:
    T, B, I, H = 9, 4, 10, 14
    shapes = [(T, B, I), (B, H), (B, H), (4 * H, I), (4 * H, H), (4 * H,)]
    generator = seeded()
    return [(0.5 * torch.randn(s, generator=generator)).requires_grad_() for s in shapes]


def by_module(x, h, c, weight_ih, weight_hh, bias):
    """nn.LSTM with these weights and no second bias."""
    module = torch.nn.LSTM(x.shape[2], h.shape[1])
    parameters = {
        "weight_ih_l0": weight_ih,
        "weight_hh_l0": weight_hh,
        "bias_ih_l0": bias,
        "bias_hh_l0": torch.zeros_like(bias),
    }
    outputs, (h, c) = torch.func.functional_call(module, parameters, (x, (h[None], c[None])))
    return outputs, h[0], c[0]


@pytest.mark.parametrize("recurrence", [fused_lstm, reference_lstm])
def test_layer_equals_nn_lstm_forward_and_gradients(recurrence):
    results = []
    for function in (recurrence, by_module):
        arguments = layer_arguments()
        outputs = function(*arguments)
        weights = [torch.randn(o.shape, generator=seeded(n)) for n, o in enumerate(outputs)]
        sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)).backward()
        results.append(([o.detach() for o in outputs], [a.grad for a in arguments]))
    (outputs, grads), (expected_outputs, expected_grads) = results
    for ours, theirs in zip(outputs, expected_outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


# --- the whole network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recurrence", [fused_lstm, reference_lstm])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_state_follow_the_equations(shape, recurrence):
    config = make_config(shape)
    ids, state = random_ids(3, 11), random_state(config, 3)
    expected, h, c = numpy_network(
        config, random_weights(config), ids, state.h_LBH.double().numpy(), state.c_LBH.double().numpy()
    )
    with torch.no_grad():
        logits, after = make_network(config)(torch.from_numpy(ids), state, recurrence=recurrence)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(after.h_LBH.numpy(), h, atol=1e-5)
    np.testing.assert_allclose(after.c_LBH.numpy(), c, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_configuration(shape):
    config = make_config(shape)
    network = RecurrentLM(config, seeded())
    assert {n: tuple(p.shape) for n, p in network.named_parameters()} == config.tensor_shapes()
    assert sum(p.numel() for p in network.parameters()) == config.num_params


@pytest.mark.parametrize("cuts", [[1], [5, 6], [3, 9, 17], list(range(1, 20))])
@pytest.mark.parametrize("recurrence", [fused_lstm, reference_lstm])
@torch.no_grad()
def test_chunks_with_carried_state_equal_the_whole(cuts, recurrence):
    config = make_config("tied-output-projection")
    network, ids = make_network(config), torch.from_numpy(random_ids(3, 20))
    whole, end = network(ids, network.zero_state(3), recurrence=recurrence)
    state, parts = network.zero_state(3), []
    for start, stop in zip([0, *cuts], [*cuts, 20], strict=True):
        logits, state = network(ids[:, start:stop], state, recurrence=recurrence)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-6, rtol=0)
    torch.testing.assert_close(state.h_LBH, end.h_LBH, atol=1e-6, rtol=0)
    torch.testing.assert_close(state.c_LBH, end.c_LBH, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_batch_row_equals_row_alone(shape):
    config = make_config(shape)
    network, ids, state = make_network(config), torch.from_numpy(random_ids(5, 13)), random_state(config, 5)
    together, end = network(ids, state)
    for row in range(5):
        alone, alone_end = network(ids[row : row + 1], state.select([row]))
        torch.testing.assert_close(alone[0], together[row], atol=2e-6, rtol=0)
        torch.testing.assert_close(alone_end.h_LBH[:, 0], end.h_LBH[:, row], atol=1e-6, rtol=0)


# --- dropout --------------------------------------------------------------------------------------------------------

DROPOUT = dict(embed_dropout=0.3, input_dropout=0.2, layer_dropout=0.4, output_dropout=0.25, weight_dropout=0.35)


def dropout_mask(p: float, shape: tuple[int, ...], generator: torch.Generator) -> np.ndarray:
    """The mask from its definition: each 64-bit integer gives four signed 16-bit numbers, the lowest bits first."""
    count = math.prod(shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
    parts = [[(word >> shift) % 65536 for shift in (0, 16, 32, 48)] for word in words.tolist()]
    signed = (np.array(parts).ravel()[:count] + 32768) % 65536 - 32768
    return (signed.reshape(shape) + 32768 >= round(p * 65536)) / (1 - p)


@torch.no_grad()
def test_equal_generators_give_equal_dropout_in_both_recurrences():
    config = make_config("untied-input-projection-scaled", **DROPOUT)
    network, ids = make_network(config), torch.from_numpy(random_ids(4, 15))
    state = random_state(config, 4)
    first, _ = network(ids, state, seeded(), fused_lstm)
    again, _ = network(ids, state, seeded(), fused_lstm)
    by_steps, _ = network(ids, state, seeded(), reference_lstm)
    other, _ = network(ids, state, seeded(6), fused_lstm)
    assert torch.equal(first, again)
    torch.testing.assert_close(by_steps, first, atol=2e-6, rtol=0)
    assert (other - first).abs().max() > 0.01


@pytest.mark.parametrize("shape", ["tied", "untied-input-projection-scaled", "tied-scaled-deep"])
@torch.no_grad()
def test_dropout_reconstructed_from_the_same_generator(shape):
    """The masks are drawn in the order of the computation; the rest follows from the equations."""
    config = make_config(shape, **DROPOUT)
    network, ids, state = make_network(config), random_ids(4, 15), random_state(config, 4)
    generator = seeded()

    def mask(p, *size):
        return dropout_mask(p, size, generator)

    w = {name: array.astype(np.float64) for name, array in random_weights(config).items()}
    H = config.hidden_size
    x_TB_ = (w["embedding.weight"] * mask(0.3, 23, 1))[ids.T]
    if config.input_projection:
        x_TB_ = x_TB_ @ w["input.weight"].T + w["input.bias"]
    x_TB_ = x_TB_ * mask(0.2, 1, 4, x_TB_.shape[2])
    for n in range(config.num_layers):
        if n:
            x_TB_ = x_TB_ * mask(0.4, 1, 4, H)
        recurrent = w[f"lstm.{n}.weight_hh"] * mask(0.35, 4 * H, H)
        h, c, outputs = state.h_LBH[n].double().numpy(), state.c_LBH[n].double().numpy(), []
        for x in x_TB_:
            i, f, g, o = np.split(x @ w[f"lstm.{n}.weight_ih"].T + h @ recurrent.T + w[f"lstm.{n}.bias"], 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            outputs.append(h)
        x_TB_ = np.stack(outputs)
    x_TB_ = x_TB_ * mask(0.25, 1, 4, H)
    matrix = w["embedding.weight"] if config.tie_embeddings else w["head.weight"]
    expected = (x_TB_ @ matrix.T + w["head.bias"]) * config.logit_scale
    logits, _ = network(torch.from_numpy(ids), state, seeded())
    np.testing.assert_allclose(logits.numpy(), expected.transpose(1, 0, 2), atol=1e-5)


def intercept(config: ModelConfig, ids: np.ndarray, generator: torch.Generator | None):
    """What each layer is given: its inputs and its recurrent weights; and the features."""
    given = []

    def recurrence(x, h, c, weight_ih, weight_hh, bias):
        given.append((x.detach().clone(), weight_hh.detach().clone()))
        return fused_lstm(x, h, c, weight_ih, weight_hh, bias)

    network = make_network(config)
    with torch.no_grad():
        features = network.features(
            torch.from_numpy(ids), network.zero_state(len(ids)), generator, recurrence=recurrence
        )
    return network, given, features


def test_weight_dropout_drops_single_recurrent_weights():
    config = make_config(embed_size=32, hidden_size=32, weight_dropout=0.35)
    network, given, features = intercept(config, random_ids(2, 5), seeded())
    for layer, (_, dropped) in zip(network.lstm, given, strict=True):
        kept = dropped != 0
        torch.testing.assert_close(dropped[kept], (layer.weight_hh / 0.65)[kept].detach())
        assert abs(1 - kept.double().mean().item() - 0.35) < 0.03  # 4,096 draws: std 0.0075
        assert kept.sum(1).min() > 0 and kept.sum(1).max() < 32
    assert torch.equal(features.raw_TBH, features.dropped_TBH)


def test_input_and_layer_and_output_dropout_are_constant_over_time():
    config = make_config(embed_size=32, hidden_size=32, input_dropout=0.3, layer_dropout=0.4, output_dropout=0.5)
    ids = random_ids(20, 8)
    network, given, features = intercept(config, ids, seeded())
    clean = network.embedding.weight.detach()[torch.from_numpy(ids).T]
    pairs = [(given[0][0], clean, 0.3), (features.dropped_TBH, features.raw_TBH, 0.5)]
    for dropped, whole, p in pairs:
        kept = dropped != 0
        assert torch.equal(kept, kept[:1].expand_as(kept))
        torch.testing.assert_close(dropped[kept], (whole / (1 - p))[kept])
        assert abs(1 - kept[0].double().mean().item() - p) < 0.08  # 640 draws: std below 0.02
        assert not torch.equal(kept[0, 0], kept[0, 1])
    kept = given[1][0] != 0
    assert torch.equal(kept, kept[:1].expand_as(kept))
    assert abs(1 - kept[0].double().mean().item() - 0.4) < 0.08


def test_embedding_dropout_drops_token_types():
    config = make_config(vocab_size=400, embed_dropout=0.25)
    ids = np.tile(np.arange(400), (2, 2))
    network, given, _ = intercept(config, ids, seeded())
    x_TBE = given[0][0]
    rows_VE = x_TBE[:400, 0]
    assert torch.equal(x_TBE[400:, 0], rows_VE) and torch.equal(x_TBE[:400, 1], rows_VE)
    kept = rows_VE[:, 0] != 0
    assert torch.equal(kept[:, None].expand(-1, 12), rows_VE != 0)
    torch.testing.assert_close(rows_VE[kept], network.embedding.weight.detach()[kept] / 0.75)
    assert abs(1 - kept.double().mean().item() - 0.25) < 0.09  # 400 draws: std 0.022


@torch.no_grad()
def test_tied_output_layer_keeps_the_whole_embedding():
    config = make_config(embed_dropout=0.9)
    network = make_network(config)
    features = torch.ones(1, 12)
    expected = network.embedding.weight.sum(1) + network.head.bias
    torch.testing.assert_close(network.logits(features)[0], expected)


@torch.no_grad()
def test_no_generator_means_no_dropout():
    config = make_config(**DROPOUT)
    ids = random_ids(2, 6)
    for network in (make_network(config), make_network(config).train()):
        logits, _ = network(torch.from_numpy(ids), network.zero_state(2))
        np.testing.assert_allclose(logits, numpy_network(config, random_weights(config), ids)[0], atol=1e-5)


# --- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_is_mean_cross_entropy(shape):
    config = make_config(shape)
    network, x, y = make_network(config), random_ids(3, 7), random_ids(3, 7, seed=9)
    logits, h, _ = numpy_network(config, random_weights(config), x)
    expected = -np.take_along_axis(log_softmax(logits), y[:, :, None], 2).mean()
    loss, after = network.loss(torch.from_numpy(x), torch.from_numpy(y), network.zero_state(3), None)
    assert loss.objective.item() == pytest.approx(expected, abs=1e-5)
    assert loss.nats.item() == pytest.approx(expected, abs=1e-5)
    assert not after.h_LBH.requires_grad and not after.c_LBH.requires_grad and not loss.nats.requires_grad
    np.testing.assert_allclose(after.h_LBH.numpy(), h, atol=1e-5)
    loss.objective.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_label_smoothing_by_its_formula():
    config = make_config("untied")
    network, x, y = make_network(config), random_ids(3, 7), random_ids(3, 7, seed=9)
    logs = log_softmax(numpy_network(config, random_weights(config), x)[0])
    nats = -np.take_along_axis(logs, y[:, :, None], 2).mean()
    expected = 0.9 * nats + 0.1 * -logs.mean()
    loss, _ = network.loss(torch.from_numpy(x), torch.from_numpy(y), network.zero_state(3), None, 0.1)
    assert loss.objective.item() == pytest.approx(expected, abs=1e-5)
    assert loss.nats.item() == pytest.approx(nats, abs=1e-5)
    assert abs(expected - nats) > 1e-3


def test_penalties_by_their_formulas():
    config = make_config(output_dropout=0.4)
    network, x, y = (
        make_network(config),
        torch.from_numpy(random_ids(3, 7)),
        torch.from_numpy(random_ids(3, 7, seed=9)),
    )
    plain, _ = network.loss(x, y, network.zero_state(3), seeded())
    loss, _ = network.loss(x, y, network.zero_state(3), seeded(), 0.0, 2.0, 3.0)
    with torch.no_grad():
        raw = network.features(x, network.zero_state(3)).raw_TBH.double().numpy()
    keep = dropout_mask(0.4, (1, 3, 12), seeded())
    ar = ((raw * keep) ** 2).sum() / raw.size
    tar = ((raw[1:] - raw[:-1]) ** 2).sum() / raw[1:].size
    assert ar > 1e-3 and tar > 1e-3
    assert (loss.objective - plain.objective).item() == pytest.approx(2 * ar + 3 * tar, abs=1e-5)
    assert loss.nats.item() == pytest.approx(plain.nats.item(), abs=1e-6)


def test_loss_of_dropped_network_uses_the_dropped_logits():
    config = make_config("tied-output-projection", **DROPOUT)
    network, x, y = (
        make_network(config),
        torch.from_numpy(random_ids(3, 7)),
        torch.from_numpy(random_ids(3, 7, seed=9)),
    )
    loss, _ = network.loss(x, y, network.zero_state(3), seeded())
    with torch.no_grad():
        logits, _ = network(x, network.zero_state(3), seeded())
    expected = -np.take_along_axis(log_softmax(logits.numpy()), y.numpy()[:, :, None], 2).mean()
    assert loss.nats.item() == pytest.approx(expected, abs=1e-5)


def test_gradient_of_the_objective_by_finite_differences():
    config = make_config("tied-both-projections")
    network = make_network(config).double()
    x, y = torch.from_numpy(random_ids(2, 5)), torch.from_numpy(random_ids(2, 5, seed=9))
    zero = State(*(torch.zeros(1, 2, 12, dtype=torch.float64) for _ in "hc"))

    def objective():
        return network.loss(x, y, zero, None, 0.1, 0.5, 0.5)[0].objective

    objective().backward()
    for name, parameter in network.named_parameters():
        place = parameter.grad.abs().flatten().argmax()
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[place] += 1e-5
            above = objective().item()
            flat[place] -= 2e-5
            below = objective().item()
            flat[place] += 1e-5
        slope = (above - below) / 2e-5
        assert slope == pytest.approx(parameter.grad.flatten()[place].item(), rel=1e-5), name


@pytest.mark.parametrize("shape", SHAPES)
def test_nll_agrees_with_log_softmax(shape):
    config = make_config(shape, **DROPOUT)
    x, y = random_ids(4, 9), random_ids(4, 9, seed=9)
    logits, h, c = numpy_network(config, random_weights(config), x)
    network = make_network(config)
    nats, state = network.nll(x, y, network.zero_state(4))
    assert nats.dtype == np.float64 and nats.shape == (4, 9)
    np.testing.assert_allclose(nats, -np.take_along_axis(log_softmax(logits), y[:, :, None], 2)[:, :, 0], atol=1e-5)
    np.testing.assert_allclose(state.h_LBH, h, atol=1e-5)
    np.testing.assert_allclose(state.c_LBH, c, atol=1e-5)


# --- initial weights ------------------------------------------------------------------------------------------------


def test_initial_weights():
    config = make_config("untied-input-projection-scaled", vocab_size=500, embed_size=30, hidden_size=32, num_layers=2)
    network = RecurrentLM(config, seeded())
    with torch.no_grad():
        for layer in network.lstm:
            for gate in layer.weight_hh.chunk(4):
                torch.testing.assert_close(gate @ gate.T, torch.eye(32), atol=1e-5, rtol=0)
            i, f, g, o = layer.bias.chunk(4)
            assert (f == 1).all() and not (i.any() or g.any() or o.any())
        assert not network.head.bias.any() and not network.input.bias.any()
        assert network.embedding.weight.std().item() == pytest.approx(1, abs=0.05)
        matrices = [network.input.weight, network.head.weight, *(layer.weight_ih for layer in network.lstm)]
        for matrix in matrices:
            bound = 1 / math.sqrt(matrix.shape[1])
            assert matrix.abs().max() <= bound
            assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.07)
        tied = RecurrentLM(make_config("tied-output-projection", vocab_size=500), seeded())
        assert tied.embedding.weight.std().item() == pytest.approx(0.3, rel=0.05)
        assert tied.projection.weight.abs().max() <= 1 / math.sqrt(12)
    again = RecurrentLM(config, seeded())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_predicted_frequencies_before_training():
    """With small weights the first predictions are the frequencies, half an occurrence added to each."""
    config = make_config("untied-input-projection-scaled")
    network = RecurrentLM(config, seeded())
    counts = np.arange(config.vocab_size) * 10
    expected = (counts + 0.5) / (counts + 0.5).sum()
    network.predict_frequencies(frequencies(counts))
    with torch.no_grad():
        network.head.weight.zero_()
    logits, _ = network(torch.from_numpy(random_ids(2, 3)), network.zero_state(2))
    np.testing.assert_allclose(torch.softmax(logits, -1).detach().numpy(), np.tile(expected, (2, 3, 1)), rtol=1e-5)
