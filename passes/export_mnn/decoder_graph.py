"""A decoder as an ONNX graph for MNN's converter: without weights of linear layers.

Linear layers and attention are nodes of a domain of their own, which the converter keeps as they
are; ``decoder_operators`` replaces them by MNN's. Its norms it recognizes. Inputs and their shapes
are those that MNN's engine for language models has: embeddings, a mask, positions, and from which
token on logits are wanted.

Shapes: S new tokens, H hidden width, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from passes.export_mnn.decoder_limits import rotary_base

DOMAIN = "LlmExporter"
LINEAR, ATTENTION = "FakeLinear", "FusedAttention"
HEAD = "lm_head"
_OPSET = 13
_END = np.iinfo(np.int32).max
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """Sizes of a decoder."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    base: float
    """``rope_theta``."""
    epsilon: float

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> DecoderSizes:
        """Return the sizes that config.json states."""
        hidden, heads = int(fields["hidden_size"]), int(fields["num_attention_heads"])
        return cls(
            hidden,
            int(fields["num_hidden_layers"]),
            heads,
            int(fields.get("num_key_value_heads") or heads),
            int(fields.get("head_dim") or hidden // heads),
            int(fields["vocab_size"]),
            rotary_base(fields),
            float(fields.get("rms_norm_eps", 1e-6)),
        )


class DecoderGraph:
    """Nodes of one decoder."""

    def __init__(
        self,
        sizes: DecoderSizes,
        shapes: Mapping[str, tuple[int, ...]],
        vector: Callable[[str], Array],
    ) -> None:
        """Prepare an empty graph.

        Args:
            sizes: of the decoder.
            shapes: of its tensors, by the names of transformers' class.
            vector: returns a tensor of one dimension as float32.
        """
        self._sizes, self._shapes, self._vector = sizes, shapes, vector
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        """Return the graph."""
        sizes = self._sizes
        hidden = self._shape("input_ids", [1, -1, sizes.hidden])
        angles = self._angles()
        turns = self._node("Cos", angles), self._node("Sin", angles)
        for layer in range(sizes.layers):
            hidden = self._layer(f"model.layers.{layer}", layer, hidden, turns)
        hidden = self._slice(hidden, "logits_index", _END, axis=1)
        hidden = self._norm(hidden, "model.norm")
        logits = self._linear(hidden, HEAD, (sizes.vocabulary, sizes.hidden))
        self._nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        graph = helper.make_graph(
            self._nodes,
            "decoder",
            [
                helper.make_tensor_value_info(
                    "input_ids", TensorProto.FLOAT, ["s", 1, sizes.hidden]
                ),
                helper.make_tensor_value_info(
                    "attention_mask", TensorProto.FLOAT, [1, 1, "s", "k"]
                ),
                helper.make_tensor_value_info("position_ids", TensorProto.INT32, [1, "s"]),
                helper.make_tensor_value_info("logits_index", TensorProto.INT32, [1]),
            ],
            [
                helper.make_tensor_value_info(
                    "logits", TensorProto.FLOAT, [1, "s", sizes.vocabulary]
                )
            ],
            self._constants,
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def _layer(self, name: str, number: int, hidden: str, turns: tuple[str, str]) -> str:
        sizes = self._sizes
        normed = self._norm(hidden, f"{name}.input_layernorm")
        parts = []
        for part, heads in (("q", sizes.heads), ("k", sizes.key_heads), ("v", sizes.key_heads)):
            values = self._linear(normed, f"{name}.self_attn.{part}_proj")
            values = self._shape(values, [1, -1, heads, sizes.head_width])
            if f"{name}.self_attn.{part}_norm.weight" in self._shapes:
                values = self._norm(values, f"{name}.self_attn.{part}_norm")
            parts.append(values if part == "v" else self._rotate(values, turns))
        attended = self._node(
            ATTENTION,
            *parts,
            "attention_mask",
            domain=DOMAIN,
            output_dim=sizes.heads * sizes.head_width,
            kv_cache=1,
            layer_index=number,
        )
        hidden = self._node("Add", hidden, self._linear(attended, f"{name}.self_attn.o_proj"))
        normed = self._norm(hidden, f"{name}.post_attention_layernorm")
        gate = self._linear(normed, f"{name}.mlp.gate_proj")
        up = self._linear(normed, f"{name}.mlp.up_proj")
        gated = self._node("Mul", self._node("Mul", gate, self._node("Sigmoid", gate)), up)
        return self._node("Add", hidden, self._linear(gated, f"{name}.mlp.down_proj"))

    def _angles(self) -> str:
        """Return the angle of each position and value of a head, [1, S, 1, D]."""
        width = self._sizes.head_width
        frequencies = self._sizes.base ** -(np.arange(0, width, 2, dtype=np.float64) / width)
        positions = self._node("Cast", "position_ids", to=TensorProto.FLOAT)
        positions = self._shape(positions, [1, -1, 1, 1])
        constant = self._constant(frequencies.astype(np.float32).reshape(1, 1, 1, -1))
        half = self._node("Mul", positions, constant)
        return self._node("Concat", half, half, axis=-1)

    def _rotate(self, values: str, turns: tuple[str, str]) -> str:
        half, width = self._sizes.head_width // 2, self._sizes.head_width
        first, second = (
            self._slice(values, 0, half, axis=3),
            self._slice(values, half, width, axis=3),
        )
        turned = self._node("Concat", self._node("Neg", second), first, axis=-1)
        cosines, sines = turns
        straight = self._node("Mul", values, cosines)
        return self._node("Add", straight, self._node("Mul", turned, sines))

    def _norm(self, values: str, name: str) -> str:
        """Return values over their root mean square, in the nodes that the converter recognizes."""
        square = self._node("Pow", values, self._constant(np.float32(2)))
        mean = self._node("ReduceMean", square, axes=[-1], keepdims=1)
        shifted = self._node("Add", mean, self._constant(np.float32(self._sizes.epsilon)))
        scale = self._node("Div", self._constant(np.float32(1)), self._node("Sqrt", shifted))
        normed = self._node("Mul", values, scale)
        return self._node("Mul", normed, self._constant(self._vector(f"{name}.weight")))

    def _linear(self, values: str, name: str, shape: tuple[int, ...] | None = None) -> str:
        outputs, inputs = shape or self._shapes[f"{name}.weight"]
        return self._node(
            LINEAR, values, domain=DOMAIN, label=name, in_features=inputs, out_features=outputs
        )

    def _slice(self, values: str, start: int | str, end: int, axis: int) -> str:
        first = start if isinstance(start, str) else self._constant(np.array([start], np.int32))
        last = self._constant(np.array([end], np.int32))
        return self._node("Slice", values, first, last, self._constant(np.array([axis], np.int32)))

    def _shape(self, values: str, shape: list[int]) -> str:
        return self._node("Reshape", values, self._constant(np.array(shape, np.int64)))

    def _constant(self, array: Array | np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _node(self, operator: str, *inputs: str, label: str = "", **attributes: Any) -> str:
        name = f"{operator}_{len(self._nodes)}"
        node = helper.make_node(operator, list(inputs), [name], name=name, **attributes)
        if operator in {LINEAR, ATTENTION}:
            node.attribute.append(helper.make_attribute("name", label or name))
        self._nodes.append(node)
        return name
