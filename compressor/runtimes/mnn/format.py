"""The MNN format: ``model.mnn`` beside the ONNX graph that it was converted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import ModelError
from compressor.foreign_files.limits import FLATBUFFER
from compressor.foreign_files.opening import check_file
from compressor.models.facts import ModelFacts
from compressor.runtimes.format_records import Cost, SampleShapes
from compressor.runtimes.formats import Format
from compressor.runtimes.mnn.language_model import MnnLanguageModel
from compressor.runtimes.onnxruntime.format import Onnx

if TYPE_CHECKING:
    from compressor.models.capabilities.signature import InputSpec
    from compressor.runtimes.formats import TensorReader
    from compressor.runtimes.session import Session
    from compressor.runtimes.tensor_listing import ListedTensor

_MODEL = "model.mnn"
_GRAPH = Onnx()
"""The format of the graph beside the file."""


class MnnGraph(Format):
    """A file of MNN, with the ONNX graph that it was converted from beside it.

    What is executed is the file; what is described, counted and listed is the graph.
    """

    name = "mnn"
    summary = "an MNN model: model.mnn, with model.onnx beside it"
    runtime = "MNN"

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder with model.mnn and model.onnx, or its model.mnn."""
        folder = path.parent if path.is_file() and path.name == _MODEL else path
        return (folder / _MODEL).is_file() and (folder / "model.onnx").is_file()

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return the file, and the files of the graph.

        Raises:
            ModelError: as ``Onnx.files``, or the file is larger than one of MNN can be.
        """
        check_file(path / _MODEL, ModelError, FLATBUFFER)
        return {**_GRAPH.files(path), _MODEL: path / _MODEL}

    def inputs(self, path: Path) -> tuple[InputSpec, ...] | None:
        """Return the inputs of the graph."""
        return _GRAPH.inputs(path)

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return the initializers of the graph."""
        return _GRAPH.tensor_listing(path)

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return the size of the file, and what the graph is."""
        return [(_MODEL, f"{_size(path) / 1e6:.3g} MB"), *_GRAPH.describe(path)]

    def check(self, path: Path) -> None:
        """Check that the graph can be parsed, and that the file is there.

        Raises:
            ModelError: it is not.
        """
        _GRAPH.check(path)
        if not (path / _MODEL).is_file():
            raise ModelError(f"{path / _MODEL} is missing", remedy="run `export-mnn` again")

    def facts(self, path: Path) -> ModelFacts:
        """Return the size of the file, which is what a phone loads."""
        return replace(_GRAPH.facts(path), size_bytes=_size(path))

    def cost(self, path: Path, sample_shapes: SampleShapes) -> Cost:
        """Count parameters and MACs from the graph, and the bytes of the file."""
        return replace(_GRAPH.cost(path, sample_shapes), size_bytes=_size(path))

    def open_session(self, path: Path, *, threads: int, device: str = "cpu") -> Session:
        """Open the file in MNN.

        Raises:
            MissingExtraError: MNN is not installed.
            ModelError: MNN cannot open the file.
            UsageError: the device is no CPU.
        """
        from compressor.graphs.files import read_graph
        from compressor.graphs.signature import input_specs, output_specs
        from compressor.runtimes.mnn.session import MnnSession

        if device != "cpu":
            raise self._unsupported(path, "it is executed on the CPU alone", "use --device cpu")
        graph = read_graph(path)
        return MnnSession(path, threads, input_specs(graph), output_specs(graph))

    def tensors(self, path: Path) -> Mapping[str, TensorReader]:
        """Return the named initializers of the graph."""
        return _GRAPH.tensors(path)


class Mnn(Format):
    """Models of MNN: a file with the ONNX graph that it was converted from, or a language model.

    A language model is a folder with llm.mnn, its weights, its settings and its tokenizer.
    """

    name = "mnn"
    summary = "an MNN model: model.mnn with model.onnx, or llm.mnn with its tokenizer"
    runtime = "MNN"
    precedence = 2

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder of either kind."""
        return any(kind.recognizes(path) for kind in _KINDS)

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return the files of the model."""
        return _kind(path).files(path)

    def inputs(self, path: Path) -> tuple[InputSpec, ...] | None:
        """Return the inputs of a graph; None for a language model."""
        return _kind(path).inputs(path)

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return the initializers of a graph; None for a language model."""
        return _kind(path).tensor_listing(path)

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return what the model is."""
        return _kind(path).describe(path)

    def check(self, path: Path) -> None:
        """Check that the files are there."""
        _kind(path).check(path)

    def facts(self, path: Path) -> ModelFacts:
        """Return what is known of the model, with the bytes that a phone loads."""
        return _kind(path).facts(path)

    def cost(self, path: Path, sample_shapes: SampleShapes) -> Cost:
        """Return the cost of the model."""
        return _kind(path).cost(path, sample_shapes)

    def open_session(self, path: Path, *, threads: int, device: str = "cpu") -> Session:
        """Open the model in MNN."""
        return _kind(path).open_session(path, threads=threads, device=device)

    def tensors(self, path: Path) -> Mapping[str, TensorReader]:
        """Return the named initializers of a graph."""
        return _kind(path).tensors(path)


_KINDS: tuple[Format, ...] = (MnnLanguageModel(), MnnGraph())


def _kind(path: Path) -> Format:
    """Return the kind of a model: a graph, unless it has the files of a language model."""
    return next((kind for kind in _KINDS if kind.recognizes(path)), _KINDS[-1])


def _size(path: Path) -> int:
    return (path / _MODEL).stat().st_size
