"""Attention heads of a decoder, for patterns that restrict the keys of single heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from compressor.models.capabilities.capability import Capability


@dataclass(frozen=True, slots=True)
class AttentionHeads(Capability):
    """The attention of a causal decoder whose keys and values are cached.

    Sizes are known without weights.
    """

    label: ClassVar[str] = "causal attention with a cache, to which a pattern of heads applies"
    remedy: ClassVar[str] = (
        "use a causal language model of transformers: Llama, Mistral, Qwen2, Qwen3, Gemma 3, GLM-4 "
        "or GLM-4V, without `attn_logit_softcapping` and without bidirectional attention"
    )

    layers_name: str
    """Module list of decoder layers; each has ``self_attn`` with ``o_proj``."""
    layers: int
    key_heads: int
    """Key-value heads of each layer."""
    heads_per_key: int
    """Query heads that share a key-value head."""
    head_width: int
    """Values of a head."""
    hidden: int
    """Width of the residual stream."""
    positions: int
    """Tokens that the model has positions for."""
    output_norm: str | None = None
    """Norm of a layer that the attention's output passes before the residual sum; None for none."""
    windowed: Mapping[int, int] = field(default_factory=dict)
    """Layers with a sliding window in all heads, and its size."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the attention modules, in the order of the layers."""
        return tuple(f"{self.layers_name}.{number}.self_attn" for number in range(self.layers))

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Layers whose heads see all keys before a token."""
        return tuple(number for number in range(self.layers) if number not in self.windowed)

    def cached_rows(self, tokens: int) -> int:
        """Return the keys that all heads hold after some tokens; windowed layers hold a window."""
        kept = (min(tokens, self.windowed.get(number, tokens)) for number in range(self.layers))
        return self.key_heads * sum(kept)
