"""A decoder's graph for prompts: packed weights as 8-bit integers with one scale per output.

MatMulNBits applies one scale per group while it multiplies, which keeps it from using the CPU's
integer instructions at full speed. For many tokens at a time another form is faster: 8-bit weights
with a scale per output, 8-bit activations with a scale per token (ZeroQuant, Yao et al. 2022), and
one integer product. The file itself stays as it is, and decoding, which is bound by memory and not
by arithmetic, keeps reading the packed weights.

Shapes: B sequences of T tokens, I inputs, O outputs.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from compressor.errors import StorageError, UsageError
from compressor.graphs.decoder.interface import INPUT_IDS
from compressor.graphs.files import MODEL
from compressor.graphs.matmul_nbits import MatMulNBitsLayer
from compressor.graphs.values import initializer_array, initializer_of
from compressor.runtimes.memory import check_prompt_weights_fit
from compressor.runtimes.onnxruntime.integer_kernels import INT8_MAX, UINT8_ZERO_POINT

Array = np.ndarray[Any, Any]
_MIN_PEAK = 1e-10
"""Smallest peak of a token's activations, so that a token of zeros has a scale too."""
_MIN_OPSET = 21
"""First ONNX opset whose QuantizeLinear has blocks."""
_MAX_PROTOBUF_BYTES = 1_900_000_000
"""Bytes of weights in model.onnx; a protobuf message holds 2 GB."""
_REMEDY = "free some space there, set TMPDIR to another directory, or leave --fast-prompts out"


@contextmanager
def temporary_prompt_graph(folder: Path, threads: int) -> Iterator[Path]:
    """Write a decoder's graph for prompts to a temporary folder, which is removed on exit.

    Args:
        folder: the decoder's folder.
        threads: threads that write the weights.

    Yields:
        The folder with ``model.onnx``.

    Raises:
        UsageError: the decoder has no packed integer weights, or the 8-bit weights do not fit into
            memory.
        StorageError: the graph cannot be written to the temporary directory.
    """
    graph = PromptGraph(folder)
    needed_bytes = graph.size_bytes
    check_prompt_weights_fit(needed_bytes)
    try:
        directory = TemporaryDirectory(prefix="autoglm-compress-")
    except OSError as error:
        raise StorageError(
            f"cannot create a temporary directory: {error.strerror or error}", remedy=_REMEDY
        ) from error
    with directory as name:
        written, parent = Path(name), Path(name).parent
        free_bytes = shutil.disk_usage(written).free
        if needed_bytes > free_bytes:
            raise StorageError(
                f"the graph for prompts needs {needed_bytes / 1e6:,.0f} MB in {parent}, "
                f"and {free_bytes / 1e6:,.0f} MB are free",
                remedy=_REMEDY,
            )
        try:
            graph.write(written, threads)
        except OSError as error:
            raise StorageError(
                f"cannot write the graph for prompts to {parent}: {error.strerror or error}",
                remedy=_REMEDY,
            ) from error
        del graph
        gc.collect()  # its nodes and values refer to each other
        yield written


