"""Parameters and multiply-accumulates of a checkpoint, from its config alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from compressor.models.families.transformers.expected_tensors import expected_shapes
from compressor.models.families.transformers.layouts import LM_HEAD, decoder_shape


def parameters(tree: Mapping[str, Any]) -> dict[str, int]:
    """Return the parameters by part; a head that is tied to the embedding counts as 0."""
    layout = decoder_shape(tree).layout
    prefixes = {
        "embedding": f"{layout.root}.embed_tokens.",
        "layers": f"{layout.layers_name}.",
        "norm": f"{layout.root}.norm.",
        "head": f"{LM_HEAD}.",
    }
    if layout.vision is not None:
        prefixes["vision"] = f"{layout.vision}."
    counts = {name: math.prod(shape) for name, shape in expected_shapes(tree).items()}
    return {
        part: sum(count for name, count in counts.items() if name.startswith(prefix))
        for part, prefix in prefixes.items()
    }


def macs_per_token(tree: Mapping[str, Any]) -> int:
    """Return the MACs of one token through all layers and the head.

    The products of queries, keys and values are left out: they grow with the context.
    """
    decoder = decoder_shape(tree)
    query, key = decoder.heads * decoder.head_width, decoder.key_heads * decoder.head_width
    matrices = 2 * decoder.hidden * (query + key) + 3 * decoder.hidden * decoder.ffn
    return decoder.layers * matrices + decoder.vocabulary * decoder.hidden
