"""The text model: an encoder and a decoder of GLM layers over one tied embedding.

After GLM (Du et al. 2022): the encoder reads part A in both directions. The decoder generates part
B; each of its positions attends to all of A and to the earlier positions of B, in one attention
over [A; B] instead of a separate cross-attention. Layers are those of ChatGLM2 and later: RMSNorm
(Zhang & Sennrich 2019), rotary positions, grouped keys, SwiGLU.

Shapes: B batch, L tokens, M memory, H hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compressor.models.families.autoglm_phone.blocks import (
    Attention,
    GatedFeedForward,
    attention_mask,
    rotary_angles,
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
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Map [B, L, H] to [B, L, H]; the mask covers the M + L positions attended to."""
        context = x_BLH if memory_BMH is None else torch.cat([memory_BMH, x_BLH], dim=1)
        context = self.attention_norm(context)
        queries_BLH = context[:, -x_BLH.shape[1] :]
        x_BLH = x_BLH + self.dropout(self.attention(queries_BLH, context, mask, rotary))
        out: Tensor = x_BLH + self.dropout(self.ffn(self.ffn_norm(x_BLH)))
        return out


class TextEncoder(nn.Module):
    """Bidirectional encoder of a command: embedded tokens, or speech vectors from the adapter."""

    def __init__(self, config: PhoneConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        nn.init.normal_(self.embedding.weight, std=config.hidden**-0.5)
        self.layers = nn.ModuleList(GLMLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-5)

    def forward(self, x_BLH: Tensor, valid_BL: Tensor) -> Tensor:
        """Map embedded positions to states, [B, L, H]; where ``valid_BL`` is 0 they are masked."""
        rotary = rotary_angles(x_BLH.shape[1], self.head_width, x_BLH)
        mask = attention_mask(valid_BL)
        for layer in self.layers:
            x_BLH = layer(x_BLH, None, mask, rotary)
        out: Tensor = self.norm(x_BLH)
        return out


class TextDecoder(nn.Module):
    """Decoder whose states, multiplied by the tied embedding, are the logits of the next token."""

    def __init__(self, config: PhoneConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.layers = nn.ModuleList(GLMLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-5)

    def forward(self, x_BLH: Tensor, memory_BMH: Tensor) -> Tensor:
        """Map the embedded answer so far [B, L, H] to states; causal, with a memory [B, M, H]."""
        length, memory = x_BLH.shape[1], memory_BMH.shape[1]
        rotary = rotary_angles(memory + length, self.head_width, x_BLH)
        mask = None
        if length > 1:
            causal_LL = torch.ones(length, length, dtype=x_BLH.dtype, device=x_BLH.device).tril()
            valid_LM = torch.cat([causal_LL.new_ones(length, memory), causal_LL], dim=1)
            mask = attention_mask(valid_LM)[:, 0, 0][None, None]
        for layer in self.layers:
            x_BLH = layer(x_BLH, memory_BMH, mask, rotary)
        out: Tensor = self.norm(x_BLH)
        return out
