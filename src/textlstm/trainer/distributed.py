"""Several processes that train one model, on one host or more, by PyTorch's own distributed engine.

Each process (rank) reads some of the lanes of a batch and some of the lanes of the development part; gradients are
averaged by DistributedDataParallel, and every rank takes the same optimizer step. `torchrun` starts the ranks and
tells each its place by environment variables. What one process would compute is what several compute: dropout masks
are drawn for the whole batch on every rank, and each takes its own lanes of them.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # torch.distributed hides them from mypy

from textlstm.errors import RunError
from textlstm.network import RecurrentLM
from textlstm.trainer.checkpoint import Checkpoint

SILENCE_SECONDS = 25.0  # a rank that does not answer for so long is lost
_MEETING = timedelta(minutes=5)
_PREPARATION = timedelta(hours=12)  # others wait while the first one makes a tokenizer or encodes a text


@dataclass(frozen=True)
class Group:
    """The processes that train together; alone, every operation gives back what it is given.

    Attributes:
        rank: of this process.
        size: number of processes.
        steps: the process group of the training steps, which misses a silent rank soon; None if alone.
    """

    rank: int = 0
    size: int = 1
    steps: Any = None

    def rows(self, total: int) -> slice:
        """The lanes of this rank, of a batch of so many."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def sum(self, *values: float) -> list[float]:
        """Sums over the ranks."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, group=self.steps)
        return [float(x) for x in numbers]

    def largest(self, value: int) -> int:
        """The largest value of any rank."""
        if self.size == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self.steps)
        return int(number)

    def gather(self, rows: torch.Tensor, total: int) -> torch.Tensor:
        """The lanes (axis 1) of all ranks side by side."""
        if self.size == 1:
            return rows
        whole = rows.new_zeros(rows.shape[0], total, rows.shape[2])
        whole[:, self.rows(total)] = rows  # the rest is zero, so that a sum puts the lanes together
        dist.all_reduce(whole, group=self.steps)
        return whole

    def share(self, data: bytes | None) -> bytes:
        """What the first rank has, for all; this may take as long as its preparation does."""
        if self.size == 1:
            assert data is not None
            return data
        size = torch.tensor(0 if data is None else len(data))
        dist.broadcast(size, 0)
        content = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == 0 and data:
            content.copy_(torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()))
        dist.broadcast(content, 0)
        return content.numpy().tobytes()

    def share_checkpoint(self, checkpoint: Checkpoint | None) -> Checkpoint:
        """The first rank's checkpoint, for all."""
        from safetensors.numpy import load, save

        if self.size == 1:
            assert checkpoint is not None
            return checkpoint
        tensors = values = None
        if checkpoint is not None and self.rank == 0:
            tensors = save({name: np.ascontiguousarray(array) for name, array in checkpoint.tensors.items()})
            values = json.dumps({"step": checkpoint.step, **checkpoint.values}).encode()
        tensors, values = self.share(tensors), self.share(values)
        read = json.loads(values)
        return Checkpoint(read.pop("step"), load(tensors), read)

    @contextmanager
    def alone(self, loss: Callable[..., Any]) -> Iterator[None]:
        """Within it, gradients are kept until the next portion of the lanes brings them together."""
        with loss.no_sync() if self.size > 1 else nullcontext():  # type: ignore[attr-defined]
            yield

    def loss_of(self, network: RecurrentLM) -> Callable[..., Any]:
        """The network's loss; its gradients are averaged over the ranks on the way back."""
        if self.size == 1:
            return lambda *arguments: network.loss(*arguments)
        # Without looking for unused parameters, the buckets are laid out anew after the first step, and a resumed run
        # would add three or more gradients in another order. (torch remarks once that none is unused; `launch` and
        # TORCH_CPP_LOG_LEVEL=ERROR silence it.)
        return nn.parallel.DistributedDataParallel(
            _LossOf(network), process_group=self.steps, find_unused_parameters=True
        )


class _LossOf(nn.Module):
    """The loss as a module's forward pass, which is where DistributedDataParallel listens."""

    def __init__(self, network: RecurrentLM) -> None:
        super().__init__()
        self.network = network

    def forward(self, *arguments: Any) -> Any:
        return self.network.loss(*arguments)


def is_distributed() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun made this process part of; alone otherwise.

    Raises:
        RunError: another rank was lost.
    """
    if not is_distributed():
        yield Group()
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        dist.init_process_group(_backends(), store=_meet(rank, size), rank=rank, world_size=size, timeout=_PREPARATION)
        yield Group(rank, size, dist.new_group(timeout=timedelta(seconds=SILENCE_SECONDS)))
    except RuntimeError as error:
        if not any(
            word in str(error).lower() for word in ("gloo", "nccl", "connection", "timed out", "peer", "socket")
        ):
            raise
        raise RunError(
            f"rank {os.environ.get('RANK')} lost another rank ({str(error).splitlines()[0]}); what was trained since "
            "the last checkpoint is lost, and --resume goes on from it"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _backends() -> str:
    """What carries tensors between ranks: gloo those in main memory, the library of the GPUs theirs."""
    if torch.cuda.is_available() and dist.is_nccl_available():
        return "cpu:gloo,cuda:nccl"
    if torch.xpu.is_available() and dist.is_xccl_available():
        return "cpu:gloo,xpu:xccl"
    return "gloo"


def _meet(rank: int, size: int) -> Store:
    """The store of this attempt, once all its ranks are there.

    After a restart torchrun hands over the store of the attempt before, with the addresses of dead processes in it
    (torch 2.13), and the hosts may count restarts differently. So the first rank names the attempt anew, and nobody
    goes on before it has heard from all.
    """
    serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and rank == 0
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, None, is_master=serves, wait_for_workers=False, timeout=_MEETING)
    if rank == 0:
        name = uuid.uuid4().hex
        store.set("attempt", name)
        store.wait([f"{name}/{other}" for other in range(1, size)], _MEETING)
        store.delete_key("attempt")  # what comes later belongs to another one
        store.set(f"{name}/all", "here")
        return PrefixStore(name, store)
    while True:
        store.wait(["attempt"], _MEETING)
        name = store.get("attempt").decode()
        store.set(f"{name}/{rank}", "here")
        try:
            store.wait([f"{name}/all"], timedelta(seconds=1))
        except dist.DistStoreError:  # an attempt whose first rank is dead, or one that waits for others
            continue
        return PrefixStore(name, store)
