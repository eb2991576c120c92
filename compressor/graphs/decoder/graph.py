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
    With bounded caches, `dropped_positions.<window>` int64 [B or 1] for each bound, by default 0:
    how many positions those caches no longer hold (``cache_bounds``); their P is smaller by these.
    With slots for adapters, two factors for each (``adapter_slots``), by default of rank 0.

Outputs:
    `logits` float32 [B, T or `logits_to_keep`, V]; `present.<layer>.key` and `.value`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from torch import Tensor

from compressor.graphs.decoder.architecture import (
    DecoderArchitecture,
    ImageTokens,
    LearnedPositions,
)
from compressor.graphs.decoder.block_sizes import embedding_block_size
from compressor.graphs.decoder.images import insert_images, rotary_by_section
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    IMAGE_EMBEDS,
    INPUT_IDS,
    LOGITS,
    LOGITS_TO_KEEP,
    POSITION_OFFSETS,
)
from compressor.graphs.decoder.layers import DecoderLayers
from compressor.graphs.decoder.operators import (
    Operators,
    RotaryTables,
)
from compressor.graphs.decoder.weights import CheckpointWeights
from compressor.graphs.values import Array

IR_VERSION = 11


class DecoderGraph(DecoderLayers):
    """A decoder's graph under construction.

    Args:
        architecture: the sizes and layer types of the decoder.
        weights: the tensors of its checkpoint, which are read when the graph is written.
        operators: appends nodes for the target runtime; it is kept as ``add``.
        int8_embeddings: store embedding and LM head in 8 bits, if they are not packed.
        cache_scales: scales of each cache input, float32 [M · H], for a cache in 8 bits.
        adapter_targets: ends of the names of the linear layers that get a slot for an adapter.
    """

    def __init__(
        self,
        architecture: DecoderArchitecture,
        weights: CheckpointWeights,
        operators: Operators,
        *,
        int8_embeddings: bool,
        cache_scales: Mapping[str, Array] | None = None,
        adapter_targets: tuple[str, ...] = (),
    ) -> None:
        super().__init__(architecture, weights, operators, cache_scales, adapter_targets)
        hidden = architecture.decoder.hidden
        self.int8_block_size = embedding_block_size(hidden) if int8_embeddings else 0
        self.optional_inputs: list[ir.Value] = []
        """Inputs with a default."""

    def build(self) -> ir.Model:
        """Return the whole graph. May be called once."""
        add, architecture = self.add, self.architecture
        layers = architecture.decoder.layers
        ids = self._input(INPUT_IDS, ir.DataType.INT64, "batch", "sequence")
        mask = self._input(ATTENTION_MASK, ir.DataType.INT64, "batch", "total")
        add.read_mask(ids, mask)  # the attention of every layer uses its result
        keep = self._optional_input(LOGITS_TO_KEEP, np.array([0], dtype=np.int64), 1)
        self._read_dropped(ids, mask)
        x = self._embed_sequence(ids, mask)
        first, normed = architecture.layers[0].pre_attention, x
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
            [*self.inputs, *self.optional_inputs, *self.adapters.inputs],
            self.outputs,
            nodes=add.nodes,
            initializers=list(add.constants.values()),
            opset_imports=dict(add.opsets),
            name="decoder",
        )
        return ir.Model(graph, ir_version=IR_VERSION)

    def _read_dropped(self, ids: ir.Value, mask: ir.Value) -> None:
        """Append an input for each bound of caches, and the nodes that layers read of it."""
        for bound in self.architecture.cache_bounds() if self.add.bounds_caches else ():
            default = np.array([0], dtype=np.int64)
            self._optional_input(bound.input_name, default, "dropped_batch")
            self.add.read_dropped(bound, ids, mask)

    def _embed_sequence(self, ids: ir.Value, mask: ir.Value) -> ir.Value:
        """Return the embeddings with images and learned positions; set the rotary tables."""
        add, architecture, x = self.add, self.architecture, self._embed(ids)
        if architecture.positions is not None:
            x = self._add_positions(x, architecture.positions, self._token_positions(ids, mask))
        if architecture.query_factors is not None:
            self.query_factors = self._query_factors(
                architecture.query_factors, self._token_positions(ids, mask)
            )
        if architecture.images is None:
            self.rotary = {
                layer_type: self._rotary_by_position(layer_type, ids, mask)
                for layer_type in architecture.rotary
            }
            return x
        x = self._insert_images(x, ids, architecture.images)
        positions_3d = self._positions_3d(ids, mask)
        self.rotary = {
            layer_type: rotary_by_section(
                add, layer_type, rotary, positions_3d, architecture.images
            )
            for layer_type, rotary in architecture.rotary.items()
        }
        return x

    def _optional_input(self, name: str, default: Array, *shape: str | int) -> ir.Value:
        value = self.add.constant(name, default)
        value.shape = ir.Shape(shape)
        self.optional_inputs.append(value)
        return value

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
        positions = self._token_positions(ids, mask)
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
