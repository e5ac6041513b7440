"""Starts several training processes on this host, as `torchrun` does, and tells how they ended."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence


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
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a remark about buckets, see Group.loss_of
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the message below says it in a line
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=restarts, monitor_interval=0.2,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "textlstm", *arguments)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        died = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        print(f"rank {rank} {died}; all {processes} processes were stopped", file=sys.stderr)
        return code if code > 0 else 1
    return 0
