"""The ONNX format: ``model.onnx`` with its external data beside it, executed by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import ModelError
from compressor.foreign_files.libraries import library_errors
from compressor.models.adapters.base import BASE_KEY
from compressor.models.facts import ModelFacts
from compressor.runtimes.call_limit import limit_calls
from compressor.runtimes.decoding import (
    Array,
    EncoderDecoder,
    EncoderDecoderOptions,
    GenerationLimits,
)
from compressor.runtimes.foreign.identify import identify
from compressor.runtimes.format_records import Cost, LowPrecision, SampleShapes
from compressor.runtimes.formats import Format
from compressor.runtimes.rows import RowDecoder, RowOptions

if TYPE_CHECKING:
    from compressor.data.contract import Batch
    from compressor.models.capabilities.signature import InputSpec, Signature
    from compressor.models.graph_contents import GraphContents
    from compressor.runtimes.formats import TensorReader
    from compressor.runtimes.layers import Layers
    from compressor.runtimes.session import Session
    from compressor.runtimes.tensor_listing import ListedTensor

_MODEL = "model.onnx"
_VISION, _ENCODER = "vision.onnx", "encoder.onnx"
"""The vision tower or the encoder beside a decoder's graph."""
_AGAIN = "copy the file again, or export the model again"
_DESCRIPTIONS = ("config.json", "genai_config.json")


class Onnx(Format):
    """An ONNX graph, traced, built, or exported by another tool."""

    name = "onnx"
    summary = "an ONNX graph: model.onnx, with its external data beside it"
    runtime = "ONNX Runtime"
    precedence = 1

    def recognizes(self, path: Path) -> bool:
        """Return True for an .onnx file that is nothing else, or a folder with model.onnx."""
        if path.is_file():
            return path.suffix == ".onnx" and identify(path) is None
        return (path / _MODEL).is_file()

    def model_path(self, path: Path) -> Path:
        """Return the folder of model.onnx; a file of another name stays the file itself."""
        return path.parent if path.is_file() and path.name == _MODEL else path

    def title(self, path: Path) -> str:
        """Return what the graph is for, as far as its folder shows."""
        is_genai = path.is_dir() and (path / "genai_config.json").is_file()
        return "an ONNX graph of onnxruntime-genai" if is_genai else "an ONNX graph"

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return the graphs with their external data, config, tokenizer and processor.

        Raises:
            ModelError: a graph is no ONNX file, is truncated, or its external data is missing.
        """
        from compressor.models.checkpoint.companions import companion_files

        if path.is_file():
            return {
                _MODEL: path,
                **{
                    file.relative_to(path.parent).as_posix(): file for file in _external_files(path)
                },
            }
        graphs = [path / name for name in (_MODEL, _VISION, _ENCODER) if (path / name).is_file()]
        files = [
            *graphs,
            *(file for graph in graphs for file in _external_files(graph)),
            *(path / name for name in _DESCRIPTIONS if (path / name).is_file()),
            *companion_files(path),
        ]
        return {file.relative_to(path).as_posix(): file for file in sorted(set(files))}

    def inputs(self, path: Path) -> tuple[InputSpec, ...] | None:
        """Return the inputs of the graph."""
        from compressor.graphs.files import read_graph
        from compressor.graphs.signature import input_specs

        return input_specs(read_graph(path))

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return the initializers of the graph."""
        from compressor.graphs.files import read_graph
        from compressor.graphs.signature import initializer_rows
        from compressor.runtimes.tensor_listing import ListedTensor

        return tuple(ListedTensor(*row) for row in initializer_rows(read_graph(path)))

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return operator sets, inputs, outputs, contents and external data."""
        from compressor.graphs.contents import graph_contents
        from compressor.graphs.files import external_files, read_graph
        from compressor.graphs.signature import signature_rows

        graph = read_graph(path)
        rows = [*signature_rows(graph), *graph_contents(graph).rows()]
        if external := sorted(external_files(graph)):
            rows.append(("external data", ", ".join(external)))
        return rows

    def exported_from(self, path: Path) -> str | None:
        """Return the digest that a graph with slots for adapters states."""
        from compressor.graphs.files import read_graph

        metadata = {entry.key: entry.value for entry in read_graph(path).metadata_props}
        return metadata.get(BASE_KEY)

    def check(self, path: Path) -> None:
        """Check that the graph can be parsed and that external data lies inside the folder."""
        from compressor.graphs.files import read_graph

        read_graph(path)

    def facts(self, path: Path) -> ModelFacts:
        """Return the size; parameters and MACs need the shapes of a sample, see ``cost``."""
        size = _size_bytes(self.files(path))
        return ModelFacts(
            size_bytes=size,
            graph_inputs=partial(self.inputs, path),
            graph_signature=cache(partial(self._signature, path)),
            graph_contents=cache(partial(self._contents, path)),
        )

    def _contents(self, path: Path) -> GraphContents:
        from compressor.graphs.contents import graph_contents
        from compressor.graphs.files import read_graph

        return graph_contents(read_graph(path))

    def _signature(self, path: Path) -> Signature | None:
        from compressor.graphs.files import read_graph
        from compressor.graphs.signature import graph_signature

        return graph_signature(read_graph(path))

    def cost(self, path: Path, sample_shapes: SampleShapes) -> Cost:
        """Count parameters and MACs from the graph."""
        from compressor.graphs.files import read_graph
        from compressor.runtimes.onnxruntime import cost

        graph = read_graph(path)
        return Cost(
            _size_bytes(self.files(path)),
            cost.count_parameters(graph),
            cost.count_macs(graph, sample_shapes),
        )

    def open_session(self, path: Path, *, threads: int, device: str = "cpu") -> Session:
        """Open the graph with all graph optimizations."""
        from compressor.runtimes.onnxruntime.session import OnnxSession

        return OnnxSession(path, threads, device)

    def open_layers(self, path: Path, threads: int) -> Layers:
        """Open a graph whose layers `export-onnx` has named."""
        from compressor.runtimes.onnxruntime.layers import OnnxLayers

        return OnnxLayers(path, threads)

    def generation_limits(self, path: Path) -> GenerationLimits:
        """Return the limits that `export-onnx` wrote into a decoder's metadata."""
        from compressor.graphs.decoder.interface import (
            CONTEXT_LENGTH_KEY,
            ENCODER_MODEL,
            LOGITS,
            VISION_MODEL,
        )
        from compressor.graphs.files import read_graph

        graph = read_graph(path)
        metadata = {entry.key: entry.value for entry in graph.metadata_props}
        if CONTEXT_LENGTH_KEY not in metadata:
            return super().generation_limits(path)
        sizes = [
            output.type.tensor_type.shape.dim[-1].dim_value
            for output in graph.graph.output
            if output.name == LOGITS
        ]
        encoder = path / ENCODER_MODEL
        inputs = read_graph(encoder).graph.input if encoder.is_file() else ()
        with library_errors(f"{path}: {CONTEXT_LENGTH_KEY} of its metadata", ModelError, _AGAIN):
            context_length = int(metadata[CONTEXT_LENGTH_KEY])
        return GenerationLimits(
            context_length,
            (path / VISION_MODEL).is_file(),
            next(filter(None, sizes), None),
            tuple(value.name for value in inputs),
        )

    def open_encoder_decoder(self, path: Path, options: EncoderDecoderOptions) -> EncoderDecoder:
        """Open the graphs of encoder and decoder with the decoder's key-value buffers.

        Raises:
            ModelError: it is no decoder, or ONNX Runtime cannot open it.
        """
        with library_errors(f"{path} is no decoder that can be opened", ModelError, _AGAIN):
            return _OnnxEncoderDecoder(path, options)

    def open_rows(self, path: Path, options: RowOptions) -> RowDecoder:
        """Open a decoder graph with a key-value cache for each row."""
        from compressor.runtimes.onnxruntime.decoder.rows import open_rows

        with library_errors(f"{path} is no decoder that can be opened", ModelError, _AGAIN):
            return open_rows(path, options)

    def tensors(self, path: Path) -> Mapping[str, TensorReader]:
        """Return the named initializers; the file is read whole."""
        from compressor.graphs.tensors import graph_tensors

        return graph_tensors(path)

    def low_precision(self, path: Path, batch: Batch, threads: int) -> LowPrecision:
        """Profile the graph in ONNX Runtime and count what its integer kernels compute."""
        from compressor.runtimes.onnxruntime import low_precision
        from compressor.runtimes.onnxruntime.profile import profile

        with limit_calls(path):
            nodes = profile(path, batch, threads)
        return LowPrecision(
            low_precision.integer_weight_share(nodes),
            low_precision.integer_mac_share(nodes),
            tuple(low_precision.slowdown_reasons(nodes)),
        )


