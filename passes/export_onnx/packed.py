"""Integers of packed checkpoints in traced graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.graphs.blocks import store_packed_layers
from compressor.graphs.opsets import BLOCKS_OPSET
from compressor.graphs.packed_products import store_packed_products
from compressor.models.quantized.packed_checkpoint import (
    packed_layers_of_widths,
    read_packed_layers,
)

if TYPE_CHECKING:
    import onnx_ir as ir


def store_packed_tower(graph: ir.Model, folder: Path) -> dict[str, Any]:
    """Store the packed layers of a tower as MatMulNBits, in place.

    Args:
        graph: a traced tower with the weights as floats.
        folder: the checkpoint that it was traced from.

    Returns:
        Entries of the summary; none if no layer of the tower is packed.
    """
    stored = store_packed_products(graph, partial(packed_layers_of_widths, folder))
    return {"integer_layers": len(stored)} if stored else {}


def store_packed(
    graphs: Sequence[ir.Model], folder: Path, note: Callable[[str], None]
) -> dict[str, Any]:
    """Store the weights of packed layers as blocks of integers, in place, if the opset has them.

    Args:
        graphs: the traced graphs of a model, of one opset, with the weights as floats.
        folder: the checkpoint that they were traced from.
        note: reports layers that stay floats.

    Returns:
        Entries of the summary; none for a model without packed layers.
    """
    layers = read_packed_layers(folder)
    if not layers:
        return {}
    has_blocks = graphs[0].opset_imports[""] >= BLOCKS_OPSET
    stored = set()
    if has_blocks:
        stored = set().union(*(store_packed_layers(graph, layers) for graph in graphs))
    float_layers = sorted(layers.keys() - stored)
    if float_layers:
        reason = f"set `opset: {BLOCKS_OPSET}`"
        if has_blocks:
            reason = "DequantizeLinear reads 4 and 8 bits"
        note(
            f"the weights of {len(float_layers)} packed layers are stored as floats, which "
            f"hold them exactly: {reason}"
        )
    return {"integer_layers": len(stored), "packed_as_floats": float_layers}
