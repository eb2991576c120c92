"""Nodes of the decoder layers: norms, attention and feed-forward network.

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
    FeedForward,
    Mixture,
    Norm,
)
from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.graphs.decoder.expert_weights import ExpertWeights
from compressor.graphs.decoder.experts import ExpertNodes
from compressor.graphs.decoder.interface import PAST_PREFIX
from compressor.graphs.decoder.operators import (
    AttentionHeads,
    AttentionInputs,
    NormWeights,
    Operators,
    RotaryTables,
)
from compressor.graphs.decoder.routing import add_shares
from compressor.graphs.decoder.weights import CheckpointWeights
from compressor.graphs.decoder.xielu import xielu
from compressor.graphs.values import Array


class DecoderLayers:
    """The layers of a decoder's graph under construction.

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
        self.group_rows = rows_by_group(self.heads)
        self.rotary: dict[str, RotaryTables] = {}
        """Layer type to its tables."""
        self.query_factors: ir.Value | None = None
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []

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

    def _add_and_norm(
        self, x: ir.Value, result: ir.Value, prefix: str, norm: Norm | None
    ) -> tuple[ir.Value, ir.Value]:
        """Return x + result, and its norm; without a norm the same twice."""
        if norm is None:
            total = self.add.op("Add", [x, result], f"{result.name}.total")
            return total, total
        name = f"{prefix}.{norm.name}" if prefix else norm.name
        weights = self._norm_weights(norm, prefix)
        normed, total = self.add.add_and_norm(x, result, weights, f"{name}.normed")
        return total, normed

    def _layer(
        self, number: int, x: ir.Value, normed: ir.Value, next_norm: tuple[str, Norm | None]
    ) -> tuple[ir.Value, ir.Value]:
        """Return the residual stream after a layer, and the same normalized for the next layer."""
        layer, prefix = self.architecture.layers[number], self._prefix(number)
        factor, add = self.architecture.scales.residual, self.add
        result = self._attention(number, normed)
        if layer.is_parallel:
            if layer.pre_ffn is not None:
                normed = self._norm(x, layer.pre_ffn, prefix)
            fed = self._ffn(number, normed)
            result = add.op("Add", [result, fed], f"{prefix}.result")
            return self._add_and_norm(
                x, add.scaled(result, factor, f"{prefix}.result.scaled"), *next_norm
            )
        if layer.post_attention is not None:
            result = self._norm(result, layer.post_attention, prefix)
        result = add.scaled(result, factor, f"{prefix}.attention.residual")
        x, normed = self._add_and_norm(x, result, prefix, layer.pre_ffn)
        result = self._ffn(number, normed)
        if layer.post_ffn is not None:
            result = self._norm(result, layer.post_ffn, prefix)
        result = add.scaled(result, factor, f"{prefix}.ffn.residual")
        return self._add_and_norm(x, result, *next_norm)

    def _attention(self, number: int, x: ir.Value) -> ir.Value:
        decoder, layer, add = self.architecture.decoder, self._prefix(number), self.add
        query, key, value = self._project(number, x)
        names = [f"{PAST_PREFIX}{number}.{part}" for part in ("key", "value")]
        dtype = ir.DataType.INT8 if self.cache_scales else add.dtype
        shape = ("batch", decoder.key_heads, "past", decoder.head_width)
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
        )
        result = add.attention(inputs, self.heads)
        shape = ("batch", decoder.key_heads, "total", decoder.head_width)
        for present, name in zip((result.keys, result.values), names, strict=True):
            self._output(present, KvCacheLayout.present_name(name), dtype, *shape)
        attention = self.architecture.layers[number].attention
        output = result.output
        if attention.output_norm is not None:
            output = self._norm(output, attention.output_norm, layer)
        widths = (self.heads.widths[0], decoder.hidden)
        return self._linear(output, (attention.output,), number, widths)

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

    def _ffn(self, number: int, x: ir.Value) -> ir.Value:
        ffn, prefix = self.architecture.layers[number].ffn, f"{self._prefix(number)}.mlp"
        if isinstance(ffn, Mixture):
            return self._mixture(number, x, ffn, prefix)
        return self._feed_forward(number, x, ffn, prefix)

    def _mixture(self, number: int, x: ir.Value, mixture: Mixture, name: str) -> ir.Value:
        """Return the sum of the experts of each token, and of the network that all pass."""
        add, layer, hidden = self.add, self._prefix(number), self.architecture.decoder.hidden
        router = mixture.router
        names = (router.weight, router.bias, router.correction)
        tensors = {n: self.weights.vector(self._full_name(f"{layer}.{n}")) for n in names if n}
        tokens = add.op("Reshape", [x, add.ints(-1, hidden)], f"{name}.tokens")
        shares = add_shares(add, router, tokens, tensors, f"{name}.router")
        experts = mixture.experts
        module = self._full_name(f"{layer}.{experts.name}")
        weights = ExpertWeights(self.weights, experts, module)
        nodes = ExpertNodes(add, weights, hidden, router.chosen, f"{name}.experts")
        result = nodes.result(tokens, shares)
        shape = add.op("Shape", [x], f"{name}.shape")
        result = add.op("Reshape", [result, shape], f"{name}.experts.by_sequence")
        if mixture.shared is None:
            return result
        shared = self._feed_forward(number, x, mixture.shared, f"{name}.shared")
        if mixture.shared_gate is not None:
            gate = self._linear(x, (mixture.shared_gate,), number, (hidden, 1))
            gate = add.op("Sigmoid", [gate], f"{name}.shared.share")
            shared = add.op("Mul", [shared, gate], f"{name}.shared.weighted")
        return add.op("Add", [result, shared], f"{name}.result")

    def _feed_forward(self, number: int, x: ir.Value, ffn: FeedForward, prefix: str) -> ir.Value:
        layer, add = self._prefix(number), self.add
        hidden = self.architecture.decoder.hidden
        if ffn.is_gated:
            joined = self._linear(x, ffn.inputs, number, (hidden, 2 * ffn.width))
            gate, up = add.split(joined, [ffn.width] * 2, f"{prefix}.parts")
            gate = self._activation(gate, ffn, layer, f"{prefix}.act")
            inner = add.op("Mul", [gate, up], f"{prefix}.inner")
        else:
            inner = self._linear(x, ffn.inputs, number, (hidden, ffn.width))
            inner = self._activation(inner, ffn, layer, f"{prefix}.act")
        if ffn.output_norm is not None:
            inner = self._norm(inner, ffn.output_norm, layer)
        return self._linear(inner, (ffn.output,), number, (ffn.width, hidden))

    def _activation(self, x: ir.Value, ffn: FeedForward, layer: str, name: str) -> ir.Value:
        if ffn.activation != "xielu":
            return self.add.activation(x, ffn.activation, name)
        parameters = self._full_name(f"{layer}.{ffn.activation_name}")
        return xielu(self.add, x, self.weights, parameters, name)

    def _linear(
        self,
        x: ir.Value,
        modules: tuple[str, ...],
        number: int,
        shape: tuple[int, int],
        rows: Tensor | None = None,
    ) -> ir.Value:
        """Return the results of linear layers that read one input, side by side.

        Args:
            x: the input.
            modules: their names in the layer.
            number: of the layer.
            shape: (inputs, outputs of all).
            rows: order of the outputs; None for that of the checkpoint.
        """
        layer = self._prefix(number)
        names = [self._full_name(f"{layer}.{name}") for name in modules]
        module = modules[0].rpartition(".")[0]
        short_names = "_".join(name.rpartition(".")[2] for name in modules)
        joined_name = ".".join(part for part in (layer, module, short_names) if part)
        result = self._product(x, names, joined_name, shape, rows)
        if not self.adapters.are_targets(names):
            return result
        is_transposed = self.architecture.transposed
        widths = [self.weights.outputs(n, stored_transposed=is_transposed) for n in names]
        heads = None if rows is None else (self.heads.heads, self.heads.key_heads, self.heads.width)
        slot = AdapterSlot(joined_name, tuple(names), tuple(widths), shape[0], heads)
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


def rows_by_group(heads: AttentionHeads) -> Tensor:
    """Return the rows of all queries, then keys, then values, in a projection by key groups."""
    per_key = heads.heads // heads.key_heads
    rows = torch.arange(heads.key_heads * (per_key + 2) * heads.width)
    rows = rows.view(heads.key_heads, per_key + 2, heads.width)
    parts = (rows[:, :per_key], rows[:, per_key], rows[:, per_key + 1])
    return torch.cat([part.flatten() for part in parts])
