"""Nodes of the attention of decoder layers.

Shapes as in ``graph``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from compressor.graphs.decoder.architecture import Norm
from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.graphs.decoder.head_groups import HeadGroup, projection_order, runs_of_heads
from compressor.graphs.decoder.interface import PAST_PREFIX
from compressor.graphs.decoder.layer_parts import LayerParts
from compressor.graphs.decoder.operators import AttentionHeads, AttentionInputs
from compressor.graphs.decoder.row_blocks import RowBlocks

Projected = tuple[ir.Value, ir.Value | None, ir.Value | None]
"""Queries, keys and values; or all three in one tensor, and None."""


class AttentionLayers(LayerParts):
    """The attention of a decoder's layers under construction."""

    def _attention(self, number: int, x: ir.Value) -> ir.Value:
        decoder, layer = self.architecture.decoder, self._prefix(number)
        groups = self.architecture.head_groups(number)
        projected = self._project(number, x, groups)
        outputs = [
            self._attend(number, group, parts)
            for group, parts in zip(groups, projected, strict=True)
        ]
        output = self._in_order(outputs, groups, f"{layer}.attention.joined")
        attention = self.architecture.layers[number].attention
        if attention.output_norm is not None:
            output = self._norm(output, attention.output_norm, layer)
        widths = (self.heads.widths[0], decoder.hidden)
        return self._linear(output, (attention.output,), number, widths)

    def _attend(self, number: int, group: HeadGroup, projected: Projected) -> ir.Value:
        """Return the output of the attention of one group of heads, [B, T, N · H]."""
        add, heads = self.add, self._group_heads(group)
        names = [f"{PAST_PREFIX}{number}.{group.prefix}{part}" for part in ("key", "value")]
        dtype = ir.DataType.INT8 if self.cache_scales else add.dtype
        bound = group.bound if add.bounds_caches else None
        if bound is not None:
            self.bounded_caches |= dict.fromkeys(names, bound)
        of_bound = "" if bound is None else f"_of_{bound.window}_{bound.sinks}"
        shape = ("batch", heads.key_heads, f"past{of_bound}", heads.width)
        past = (self._input(names[0], dtype, *shape), self._input(names[1], dtype, *shape))
        scales = []
        if self.cache_scales:
            scales = [add.constant(f"{name}.scale", self.cache_scales[name]) for name in names]
        layer_type = self.architecture.layer_types[number]
        query, key, value = projected
        inputs = AttentionInputs(
            name=f"{self._prefix(number)}.{group.prefix}attention",
            query=query,
            key=key,
            value=value,
            past=past,
            rotary=None if layer_type is None else self.rotary[layer_type],
            window=group.window,
            cache_scales=scales,
            sinks=self._sinks(number),
            bound=bound,
        )
        result = add.attention(inputs, heads)
        shape = ("batch", heads.key_heads, f"total{of_bound}", heads.width)
        for present, name in zip((result.keys, result.values), names, strict=True):
            self._output(present, KvCacheLayout.present_name(name), dtype, *shape)
        return result.output

    def _group_heads(self, group: HeadGroup) -> AttentionHeads:
        count, per_key = len(group.key_heads), self.heads.heads // self.heads.key_heads
        return replace(self.heads, heads=count * per_key, key_heads=count)

    def _in_order(
        self, outputs: Sequence[ir.Value], groups: Sequence[HeadGroup], name: str
    ) -> ir.Value:
        """Return the outputs of groups side by side, with the heads in the checkpoint's order.

        Rows of the output projection stay in place: its packed groups may hold several heads.
        """
        if len(groups) == 1:
            return outputs[0]
        runs = runs_of_heads(groups)
        width = self.heads.widths[0] // self.heads.key_heads
        parts = []
        for number, output in enumerate(outputs):
            sizes = [count * width for owner, count in runs if owner == number]
            is_whole = len(sizes) == 1
            parts.append(
                [output] if is_whole else self.add.split(output, sizes, f"{output.name}.runs")
            )
        ordered = [parts[owner].pop(0) for owner, _ in runs]
        return self.add.op("Concat", ordered, name, axis=-1)

    def _sinks(self, number: int) -> ir.Value | None:
        sinks, layer = self.architecture.layers[number].attention.sinks, self._prefix(number)
        if sinks is None:
            return None
        name = f"{layer}.{sinks}"
        return self.add.floats(name, self.weights.vector(self._full_name(name)))

    def _project(self, number: int, x: ir.Value, groups: Sequence[HeadGroup]) -> list[Projected]:
        """Return queries, keys and values of each group of heads.

        Without norms of the heads they stay in one tensor: (joined, None, None).
        """
        add, layer, widths = self.add, self._prefix(number), self.heads.widths
        attention = self.architecture.layers[number].attention
        is_joined = not attention.head_norms and self.query_factors is None
        order = self._order(number, groups, is_joined=is_joined)
        shape = (self.architecture.decoder.hidden, sum(widths))
        joined = self._linear(x, attention.projections, number, shape, order)
        group_widths = [self._group_heads(group).widths for group in groups]
        if is_joined:
            parts = [joined]
            if len(groups) > 1:
                parts = add.split(joined, [sum(w) for w in group_widths], f"{layer}.groups")
            return [(part, None, None) for part in parts]
        query, key, value = add.split(joined, widths, f"{layer}.heads")
        if self.query_factors is not None:
            query = add.op("Mul", [query, self.query_factors], f"{layer}.queries.grown")
        if attention.head_norms:
            query_norm, key_norm = attention.head_norms
            query = self._head_norm(query, query_norm, layer, widths[0])
            key = self._head_norm(key, key_norm, layer, widths[1])
        if len(groups) == 1:
            return [(query, key, value)]
        by_kind = [
            add.split(whole, [w[kind] for w in group_widths], f"{layer}.{name}.groups")
            for kind, (whole, name) in enumerate(((query, "q"), (key, "k"), (value, "v")))
        ]
        return list(zip(*by_kind, strict=True))

    def _order(
        self, number: int, groups: Sequence[HeadGroup], *, is_joined: bool
    ) -> RowBlocks | None:
        """Return the order of the projection's rows; None for that of the checkpoint."""
        if self.architecture.layers[number].attention.by_group:
            return self.group_rows
        if len(groups) == 1:
            return None
        per_key = self.heads.heads // self.heads.key_heads
        return RowBlocks(self.heads.width, projection_order(groups, per_key, by_group=is_joined))

    def _head_norm(self, x: ir.Value, norm: Norm, prefix: str, width: int) -> ir.Value:
        """Return the norm of each head, or of all heads together."""
        add, head, name = self.add, self.architecture.decoder.head_width, f"{prefix}.{norm.name}"
        if self.architecture.layers[0].attention.normalizes_whole:
            return self._norm(x, norm, prefix)
        heads = add.op("Reshape", [x, add.ints(0, 0, width // head, head)], f"{name}.heads")
        normed = self._norm(heads, norm, prefix, head)
        return add.op("Reshape", [normed, add.ints(0, 0, width)], f"{name}.whole")
