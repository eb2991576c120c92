"""The ORT format: ``model.ort`` beside the graph that it was converted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from compressor.errors import ModelError
from compressor.foreign_files.limits import FLATBUFFER
from compressor.foreign_files.opening import check_file
from compressor.models.facts import ModelFacts
from compressor.runtimes.format_records import Cost, SampleShapes
from compressor.runtimes.onnxruntime.format import Onnx

_MODEL = "model.ort"
_OPERATORS = "required_operators_and_types.config"


class Ort(Onnx):
    """ONNX Runtime's own format, as reduced builds for phones load it, beside its graph.

    What is executed is the ``.ort`` file; what is described, counted and listed is the graph.
    """

    name = "ort"
    summary = "a model in ONNX Runtime's own format: model.ort, with model.onnx beside it"
    runtime = "ONNX Runtime"
    precedence = 2

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder with model.ort and model.onnx, or its model.ort."""
        folder = path.parent if path.is_file() and path.name == _MODEL else path
        return (folder / _MODEL).is_file() and (folder / "model.onnx").is_file()

    def model_path(self, path: Path) -> Path:
        """Return the folder."""
        return path.parent if path.is_file() else path

    def title(self, path: Path) -> str:
        """Return the format's summary."""
        return self.summary

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return the files of the graph, the ``.ort`` files and the list of operators.

        Raises:
            ModelError: as ``Onnx.files``, or a ``.ort`` file is larger than one can be.
        """
        listed = path / _OPERATORS
        own = [*sorted(path.glob("*.ort")), *([listed] if listed.is_file() else [])]
        for file in own:
            check_file(file, ModelError, FLATBUFFER)
        return {**super().files(path), **{file.name: file for file in own}}

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return what the graph is, and the sizes of the ``.ort`` files."""
        sizes = [
            (file.name, f"{file.stat().st_size / 1e6:.3g} MB")
            for file in sorted(path.glob("*.ort"))
        ]
        return [*sizes, *super().describe(path)]

    def check(self, path: Path) -> None:
        """Check the graph, and that each graph has its ``.ort`` file.

        Raises:
            ModelError: as ``Onnx.check``, or ``.ort`` files are missing.
        """
        super().check(path)
        graphs = sorted(path.glob("*.onnx"))
        missing = [file.name for file in graphs if not file.with_suffix(".ort").is_file()]
        if missing:
            raise ModelError(
                f"{path} lacks the .ort files of {', '.join(missing)}",
                remedy="run `export-ort` again",
            )

    def facts(self, path: Path) -> ModelFacts:
        """Return the size of the ``.ort`` files, which are what a phone loads."""
        return replace(super().facts(path), size_bytes=_ort_bytes(path))

    def cost(self, path: Path, sample_shapes: SampleShapes) -> Cost:
        """Count parameters and MACs from the graph, and the bytes of the ``.ort`` files."""
        return replace(super().cost(path, sample_shapes), size_bytes=_ort_bytes(path))


def _ort_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.ort"))
