"""Weights that take a step after each segment, and the measuring of the gradients that they take it by."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textlstm.config import LearnConfig
from textlstm.learning.statistics import code, decode
from textlstm.metrics import Progress, no_progress
from textlstm.model_file import ModelFile
from textlstm.network import RecurrentLM, fused_lstm, reference_lstm
from textlstm.state import State

#: Segments of the training text whose gradients are measured, and those that follow each other.
SEGMENTS, _RUN = 100, 10


class Reading(NamedTuple):
    """What the network makes of some tokens.

    Attributes:
        logits_TV: of the token after each.
        hidden_TH: outputs of the last layer.
        state: after the last of them.
    """

    logits_TV: Tensor
    hidden_TH: Tensor
    state: State


@dataclass(frozen=True)
class _Step:
    """How a tensor steps.

    Attributes:
        length: what the gradient is multiplied by.
        pull: share of the way back to the trained weights.
    """

    length: Tensor
    pull: Tensor


class DynamicEvaluation:
    """A network whose weights are its own, and move; those of the file stay what they are.

    All of it runs on one thread, so that the same text gives the same bits again on the same machine.

    Args:
        file: the model that it begins from.
        config: how it learns. Without statistics in the file, root mean squares are gathered on the way, one for each
            tensor, from the segments read so far.
    """

    def __init__(self, file: ModelFile, config: LearnConfig) -> None:
        self.config = config
        self._network = _network(file)
        self._parameters = dict(self._network.named_parameters())
        self._trained = {name: tensor.detach().clone() for name, tensor in self._parameters.items()}
        self._steps = None
        self._squares, self._segments = dict.fromkeys(self._parameters, 0.0), 0
        if file.statistics:
            rms = {name: torch.from_numpy(array) for name, array in decode(file.config, file.statistics).items()}
            self._steps = self._steps_of(rms)

    def copy(self) -> DynamicEvaluation:
        """One whose weights move by themselves; the trained ones are shared."""
        other = copy.copy(self)
        other._network = copy.deepcopy(self._network)
        other._parameters = dict(other._network.named_parameters())
        other._squares = dict(self._squares)
        return other

    def zero_state(self) -> State:
        """The state before anything was read, of one row, as tensors."""
        return self._network.zero_state(1)

    def read(self, ids_T: NDArray[np.int64], state: State, to_learn: bool) -> Reading:
        """Predicts the token after each of some.

        Args:
            ids_T: the tokens.
            state: before them, as tensors.
            to_learn: whether `learn` will want the gradient of the logits.
        """
        # oneDNN packs all weights anew at every call: for one token that costs more than the equations do.
        recurrence = reference_lstm if len(ids_T) == 1 and not to_learn else fused_lstm
        with _one_thread(), torch.set_grad_enabled(to_learn):
            features = self._network.features(torch.from_numpy(ids_T)[None], state, recurrence=recurrence)
            logits_TV = self._network.logits(features.raw_TBH[:, 0])
        after = State(features.state.h_LBH.detach(), features.state.c_LBH.detach())
        return Reading(logits_TV, features.raw_TBH[:, 0].detach(), after)

    def learn(self, logits_TV: Tensor, targets_T: NDArray[np.int64]) -> None:
        """Takes a step after a segment.

        Args:
            logits_TV: as `read` gave them, with these weights, to be learnt from.
            targets_T: the tokens that came.
        """
        with _one_thread():
            gradients = _gradients(self._network, logits_TV, targets_T)
            steps = self._steps_so_far(gradients) if self._steps is None else self._steps
            with torch.no_grad():
                for name, tensor in self._parameters.items():
                    step = steps[name]
                    tensor.lerp_(self._trained[name], step.pull).addcmul_(gradients[name], step.length, value=-1)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the weights as they are now."""
        return {name: tensor.detach().numpy().copy() for name, tensor in self._parameters.items()}

    def _steps_of(self, rms: Mapping[str, Tensor]) -> dict[str, _Step]:
        numbers = sum(tensor.numel() for tensor in self._parameters.values())
        total = math.fsum(float(rms[n].double().mean()) * t.numel() for n, t in self._parameters.items())
        mean = max(total / numbers, 1e-20)
        config = self.config
        return {
            name: _Step(config.learn_rate / (tensor + mean), (tensor * (config.learn_decay / mean)).clamp_max(1))
            for name, tensor in rms.items()
        }

    def _steps_so_far(self, gradients: Mapping[str, Tensor]) -> dict[str, _Step]:
        self._segments += 1
        for name, gradient in gradients.items():
            self._squares[name] += float(gradient.square().mean())
        return self._steps_of(
            {name: torch.tensor(math.sqrt(squares / self._segments)) for name, squares in self._squares.items()}
        )


def measure(
    file: ModelFile,
    ids: NDArray[np.int32],
    segment: int = LearnConfig().learn_segment,
    segments: int = SEGMENTS,
    progress: Progress = no_progress,
) -> dict[str, NDArray[np.uint8]]:
    """Measures the gradients of a finished model on a text it was trained on, or one like it.

    Args:
        file: the model.
        ids: the text; at least two tokens.
        segment: tokens of a segment.
        segments: how many are read, in runs from places spread evenly over the text; fewer where it is short.
        progress: told how many segments are done.

    Returns:
        The statistics as they stand in a model file.
    """
    network = _network(file)
    sums: dict[str, list[NDArray[np.float64]]] = {
        name: [np.zeros(size) for size in tensor.shape] for name, tensor in network.named_parameters()
    }
    runs = max(1, min(segments // _RUN, len(ids) // (segment * _RUN)))
    done = 0
    with _one_thread():
        for start in np.linspace(0, max(0, len(ids) - segment * _RUN - 1), runs).astype(int):
            state = network.zero_state(1)
            for begin in range(start, min(start + segment * _RUN, len(ids) - 1), segment):
                part = np.asarray(ids[begin : begin + segment + 1], dtype=np.int64)
                features = network.features(torch.from_numpy(part[None, :-1]), state, recurrence=fused_lstm)
                gradients = _gradients(network, network.logits(features.raw_TBH[:, 0]), part[1:])
                for name, gradient in gradients.items():
                    squares = gradient.square()
                    for axis, total in enumerate(sums[name]):
                        others = [other for other in range(squares.ndim) if other != axis]
                        total += (squares.mean(others) if others else squares).numpy()
                state = State(features.state.h_LBH.detach(), features.state.c_LBH.detach())
                done += 1
                progress(done, runs * _RUN)
    return code({name: tuple(total / max(done, 1) for total in parts) for name, parts in sums.items()})


def _network(file: ModelFile) -> RecurrentLM:
    network = RecurrentLM(file.config)
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in file.weights.items()})
    return network


def _gradients(network: RecurrentLM, logits_TV: Tensor, targets_T: NDArray[np.int64]) -> dict[str, Tensor]:
    loss = torch.nn.functional.cross_entropy(logits_TV, torch.from_numpy(targets_T))
    names, tensors = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, tensors), strict=True))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
