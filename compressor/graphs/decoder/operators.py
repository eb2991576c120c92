"""The parts of a decoder in the operators that ONNX Runtime computes fastest.

Shapes: B samples, T tokens, P tokens before them, N heads of width H, I inputs, O outputs, K blocks of a row of S inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnxscript import ir

from compressor.graphs.decoder.architecture import Activation
from compressor.graphs.decoder.weights import Blocks

MICROSOFT = "com.microsoft"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Turns:
    """Rotary positions."""

    cos: ir.Value
    sin: ir.Value
    """Of each position, [positions, width / 2]; or of each token, [B, T, width / 2]."""
    width: int
    """Values of a head that are turned."""
    by_token: bool


class Operators:
    """A graph that grows; every method adds nodes and gives their result."""

    opsets: ClassVar[Mapping[str, int]] = {"": 23, MICROSOFT: 1}

    def __init__(self, accuracy_level: int) -> None:
        self.accuracy_level = accuracy_level
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        outputs: int = 1,
        **given: Any,
    ) -> ir.Value:
        """One node, and its first result; the others, if any, follow in ``value.producer().outputs``."""
        node = ir.node(kind, inputs, given or None, domain=domain, num_outputs=outputs, name=name)
        for number, output in enumerate(node.outputs):
            output.name = name if number == 0 else f"{name}.{number}"
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, value: Array | ir.LazyTensor) -> ir.Value:
        """An initializer; the same one for the same name."""
        if name not in self.constants:
            tensor = (
                value
                if isinstance(value, ir.LazyTensor)
                else ir.tensor(np.asarray(value, order="C"))
            )
            tensor.name = name
            one = ir.Value(
                name=name,
                shape=ir.Shape(value.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self.constants[name] = one
        return self.constants[name]

    def ints(self, *values: int) -> ir.Value:
        """int64 [values]."""
        return self.constant(f"ints.{'_'.join(map(str, values))}", np.array(values, dtype=np.int64))

    def norm(self, x: ir.Value, weight: ir.Value, epsilon: float, name: str) -> ir.Value:
        """RMSNorm over the last axis."""
        return self.op("RMSNormalization", [x, weight], name, axis=-1, epsilon=epsilon)

    def add_and_norm(
        self, x: ir.Value, more: ir.Value, weight: ir.Value, epsilon: float, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """RMSNorm of x + more, and x + more."""
        found = self.op(
            "SkipSimplifiedLayerNormalization",
            [x, more, weight],
            name,
            domain=MICROSOFT,
            outputs=4,
            epsilon=epsilon,
        )
        node = found.producer()
        assert node is not None  # noqa: S101
        for unused in node.outputs[1:3]:
            unused.name = ""
        return found, node.outputs[3]

    def linear(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None, name: str) -> ir.Value:
        """X · W + b, W [I, O]."""
        found = self.op("MatMul", [x, weight], name if bias is None else f"{name}.product")
        return found if bias is None else self.op("Add", [found, bias], name)

    def packed_linear(
        self, x: ir.Value, weight: Blocks, bias: ir.Value | None, name: str
    ) -> ir.Value:
        """X · W + b with the integers of W as they are."""
        data, scales, zeros = self._blocks(weight, name)
        inputs = [x, data, scales, zeros, None, bias]
        while inputs[-1] is None:
            inputs.pop()
        return self.op(
            "MatMulNBits",
            inputs,
            name,
            domain=MICROSOFT,
            K=weight.inputs,
            N=weight.outputs,
            bits=weight.bits,
            block_size=weight.size,
            accuracy_level=self.accuracy_level,
        )

    def packed_rows(self, ids: ir.Value, table: Blocks, name: str) -> ir.Value:
        """The rows of a table of integers, float32 [B, T, hidden]; its initializers are those of the head named alike."""
        data, _, _ = self._blocks(table, name)
        scales = self.op("Unsqueeze", [self._widened(name), self.ints(2)], f"{name}.scales.rows")
        rows = self.op(
            "GatherBlockQuantized",
            [data, ids, scales],
            f"{name}.blocks",
            domain=MICROSOFT,
            bits=table.bits,
            block_size=table.size,
            gather_axis=0,
            quantize_axis=2,
        )
        return self.op("Reshape", [rows, self.ints(0, 0, table.inputs)], f"{name}.rows")

    def _blocks(self, weight: Blocks, name: str) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        data = self.constant(f"{name}.data", weight.data)
        self.constant(f"{name}.scales", weight.scales)
        zeros = None if weight.zeros is None else self.constant(f"{name}.zeros", weight.zeros)
        return data, self._widened(name), zeros

    def _widened(self, name: str) -> ir.Value:
        """Scales lie in the file as they are, float16 mostly; they are widened when the model is opened."""
        wide = f"{name}.scales.float"
        found = next((node.outputs[0] for node in self.nodes if node.name == wide), None)
        return found or self.op(
            "Cast", [self.constants[f"{name}.scales"]], wide, to=ir.DataType.FLOAT
        )

    def split(self, x: ir.Value, sizes: Sequence[int], name: str) -> list[ir.Value]:
        """Along the last axis."""
        first = self.op("Split", [x, self.ints(*sizes)], name, outputs=len(sizes), axis=-1)
        node = first.producer()
        assert node is not None  # noqa: S101
        return list(node.outputs)

    def activation(self, x: ir.Value, kind: Activation, name: str) -> ir.Value:
        """SiLU, which is QuickGelu with α = 1, or GELU by tanh."""
        if kind == "silu":
            return self.op("QuickGelu", [x], name, domain=MICROSOFT, alpha=1.0)
        return self.op("Gelu", [x], name, approximate="tanh")

    def places(self, ids: ir.Value, mask: ir.Value) -> Any:  # noqa: ARG002
        """What attention reads of `attention_mask`: int32 [B], the place of each sample's last token, and int32, P + T."""
        counts = self.op("ReduceSum", [mask, self.ints(1)], "lengths.counts", keepdims=0)
        last = self.op("Sub", [counts, self.ints(1)], "lengths.last")
        total = self.op(
            "Gather",
            [self.op("Shape", [mask], "total.shape"), self.constant("one", np.array(1))],
            "total.long",
        )
        return (
            self.op("Cast", [last], "lengths", to=ir.DataType.INT32),
            self.op("Cast", [total], "total", to=ir.DataType.INT32),
        )

    def positions(self, ids: ir.Value, mask: ir.Value, places: Any) -> ir.Value:  # noqa: ARG002
        """Of each token in its sample, int64 [B, T]; as attention itself counts them."""
        counts = self.op("ReduceSum", [mask, self.ints(1)], "positions.counts", keepdims=1)
        one = self.constant("one", np.array(1))
        tokens = self.op(
            "Gather", [self.op("Shape", [ids], "positions.shape"), one], "positions.tokens"
        )
        start = self.op(
            "Max",
            [self.op("Sub", [counts, tokens], "positions.before"), self.ints(0)],
            "positions.start",
        )
        count = self.op(
            "Range", [self.constant("zero", np.array(0)), tokens, one], "positions.range"
        )
        return self.op("Add", [start, count], "positions")

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
        cache_scales: Sequence[ir.Value],
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Causal attention with rotary positions: the result [B, T, N·H], and keys and values with those of before.

        ``query`` holds keys and values too where these are None. ``cache_scales`` float32 [M·H] of keys and of values are there
        where those are kept in 8 bits.
        """
        told: dict[str, int | str] = {}
        tables: list[ir.Value | None] = [None, None]
        if turns.by_token:
            if key is None:
                widths = [num_heads * head_width, *[kv_num_heads * head_width] * 2]
                query, key, value = self.split(query, widths, f"{name}.parts")
            query = self._turned_by_token(query, turns, f"{name}.q", num_heads, in_pairs=in_pairs)
            key = self._turned_by_token(key, turns, f"{name}.k", kv_num_heads, in_pairs=in_pairs)
        else:
            tables = [turns.cos, turns.sin]
            told = {"do_rotary": 1, "rotary_interleaved": int(in_pairs)}
        inputs = [query, key, value, *past, *places, *tables]
        if cache_scales:
            inputs += [
                None,
                None,
                None,
                *cache_scales,
            ]  # positions, a bias, and sinks are not there
            told |= {
                "k_quant_type": "PER_CHANNEL",
                "v_quant_type": "PER_CHANNEL",
                "kv_cache_bit_width": 8,
            }
        while inputs[-1] is None:
            inputs.pop()
        found = self.op(
            "GroupQueryAttention",
            inputs,
            name,
            domain=MICROSOFT,
            outputs=3,
            num_heads=num_heads,
            kv_num_heads=kv_num_heads,
            scale=scale,
            local_window_size=window or -1,
            **told,
        )
        node = found.producer()
        assert node is not None  # noqa: S101
        return found, node.outputs[1], node.outputs[2]

    def _turned_by_token(
        self, x: ir.Value, turns: Turns, name: str, heads: int, *, in_pairs: bool
    ) -> ir.Value:
        return self.op(
            "RotaryEmbedding",
            [x, turns.cos, turns.sin],
            f"{name}.turned",
            num_heads=heads,
            interleaved=int(in_pairs),
            rotary_embedding_dim=turns.width,
        )
