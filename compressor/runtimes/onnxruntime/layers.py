"""Layers of an ONNX file, seen by making their values outputs of the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime

from compressor.data.contract import Batch
from compressor.errors import ModelError, UsageError
from compressor.graphs.files import MODEL, read_graph
from compressor.graphs.graph_index import GraphIndex
from compressor.runtimes.layers import INPUTS_KEY, Array, Layers, Trace, reshape_like
from compressor.runtimes.onnxruntime.inference import ERRORS, SILENT
from compressor.runtimes.onnxruntime.session import OnnxSession
from compressor.runtimes.session import match_inputs

_ALONE = ".alone"


class OnnxLayers(Layers):
    """``model.onnx`` whose layers ``export-onnx`` has named.

    Raises:
        UsageError: it has not.
        ModelError: it cannot be opened.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        read_graph(folder)
        self._model = onnx.load(str(folder / MODEL))
        self._threads = threads
        with OnnxSession(folder, threads, "cpu") as session:
            self._inputs, self._answers = session.inputs, session.output_names
        told = {one.key: one.value for one in self._model.metadata_props}
        if INPUTS_KEY not in told:
            raise UsageError(
                f"{folder / MODEL} does not say which values its layers make",
                remedy="export it again; `export-onnx` names them since its version 4",
            )
        self._view = GraphIndex(self._model)
        self._made_at = {
            name: at for at, node in enumerate(self._view.nodes) for name in node.output
        }
        known = self._view.producers.keys() | {spec.name for spec in self._inputs}
        self._reads = {
            layer: value
            for layer, value in json.loads(told[INPUTS_KEY]).items()
            if layer in self._view.producers and value in known
        }

    def trace(self, batch: Batch) -> Trace:
        """See ``Layers.trace``."""
        feeds = match_inputs(batch, self._inputs)
        wanted = [
            name
            for name in dict.fromkeys([*self._reads, *self._reads.values()])
            if name not in feeds
        ]
        found = feeds | self._run(self._model, wanted, feeds)
        order = [
            layer for node in self._view.nodes for layer in node.output if layer in self._reads
        ]
        return Trace(
            {layer: found[self._reads[layer]] for layer in order},
            {layer: found[layer] for layer in order},
            {name: found[name] for name in self._answers},
        )

    def alone(self, batch: Batch, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See ``Layers.alone``: a copy of each layer's nodes reads a new input of the graph, all of them in one run."""
        seen = self.trace(batch).inputs
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        feeds = match_inputs(batch, self._inputs)
        wanted = []
        for layer, given in inputs.items():
            if layer in seen and (fed := reshape_like(given, seen[layer])) is not None:
                self._copy(model.graph, layer)
                value = onnx.helper.make_tensor_value_info(
                    f"{layer}{_ALONE}.input",
                    onnx.helper.np_dtype_to_tensor_dtype(fed.dtype),
                    fed.shape,
                )
                model.graph.input.append(value)
                feeds[value.name] = fed
                wanted.append(f"{layer}{_ALONE}")
        return {
            name.removesuffix(_ALONE): value
            for name, value in self._run(model, wanted, feeds).items()
            if name in wanted
        }

    def _copy(self, graph: onnx.GraphProto, layer: str) -> None:
        """The nodes between what a layer reads and what it makes, once more; other values that they read stay shared."""
        source = self._reads[layer]
        behind = self._reached(source)
        names = {source: f"{layer}{_ALONE}.input", layer: f"{layer}{_ALONE}"}
        inside: set[int] = set()
        frontier = [layer]
        while frontier:
            at = self._made_at[frontier.pop()]
            if at not in inside:
                inside.add(at)
                frontier += [
                    name for name in self._view.nodes[at].input if name != source and name in behind
                ]
        for node in (self._view.nodes[at] for at in sorted(inside)):
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.name = ""
            for name in node.output:
                names.setdefault(name, f"{name}.in.{layer}")
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names[name] for name in node.output]

    def _reached(self, source: str) -> set[str]:
        """All values that depend on one."""
        found: set[str] = set()
        frontier = [source]
        while frontier:
            for node in self._view.readers.get(frontier.pop(), ()):
                new = set(node.output) - found
                found |= new
                frontier += new
        return found

    def _run(
        self, model: onnx.ModelProto, wanted: list[str], feeds: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The graph's outputs and the values that are wanted."""
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        own = [value.name for value in watched.graph.output]
        names = [name for name in wanted if name not in own]
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = SILENT
        try:
            session = onnxruntime.InferenceSession(
                watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            values = session.run([*own, *names], dict(feeds))
        except (*ERRORS, ValueError) as error:  # ValueError: over 2 GB
            raise ModelError(
                f"ONNX Runtime cannot compute layer by layer: {str(error).splitlines()[0]}"
            ) from error
        return dict(zip([*own, *names], values, strict=True))
