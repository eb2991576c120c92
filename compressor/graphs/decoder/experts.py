"""Nodes of the experts of a decoder layer.

ONNX Runtime's QMoE computes packed experts: it reads the experts of each token where they are.
Others are computed one by one, each in a branch that runs if a token reaches the expert, on the
tokens that do.

Shapes: N tokens, R of them that reach an expert, E experts, H hidden, M hidden of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from compressor.graphs.decoder.block_sizes import block_size
from compressor.graphs.decoder.expert_weights import ExpertWeights
from compressor.graphs.decoder.mixture import ClampedGate
from compressor.graphs.decoder.operators import Operators, PackedExperts, outputs_of
from compressor.graphs.values import Array

_QMOE_BITS = 4
"""Bits of experts that QMoE multiplies as floats too, if it is to."""
_QMOE_GATED = frozenset({"silu"})
_QMOE_PLAIN = frozenset({"silu", "relu"})


@dataclass(frozen=True, slots=True)
class ExpertNodes:
    """Appends the experts of one layer."""

    add: Operators
    weights: ExpertWeights
    hidden: int
    chosen: int
    """Experts of a token."""
    name: str
    """Prefix of the names of nodes and constants."""

    def result(self, tokens_NH: ir.Value, shares_NE: ir.Value) -> ir.Value:
        """Return the sum of the experts' outputs times their shares, [N, H].

        Args:
            tokens_NH: the inputs, in the type of the graph.
            shares_NE: float32, 0 for experts that a token does not reach.
        """
        packed = self._packed_experts()
        if packed is not None:
            shares = self.add.cast_from_float(shares_NE, f"{self.name}.shares")
            return self.add.packed_experts(tokens_NH, shares, packed, self.name)
        return self._branches(tokens_NH, shares_NE)

    def _packed_experts(self) -> PackedExperts | None:
        """Return the operands of one operator for all experts; None if there is none for them."""
        weights, experts = self.weights, self.weights.experts
        layout, activation = experts.layout, experts.activation
        known = _QMOE_GATED if layout.has_gate else _QMOE_PLAIN
        if not self.add.has_packed_experts or not (
            isinstance(activation, ClampedGate) or activation in known
        ):
            return None
        grids = weights.grids(weights.inputs), weights.grids(weights.output)
        if any(len(found) > 1 or None in found for found in grids):
            return None
        ([first], [second]) = grids
        assert first is not None and second is not None  # noqa: S101
        if {first.bits, second.bits} != {_QMOE_BITS}:
            return None
        size = min(block_size(first, self.hidden), block_size(second, experts.width))
        rows = None
        if layout.has_gate:
            rows = torch.arange(2 * experts.width).view(2, -1).T.flatten()
        outputs = experts.width * len(weights.inputs)
        return PackedExperts(
            bits=first.bits,
            size=size,
            chosen=self.chosen,
            activation=activation,
            is_gated=layout.has_gate,
            inputs=weights.all_blocks(weights.inputs, (outputs, self.hidden), rows, size),
            output=weights.all_blocks(weights.output, (self.hidden, experts.width), None, size),
            input_bias=self._all_biases(weights.inputs, rows),
            output_bias=self._all_biases(weights.output, None),
        )

    def _all_biases(self, projections: Sequence[str], rows: torch.Tensor | None) -> Array | None:
        """Return the biases of all experts, float32 [E, O]; None without biases."""
        weights = self.weights
        biases = [weights.bias(n, projections) for n in range(weights.layout.experts)]
        found = [
            bias if rows is None else bias[rows.numpy()] for bias in biases if bias is not None
        ]
        return np.stack(found) if found else None

    def _branches(self, tokens_NH: ir.Value, shares_NE: ir.Value) -> ir.Value:
        """Append a branch for each expert, which adds its result to those of the others."""
        add, name, count = self.add, self.name, self.weights.layout.experts
        by_expert = add.op("Transpose", [shares_NE], f"{name}.by_expert", perm=[1, 0])
        flags = add.op("Cast", [by_expert], f"{name}.flags", to=ir.DataType.BOOL)
        numbers = add.op("Cast", [flags], f"{name}.numbers", to=ir.DataType.INT32)
        most = add.op("ReduceMax", [numbers, add.ints(1)], f"{name}.most", keepdims=0)
        reached = add.op("Cast", [most], f"{name}.reached", to=ir.DataType.BOOL)
        ones = add.ints(*[1] * count)
        conditions = add.op("Split", [reached, ones], f"{name}.conditions", outputs=count, axis=0)
        rows = add.op("Split", [by_expert, ones], f"{name}.shares", outputs=count, axis=0)
        shape = add.op("Shape", [tokens_NH], f"{name}.shape")
        zero = ir.tensor(np.array([0], dtype=np.float32))
        total = add.op("ConstantOfShape", [shape], f"{name}.none", value=zero)
        pairs = zip(outputs_of(conditions), outputs_of(rows), strict=True)
        for number, (condition, share) in enumerate(pairs):
            total = self._branch(number, condition, share, (tokens_NH, total))
        return add.cast_from_float(total, f"{name}.cast")

    def _branch(
        self,
        number: int,
        condition: ir.Value,
        share_1N: ir.Value,
        values_NH: tuple[ir.Value, ir.Value],
    ) -> ir.Value:
        """Return the total plus the result of an expert, if any token reaches it.

        Args:
            number: of the expert.
            condition: bool [1]: some token reaches it.
            share_1N: its shares.
            values_NH: the tokens, and the total of other experts in float32: ONNX Runtime adds no
                rows in float16.
        """
        add, name = self.add, f"{self.name}.{number}"
        tokens_NH, total_NH = values_NH
        with add.branch() as then:
            shares = add.op("Squeeze", [share_1N, add.ints(0)], f"{name}.shares")
            rows = add.op("NonZero", [shares], f"{name}.rows.2d")
            rows = add.op("Squeeze", [rows, add.ints(0)], f"{name}.rows")
            x = add.op("Gather", [tokens_NH, rows], f"{name}.tokens", axis=0)
            result = self._expert(number, x, name)
            result = add.cast(result, ir.DataType.FLOAT, f"{name}.wide")
            share = add.op("Gather", [shares, rows], f"{name}.share", axis=0)
            share = add.op("Unsqueeze", [share, add.ints(1)], f"{name}.share.2d")
            result = add.op("Mul", [result, share], f"{name}.weighted")
            rows = add.op("Unsqueeze", [rows, add.ints(1)], f"{name}.rows.column")
            added = add.op("ScatterND", [total_NH, rows, result], f"{name}.added", reduction="add")
        with add.branch() as otherwise:
            same = add.op("Identity", [total_NH], f"{name}.same")
        return add.op(
            "If",
            [condition],
            f"{name}.total",
            then_branch=then.graph([added], f"{name}.then"),
            else_branch=otherwise.graph([same], f"{name}.else"),
        )

    def _expert(self, number: int, x_RH: ir.Value, name: str) -> ir.Value:
        """Return the output of an expert, [R, H]."""
        weights, width = self.weights, self.weights.experts.width
        outputs = width * len(weights.inputs)
        inner = self._linear(number, x_RH, weights.inputs, (self.hidden, outputs), f"{name}.input")
        inner = self._activation(inner, name)
        return self._linear(number, inner, weights.output, (width, self.hidden), f"{name}.output")

    def _activation(self, x: ir.Value, name: str) -> ir.Value:
        add, experts = self.add, self.weights.experts
        function = experts.activation
        if not experts.layout.has_gate:
            assert not isinstance(function, ClampedGate)  # noqa: S101
            return add.activation(x, function, f"{name}.act")
        gate, up = add.split(x, [experts.width] * 2, f"{name}.parts")
        if not isinstance(function, ClampedGate):
            gate = add.activation(gate, function, f"{name}.act")
            return add.op("Mul", [gate, up], f"{name}.inner")
        lowest, highest, one, alpha = (
            add.floats(f"float.{value!r}", np.array(value, np.float32))
            for value in (-function.limit, function.limit, 1.0, function.alpha)
        )
        gate = add.op("Min", [gate, highest], f"{name}.gate.clamped")
        up = add.op("Clip", [up, lowest, highest], f"{name}.up.clamped")
        steep = add.op("Mul", [gate, alpha], f"{name}.gate.steep")
        share = add.op("Sigmoid", [steep], f"{name}.gate.share")
        gate = add.op("Mul", [gate, share], f"{name}.gate.act")
        up = add.op("Add", [up, one], f"{name}.up.raised")
        return add.op("Mul", [gate, up], f"{name}.inner")

    def _linear(
        self,
        number: int,
        x: ir.Value,
        projections: Sequence[str],
        shape: tuple[int, int],
        name: str,
    ) -> ir.Value:
        """Return projections of an expert side by side.

        Args:
            number: of the expert.
            x: their input.
            projections: that read one input.
            shape: (inputs, outputs of all).
            name: of the result.
        """
        add, weights = self.add, self.weights
        vector = weights.bias(number, projections)
        bias = None if vector is None else add.floats(f"{name}.bias", vector)
        if weights.grid(number, projections[0]) is not None:
            packed = weights.blocks(number, projections, (shape[1], shape[0]))
            return add.packed_linear(x, packed, bias, name)
        weight = add.constant(f"{name}.weight", weights.matrix(number, projections, shape))
        return add.linear(x, weight, bias, name)
