"""Parameters and multiply-accumulates of a checkpoint, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.families.transformers.layouts import DecoderShape, decoder_shape


def parameters(tree: Mapping[str, Any]) -> dict[str, int]:
    """Return the parameters by part; a head that is tied to the embedding counts as 0."""
    decoder = decoder_shape(tree)
    embedding = decoder.vocabulary * decoder.hidden
    parts = {
        "embedding": embedding,
        "layers": decoder.layers * sum(_layer_parameters(decoder)),
        "norm": decoder.hidden,
        "head": 0 if decoder.tied else embedding,
    }
    if decoder.layout.vision is None:
        return parts
    return {**parts, "vision": _vision_parameters(tree["vision_config"])}


def macs_per_token(tree: Mapping[str, Any]) -> int:
    """Return the MACs of one token through all layers and the head.

    The products of queries, keys and values are left out: they grow with the context.
    """
    decoder = decoder_shape(tree)
    matrices, _ = _layer_parameters(decoder)
    return decoder.layers * matrices + decoder.vocabulary * decoder.hidden


def _layer_parameters(decoder: DecoderShape) -> tuple[int, int]:
    """Return the parameters of a layer's matrices, and of its vectors."""
    query, key = decoder.heads * decoder.head_width, decoder.key_heads * decoder.head_width
    matrices = 2 * decoder.hidden * (query + key) + 3 * decoder.hidden * decoder.ffn
    vectors = (
        len(decoder.layout.norms) * decoder.hidden
        + len(decoder.layout.head_norms) * decoder.head_width
    )
    vectors += (query + 2 * key) * decoder.query_bias + decoder.hidden * decoder.out_bias
    vectors += (2 * decoder.ffn + decoder.hidden) * decoder.ffn_bias
    return matrices, vectors


def _vision_parameters(vision: Mapping[str, int]) -> int:
    """Return the parameters of ``Glm4vVisionModel``."""
    width, out = vision["hidden_size"], vision["out_hidden_size"]
    patch = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    stem = width * (patch + 1) + width * (vision["image_size"] // vision["patch_size"]) ** 2
    attention = 4 * width**2 + 3 * width * bool(vision.get("attention_bias", 0))
    block = 2 * width + attention + 3 * width * out
    downsample = out * (width * vision["spatial_merge_size"] ** 2 + 1)
    merger = out**2 + 2 * out + 3 * out * vision["intermediate_size"]
    return stem + vision["depth"] * block + 2 * width + downsample + merger
