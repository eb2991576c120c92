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

from compressor.graphs.decoder.architecture import DecoderArchitecture, ImageTokens
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
    Operators,
    RotaryTables,
)
from compressor.graphs.decoder.weights import CheckpointWeights
from compressor.graphs.values import Array
from compressor.models.capabilities.linear_groups import Site
from compressor.models.families.transformers.layouts import LM_HEAD
from compressor.models.families.transformers.linear_groups import decoder_layer_sites

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
        self.sites = {site.name: site for site in decoder_layer_sites(weights.tree)}
        self.heads = AttentionHeads(
            decoder.heads,
            decoder.key_heads,
            decoder.head_width,
            architecture.attention_scale,
            decoder.layout.rotary_in_pairs,
        )
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
        if architecture.images is None:
            self.rotary = {
                layer_type: self._rotary_by_position(layer_type)
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
        weight = self._norm_weight("layers.0.input_layernorm")
        normed = add.norm(x, weight, architecture.epsilon, "layers.0.normed")
        for number in range(layers):
            is_last = number == layers - 1
            next_norm = "norm" if is_last else f"layers.{number + 1}.input_layernorm"
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
        return f"{self.architecture.root}.{name}"

    def _norm_weight(self, name: str) -> ir.Value:
        offset = self.architecture.decoder.layout.norm_offset
        weight = self.weights.vector(self._full_name(f"{name}.weight"), offset)
        return self.add.floats(f"{name}.weight", weight)

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        epsilon = self.architecture.epsilon
        return self.add.norm(x, self._norm_weight(name), epsilon, f"{name}.normed")

    def _add_and_norm(
        self, x: ir.Value, residual: ir.Value, name: str
    ) -> tuple[ir.Value, ir.Value]:
        epsilon = self.architecture.epsilon
        weight = self._norm_weight(name)
        return self.add.add_and_norm(x, residual, weight, epsilon, f"{name}.normed")

    def _embed(self, ids: ir.Value) -> ir.Value:
        add, table = self.add, self._full_name("embed_tokens.weight")
        if self.int8_block_size:
            # A tied table is stored once, under the name that `_lm_head` uses.
            name = "head" if self.architecture.decoder.tied else "embed_tokens"
            x = add.packed_rows(ids, self.weights.int8_table(table, self.int8_block_size), name)
        else:
            embedding = add.constant("embed_tokens", self.weights.table(table))
            x = add.op("Gather", [embedding, ids], "embedded")
        scale = self.architecture.embedding_scale
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

    def _rotary_by_position(self, layer_type: str) -> RotaryTables:
        rotary, add = self.architecture.rotary[layer_type], self.add
        cos = add.floats(f"cos.{layer_type}", rotary.cos.numpy())
        sin = add.floats(f"sin.{layer_type}", rotary.sin.numpy())
        return RotaryTables(cos, sin, 2 * rotary.cos.shape[1], by_token=False)

    def _lm_head(self, x: ir.Value) -> ir.Value:
        """Return the logits: from a packed, an 8-bit, an untied or a tied float matrix."""
        add, decoder, weights = self.add, self.architecture.decoder, self.weights
        table = self._full_name("embed_tokens.weight") if decoder.tied else f"{LM_HEAD}.weight"
        if not decoder.tied and weights.grid(LM_HEAD) is not None:
            packed = weights.blocks([LM_HEAD], (decoder.vocabulary, decoder.hidden))
            return add.packed_linear(x, packed, None, "head")
        if self.int8_block_size:
            return add.packed_linear(
                x, weights.int8_table(table, self.int8_block_size), None, "head"
            )
        if not decoder.tied:
            matrix = add.constant("head.weight", weights.transposed([table]))
            return add.linear(x, matrix, None, "head")
        # A tied matrix is stored once: ONNX Runtime folds the transposition into the product.
        embedding = add.constants["embed_tokens"]
        matrix = add.op("Transpose", [embedding], "head.weight", perm=[1, 0])
        return add.linear(x, matrix, None, "head")

    def _layer(
        self, number: int, x: ir.Value, normed: ir.Value, next_norm: str
    ) -> tuple[ir.Value, ir.Value]:
        """Return the residual stream after a layer, and the same normalized for the next layer."""
        architecture, layer = self.architecture, f"layers.{number}"
        result = self._attention(number, normed)
        if architecture.post_attention_norm:
            result = self._norm(result, f"{layer}.{architecture.post_attention_norm}")
        ffn_norm = f"{layer}.{architecture.decoder.layout.ffn_norm}"
        normed, x = self._add_and_norm(x, result, ffn_norm)
        result = self._ffn(number, normed)
        if architecture.post_ffn_norm:
            result = self._norm(result, f"{layer}.{architecture.post_ffn_norm}")
        normed, x = self._add_and_norm(x, result, next_norm)
        return x, normed

    def _attention(self, number: int, x: ir.Value) -> ir.Value:
        decoder, layer, add = self.architecture.decoder, f"layers.{number}", self.add
        query, key, value = self._project(number, x)
        names = [f"{PAST_PREFIX}{number}.{part}" for part in ("key", "value")]
        dtype = ir.DataType.INT8 if self.cache_scales else add.dtype
        shape = ("batch", decoder.key_heads, "past", decoder.head_width)
        past = (self._input(names[0], dtype, *shape), self._input(names[1], dtype, *shape))
        scales = []
        if self.cache_scales:
            scales = [add.constant(f"{name}.scale", self.cache_scales[name]) for name in names]
        inputs = AttentionInputs(
            name=f"{layer}.attention",
            query=query,
            key=key,
            value=value,
            past=past,
            rotary=self.rotary[self.architecture.layer_types[number]],
            window=self.architecture.windows[number],
            cache_scales=scales,
        )
        result = add.attention(inputs, self.heads)
        shape = ("batch", decoder.key_heads, "total", decoder.head_width)
        for present, name in zip((result.keys, result.values), names, strict=True):
            self._output(present, KvCacheLayout.present_name(name), dtype, *shape)
        width = self.heads.widths[0]
        site = self.sites["attention output"]
        return self._linear(result.output, site, number, width, [decoder.hidden])

    def _project(
        self, number: int, x: ir.Value
    ) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
        """Return queries, keys and values.

        Without norms of the heads they stay in one tensor: (joined, None, None).
        """
        decoder, layer, widths = self.architecture.decoder, f"layers.{number}", self.heads.widths
        joined = self._linear(x, self.sites["attention"], number, decoder.hidden, widths)
        if not decoder.layout.head_norms:
            return joined, None, None
        query, key, value = self.add.split(joined, widths, f"{layer}.heads")
        query_norm, key_norm = decoder.layout.head_norms
        query = self._head_norm(query, f"{layer}.self_attn.{query_norm}", widths[0])
        key = self._head_norm(key, f"{layer}.self_attn.{key_norm}", widths[1])
        return query, key, value

    def _head_norm(self, x: ir.Value, name: str, width: int) -> ir.Value:
        """Return RMSNorm of each head."""
        add, head = self.add, self.architecture.decoder.head_width
        heads = add.op("Reshape", [x, add.ints(0, 0, width // head, head)], f"{name}.heads")
        normed = self._norm(heads, name)
        return add.op("Reshape", [normed, add.ints(0, 0, width)], f"{name}.whole")

    def _ffn(self, number: int, x: ir.Value) -> ir.Value:
        decoder, add, prefix = self.architecture.decoder, self.add, f"layers.{number}.mlp"
        joined = self._linear(x, self.sites["ffn"], number, decoder.hidden, [decoder.ffn] * 2)
        gate, up = add.split(joined, [decoder.ffn] * 2, f"{prefix}.parts")
        gate = add.activation(gate, self.architecture.activation, f"{prefix}.act")
        inner = add.op("Mul", [gate, up], f"{prefix}.inner")
        return self._linear(inner, self.sites["ffn output"], number, decoder.ffn, [decoder.hidden])

    def _linear(
        self, x: ir.Value, site: Site, number: int, inputs: int, outputs: list[int]
    ) -> ir.Value:
        """Return the results of a site, the linear layers that read one input, side by side."""
        weights = self.weights
        names = [self._full_name(f"layers.{number}.{name}") for name in site.linears]
        module = site.linears[0].rpartition(".")[0]
        short_names = "_".join(name.rpartition(".")[2] for name in site.linears)
        joined_name = f"layers.{number}.{module}.{short_names}"
        biases = [f"{name}.bias" for name in names if weights.has(f"{name}.bias")]
        bias = None
        if biases:
            bias = self.add.floats(f"{joined_name}.bias", weights.vectors(biases))
        if weights.grid(names[0]) is not None:
            packed = weights.blocks(names, (sum(outputs), inputs))
            return self.add.packed_linear(x, packed, bias, joined_name)
        matrix = weights.transposed([f"{name}.weight" for name in names])
        weight = self.add.constant(f"{joined_name}.weight", matrix)
        return self.add.linear(x, weight, bias, joined_name)
