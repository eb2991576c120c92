"""A decoder's graph for prompts: its packed weights as integers of 8 bits, with one scale for each output.

MatMulNBits scales group by group while it multiplies, which keeps it from what a processor's integers could do. Many tokens at a
time are worth another form: weights in 8 bits by output, activations in 8 bits by token (ZeroQuant, Yao et al. 2022), one product
of integers. What the file holds stays as it is, and single tokens, which wait for memory and not for arithmetic, read that.

Shapes: B samples of T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from compressor.errors import UsageError
from compressor.runtimes.onnx_caches import IDS, LOGITS
from compressor.runtimes.onnx_files import MODEL
from compressor.runtimes.onnx_packed import LARGEST, PackedLayer, held

Array = np.ndarray[Any, Any]
_MIDDLE = 128
"""Activations are unsigned, around the middle: products of unsigned by signed integers are the fast ones."""
_SMALLEST = 1e-10
"""The least peak of a token's activations: one that is nothing but zeros has a scale too."""
_SMALL_BYTES = 256


class PromptGraph:
    """What reads prompts in place of a decoder's own graph."""

    def __init__(self, folder: Path) -> None:
        """Read a decoder's graph; its weights stay where they are.

        Raises:
            UsageError: it has no weights that are multiplied as packed integers.
        """
        self._model = ir.load(folder / MODEL)
        # Of a prompt, the head reads one token.
        heads = [one.producer() for one in self._model.graph.outputs if one.name == LOGITS]
        found = [PackedLayer.of(node) for node in self._model.graph if node not in heads]
        self._layers = [layer for layer in found if layer is not None]
        if not self._layers:
            raise UsageError(
                f"{folder} holds no weights that are multiplied as packed integers",
                remedy="pack the model with awq before it is exported, and export it with target: onnxruntime; "
                "or have its prompts read as they are",
            )

    @property
    def size_bytes(self) -> int:
        """Of the graph's weights."""
        replaced = {value.name for layer in self._layers for value in layer.node.inputs[1:] if value is not None}
        others = (one.const_value for name, one in self._model.graph.initializers.items() if name not in replaced)
        integers = sum(layer.inputs * layer.outputs for layer in self._layers)
        return integers + sum(one.nbytes for one in others if one is not None)

    def write(self, folder: Path, threads: int) -> None:
        """Write ``model.onnx``, and its weights beside it, a few layers in memory at a time."""
        graph = self._model.graph
        middles = self._middles()
        rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        for layer in self._layers:
            x = layer.node.inputs[0]
            assert x is not None  # noqa: S101
            if x not in rounded:
                rounded[x] = self._rounded(x, layer, middles)
            self._multiply(layer, *rounded[x])
        # What widened the scales of groups.
        graph.remove([node for node in graph if node.op_type == "Cast" and not node.outputs[0].uses()], safe=True)
        for name in [name for name, one in graph.initializers.items() if not one.uses() and one not in graph.inputs]:
            del graph.initializers[name]
        data = f"{MODEL}.data"
        ir.save(self._model, folder / MODEL, external_data=data, size_threshold_bytes=_SMALL_BYTES, max_workers=threads)

    def _constant(self, name: str, value: Array | ir.LazyTensor) -> ir.Value:
        """An initializer; the same one for the same name."""
        known = self._model.graph.initializers.get(name)
        if known is not None:
            return known
        tensor = value if isinstance(value, ir.LazyTensor) else ir.tensor(value)
        tensor.name = name
        one = ir.Value(name=name, shape=ir.Shape(value.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._model.graph.register_initializer(one)
        return one

    def _middles(self) -> ir.Value:
        """The zero-point of each token, uint8 [B, T, 1]."""
        [ids] = [one for one in self._model.graph.inputs if one.name == IDS]
        made = tape.Tape()
        shape = made.op("Concat", [made.op("Shape", [ids]), self._constant("prompts.one", np.array([1]))], {"axis": 0})
        middles = made.op("ConstantOfShape", [shape], {"value": ir.tensor(np.array([_MIDDLE], dtype=np.uint8))})
        self._model.graph.insert_before(self._model.graph[0], made.nodes)
        return middles

    def _rounded(self, x: ir.Value, layer: PackedLayer, middles: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What a layer reads, uint8 [B, T, I], and the scale of each token, [B, T, 1]."""
        made = tape.Tape()
        last = self._constant("prompts.last", np.array([-1]))
        peaks = [
            made.op("ReduceMax", [x, last], {"keepdims": 1}),
            made.op("Neg", [made.op("ReduceMin", [x, last], {"keepdims": 1})]),
            self._constant("prompts.smallest", np.array(_SMALLEST, dtype=np.float32)),
        ]
        share = self._constant("prompts.share", np.array(1 / LARGEST, dtype=np.float32))
        scales = made.op("Mul", [made.op("Max", peaks), share])
        # One block for each token: faster than one scale for each along an axis.
        found = made.op("QuantizeLinear", [x, scales, middles], {"axis": -1, "block_size": layer.inputs})
        self._model.graph.insert_before(layer.node, made.nodes)
        return found, scales

    def _multiply(self, layer: PackedLayer, x: ir.Value, scales: ir.Value) -> None:
        """In place of a layer; where nothing but a Split reads its result, each part is a product of its own."""
        made, start = tape.Tape(), 0
        divided = _divided(layer.node)
        parts = zip(divided.outputs, held(divided.inputs[1]).tolist(), strict=True) if divided else None
        all_scales_O = layer.peaks() / LARGEST
        for old, outputs in parts or [(layer.node.outputs[0], layer.outputs)]:
            some = slice(start, start := start + outputs)
            scales_O = all_scales_O[some]
            weights = ir.LazyTensor(
                partial(_integers, layer, some, scales_O),
                dtype=ir.DataType.INT8,
                shape=ir.Shape((layer.inputs, outputs)),
            )
            inputs = [
                x,
                self._constant(f"{old.name}.by_output", weights),
                self._constant("prompts.unit", np.array(1, dtype=np.float32)),
                self._constant(f"{old.name}.by_output.scales", scales_O),
                self._constant("prompts.middle", np.array(_MIDDLE, dtype=np.uint8)),
            ]
            found = made.op("Mul", [made.op("MatMulIntegerToFloat", inputs, domain="com.microsoft"), scales])
            if layer.bias_O is not None:
                found = made.op("Add", [found, self._constant(f"{old.name}.by_output.bias", layer.bias_O[some])])
            old.replace_all_uses_with(found)
        self._model.graph.insert_before(layer.node, made.nodes)
        self._model.graph.remove([divided, layer.node] if divided else [layer.node], safe=True)


def _integers(layer: PackedLayer, some: slice, scales_O: Array) -> ir.TensorProtocol:
    return ir.tensor(layer.integers(some, scales_O))


def _divided(node: ir.Node) -> ir.Node | None:
    """The Split that alone reads a node's result, and divides its last axis by sizes that are known."""
    readers = node.outputs[0].consumers()
    if len(readers) != 1 or readers[0].op_type != "Split" or len(readers[0].inputs) != 2:
        return None
    return readers[0] if readers[0].attributes.get_int("axis", 0) == -1 else None
