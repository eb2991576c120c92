"""The parts of a decoder in ONNX's own operators (opset 21), which every runtime has; weights of few bits as DequantizeLinear.

Shapes: B samples, T tokens, P tokens before them, N heads of width H, M key heads, I inputs, O outputs, K blocks of S inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnxscript import ir

from compressor.graphs.decoder.architecture import Activation
from compressor.graphs.decoder.operators import Operators, Turns
from compressor.graphs.decoder.weights import Blocks

_HIDDEN = np.float32(-1e30)
"""The score of what may not be seen."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where tokens stand, and what they see."""

    positions: ir.Value
    """int64 [B, T]."""
    mask: ir.Value
    """bool [B, 1, 1, 1, P + T]."""
    queries: ir.Value
    """int64 [T, 1], counted with padding."""
    keys: ir.Value
    """int64 [1, P + T]."""
    counted: ir.Value
    """int64 [B, P + T]: the positions of all, padding left out."""


class PortableOperators(Operators):
    """Every method in standard operators."""

    opsets: ClassVar[Mapping[str, int]] = {"": 21}

    def norm(self, x: ir.Value, weight: ir.Value, epsilon: float, name: str) -> ir.Value:
        """X / √(mean x² + ε) · w: the form that runtimes fuse."""
        squares = self.op("Mul", [x, x], f"{name}.squares")
        mean = self.op("ReduceMean", [squares, self.ints(-1)], f"{name}.mean", keepdims=1)
        little = self.constant(f"epsilon.{epsilon:g}", np.array(epsilon, np.float32))
        root = self.op("Sqrt", [self.op("Add", [mean, little], f"{name}.damped")], f"{name}.root")
        return self.op("Mul", [self.op("Div", [x, root], f"{name}.even"), weight], name)

    def add_and_norm(
        self, x: ir.Value, more: ir.Value, weight: ir.Value, epsilon: float, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """RMSNorm of x + more, and x + more."""
        whole = self.op("Add", [x, more], f"{name}.sum")
        return self.norm(whole, weight, epsilon, name), whole

    def packed_linear(
        self, x: ir.Value, weight: Blocks, bias: ir.Value | None, name: str
    ) -> ir.Value:
        """X · W + b, W [I, O] dequantized by block."""
        return self.linear(x, self._dequantized(weight, name), bias, name)

    def packed_rows(self, ids: ir.Value, table: Blocks, name: str) -> ir.Value:
        """The rows of a table that is dequantized by block, [B, T, hidden]."""
        turned = self._dequantized(table, name)
        return self.op(
            "Gather",
            [self.op("Transpose", [turned], f"{name}.table", perm=[1, 0]), ids],
            f"{name}.rows",
        )

    def _dequantized(self, weight: Blocks, name: str) -> ir.Value:
        """float32 [I, O]."""
        known = next((node.outputs[0] for node in self.nodes if node.name == f"{name}.whole"), None)
        if known is not None:
            return known
        integers, scales, zeros = weight.standard()
        inputs = [self.constant(f"{name}.data", integers), self.constant(f"{name}.scales", scales)]
        wide = self.op("Cast", [inputs[1]], f"{name}.scales.float", to=ir.DataType.FLOAT)
        found = [
            inputs[0],
            wide,
            *([self.constant(f"{name}.zeros", zeros)] if zeros is not None else []),
        ]
        return self.op("DequantizeLinear", found, f"{name}.whole", axis=0, block_size=weight.size)

    def activation(self, x: ir.Value, kind: Activation, name: str) -> ir.Value:
        """SiLU or GELU by tanh."""
        if kind == "silu":
            return self.op("Mul", [x, self.op("Sigmoid", [x], f"{name}.gate")], name)
        return self.op("Gelu", [x], name, approximate="tanh")

    def places(self, ids: ir.Value, mask: ir.Value) -> _Places:
        """From `attention_mask`, which may hold padding anywhere."""
        zero, one = (self.constant(f"scalar.{value}", np.array(value)) for value in (0, 1))
        tokens = self.op("Gather", [self.op("Shape", [ids], "tokens.shape"), one], "tokens")
        total = self.op("Gather", [self.op("Shape", [mask], "total.shape"), one], "total")
        start = self.op("Sub", [total, tokens], "start")
        counted = self.op(
            "Sub", [self.op("CumSum", [mask, one], "counted"), one], "counted.from_zero"
        )
        last = self.op("Unsqueeze", [start, self.ints(0)], "start.1d")
        recent = self.op(
            "Slice",
            [counted, last, self.ints(np.iinfo(np.int64).max), self.ints(1)],
            "counted.recent",
        )
        queries = self.op("Range", [start, total, one], "queries.1d")
        keys = self.op("Range", [zero, total, one], "keys.1d")
        seen = self.op("Cast", [mask], "seen", to=ir.DataType.BOOL)
        return _Places(
            self.op("Max", [recent, zero], "positions"),
            self.op("Unsqueeze", [seen, self.ints(1, 2, 3)], "seen.5d"),
            self.op("Unsqueeze", [queries, self.ints(1)], "queries"),
            self.op("Unsqueeze", [keys, self.ints(0)], "keys"),
            counted,
        )

    def attention(
        self,
        query: ir.Value,
        key: ir.Value | None,
        value: ir.Value | None,
        past: tuple[ir.Value, ir.Value],
        places: Any,
        turns: Turns,
        name: str,
        *,
        num_heads: int,
        kv_num_heads: int,
        head_width: int,
        scale: float,
        in_pairs: bool,
        window: int | None,
        cache_scales: Sequence[ir.Value],  # noqa: ARG002
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """As the base class, in float alone; every head's scores are seen in the graph."""
        if key is None or value is None:
            widths = [num_heads * head_width, *[kv_num_heads * head_width] * 2]
            query, key, value = self.split(query, widths, f"{name}.parts")
        cos, sin = (
            self._row(table, places, f"{name}.{what}", by_token=turns.by_token)
            for table, what in ((turns.cos, "cos"), (turns.sin, "sin"))
        )
        half = turns.width // 2
        parts = []
        for what, one, count in (("q", query, num_heads), ("k", key, kv_num_heads)):
            heads = self._heads(one, count, head_width, f"{name}.{what}")
            parts.append(
                self._turned(
                    heads, cos, sin, half, head_width, f"{name}.{what}.turned", in_pairs=in_pairs
                )
            )
        parts.append(self._heads(value, kv_num_heads, head_width, f"{name}.v"))
        keys = self.op("Concat", [past[0], parts[1]], f"{name}.keys", axis=2)
        values = self.op("Concat", [past[1], parts[2]], f"{name}.values", axis=2)
        apart = self.ints(0, kv_num_heads, num_heads // kv_num_heads, -1, head_width)
        grouped = self.op("Reshape", [parts[0], apart], f"{name}.groups")
        across = self.op("Unsqueeze", [keys, self.ints(2)], f"{name}.keys.5d")
        across = self.op("Transpose", [across], f"{name}.keys.t", perm=[0, 1, 2, 4, 3])
        scores = self.op("MatMul", [grouped, across], f"{name}.scores")
        factor = self.constant(f"scale.{scale:g}", np.array(scale, np.float32))
        scores = self.op("Mul", [scores, factor], f"{name}.scaled")
        hidden = self.constant("hidden", np.array(_HIDDEN))
        scores = self.op("Where", [self._allowed(places, window), scores, hidden], f"{name}.seen")
        shares = self.op("Softmax", [scores], f"{name}.shares", axis=-1)
        across = self.op("Unsqueeze", [values, self.ints(2)], f"{name}.values.5d")
        found = self.op("MatMul", [shares, across], f"{name}.found")
        found = self.op(
            "Reshape", [found, self.ints(0, num_heads, -1, head_width)], f"{name}.heads"
        )
        found = self.op("Transpose", [found], f"{name}.tokens", perm=[0, 2, 1, 3])
        return (
            self.op("Reshape", [found, self.ints(0, 0, num_heads * head_width)], name),
            keys,
            values,
        )

    def _allowed(self, places: _Places, window: int | None) -> ir.Value:
        """Bool [B, 1, 1, T, P + T]: what is no padding, not later, and not too far back; and always oneself."""
        name = f"allowed.{window}"
        known = next((node.outputs[0] for node in self.nodes if node.name == name), None)
        if known is not None:
            return known
        before = self.op("LessOrEqual", [places.keys, places.queries], f"{name}.before")
        if window is not None:
            at = self.op("Unsqueeze", [places.positions, self.ints(1, 2, 4)], f"{name}.at")
            first = self.op(
                "Sub", [at, self.constant(f"scalar.{window}", np.array(window))], f"{name}.first"
            )
            where = self.op("Unsqueeze", [places.counted, self.ints(1, 2, 3)], f"{name}.where")
            before = self.op(
                "And",
                [before, self.op("Greater", [where, first], f"{name}.near")],
                f"{name}.around",
            )
        own = self.op("Equal", [places.keys, places.queries], f"{name}.own")
        return self.op("Or", [self.op("And", [places.mask, before], f"{name}.meant"), own], name)

    def positions(self, ids: ir.Value, mask: ir.Value, places: Any) -> ir.Value:  # noqa: ARG002
        """As the base class."""
        found: ir.Value = places.positions
        return found

    def _row(self, table: ir.Value, places: _Places, name: str, *, by_token: bool) -> ir.Value:
        """What a table says of each position, [B, 1, T, width / 2]."""
        rows = table if by_token else self.op("Gather", [table, places.positions], name)
        return self.op("Unsqueeze", [rows, self.ints(1)], f"{name}.4d")

    def _heads(self, x: ir.Value, count: int, width: int, name: str) -> ir.Value:
        """[B, T, count · width] as [B, count, T, width]."""
        apart = self.op("Reshape", [x, self.ints(0, 0, count, width)], f"{name}.apart")
        return self.op("Transpose", [apart], f"{name}.heads", perm=[0, 2, 1, 3])

    def _turned(
        self,
        x: ir.Value,
        cos: ir.Value,
        sin: ir.Value,
        half: int,
        width: int,
        name: str,
        *,
        in_pairs: bool,
    ) -> ir.Value:
        """Rotary positions on the first 2 · half of a head's values: halves against each other, or neighbours."""
        rest: Sequence[ir.Value] = []
        if 2 * half < width:
            x, *rest = self.split(x, [2 * half, width - 2 * half], f"{name}.both")
        if in_pairs:
            x = self.op("Reshape", [x, self.ints(0, 0, 0, half, 2)], f"{name}.pairs")
            sides = enumerate(self.split(x, [1, 1], f"{name}.ab"))
            a, b = (
                self.op("Squeeze", [one, self.ints(-1)], f"{name}.{number}")
                for number, one in sides
            )
        else:
            a, b = self.split(x, [half, half], f"{name}.ab")

        def mixed(one: ir.Value, other: ir.Value, kind: str, what: str) -> ir.Value:
            left = self.op("Mul", [one, cos], f"{name}.{what}.cos")
            return self.op(
                kind, [left, self.op("Mul", [other, sin], f"{name}.{what}.sin")], f"{name}.{what}"
            )

        first, second = mixed(a, b, "Sub", "first"), mixed(b, a, "Add", "second")
        if in_pairs:
            first, second = (
                self.op("Unsqueeze", [one, self.ints(-1)], f"{one.name}.pair")
                for one in (first, second)
            )
            pairs = self.op("Concat", [first, second], f"{name}.joined", axis=-1)
            turned = [self.op("Reshape", [pairs, self.ints(0, 0, 0, 2 * half)], f"{name}.flat")]
        else:
            turned = [first, second]
        return self.op("Concat", [*turned, *rest], name, axis=-1)
