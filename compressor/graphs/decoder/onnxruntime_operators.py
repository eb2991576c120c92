"""Building blocks of a decoder in the operators that ONNX Runtime computes fastest.

Most are contrib operators of the domain ``com.microsoft``, such as GroupQueryAttention. Shapes as
in ``operators``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from compressor.graphs.decoder.bounded_attention import BoundedRows, bounded_rows
from compressor.graphs.decoder.cache_bounds import CacheBound
from compressor.graphs.decoder.mixture import ClampedGate
from compressor.graphs.decoder.operators import (
    AttentionHeads,
    AttentionInputs,
    AttentionResult,
    NormWeights,
    Operators,
    PackedExperts,
    RotaryTables,
    outputs_of,
)
from compressor.graphs.decoder.stacked_heads import (
    StackedRows,
    can_stack,
    stacked_attention,
    stacked_rows,
)
from compressor.graphs.decoder.weights import BlockMatrix, ExpertBlocks
from compressor.graphs.opsets import DECODER_OPSETS

MICROSOFT = "com.microsoft"
_NO_LIMIT = float(np.finfo(np.float32).max)
_SKIP_NORMS = {"rms": "SkipSimplifiedLayerNormalization", "layer": "SkipLayerNormalization"}
"""Kind of a norm to the operator that adds before it."""


class OnnxRuntimeOperators(Operators):
    """Operators of ONNX Runtime.

    Args:
        accuracy_level: of MatMulNBits: 4 rounds activations to 8 bits, 1 computes in float32.
        dtype: see ``Operators``.
        stacks_heads: compute one token's attention with the heads stacked (``stacked_heads``).
    """

    opsets: ClassVar[Mapping[str, int]] = {"": DECODER_OPSETS["onnxruntime"], MICROSOFT: 1}

    rotary_pairs_multiple: ClassVar[int] = 8
    has_packed_experts: ClassVar[bool] = True
    bounds_caches: ClassVar[bool] = True

    def __init__(
        self,
        accuracy_level: int,
        dtype: ir.DataType = ir.DataType.FLOAT,
        *,
        stacks_heads: bool = False,
    ) -> None:
        super().__init__(dtype)
        self.accuracy_level = accuracy_level
        self.stacks_heads = stacks_heads
        self._bounded: dict[CacheBound, BoundedRows] = {}
        self._stacked: StackedRows | None = None

    def rms_norm(self, x: ir.Value, weight: ir.Value, epsilon: float, name: str) -> ir.Value:
        """Return RMSNorm over the last axis."""
        return self.op("RMSNormalization", [x, weight], name, axis=-1, epsilon=epsilon)

    def add_and_norm(
        self, x: ir.Value, residual: ir.Value, norm: NormWeights, name: str
    ) -> tuple[ir.Value, ir.Value]:
        """Return the norm of x + residual, and x + residual."""
        normed = self.op(
            _SKIP_NORMS[norm.kind],
            [x, residual, norm.weight, *([] if norm.bias is None else [norm.bias])],
            name,
            domain=MICROSOFT,
            outputs=4,
            epsilon=norm.epsilon,
        )
        _, mean, inverse_deviation, total = outputs_of(normed)
        mean.name = inverse_deviation.name = ""  # optional outputs that nothing reads
        return normed, total

    def silu(self, x: ir.Value, name: str) -> ir.Value:
        """Return SiLU, which is QuickGelu with α = 1."""
        return self.op("QuickGelu", [x], name, domain=MICROSOFT, alpha=1.0)

    def packed_linear(
        self, x: ir.Value, weight: BlockMatrix, bias: ir.Value | None, name: str
    ) -> ir.Value:
        """Return x · W + b; the integers of W are those of the checkpoint."""
        data, scales, zeros = self._blocks(weight, name)
        return self.op(
            "MatMulNBits",
            _without_trailing_nones([x, data, scales, zeros, None, bias]),
            name,
            domain=MICROSOFT,
            K=weight.inputs,
            N=weight.outputs,
            bits=weight.bits,
            block_size=weight.size,
            accuracy_level=self.accuracy_level,
        )

    def packed_experts(
        self, tokens: ir.Value, shares: ir.Value, experts: PackedExperts, name: str
    ) -> ir.Value:
        """Return the sum of packed experts times their shares; see ``Operators``."""
        kinds = {"input": experts.inputs, "output": experts.output}
        (data, scales, zeros), (down_data, down_scales, down_zeros) = (
            self._expert_blocks(part, f"{name}.{kind}") for kind, part in kinds.items()
        )
        input_bias, output_bias = (
            None if bias is None else self.floats(f"{name}.{kind}.bias", bias)
            for kind, bias in (("input", experts.input_bias), ("output", experts.output_bias))
        )
        # The shares choose the experts too; a third matrix for gates and two inputs are absent.
        operands = [tokens, shares, data, scales, input_bias, down_data, down_scales, output_bias]
        operands += [None, None, None, zeros, down_zeros, None, shares]
        alpha, beta, limit = 1.0, 0.0, _NO_LIMIT
        if isinstance(experts.activation, ClampedGate):
            alpha, beta, limit = experts.activation.alpha, 1.0, experts.activation.limit
        return self.op(
            "QMoE",
            operands,
            name,
            domain=MICROSOFT,
            k=experts.chosen,
            expert_weight_bits=experts.bits,
            block_size=experts.size,
            weights_prepacked=0,
            normalize_routing_weights=0,
            accuracy_level=self.accuracy_level,
            activation_type="swiglu" if experts.is_gated else str(experts.activation),
            swiglu_fusion=int(experts.is_gated),
            activation_alpha=alpha,
            activation_beta=beta,
            swiglu_limit=limit,
        )

    def _expert_blocks(
        self, blocks: ExpertBlocks, name: str
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        data = self.constant(f"{name}.data", blocks.data)
        scales = self.constant(f"{name}.scales", blocks.scales)
        zeros = None if blocks.zeros is None else self.constant(f"{name}.zeros", blocks.zeros)
        if scales.dtype != self.dtype:
            scales = self.op("Cast", [scales], f"{name}.scales.cast", to=self.dtype)
        return data, scales, zeros

    def packed_rows(self, ids: ir.Value, table: BlockMatrix, name: str) -> ir.Value:
        """Return the rows of a packed embedding, [B, T, hidden]."""
        data, wide_scales, _ = self._blocks(table, name)
        scales = self.op("Unsqueeze", [wide_scales, self.ints(2)], f"{name}.scales.rows")
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

    def _blocks(self, weight: BlockMatrix, name: str) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Return integers, scales in ``dtype`` and zero-points as values of the graph.

        Scales are stored as they are, mostly float16, and widened when the model is opened.
        """
        data = self.constant(f"{name}.data", weight.data)
        scales = self.constant(f"{name}.scales", weight.scales)
        zeros = None if weight.zeros is None else self.constant(f"{name}.zeros", weight.zeros)
        if scales.dtype == self.dtype == ir.DataType.FLOAT16:
            return data, scales, zeros
        cast_name = f"{name}.scales.float"
        cast = self.existing(cast_name)
        if cast is None:
            cast = self.op("Cast", [scales], cast_name, to=self.dtype)
        return data, cast, zeros

    def read_mask(self, ids: ir.Value, mask: ir.Value) -> None:
        """Append int32 [B], the index of each sequence's last token, and int32, P + T."""
        self._ids = ids
        counts = self.op("ReduceSum", [mask, self.ints(1)], "lengths.counts", keepdims=0)
        last = self._last = self.op("Sub", [counts, self.ints(1)], "lengths.last")
        shape = self.op("Shape", [mask], "total.shape")
        total = self.op("Gather", [shape, self.constant("one", np.array(1))], "total.long")
        self._long_total = total
        self._lengths = self.op("Cast", [last], "lengths", to=ir.DataType.INT32)
        self._total = self.op("Cast", [total], "total", to=ir.DataType.INT32)

    def read_dropped(self, bound: CacheBound, ids: ir.Value, mask: ir.Value) -> None:
        """Append rows of the caches of one bound: positions without those that were dropped."""
        existing = self.existing("positions")
        positions = self.positions(ids, mask) if existing is None else existing
        self._bounded[bound] = bounded_rows(self, bound, ids, self._last, positions)

    def positions(self, ids: ir.Value, mask: ir.Value) -> ir.Value:
        """Return the position of each token, int64 [B, T], as GroupQueryAttention counts them."""
        counts = self.op("ReduceSum", [mask, self.ints(1)], "positions.counts", keepdims=1)
        step = self.constant("one", np.array(1))
        shape = self.op("Shape", [ids], "positions.shape")
        tokens = self.op("Gather", [shape, step], "positions.tokens")
        before = self.op("Sub", [counts, tokens], "positions.before")
        start = self.op("Max", [before, self.ints(0)], "positions.start")
        zero = self.constant("zero", np.array(0))
        count = self.op("Range", [zero, tokens, step], "positions.range")
        return self.op("Add", [start, count], "positions")

    def attention(self, inputs: AttentionInputs, heads: AttentionHeads) -> AttentionResult:
        """Return causal attention with rotary positions over the cache and the new tokens."""
        inputs = self._rotated(inputs, heads)
        if not (self.stacks_heads and can_stack(inputs, heads)):
            return AttentionResult(*self._grouped_attention(inputs, heads))
        group = heads.heads // heads.key_heads
        if self._stacked is None:
            values = (self._ids, self._last, self._long_total, inputs.past[0])
            self._stacked = stacked_rows(self, *values, group=group)
        with self.branch() as stacked:
            of_one_token = stacked_attention(self, inputs, heads, self._stacked)
        with self.branch() as grouped:
            of_any = self._grouped_attention(inputs, heads)
        for value in (*of_one_token, *of_any):
            value.type = ir.TensorType(self.dtype)  # onnx infers no types of contrib operators
        result = self.op(
            "If",
            [self._stacked.applies],
            f"{inputs.name}.by_length",
            outputs=3,
            then_branch=stacked.graph(of_one_token, f"{inputs.name}.one_token"),
            else_branch=grouped.graph(of_any, f"{inputs.name}.tokens"),
        )
        return AttentionResult(*outputs_of(result))

    def _rotated(self, inputs: AttentionInputs, heads: AttentionHeads) -> AttentionInputs:
        """Return the inputs with rotated queries and keys, if the tables follow the tokens."""
        rotary, query, key, value = inputs.rotary, inputs.query, inputs.key, inputs.value
        if rotary is None or not rotary.by_token:
            return inputs
        name, in_pairs = inputs.name, heads.rotary_in_pairs
        if key is None:
            query, key, value = self.split(query, heads.widths, f"{name}.parts")
        query = self._rotate(query, rotary, f"{name}.q", heads.heads, in_pairs=in_pairs)
        key = self._rotate(key, rotary, f"{name}.k", heads.key_heads, in_pairs=in_pairs)
        return replace(inputs, query=query, key=key, value=value)

    def _grouped_attention(self, inputs: AttentionInputs, heads: AttentionHeads) -> list[ir.Value]:
        """Append GroupQueryAttention for any number of tokens; its output and both caches."""
        attributes: dict[str, int | float | str] = {}
        tables: list[ir.Value | None] = [None, None]
        if inputs.rotary is not None and not inputs.rotary.by_token:
            tables = [inputs.rotary.cos, inputs.rotary.sin]
            attributes = {"do_rotary": 1, "rotary_interleaved": int(heads.rotary_in_pairs)}
        lengths, total, positions, mask = self._lengths, self._total, None, None
        window = inputs.window
        if inputs.bound is not None:
            rows = self._bounded[inputs.bound]
            lengths, total, mask = rows.lengths, rows.total, rows.mask
            window = window if mask is None else None
            positions = rows.positions if "do_rotary" in attributes else None
        operands = [inputs.query, inputs.key, inputs.value, *inputs.past]
        operands += [lengths, total, *tables, positions, mask]
        if heads.cap:
            attributes["softcap"] = heads.cap
        operands.append(inputs.sinks)
        if inputs.cache_scales:
            operands += inputs.cache_scales
            attributes |= {
                "k_quant_type": "PER_CHANNEL",
                "v_quant_type": "PER_CHANNEL",
                "kv_cache_bit_width": 8,
            }
        output = self.op(
            "GroupQueryAttention",
            _without_trailing_nones(operands),
            inputs.name,
            domain=MICROSOFT,
            outputs=3,
            num_heads=heads.heads,
            kv_num_heads=heads.key_heads,
            scale=heads.scale,
            local_window_size=window or -1,
            **attributes,
        )
        return outputs_of(output)

    def _rotate(
        self, x: ir.Value, rotary: RotaryTables, name: str, heads: int, *, in_pairs: bool
    ) -> ir.Value:
        return self.op(
            "RotaryEmbedding",
            [x, rotary.cos, rotary.sin],
            f"{name}.turned",
            num_heads=heads,
            interleaved=int(in_pairs),
            rotary_embedding_dim=rotary.width,
        )


def _without_trailing_nones(operands: list[ir.Value | None]) -> list[ir.Value | None]:
    while operands[-1] is None:
        operands.pop()
    return operands
