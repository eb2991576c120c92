"""Building blocks that the encoders share.

Shapes: B batch, L queries, M keys, H width, N heads, K key heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN_SCORE = -1e4
"""Added to the scores of keys that must not be seen; finite, so that a row without any key gives no NaN."""


def rotations(length: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [L, D] of rotary position embeddings (Su et al. 2021) for positions 0 … length-1."""
    pairs = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    angles_LP = torch.arange(length, device=like.device, dtype=torch.float32)[
        :, None
    ] * 10000.0 ** (-pairs / width)
    angles_LD = torch.cat([angles_LP, angles_LP], dim=1)
    return angles_LD.cos().to(like.dtype), angles_LD.sin().to(like.dtype)


def rotate(x_BNLD: Tensor, cosines_LD: Tensor, sines_LD: Tensor) -> Tensor:
    """Turn the pairs (d, d + D/2) by the angle of their position."""
    first, second = x_BNLD.chunk(2, dim=-1)
    return x_BNLD * cosines_LD + torch.cat([-second, first], dim=-1) * sines_LD


def hiding_mask(present_BM: Tensor) -> Tensor:
    """What to add to scores [B, N, L, M] so that keys with presence 0 are not seen."""
    return ((1.0 - present_BM) * HIDDEN_SCORE)[:, None, None, :]


class Attention(nn.Module):
    """Multi-head attention with grouped keys (Ainslie et al. 2023) and optional rotary positions."""

    def __init__(
        self, width: int, heads: int, key_heads: int, head_width: int, *, bias: bool
    ) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_width = heads, key_heads, head_width
        self.query = nn.Linear(width, heads * head_width, bias=bias)
        self.key = nn.Linear(width, key_heads * head_width, bias=bias)
        self.value = nn.Linear(width, key_heads * head_width, bias=bias)
        self.out = nn.Linear(heads * head_width, width, bias=bias)

    def _split(self, x_BLF: Tensor, heads: int) -> Tensor:
        return x_BLF.reshape(*x_BLF.shape[:2], heads, self.head_width).transpose(1, 2)

    def forward(
        self,
        x_BLH: Tensor,
        memory_BMH: Tensor,
        mask: Tensor | None = None,
        turn: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Each query looks at every key.

        Args:
            x_BLH: queries.
            memory_BMH: what keys and values are made of.
            mask: added to the scores, broadcast over [B, N, L, M].
            turn: ``rotations`` of the M keys; the queries are the last L of those positions.
        """
        query = self._split(self.query(x_BLH), self.heads)
        key = self._split(self.key(memory_BMH), self.key_heads)
        value = self._split(self.value(memory_BMH), self.key_heads)
        if turn is not None:
            cosines, sines = turn
            query = rotate(query, cosines[-query.shape[2] :], sines[-query.shape[2] :])
            key = rotate(key, cosines, sines)
        if self.key_heads not in (1, self.heads):  # a single one goes with every head as it is
            group = self.heads // self.key_heads
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        scores_BNLM = query @ key.transpose(2, 3) * self.head_width**-0.5
        if mask is not None:
            scores_BNLM = scores_BNLM + mask
        seen_BNLD = scores_BNLM.softmax(dim=-1) @ value
        out: Tensor = self.out(seen_BNLD.transpose(1, 2).flatten(2))
        return out


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020), without biases, as in ChatGLM2 and later."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, ffn, bias=False)
        self.up = nn.Linear(width, ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[…, H] to [..., H]."""
        out: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return out


class TransformerLayer(nn.Module):
    """Pre-norm encoder layer with LayerNorm and GELU, as in ViT and wav2vec 2.0."""

    def __init__(self, width: int, heads: int, head_width: int, ffn: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, heads, head_width, bias=True)
        self.ffn_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, ffn)
        self.down = nn.Linear(ffn, width)

    def forward(
        self, x_BLH: Tensor, mask: Tensor | None = None, turn: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """[B, L, H] to [B, L, H]; ``mask`` and ``turn`` as in ``Attention``."""
        normed = self.attention_norm(x_BLH)
        x_BLH = x_BLH + self.attention(normed, normed, mask, turn)
        out: Tensor = x_BLH + self.down(functional.gelu(self.up(self.ffn_norm(x_BLH))))
        return out
