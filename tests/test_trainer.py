"""The training loop: its numbers against numpy, its exact resume, and its checkpoints on disk."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch

from textlstm import metrics
from textlstm.config import ModelConfig, TrainConfig
from textlstm.corpus import LaneReader
from textlstm.errors import DivergedError, RunError
from textlstm.metrics import frequencies, unigram_nats
from textlstm.network import RecurrentLM
from textlstm.trainer import Callbacks, Development, Trainer, average_decay, learning_rate, weights_of
from textlstm.trainer.checkpoint import Checkpoint, load_newest, save_checkpoint

V = 20  # ids of the text; V is the boundary, and id 0 ends a line
PLAIN = ModelConfig(
    V + 1, 8, 12, 2, input_dropout=0.0, layer_dropout=0.0, output_dropout=0.0, weight_dropout=0.0
)  # fmt: skip
NOISY = PLAIN.replace(embed_dropout=0.05, input_dropout=0.1, layer_dropout=0.1, output_dropout=0.2, weight_dropout=0.1)
TRAIN = TrainConfig(steps=40, batch_size=4, seq_len=24, jitter=0.0, lr=1e-2, patience=0, eval_every=1000)
EVERYTHING = TRAIN.replace(
    steps=26, jitter=0.4, label_smoothing=0.05, activation_penalty=0.5, temporal_penalty=0.5, ema=0.9, eval_every=5
)  # fmt: skip


def make_ids(size: int, seed: int = 3) -> np.ndarray:
    """A chain in which each id is followed by one of three, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    ids = np.zeros(size, dtype=np.int32)
    for i in range(1, size):
        ids[i] = (3 * ids[i - 1] + rng.choice([1, 2, 7], p=[0.7, 0.2, 0.1])) % V
    return ids


IDS = make_ids(3000)
DEV = Development(IDS[2600:], IDS[:2600], 400, 400)


def make_trainer(model: ModelConfig = PLAIN, train: TrainConfig = TRAIN, dev: Development | None = None) -> Trainer:
    line_end_V = np.arange(V + 1) == 0
    reader = LaneReader(IDS[:2600], train.batch_size, train.seq_len, train.jitter, train.seed, V, line_end_V)
    return Trainer(model, train, reader, dev)


ONE_STEP = Callbacks(stop=lambda: "one step")


def bits(trainer: Trainer) -> dict[str, bytes]:
    """All weights, current and averaged, bit for bit."""
    networks = {"network": trainer.network, "averaged": trainer.averaged}
    return {f"{k}.{n}": a.tobytes() for k, network in networks.items() for n, a in weights_of(network).items()}


def finish(trainer: Trainer) -> list[float]:
    """Runs to the end; the loss of each step."""
    nats: list[float] = []
    assert trainer.run(Callbacks(on_step=lambda report: nats.append(report.nats))) is None
    return nats


# --- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 2e-3 / 10), (4, 2e-3 * 5 / 10), (9, 2e-3), (10, 2e-3),
        (55, 2e-3 * (0.1 + 0.9 * 0.5)),  # halfway down the cosine
        (100, 2e-3 * 0.1),
        (32, 2e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 22 / 90)))),
    ],
)  # fmt: skip
def test_learning_rate(step, expected):
    config = TrainConfig(steps=100, lr=2e-3, lr_final=0.1, warmup=0.1)
    assert learning_rate(config, step) == pytest.approx(expected, rel=1e-12)


def test_learning_rate_without_warm_up_or_decay():
    constant = TrainConfig(steps=50, lr=3e-4, lr_final=1.0, warmup=0.0)
    assert [learning_rate(constant, step) for step in (0, 25, 49)] == pytest.approx([3e-4] * 3)
    only_warmup = TrainConfig(steps=10, lr=1.0, warmup=1.0)
    assert [learning_rate(only_warmup, step) for step in range(10)] == pytest.approx([k / 10 for k in range(1, 11)])
    assert learning_rate(TrainConfig(steps=1, lr=1e-3), 0) == pytest.approx(1e-3)


