"""Fusion of screen and command: adapter, pooling, gated cross-attention, and a shared space.

Shapes: B batch, C cells, L positions of the command, S frames of speech, Q pooled queries,
H hidden, E width of the shared space, N targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.models.families.autoglm_phone.blocks import (
    MASKED_SCORE,
    Attention,
    GatedFeedForward,
)

if TYPE_CHECKING:
    from compressor.models.families.autoglm_phone.config import PhoneConfig


_VANISHING = 25.0
"""72 terms of exp(-25) do not change a sum of float32 that is at least 1."""


class GatedCrossAttention(nn.Module):
    """Cross-attention with a gate per channel: g · attended + (1 − g) · query.

    A small MLP computes the gate g from the query and the mean of the screen. A command that needs
    no screen can pass unchanged (compare the tanh gates of Flamingo, Alayrac et al. 2022).
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
        """Return the gate in (0, 1), [B, Q, H], of normed query and context."""
        mean_BQH = context_BCH.mean(dim=1, keepdim=True).expand_as(query_BQH)
        inner = functional.gelu(self.gate_in(torch.cat([query_BQH, mean_BQH], dim=-1)))
        return torch.sigmoid(self.gate_out(inner))

    def forward(self, query_BQH: Tensor, context_BCH: Tensor) -> Tensor:
        """Return the command [B, Q, H] fused with the cells [B, C, H]."""
        normed_query, normed_context = self.query_norm(query_BQH), self.context_norm(context_BCH)
        attended = self.attention(normed_query, normed_context)
        gate = self.gate(normed_query, normed_context)
        fused = gate * attended + (1.0 - gate) * query_BQH
        out: Tensor = fused + self.ffn(self.ffn_norm(fused))
        return out


class Fusion(nn.Module):
    """The modules between the encoders and the decoder."""

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
        """Apply the adapter of all modalities: a residual bottleneck (Houlsby et al. 2019)."""
        out: Tensor = x_BLH + self.adapter_out(
            functional.gelu(self.adapter_in(self.adapter_norm(x_BLH)))
        )
        return out

    def project_cells(self, vision_BCV: Tensor) -> Tensor:
        """Map vision vectors [B, C, vision_width] to the text model's width, [B, C, H]."""
        return self._adapt(self.from_vision(vision_BCV))

    def project_speech(self, speech_BSV: Tensor) -> Tensor:
        """Map speech vectors [B, S, speech_width] to the text model's width, [B, S, H]."""
        return self._adapt(self.from_speech(speech_BSV))

    def pool(self, states_BLH: Tensor, valid_BL: Tensor) -> Tensor:
        """Pool the states of a command to Q vectors [B, Q, H], weighted by learned queries."""
        scores_BQL = self.pooling @ states_BLH.transpose(1, 2)
        weights_BQL = (scores_BQL + (1.0 - valid_BL[:, None, :]) * MASKED_SCORE).softmax(dim=-1)
        return weights_BQL @ states_BLH

    def forward(self, command_BQH: Tensor, cells_BCH: Tensor) -> Tensor:
        """Return the fused command, [B, Q, H]."""
        for layer in self.layers:
            command_BQH = layer(command_BQH, cells_BCH)
        return command_BQH


def late_interaction(
    command_BLE: Tensor, targets: Tensor, valid_BL: Tensor, temperature: float
) -> Tensor:
    """Return the score of each target for each command, [B, N].

    A target's score is the log-sum-exp of its cosines with all positions of the command. This soft
    maximum compares the target with the positions that name it ("open", "the", *camera*) without a
    label for them, as MaxSim in late interaction (Khattab & Zaharia 2020) and as pooling in
    multiple-instance learning. No position has to carry the whole command.

    Args:
        command_BLE: the command's positions, of length 1; 0 where it has none.
        targets: [N, E], the same for every command; or [B, N, E].
        valid_BL: 1 where the command has a position, else 0.
        temperature: divisor of the cosines.
    """
    scores_BLN = (command_BLE / temperature) @ targets.transpose(-1, -2)
    # Far enough below any cosine to vanish in a sum of float32, yet within the range of exp:
    # torch takes ten times as long for exponentials that underflow.
    masked_score = -(2.0 / temperature + _VANISHING)
    return (scores_BLN + ((1.0 - valid_BL) * masked_score)[:, :, None]).logsumexp(dim=1)
