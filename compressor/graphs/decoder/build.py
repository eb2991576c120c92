"""A decoder from its parts: one graph for prompt and step, keys and values in and out.

Shapes: B samples, T tokens, P tokens before them, N key heads of width H, V words. Inputs: `input_ids` int64 [B, T];
`attention_mask` int64 [B, P + T], padding at the end; `past_key_values.<layer>.key` and `.value` float32 [B, N, P, H], or int8;
and `logits_to_keep` int64 [1], by default 0: the scores of so many last tokens, of all for 0. Outputs: `logits` float32 [B, T or
so many, V]; `present.<layer>.key` and `.value`. Where there are images, also `image_embeds` float32 [words of images, hidden],
by default none, in the places of the image token; and `position_offsets` int64 [3, B or 1, T or 1], by default 0, added to the
position of each token in time, height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnxscript import ir

from compressor.graphs.decoder.architecture import Architecture, Images
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    IMAGE_EMBEDS,
    INPUT_IDS,
    LOGITS,
    LOGITS_TO_KEEP,
    PAST_PREFIX,
    POSITION_OFFSETS,
    KvCacheLayout,
)
from compressor.graphs.decoder.operators import Operators, Turns
from compressor.graphs.decoder.weights import BLOCKS, Weights
from compressor.models.capabilities.linear_groups import Site
from compressor.models.families.transformers.layouts import HEAD
from compressor.models.families.transformers.linear_groups import decoder_layer_sites

IR_VERSION = 11
Array = np.ndarray[Any, Any]


class DecoderGraph:
    """Builds one."""

    def __init__(
        self,
        architecture: Architecture,
        tree: dict[str, Any],
        folder: Path,
        operators: Operators,
        *,
        int8_tables: bool,
        cache_scales: Mapping[str, Array] | None = None,
    ) -> None:
        self.architecture, self.weights = architecture, Weights(folder, tree)
        self.int8_tables = int8_tables
        self.cache_scales = cache_scales
        """Of each input of keys or values, where they are kept in 8 bits: float32 [N · H]."""
        self.add = operators
        self.sites = {site.name: site for site in decoder_layer_sites(tree)}
        self.inputs: list[ir.Value] = []
        self.optional: list[ir.Value] = []
        """Inputs with a default."""
        self.outputs: list[ir.Value] = []

    def model(self) -> ir.Model:
        """The whole graph; its tensors are read when it is written."""
        decoder = self.architecture.decoder
        ids = self._input(INPUT_IDS, ir.DataType.INT64, "batch", "sequence")
        mask = self._input(ATTENTION_MASK, ir.DataType.INT64, "batch", "total")
        places = self.add.places(ids, mask)
        keep = self._default(LOGITS_TO_KEEP, np.array([0], dtype=np.int64), 1)
        x = self._embedded(ids)
        if (images := self.architecture.images) is not None:
            x = self._with_images(x, ids, images)
            positions = self.add.positions(ids, mask, places)
            self.turns = {
                kind: self._by_section(kind, positions, images) for kind in self.architecture.rotary
            }
        else:
            self.turns = {kind: self._by_position(kind) for kind in self.architecture.rotary}
        normed = self.add.norm(
            x, self._norm("layers.0.input_layernorm"), self.architecture.epsilon, "layers.0.normed"
        )
        for number in range(decoder.layers):
            last = number == decoder.layers - 1
            x, normed = self._layer(
                number,
                x,
                normed,
                places,
                "norm" if last else f"layers.{number + 1}.input_layernorm",
            )
        start = self.add.op("Neg", [keep], "logits.start")
        normed = self.add.op(
            "Slice",
            [normed, start, self.add.ints(np.iinfo(np.int64).max), self.add.ints(1)],
            "logits.read",
        )
        logits = self._head(normed)
        self._output(logits, LOGITS, ir.DataType.FLOAT, "batch", "answers", decoder.vocabulary)
        self.outputs.insert(0, self.outputs.pop())
        graph = ir.Graph(
            [*self.inputs, *self.optional],
            self.outputs,
            nodes=self.add.nodes,
            initializers=list(self.add.constants.values()),
            opset_imports=dict(self.add.opsets),
            name="decoder",
        )
        return ir.Model(graph, ir_version=IR_VERSION)

    def _input(self, name: str, dtype: ir.DataType, *shape: str | int) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def _default(self, name: str, value: Array, *shape: str | int) -> ir.Value:
        """An input that consumers may leave out."""
        one = self.add.constant(name, value)
        one.shape = ir.Shape(shape)
        self.optional.append(one)
        return one

    def _output(self, value: ir.Value, name: str, dtype: ir.DataType, *shape: str | int) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.outputs.append(value)

    def _name(self, name: str) -> str:
        return f"{self.architecture.root}.{name}"

    def _norm(self, name: str) -> ir.Value:
        offset = self.architecture.decoder.layout.norm_offset
        return self.add.constant(
            f"{name}.weight", self.weights.vector(self._name(f"{name}.weight"), offset)
        )

    def _table_block(self) -> int:
        """The size of the blocks of tables in 8 bits; 0 where they stay float."""
        hidden = self.architecture.decoder.hidden
        return next((size for size in BLOCKS if hidden % size == 0), 0) if self.int8_tables else 0

    def _embedded(self, ids: ir.Value) -> ir.Value:
        table = self._name("embed_tokens.weight")
        if size := self._table_block():
            found = self.add.packed_rows(
                ids, self.weights.rounded_table(table, size), self._table_name()
            )
        else:
            found = self.add.op(
                "Gather",
                [self.add.constant("embed_tokens", self.weights.table(table)), ids],
                "embedded",
            )
        scale = self.architecture.embedding_scale
        if scale == 1.0:
            return found
        return self.add.op(
            "Mul",
            [found, self.add.constant("embed_scale", np.array(scale, np.float32))],
            "embedded.scaled",
        )

    def _with_images(self, x: ir.Value, ids: ir.Value, images: Images) -> ir.Value:
        """The vision tower's words, one after another, in the places of the image token."""
        add, hidden = self.add, self.architecture.decoder.hidden
        embeds = self._default(
            IMAGE_EMBEDS, np.zeros((0, hidden), dtype=np.float32), "image_words", hidden
        )
        token = add.constant("image.token", np.array(images.token, dtype=np.int64))
        zero, one = (
            add.constant(f"image.{value}", np.array(value, dtype=np.int64)) for value in (0, 1)
        )
        here = add.op("Equal", [ids, token], "image.is")
        flat = add.op("Reshape", [here, add.ints(-1)], "image.is.flat")
        count = add.op(
            "CumSum",
            [add.op("Cast", [flat], "image.ones", to=ir.DataType.INT64), zero],
            "image.count",
        )
        number = add.op(
            "Max", [add.op("Sub", [count, one], "image.from_zero"), zero], "image.number.flat"
        )
        number = add.op("Reshape", [number, add.op("Shape", [ids], "image.shape")], "image.number")
        none = add.constant(
            "image.none", np.zeros((1, hidden), dtype=np.float32)
        )  # to look up where there are no words
        words = add.op("Concat", [embeds, none], "image.words", axis=0)
        rows = add.op("Gather", [words, number], "image.rows", axis=0)
        return add.op(
            "Where",
            [add.op("Unsqueeze", [here, add.ints(2)], "image.here"), rows, x],
            "embedded.with_images",
        )

    def _by_position(self, kind: str) -> Turns:
        rotary, add = self.architecture.rotary[kind], self.add
        cos, sin = (
            add.constant(f"cos.{kind}", rotary.cos.numpy()),
            add.constant(f"sin.{kind}", rotary.sin.numpy()),
        )
        return Turns(cos, sin, 2 * rotary.cos.shape[1], by_token=False)

    def _by_section(self, kind: str, positions: ir.Value, images: Images) -> Turns:
        """Each section of the frequencies follows one of the three positions (Wang et al. 2024, M-RoPE)."""
        rotary, add = self.architecture.rotary[kind], self.add
        offsets = self._default(
            POSITION_OFFSETS,
            np.zeros((3, 1, 1), dtype=np.int64),
            3,
            "offset_batch",
            "offset_sequence",
        )
        every = add.op(
            "Add",
            [add.op("Unsqueeze", [positions, add.ints(0)], "positions.3d"), offsets],
            "positions.all",
        )
        starts = np.cumsum([0, *images.sections]).tolist()
        found = []
        for what, table in (("cos", rotary.cos), ("sin", rotary.sin)):
            parts = []
            for number, (start, size) in enumerate(zip(starts, images.sections, strict=False)):
                axis = add.constant(f"axis.{number % 3}", np.array(number % 3))
                places = add.op("Gather", [every, axis], f"{what}.{kind}.{number}.places", axis=0)
                part = add.constant(
                    f"{what}.{kind}.{number}.table", table[:, start : start + size].numpy()
                )
                parts.append(add.op("Gather", [part, places], f"{what}.{kind}.{number}"))
            found.append(add.op("Concat", parts, f"{what}.{kind}", axis=-1))
        return Turns(found[0], found[1], 2 * starts[-1], by_token=True)

    def _table_name(self) -> str:
        return "head" if self.architecture.decoder.tied else "embed_tokens"

    def _head(self, x: ir.Value) -> ir.Value:
        tied = self.architecture.decoder.tied
        table = self._name("embed_tokens.weight") if tied else f"{HEAD}.weight"
        if not tied and self.weights.grid(HEAD) is not None:
            decoder = self.architecture.decoder
            packed = self.weights.blocks([HEAD], (decoder.vocabulary, decoder.hidden))
            return self.add.packed_linear(x, packed, None, "head")
        if size := self._table_block():
            return self.add.packed_linear(x, self.weights.rounded_table(table, size), None, "head")
        if not tied:
            return self.add.linear(
                x, self.add.constant("head.weight", self.weights.transposed([table])), None, "head"
            )
        # Stored once: ONNX Runtime folds the transposition into the product.
        turned = self.add.op(
            "Transpose", [self.add.constants["embed_tokens"]], "head.weight", perm=[1, 0]
        )
        return self.add.linear(x, turned, None, "head")

    def _layer(
        self, number: int, x: ir.Value, normed: ir.Value, places: Any, next_norm: str
    ) -> tuple[ir.Value, ir.Value]:
        """The residual stream behind a layer, and that through the norm which reads it next."""
        architecture, layer = self.architecture, f"layers.{number}"
        said = self._attention(number, normed, places)
        if architecture.after_attention:
            said = self._normed(said, f"{layer}.{architecture.after_attention}")
        ffn_norm = f"{layer}.{architecture.decoder.layout.ffn_norm}"
        normed, x = self._added(x, said, ffn_norm)
        said = self._ffn(number, normed)
        if architecture.after_ffn:
            said = self._normed(said, f"{layer}.{architecture.after_ffn}")
        normed, x = self._added(x, said, next_norm)
        return x, normed

    def _normed(self, x: ir.Value, name: str) -> ir.Value:
        return self.add.norm(x, self._norm(name), self.architecture.epsilon, f"{name}.normed")

    def _added(self, x: ir.Value, said: ir.Value, norm: str) -> tuple[ir.Value, ir.Value]:
        return self.add.add_and_norm(
            x, said, self._norm(norm), self.architecture.epsilon, f"{norm}.normed"
        )

    def _attention(self, number: int, x: ir.Value, places: Any) -> ir.Value:
        decoder, layer, add = self.architecture.decoder, f"layers.{number}", self.add
        widths = [decoder.heads * decoder.head_width, *[decoder.key_heads * decoder.head_width] * 2]
        query = self._linear(x, self.sites["attention"], number, decoder.hidden, widths)
        key: ir.Value | None = None
        value: ir.Value | None = None
        if decoder.layout.head_norms:
            query, key, value = add.split(query, widths, f"{layer}.heads")
            query, key = (
                self._head_norm(part, f"{layer}.self_attn.{name}", width)
                for part, name, width in zip(
                    (query, key), decoder.layout.head_norms, widths, strict=False
                )
            )
        kind, window = self.architecture.kinds[number], self.architecture.windows[number]
        names = [f"{PAST_PREFIX}{number}.{what}" for what in ("key", "value")]
        dtype = ir.DataType.INT8 if self.cache_scales else ir.DataType.FLOAT
        shape = ("batch", decoder.key_heads, "past", decoder.head_width)
        past = (self._input(names[0], dtype, *shape), self._input(names[1], dtype, *shape))
        scales = (
            [add.constant(f"{name}.scale", self.cache_scales[name]) for name in names]
            if self.cache_scales
            else []
        )
        found, keys, values = add.attention(
            query,
            key,
            value,
            past,
            places,
            self.turns[kind],
            f"{layer}.attention",
            num_heads=decoder.heads,
            kv_num_heads=decoder.key_heads,
            head_width=decoder.head_width,
            scale=self.architecture.attention_scale,
            in_pairs=decoder.layout.rotary_in_pairs,
            window=window,
            cache_scales=scales,
        )
        shape = ("batch", decoder.key_heads, "total", decoder.head_width)
        for one, name in zip((keys, values), names, strict=True):
            self._output(one, KvCacheLayout.present_name(name), dtype, *shape)
        return self._linear(
            found, self.sites["attention output"], number, widths[0], [decoder.hidden]
        )

    def _head_norm(self, x: ir.Value, name: str, width: int) -> ir.Value:
        """RMSNorm of each head."""
        add, head = self.add, self.architecture.decoder.head_width
        heads = add.op("Reshape", [x, add.ints(0, 0, width // head, head)], f"{name}.heads")
        return add.op(
            "Reshape", [self._normed(heads, name), add.ints(0, 0, width)], f"{name}.whole"
        )

    def _ffn(self, number: int, x: ir.Value) -> ir.Value:
        decoder, add = self.architecture.decoder, self.add
        both = self._linear(x, self.sites["ffn"], number, decoder.hidden, [decoder.ffn] * 2)
        gate, up = add.split(both, [decoder.ffn] * 2, f"layers.{number}.mlp.parts")
        gate = add.activation(gate, self.architecture.activation, f"layers.{number}.mlp.act")
        inner = add.op("Mul", [gate, up], f"layers.{number}.mlp.inner")
        return self._linear(inner, self.sites["ffn output"], number, decoder.ffn, [decoder.hidden])

    def _linear(
        self, x: ir.Value, site: Site, number: int, inputs: int, outputs: list[int]
    ) -> ir.Value:
        """All linear layers of a site at once, their results side by side."""
        names = [self._name(f"layers.{number}.{name}") for name in site.linears]
        short = f"layers.{number}.{site.linears[0].rpartition('.')[0]}.{'_'.join(n.rpartition('.')[2] for n in site.linears)}"
        biases = [f"{name}.bias" for name in names if self.weights.has(f"{name}.bias")]
        bias = self.add.constant(f"{short}.bias", self.weights.vectors(biases)) if biases else None
        if self.weights.grid(names[0]) is not None:
            return self.add.packed_linear(
                x, self.weights.blocks(names, (sum(outputs), inputs)), bias, short
            )
        matrix = self.weights.transposed([f"{name}.weight" for name in names])
        return self.add.linear(x, self.add.constant(f"{short}.weight", matrix), bias, short)
