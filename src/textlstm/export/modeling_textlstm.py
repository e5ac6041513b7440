# SPDX-License-Identifier: MIT
"""A model of textlstm for Hugging Face's transformers; a copy of this file stands in every exported folder.

An LSTM language model: embedding, an optional linear layer, LSTM layers, an optional linear layer, output layer that
may share the embedding. All that it remembers is a `TextLSTMState`, which goes in and comes out under the library's
name `past_key_values`; there is no longest text. Where the model knows a document boundary (`bos_token_id`), a text
begins behind it, whether `input_ids` names it or not. Nothing here is random: regularisation is left to textlstm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class TextLSTMConfig(PretrainedConfig):
    """The shape of the network, in textlstm's own words."""

    model_type = "textlstm"
    attribute_map = {"num_hidden_layers": "num_layers"}  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 1024,
        embed_size: int = 384,
        hidden_size: int = 384,
        num_layers: int = 2,
        tie_embeddings: bool = True,
        input_projection: bool = False,
        logit_scale: float = 1.0,
        **others: Any,
    ) -> None:
        self.vocab_size, self.embed_size, self.hidden_size = vocab_size, embed_size, hidden_size
        self.num_layers, self.tie_embeddings = num_layers, tie_embeddings
        self.input_projection, self.logit_scale = input_projection, logit_scale
        super().__init__(**{**others, "tie_word_embeddings": False})  # sharing is written out in `forward`


@dataclass
class TextLSTMState:
    """What the network remembers: outputs h and cells c (L, B, H), and how many places of the text it has read."""

    h_LBH: Tensor
    c_LBH: Tensor
    length: int = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Places that were read, as the library asks for them."""
        return self.length

    def select(self, rows_B: Tensor) -> TextLSTMState:
        """The state of some rows."""
        return TextLSTMState(self.h_LBH[:, rows_B], self.c_LBH[:, rows_B], self.length)


@dataclass
class TextLSTMOutput(ModelOutput):
    """What `forward` gives: the loss if there are labels, logits (B, T, V), and the state after the last token."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: TextLSTMState | None = None


