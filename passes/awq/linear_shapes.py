"""Arithmetic on the linear layers of a transformers checkpoint, from config.json alone."""

from __future__ import annotations

from typing import Any

from compressor.models.families.transformers.arithmetic import parameters
from compressor.models.families.transformers.layouts import decoder_shape
from compressor.models.families.transformers.linear_groups import decoder_layer_sites
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.config import WEIGHTS_PER_CHUNK, AwqConfig
from passes.common.changed_share import ChangedShare

_PROCESS_BYTES = 500 << 20
"""Memory of a process with torch, transformers and a tokenizer; measured."""
_INPUT_MATRICES = 3
"""[I, I] matrices in memory at a time: the second moments, their Cholesky factor, and the error
moments or the matrix that is factorized."""
_CHUNK_COPIES = 8
"""Tensors of the size of a rounded chunk: targets, integers, errors, gradients and others."""


def linear_shapes(tree: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of each linear layer of a decoder layer, ``*`` as its number."""
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
    stack = decoder.layout.layers_name
    return {
        f"{stack}.*.{name}": shapes[name.rpartition(".")[2]]
        for site in decoder_layer_sites(tree)
        for name in site.linears
    }


def count_decoder_weights(tree: dict[str, Any]) -> int:
    """Return the number of weights in the linear layers of all decoder layers."""
    shapes = linear_shapes(tree).values()
    return decoder_shape(tree).layers * sum(outputs * inputs for outputs, inputs in shapes)


def quantized_share(config: AwqConfig, tree: dict[str, Any]) -> ChangedShare:
    """Return the part of a checkpoint that the pass quantizes; MACs are those of a text token."""
    parts, decoder = parameters(tree), decoder_shape(tree)
    layers = count_decoder_weights(tree)
    head = parts.get("head", 0) or parts.get("embedding", 0)  # tied
    beside = {
        "the embedding": (parts.get("embedding", 0), False),
        "the head": (parts.get("head", 0), config.lm_head is not None),
        "the vision tower": (parts.get("vision", 0), config.vision is not None),
        "tensors of decoder layers": (parts.get("layers", 0) - layers, False),
    }
    quantized = layers + sum(weights for weights, chosen in beside.values() if chosen)
    floats = [(name, weights) for name, (weights, chosen) in beside.items() if not chosen]
    per_token = layers + (head if config.lm_head is not None else 0)
    return ChangedShare(
        changed=quantized,
        multiplied=parts.get("layers", 0) + parts.get("vision", 0) + head,
        total=sum(parts.values()),
        macs=per_token / (layers + decoder.vocabulary * decoder.hidden),
        largest_float=tuple(sorted((item for item in floats if item[1]), key=lambda x: -x[1])),
    )


def effective_bits(tree: dict[str, Any], grid: WeightGrid) -> float:
    """Return the bits per decoder weight on a grid, scales and zero-points included."""
    shapes = linear_shapes(tree).values()
    total = sum(outputs * inputs for outputs, inputs in shapes)
    return sum(outputs * inputs * grid.effective_bits(inputs) for outputs, inputs in shapes) / total


def packed_size_bytes(config: AwqConfig, tree: dict[str, Any]) -> int:
    """Return the size of the packed checkpoint; tensors that are not packed take 16 bits each."""
    packed = count_decoder_weights(tree)
    parts = parameters(tree)
    hidden = decoder_shape(tree).hidden
    rounded_parts = [
        (parts.get(part, 0), grid.effective_bits(hidden))
        for part, grid in (("vision", config.vision), ("head", config.lm_head))
        if grid is not None
    ]
    floats = sum(parts.values()) - packed - sum(weights for weights, _ in rounded_parts)
    bits = config.effective_bits or effective_bits(tree, config.grids[0])
    return (
        int(packed * bits / 8)
        + 2 * floats
        + sum(int(weights * bits / 8) for weights, bits in rounded_parts)
    )


def peak_memory_bytes(tree: dict[str, Any]) -> int:
    """Return the peak memory: one decoder layer, and what rounding its largest group takes.

    Activations are read in batches and add little.
    """
    decoder = decoder_shape(tree)
    layer = count_decoder_weights(tree) // decoder.layers
    attention = decoder.hidden * decoder.heads * decoder.head_width
    largest = max(attention, 2 * decoder.hidden * decoder.ffn)
    matrices = _INPUT_MATRICES * max(decoder.ffn, decoder.hidden) ** 2
    chunk = min(largest, WEIGHTS_PER_CHUNK)
    return _PROCESS_BYTES + 4 * (layer + largest + matrices + _CHUNK_COPIES * chunk)
