"""The optimizer against torch's own."""

import subprocess
import sys

import torch
from torch import nn

from textlstm.trainer.optimizer import AdamW

SHAPES = {"matrix": (5, 7), "vector": (7,), "never used": (3, 2)}


def weights() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def test_steps_are_those_of_torch_bit_for_bit():
    ours, theirs = weights(), weights()
    optimizer = AdamW(ours, beta1=0.8, beta2=0.97, weight_decay=0.3)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["matrix"], theirs["never used"]], "weight_decay": 0.3},
            {"params": [theirs["vector"]], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.97),
        fused=True,
    )
    generator = torch.Generator().manual_seed(1)
    for k in range(6):
        for name in ("matrix", "vector"):
            ours[name].grad = torch.randn(SHAPES[name], generator=generator)
            theirs[name].grad = ours[name].grad.clone()
        for group in reference.param_groups:
            group["lr"] = 0.1 / (k + 1)
        reference.step()
        optimizer.step(0.1 / (k + 1))
        optimizer.clear_gradients()
        assert all(p.grad is None for p in ours.values())
    assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES)
    assert not torch.equal(ours["matrix"], weights()["matrix"])
    kept = dict(optimizer.named_moments())
    assert kept.keys() == {f"{m}.{name}" for m in ("exp_avg", "exp_avg_sq", "step") for name in ("matrix", "vector")}
    assert all(
        torch.equal(kept[f"{m}.{name}"], value)
        for name in ("matrix", "vector")
        for m, value in reference.state[theirs[name]].items()
    )


def test_moments_come_back_with_a_restore():
    def gradients(parameters: dict[str, nn.Parameter]) -> None:
        for parameter in parameters.values():
            parameter.grad = parameter.detach().sin()

    ours, again = weights(), weights()
    first, second = (AdamW(p, 0.9, 0.99, 0.1) for p in (ours, again))
    for _ in range(2):
        gradients(ours)
        first.step(0.01)
    with torch.no_grad():
        for name, parameter in again.items():
            parameter.copy_(ours[name])
    second.restore({name: moment.clone() for name, moment in first.named_moments()})
    for parameters, optimizer in ((ours, first), (again, second)):
        gradients(parameters)
        optimizer.step(0.01)
    assert all(torch.equal(ours[name], again[name]) for name in SHAPES)


def test_training_does_not_import_the_compiler_of_torch(tmp_path):
    """It takes longer than all the rest of a start together, torch aside."""
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 50)
    command = ["train", str(text), "--out", str(tmp_path / "run"), "--steps", "2", "--tokenizer", "char", "--quiet"]
    program = (
        f"import sys; sys.argv = {['textlstm', *command, '--hidden-size', '8', '--embed-size', '8']}\n"
        "from textlstm.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
