"""The reference engine: the network itself, by torch, on the CPU or a GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from textlstm.engine import Engine
from textlstm.model_file import ModelFile
from textlstm.network import RecurrentLM, fused_lstm, reference_lstm
from textlstm.state import State


class TorchEngine(Engine):
    """Runs a model by torch.

    Args:
        file: the model.
        threads: cores that torch may use; None leaves it to torch.
        device: where to run; None takes a GPU if there is one.
    """

    name = "torch"

    def __init__(self, file: ModelFile, threads: int | None = None, device: str | None = None) -> None:
        super().__init__(file.config)
        if threads is not None:
            torch.set_num_threads(threads)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = RecurrentLM(file.config)
        self._network.load_state_dict({name: torch.from_numpy(array) for name, array in file.weights.items()})
        self._network.to(device)

    @torch.inference_mode()
    def run(
        self, ids_BT: NDArray[np.int64], state: State, positions_P: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], State]:
        network, device = self._network, self._network.device
        # oneDNN packs all weights anew at every call: for one token that costs more than the equations do.
        by_steps = device.type == "cpu" and ids_BT.shape[1] == 1
        before = State(torch.from_numpy(state.h_LBH).to(device), torch.from_numpy(state.c_LBH).to(device))
        recurrence = reference_lstm if by_steps else fused_lstm
        raw_TBH, _, after = network.features(torch.from_numpy(ids_BT).to(device), before, recurrence=recurrence)
        features_BPH = raw_TBH[torch.from_numpy(positions_P).to(device)].transpose(0, 1)
        logits_BPV = network.logits(features_BPH)
        return logits_BPV.cpu().numpy(), State(after.h_LBH.cpu().numpy(), after.c_LBH.cpu().numpy())
