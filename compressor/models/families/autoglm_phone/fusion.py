"""Where screen and command meet: one adapter for image and speech, pooling, gated cross-attention, a shared space.

Shapes: B batch, C cells, L positions of the command, Q pooled queries, H hidden, E shared width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.models.families.autoglm_phone.blocks import (
    HIDDEN_SCORE,
    Attention,
    GatedFeedForward,
)

if TYPE_CHECKING:
    from compressor.models.families.autoglm_phone.config import PhoneConfig


class GatedCrossAttention(nn.Module):
    """``out = g · attended + (1 − g) · query``: how much of the screen enters each channel of the command.

    The gate g is computed by a small MLP from the context (the query beside the screen's mean); gating keeps a command
    that needs no screen as it was (compare the tanh gates of Flamingo, Alayrac et al. 2022).
    """

    def __init__(self, config: PhoneConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.query_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.context_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.attention = Attention(
            hidden, config.heads, config.heads, config.head_width, bias=False
        )
        self.gate_in = nn.Linear(2 * hidden, config.gate)
        self.gate_out = nn.Linear(config.gate, hidden)
        self.ffn_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.ffn = GatedFeedForward(hidden, config.ffn)

    def gate(self, query_BQH: Tensor, context_BCH: Tensor) -> Tensor:
        """The gate in (0, 1): [B, Q, H], of normed query and context."""
        mean_BQH = context_BCH.mean(dim=1, keepdim=True).expand_as(query_BQH)
        inner = functional.gelu(self.gate_in(torch.cat([query_BQH, mean_BQH], dim=-1)))
        return torch.sigmoid(self.gate_out(inner))

    def forward(self, query_BQH: Tensor, context_BCH: Tensor) -> Tensor:
        """Command [B, Q, H] and cells [B, C, H] to the fused command [B, Q, H]."""
        normed_query, normed_context = self.query_norm(query_BQH), self.context_norm(context_BCH)
        attended = self.attention(normed_query, normed_context)
        gate = self.gate(normed_query, normed_context)
        fused = gate * attended + (1.0 - gate) * query_BQH
        out: Tensor = fused + self.ffn(self.ffn_norm(fused))
        return out


class Fusion(nn.Module):
    """All weights between the encoders and the decoder."""

    def __init__(self, config: PhoneConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.from_vision = nn.Linear(config.vision_width, hidden)
        self.from_speech = nn.Linear(config.speech_width, hidden)
        self.adapter_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.adapter_in = nn.Linear(hidden, config.adapter)
        self.adapter_out = nn.Linear(config.adapter, hidden)
        self.pooling = nn.Parameter(torch.zeros(config.queries, hidden))
        nn.init.normal_(self.pooling, std=hidden**-0.5)
        self.layers = nn.ModuleList(
            GatedCrossAttention(config) for _ in range(config.fusion_layers)
        )
        self.command_space = nn.Linear(hidden, config.shared, bias=False)
        self.cell_space = nn.Linear(hidden, config.shared, bias=False)

    def _adapt(self, x_BLH: Tensor) -> Tensor:
        """The cross-modal adapter: one bottleneck around a skip (Houlsby et al. 2019), the same for every modality."""
        out: Tensor = x_BLH + self.adapter_out(
            functional.gelu(self.adapter_in(self.adapter_norm(x_BLH)))
        )
        return out

    def cells(self, vision_BCV: Tensor) -> Tensor:
        """Vision vectors [B, C, vision_width] to the text model's width [B, C, H]."""
        return self._adapt(self.from_vision(vision_BCV))

    def spoken(self, speech_BSV: Tensor) -> Tensor:
        """Speech vectors [B, S, speech_width] to the text model's width [B, S, H]."""
        return self._adapt(self.from_speech(speech_BSV))

    def pool(self, states_BLH: Tensor, present_BL: Tensor) -> Tensor:
        """A command's states to Q vectors [B, Q, H]: each a mean weighed by a learnt query."""
        scores_BQL = self.pooling @ states_BLH.transpose(1, 2)
        weights_BQL = (scores_BQL + (1.0 - present_BL[:, None, :]) * HIDDEN_SCORE).softmax(dim=-1)
        return weights_BQL @ states_BLH

    def forward(self, command_BQH: Tensor, cells_BCH: Tensor) -> Tensor:
        """The command in the light of the screen: [B, Q, H]."""
        for layer in self.layers:
            command_BQH = layer(command_BQH, cells_BCH)
        return command_BQH
