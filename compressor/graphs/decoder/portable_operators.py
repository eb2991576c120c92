"""Building blocks of a decoder in ONNX's own operators (opset 21), which every runtime has.

Packed weights are blocks that DequantizeLinear reads. Shapes as in ``operators``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from compressor.graphs.decoder.operators import (
    AttentionHeads,
    AttentionInputs,
    AttentionResult,
    NormWeights,
    Operators,
    RotaryTables,
)
from compressor.graphs.decoder.weights import BlockMatrix
from compressor.graphs.opsets import DECODER_OPSETS

_MASKED_SCORES = {ir.DataType.FLOAT: np.float32(-1e30), ir.DataType.FLOAT16: np.float32(-65504)}
"""Score of a position that a token must not attend to."""


@dataclass(frozen=True, slots=True)
class _Mask:
    """Positions of the tokens, and which of them a token may attend to."""

    positions: ir.Value
    """int64 [B, T]."""
    valid: ir.Value
    """bool [B, 1, 1, 1, P + T]: False for padding."""
    queries: ir.Value
    """int64 [T, 1]: indices with padding counted."""
    keys: ir.Value
    """int64 [1, P + T]."""
    all_positions: ir.Value
    """int64 [B, P + T]: positions with padding left out."""


@dataclass(frozen=True, slots=True)
class _HeadRotation:
    """Rotary embedding of one layer's heads."""

    cos: ir.Value
    sin: ir.Value
    """[B, 1, T, half]."""
    half: int
    """Half of the rotated width."""
    width: int
    """Width H of a head."""
    in_pairs: bool