def test_average_decay():
    config = TrainConfig(ema=0.9)
    assert average_decay(config, 0) == pytest.approx(1 / 10)
    assert average_decay(config, 5) == pytest.approx(6 / 15)
    assert average_decay(config, 80) == pytest.approx(0.9)
    assert average_decay(config, 10_000) == 0.9
    assert average_decay(TrainConfig(ema=0.0), 7) == 0


# --- the step against numpy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.05, 100.0])
def test_steps_are_adamw_and_averages_are_the_recursion(clip):
    config = TRAIN.replace(clip=clip, weight_decay=0.3, beta1=0.8, beta2=0.95, ema=0.7, warmup=0.1)
    trainer = make_trainer(train=config)
    line_end_V = np.arange(V + 1) == 0
    twin_reader = LaneReader(IDS[:2600], config.batch_size, config.seq_len, 0.0, config.seed, V, line_end_V)
    twin = RecurrentLM(PLAIN)
    state = twin.zero_state(config.batch_size)
    weights = {n: a.astype(np.float64) for n, a in weights_of(trainer.network).items()}
    averaged = {n: a.copy() for n, a in weights.items()}
    first = {n: np.zeros_like(a) for n, a in weights.items()}
    second = {n: np.zeros_like(a) for n, a in weights.items()}
    for t in range(1, 5):
        twin.load_state_dict(trainer.network.state_dict())  # the gradient of the weights as they are
        twin.zero_grad()
        batch = next(twin_reader)
        x_BT, y_BT = torch.from_numpy(batch.x_BT), torch.from_numpy(batch.y_BT)
        loss, state = twin.loss(x_BT, y_BT, state, None, 0.0, config.activation_penalty)
        loss.objective.backward()
        gradients = {n: p.grad.numpy().astype(np.float64) for n, p in twin.named_parameters()}
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        scale = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        assert clip != 0.05 or scale < 1
        lr, decay = learning_rate(config, t - 1), average_decay(config, t - 1)
        assert trainer.run(ONE_STEP) == "one step"
        for name, gradient in gradients.items():
            g = gradient * scale
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            wd = 0.3 if gradient.ndim == 2 else 0.0
            step = (first[name] / (1 - 0.8**t)) / (np.sqrt(second[name] / (1 - 0.95**t)) + 1e-8)
            weights[name] = weights[name] * (1 - lr * wd) - lr * step
            averaged[name] = decay * averaged[name] + (1 - decay) * weights[name]
        for network, expected in ((trainer.network, weights), (trainer.averaged, averaged)):
            for name, array in weights_of(network).items():
                np.testing.assert_allclose(array, expected[name], rtol=2e-4, atol=2e-6, err_msg=f"{name}, step {t}")


def test_weight_decay_leaves_vectors_alone():
    weak, strong = (make_trainer(train=TRAIN.replace(weight_decay=w, warmup=0.0)) for w in (0.0, 5.0))
    start = weights_of(weak.network)
    weak.run(ONE_STEP), strong.run(ONE_STEP)
    for name, one in weights_of(weak.network).items():
        other = weights_of(strong.network)[name]
        if one.ndim == 1:
            assert np.array_equal(one, other)
        else:
            np.testing.assert_allclose(one - other, 1e-2 * 5.0 * start[name], atol=1e-6)


def test_without_averaging_the_network_itself_is_used():
    trainer = make_trainer(train=TRAIN.replace(ema=0.0))
    finish(trainer)
    pairs = zip(trainer.averaged.parameters(), trainer.network.parameters(), strict=True)
    assert all(averaged is current for averaged, current in pairs)
    averaging = make_trainer()
    finish(averaging)
    assert not np.array_equal(averaging.averaged.head.bias.detach(), averaging.network.head.bias.detach())