class Layer(nn.Module):
    """The parameters of one LSTM layer, gates in the order i, f, g, o."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))

    def forward(self, x_TBI: Tensor, h_BH: Tensor, c_BH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (T, B, H) and the state after them."""
        weights = [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
        before = (h_BH[None].contiguous(), c_BH[None].contiguous())
        outputs, h, c = torch.lstm(x_TBI, before, weights, True, 1, 0.0, self.training, False, False)
        return outputs, h[0], c[0]


class Bias(nn.Module):
    """What an output layer that shares the embedding has of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(size))


class TextLSTMForCausalLM(PreTrainedModel, GenerationMixin):
    """The network; see the head of this file."""

    config_class = TextLSTMConfig
    _is_stateful = True

    def __init__(self, config: TextLSTMConfig) -> None:
        super().__init__(config)
        V, E, H = config.vocab_size, config.embed_size, config.hidden_size
        self.embedding = nn.Embedding(V, E)
        self.input = nn.Linear(E, H) if config.input_projection else None
        widths = [H if config.input_projection else E] + [H] * (config.num_layers - 1)
        self.lstm = nn.ModuleList(Layer(width, H) for width in widths)
        self.projection = nn.Linear(H, E, bias=False) if config.tie_embeddings and E != H else None
        self.head = Bias(V) if config.tie_embeddings else nn.Linear(H, V)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        for tensor in module.parameters(recurse=False):
            if tensor.dim() > 1:
                nn.init.normal_(tensor, std=0.1)
            else:
                nn.init.zeros_(tensor)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        return self.embedding

    def get_output_embeddings(self) -> None:
        """None: whether the output layer shares the embedding is the configuration's word, not the library's."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: TextLSTMState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> TextLSTMOutput | tuple[Any, ...]:
        """Logits for the token after each given one.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T); where it is 0 the state stays as it is, and so do the logits.
            past_key_values: the state before the first id; None is the beginning of a text.
            labels: (B, T), as a rule `input_ids`; shifted here, -100 counts for nothing.
            use_cache: whether the state is wanted; None is yes.
            return_dict: whether the result is an object (default) or a tuple.
            logits_to_keep: give only the logits of the last so many places; 0 is all.
        """
        mask_TB = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].T.bool()
        if mask_TB is not None and bool(mask_TB.all()):
            mask_TB = None
        before = self._begin(input_ids, mask_TB) if past_key_values is None else past_key_values
        x_TBH, state = self._read(input_ids.T, before, mask_TB)
        logits_BTV = self._logits(x_TBH[-logits_to_keep:]).transpose(0, 1)
        loss = None
        if labels is not None:
            targets = labels[:, 1:].reshape(-1).to(logits_BTV.device)
            loss = nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets)
        output = TextLSTMOutput(loss, logits_BTV, None if use_cache is False else state)
        return output.to_tuple() if return_dict is False else output

    def _begin(self, ids_BT: Tensor, mask_TB: Tensor | None) -> TextLSTMState:
        """The state before a text: behind the boundary, or zero where the text itself begins with the boundary."""
        zeros = self.embedding.weight.new_zeros(self.config.num_layers, len(ids_BT), self.config.hidden_size)
        boundary = self.config.bos_token_id
        if boundary is None:
            return TextLSTMState(zeros, zeros)
        _, behind = self._read(torch.full_like(ids_BT[:, :1].T, boundary), TextLSTMState(zeros, zeros), None)
        mask_BT = torch.ones_like(ids_BT).bool() if mask_TB is None else mask_TB.T
        first_BT = mask_BT & (mask_BT.cumsum(1) == 1)
        named_B1 = (first_BT & (ids_BT == boundary)).any(1, keepdim=True)
        return TextLSTMState(*(torch.where(named_B1, zeros, s) for s in (behind.h_LBH, behind.c_LBH)))

    def _read(self, ids_TB: Tensor, state: TextLSTMState, mask_TB: Tensor | None) -> tuple[Tensor, TextLSTMState]:
        """Outputs of the last layer (T, B, H) and the state after the last id."""
        x_TB_ = self.embedding(ids_TB)
        if self.input is not None:
            x_TB_ = self.input(x_TB_)
        h_L, c_L = [], []
        for layer, h_BH, c_BH in zip(self.lstm, state.h_LBH, state.c_LBH, strict=True):
            if mask_TB is None:
                x_TB_, h_BH, c_BH = layer(x_TB_, h_BH, c_BH)
            else:
                outputs = []
                for x_BI, mask_B in zip(x_TB_, mask_TB, strict=True):
                    _, new_h_BH, new_c_BH = layer(x_BI[None], h_BH, c_BH)
                    h_BH = torch.where(mask_B[:, None], new_h_BH, h_BH)
                    c_BH = torch.where(mask_B[:, None], new_c_BH, c_BH)
                    outputs.append(h_BH)
                x_TB_ = torch.stack(outputs)
            h_L.append(h_BH)
            c_L.append(c_BH)
        return x_TB_, TextLSTMState(torch.stack(h_L), torch.stack(c_L), state.length + len(ids_TB))

    def _logits(self, x_TBH: Tensor) -> Tensor:
        if self.projection is not None:
            x_TBH = self.projection(x_TBH)
        weight = self.embedding.weight if self.config.tie_embeddings else self.head.weight
        return nn.functional.linear(x_TBH, weight, self.head.bias) * self.config.logit_scale

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first call makes the state

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: TextLSTMState | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """The ids that the state has not read."""
        if past_key_values is not None:
            input_ids = input_ids[:, past_key_values.length :]
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }

    @staticmethod
    def _reorder_cache(past_key_values: TextLSTMState, beam_idx: Tensor) -> TextLSTMState:
        return past_key_values.select(beam_idx)
