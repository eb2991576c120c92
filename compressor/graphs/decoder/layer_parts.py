"""Parts of the decoder layers: inputs, norms and linear layers.

Shapes as in ``graph``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compressor.graphs.decoder.adapter_nodes import AdapterNodes
from compressor.graphs.decoder.adapter_slots import AdapterSlot
from compressor.graphs.decoder.architecture import (
    DecoderArchitecture,
    Norm,
)
from compressor.graphs.decoder.cache_bounds import CacheBound
from compressor.graphs.decoder.cache_layout import CachedArray, KvCacheLayout
from compressor.graphs.decoder.interface import PAST_PREFIX
from compressor.graphs.decoder.operators import (
    AttentionHeads,
    NormWeights,
    Operators,
    RotaryTables,
)
from compressor.graphs.decoder.row_blocks import RowBlocks
from compressor.graphs.decoder.weights import CheckpointWeights
from compressor.graphs.values import Array


class LayerParts:
    """Inputs, norms and linear layers of a decoder's graph under construction.

    Args:
        architecture: the sizes and layer types of the decoder.
        weights: the tensors of its checkpoint, which are read when the graph is written.
        operators: appends nodes for the target runtime; it is kept as ``add``.
        cache_scales: scales of each cache input, float32 [M · H], for a cache in 8 bits.
        adapter_targets: ends of the names of the linear layers that get a slot for an adapter.
    """

    def __init__(
        self,
        architecture: DecoderArchitecture,
        weights: CheckpointWeights,
        operators: Operators,
        cache_scales: Mapping[str, Array] | None = None,
        adapter_targets: tuple[str, ...] = (),
    ) -> None:
        self.architecture, self.weights, self.add = architecture, weights, operators
        decoder = architecture.decoder
        self.cache_scales = cache_scales
        self.adapters = AdapterNodes(operators, adapter_targets)
        self.heads = AttentionHeads(
            decoder.heads,
            decoder.key_heads,
            decoder.head_width,
            architecture.scales.attention,
            architecture.rotary_in_pairs,
            architecture.scales.attention_cap,
        )
        self.group_rows = RowBlocks.by_key_head(
            self.heads.heads, self.heads.key_heads, self.heads.width
        )
        self.rotary: dict[str, RotaryTables] = {}
        """Layer type to its tables."""
        self.query_factors: ir.Value | None = None
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.bounded_caches: dict[str, CacheBound] = {}
        """Bounds of caches by the names of their inputs."""

    @property
    def cache_layout(self) -> KvCacheLayout:
        """The cache of the layers that were built."""
        return KvCacheLayout(
            tuple(
                CachedArray(
                    str(value.name),
                    tuple(size if isinstance(size, int) else None for size in value.shape[1:]),
                    value.dtype.numpy(),
                    self.bounded_caches.get(str(value.name)),
                )
                for value in self.inputs
                if str(value.name).startswith(PAST_PREFIX) and value.shape and value.dtype
            )
        )

    def _input(self, name: str, dtype: ir.DataType, *shape: str | int) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def _output(self, value: ir.Value, name: str, dtype: ir.DataType, *shape: str | int) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.outputs.append(value)

    def _full_name(self, name: str) -> str:
        return f"{self.architecture.names.root}.{name}"

    def _prefix(self, number: int) -> str:
        return f"{self.architecture.names.layers}.{number}"

    def _norm_weights(self, norm: Norm, prefix: str, width: int = 0) -> NormWeights:
        """Return a norm's weights; ones where it has none or one for each value of all heads."""
        name = f"{prefix}.{norm.name}" if prefix else norm.name
        stored, bias = self._full_name(f"{name}.weight"), self._full_name(f"{name}.bias")
        if self.weights.has(stored) and not self._is_by_head(stored):
            weight = self.weights.vector(stored, norm.offset)
        else:
            weight = np.ones(width or self.architecture.decoder.hidden, dtype=np.float32)
        return NormWeights(
            norm.kind,
            self.add.floats(f"{name}.weight", weight),
            self.add.floats(f"{name}.bias", self.weights.vector(bias))
            if self.weights.has(bias)
            else None,
            norm.epsilon,
        )

    def _is_by_head(self, stored: str) -> bool:
        return len(self.weights.shape(stored)) > 1

    def _norm(self, x: ir.Value, norm: Norm, prefix: str, width: int = 0) -> ir.Value:
        name = f"{prefix}.{norm.name}" if prefix else norm.name
        weights, stored = self._norm_weights(norm, prefix, width), f"{name}.weight"
        normed = self.add.norm(x, weights, f"{name}.normed")
        stored = self._full_name(stored)
        if not (self.weights.has(stored) and self._is_by_head(stored)):
            return normed
        by_head = self.add.floats(f"{name}.weight.by_head", self.weights.vector(stored))
        return self.add.op("Mul", [normed, by_head], f"{name}.weighted")

    def _linear(
        self,
        x: ir.Value,
        modules: tuple[str, ...],
        number: int,
        shape: tuple[int, int],
        order: RowBlocks | None = None,
    ) -> ir.Value:
        """Return the results of linear layers that read one input, side by side.

        Args:
            x: the input.
            modules: their names in the layer.
            number: of the layer.
            shape: (inputs, outputs of all).
            order: of the outputs; None for that of the checkpoint.
        """
        layer = self._prefix(number)
        names = [self._full_name(f"{layer}.{name}") for name in modules]
        module = modules[0].rpartition(".")[0]
        short_names = "_".join(name.rpartition(".")[2] for name in modules)
        joined_name = ".".join(part for part in (layer, module, short_names) if part)
        rows = None if order is None else torch.tensor(order.rows)
        result = self._product(x, names, joined_name, shape, rows)
        if not self.adapters.are_targets(names):
            return result
        is_transposed = self.architecture.transposed
        widths = [self.weights.outputs(n, stored_transposed=is_transposed) for n in names]
        slot = AdapterSlot(joined_name, tuple(names), tuple(widths), shape[0], order)
        return self.adapters.increment(x, result, slot)

    def _product(
        self,
        x: ir.Value,
        names: list[str],
        joined_name: str,
        shape: tuple[int, int],
        rows: Tensor | None,
    ) -> ir.Value:
        """Return the product with the weights of linear layers, by their full names."""
        weights = self.weights
        biases = [f"{name}.bias" for name in names if weights.has(f"{name}.bias")]
        bias = None
        if biases:
            vector = weights.vectors(biases)
            vector = vector if rows is None else vector[rows.numpy()]
            bias = self.add.floats(f"{joined_name}.bias", vector)
        if weights.grid(names[0]) is not None:
            packed = weights.blocks(names, (shape[1], shape[0]), rows)
            return self.add.packed_linear(x, packed, bias, joined_name)
        matrices = [f"{name}.weight" for name in names]
        is_transposed = self.architecture.transposed
        matrix = weights.transposed(matrices, rows, stored_transposed=is_transposed)
        weight = self.add.constant(f"{joined_name}.weight", matrix)
        return self.add.linear(x, weight, bias, joined_name)
