"""A decoder's graph for prompts: its packed weights as integers of 8 bits, with one scale for each output.

MatMulNBits scales group by group while it multiplies, which keeps it from what a processor's integers could do. Many tokens at a
time are worth another form: weights in 8 bits by output, activations in 8 bits by token (ZeroQuant, Yao et al. 2022), one product
of integers. What the file holds stays as it is, and single tokens, which wait for memory and not for arithmetic, read that.

Shapes: B samples of T tokens, I inputs, O outputs.
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
from compressor.graphs.decoder.interface import IDS
from compressor.graphs.files import MODEL
from compressor.graphs.matmul_nbits import MatMulNBitsLayer, held, initializer
from compressor.runtimes.memory import check_prompt_weights_fit
from compressor.runtimes.onnxruntime.products import LARGEST, MIDDLE

Array = np.ndarray[Any, Any]
_SMALLEST = 1e-10
"""The least peak of a token's activations: one that is nothing but zeros has a scale too."""
_OPSET = 21
"""Since when QuantizeLinear knows blocks."""
_REMEDY = (
    "free some space there, name another directory in TMPDIR, or have prompts read as they are"
)
_MESSAGE_BYTES = 1_900_000_000
"""Of a graph's file: one message of protobuf holds 2 GB."""


@contextmanager
def prompt_graph(folder: Path, threads: int) -> Iterator[Path]:
    """A folder with the graph that reads a decoder's prompts; it is gone afterwards.

    Raises:
        UsageError: the decoder has no weights that are multiplied as packed integers, or there is not so much memory.
        StorageError: the graph cannot be written where temporary files go.
    """
    graph = PromptGraph(folder)
    needed = graph.size_bytes
    check_prompt_weights_fit(needed)
    try:
        place = TemporaryDirectory(prefix="autoglm-compress-")
    except OSError as error:
        raise StorageError(
            f"there is no place for temporary files: {error.strerror or error}", remedy=_REMEDY
        ) from error
    with place as made:
        free = shutil.disk_usage(made).free
        if needed > free:
            told = f"the graph for prompts takes {needed / 1e6:,.0f} MB in {Path(made).parent}, and {free / 1e6:,.0f} MB are free"
            raise StorageError(told, remedy=_REMEDY)
        try:
            graph.write(Path(made), threads)
        except OSError as error:
            raise StorageError(
                f"the graph for prompts cannot be written into {Path(made).parent}: {error.strerror or error}",
                remedy=_REMEDY,
            ) from error
        del graph
        gc.collect()  # its nodes and values know each other
        yield Path(made)