class PortableOperators(Operators):
    """Operators of the ONNX standard."""

    opsets: ClassVar[Mapping[str, int]] = {"": DECODER_OPSETS["portable"]}

    def rms_norm(self, x: ir.Value, weight: ir.Value, epsilon: float, name: str) -> ir.Value:
        """Return x / √(mean x² + ε) · w, the form that runtimes fuse into one kernel."""
        x = self.cast(x, ir.DataType.FLOAT, f"{name}.wide")
        squares = self.op("Mul", [x, x], f"{name}.squares")
        mean = self.op("ReduceMean", [squares, self.ints(-1)], f"{name}.mean", keepdims=1)
        small = self.constant(f"epsilon.{epsilon:g}", np.array(epsilon, np.float32))
        root = self.op("Sqrt", [self.op("Add", [mean, small], f"{name}.damped")], f"{name}.root")
        even = self.op("Div", [x, root], f"{name}.even")
        if self.dtype != ir.DataType.FLOAT:
            even = self.op("Cast", [even], f"{name}.half", to=self.dtype)
        return self.op("Mul", [even, weight], name)

    def add_and_norm(
        self, x: ir.Value, residual: ir.Value, norm: NormWeights, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """Return the norm of x + residual, and x + residual."""
        total = self.op("Add", [x, residual], f"{name}.sum")
        return self.norm(total, norm, name), total

    def silu(self, x: ir.Value, name: str) -> ir.Value:
        """Return x · sigmoid(x)."""
        return self.op("Mul", [x, self.op("Sigmoid", [x], f"{name}.gate")], name)

    def packed_linear(
        self, x: ir.Value, weight: BlockMatrix, bias: ir.Value | None, name: str
    ) -> ir.Value:
        """Return x · W + b, with W dequantized by block."""
        return self.linear(x, self._dequantize(weight, name), bias, name)

    def packed_rows(self, ids: ir.Value, table: BlockMatrix, name: str) -> ir.Value:
        """Return the rows of a packed embedding, [B, T, hidden]."""
        weight = self._dequantize(table, name)
        rows = self.op("Transpose", [weight], f"{name}.table", perm=[1, 0])
        return self.op("Gather", [rows, ids], f"{name}.rows")

    def _dequantize(self, weight: BlockMatrix, name: str) -> ir.Value:
        """Return a packed weight, [I, O]; the embedding and a tied LM head share it."""
        if (existing := self.existing(f"{name}.whole")) is not None:
            return existing
        integers, scales, zeros = weight.for_dequantize_linear()
        # In a branch, ONNX Runtime multiplies packed weights only if the branch holds them itself.
        data = self.inner_constant(f"{name}.data", integers)
        stored_scales = self.inner_constant(f"{name}.scales", scales)
        if stored_scales.dtype != ir.DataType.FLOAT16 or self.dtype != ir.DataType.FLOAT16:
            stored_scales = self.op("Cast", [stored_scales], f"{name}.scales.float", to=self.dtype)
        operands = [data, stored_scales]
        if zeros is not None:
            operands.append(self.inner_constant(f"{name}.zeros", zeros))
        return self.op(
            "DequantizeLinear", operands, f"{name}.whole", axis=0, block_size=weight.size
        )

    def read_mask(self, ids: ir.Value, mask: ir.Value) -> None:
        """Append positions and indices from `attention_mask`, which may hold padding anywhere."""
        zero, step = (self.constant(f"scalar.{value}", np.array(value)) for value in (0, 1))
        tokens = self.op("Gather", [self.op("Shape", [ids], "tokens.shape"), step], "tokens")
        total = self.op("Gather", [self.op("Shape", [mask], "total.shape"), step], "total")
        start = self.op("Sub", [total, tokens], "start")
        counts = self.op("CumSum", [mask, step], "counted")
        all_positions = self.op("Sub", [counts, step], "counted.from_zero")
        first = self.op("Unsqueeze", [start, self.ints(0)], "start.1d")
        end = self.ints(np.iinfo(np.int64).max)
        recent = self.op("Slice", [all_positions, first, end, self.ints(1)], "counted.recent")
        queries = self.op("Range", [start, total, step], "queries.1d")
        keys = self.op("Range", [zero, total, step], "keys.1d")
        valid = self.op("Cast", [mask], "seen", to=ir.DataType.BOOL)
        self._mask = _Mask(
            positions=self.op("Max", [recent, zero], "positions"),
            valid=self.op("Unsqueeze", [valid, self.ints(1, 2, 3)], "seen.5d"),
            queries=self.op("Unsqueeze", [queries, self.ints(1)], "queries"),
            keys=self.op("Unsqueeze", [keys, self.ints(0)], "keys"),
            all_positions=all_positions,
        )

    def positions(self, ids: ir.Value, mask: ir.Value) -> ir.Value:  # noqa: ARG002
        """Return the position of each token in its sequence, int64 [B, T]."""
        return self._mask.positions

    def attention(self, inputs: AttentionInputs, heads: AttentionHeads) -> AttentionResult:
        """Return causal attention with rotary positions; the scores are values of the graph."""
        name = inputs.name
        query, key, value = inputs.query, inputs.key, inputs.value
        if key is None or value is None:
            query, key, value = self.split(query, heads.widths, f"{name}.parts")
        rotation = self._rotation(inputs, heads)
        query_heads = self._split_heads(query, heads.heads, heads.width, f"{name}.q")
        rotated_query = self._rotate(query_heads, rotation, f"{name}.q.turned")
        key_heads = self._split_heads(key, heads.key_heads, heads.width, f"{name}.k")
        rotated_key = self._rotate(key_heads, rotation, f"{name}.k.turned")
        value_heads = self._split_heads(value, heads.key_heads, heads.width, f"{name}.v")
        keys = self.op("Concat", [inputs.past[0], rotated_key], f"{name}.keys", axis=2)
        values = self.op("Concat", [inputs.past[1], value_heads], f"{name}.values", axis=2)
        shares = self._attention_shares(rotated_query, keys, inputs, heads)
        grouped = self.op("Unsqueeze", [values, self.ints(2)], f"{name}.values.5d")
        mixed = self.op("MatMul", [shares, grouped], f"{name}.found")
        by_head = self.ints(0, heads.heads, -1, heads.width)
        mixed = self.op("Reshape", [mixed, by_head], f"{name}.heads")
        mixed = self.op("Transpose", [mixed], f"{name}.tokens", perm=[0, 2, 1, 3])
        joined = self.ints(0, 0, heads.heads * heads.width)
        return AttentionResult(self.op("Reshape", [mixed, joined], name), keys, values)

    def _rotation(self, inputs: AttentionInputs, heads: AttentionHeads) -> _HeadRotation | None:
        rotary = inputs.rotary
        if rotary is None:
            return None
        return _HeadRotation(
            self._rotary_rows(rotary.cos, rotary, f"{inputs.name}.cos"),
            self._rotary_rows(rotary.sin, rotary, f"{inputs.name}.sin"),
            rotary.width // 2,
            heads.width,
            heads.rotary_in_pairs,
        )

    def _attention_shares(
        self, query: ir.Value, keys: ir.Value, inputs: AttentionInputs, heads: AttentionHeads
    ) -> ir.Value:
        """Return the softmax of the attention scores, [B, M, N / M, T, P + T]."""
        name = inputs.name
        groups = self.ints(0, heads.key_heads, heads.heads // heads.key_heads, -1, heads.width)
        grouped = self.op("Reshape", [query, groups], f"{name}.groups")
        across = self.op("Unsqueeze", [keys, self.ints(2)], f"{name}.keys.5d")
        across = self.op("Transpose", [across], f"{name}.keys.t", perm=[0, 1, 2, 4, 3])
        scores = self.op("MatMul", [grouped, across], f"{name}.scores")
        factor = self.floats(f"scale.{heads.scale:g}", np.array(heads.scale, np.float32))
        scores = self.op("Mul", [scores, factor], f"{name}.scaled")
        if heads.cap:
            scores = self.capped(scores, heads.cap, f"{name}.capped")
        masked = self.floats("hidden", np.array(_MASKED_SCORES[self.dtype]))
        allowed = self._allowed(inputs.window)
        scores = self.op("Where", [allowed, scores, masked], f"{name}.seen")
        if inputs.sinks is None:
            return self.op("Softmax", [scores], f"{name}.shares", axis=-1)
        shape = self.ints(heads.key_heads, heads.heads // heads.key_heads, 1, 1)
        sinks = self.op("Reshape", [inputs.sinks, shape], f"{name}.sinks.4d")
        first = self.op("ReduceMax", [scores, self.ints(-1)], f"{name}.largest", keepdims=1)
        zeros = self.op("Sub", [first, first], f"{name}.no_scores")
        column = self.op("Add", [zeros, sinks], f"{name}.sinks.5d")
        joined = self.op("Concat", [scores, column], f"{name}.with_sinks", axis=-1)
        shares = self.op("Softmax", [joined], f"{name}.shares.with_sinks", axis=-1)
        ends = [self.ints(0), self.ints(-1), self.ints(-1)]
        return self.op("Slice", [shares, *ends], f"{name}.shares")

    def _allowed(self, window: int | None) -> ir.Value:
        """Return bool [B, 1, 1, T, P + T]: positions that each token attends to.

        They are valid, not later than the token, and within the window; a token always attends to
        itself.
        """
        name, mask = f"allowed.{window}", self._mask
        if (existing := self.existing(name)) is not None:
            return existing
        before = self.op("LessOrEqual", [mask.keys, mask.queries], f"{name}.before")
        if window is not None:
            at = self.op("Unsqueeze", [mask.positions, self.ints(1, 2, 4)], f"{name}.at")
            size = self.constant(f"scalar.{window}", np.array(window))
            first = self.op("Sub", [at, size], f"{name}.first")
            where = self.op("Unsqueeze", [mask.all_positions, self.ints(1, 2, 3)], f"{name}.where")
            near = self.op("Greater", [where, first], f"{name}.near")
            before = self.op("And", [before, near], f"{name}.around")
        own = self.op("Equal", [mask.keys, mask.queries], f"{name}.own")
        return self.op("Or", [self.op("And", [mask.valid, before], f"{name}.meant"), own], name)

    def _rotary_rows(self, table: ir.Value, rotary: RotaryTables, name: str) -> ir.Value:
        """Return the rows of a table for each token, [B, 1, T, width / 2]."""
        by_token = rotary.by_token
        rows = table if by_token else self.op("Gather", [table, self._mask.positions], name)
        return self.op("Unsqueeze", [rows, self.ints(1)], f"{name}.4d")

    def _split_heads(self, x: ir.Value, count: int, width: int, name: str) -> ir.Value:
        """Return [B, T, count · width] as [B, count, T, width]."""
        apart = self.op("Reshape", [x, self.ints(0, 0, count, width)], f"{name}.apart")
        return self.op("Transpose", [apart], f"{name}.heads", perm=[0, 2, 1, 3])

    def _rotate(self, x: ir.Value, rotation: _HeadRotation | None, name: str) -> ir.Value:
        """Rotate the first values of each head, neighbours or halves, by the token's position."""
        if rotation is None:
            return x
        half, rotated_width = rotation.half, 2 * rotation.half
        rest: list[ir.Value] = []
        if rotated_width < rotation.width:
            sizes = [rotated_width, rotation.width - rotated_width]
            x, *rest = self.split(x, sizes, f"{name}.both")
        if rotation.in_pairs:
            x = self.op("Reshape", [x, self.ints(0, 0, 0, half, 2)], f"{name}.pairs")
            a, b = (
                self.op("Squeeze", [side, self.ints(-1)], f"{name}.{number}")
                for number, side in enumerate(self.split(x, [1, 1], f"{name}.ab"))
            )
        else:
            a, b = self.split(x, [half, half], f"{name}.ab")
        first = self._combine("Sub", (a, b), rotation, f"{name}.first")
        second = self._combine("Add", (b, a), rotation, f"{name}.second")
        if not rotation.in_pairs:
            return self.op("Concat", [first, second, *rest], name, axis=-1)
        pairs = [
            self.op("Unsqueeze", [side, self.ints(-1)], f"{side.name}.pair")
            for side in (first, second)
        ]
        joined = self.op("Concat", pairs, f"{name}.joined", axis=-1)
        flat = self.op("Reshape", [joined, self.ints(0, 0, 0, rotated_width)], f"{name}.flat")
        return self.op("Concat", [flat, *rest], name, axis=-1)

    def _combine(
        self, operator: str, sides: tuple[ir.Value, ir.Value], rotation: _HeadRotation, name: str
    ) -> ir.Value:
        """Return a · cos ± b · sin for two sides a and b."""
        cos_term = self.op("Mul", [sides[0], rotation.cos], f"{name}.cos")
        sin_term = self.op("Mul", [sides[1], rotation.sin], f"{name}.sin")
        return self.op(operator, [cos_term, sin_term], name)
