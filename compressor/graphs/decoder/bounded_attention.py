"""Nodes that attention over a bounded cache reads.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.graphs.decoder.cache_bounds import CacheBound
from compressor.graphs.decoder.operators import Operators


@dataclass(frozen=True, slots=True)
class BoundedRows:
    """Rows of bounded caches, as GroupQueryAttention counts them."""

    lengths: ir.Value
    """int32 [B]: row of each sequence's last token."""
    total: ir.Value
    """int32: rows of the longest sequence."""
    positions: ir.Value
    """int64 [B, T]: positions of the new tokens."""


def bounded_rows(
    add: Operators, bound: CacheBound, ids: ir.Value, last: ir.Value, positions: ir.Value
) -> BoundedRows:
    """Append the nodes that the layers of one bound share.

    Args:
        add: appends nodes; it has the bound's input.
        bound: of the caches.
        ids: token ids, int64 [B, T].
        last: position of each sequence's last token, int64 [B].
        positions: of the new tokens, int64 [B, T].
    """
    name = bound.input_name
    rows = add.op("Sub", [last, add.constants[name]], f"{name}.last")
    one = add.constant("one", np.array(1))
    longest = add.op("ReduceMax", [rows], f"{name}.longest", keepdims=0)
    held = add.op("Add", [longest, one], f"{name}.held")
    tokens = add.op("Gather", [add.op("Shape", [ids], f"{name}.shape"), one], f"{name}.tokens")
    # A first prompt whose sequences all have padding has more tokens than any sequence.
    total = add.op("Max", [held, tokens], f"{name}.total.long")
    return BoundedRows(
        add.op("Cast", [rows], f"{name}.lengths", to=ir.DataType.INT32),
        add.op("Cast", [total], f"{name}.total", to=ir.DataType.INT32),
        positions,
    )
