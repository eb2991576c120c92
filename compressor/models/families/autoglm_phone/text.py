"""The text model: an encoder and a decoder of GLM layers over one tied embedding.

After GLM (Du et al. 2022): the encoder reads part A in both directions; the decoder writes part B, each of its positions
seeing all of A and what it wrote before, through one attention over [A; B] instead of a second, cross-attending one.
Layers are those of ChatGLM2 and later: RMSNorm (Zhang & Sennrich 2019), rotary positions, grouped keys, SwiGLU.

Shapes: B batch, L tokens, M memory, H hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compressor.models.families.autoglm_phone.blocks import (
    Attention,
    GatedFeedForward,
    hiding_mask,
    rotations,
)

if TYPE_CHECKING:
    from compressor.models.families.autoglm_phone.config import PhoneConfig


class GLMLayer(nn.Module):
    """Attention over memory and own positions, then a gated feed-forward network."""

    def __init__(self, config: PhoneConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=1e-5)
        self.attention = Attention(
            config.hidden, config.heads, config.key_heads, config.head_width, bias=False
        )
        self.ffn_norm = nn.RMSNorm(config.hidden, eps=1e-5)
        self.ffn = GatedFeedForward(config.hidden, config.ffn)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BLH: Tensor,
        memory_BMH: Tensor | None,
        mask: Tensor | None,
        turn: tuple[Tensor, Tensor],
    ) -> Tensor:
        """[B, L, H] to [B, L, H]; the mask covers the M + L positions seen."""
        seen = x_BLH if memory_BMH is None else torch.cat([memory_BMH, x_BLH], dim=1)
        seen = self.attention_norm(seen)
        x_BLH = x_BLH + self.dropout(self.attention(seen[:, -x_BLH.shape[1] :], seen, mask, turn))
        out: Tensor = x_BLH + self.dropout(self.ffn(self.ffn_norm(x_BLH)))
        return out


class TextEncoder(nn.Module):
    """Reads a command in both directions: written as tokens, or spoken as vectors from the adapter."""

    def __init__(self, config: PhoneConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        nn.init.normal_(self.embedding.weight, std=config.hidden**-0.5)
        self.layers = nn.ModuleList(GLMLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-5)

    def forward(self, x_BLH: Tensor, present_BL: Tensor) -> Tensor:
        """Embedded positions [B, L, H], of which those with presence 0 are not seen, to states [B, L, H]."""
        turn = rotations(x_BLH.shape[1], self.head_width, x_BLH)
        mask = hiding_mask(present_BL)
        for layer in self.layers:
            x_BLH = layer(x_BLH, None, mask, turn)
        out: Tensor = self.norm(x_BLH)
        return out


class TextDecoder(nn.Module):
    """Writes the answer: from the start token, the state whose product with the tied embedding is the next token."""

    def __init__(self, config: PhoneConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.layers = nn.ModuleList(GLMLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-5)

    def forward(self, x_BLH: Tensor, memory_BMH: Tensor) -> Tensor:
        """Embedded answer so far [B, L, H] and memory [B, M, H] to states [B, L, H]; causal among the answer."""
        length, memory = x_BLH.shape[1], memory_BMH.shape[1]
        turn = rotations(memory + length, self.head_width, x_BLH)
        mask = None
        if length > 1:
            ahead_LL = torch.ones(length, length, dtype=x_BLH.dtype, device=x_BLH.device).tril()
            mask = hiding_mask(torch.cat([ahead_LL.new_ones(length, memory), ahead_LL], dim=1))[
                :, 0, 0
            ][None, None]
        for layer in self.layers:
            x_BLH = layer(x_BLH, memory_BMH, mask, turn)
        out: Tensor = self.norm(x_BLH)
        return out
