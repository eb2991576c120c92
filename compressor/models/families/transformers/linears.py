"""The linear layers of a decoder layer: which share an input, and what before them takes up a scale of it; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.capabilities.linear_groups import Block, Site, Source
from compressor.models.families.transformers.layouts import Layout, decoder_of


def sites_of(tree: Mapping[str, Any]) -> tuple[Site, ...]:
    """In the order in which a decoder layer computes them."""
    decoder = decoder_of(tree)
    layout = decoder.layout
    plain = len(layout.norms) == 2  # otherwise a norm comes between a result and the stream
    streams = ("input_layernorm", layout.ffn_norm) if plain else (None, None)
    heads = Source(
        "self_attn.v_proj", "rows", repeats=decoder.heads_per_key, block=decoder.head_width
    )
    gate_up = ("mlp.gate_up_proj",) if layout.fused_ffn else ("mlp.gate_proj", "mlp.up_proj")
    return (
        Site(
            "attention",
            tuple(f"self_attn.{one}_proj" for one in "qkv"),
            Source("input_layernorm", "norm", layout.norm_offset),
        ),
        Site(
            "attention output",
            ("self_attn.o_proj",),
            heads,
            "self_attn",
            streams[0],
            with_weights=True,
        ),
        Site("ffn", gate_up, Source(layout.ffn_norm, "norm", layout.norm_offset)),
        Site("ffn output", ("mlp.down_proj",), Source(gate_up[-1], "rows"), "mlp", streams[1]),
    )


def blocks_of(tree: Mapping[str, Any]) -> tuple[Block, ...]:
    """The decoder layers."""
    decoder, sites = decoder_of(tree), sites_of(tree)
    return tuple(
        Block(f"{layers_of(decoder.layout)}.{number}", sites) for number in range(decoder.layers)
    )


def layers_of(layout: Layout) -> str:
    """The name of the stack of decoder layers."""
    return f"{layout.root}.layers"