# --- runs ------------------------------------------------------------------------------------------------------------


def test_learns_more_than_frequencies():
    config = TRAIN.replace(steps=400, lr=2e-2, eval_every=400)
    trainer = make_trainer(train=config, dev=DEV)
    looks = []
    trainer.run(Callbacks(on_look=lambda look, network: looks.append(look)))
    frequency = unigram_nats(DEV.ids, frequencies(np.bincount(IDS[:2600], minlength=V + 1)))
    assert looks[-1].dev.nats / 400 < 0.7 * frequency


@pytest.mark.parametrize("model", [PLAIN, NOISY])
def test_same_seed_same_bits_other_seed_others(model):
    one, same, other = (make_trainer(model, EVERYTHING.replace(seed=seed), DEV) for seed in (5, 5, 6))
    losses = [finish(trainer) for trainer in (one, same, other)]
    assert losses[0] == losses[1] and bits(one) == bits(same)
    assert losses[0] != losses[2] and bits(one) != bits(other)


def test_looks_and_dev_do_not_change_the_training():
    often, never = (make_trainer(NOISY, EVERYTHING.replace(eval_every=k), dev) for k, dev in ((1, DEV), (1000, None)))
    finish(often), finish(never)
    assert bits(often) == bits(never)


@pytest.fixture(scope="module", params=[0.9, 0.0], ids=["ema", "no-ema"])
def uninterrupted(request):
    config = EVERYTHING.replace(ema=request.param)
    trainer = make_trainer(NOISY, config, DEV)
    return config, finish(trainer), bits(trainer), trainer.best


@pytest.mark.parametrize("k", [1, 2, 4, 5, 6, 13, 25, 26])
def test_resumed_run_ends_in_the_same_bits(uninterrupted, k, tmp_path):
    config, losses, expected, best = uninterrupted
    before = make_trainer(NOISY, config, DEV)
    before.run(Callbacks(stop=lambda: "stop" if before.step == k else None, save=lambda c: saved(tmp_path, c)))
    checkpoint = load_newest(tmp_path)
    assert checkpoint is not None and checkpoint.step == k
    after = make_trainer(NOISY, config, DEV)
    after.restore(checkpoint)
    assert after.step == k and bits(after) == bits(before)
    assert finish(after) == losses[k:]
    assert bits(after) == expected and after.best == best
    assert after.finished and after.step == config.steps


def saved(folder, checkpoint: Checkpoint) -> None:
    save_checkpoint(folder, checkpoint)


