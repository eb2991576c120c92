"""Linear groups of a decoder layer; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.capabilities.linear_groups import Block, Site, Source
from compressor.models.families.transformers.layouts import decoder_shape


def decoder_layer_sites(tree: Mapping[str, Any]) -> tuple[Site, ...]:
    """Return the sites of a decoder layer in the order of computation."""
    decoder = decoder_shape(tree)
    layout = decoder.layout
    # With more norms, one lies between an output and the residual stream.
    is_plain = len(layout.norms) == 2
    streams = ("input_layernorm", layout.ffn_norm) if is_plain else (None, None)
    values = Source(
        "self_attn.v_proj", "rows", repeats=decoder.heads_per_key, block=decoder.head_width
    )
    gate_up = ("mlp.gate_up_proj",) if layout.fused_ffn else ("mlp.gate_proj", "mlp.up_proj")
    return (
        Site(
            "attention",
            tuple(f"self_attn.{part}_proj" for part in "qkv"),
            Source("input_layernorm", "norm", layout.norm_offset),
        ),
        Site(
            "attention output",
            ("self_attn.o_proj",),
            values,
            "self_attn",
            streams[0],
            with_weights=True,
        ),
        Site("ffn", gate_up, Source(layout.ffn_norm, "norm", layout.norm_offset)),
        Site("ffn output", ("mlp.down_proj",), Source(gate_up[-1], "rows"), "mlp", streams[1]),
    )


def decoder_blocks(tree: Mapping[str, Any]) -> tuple[Block, ...]:
    """Return the decoder layers."""
    decoder, sites = decoder_shape(tree), decoder_layer_sites(tree)
    return tuple(
        Block(f"{decoder.layout.layers_name}.{number}", sites) for number in range(decoder.layers)
    )
