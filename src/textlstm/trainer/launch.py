"""Starts several training processes on this host, as `torchrun` does, and tells how they ended."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from textlstm.errors import RunError

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

T = TypeVar("T")


def launch(processes: int, arguments: Sequence[str], restarts: int) -> int:
    """Runs `python -m textlstm` with these arguments as so many ranks.

    Args:
        processes: how many.
        arguments: of the command line.
        restarts: how many times all are started again after one has died.

    Returns:
        An exit code: 0, that of the first rank that failed, or 128 plus a signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    os.environ.update(_variables(processes))
    try:
        elastic_launch(_config(processes, restarts), sys.executable)("-m", "textlstm", *arguments)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        died = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        print(f"rank {rank} {died}; all {processes} processes were stopped", file=sys.stderr)
        return code if code > 0 else 1
    return 0


def call(processes: int, function: Callable[..., T], *arguments: Any) -> list[T]:
    """Calls a function of a module in so many ranks.

    Args:
        processes: how many.
        function, arguments: what each calls; they are sent there, and so are the results.

    Returns:
        The results in the order of the ranks.

    Raises:
        RunError: a rank failed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    before = {name: os.environ.get(name) for name in _variables(processes)}
    os.environ.update(_variables(processes))
    try:
        results = elastic_launch(_config(processes, 0), function)(*arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = failure.message if isinstance(failure.message, str) else failure.message["message"]
        raise RunError(f"rank {rank} of {processes} failed: {message}") from error
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return [results[rank] for rank in range(processes)]


def _variables(processes: int) -> dict[str, str]:
    """What the ranks find in their environment, unless a user set it otherwise."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    wanted = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"}  # a remark about buckets, see Group.loss_of
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _config(processes: int, restarts: int) -> LaunchConfig:
    from torch.distributed.launcher.api import LaunchConfig

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # our message says it in a line
    return LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=restarts, monitor_interval=0.2,
    )  # fmt: skip
