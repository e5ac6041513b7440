"""The network: embedding, LSTM layers, output layer, with the regularisation they are trained with.

Shape letters: B rows, T time, V vocabulary, E embedding, H hidden, L layers, N = T * B tokens. Inside, time comes
first, because that is how the fused kernels read it (with the batch first, torch transposes and copies).

The state comes in as an argument and goes out as a result. Dropout happens where a generator is passed and nowhere
else, so there is no train or eval mode. How a layer runs through time is in `network.recurrence`, the loss of the
output layer in `network.losses`.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textlstm.config import ModelConfig
from textlstm.network.losses import Loss, cross_entropy
from textlstm.network.recurrence import Recurrence, fused_lstm, lstm, reference_lstm
from textlstm.state import State

__all__ = ["Loss", "RecurrentLM", "fused_lstm", "lstm", "reference_lstm"]


class LSTMLayer(nn.Module):
    """The parameters of one layer, gates in the order i, f, g, o.

    Args:
        input_size: width I of the inputs.
        hidden_size: width H of outputs and cells.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))


class Matrix(nn.Module):
    """A weight matrix and a bias, either of which may be absent; filled by the network, not by itself.

    Args:
        rows, columns: size of the matrix; without columns there is none.
        bias: whether there is a bias, one number per row.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, rows: int, columns: int | None, bias: bool = False) -> None:
        super().__init__()
        if columns is not None:
            self.weight = nn.Parameter(torch.empty(rows, columns))
        if bias:
            self.bias = nn.Parameter(torch.empty(rows))


class Features(NamedTuple):
    """Outputs of the last layer.

    Attributes:
        raw_TBH: before output dropout.
        dropped_TBH: after it.
        state: the state after the last token.
    """

    raw_TBH: Tensor
    dropped_TBH: Tensor
    state: State


class Lanes(NamedTuple):
    """Which rows of a batch a tensor holds, so that its dropout masks are those of the whole batch.

    Attributes:
        start: the first.
        total: rows of the whole batch.
    """

    start: int
    total: int


class RecurrentLM(nn.Module):
    """An LSTM language model.

    Args:
        config: shape and regularisation.
        generator: source of the initial weights; None leaves them undefined, to be loaded.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        E, H = config.embed_size, config.hidden_size
        self.embedding = Matrix(config.vocab_size, E)
        self.input = Matrix(H, E, bias=True) if config.input_projection else None
        widths = [config.input_size] + [H] * (config.num_layers - 1)
        self.lstm = nn.ModuleList(LSTMLayer(width, H) for width in widths)
        self.projection = Matrix(E, H) if config.has_output_projection else None
        self.head = Matrix(config.vocab_size, None if config.tie_embeddings else H, bias=True)
        if generator is not None:
            self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Fills the weights.

        | tensor | values |
        |---|---|
        | embedding, tied | normal, std 0.3 |
        | embedding, untied | normal, std 1, as the original program's |
        | linear layers, W, untied output | uniform within 1 / sqrt(width of the input) |
        | U (recurrent) | orthogonal for each gate (Saxe et al. 2014) |
        | biases | 0, but 1 for the forget gate (Jozefowicz et al. 2015) |
        """
        H = self.config.hidden_size
        for name, tensor in self.named_parameters():
            if name.endswith("bias"):
                tensor.zero_()
                if name.startswith("lstm"):
                    tensor[H : 2 * H] = 1.0
            elif name.endswith("weight_hh"):
                for gate in tensor.chunk(4):
                    nn.init.orthogonal_(gate, generator=generator)
            elif name == "embedding.weight":
                tensor.normal_(0, 0.3 if self.config.tie_embeddings else 1.0, generator=generator)
            else:
                bound = 1 / math.sqrt(tensor.shape[1])
                tensor.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def predict_frequencies(self, frequencies_V: NDArray[np.float64]) -> None:
        """Sets the output bias so that, before any training, tokens are about as likely as they are frequent.

        Args:
            frequencies_V: the share of each token in the training text, above 0.
        """
        self.head.bias.copy_(torch.from_numpy(np.log(frequencies_V) / self.config.logit_scale))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.embedding.weight.device
        return device

    def zero_state(self, rows: int) -> State:
        """The state before anything was read, on the network's device."""
        shape = (self.config.num_layers, rows, self.config.hidden_size)
        return State(torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device))

    def features(
        self,
        ids_BT: Tensor,
        state: State,
        generator: torch.Generator | None = None,
        recurrence: Recurrence = lstm,
        lanes: Lanes | None = None,
    ) -> Features:
        """Outputs of the last layer, before the output layer.

        Args:
            ids_BT: token ids.
            state: the state before them.
            generator: source of the dropout masks; None means no dropout.
            recurrence: how a layer is computed.
            lanes: which rows of a larger batch these are; None means all.
        """
        config = self.config
        table = _drop(self.embedding.weight, (config.vocab_size, 1), config.embed_dropout, generator)
        x_TB_ = nn.functional.embedding(ids_BT.T, table)
        if self.input is not None:
            x_TB_ = nn.functional.linear(x_TB_, self.input.weight, self.input.bias)
        x_TB_ = _drop_lanes(x_TB_, config.input_dropout, generator, lanes)
        h_L, c_L = [], []
        for number, layer in enumerate(cast(list[LSTMLayer], self.lstm)):
            if number > 0:
                x_TB_ = _drop_lanes(x_TB_, config.layer_dropout, generator, lanes)
            weight_hh = _drop(layer.weight_hh, layer.weight_hh.shape, config.weight_dropout, generator)
            x_TB_, h_BH, c_BH = recurrence(
                x_TB_, state.h_LBH[number], state.c_LBH[number], layer.weight_ih, weight_hh, layer.bias
            )
            h_L.append(h_BH)
            c_L.append(c_BH)
        dropped_TBH = _drop_lanes(x_TB_, config.output_dropout, generator, lanes)
        return Features(x_TB_, dropped_TBH, State(torch.stack(h_L), torch.stack(c_L)))

    def output_layer(self, features_NH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, weight and bias of the linear layer that gives the logits, their scale folded in."""
        if self.projection is not None:
            features_NH = nn.functional.linear(features_NH, self.projection.weight)
        weight = self.embedding.weight if self.config.tie_embeddings else self.head.weight
        scale = self.config.logit_scale
        return (
            (features_NH, weight, self.head.bias)
            if scale == 1
            else (features_NH * scale, weight, self.head.bias * scale)
        )

    def logits(self, features_NH: Tensor) -> Tensor:
        """Features of N tokens to logits_NV; any leading axes will do."""
        return nn.functional.linear(*self.output_layer(features_NH))

    def forward(
        self,
        ids_BT: Tensor,
        state: State,
        generator: torch.Generator | None = None,
        recurrence: Recurrence = lstm,
    ) -> tuple[Tensor, State]:
        """Logits for the token after each given one.

        Args:
            ids_BT: token ids.
            state: the state before them.
            generator: source of the dropout masks; None means no dropout.
            recurrence: how a layer is computed.

        Returns:
            logits_BTV and the state after the last token.
        """
        features = self.features(ids_BT, state, generator, recurrence)
        return self.logits(features.dropped_TBH).transpose(0, 1), features.state

    @torch.inference_mode()
    def nll(self, x_BT: NDArray[np.int64], y_BT: NDArray[np.int64], state: State) -> tuple[NDArray[np.float64], State]:
        """Nats of each target, shape (B, T), and the state after the last input: what `metrics` asks for."""
        features = self.features(torch.from_numpy(x_BT).to(self.device), state)
        logits_NV = self.logits(features.raw_TBH.flatten(0, 1))
        targets_N = torch.from_numpy(y_BT).to(self.device).T.reshape(-1)
        nats_N = nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
        return nats_N.view(y_BT.shape[::-1]).T.cpu().double().numpy(), features.state

    def loss(
        self,
        x_BT: Tensor,
        y_BT: Tensor,
        state: State,
        generator: torch.Generator | None,
        label_smoothing: float = 0.0,
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
        lanes: Lanes | None = None,
    ) -> tuple[Loss, State]:
        """The training loss of a batch.

        Args:
            x_BT, y_BT: inputs, and the ids to be predicted after each.
            state: the state before the first token.
            generator: source of the dropout masks.
            label_smoothing: share of the target spread over the vocabulary.
            activation_penalty, temporal_penalty: weights of AR and TAR (Merity et al. 2017, arXiv 1708.01009).
            lanes: which rows of a larger batch these are; None means all.

        Returns:
            The loss, and the state after the last token, cut off from the graph.
        """
        features = self.features(x_BT, state, generator, lanes=lanes)
        targets_N = y_BT.T.reshape(-1)
        features_NH = features.dropped_TBH.flatten(0, 1)
        nats = cross_entropy(*self.output_layer(features_NH), targets_N, label_smoothing)
        objective = nats.objective
        if activation_penalty:
            objective = objective + activation_penalty * features.dropped_TBH.pow(2).mean()
        if temporal_penalty:
            objective = objective + temporal_penalty * features.raw_TBH.diff(dim=0).pow(2).mean()
        after = State(features.state.h_LBH.detach(), features.state.c_LBH.detach())
        return Loss(objective, nats.nats), after


def _drop(
    tensor: Tensor, mask_shape: tuple[int, ...] | torch.Size, p: float, generator: torch.Generator | None
) -> Tensor:
    """Dropout by a mask that is constant along the axes where its shape has 1 (Gal & Ghahramani 2016)."""
    if generator is None or p == 0:
        return tensor
    return tensor * _kept(mask_shape, p, generator).to(tensor.dtype).div_(1 - p)


def _drop_lanes(x_TBI: Tensor, p: float, generator: torch.Generator | None, lanes: Lanes | None) -> Tensor:
    """Locked dropout: one mask for all steps. A part of a batch takes its rows of the mask of the whole."""
    if generator is None or p == 0:
        return x_TBI
    start, total = (0, x_TBI.shape[1]) if lanes is None else lanes
    kept = _kept((1, total, x_TBI.shape[2]), p, generator)[:, start : start + x_TBI.shape[1]]
    return x_TBI * kept.to(x_TBI.dtype).div_(1 - p)


def _kept(shape: tuple[int, ...] | torch.Size, p: float, generator: torch.Generator) -> Tensor:
    """What dropout keeps, as booleans: 16 random bits for each, so p is rounded to a 65,536th.

    Four come from each random integer. `bernoulli_` draws them one after the other on one core: the masks of two
    recurrent matrices of 320 units took 4.5 ms of a training step's 44, these take 1.
    """
    count = math.prod(shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    words.random_(-(1 << 63), None, generator=generator)
    return (words.view(torch.int16)[:count] >= min(round(p * 65536), 65535) - 32768).view(shape)