OPTIONS = {
    **{name: ({name: 0.3}, {}) for name in ("embed_dropout", "input_dropout", "layer_dropout", "output_dropout")},
    "weight_dropout": ({"weight_dropout": 0.3}, {}),
    "untied": ({"tie_embeddings": False}, {}),
    "input_projection": ({"input_projection": True}, {}),
    "one layer": ({"num_layers": 1}, {}),
    "jitter": ({}, {"jitter": 0.5}),
    "no clip": ({}, {"clip": None}),
    "no ema": ({}, {"ema": 0.0}),
    "label_smoothing": ({}, {"label_smoothing": 0.1}),
    "activation_penalty": ({}, {"activation_penalty": 1.0}),
    "temporal_penalty": ({}, {"temporal_penalty": 1.0}),
    "accumulate": ({"input_dropout": 0.3}, {"accumulate": 3}),
    "patience": ({}, {"patience": 2, "lr": 1e-4, "eval_every": 1}),
    "warmup and floor": ({}, {"warmup": 0.5, "lr_final": 0.3}),
    "no spikes": ({}, {"spike_sigmas": 0.0}),
    "logit_scale": ({"logit_scale": 3.0}, {}),
    "optimizer": ({}, {"beta1": 0.5, "beta2": 0.9, "weight_decay": 0.5}),
    "bf16": ({"input_dropout": 0.3}, {"precision": "bf16"}),
    "seed": ({}, {"seed": 7}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_resume_is_exact_for_every_option(name, tmp_path):
    for_model, for_train = OPTIONS[name]
    model, config = PLAIN.replace(**for_model), TRAIN.replace(**{"steps": 12, "eval_every": 4} | for_train)
    whole = make_trainer(model, config, DEV)
    losses = finish(whole)
    for k in (1, 5, 8):
        before = make_trainer(model, config, DEV)
        before.run(
            Callbacks(stop=lambda b=before, k=k: "x" if b.step == k else None, save=lambda c: saved(tmp_path, c))
        )
        if before.finished:  # out of patience
            assert before.step == len(losses)
            continue
        after = make_trainer(model, config, DEV)
        checkpoint = load_newest(tmp_path)
        assert checkpoint is not None and checkpoint.step == k
        after.restore(checkpoint)
        assert finish(after) == losses[k:] and bits(after) == bits(whole) and after.best == whole.best


@pytest.mark.parametrize("portions", [2, 3, 4, 9])
def test_portions_of_the_lanes_are_the_whole_batch(portions):
    config = EVERYTHING.replace(steps=50, batch_size=4)
    whole, parts = (make_trainer(NOISY, config.replace(accumulate=k), DEV) for k in (1, portions))
    np.testing.assert_allclose(finish(parts), finish(whole), rtol=1e-5)
    assert parts.best == pytest.approx(whole.best, rel=1e-5)


def test_resumed_after_every_step():
    config = EVERYTHING.replace(steps=9)
    whole = make_trainer(NOISY, config, DEV)
    finish(whole)
    current = make_trainer(NOISY, config, DEV)
    while not current.finished:
        current.run(ONE_STEP)
        following = make_trainer(NOISY, config, DEV)
        following.restore(current.checkpoint())
        current = following
    assert bits(current) == bits(whole)


def test_checkpoint_is_a_copy():
    trainer = make_trainer()
    trainer.run(ONE_STEP)
    checkpoint = trainer.checkpoint()
    before = {name: array.copy() for name, array in checkpoint.tensors.items()}
    finish(trainer)
    assert all(np.array_equal(before[name], array) for name, array in checkpoint.tensors.items())


def test_checkpoint_of_another_network_is_refused():
    trainer = make_trainer()
    trainer.run(ONE_STEP)
    for model in (PLAIN.replace(hidden_size=16, embed_size=8), PLAIN.replace(num_layers=3)):
        with pytest.raises(RunError, match="step 1 does not fit"):
            make_trainer(model).restore(trainer.checkpoint())


def test_when_things_happen():
    config = TRAIN.replace(steps=25, eval_every=10, checkpoint_every=8)
    trainer = make_trainer(train=config, dev=DEV)
    looks, saves, steps = [], [], []
    trainer.run(
        Callbacks(
            on_step=lambda report: steps.append(report.step),
            on_look=lambda look, network: looks.append(look.step),
            save=lambda checkpoint: saves.append(checkpoint.step),
        )
    )
    assert steps == list(range(1, 26)) and looks == [10, 20, 25] and saves == [8, 16, 24, 25]


@pytest.mark.parametrize(("every", "saved"), [(None, [1, 2, 3, 4, 5, 6]), (4, [4, 6])])
def test_a_checkpoint_is_written_after_some_minutes_unless_asked_for_in_steps(monkeypatch, every, saved):
    monkeypatch.setattr("textlstm.trainer._MOST_SECONDS_UNSAVED", 0.0)
    kept: list[int] = []
    trainer = make_trainer(train=TRAIN.replace(steps=6, checkpoint_every=every))
    trainer.run(Callbacks(save=lambda checkpoint: kept.append(checkpoint.step)))
    assert kept == saved


def test_reports_tell_what_was_done():
    reports = []
    trainer = make_trainer(train=TRAIN.replace(steps=30))
    trainer.run(Callbacks(on_step=reports.append))
    assert [r.lr for r in reports] == [learning_rate(trainer.config, k) for k in range(30)]
    assert {r.tokens for r in reports[:27]} == {4 * 24}
    assert reports[0].epoch == 1 and reports[-1].epoch == 2  # 650 tokens a lane, 24 a step


def test_best_and_early_stopping(monkeypatch):
    costs = iter([5.0, 4.0, 4.5, 4.0, 4.2, 1.0])  # equal is not better
    looks = []
    real = metrics.score

    def score(*arguments, **names):
        return dataclasses.replace(real(*arguments, **names), nats=next(costs))

    monkeypatch.setattr("textlstm.trainer.metrics.score", score)
    trainer = make_trainer(train=TRAIN.replace(eval_every=2, patience=3), dev=DEV)
    trainer.run(Callbacks(on_look=lambda look, network: looks.append((look.step, look.best))))
    assert looks == [(2, True), (4, True), (6, False), (8, False), (10, False)]
    assert trainer.finished and trainer.step == 10 and trainer.best == 4.0


def test_no_patience_means_to_the_end(monkeypatch):
    real = metrics.score
    monkeypatch.setattr(
        "textlstm.trainer.metrics.score", lambda *a, **k: dataclasses.replace(real(*a, **k), nats=math.nan)
    )
    looks = []
    trainer = make_trainer(train=TRAIN.replace(eval_every=2, patience=0), dev=DEV)
    trainer.run(Callbacks(on_look=lambda look, network: looks.append(look.best)))
    assert trainer.step == 40 and looks == [False] * 20 and trainer.best is None


@pytest.mark.parametrize("ema", [0.9, 0.0])
def test_calibration_changes_the_finished_model_and_no_step_of_the_training(ema):
    plain, cooled = (
        make_trainer(NOISY, TRAIN.replace(ema=ema, eval_every=20, calibration_temperature=t), DEV) for t in (1.0, 1.25)
    )
    looks: list[float] = []
    for trainer in (plain, cooled):
        trainer.run(Callbacks(on_look=lambda look, network: looks.append(look.dev.nats)))
    assert bits(plain) == bits(cooled)
    ids, targets = (
        torch.from_numpy(IDS[2600:2999].astype(np.int64))[None],
        torch.from_numpy(IDS[2601:3000].astype(int)),
    )
    with torch.inference_mode():
        logits, scaled = (t.averaged(ids, t.averaged.zero_state(1))[0][0] for t in (plain, cooled))
    torch.testing.assert_close(scaled, logits / 1.25)
    assert not (torch.nn.functional.cross_entropy(scaled, targets) - looks[3] / 400).abs() > 0.05
    assert looks[3] != looks[1] and cooled.averaged.config.logit_scale == 0.8 and cooled.network.config == NOISY


def test_without_development_text_the_latest_weights_are_kept():
    looks = []
    trainer = make_trainer(train=TRAIN.replace(eval_every=15, patience=1))
    trainer.run(Callbacks(on_look=lambda look, network: looks.append((look.step, look.best, look.dev))))
    assert looks == [(15, True, None), (30, True, None), (40, True, None)]


def test_reached_ends_the_run():
    trainer = make_trainer(train=TRAIN.replace(eval_every=10), dev=DEV)
    saves = []
    trainer.run(Callbacks(reached=lambda network: trainer.step == 20, save=lambda c: saves.append(c.step)))
    assert trainer.finished and trainer.step == 20 and saves[-1] == 20


# --- numbers that are not finite -------------------------------------------------------------------------------------


def poison(trainer: Trainer, monkeypatch, steps: range, what: str) -> None:
    real = trainer.network.loss

    def loss(*arguments):
        value, state = real(*arguments)
        if trainer.step in steps:
            bad = value.objective * math.nan
            value = dataclasses.replace(value, objective=bad) if what == "gradient" else type(value)(bad, bad.detach())
        return value, state

    monkeypatch.setattr(trainer.network, "loss", loss)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_step_is_skipped(monkeypatch, what):
    trainer = make_trainer()
    poison(trainer, monkeypatch, range(3, 5), what)
    weights = []
    trainer.run(
        Callbacks(
            on_step=lambda report: weights.append(bits(trainer)), stop=lambda: "x" if trainer.step == 7 else None
        )
    )
    assert weights[2] == weights[3] == weights[4] and weights[4] != weights[5] != weights[6]
    assert all(np.isfinite(a).all() for a in weights_of(trainer.network).values())
    finish(trainer)
    assert all(np.isfinite(a).all() for a in weights_of(trainer.averaged).values())


def test_ten_bad_steps_in_a_row_end_the_run(monkeypatch):
    trainer = make_trainer()
    poison(trainer, monkeypatch, range(5, 1000), "loss")
    before = []
    with pytest.raises(DivergedError, match=r"10 steps in a row.*lower --lr than 0\.01"):
        trainer.run(Callbacks(on_step=lambda report: before.append(bits(trainer))))
    assert len(before) == 14 and bits(trainer) == before[4]


def test_nine_bad_steps_are_forgiven_again_and_again(monkeypatch):
    trainer = make_trainer()
    real = trainer.network.loss

    def loss(*arguments):
        value, state = real(*arguments)
        return (value if trainer.step % 10 == 9 else dataclasses.replace(value, nats=value.nats * math.nan)), state

    monkeypatch.setattr(trainer.network, "loss", loss)
    assert len(finish(trainer)) == 40


def test_an_absurd_learning_rate_diverges_with_an_error():
    trainer = make_trainer(train=TRAIN.replace(lr=1e30, clip=None, warmup=0.0))
    with pytest.raises(DivergedError):
        trainer.run(Callbacks())


# --- checkpoint files ------------------------------------------------------------------------------------------------


def checkpoint_at(step: int) -> Checkpoint:
    return Checkpoint(
        step, {"a": np.full((2, 3), step, np.float32), "b": np.array(step)}, {"text": "ä\n", "x": [step]}
    )


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_checkpoint_round_trip_and_only_two_are_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (5, 9, 10, 100):
        save_checkpoint(folder, checkpoint_at(step))
    assert names(folder) == {"step-10", "step-100"}  # by number, not by name
    loaded = load_newest(folder)
    assert loaded is not None and loaded.step == 100 and loaded.values == {"text": "ä\n", "x": [100]}
    assert np.array_equal(loaded.tensors["a"], np.full((2, 3), 100, np.float32)) and loaded.tensors["b"] == 100
    assert load_newest(tmp_path / "nowhere") is None


DAMAGE = {
    "flipped bit": ("tensors.safetensors", lambda d: d[:-3] + bytes([d[-3] ^ 1]) + d[-2:]),
    "cut off": ("tensors.safetensors", lambda d: d[: len(d) // 2]),
    "empty": ("state.json", lambda d: b""),
    "other step": ("state.json", lambda d: d.replace(b"20", b"21")),
    "manifest cut off": ("manifest.json", lambda d: d[:10]),
    "manifest of something else": ("manifest.json", lambda d: b"[]"),
    "manifest without a file": ("manifest.json", lambda d: b"{}"),
    "manifest gone": ("manifest.json", None),
    "tensors gone": ("tensors.safetensors", None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_passed_over(tmp_path, damage):
    save_checkpoint(tmp_path, checkpoint_at(10))
    save_checkpoint(tmp_path, checkpoint_at(20))
    name, change = DAMAGE[damage]
    path = tmp_path / "step-20" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    notices: list[str] = []
    loaded = load_newest(tmp_path, notices.append)
    assert loaded is not None and loaded.step == 10
    assert len(notices) == 1 and "step-20 is damaged" in notices[0] and "older" in notices[0]
    (tmp_path / "step-10" / "manifest.json").unlink()
    assert load_newest(tmp_path, notices.append) is None and len(notices) == 3


def test_temporary_folders_are_ignored_and_cleaned(tmp_path):
    save_checkpoint(tmp_path, checkpoint_at(10))
    stale = tmp_path / "step-30.tmp-12345"
    stale.mkdir()
    (stale / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "step-99.bak").mkdir()
    loaded = load_newest(tmp_path)
    assert loaded is not None and loaded.step == 10
    save_checkpoint(tmp_path, checkpoint_at(20))
    assert names(tmp_path) == {"step-10", "step-20", "step-99.bak"}


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, checkpoint_at(10))
    save_checkpoint(tmp_path, dataclasses.replace(checkpoint_at(10), values={"new": 1}))
    loaded = load_newest(tmp_path)
    assert loaded is not None and loaded.values == {"new": 1} and names(tmp_path) == {"step-10"}


def test_a_failed_save_leaves_the_older_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint_at(10))

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, checkpoint_at(20))
    monkeypatch.undo()
    loaded = load_newest(tmp_path)
    assert loaded is not None and loaded.step == 10


def test_manifest_has_sizes_and_hashes(tmp_path):
    save_checkpoint(tmp_path, checkpoint_at(10))
    manifest = json.loads((tmp_path / "step-10" / "manifest.json").read_bytes())
    assert {name: (tmp_path / "step-10" / name).stat().st_size for name in manifest} == {
        name: entry["size"] for name, entry in manifest.items()
    }
    assert set(manifest) == {"tensors.safetensors", "state.json"}


def test_a_checkpoint_just_written_stays_beside_damaged_later_ones(tmp_path):
    for step in (1000, 2000):
        (tmp_path / f"step-{step}").mkdir()
    tensors = {"a": np.arange(3.0, dtype=np.float32)}
    save_checkpoint(tmp_path, Checkpoint(50, tensors, {}))
    newest = load_newest(tmp_path)
    assert newest is not None and newest.step == 50


def test_first_loss_is_that_of_frequencies():
    """With the bias at the logarithms of the frequencies the first step costs about the unigram entropy."""
    ids = np.random.default_rng(0).choice(40, 4000, p=np.arange(40) / 780).astype(np.int32)
    shares = np.bincount(ids, minlength=40) / len(ids)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    first = {}
    for unigram_bias in (True, False):
        config = ModelConfig(vocab_size=40, embed_size=16, hidden_size=16)
        train = TrainConfig(steps=5, batch_size=4, seq_len=32, unigram_bias=unigram_bias)
        reader = LaneReader(ids, 4, 32, 0.0, 0, None, np.zeros(40, dtype=bool))
        known = frequencies(np.bincount(ids, minlength=40))
        first[unigram_bias] = Trainer(config, train, reader, frequencies_V=known).advance().nats
    assert abs(first[True] - entropy) < 0.15 < abs(first[False] - entropy)


def test_short_segments_are_no_spikes(monkeypatch):
    """The guard judges only segments of at least half the usual length; here 32, 32 and 8, again and again."""
    ids = (
        np.random.default_rng(0).integers(0, 40, 4 * 72).astype(np.int32)
    )  # segments of 32, 32 and 8, again and again
    config = ModelConfig(vocab_size=40, embed_size=16, hidden_size=16)
    reader = LaneReader(ids, 4, 32, 0.0, 0, None, np.zeros(40, dtype=bool))
    trainer = Trainer(config, TrainConfig(steps=9, batch_size=4, seq_len=32, jitter=0.0), reader)
    judged = []
    monkeypatch.setattr(trainer._guard, "is_spike", lambda *values: judged.append(trainer.step) or False)
    assert [trainer.advance().tokens for _ in range(9)] == [128, 128, 32] * 3
    assert judged == [0, 1, 3, 4, 6, 7]
