"""What packing will take, from the widths of a checkpoint alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compressor.engine.contract import Estimate
from compressor.models.facts import ModelFacts
from compressor.models.families.transformers.arithmetic import parameters
from compressor.models.families.transformers.layouts import decoder_of
from passes.awq.step import WEIGHTS_AT_ONCE, AwqConfig, tree_of

_PROCESS_BYTES = 500 << 20
"""A process with torch, transformers and a tokenizer; measured."""
_MATRICES = 3
"""As large as H at a time: H, its factor, and what the factor is made from or what entered beside what should."""
_COPIES = 8
"""Of the weights that are rounded at a time: targets, integers, errors, slopes."""


def estimate(config: AwqConfig, parent: ModelFacts) -> Estimate:
    """Peak memory, disk and the size of what comes out; the time depends on samples whose length a plan does not know."""
    tree = tree_of(parent)
    if tree is None:
        return Estimate(
            replace(parent, size_bytes=None)
        )  # which layers fit, and what samples take, a plan does not know
    from passes.awq.shapes import effective_bits, weights_of

    packed = weights_of(tree)
    parts = parameters(tree)
    hidden = decoder_of(tree).hidden
    outside = [
        (parts.get(name, 0), grid.effective_bits(hidden))
        for name, grid in (("vision", config.vision), ("head", config.head))
        if grid is not None
    ]
    others = sum(parts.values()) - packed - sum(weights for weights, _ in outside)
    size = (
        int(packed * (config.effective_bits or effective_bits(tree, config.grids[0])) / 8)
        + 2 * others
    )
    size += sum(int(weights * bits / 8) for weights, bits in outside)
    return Estimate(
        replace(parent, size_bytes=size),
        peak_memory_bytes=_PROCESS_BYTES + _memory(tree, packed),
        disk_bytes=2 * size,
    )


def _memory(tree: dict[str, Any], packed: int) -> int:
    """A layer, the matrices of its widest input, and what rounds its largest site; samples come in batches, and are little."""
    decoder = decoder_of(tree)
    layer = packed // decoder.layers
    attention, gate_up = (
        decoder.hidden * decoder.heads * decoder.head_width,
        2 * decoder.hidden * decoder.ffn,
    )
    largest = max(attention, gate_up)
    matrices = _MATRICES * max(decoder.ffn, decoder.hidden) ** 2
    return 4 * (layer + largest + matrices + _COPIES * min(largest, WEIGHTS_AT_ONCE))
