"""Nodes of the decoder layers: norms, attention and feed-forward network.

Shapes as in ``graph``.
"""

from __future__ import annotations

import onnx_ir as ir

from compressor.graphs.decoder.architecture import (
    FeedForward,
    Mixture,
    Norm,
)
from compressor.graphs.decoder.attention_layers import AttentionLayers
from compressor.graphs.decoder.expert_weights import ExpertWeights
from compressor.graphs.decoder.experts import ExpertNodes
from compressor.graphs.decoder.routing import add_shares
from compressor.graphs.decoder.xielu import xielu


class DecoderLayers(AttentionLayers):
    """The layers of a decoder's graph under construction."""

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