class PromptGraph:
    """A decoder's graph with 8-bit weights, for prompts."""

    def __init__(self, folder: Path) -> None:
        """Read a decoder's graph; its weights are not loaded.

        Raises:
            UsageError: no weights of the graph are multiplied as packed integers, or it computes in
                float16.
        """
        self._model = ir.load(folder / MODEL)
        layers = (MatMulNBitsLayer.from_node(node) for node in self._model.graph)
        # A layer whose result is an output of the graph is the LM head. It reads one token of a
        # prompt.
        self._layers = [
            layer
            for layer in layers
            if layer is not None and not layer.node.outputs[0].is_graph_output()
        ]
        self._integers: list[ir.Value] = []
        if any(_computes_in_half(layer.node) for layer in self._layers):
            raise UsageError(
                f"{folder} computes in float16, and the graph for prompts in float32",
                remedy="export it with `dtype: float32`, or leave --fast-prompts out",
            )
        if not self._layers or self._model.opset_imports[""] < _MIN_OPSET:
            raise UsageError(
                f"{folder} has no weights that are multiplied as packed integers",
                remedy="pack the model with awq and export it with `target: onnxruntime`, "
                "or leave --fast-prompts out",
            )

    @property
    def size_bytes(self) -> int:
        """Size of the graph's weights."""
        replaced = {
            initializer_of(value)
            for layer in self._layers
            for value in layer.node.inputs
            if value is not None
        }
        copied = (
            value for value in self._model.graph.initializers.values() if value not in replaced
        )
        integers = sum(layer.inputs * layer.outputs for layer in self._layers)
        return integers + sum(map(_size_bytes, copied))

    def write(self, folder: Path, threads: int) -> None:
        """Write ``model.onnx`` with its integers beside it, a few layers in memory at a time.

        ONNX Runtime packs the integers anew when it opens the graph. Afterwards the files can be
        deleted, which frees their disk blocks.
        """
        graph = self._model.graph
        zero_points = self._add_zero_points()
        quantized: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        for layer in self._layers:
            x = layer.node.inputs[0]
            assert x is not None  # noqa: S101
            if x not in quantized:
                quantized[x] = self._add_quantization(x, layer, zero_points)
            self._replace_layer(layer, *quantized[x])
        # Casts that widened the scales of groups.
        unused_casts = [
            node for node in graph if node.op_type == "Cast" and not node.outputs[0].uses()
        ]
        graph.remove(unused_casts, safe=True)
        unused_weights = [
            name
            for name, value in graph.initializers.items()
            if not value.uses() and value not in graph.inputs
        ]
        for name in unused_weights:
            del graph.initializers[name]
        self._write_weights(folder, threads)
        ir.save(self._model, folder / MODEL)

    def _write_weights(self, folder: Path, threads: int) -> None:
        """Write external data: the integers, or all weights if model.onnx cannot hold the rest."""
        external, integers = self._integers, set(self._integers)
        inline = [
            value for value in self._model.graph.initializers.values() if value not in integers
        ]
        if sum(map(_size_bytes, inline)) > _MAX_PROTOBUF_BYTES:
            external, inline = external + inline, []
        for value in inline:
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        tensors = [value.const_value for value in external if value.const_value is not None]
        written = ir.external_data.convert_tensors_to_external(
            tensors, folder, f"{MODEL}.data", max_workers=threads
        )
        for value, tensor in zip(external, written, strict=True):
            value.const_value = tensor

    def _constant(self, name: str, content: Array | ir.LazyTensor) -> ir.Value:
        """Return the initializer of a name; create it if the graph has none."""
        existing = self._model.graph.initializers.get(name)
        if existing is not None:
            return existing
        tensor = content if isinstance(content, ir.LazyTensor) else ir.tensor(content)
        tensor.name = name
        value = ir.Value(
            name=name,
            shape=ir.Shape(content.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._model.graph.register_initializer(value)
        return value

    def _add_zero_points(self) -> ir.Value:
        """Add and return the zero-point of each token, uint8 [B, T, 1]."""
        [ids] = [value for value in self._model.graph.inputs if value.name == INPUT_IDS]
        nodes = tape.Tape()
        last_size = self._constant("prompts.one", np.array([1]))
        shape = nodes.op("Concat", [nodes.op("Shape", [ids]), last_size], {"axis": 0})
        fill = ir.tensor(np.array([UINT8_ZERO_POINT], dtype=np.uint8))
        zero_points = nodes.op("ConstantOfShape", [shape], {"value": fill})
        self._model.graph.insert_before(self._model.graph[0], nodes.nodes)
        return zero_points

    def _add_quantization(
        self, x: ir.Value, layer: MatMulNBitsLayer, zero_points: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Add and return a layer's quantized input, uint8 [B, T, I], and its scales, [B, T, 1]."""
        nodes = tape.Tape()
        last_axis = self._constant("prompts.last", np.array([-1]))
        peaks = [
            nodes.op("ReduceMax", [x, last_axis], {"keepdims": 1}),
            nodes.op("Neg", [nodes.op("ReduceMin", [x, last_axis], {"keepdims": 1})]),
            self._constant("prompts.smallest", np.array(_MIN_PEAK, dtype=np.float32)),
        ]
        share = self._constant("prompts.share", np.array(1 / INT8_MAX, dtype=np.float32))
        scales = nodes.op("Mul", [nodes.op("Max", peaks), share])
        # One block per token is faster than one scale per token along an axis.
        quantized = nodes.op(
            "QuantizeLinear", [x, scales, zero_points], {"axis": -1, "block_size": layer.inputs}
        )
        self._model.graph.insert_before(layer.node, nodes.nodes)
        return quantized, scales

    def _replace_layer(self, layer: MatMulNBitsLayer, x: ir.Value, scales: ir.Value) -> None:
        """Replace a layer by an integer product, or by one per part if only a Split reads it."""
        nodes, start = tape.Tape(), 0
        split = _find_split(layer.node)
        all_scales_O = layer.max_magnitudes() / INT8_MAX
        parts = _split_parts(split) if split else [(layer.node.outputs[0], layer.outputs)]
        for output, width in parts:
            rows = slice(start, start := start + width)
            product = nodes.op(
                "MatMulIntegerToFloat",
                self._product_inputs(layer, x, output, rows, all_scales_O[rows]),
                domain="com.microsoft",
            )
            result = nodes.op("Mul", [product, scales])
            if layer.bias_O is not None:
                bias = self._constant(f"{output.name}.by_output.bias", layer.bias_O[rows])
                result = nodes.op("Add", [result, bias])
            output.replace_all_uses_with(result)
        self._model.graph.insert_before(layer.node, nodes.nodes)
        self._model.graph.remove([split, layer.node] if split else [layer.node], safe=True)

    def _product_inputs(
        self, layer: MatMulNBitsLayer, x: ir.Value, output: ir.Value, rows: slice, scales_O: Array
    ) -> list[ir.Value]:
        """Return the inputs of the integer product for some outputs of a layer."""
        weights_IO = ir.LazyTensor(
            partial(_requantize, layer, rows, scales_O),
            dtype=ir.DataType.INT8,
            shape=ir.Shape((layer.inputs, len(scales_O))),
        )
        integers = self._constant(f"{output.name}.by_output", weights_IO)
        self._integers.append(integers)
        return [
            x,
            integers,
            self._constant("prompts.unit", np.array(1, dtype=np.float32)),
            self._constant(f"{output.name}.by_output.scales", scales_O),
            self._constant("prompts.middle", np.array(UINT8_ZERO_POINT, dtype=np.uint8)),
        ]


def _computes_in_half(node: ir.Node) -> bool:
    """Return True if a MatMulNBits node computes in float16: in the type of its scales."""
    scales = node.inputs[2]
    assert scales is not None  # noqa: S101
    widened = scales.producer()
    if widened is not None:  # the graph does not state the types of inner values
        return widened.attributes.get_int("to", 0) == ir.DataType.FLOAT16
    return scales.const_value is not None and scales.const_value.dtype == ir.DataType.FLOAT16


def _requantize(layer: MatMulNBitsLayer, rows: slice, scales_O: Array) -> ir.TensorProtocol:
    return ir.tensor(layer.requantize(rows, scales_O))


def _find_split(node: ir.Node) -> ir.Node | None:
    """Return the Split that alone reads a node's result and divides its last axis, if any."""
    readers = node.outputs[0].consumers()
    if (
        len(readers) != 1
        or readers[0].op_type != "Split"
        or readers[0].attributes.get_int("axis", 0) != -1
    ):
        return None
    split = readers[0]
    has_sizes = len(split.inputs) == 2
    if not has_sizes or any(output.is_graph_output() for output in split.outputs):
        return None
    return split if _split_parts(split) else None


def _split_parts(split: ir.Node) -> list[tuple[ir.Value, int]]:
    """Return the outputs of a Split with their widths; an empty list if the widths are computed."""
    sizes = split.inputs[1]
    widths = None if sizes is None else initializer_array(sizes)
    return [] if widths is None else list(zip(split.outputs, widths.tolist(), strict=True))


def _size_bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
