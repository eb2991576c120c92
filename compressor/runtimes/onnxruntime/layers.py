"""Layers of an ONNX graph, inspected by making their values outputs of the graph."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from compressor.data.contract import Batch
from compressor.errors import ModelError
from compressor.foreign_files.json_files import expect, parse_json
from compressor.graphs.files import MODEL, PROTOBUF_LIMIT_BYTES, external_files, read_graph
from compressor.graphs.graph_index import GraphIndex
from compressor.graphs.names import SMOOTHED_SUFFIX
from compressor.graphs.values import DEQUANTIZE, QUANTIZE
from compressor.runtimes.layers import INPUTS_KEY, Array, Layers, Trace, reshape_like
from compressor.runtimes.onnxruntime.inference import CPU, ERRORS, run_limited, session_options
from compressor.runtimes.onnxruntime.remedies import first_line
from compressor.runtimes.onnxruntime.session import OnnxSession
from compressor.runtimes.session import is_whole_sample, match_inputs

_COPY = ".alone"
"""Suffix of the output of a layer's copy."""

_REMEDY = "export it again"
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""Setting of ONNX Runtime: where a graph in memory has its weights."""
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Einsum", "MatMul", "Gemm"})
_FOLDED = frozenset({"Add", "Sub", "BatchNormalization", "Relu", "Clip"})
"""Operators that belong to the product before them, where all else that they read is constant."""
_ZERO_POINT = 2
"""Position of the zero-point among the inputs of a DequantizeLinear."""


def foreign_layers(index: GraphIndex) -> dict[str, str]:
    """Return the layers of a graph that ``export-onnx`` has not named, and what each reads.

    A layer is a product with a constant weight, with the bias, the normalization and the clipping
    that only read it, as quantizers fold these. Its name is that of its last value: other tools
    keep the names of values, and of nodes less often.
    """
    nodes = {id(node) for node in index.model.graph.node}
    reads: dict[str, str] = {}
    for node in index.nodes:
        source = _multiplied(index, node) if id(node) in nodes else None
        if source is not None:
            reads[_last_value(index, node.output[0], nodes)] = _before_rounding(index, source)
    return reads


def _multiplied(index: GraphIndex, node: onnx.NodeProto) -> str | None:
    """Return the value that a node multiplies by a constant weight, if it does."""
    operands = list(node.input[:2])
    if node.op_type not in _PRODUCTS or len(operands) < 2:
        return None
    constants = [_is_weight(index, name) for name in operands]
    if node.op_type == "Einsum" and constants[0]:
        operands.reverse()
        constants.reverse()
    return operands[0] if constants == [False, True] else None


def _is_weight(index: GraphIndex, name: str) -> bool:
    """Return True for a constant, which may be dequantized, or cast from another type."""
    node = index.producers.get(name)
    is_cast = node is not None and node.op_type == "Cast" and not node.domain
    return index.is_weight(node.input[0] if is_cast and node is not None else name)


def _last_value(index: GraphIndex, name: str, nodes: Container[int]) -> str:
    """Return the value behind what belongs to a product: constant sums, norms and clipping.

    Args:
        index: the graph.
        name: the product's result.
        nodes: ``id`` of each node of the main graph, since a value of a branch cannot be observed.
    """
    while True:
        readers = index.consumers.get(name, [])
        if len(readers) != 1 or id(readers[0]) not in nodes or name in _outputs(index):
            return name
        if readers[0].op_type not in _FOLDED:
            return name
        others = [other for other in readers[0].input if other and other != name]
        if not all(index.is_weight(other) for other in others):
            return name
        name = readers[0].output[0]


def _outputs(index: GraphIndex) -> set[str]:
    return {value.name for value in index.model.graph.output}


def _before_rounding(index: GraphIndex, name: str) -> str:
    """Return the value that is rounded, and before that perhaps smoothed, to this one."""
    while index.is_dequantized(name):
        quantize = index.producers.get(index.producers[name].input[0])
        if quantize is None or quantize.op_type != QUANTIZE:
            return name
        name = quantize.input[0]
    is_smoothed = name.endswith(SMOOTHED_SUFFIX) and name in index.producers
    return index.producers[name].input[0] if is_smoothed else name


class OnnxLayers(Layers):
    """Layers of a ``model.onnx``: those that ``export-onnx`` has named, or else its products."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Read the graph with its weights.

        Raises:
            UsageError: there are none.
            ModelError: the graph cannot be opened.
        """
        external = external_files(read_graph(folder))
        self._file = folder / MODEL
        # Beyond 2 GB, ONNX Runtime reads the weights from their files.
        sizes = ((folder / name).stat().st_size for name in external)
        self._reads_files = sum(sizes) > PROTOBUF_LIMIT_BYTES
        self._model = onnx.load(str(self._file), load_external_data=not self._reads_files)
        self._sessions: dict[object, onnxruntime.InferenceSession] = {}
        self._threads = threads
        with OnnxSession(folder, threads, "cpu") as session:
            self._inputs, self._outputs = session.inputs, session.output_names
        metadata = {entry.key: entry.value for entry in self._model.metadata_props}
        self._index = GraphIndex(self._model)
        self._node_index = {
            name: number for number, node in enumerate(self._index.nodes) for name in node.output
        }
        values = self._index.producers.keys() | {spec.name for spec in self._inputs}
        self.notes_layers = INPUTS_KEY in metadata
        if self.notes_layers:
            where = f"{folder / MODEL}: the names of its layers"
            named = parse_json(metadata[INPUTS_KEY].encode(), where, ModelError, _REMEDY)
            reads = expect(named, dict, where, ModelError, _REMEDY)
        else:
            reads = foreign_layers(self._index)
        self.reads = {
            layer: value
            for layer, value in reads.items()
            if layer in self._index.producers and value in values
        }
        """Layer to the value that it reads."""

    def samples_per_call(self, batch: Batch) -> int | None:
        """See ``Layers.samples_per_call``."""
        specs = [spec for spec in self._inputs if spec.name in batch]
        if any(is_whole_sample(spec, batch[spec.name].shape) for spec in specs):
            return 1
        fixed = [size for spec in specs for size in spec.shape[:1] if isinstance(size, int)]
        return fixed[0] if fixed else None

    def trace(self, batch: Batch) -> Trace:
        """See ``Layers.trace``."""
        feeds = match_inputs(batch, self._inputs)
        observed = [
            name for name in dict.fromkeys([*self.reads, *self.reads.values()]) if name not in feeds
        ]
        values = feeds | self._run(observed, feeds)
        order = [
            layer for node in self._index.nodes for layer in node.output if layer in self.reads
        ]
        return Trace(
            {layer: values[self.reads[layer]] for layer in order},
            {layer: values[layer] for layer in order},
            {name: values[name] for name in self._outputs},
            frozenset(filter(self._starts_at_zero, order)),
        )

    def _starts_at_zero(self, layer: str) -> bool:
        """Return True if a layer's result lies on a grid whose lowest value is 0."""
        node = self._index.producers[layer]
        if node.op_type != DEQUANTIZE or len(node.input) <= _ZERO_POINT:
            return False
        tensor = self._index.constants.get(node.input[_ZERO_POINT])
        if tensor is None:
            return False
        zero_point = numpy_helper.to_array(tensor)
        return bool(np.all(zero_point == np.iinfo(zero_point.dtype).min))

    def alone(self, batch: Batch, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See ``Layers.alone``: copies of all layers read new inputs of the graph, in one run."""
        own_inputs = self.trace(batch).inputs
        replacements = {
            layer: replacement
            for layer, array in inputs.items()
            if layer in own_inputs
            and (replacement := reshape_like(array, own_inputs[layer])) is not None
        }
        feeds = match_inputs(batch, self._inputs)
        feeds |= {f"{layer}{_COPY}.input": array for layer, array in replacements.items()}
        observed = [f"{layer}{_COPY}" for layer in replacements]
        values = self._run(observed, feeds, replacements)
        return {name.removesuffix(_COPY): values[name] for name in observed}

    def _with_copies(self, replacements: Mapping[str, Array]) -> onnx.ModelProto:
        """Return the graph with a copy of each layer, which reads a new input of the graph."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for layer, array in replacements.items():
            self._copy_layer(model.graph, layer)
            value = onnx.helper.make_tensor_value_info(
                f"{layer}{_COPY}.input",
                onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
                array.shape,
            )
            model.graph.input.append(value)
        return model

    def _copy_layer(self, graph: onnx.GraphProto, layer: str) -> None:
        """Add a copy of the nodes from a layer's input to its output; other values are shared."""
        source = self.reads[layer]
        dependent = self._dependent_values(source)
        names = {source: f"{layer}{_COPY}.input", layer: f"{layer}{_COPY}"}
        copied: set[int] = set()
        frontier = [layer]
        while frontier:
            number = self._node_index[frontier.pop()]
            if number not in copied:
                copied.add(number)
                frontier += [
                    name
                    for name in self._index.nodes[number].input
                    if name != source and name in dependent
                ]
        for node in (self._index.nodes[number] for number in sorted(copied)):
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.name = ""
            for name in node.output:
                names.setdefault(name, f"{name}.in.{layer}")
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names[name] for name in node.output]

    def _dependent_values(self, source: str) -> set[str]:
        """Return the names of all values that depend on ``source``."""
        dependent: set[str] = set()
        frontier = [source]
        while frontier:
            for node in self._index.consumers.get(frontier.pop(), ()):
                new = set(node.output) - dependent
                dependent |= new
                frontier += new
        return dependent

    def _run(
        self,
        observed: list[str],
        feeds: Mapping[str, Array],
        replacements: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Return the graph's outputs and the observed values."""
        outputs = list(self._outputs)
        names = [*outputs, *(name for name in observed if name not in outputs)]
        shapes = {name: array.shape for name, array in (replacements or {}).items()}
        key = (tuple(names), tuple(shapes.items()))
        try:
            if key not in self._sessions:
                model = self._with_copies(replacements or {})
                added = names[len(outputs) :]
                model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
                self._sessions[key] = self._open(model)
            values = run_limited(self._sessions[key], names, dict(feeds), self._file)
        except (*ERRORS, ValueError) as error:  # ValueError: over 2 GB
            raise ModelError(
                f"ONNX Runtime cannot run the graph layer by layer: {first_line(error)}"
            ) from error
        return dict(zip(names, values, strict=True))

    def _open(self, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        options = session_options(self._threads)
        if self._reads_files:
            options.add_session_config_entry(_DATA_FOLDER, str(self._file.parent.resolve()))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=CPU)
