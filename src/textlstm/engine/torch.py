"""The reference engine: the network itself, by torch, on the CPU or a GPU.

On a GPU the equations of one token are many small kernels, and starting them takes longer than they run. So a step is
captured once as a CUDA graph, in fixed memory, and played back; numbers of rows are rounded up to a power of two, so
that few graphs serve all batches. Without a GPU the same steps run uncaptured, where the tests ask for them.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from textlstm.engine import Engine
from textlstm.model_file import ModelFile
from textlstm.network import RecurrentLM, fused_lstm, reference_lstm
from textlstm.state import State

_GRAPH_ROWS = 512  # more rows than these keep a GPU busy without a graph
_WARM_UP = 3  # times a step runs before it is captured, so that libraries have made their workspaces


class TorchEngine(Engine):
    """Runs a model by torch.

    Args:
        file: the model.
        threads: cores that torch may use; None leaves it to torch.
        device: where to run; None takes a GPU if there is one.
        static: whether single steps run in fixed memory, on a GPU as a CUDA graph; None does so on a GPU.
    """

    name = "torch"

    def __init__(
        self, file: ModelFile, threads: int | None = None, device: str | None = None, static: bool | None = None
    ) -> None:
        super().__init__(file.config)
        if threads is not None:
            torch.set_num_threads(threads)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = RecurrentLM(file.config)
        self._network.load_state_dict({name: torch.from_numpy(array) for name, array in file.weights.items()})
        self._network.to(device)
        on_gpu = self._network.device.type == "cuda"
        if on_gpu:  # cuDNN packs the weights at every call; with hundreds of tokens in one, that is little
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        self._static = on_gpu if static is None else static
        self._steps: dict[int, _Step] = {}
        self._lock = threading.Lock()

    @torch.inference_mode()
    def run(
        self, ids_BT: NDArray[np.int64], state: State, positions_P: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], State]:
        network, device = self._network, self._network.device
        # oneDNN packs all weights anew at every call: for one token that costs more than the equations do.
        by_steps = device.type == "cpu" and ids_BT.shape[1] == 1
        before = State(torch.from_numpy(state.h_LBH).to(device), torch.from_numpy(state.c_LBH).to(device))
        recurrence = reference_lstm if by_steps else fused_lstm
        # By default cuDNN rounds what it multiplies to ten bits (TF32).
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            raw_TBH, _, after = network.features(torch.from_numpy(ids_BT).to(device), before, recurrence=recurrence)
        features_BPH = raw_TBH[torch.from_numpy(positions_P).to(device)].transpose(0, 1)
        logits_BPV = network.logits(features_BPH)
        return logits_BPV.cpu().numpy(), State(after.h_LBH.cpu().numpy(), after.c_LBH.cpu().numpy())

    def step(self, ids_B: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        if not self._static or len(ids_B) > _GRAPH_ROWS:
            return super().step(ids_B, state)
        rows = 1 << (len(ids_B) - 1).bit_length()
        with self._lock:
            if rows not in self._steps:
                self._steps[rows] = _Step(self._network, rows)
            return self._steps[rows](ids_B, state)


class _Step:
    """One token of some rows in fixed memory: what comes in is copied there, and what goes out from there.

    Args:
        network: the model.
        rows: how many rows there is room for; a step may have fewer.
    """

    @torch.inference_mode()
    def __init__(self, network: RecurrentLM, rows: int) -> None:
        self._network = network
        self._ids_B1 = torch.zeros(rows, 1, dtype=torch.int64, device=network.device)
        self._state = network.zero_state(rows)
        self._logits_BV = torch.zeros(rows, network.config.vocab_size, device=network.device)
        self._go = self._compute
        if network.device.type == "cuda":
            self._go = self._captured()

    def _compute(self) -> None:
        raw_1BH, _, after = self._network.features(self._ids_B1, self._state, recurrence=reference_lstm)
        self._logits_BV.copy_(self._network.logits(raw_1BH[0]))
        self._state.h_LBH.copy_(after.h_LBH)
        self._state.c_LBH.copy_(after.c_LBH)

    def _captured(self) -> Callable[[], None]:
        """The step as a CUDA graph; it must have run before, on a stream of its own."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._compute()
        return graph.replay

    @torch.inference_mode()
    def __call__(self, ids_B: NDArray[np.int64], state: State) -> tuple[NDArray[np.float32], State]:
        B = len(ids_B)
        self._ids_B1[:B, 0] = torch.from_numpy(ids_B)
        self._state.h_LBH[:, :B] = torch.from_numpy(state.h_LBH)
        self._state.c_LBH[:, :B] = torch.from_numpy(state.c_LBH)
        self._go()
        # Copies: on the CPU these would be views of memory that the next step writes to.
        h_LBH, c_LBH = (array_LBH[:, :B].cpu().numpy().copy() for array_LBH in (self._state.h_LBH, self._state.c_LBH))
        return self._logits_BV[:B].cpu().numpy().copy(), State(h_LBH, c_LBH)
