"""Attention of one token in which the query heads of a key head are rows of one product.

GroupQueryAttention computes each query head for itself, and reads the keys and values of a key head
again for every query head that shares it. Given as G tokens with one head per key head, the same
queries are rows of one product, and keys and values are read once for all of them. The result is
the same but for float rounding.

Shapes: N query heads and M key heads of width H, G = N / M, P cached positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.graphs.decoder.operators import (
    AttentionHeads,
    AttentionInputs,
    Operators,
    outputs_of,
)

_MASKED = -1e30


def can_stack(inputs: AttentionInputs, heads: AttentionHeads) -> bool:
    """Return True if a layer's heads may be stacked.

    A window would end elsewhere for each row, sinks belong to query heads, a cap would limit the
    mask too, and the kernel for caches in 8 bits computes row by row.
    """
    is_plain = inputs.window is None and inputs.bound is None and inputs.sinks is None
    return is_plain and not heads.cap and not inputs.cache_scales


@dataclass(frozen=True, slots=True)
class StackedRows:
    """Values that the layers of a graph share."""

    applies: ir.Value
    """bool [1]: one token of one sequence, and a buffer that holds G - 1 positions behind it."""
    lengths: ir.Value
    """int32 [1]: position of the last row."""
    total: ir.Value
    """int32: positions up to the last row."""
    positions: ir.Value
    """int64 [1, G]: position of the token, for each row."""
    mask: ir.Value
    """float32 [1, 1, G, total]: added to the scores, which sees no position behind the token."""


def stacked_rows(
    add: Operators,
    ids: ir.Value,
    last: ir.Value,
    total: ir.Value,
    past_key: ir.Value,
    *,
    group: int,
) -> StackedRows:
    """Append the nodes that all layers share.

    Args:
        add: appends nodes.
        ids: token ids, int64 [B, T].
        last: position of each sequence's last token, int64 [B].
        total: P + T, int64.
        past_key: cached keys of any layer whose heads are stacked, [B, M, P, H].
        group: G.
    """
    one, more = add.constant("one", np.array(1)), add.constant("stacked.more", np.array(group - 1))
    rows = add.op("Add", [total, more], "stacked.total.long")
    is_single = add.op("Equal", [add.op("Size", [ids], "stacked.tokens"), one], "stacked.single")
    shape = add.op("Shape", [past_key], "stacked.past.shape")
    capacity = add.op("Gather", [shape, add.constant("two", np.array(2))], "stacked.capacity")
    fits = add.op("GreaterOrEqual", [capacity, rows], "stacked.fits")
    # Of several sequences the values are of no use, but have to be computed without an error.
    first = add.op("Slice", [last, add.ints(0), add.ints(1)], "stacked.last")
    zero = add.constant("zero", np.array(0))
    columns = add.op("Range", [zero, rows, one], "stacked.columns")
    behind = add.op("Greater", [columns, first], "stacked.behind")
    values = [add.constant(f"stacked.{v:g}", np.array(v, np.float32)) for v in (_MASKED, 0.0)]
    row = add.op("Where", [behind, *values], "stacked.mask.row")
    width = add.op("Unsqueeze", [rows, add.ints(0)], "stacked.width")
    shape = add.op("Concat", [add.ints(1, 1, group), width], "stacked.mask.shape", axis=0)
    last_row = add.op("Add", [first, more], "stacked.last.row")
    return StackedRows(
        applies=add.op("And", [is_single, fits], "stacked.applies"),
        lengths=add.op("Cast", [last_row], "stacked.lengths", to=ir.DataType.INT32),
        total=add.op("Cast", [rows], "stacked.total", to=ir.DataType.INT32),
        positions=add.op("Expand", [first, add.ints(1, group)], "stacked.positions"),
        mask=add.op("Expand", [row, shape], "stacked.mask"),
    )


def stacked_attention(
    add: Operators, inputs: AttentionInputs, heads: AttentionHeads, rows: StackedRows
) -> list[ir.Value]:
    """Append the attention of one token, and return its output and both caches.

    Key and value get G - 1 rows of zeros, because the operator takes as many keys as queries. They
    are written behind the token, where no query sees them and the next tokens overwrite them.

    Args:
        add: appends nodes to a branch.
        inputs: of the attention; queries and keys are rotated if the tables are by token.
        heads: shape of the attention.
        rows: what all layers share.
    """
    name = f"{inputs.name}.stacked"
    query, key, value = inputs.query, inputs.key, inputs.value
    if key is None or value is None:
        query, key, value = add.split(query, heads.widths, f"{name}.parts")
    group, key_heads, width = heads.heads // heads.key_heads, heads.key_heads, heads.width
    query = add.op("Reshape", [query, add.ints(1, key_heads, group, width)], f"{name}.groups")
    query = add.op("Transpose", [query], f"{name}.turned", perm=[0, 2, 1, 3])
    query = add.op("Reshape", [query, add.ints(1, group, key_heads * width)], f"{name}.queries")
    pads = add.ints(0, 0, 0, 0, group - 1, 0)
    key, value = (
        add.op("Pad", [part, pads], f"{name}.{kind}")
        for part, kind in ((key, "keys"), (value, "values"))
    )
    operands: list[ir.Value | None] = [query, key, value, *inputs.past]
    operands += [rows.lengths, rows.total]
    rotary = inputs.rotary
    attributes: dict[str, int] = {}
    if rotary is None or rotary.by_token:
        operands += [None, None, None]
    else:
        operands += [rotary.cos, rotary.sin, rows.positions]
        attributes = {"do_rotary": 1, "rotary_interleaved": int(heads.rotary_in_pairs)}
    attended = add.op(
        "GroupQueryAttention",
        [*operands, rows.mask],
        f"{name}.attended",
        domain="com.microsoft",
        outputs=3,
        num_heads=key_heads,
        kv_num_heads=key_heads,
        scale=heads.scale,
        **attributes,
    )
    output, *caches = outputs_of(attended)
    output = add.op("Reshape", [output, add.ints(1, group, key_heads, width)], f"{name}.by_row")
    output = add.op("Transpose", [output], f"{name}.by_head", perm=[0, 2, 1, 3])
    output = add.op("Reshape", [output, add.ints(1, 1, heads.widths[0])], f"{name}.output")
    return [output, *caches]
