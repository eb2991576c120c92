"""What packing will take, from the widths of a checkpoint alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compressor.engine.contract import Estimate, ModelFacts
from compressor.models.transformers_checkpoint.arithmetic import parameters
from compressor.models.transformers_checkpoint.layouts import decoder_of
from passes.awq.step import AwqConfig, tree_of

_PROCESS_BYTES = 600 << 20
"""A process with torch, transformers and what torch keeps; measured."""


def estimate(config: AwqConfig, parent: ModelFacts) -> Estimate:
    """Peak memory, disk and the size of what comes out; the time depends on samples whose length a plan does not know."""
    tree = tree_of(parent)
    if tree is None:
        return Estimate(parent)
    from passes.awq.quantizing import effective_bits, weights_of

    packed = weights_of(tree)
    others = sum(parameters(tree).values()) - packed
    size = int(packed * (config.effective_bits or effective_bits(tree, config.grids[0])) / 8) + 2 * others
    return Estimate(
        replace(parent, size_bytes=size),
        peak_memory_bytes=_PROCESS_BYTES + _memory(tree, packed),
        disk_bytes=2 * size,
    )


def _memory(tree: dict[str, Any], packed: int) -> int:
    """The layer, and the larger of its widest input's matrices and the embedding."""
    decoder = decoder_of(tree)
    layer = 4 * packed // decoder.layers
    widest = max(decoder.ffn, decoder.hidden)
    grams = 3 * 4 * widest**2
    working = 6 * 4 * widest * min(decoder.hidden, 4096)
    embedding = 4 * decoder.vocabulary * decoder.hidden
    return max(layer + grams + working, embedding + embedding // 2)
