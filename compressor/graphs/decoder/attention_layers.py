"""Nodes of the attention of decoder layers.

Shapes as in ``graph``.
"""

from __future__ import annotations

import onnx_ir as ir

from compressor.graphs.decoder.architecture import (
    Norm,
)
from compressor.graphs.decoder.cache_bounds import CacheBound
from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.graphs.decoder.interface import PAST_PREFIX
from compressor.graphs.decoder.layer_parts import LayerParts
from compressor.graphs.decoder.operators import (
    AttentionInputs,
)


class AttentionLayers(LayerParts):
    """The attention of a decoder's layers under construction."""

    def _attention(self, number: int, x: ir.Value) -> ir.Value:
        decoder, layer, add = self.architecture.decoder, self._prefix(number), self.add
        query, key, value = self._project(number, x)
        names = [f"{PAST_PREFIX}{number}.{part}" for part in ("key", "value")]
        dtype = ir.DataType.INT8 if self.cache_scales else add.dtype
        bound = self._cache_bound(number, names)
        of_bound = "" if bound is None else f"_of_{bound.window}"
        shape = ("batch", decoder.key_heads, f"past{of_bound}", decoder.head_width)
        past = (self._input(names[0], dtype, *shape), self._input(names[1], dtype, *shape))
        scales = []
        if self.cache_scales:
            scales = [add.constant(f"{name}.scale", self.cache_scales[name]) for name in names]
        layer_type = self.architecture.layer_types[number]
        inputs = AttentionInputs(
            name=f"{layer}.attention",
            query=query,
            key=key,
            value=value,
            past=past,
            rotary=None if layer_type is None else self.rotary[layer_type],
            window=self.architecture.windows[number],
            cache_scales=scales,
            sinks=self._sinks(number),
            bound=bound,
        )
        result = add.attention(inputs, self.heads)
        shape = ("batch", decoder.key_heads, f"total{of_bound}", decoder.head_width)
        for present, name in zip((result.keys, result.values), names, strict=True):
            self._output(present, KvCacheLayout.present_name(name), dtype, *shape)
        attention = self.architecture.layers[number].attention
        output = result.output
        if attention.output_norm is not None:
            output = self._norm(output, attention.output_norm, layer)
        widths = (self.heads.widths[0], decoder.hidden)
        return self._linear(output, (attention.output,), number, widths)

    def _cache_bound(self, number: int, names: list[str]) -> CacheBound | None:
        """Return the bound of a layer's caches, given by their names, and note it."""
        bound = self.architecture.cache_bound(number) if self.add.bounds_caches else None
        if bound is not None:
            self.bounded_caches |= dict.fromkeys(names, bound)
        return bound

    def _sinks(self, number: int) -> ir.Value | None:
        sinks, layer = self.architecture.layers[number].attention.sinks, self._prefix(number)
        if sinks is None:
            return None
        name = f"{layer}.{sinks}"
        return self.add.floats(name, self.weights.vector(self._full_name(name)))

    def _project(
        self, number: int, x: ir.Value
    ) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
        """Return queries, keys and values.

        Without norms of the heads they stay in one tensor: (joined, None, None).
        """
        decoder, layer, widths = self.architecture.decoder, self._prefix(number), self.heads.widths
        attention = self.architecture.layers[number].attention
        rows = self.group_rows if attention.by_group else None
        shape = (decoder.hidden, sum(widths))
        joined = self._linear(x, attention.projections, number, shape, rows)
        if not attention.head_norms and self.query_factors is None:
            return joined, None, None
        query, key, value = self.add.split(joined, widths, f"{layer}.heads")
        if self.query_factors is not None:
            query = self.add.op("Mul", [query, self.query_factors], f"{layer}.queries.grown")
        if not attention.head_norms:
            return query, key, value
        query_norm, key_norm = attention.head_norms
        query = self._head_norm(query, query_norm, layer, widths[0])
        key = self._head_norm(key, key_norm, layer, widths[1])
        return query, key, value

    def _head_norm(self, x: ir.Value, norm: Norm, prefix: str, width: int) -> ir.Value:
        """Return the norm of each head, or of all heads together."""
        add, head, name = self.add, self.architecture.decoder.head_width, f"{prefix}.{norm.name}"
        if self.architecture.layers[0].attention.normalizes_whole:
            return self._norm(x, norm, prefix)
        heads = add.op("Reshape", [x, add.ints(0, 0, width // head, head)], f"{name}.heads")
        normed = self._norm(heads, norm, prefix, head)
        return add.op("Reshape", [normed, add.ints(0, 0, width)], f"{name}.whole")
