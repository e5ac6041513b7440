"""Devices and precisions: what can be tried without a GPU is tried on the processor; the rest waits for one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textlstm.config import DEVICES, ModelConfig, TrainConfig
from textlstm.corpus import LaneReader
from textlstm.errors import ConfigError, DivergedError, RunError, UsageError
from textlstm.model_file import read_model
from textlstm.network import Loss, RecurrentLM, recurrence
from textlstm.run import Request, train
from textlstm.state import State
from textlstm.trainer import Callbacks, Trainer, device, speed, weights_of
from textlstm.trainer.checkpoint import Checkpoint
from textlstm.trainer.device import (
    arithmetic,
    autocast,
    choose_device,
    deterministic,
    fault_of,
    to_device,
    usual_precision,
)
from textlstm.view import View

V = 20
GPUS = [kind for kind in DEVICES if kind not in ("auto", "cpu")]
MODEL = ModelConfig(V, 16, 32, 2)
PLAIN = MODEL.replace(**dict.fromkeys(("input_dropout", "layer_dropout", "output_dropout", "weight_dropout"), 0.0))
CONFIG = TrainConfig(steps=60, batch_size=5, seq_len=24, lr=1e-2, patience=0, eval_every=60)


def make_trainer(where: str = "cpu", model: ModelConfig = MODEL, **changes) -> Trainer:
    rng = np.random.default_rng(3)
    ids = np.zeros(3000, dtype=np.int32)
    for i in range(1, len(ids)):
        ids[i] = (3 * ids[i - 1] + rng.choice([1, 2, 7], p=[0.7, 0.2, 0.1])) % V
    config = CONFIG.replace(**changes)
    reader = LaneReader(ids, config.batch_size, config.seq_len, config.jitter, 0, None, np.zeros(V, dtype=bool))
    return Trainer(model, config, reader, device=where)


def nats_of(trainer: Trainer) -> list[float]:
    nats: list[float] = []
    trainer.run(Callbacks(on_step=lambda report: nats.append(report.nats)))
    return nats


# --- bf16, for real --------------------------------------------------------------------------------------------------


def test_bf16_learns_what_fp32_learns_and_keeps_fp32():
    # Wide enough that the products are rounded: of the smallest the library takes none in bf16.
    wide = PLAIN.replace(hidden_size=64, embed_size=64)
    exact, rough = (make_trainer(model=wide, lr=1e-2, steps=120, precision=kind) for kind in ("fp32", "bf16"))
    one, other = nats_of(exact), nats_of(rough)
    assert one != other or usual_precision("cpu") == "fp32"  # a processor may have no such products
    np.testing.assert_allclose(one[:6], other[:6], atol=0.01)
    assert np.mean(one[-10:]) < 2 and abs(np.mean(one[-10:]) - np.mean(other[-10:])) < 0.1
    for name, array in rough.checkpoint().tensors.items():
        assert array.dtype == (np.uint8 if name == "generator" else np.float32), name


@pytest.mark.parametrize("projected", [False, True])
def test_bf16_is_resumed_in_the_same_bits(projected):
    model = ModelConfig(V, 12, 32, 2, input_projection=True) if projected else MODEL
    whole = make_trainer(model=model, precision="bf16", accumulate=2)
    nats = nats_of(whole)
    kept = []
    first = make_trainer(model=model, precision="bf16", accumulate=2)
    first.run(Callbacks(stop=lambda: "x" if first.step == 23 else None, save=kept.append))
    second = make_trainer(model=model, precision="bf16", accumulate=2)
    second.restore(kept[0])
    assert nats_of(second) == nats[23:]
    ours, theirs = weights_of(second.averaged), weights_of(whole.averaged)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


def test_a_layer_in_bf16_is_the_layer_of_rounded_numbers():
    rng = torch.Generator().manual_seed(0)
    shapes = (7, 3, 10), (3, 32), (3, 32), (128, 10), (128, 32), (128,)
    arguments = [torch.randn(shape, generator=rng) * 0.3 for shape in shapes]
    rounded = [tensor.bfloat16().double() for tensor in arguments]
    with torch.autocast("cpu", torch.bfloat16):  # as on a GPU
        found = recurrence.lstm(*arguments)
    for ours, exact in zip(found, recurrence.reference_lstm(*rounded), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=0.02, atol=0.01)
        assert torch.equal(ours, ours.bfloat16().float())  # so that a carried state loses nothing on the way


@pytest.mark.parametrize("projected", [False, True])
def test_the_chunked_loss_in_bf16(monkeypatch, projected):
    model = ModelConfig(V, 12, 32, 1) if projected else ModelConfig(V, 32, 32, 1)
    network = RecurrentLM(model, torch.Generator().manual_seed(0))
    ids = torch.arange(40).view(2, 20) % V
    found = []
    for above in (1 << 23, 0):
        monkeypatch.setattr("textlstm.network.losses._CHUNKED_ABOVE", above)
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):  # as on a GPU
            loss, _ = network.loss(ids[:, :-1], ids[:, 1:], network.zero_state(2), None)
        loss.objective.backward()
        found.append((loss.nats, *(p.grad.clone() for p in network.parameters())))
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.float32 and float((one - other).norm() / one.norm()) < 0.02


def test_tf32_on_a_processor_is_fp32():
    assert nats_of(make_trainer(precision="tf32", steps=5)) == nats_of(make_trainer(steps=5))


def test_a_precision_that_there_is_not():
    with pytest.raises(ConfigError, match="precision"):
        TrainConfig(precision="fp8")


# --- which device ----------------------------------------------------------------------------------------------------


def test_the_processor_passes_its_own_trial():
    assert [fault_of("cpu", precision) for precision in ("fp32", "tf32", "bf16")] == [None] * 3


def faulty(change):
    """The loss of a network, changed in the second network that computes one: the one on trial."""
    original, calls = RecurrentLM.loss, []

    def loss(self, *arguments, **more):
        calls.append(self)
        found, state = original(self, *arguments, **more)
        return (found, state) if len(calls) == 1 else (change(self, found, len(calls)), state)

    return loss


FAULTS = {
    "the loss is not finite": lambda network, loss, call: Loss(loss.objective * float("nan"), loss.nats),
    "is off by": lambda network, loss, call: Loss(
        loss.objective + network.head.bias.square().sum() * 0 + 0.1, loss.nats
    ),
    "the gradient of lstm.1.weight_hh is off by": lambda network, loss, call: Loss(
        loss.objective + network.lstm[1].weight_hh.sum() * 0.01 - network.lstm[1].weight_hh.sum().detach() * 0.01,
        loss.nats,
    ),
    "with dropout the loss is not finite": lambda network, loss, call: (
        loss if call == 2 else Loss(loss.objective / 0, loss.nats)
    ),
}


@pytest.mark.parametrize("told", FAULTS)
def test_a_device_that_computes_wrongly_is_found_out(monkeypatch, told):
    monkeypatch.setattr(RecurrentLM, "loss", faulty(FAULTS[told]))
    assert told in fault_of("cpu", "fp32")


def test_a_device_that_raises(monkeypatch):
    fault = fault_of("no-such-device", "fp32")
    assert fault is not None and fault.startswith("RuntimeError")


def test_auto_passes_over_what_fails_and_says_so(monkeypatch):
    monkeypatch.setattr(device, "is_available", lambda kind: kind in ("mps", "cpu"))
    monkeypatch.setattr(device, "fault_of", lambda name, precision: "the loss is not finite")
    said: list[str] = []
    assert choose_device("auto", "fp32", said.append) == "cpu"
    assert said == ["mps fails a small trial against the processor: the loss is not finite; it is not used"]
    with pytest.raises(RunError, match="--device cpu"):
        choose_device("mps", "fp32", said.append)
    with pytest.raises(UsageError, match="finds no cuda here, only mps, cpu"):
        choose_device("cuda", "fp32", said.append)


def test_auto_takes_the_first_that_passes_and_each_rank_its_own(monkeypatch):
    monkeypatch.setattr(device, "is_available", lambda kind: True)
    monkeypatch.setattr(device, "fault_of", lambda name, precision: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert choose_device("auto", "fp32", print) == "cuda:2"
    assert choose_device("cpu", "fp32", print) == "cpu"
    assert choose_device("mps", "fp32", print) == "mps"


def test_every_run_says_where_it_was(tmp_path, own_cache, text):
    (tmp_path / "book.txt").write_text(text[:5000])
    tiny = {"tokenizer": "byte", "embed_size": 12, "hidden_size": 16, "batch_size": 4, "precision": "bf16"}
    request = Request(["book.txt"], tmp_path / "run", steps=4, settings=tiny, device="cpu", deterministic=True)
    card = read_model(train(request, View()).model).card
    assert card["machine"]["device"] == "cpu" and card["train"]["precision"] == "bf16"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_device_that_is_not_there(tmp_path, own_cache, text, run):
    missing = next(kind for kind in GPUS if not device.is_available(kind))
    (tmp_path / "book.txt").write_text(text[:5000])
    done = run("train", "book.txt", "--out", "run", "--steps", "2", "--device", missing)
    assert done.code == 2 and f"finds no {missing} here" in done.err and not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_kind_of_device_is_refused():
    trainer = make_trainer(steps=4)
    trainer.advance()
    checkpoint = trainer.checkpoint()
    checkpoint.values["device"] = "cuda"
    with pytest.raises(RunError, match="go on with --device cuda"):
        make_trainer(steps=4).restore(checkpoint)
    del checkpoint.values["device"]  # written before devices were
    make_trainer(steps=4).restore(checkpoint)


def test_on_mps_a_divergence_names_the_device(monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(RecurrentLM, "device", torch.device("mps"))
    trainer._skipped = 9
    monkeypatch.setattr(RecurrentLM, "zero_state", lambda self, rows: State(torch.zeros(1), torch.zeros(1)))
    with pytest.raises(DivergedError, match="--device cpu"):
        trainer._skip()


# --- switches --------------------------------------------------------------------------------------------------------


def test_deterministic_switches_on_and_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    backend = torch.backends.cudnn
    before = (backend.deterministic, backend.benchmark)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError), deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert (backend.deterministic, backend.benchmark) == (True, False)
        import os

        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:2"
        make_trainer(steps=2).advance()  # nothing in a step is refused as not deterministic
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert (backend.deterministic, backend.benchmark) == before
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


@pytest.mark.parametrize(("precision", "wanted"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
def test_tf32_is_on_where_it_is_asked_and_nowhere_else(precision, wanted):
    places = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = [place.fp32_precision for place in places]
    with arithmetic(torch.device("cuda"), precision):
        assert [place.fp32_precision for place in places] == [wanted] * 2
    with arithmetic(torch.device("cpu"), precision):
        assert [place.fp32_precision for place in places] == before
    assert [place.fp32_precision for place in places] == before


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_on_a_processor_bf16_is_of_the_products_alone(precision):
    place, before = torch.backends.mkldnn.matmul, torch.backends.mkldnn.matmul.fp32_precision
    with arithmetic(torch.device("cpu"), precision), autocast(torch.device("cpu"), precision):
        assert place.fp32_precision == ("bf16" if precision == "bf16" else "ieee")
        assert not torch.is_autocast_enabled("cpu")
        a, b = (torch.randn(200, 200, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
        product = a @ b
    assert place.fp32_precision == before
    assert product.dtype == torch.float32
    exact = a.double() @ b.double()
    error = float((product - exact).norm() / exact.norm())
    assert error < (5e-3 if precision == "bf16" else 1e-6)
    if precision == "bf16" == usual_precision("cpu"):
        rounded = a.bfloat16().double() @ b.bfloat16().double()  # what is multiplied is rounded; the sums are not
        assert float((product - rounded).norm() / exact.norm()) < 1e-6 < error


@pytest.mark.parametrize(
    ("device", "capabilities", "usual"),
    [("cpu", {"amx_bf16": True}, "bf16"), ("cpu", {"amx_bf16": False}, "fp32"), ("cpu", {}, "fp32"),
     ("cuda:0", {"amx_bf16": True}, "fp32")],
)  # fmt: skip
def test_bf16_is_usual_where_there_are_tiles_for_it(monkeypatch, device, capabilities, usual):
    monkeypatch.setattr(torch.cpu, "get_capabilities", raising=False, value=lambda: capabilities)
    assert usual_precision(device) == usual
    monkeypatch.setattr(speed, "sgemm_peak", lambda device: 100.0)
    assert speed.planning_peak(device, usual) == (145 if usual == "bf16" else 100)
    assert speed.planning_peak(device, "fp32") == 100


@pytest.mark.parametrize("asked", [None, "fp32", "bf16"])
@pytest.mark.parametrize("usual", ["fp32", "bf16"])
def test_a_run_takes_the_usual_precision_unless_told(monkeypatch, tmp_path, own_cache, usual, asked):
    monkeypatch.setattr(torch.cpu, "get_capabilities", raising=False, value=lambda: {"amx_bf16": usual == "bf16"})
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, " * 300)
    settings = {"tokenizer": "byte", "hidden_size": 32, "embed_size": 32} | (
        {} if asked is None else {"precision": asked}
    )
    told: list[str] = []
    view = View()
    monkeypatch.setattr(view, "notice", told.append)
    result = train(Request([str(text)], settings=settings, steps=2, out=tmp_path / "run", device="cpu"), view)
    wanted = usual if asked is None else asked
    assert read_model(result.model).card["train"]["precision"] == wanted
    assert any("bf16" in line for line in told) == (asked is None and usual == "bf16")


def test_copies_to_a_gpu_are_pinned(monkeypatch):
    array = np.arange(6).reshape(2, 3)
    assert to_device(array, torch.device("cpu")).data_ptr() == array.ctypes.data  # nothing is copied
    seen = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: seen.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where, **how: seen.append((where, how)) or self)
    to_device(array, torch.device("cuda"))
    assert seen == ["pinned", ((torch.device("cuda"),), {"non_blocking": True})]


def test_a_batch_that_is_fetched_ahead_changes_nothing():
    plain, ahead = make_trainer("cpu"), make_trainer("cpu")
    ahead._fetches_ahead = True
    epochs: dict[Trainer, list[int]] = {plain: [], ahead: []}
    kept: dict[Trainer, list[Checkpoint]] = {plain: [], ahead: []}
    for trainer in (plain, ahead):
        trainer.run(
            Callbacks(
                on_step=lambda report, t=trainer: epochs[t].append(report.epoch),
                save=lambda checkpoint, t=trainer: kept[t].append(checkpoint),
                stop=lambda t=trainer: "x" if t.step == 27 else None,
            )
        )
    one, other = kept[plain][-1], kept[ahead][-1]
    assert epochs[plain] == epochs[ahead] and max(epochs[plain]) > 1 and one.step == other.step == 27
    assert one.values == other.values
    assert {name: array.tobytes() for name, array in one.tensors.items()} == {
        name: array.tobytes() for name, array in other.tensors.items()
    }
    resumed = make_trainer("cpu")
    resumed._fetches_ahead = True
    resumed.restore(other)
    ahead.restore(one)  # what it had fetched is forgotten
    assert nats_of(resumed) == nats_of(ahead) == nats_of(plain)


# --- with a GPU ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.gpu) for kind in GPUS])
def gpu(request) -> str:
    if not device.is_available(request.param):
        pytest.skip(f"there is no {request.param} here")
    return request.param


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_gpu_passes_the_trial(gpu, precision):
    assert fault_of(gpu, precision) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gpu_learns_what_the_processor_learns(gpu, precision):
    one, other = nats_of(make_trainer("cpu", PLAIN)), nats_of(make_trainer(gpu, PLAIN, precision=precision))
    np.testing.assert_allclose(one[:20], other[:20], atol=1e-3 if precision == "fp32" else 0.05)


def test_the_gpu_resumes_in_the_same_bits(gpu):
    with deterministic(True):
        whole, kept = make_trainer(gpu), []
        nats = nats_of(whole)
        first = make_trainer(gpu)
        first.run(Callbacks(stop=lambda: "x" if first.step == 23 else None, save=kept.append))
        second = make_trainer(gpu)
        second.restore(kept[0])
        assert nats_of(second) == nats[23:]