def _external_files(graph: Path) -> list[Path]:
    """Return the files with a graph's external data.

    Raises:
        ModelError: the graph is damaged, or files are missing.
    """
    from compressor.graphs.external_data import external_locations

    files = [graph.parent / name for name in sorted(external_locations(graph))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(
            f"{graph} has external data that is missing: {', '.join(missing)}",
            remedy="copy the files that belong to the graph beside it",
        )
    return files


def _size_bytes(files: Mapping[str, Path]) -> int:
    return sum(file.stat().st_size for file in files.values() if file.is_file())


class _OnnxEncoderDecoder(EncoderDecoder):
    """One sequence in ``OnnxDecoder``."""

    def __init__(self, folder: Path, options: EncoderDecoderOptions) -> None:
        from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder

        self._decoder = OnnxDecoder(
            folder,
            options.threads,
            capacity=options.capacity,
            huge_pages=True,
            fast_prompts=options.fast_prompts,
        )

    def encode(self, arrays: Mapping[str, Array]) -> None:
        """Run the encoder's graph; see ``EncoderDecoder.encode``."""
        self._decoder.encode(arrays)

    def forward(self, token_ids_T: Array) -> Array:
        """Run the new tokens through the graph; see ``EncoderDecoder.forward``."""
        logits_V: Array = self._decoder.forward(token_ids_T[None])[0, -1]
        return logits_V
