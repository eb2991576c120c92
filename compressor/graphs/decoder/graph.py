"""Graph of a decoder: one graph for prefill and decode, with the key-value cache in and out.

Shapes: B sequences, T tokens, P cached positions, M key heads of width H, V tokens of the
vocabulary, W rows of image embeddings.

Inputs:
    `input_ids` int64 [B, T]; `attention_mask` int64 [B, P + T], with padding at the end;
    `past_key_values.<layer>.key` and `.value` float32, float16 or int8 [B, M, P, H].
    `logits_to_keep` int64 [1], by default 0: the logits of so many last tokens, of all for 0.
    With images, `image_embeds` float32 [W, hidden], by default none, which replace the image tokens
    in order; and `position_offsets` int64 [3, B or 1, T or 1], by default 0, which are added to the
    position of each token in time, height and width.

Outputs:
    `logits` float32 [B, T or `logits_to_keep`, V]; `present.<layer>.key` and `.value`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compressor.graphs.decoder.architecture import (
    DecoderArchitecture,
    FeedForward,
    ImageTokens,
    LearnedPositions,
    Norm,
)
from compressor.graphs.decoder.block_sizes import embedding_block_size
from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.graphs.decoder.images import insert_images, rotary_by_section
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    IMAGE_EMBEDS,
    INPUT_IDS,
    LOGITS,
    LOGITS_TO_KEEP,
    PAST_PREFIX,
    POSITION_OFFSETS,
)
from compressor.graphs.decoder.operators import (
    AttentionHeads,
    AttentionInputs,
    NormWeights,
    Operators,
    RotaryTables,
)
from compressor.graphs.decoder.weights import CheckpointWeights
from compressor.graphs.decoder.xielu import xielu
from compressor.graphs.values import Array

IR_VERSION = 11


class DecoderGraph:
    """A decoder's graph under construction.

    Args:
        architecture: the sizes and layer types of the decoder.
        weights: the tensors of its checkpoint, which are read when the graph is written.
        operators: appends nodes for the target runtime; it is kept as ``add``.
        int8_embeddings: store embedding and LM head in 8 bits, if they are not packed.
        cache_scales: scales of each cache input, float32 [M · H], for a cache in 8 bits.
    """

    def __init__(
        self,
        architecture: DecoderArchitecture,
        weights: CheckpointWeights,
        operators: Operators,
        *,
        int8_embeddings: bool,
        cache_scales: Mapping[str, Array] | None = None,
    ) -> None:
        self.architecture, self.weights, self.add = architecture, weights, operators
        decoder = architecture.decoder
        self.int8_block_size = embedding_block_size(decoder.hidden) if int8_embeddings else 0
        self.cache_scales = cache_scales
        self.heads = AttentionHeads(
            decoder.heads,
            decoder.key_heads,
            decoder.head_width,
            architecture.scales.attention,
            architecture.rotary_in_pairs,
            architecture.scales.attention_cap,
        )
        self.group_rows = rows_by_group(self.heads)
        self.query_factors: ir.Value | None = None
        self.inputs: list[ir.Value] = []
        self.optional_inputs: list[ir.Value] = []
        """Inputs with a default."""
        self.outputs: list[ir.Value] = []

    def build(self) -> ir.Model:
        """Return the whole graph. May be called once."""
        add, architecture = self.add, self.architecture
        layers = architecture.decoder.layers
        ids = self._input(INPUT_IDS, ir.DataType.INT64, "batch", "sequence")
        mask = self._input(ATTENTION_MASK, ir.DataType.INT64, "batch", "total")
        add.read_mask(ids, mask)  # the attention of every layer uses its result
        keep = self._optional_input(LOGITS_TO_KEEP, np.array([0], dtype=np.int64), 1)
        x = self._embed(ids)
        if architecture.positions is not None:
            x = self._add_positions(x, architecture.positions, self._token_positions(ids, mask))
        if architecture.query_factors is not None:
            self.query_factors = self._query_factors(
                architecture.query_factors, self._token_positions(ids, mask)
            )
        if architecture.embedding_norm is not None:
            x = self._norm(x, architecture.embedding_norm, "")
        if architecture.images is None:
            self.rotary = {
                layer_type: self._rotary_by_position(layer_type, ids, mask)
                for layer_type in architecture.rotary
            }
        else:
            x = self._insert_images(x, ids, architecture.images)
            positions_3d = self._positions_3d(ids, mask)
            self.rotary = {
                layer_type: rotary_by_section(
                    add, layer_type, rotary, positions_3d, architecture.images
                )
                for layer_type, rotary in architecture.rotary.items()
            }
        first, normed = architecture.layer.pre_attention, x
        if first is not None:
            normed = add.norm(x, self._norm_weights(first, self._prefix(0)), "layers.0.normed")
        for number in range(layers):
            next_norm = (self._prefix(number + 1), first)
            if number == layers - 1:
                next_norm = ("", architecture.final_norm)
            x, normed = self._layer(number, x, normed, next_norm)
        start = add.op("Neg", [keep], "logits.start")
        end = add.ints(np.iinfo(np.int64).max)
        last_tokens = add.op("Slice", [normed, start, end, add.ints(1)], "logits.read")
        logits = add.cast(self._lm_head(last_tokens), ir.DataType.FLOAT, "logits.float")
        vocabulary = architecture.decoder.vocabulary
        self._output(logits, LOGITS, ir.DataType.FLOAT, "batch", "answers", vocabulary)
        self.outputs.insert(0, self.outputs.pop())  # the logits come before the cache
        graph = ir.Graph(
            [*self.inputs, *self.optional_inputs],
            self.outputs,
            nodes=add.nodes,
            initializers=list(add.constants.values()),
            opset_imports=dict(add.opsets),
            name="decoder",
        )
        return ir.Model(graph, ir_version=IR_VERSION)

    def _input(self, name: str, dtype: ir.DataType, *shape: str | int) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def _optional_input(self, name: str, default: Array, *shape: str | int) -> ir.Value:
        value = self.add.constant(name, default)
        value.shape = ir.Shape(shape)
        self.optional_inputs.append(value)
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

    def _embed(self, ids: ir.Value) -> ir.Value:
        add, table = self.add, self._full_name(f"{self.architecture.names.embedding}.weight")
        if self.int8_block_size:
            # A tied table is stored once, under the name that `_lm_head` uses.
            name = "head" if self.architecture.decoder.tied else "embed_tokens"
            x = add.packed_rows(ids, self.weights.int8_table(table, self.int8_block_size), name)
        else:
            embedding = add.constant("embed_tokens", self.weights.table(table))
            x = add.op("Gather", [embedding, ids], "embedded")
        scale = self.architecture.scales.embedding
        if scale == 1.0:
            return x
        factor = add.floats("embed_scale", np.array(scale, np.float32))
        return add.op("Mul", [x, factor], "embedded.scaled")

    def _insert_images(self, x: ir.Value, ids: ir.Value, images: ImageTokens) -> ir.Value:
        hidden = self.architecture.decoder.hidden
        default = np.zeros((0, hidden), dtype=np.float32)
        embeds = self._optional_input(IMAGE_EMBEDS, default, "image_words", hidden)
        return insert_images(self.add, x, ids, embeds, hidden, images.token_id)

    def _positions_3d(self, ids: ir.Value, mask: ir.Value) -> ir.Value:
        """Return the positions of each token in time, height and width, int64 [3, B, T]."""
        add = self.add
        positions = add.positions(ids, mask)
        default = np.zeros((3, 1, 1), dtype=np.int64)
        offsets = self._optional_input(
            POSITION_OFFSETS, default, 3, "offset_batch", "offset_sequence"
        )
        repeated = add.op("Unsqueeze", [positions, add.ints(0)], "positions.3d")
        return add.op("Add", [repeated, offsets], "positions.all")

    def _add_positions(
        self, x: ir.Value, learned: LearnedPositions, positions: ir.Value
    ) -> ir.Value:
        """Add the learned embeddings of each token's position."""
        name = self._full_name(f"{learned.name}.weight")
        end = learned.offset + self.architecture.context
        rows = self.weights.table(name, slice(learned.offset, end))
        found = self.add.op(
            "Gather", [self.add.constant("embed_positions", rows), positions], "embedded.positions"
        )
        return self.add.op("Add", [x, found], "embedded.with_positions")

    def _query_factors(self, factors: Tensor, positions: ir.Value) -> ir.Value:
        """Return the factor of each token's queries, [B, T, 1]."""
        table = self.add.floats("query_factors", factors.numpy())
        rows = self.add.op("Gather", [table, positions], "query_factors.rows", axis=0)
        return self.add.op("Unsqueeze", [rows, self.add.ints(-1)], "query_factors.3d")

    def _token_positions(self, ids: ir.Value, mask: ir.Value) -> ir.Value:
        existing = self.add.existing("positions")
        return self.add.positions(ids, mask) if existing is None else existing

    def _rotary_by_position(self, layer_type: str, ids: ir.Value, mask: ir.Value) -> RotaryTables:
        rotary, add = self.architecture.rotary[layer_type], self.add
        cos = add.floats(f"cos.{layer_type}", rotary.cos.numpy())
        sin = add.floats(f"sin.{layer_type}", rotary.sin.numpy())
        width = 2 * rotary.cos.shape[1]
        if rotary.cos.shape[1] % add.rotary_pairs_multiple == 0:
            return RotaryTables(cos, sin, width, by_token=False)
        positions = self._token_positions(ids, mask)
        rows = [
            add.op("Gather", [table, positions], f"{table.name}.rows", axis=0)
            for table in (cos, sin)
        ]
        return RotaryTables(rows[0], rows[1], width, by_token=True)

    def _lm_head(self, x: ir.Value) -> ir.Value:
        """Return the logits: from a packed, an 8-bit, an untied or a tied float matrix."""
        add, weights = self.add, self.weights
        head, scales = self.architecture.names.head, self.architecture.scales
        x = add.scaled(x, scales.logits, "head.scaled")
        bias = None
        if weights.has(f"{head}.bias"):
            bias = add.floats("head.bias", weights.vector(f"{head}.bias") * scales.logits)
        logits = self._head_product(x, bias)
        if scales.logit_cap:
            logits = add.capped(logits, scales.logit_cap, "head.capped")
        return logits

    def _head_product(self, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        add, decoder, weights = self.add, self.architecture.decoder, self.weights
        names = self.architecture.names
        embedding_name = self._full_name(f"{names.embedding}.weight")
        table = embedding_name if decoder.tied else f"{names.head}.weight"
        if not decoder.tied and weights.grid(names.head) is not None:
            packed = weights.blocks([names.head], (decoder.vocabulary, decoder.hidden))
            return add.packed_linear(x, packed, bias, "head")
        if self.int8_block_size:
            return add.packed_linear(
                x, weights.int8_table(table, self.int8_block_size), bias, "head"
            )
        if not decoder.tied:
            matrix = add.constant("head.weight", weights.transposed([table]))
            return add.linear(x, matrix, bias, "head")
        # A tied matrix is stored once: ONNX Runtime folds the transposition into the product.
        embedding = add.constants["embed_tokens"]
        matrix = add.op("Transpose", [embedding], "head.weight", perm=[1, 0])
        return add.linear(x, matrix, bias, "head")

    def _layer(
        self, number: int, x: ir.Value, normed: ir.Value, next_norm: tuple[str, Norm | None]
    ) -> tuple[ir.Value, ir.Value]:
        """Return the residual stream after a layer, and the same normalized for the next layer."""
        layer, prefix = self.architecture.layer, self._prefix(number)
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
        result = add.scaled(result, factor, f"{prefix}.attention.scaled")
        x, normed = self._add_and_norm(x, result, prefix, layer.pre_ffn)
        result = self._ffn(number, normed)
        if layer.post_ffn is not None:
            result = self._norm(result, layer.post_ffn, prefix)
        result = add.scaled(result, factor, f"{prefix}.ffn.scaled")
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
        )
        result = add.attention(inputs, self.heads)
        shape = ("batch", decoder.key_heads, "total", decoder.head_width)
        for present, name in zip((result.keys, result.values), names, strict=True):
            self._output(present, KvCacheLayout.present_name(name), dtype, *shape)
        attention = self.architecture.layer.attention
        output = result.output
        if attention.output_norm is not None:
            output = self._norm(output, attention.output_norm, layer)
        widths = (self.heads.widths[0], decoder.hidden)
        return self._linear(output, (attention.output,), number, widths)

    def _project(
        self, number: int, x: ir.Value
    ) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
        """Return queries, keys and values.

        Without norms of the heads they stay in one tensor: (joined, None, None).
        """
        decoder, layer, widths = self.architecture.decoder, self._prefix(number), self.heads.widths
        attention = self.architecture.layer.attention
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
        if self.architecture.layer.attention.normalizes_whole:
            return self._norm(x, norm, prefix)
        heads = add.op("Reshape", [x, add.ints(0, 0, width // head, head)], f"{name}.heads")
        normed = self._norm(heads, norm, prefix, head)
        return add.op("Reshape", [normed, add.ints(0, 0, width)], f"{name}.whole")

    def _ffn(self, number: int, x: ir.Value) -> ir.Value:
        layer, add = self._prefix(number), self.add
        ffn, hidden = self.architecture.layer.ffn, self.architecture.decoder.hidden
        prefix = f"{layer}.mlp"
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
        weights, layer = self.weights, self._prefix(number)
        names = [self._full_name(f"{layer}.{name}") for name in modules]
        module = modules[0].rpartition(".")[0]
        short_names = "_".join(name.rpartition(".")[2] for name in modules)
        joined_name = ".".join(part for part in (layer, module, short_names) if part)
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
