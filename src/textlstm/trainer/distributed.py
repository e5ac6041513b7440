"""Several processes that train one model, on one host or more, by PyTorch's own distributed engine.

Each process (rank) reads some of the lanes of a batch and some of the lanes of the development part; gradients are
averaged by DistributedDataParallel, and every rank takes the same optimizer step. `torchrun` starts the ranks and
tells each its place by environment variables. What one process would compute is what several compute: dropout masks
are drawn for the whole batch on every rank, and each takes its own lanes of them.

Ranks are together, where each does what the others do, or apart, where each has something of its own to do: text to
read, a file to write. That may take one of them hours. Apart they tell each other every few seconds that they live,
so that a dead one is missed soon wherever it dies.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # torch.distributed hides them from mypy

from textlstm.errors import Interrupted, LostRankError
from textlstm.network import RecurrentLM
from textlstm.trainer.checkpoint import Checkpoint

# A rank that does not answer for so long is lost; with the two below, the job stops within 30 seconds.
SILENCE_SECONDS = 20.0
_SIGN_OF_LIFE_SECONDS = 5.0
_ROLL_CALL_SECONDS = 3.0
_MEETING_SECONDS = 3600.0  # for a host that is cut off and comes back
_TELL_AFTER_SECONDS = 10.0
_PIECE = 1 << 24  # bytes that are sent at once, well within the silence


class _Apart:
    """Sums over and over, in a thread of each rank, how many ranks are ready, until all of them are."""

    def __init__(self, size: int) -> None:
        self._size, self._ready, self._left = size, threading.Event(), False
        self._error: RuntimeError | None = None
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        ready = 0
        try:
            while ready < self._size:
                number = torch.tensor(int(self._ready.wait(_SIGN_OF_LIFE_SECONDS)))
                if self._left:
                    return
                dist.all_reduce(number)
                ready = int(number)
        except RuntimeError as error:
            self._error = error
            if not self._ready.is_set() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                # What this rank does there is of no use any more; it may be waiting for something.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def end(self) -> None:
        """Waits until all ranks are ready.

        Raises:
            RuntimeError: one is lost.
        """
        self._ready.set()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what was found out about the others, if anything was."""
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """Goes without the others."""
        self._left = True
        self._ready.set()
        self._thread.join(1)


