"""Where a model is trained, and in which arithmetic: on a GPU that computes rightly, else on the processor.

A GPU is tried before it is trusted: a small network's loss and gradients are computed on it and on the processor. On
Apple's mps, LSTMs have given numbers that are not finite, or wrong ones without a word, in more than one version of
torch and of the system; a run of hours should not find that out.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from textlstm.config import DEVICES, ModelConfig
from textlstm.errors import RunError, UsageError
from textlstm.network import RecurrentLM

_ALLOWED = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.1}  # relative error of a gradient against the processor's in fp32


def choose_device(name: str, precision: str, notice: Callable[[str], None]) -> str:
    """Where to train.

    Args:
        name: one of `DEVICES`; "auto" takes the first GPU that there is and that passes the trial.
        precision: of the training, as in TrainConfig.
        notice: told why a GPU that is there was not taken.

    Returns:
        A device of torch; with several processes on a host each gets its own GPU.

    Raises:
        UsageError: there is no such device.
        RunError: it is there and computes wrongly.
    """
    kinds = [kind for kind in DEVICES if kind != "auto" and is_available(kind)]
    if name != "auto":
        if name not in kinds:
            raise UsageError(
                f"torch {torch.__version__} finds no {name} here, only {', '.join(kinds)}; name another --device"
            )
        kinds = [name]
    for kind in (kind for kind in kinds if kind != "cpu"):
        device = f"{kind}:{_own_number(kind)}" if kind in ("cuda", "xpu") else kind
        fault = fault_of(device, precision)
        if fault is None:
            return device
        told = f"{device} fails a small trial against the processor: {fault}"
        if name != "auto":
            raise RunError(f"{told}. Use --device cpu, another --precision, or another version of torch")
        notice(f"{told}; it is not used")
    return "cpu"


def usual_precision(device: str) -> str:
    """The precision of a run that names none: bf16 where a processor multiplies it in tiles (AMX), else fp32.

    Steps of 2 x 192 to 2 x 512 take 1.3 to 1.6 times as long in fp32 there, and the losses are the same.

    Args:
        device: where it trains.
    """
    told: Mapping[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if device == "cpu" and told.get("amx_bf16") else "fp32"


def is_available(kind: str) -> bool:
    """Whether torch sees a device of this kind."""
    match kind:
        case "cuda":
            return torch.cuda.is_available()
        case "mps":
            return torch.backends.mps.is_available()
        case "xpu":
            return torch.xpu.is_available()
    return kind == "cpu"


def _own_number(kind: str) -> int:
    number = torch.cuda.device_count() if kind == "cuda" else torch.xpu.device_count()
    return int(os.environ.get("LOCAL_RANK", "0")) % max(1, number)


def fault_of(device: str, precision: str) -> str | None:
    """What is wrong with a device: a small network's loss, gradients and dropout there against the processor's.

    Args:
        device: to try.
        precision: of the training.

    Returns:
        What was found, or None.
    """
    sizes = {"vocab_size": 50, "embed_size": 24, "hidden_size": 32, "num_layers": 2}
    none = dict.fromkeys(("input_dropout", "layer_dropout", "output_dropout", "weight_dropout"), 0.0)
    reference = RecurrentLM(ModelConfig(**sizes, **none), torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, sizes["vocab_size"], (3, 33)))
    try:
        tried = copy.deepcopy(reference).to(device)
        expected, found = _gradients(reference, ids, "fp32"), _gradients(tried, ids, precision)
        for name, value in expected.items():
            if not bool(found[name].isfinite().all()):
                return f"{name} is not finite"
            error = float((found[name] - value).norm() / value.norm())
            if error > _ALLOWED[precision]:
                return f"{name} is off by {error:.1%}"
        dropping = RecurrentLM(ModelConfig(**sizes)).to(device)  # type: ignore[arg-type]
        dropping.load_state_dict(tried.state_dict())
        for name, value in _gradients(dropping, ids, precision, torch.Generator(device).manual_seed(1)).items():
            if not bool(value.isfinite().all()):
                return f"with dropout {name} is not finite"
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def _gradients(
    network: RecurrentLM, ids_BT: torch.Tensor, precision: str, generator: torch.Generator | None = None
) -> dict[str, torch.Tensor]:
    """The loss and all gradients of a small batch, on the processor."""
    ids_BT, state = ids_BT.to(network.device), network.zero_state(len(ids_BT))
    with arithmetic(network.device, precision):
        with autocast(network.device, precision):
            loss, _ = network.loss(ids_BT[:, :-1], ids_BT[:, 1:], state, generator)
        loss.objective.backward()  # type: ignore[no-untyped-call]
    named = {f"the gradient of {name}": p.grad.cpu() for name, p in network.named_parameters() if p.grad is not None}
    return {"the loss": loss.objective.detach().cpu(), **named}


@contextmanager
def arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Within it, products of fp32 numbers are computed as the precision says.

    On Nvidia's GPUs that is TF32 or not (torch by itself lets cuDNN's LSTM compute in TF32). On the processor bf16
    means that the large products round what they multiply, and nothing else: the recurrence, its state and all sums
    stay in fp32. With a state in bf16 (autocast of the whole layer) networks were trained that got stuck in fp32:
    after some starts a saturated cell never let go, at 18 nats per token for hundreds of tokens.
    """
    mkldnn: Any = torch.backends.mkldnn  # its module is not told to type checkers
    settings: dict[str, list[tuple[Any, str, Any]]] = {
        "cuda": [
            (owner, "fp32_precision", "tf32" if precision == "tf32" else "ieee")
            for owner in (torch.backends.cuda.matmul, torch.backends.cudnn.rnn)
        ],
        "cpu": [(mkldnn.matmul, "fp32_precision", "bf16" if precision == "bf16" else "ieee")],
    }
    with _set(*settings.get(device.type, [])):
        yield


@contextmanager
def _set(*settings: tuple[Any, str, Any]) -> Iterator[None]:
    """Sets attributes, and afterwards what was there before."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Within it, a forward pass on a GPU is computed in bf16 if that is the precision; weights stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" and device.type != "cpu")


def to_device(array: np.ndarray[tuple[int, ...], np.dtype[np.int64]], device: torch.device) -> torch.Tensor:
    """An array on a device; to a GPU it is copied from pinned memory, while the program goes on."""
    tensor = torch.from_numpy(array)
    if device.type in ("cuda", "xpu"):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it, torch uses only algorithms that give the same bits every time, which a processor's here do anyway.

    It must begin before anything is computed on a GPU: cuBLAS reads its variable once (PyTorch's page on LSTMs and
    determinism has the two values that it may have).
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:2")
    cudnn = torch.backends.cudnn
    filling = torch.utils.deterministic, "fill_uninitialized_memory", False  # helps to find errors, and costs time
    with _set((cudnn, "deterministic", True), (cudnn, "benchmark", False), filling):
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
