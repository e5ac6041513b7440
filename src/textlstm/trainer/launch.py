"""Starts several training processes on this host, as `torchrun` does, and tells how they ended."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import struct
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from textlstm.errors import COMES_AGAIN, DivergedError, RunError, UsageError
from textlstm.machine import usable_cores

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig

T = TypeVar("T")

_COMING_AGAIN = {UsageError.exit_code, DivergedError.exit_code, COMES_AGAIN}  # exit codes of ranks


@dataclass(frozen=True)
class Host:
    """One of several hosts that train together.

    Attributes:
        number: of this host, from 0; the processes of the first one are the first ranks.
        total: number of hosts.
        meeting: address and port at which the first rank, on the first host, is found.
    """

    number: int
    total: int
    meeting: tuple[str, int]

    @classmethod
    def parse(cls, place: str, meeting: str) -> Host:
        """A host from words such as "1/2" and "10.0.0.1:29500".

        Raises:
            UsageError: other words.
        """
        counted, (address, _, port) = re.fullmatch(r"(\d+)/(\d+)", place), meeting.rpartition(":")
        if counted is None or not 1 <= int(counted[1]) <= int(counted[2]):
            raise UsageError(f"--host must be the number of this host of all, for example 1/2, not {place}")
        if not address or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UsageError(
                f"--meet must be an address of the first host and a free port, 10.0.0.1:29500, not {meeting}"
            )
        return cls(int(counted[1]) - 1, int(counted[2]), (address.strip("[]"), int(port)))

    def place(self) -> None:
        """Gives this process, which torchrun started as a rank of its host, its rank among those of all hosts."""
        processes = int(os.environ["WORLD_SIZE"])
        os.environ["RANK"] = str(self.number * processes + int(os.environ["RANK"]))
        os.environ["WORLD_SIZE"] = str(self.total * processes)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = self.meeting[0], str(self.meeting[1])
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # torchrun's serves this host alone


def launch(processes: int, arguments: Sequence[str], restarts: int, host: Host | None = None) -> int:
    """Runs `python -m textlstm` with these arguments as so many ranks.

    Args:
        processes: how many on this host.
        arguments: of the command line, the command first.
        restarts: how many times all are started again, to go on from the last checkpoint, after one was killed,
            crashed, or had too little memory; an error that comes again (on one host), or a user's signal, ends it.
        host: which of several this one is; each launches its own, and those meet.

    Returns:
        An exit code: 0, that of the first rank that failed, or 128 plus a signal.
    """
    os.environ.update(_variables(processes))
    if host is not None and (name := _interface_to(host.meeting)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)  # gloo looks the host's name up, which leads astray often
    for left in reversed(range(restarts + 1)):
        code, ended, hopeful = _launch_once(processes, arguments, 0 if host is None else host.number * processes)
        # Of several hosts each would have to know what ended another one: all of them try again.
        again = left > 0 and (hopeful or (host is not None and code == 1))
        if ended:
            onward = "; beginning again from the last checkpoint, if there is one" if again else ""
            print(f"{ended}{onward}", file=sys.stderr)
        if not again:
            break
        arguments = [arguments[0], "--resume", *arguments[1:]]  # behind the command, since a "--" may come later
    return code


def _launch_once(processes: int, arguments: Sequence[str], first_rank: int) -> tuple[int, str, bool]:
    """One attempt; an exit code, who died by what, if one did, and whether another attempt may go better."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    try:
        elastic_launch(_config(processes), sys.executable)("-m", "textlstm", *arguments)
    except SignalException as error:
        return 128 + int(error.sigval), "", False
    except ChildFailedError as error:
        rank, code = _cause(error)
        shown = 1 if code < 0 or code == COMES_AGAIN else code
        died = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {shown}"
        stopped = f"; all {processes} processes were stopped" if processes > 1 else ""
        return shown, f"rank {first_rank + rank} {died}{stopped}", code < 0 or code == 1
    return 0, "", False


def _cause(error: ChildFailedError) -> tuple[int, int]:
    """The rank that made the others fail, and its exit code."""
    # The first one by torch's clock of whole seconds may be one that lost a rank which told an error.
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    told = (rank for rank, code in codes.items() if code in _COMING_AGAIN)
    rank = next(told, error.get_first_failure()[0])
    return rank, codes[rank]


def _interface_to(meeting: tuple[str, int]) -> str | None:
    """The network interface by which an address is reached, or None where the system does not tell."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(meeting)  # sends nothing
            own = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # one without an address
                    if fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))[20:24] == own:
                        return name
    except (ImportError, OSError):
        pass
    return None


_SIOCGIFADDR = 0x8915  # of Linux


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
    # The launcher leaves its handlers behind, and a Ctrl-C that comes later would be none for who called this.
    handlers = {number: signal.getsignal(number) for number in _HEARD}
    try:
        results = elastic_launch(_config(processes), function)(*arguments)
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
        if threading.current_thread() is threading.main_thread():  # elsewhere none can be set, nor was
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return [results[rank] for rank in range(processes)]


#: Signals that torch's launcher handles, as far as this system has them.
_HEARD = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]


def _variables(processes: int) -> dict[str, str]:
    """What the ranks find in their environment, unless a user set it otherwise."""
    threads = str(max(1, usable_cores() // processes))
    # What torch tells by itself is a remark about buckets (see Group.loss_of), and pages about a host that is away.
    wanted = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "FATAL"}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def is_hang_up_ignored() -> bool:
    """Whether SIGHUP, the end of the terminal, is nothing to this process: under nohup, and on Windows."""
    return sys.platform == "win32" or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def _config(processes: int) -> LaunchConfig:
    from torch.distributed.launcher.api import LaunchConfig

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # our message says it in a line
    # torchrun hears SIGHUP even where nohup had it ignored; without it here the ranks inherit that, too.
    heard: dict[str, Any] = {"signals_to_handle": "SIGTERM,SIGINT,SIGQUIT"} if is_hang_up_ignored() else {}
    return LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2, **heard,
    )  # fmt: skip