@dataclass
class Group:
    """The processes that train together; alone, every operation gives back what it is given.

    Attributes:
        rank: of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1
    _apart: _Apart | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within it all ranks call the operations below, the same ones; it begins when the last one has come."""
        if self._apart is not None:
            self._apart.end()
        yield
        if self._apart is not None:
            self._apart = _Apart(self.size)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within `together`: a while for something of one's own."""
        if self._apart is not None:
            self._apart = _Apart(self.size)
        yield
        if self._apart is not None:
            self._apart.end()

    def rows(self, total: int) -> slice:
        """The lanes of this rank, of a batch of so many."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def sum(self, value: float) -> float:
        """The sum over the ranks."""
        if self.size == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(number)
        return float(number)

    def largest(self, value: int) -> int:
        """The largest value of any rank."""
        if self.size == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number)

    def gather(self, rows: torch.Tensor, total: int) -> torch.Tensor:
        """The lanes (axis 1) of all ranks side by side."""
        if self.size == 1:
            return rows
        whole = rows.new_zeros(rows.shape[0], total, rows.shape[2])
        whole[:, self.rows(total)] = rows  # the rest is zero, so that a sum puts the lanes together
        dist.all_reduce(whole)
        return whole

    def share(self, data: bytes | None) -> bytes:
        """What the first rank has, for all."""
        if self.size == 1:
            assert data is not None
            return data
        with self.together():
            size = torch.tensor(0 if data is None else len(data))
            dist.broadcast(size, 0)
            content = torch.empty(int(size), dtype=torch.uint8)
            if self.rank == 0 and data:
                content.copy_(torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()))
            for begin in range(0, len(content), _PIECE):
                dist.broadcast(content[begin : begin + _PIECE], 0)
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
        with self.together():
            return nn.parallel.DistributedDataParallel(_LossOf(network), find_unused_parameters=True)


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
def joined(notice: Callable[[str], None] = lambda line: None) -> Iterator[Group]:
    """The group that torchrun made this process part of; alone otherwise.

    Args:
        notice: told if others are waited for.

    Raises:
        LostRankError: another rank was lost, or never came.
    """
    if not is_distributed():
        yield Group()
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store, members, group = None, list[str](), Group(rank, size)
    try:
        store, members = _meet(rank, size, notice)
        silence = timedelta(seconds=SILENCE_SECONDS)
        dist.init_process_group(_backends(), store=store, rank=rank, world_size=size, timeout=silence)
        with _started(group):
            yield group
    except RuntimeError as error:
        if not is_broken_connection(error):
            raise
        lost = "another rank" if store is None else _lost(store, rank, members)
        raise LostRankError(
            f"rank {rank} lost {lost} ({str(error).splitlines()[0]}); what was trained since the last checkpoint is "
            "lost, and --resume goes on from it"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_broken_connection(error: RuntimeError) -> bool:
    """Whether an error of torch says that another rank does not answer; it has no class of its own for that."""
    return any(word in str(error).lower() for word in _OF_CONNECTIONS)


_OF_CONNECTIONS = ("gloo", "nccl", "xccl", "connection", "timed out", "timeout", "peer", "socket", "pair closure")


@contextmanager
def _started(group: Group) -> Iterator[None]:
    """Within it the ranks are apart, until they come together; those that end well end at the same time."""
    group._apart = _Apart(group.size)
    try:
        yield
        group._apart.end()
    except KeyboardInterrupt:
        group._apart.check()  # it may have been the reason
        raise
    except Interrupted:  # all were told to stop
        group._apart.end()
        raise
    finally:
        group._apart.leave()


def _lost(store: Store, rank: int, members: Sequence[str]) -> str:
    """Which ranks do not answer any more, in words."""
    others = [other for other in range(len(members)) if other != rank]
    missing: list[int] | None = None

    def ask() -> None:
        nonlocal missing
        with suppress(RuntimeError):  # the store has gone as well
            store.set(f"alive/{rank}", "")
            while missing != []:
                missing = [other for other in others if not store.check([f"alive/{other}"])]
                time.sleep(0.1)

    asking = threading.Thread(target=ask, daemon=True)  # where the network is down, a store answers nothing for long
    asking.start()
    asking.join(_ROLL_CALL_SECONDS)
    if missing == []:
        return "its connection to another rank"
    named = ", ".join(f"rank {other} ({members[other]})" for other in (others if missing is None else missing))
    return named if missing is not None or len(others) == 1 else f"the place where all meet, and so {named}"


def _backends() -> str:
    """What carries tensors between ranks: gloo those in main memory, the library of the GPUs theirs."""
    if torch.cuda.is_available() and dist.is_nccl_available():
        return "cpu:gloo,cuda:nccl"
    if torch.xpu.is_available() and dist.is_xccl_available():
        return "cpu:gloo,xpu:xccl"
    return "gloo"


def _meet(rank: int, size: int, notice: Callable[[str], None]) -> tuple[Store, list[str]]:
    """The store of this attempt, once all its ranks are there, and what each of them is.

    After a restart torchrun hands over the store of the attempt before, with the addresses of dead processes in it
    (torch 2.13), and the hosts may count restarts differently. So the first rank names the attempt anew, and nobody
    goes on before it has heard from all.
    """
    own, attempts = f"process {os.getpid()} on {platform.node()}", _attempts(notice)
    while True:
        next(attempts)
        with suppress(dist.DistNetworkError):
            store = _store(rank)
            break
    name = uuid.uuid4().hex
    if rank == 0:
        store.set("attempt", name)
        members = [own]
        for other in range(1, size):
            _await(store, f"{name}/{other}", attempts)
            members.append(store.get(f"{name}/{other}").decode())
        store.delete_key("attempt")  # what comes later belongs to another one
        store.set(f"{name}/all", json.dumps(members))
        return PrefixStore(name, store), members
    while True:
        _await(store, "attempt", attempts)
        name = store.get("attempt").decode()
        store.set(f"{name}/{rank}", own)
        try:
            store.wait([f"{name}/all"], timedelta(seconds=1))
        except dist.DistStoreError:  # an attempt whose first rank is dead, or one that waits for others
            next(attempts)
            continue
        return PrefixStore(name, store), json.loads(store.get(f"{name}/all"))


def _store(rank: int) -> Store:
    """The store at the address that torchrun named; where it serves none, the first rank does."""
    serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and rank == 0
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(
        address, port, None, is_master=serves, wait_for_workers=False, timeout=timedelta(seconds=_TELL_AFTER_SECONDS)
    )


def _await(store: Store, key: str, attempts: Iterator[None]) -> None:
    while True:
        with suppress(dist.DistStoreError):
            store.wait([key], timedelta(seconds=1))
            return
        next(attempts)


def _attempts(notice: Callable[[str], None]) -> Iterator[None]:
    """Goes on until others should have come; tells that they are waited for."""
    began, told = time.monotonic(), False
    while (passed := time.monotonic() - began) < _MEETING_SECONDS:
        if not told and passed > _TELL_AFTER_SECONDS:
            notice(f"waiting for the other processes, at most {_MEETING_SECONDS / 60:g} minutes")
            told = True
        yield
    raise LostRankError(f"the other processes did not come within {_MEETING_SECONDS / 60:g} minutes")