class PromptGraph:
    """What reads prompts in place of a decoder's own graph."""

    def __init__(self, folder: Path) -> None:
        """Read a decoder's graph; its weights stay where they are.

        Raises:
            UsageError: it has no weights that are multiplied as packed integers.
        """
        self._model = ir.load(folder / MODEL)
        found = [MatMulNBitsLayer.of(node) for node in self._model.graph]
        # What gives a result of the graph itself is the head, which reads one token of a prompt.
        self._layers = [
            one for one in found if one is not None and not one.node.outputs[0].is_graph_output()
        ]
        self._integers: list[ir.Value] = []
        if not self._layers or self._model.opset_imports[""] < _OPSET:
            raise UsageError(
                f"{folder} holds no weights that are multiplied as packed integers",
                remedy="pack the model with awq before it is exported, and export it with target: onnxruntime; "
                "or have its prompts read as they are",
            )

    @property
    def size_bytes(self) -> int:
        """Of the graph's weights."""
        replaced = {
            initializer(value)
            for layer in self._layers
            for value in layer.node.inputs
            if value is not None
        }
        others = (one for one in self._model.graph.initializers.values() if one not in replaced)
        return sum(one.inputs * one.outputs for one in self._layers) + sum(map(_bytes, others))

    def write(self, folder: Path, threads: int) -> None:
        """Write ``model.onnx``, and its integers beside it, a few layers in memory at a time.

        ONNX Runtime packs them anew when it opens the graph; then their file can go, and its blocks with it.
        """
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
        graph.remove(
            [node for node in graph if node.op_type == "Cast" and not node.outputs[0].uses()],
            safe=True,
        )
        for name in [
            name
            for name, one in graph.initializers.items()
            if not one.uses() and one not in graph.inputs
        ]:
            del graph.initializers[name]
        self._write_integers(folder, threads)
        ir.save(self._model, folder / MODEL)

    def _write_integers(self, folder: Path, threads: int) -> None:
        beside, known = self._integers, set(self._integers)
        others = [one for one in self._model.graph.initializers.values() if one not in known]
        if sum(map(_bytes, others)) > _MESSAGE_BYTES:
            beside, others = beside + others, []
        for one in others:
            if isinstance(one.const_value, ir.ExternalTensor):
                one.const_value = ir.tensor(one.const_value.numpy(), name=one.name)
        tensors = [one.const_value for one in beside if one.const_value is not None]
        written = ir.external_data.convert_tensors_to_external(
            tensors, folder, f"{MODEL}.data", max_workers=threads
        )
        for one, tensor in zip(beside, written, strict=True):
            one.const_value = tensor

    def _constant(self, name: str, value: Array | ir.LazyTensor) -> ir.Value:
        """An initializer; the same one for the same name."""
        known = self._model.graph.initializers.get(name)
        if known is not None:
            return known
        tensor = value if isinstance(value, ir.LazyTensor) else ir.tensor(value)
        tensor.name = name
        one = ir.Value(
            name=name,
            shape=ir.Shape(value.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._model.graph.register_initializer(one)
        return one

    def _middles(self) -> ir.Value:
        """The zero-point of each token, uint8 [B, T, 1]."""
        [ids] = [one for one in self._model.graph.inputs if one.name == IDS]
        made = tape.Tape()
        shape = made.op(
            "Concat",
            [made.op("Shape", [ids]), self._constant("prompts.one", np.array([1]))],
            {"axis": 0},
        )
        middles = made.op(
            "ConstantOfShape", [shape], {"value": ir.tensor(np.array([MIDDLE], dtype=np.uint8))}
        )
        self._model.graph.insert_before(self._model.graph[0], made.nodes)
        return middles

    def _rounded(
        self, x: ir.Value, layer: MatMulNBitsLayer, middles: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
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
        found = made.op(
            "QuantizeLinear", [x, scales, middles], {"axis": -1, "block_size": layer.inputs}
        )
        self._model.graph.insert_before(layer.node, made.nodes)
        return found, scales

    def _multiply(self, layer: MatMulNBitsLayer, x: ir.Value, scales: ir.Value) -> None:
        """In place of a layer; where nothing but a Split reads its result, each part is a product of its own."""
        made, start = tape.Tape(), 0
        divided = _divided(layer.node)
        all_scales_O = layer.peaks() / LARGEST
        for old, outputs in (
            _parts(divided) if divided else [(layer.node.outputs[0], layer.outputs)]
        ):
            some = slice(start, start := start + outputs)
            scales_O = all_scales_O[some]
            weights = ir.LazyTensor(
                partial(_integers, layer, some, scales_O),
                dtype=ir.DataType.INT8,
                shape=ir.Shape((layer.inputs, outputs)),
            )
            integers = self._constant(f"{old.name}.by_output", weights)
            self._integers.append(integers)
            inputs = [
                x,
                integers,
                self._constant("prompts.unit", np.array(1, dtype=np.float32)),
                self._constant(f"{old.name}.by_output.scales", scales_O),
                self._constant("prompts.middle", np.array(MIDDLE, dtype=np.uint8)),
            ]
            found = made.op(
                "Mul", [made.op("MatMulIntegerToFloat", inputs, domain="com.microsoft"), scales]
            )
            if layer.bias_O is not None:
                found = made.op(
                    "Add", [found, self._constant(f"{old.name}.by_output.bias", layer.bias_O[some])]
                )
            old.replace_all_uses_with(found)
        self._model.graph.insert_before(layer.node, made.nodes)
        self._model.graph.remove([divided, layer.node] if divided else [layer.node], safe=True)


def _integers(layer: MatMulNBitsLayer, some: slice, scales_O: Array) -> ir.TensorProtocol:
    return ir.tensor(layer.integers(some, scales_O))


def _divided(node: ir.Node) -> ir.Node | None:
    """The Split that alone reads a node's result, and divides its last axis by sizes that are known."""
    readers = node.outputs[0].consumers()
    if (
        len(readers) != 1
        or readers[0].op_type != "Split"
        or readers[0].attributes.get_int("axis", 0) != -1
    ):
        return None
    given = len(readers[0].inputs) == 2 and not any(
        one.is_graph_output() for one in readers[0].outputs
    )
    return readers[0] if given and _parts(readers[0]) else None


def _parts(split: ir.Node) -> list[tuple[ir.Value, int]]:
    """Results and their widths; none where sizes are computed."""
    sizes = split.inputs[1]
    known = None if sizes is None else held(sizes)
    return [] if known is None else list(zip(split.outputs, known.tolist(), strict=True))


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
