"""Names and shapes of a checkpoint's tensors, from config.json alone; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.models.families.transformers.layouts import (
    LM_HEAD,
    DecoderShape,
    decoder_shape,
    vision_config,
)

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(tree: Mapping[str, Any]) -> Shapes:
    """Return the shape of every tensor of the class; a tied head is left out."""
    decoder = decoder_shape(tree)
    root, table = decoder.layout.root, (decoder.vocabulary, decoder.hidden)
    shapes: Shapes = {f"{root}.embed_tokens.weight": table, f"{root}.norm.weight": (table[1],)}
    if not decoder.tied:
        shapes[f"{LM_HEAD}.weight"] = table
    layer = dict(_layer_shapes(decoder))
    for number in range(decoder.layers):
        prefix = f"{decoder.layout.layers_name}.{number}"
        shapes |= {f"{prefix}.{name}": shape for name, shape in layer.items()}
    if decoder.layout.vision is not None:
        vision = decoder.layout.vision
        tower = _vision_shapes(vision_config(tree))
        shapes |= {f"{vision}.{name}": shape for name, shape in tower}
    return shapes


def _layer_shapes(decoder: DecoderShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    layout, hidden, ffn = decoder.layout, decoder.hidden, decoder.ffn
    query, key = decoder.heads * decoder.head_width, decoder.key_heads * decoder.head_width
    for part, outputs in (("q", query), ("k", key), ("v", key)):
        yield from _linear(f"self_attn.{part}_proj", outputs, hidden, decoder.query_bias)
    yield from _linear("self_attn.o_proj", hidden, query, decoder.out_bias)
    if layout.fused_ffn:
        yield from _linear("mlp.gate_up_proj", 2 * ffn, hidden, decoder.ffn_bias)
    else:
        yield from _linear("mlp.gate_proj", ffn, hidden, decoder.ffn_bias)
        yield from _linear("mlp.up_proj", ffn, hidden, decoder.ffn_bias)
    yield from _linear("mlp.down_proj", hidden, ffn, decoder.ffn_bias)
    for norm in layout.norms:
        yield f"{norm}.weight", (hidden,)
    for norm in layout.head_norms:
        yield f"self_attn.{norm}.weight", (decoder.head_width,)


def _vision_shapes(vision: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of ``Glm4vVisionModel``."""
    width, out, patch = vision["hidden_size"], vision["out_hidden_size"], vision["patch_size"]
    inner, merge = vision["intermediate_size"], vision["spatial_merge_size"]
    positions = (vision["image_size"] // patch) ** 2
    yield "embeddings.position_embedding.weight", (positions, width)
    window = (vision["temporal_patch_size"], patch, patch)
    yield "patch_embed.proj.weight", (width, vision["in_channels"], *window)
    yield "patch_embed.proj.bias", (width,)
    for number in range(vision["depth"]):
        block = f"blocks.{number}"
        yield f"{block}.norm1.weight", (width,)
        yield f"{block}.norm2.weight", (width,)
        yield from _linear(f"{block}.attn.qkv", 3 * width, width, vision["attention_bias"])
        yield f"{block}.attn.proj.weight", (width, width)
        yield f"{block}.mlp.gate_proj.weight", (out, width)
        yield f"{block}.mlp.up_proj.weight", (out, width)
        yield f"{block}.mlp.down_proj.weight", (width, out)
    yield "merger.proj.weight", (out, out)
    yield "merger.post_projection_norm.weight", (out,)
    yield "merger.post_projection_norm.bias", (out,)
    yield "merger.gate_proj.weight", (inner, out)
    yield "merger.up_proj.weight", (inner, out)
    yield "merger.down_proj.weight", (out, inner)
    yield "post_conv_layernorm.weight", (width,)
    yield "post_layernorm.weight", (width,)
    yield "downsample.weight", (out, width, merge, merge)
    yield "downsample.bias", (out,)


def _linear(
    name: str, outputs: int, inputs: int, bias: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)
