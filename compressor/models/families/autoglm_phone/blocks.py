"""Building blocks shared by the encoders.

Shapes: B batch, L queries, M keys, H width, N heads, K key heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

MASKED_SCORE = -1e4
"""Added to the attention scores of masked keys; finite, so that a row without valid keys gives no
NaN."""


def rotary_angles(length: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [L, D] of rotary embeddings (Su et al. 2021) at 0 … length − 1.

    Device and dtype are those of ``like``.
    """
    pairs = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    angles_LP = torch.arange(length, device=like.device, dtype=torch.float32)[
        :, None
    ] * 10000.0 ** (-pairs / width)
    angles_LD = torch.cat([angles_LP, angles_LP], dim=1)
    return angles_LD.cos().to(like.dtype), angles_LD.sin().to(like.dtype)


def rotate(x_BNLD: Tensor, cosines_LD: Tensor, sines_LD: Tensor) -> Tensor:
    """Rotate the pairs (d, d + D/2) by the angle of their position."""
    first, second = x_BNLD.chunk(2, dim=-1)
    return x_BNLD * cosines_LD + torch.cat([-second, first], dim=-1) * sines_LD


def attention_mask(valid_BM: Tensor) -> Tensor:
    """Return the mask to add to scores [B, N, L, M]: 0 for valid keys, low for other keys."""
    return ((1.0 - valid_BM) * MASKED_SCORE)[:, None, None, :]


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with optional rotary positions."""

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
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the attention's output [B, L, H].

        Args:
            x_BLH: input of the queries.
            memory_BMH: input of keys and values.
            mask: added to the scores, broadcast to [B, N, L, M].
            rotary: ``rotary_angles`` of the M keys; the queries are at the last L positions.
        """
        query = self._split(self.query(x_BLH), self.heads)
        key = self._split(self.key(memory_BMH), self.key_heads)
        value = self._split(self.value(memory_BMH), self.key_heads)
        if rotary is not None:
            cosines, sines = rotary
            query = rotate(query, cosines[-query.shape[2] :], sines[-query.shape[2] :])
            key = rotate(key, cosines, sines)
        if self.key_heads not in (1, self.heads):  # a single one is broadcast
            group = self.heads // self.key_heads
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        scores_BNLM = query @ key.transpose(2, 3) * self.head_width**-0.5
        if mask is not None:
            scores_BNLM = scores_BNLM + mask
        attended_BNLD = scores_BNLM.softmax(dim=-1) @ value
        out: Tensor = self.out(attended_BNLD.transpose(1, 2).flatten(2))
        return out


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) without biases, as in ChatGLM2 and later."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, ffn, bias=False)
        self.up = nn.Linear(width, ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., H] to [..., H]."""
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
        self, x_BLH: Tensor, mask: Tensor | None = None, rotary: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Map [B, L, H] to [B, L, H]; ``mask`` and ``rotary`` as of ``Attention``."""
        normed = self.attention_norm(x_BLH)
        x_BLH = x_BLH + self.attention(normed, normed, mask, rotary)
        out: Tensor = x_BLH + self.down(functional.gelu(self.up(self.ffn_norm(x_BLH))))
        return out
