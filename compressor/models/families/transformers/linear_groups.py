"""Linear groups of a decoder layer; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.capabilities.linear_groups import Block, Site, Source
from compressor.models.capabilities.streamed_layers import MatrixShape, StreamedLayers
from compressor.models.families.transformers.arithmetic import parameters
from compressor.models.families.transformers.expected_tensors import expected_shapes
from compressor.models.families.transformers.layouts import LM_HEAD, decoder_shape

_TABLES = "embeddings."
"""Part of the vision tower with matrices that are no linear layers."""


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


def decoder_layers(tree: Mapping[str, Any]) -> StreamedLayers:
    """Return the linear layers of a checkpoint and their sizes."""
    decoder, parts = decoder_shape(tree), parameters(tree)
    layout, shapes = decoder.layout, _linear_shapes(tree)
    return StreamedLayers(
        layers_name=layout.layers_name,
        layers=decoder.layers,
        decoder={
            f"{layout.layers_name}.{number}.{name}": shape
            for number in range(decoder.layers)
            for name, shape in shapes.items()
        },
        towers=_vision_linears(tree),
        head_name=LM_HEAD,
        head=(decoder.vocabulary, decoder.hidden),
        is_head_tied=decoder.tied,
        parameters={**parts, "all": sum(parts.values())},
    )


def _linear_shapes(tree: Mapping[str, Any]) -> dict[str, MatrixShape]:
    """Return outputs and inputs of each linear layer of a decoder layer."""
    decoder = decoder_shape(tree)
    query, key = decoder.heads * decoder.head_width, decoder.key_heads * decoder.head_width
    shapes = {
        "q_proj": (query, decoder.hidden),
        "k_proj": (key, decoder.hidden),
        "v_proj": (key, decoder.hidden),
        "o_proj": (decoder.hidden, query),
        "gate_proj": (decoder.ffn, decoder.hidden),
        "up_proj": (decoder.ffn, decoder.hidden),
        "gate_up_proj": (2 * decoder.ffn, decoder.hidden),
        "down_proj": (decoder.hidden, decoder.ffn),
    }
    return {
        name: shapes[name.rpartition(".")[2]]
        for site in decoder_layer_sites(tree)
        for name in site.linears
    }


def _vision_linears(tree: Mapping[str, Any]) -> dict[str, MatrixShape]:
    """Return the linear layers of the vision tower; none without one."""
    vision = decoder_shape(tree).layout.vision
    if vision is None:
        return {}
    shapes = {
        name.removesuffix(".weight"): shape
        for name, shape in expected_shapes(tree).items()
        if name.startswith(f"{vision}.") and not name.startswith(f"{vision}.{_TABLES}")
    }
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}
