"""Nodes that attention over a bounded cache reads.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.graphs.decoder.cache_bounds import CacheBound
from compressor.graphs.decoder.operators import Operators

_MASKED = {ir.DataType.FLOAT: -1e30, ir.DataType.FLOAT16: -65504.0}
"""Value added to the score of a position that a token does not see."""


@dataclass(frozen=True, slots=True)
class BoundedRows:
    """Rows of bounded caches, as GroupQueryAttention counts them."""

    lengths: ir.Value
    """int32 [B]: row of each sequence's last token."""
    total: ir.Value
    """int32: rows of the longest sequence."""
    positions: ir.Value
    """int64 [B, T]: positions of the new tokens."""
    mask: ir.Value | None
    """[B, 1, T, rows], added to the scores; None without sinks, where the operator masks rows."""


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
    mask = None
    if bound.sinks:
        mask = _sinks_and_window(add, bound, total, positions)
    return BoundedRows(
        add.op("Cast", [rows], f"{name}.lengths", to=ir.DataType.INT32),
        add.op("Cast", [total], f"{name}.total", to=ir.DataType.INT32),
        positions,
        mask,
    )


def _sinks_and_window(
    add: Operators, bound: CacheBound, total: ir.Value, positions: ir.Value
) -> ir.Value:
    """Return 0 for the first positions and those of the window, and a large negative number."""
    name = bound.input_name
    zero, one = add.constant("zero", np.array(0)), add.constant("one", np.array(1))
    sinks = add.constant(f"{name}.sinks", np.array(bound.sinks))
    window = add.constant(f"{name}.window", np.array(bound.window))
    rows = add.op("Range", [zero, total, one], f"{name}.rows")
    is_sink = add.op("Less", [rows, sinks], f"{name}.is_sink")
    dropped = add.op("Unsqueeze", [add.constants[name], add.ints(1, 2, 3)], f"{name}.4d")
    keys = add.op("Add", [rows, dropped], f"{name}.keys")  # positions, but for the sinks
    queries = add.op("Unsqueeze", [positions, add.ints(1, 3)], f"{name}.queries")
    distances = add.op("Sub", [queries, keys], f"{name}.distances")
    is_near = add.op("Less", [distances, window], f"{name}.is_near")
    is_seen = add.op("Or", [is_near, is_sink], f"{name}.is_seen")
    masked = add.floats("masked", np.array(_MASKED[add.dtype]))
    return add.op("Where", [is_seen, add.floats("unmasked", np.array(0.0)), masked], f"{name}.mask")
