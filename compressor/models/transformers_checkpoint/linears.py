"""The linear layers of a decoder layer: which share an input, and what before them takes up a scale of it; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compressor.models.transformers_checkpoint.layouts import Layout, decoder_of


@dataclass(frozen=True, slots=True)
class Source:
    """What makes an input, such that dividing its channels there and multiplying them in the weights changes nothing."""

    module: str
    """In the decoder layer."""
    kind: Literal["norm", "rows"]
    """The weight of a norm, or the last rows of a linear layer (all of them, or of a fused one its second part)."""
    offset: float = 0.0
    """What the norm adds to its weight."""
    repeats: int = 1
    """How many channels in turn come from the same row, in blocks of ``block``: heads that share a value head."""
    block: int = 1


@dataclass(frozen=True, slots=True)
class Site:
    """Linear layers of a decoder layer that read the same input."""

    name: str
    linears: tuple[str, ...]
    source: Source
    block: str | None = None
    """The module whose result is that of this site, its only linear layer coming last."""
    adds: bool = False
    """Whether that result is added to the residual stream as it is."""
    with_weights: bool = False
    """Whether the block hands out the attention's weights beside it."""


def sites_of(tree: Mapping[str, Any]) -> tuple[Site, ...]:
    """In the order in which a decoder layer computes them."""
    decoder = decoder_of(tree)
    layout = decoder.layout
    plain = len(layout.norms) == 2
    heads = Source("self_attn.v_proj", "rows", repeats=decoder.heads_per_key, block=decoder.head_width)
    gate_up = ("mlp.gate_up_proj",) if layout.fused_ffn else ("mlp.gate_proj", "mlp.up_proj")
    return (
        Site(
            "attention",
            tuple(f"self_attn.{one}_proj" for one in "qkv"),
            Source("input_layernorm", "norm", layout.norm_offset),
        ),
        Site("attention output", ("self_attn.o_proj",), heads, "self_attn", plain, with_weights=True),
        Site("ffn", gate_up, Source(layout.ffn_norm, "norm", layout.norm_offset)),
        Site("ffn output", ("mlp.down_proj",), Source(gate_up[-1], "rows"), "mlp", plain),
    )


def layers_of(layout: Layout) -> str:
    """The name of the stack of decoder layers."""
    return f"{layout.root}.layers"
