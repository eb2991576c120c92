"""The ``export-ort`` pass."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import (
    DataNeed,
    Estimate,
    Pass,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.errors import RequirementError
from compressor.models.facts import ModelFacts
from compressor.models.graph_contents import GraphContents
from passes.common.graph_conversion import conversion_estimate
from passes.export_ort.config import ExportOrtConfig

_MAX_BYTES = 2**31 - 1
"""Largest flatbuffer."""
_LARGER = 1.1
"""Size of a ``.ort`` file in parts of its graph's, measured on an INT4 decoder."""


class ExportOrt(Pass[ExportOrtConfig]):
    """Convert an ONNX graph to ONNX Runtime's own format, ``.ort``, which reduced builds load.

    The graph stays beside it, for packages of the whole runtime. A list of the operators and types
    that the graph needs is written for a reduced build (``--include_ops_by_config``). The ``.ort``
    file is run on samples and compared with the graph, and both are opened and timed. What XNNPACK,
    the provider of the packages for phones, leaves to the runtime's own kernels is counted.
    """

    name = "export-ort"
    version = 1
    accepts = frozenset({"onnx"})
    produces = "ort"
    Config = ExportOrtConfig
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")

    def data_needs(self, config: ExportOrtConfig) -> tuple[DataNeed, ...]:
        """Return the samples of the comparison."""
        need = DataNeed("parity.data", config.parity.data, ignores_inputs=True, any_values=True)
        return (need,)

    def estimate(
        self, config: ExportOrtConfig, parent: ModelFacts, context: PlanContext
    ) -> Estimate:
        """Estimate the size as a little more than the graph's.

        Raises:
            RequirementError: the graph is larger than the format can hold, or has inputs for which
                there are no samples.
        """
        if parent.graph_contents is not None:
            _check_inputs(parent.graph_contents())
        if parent.size_bytes is not None:
            _check_size(parent.size_bytes)
        return conversion_estimate(parent, _LARGER)

    def requires(self, config: ExportOrtConfig, parent: Artifact, context: PassContext) -> None:
        """Check that the format can hold each graph, and that samples can be made for the model.

        Raises:
            RequirementError: a graph is too large, or has inputs that are no tensors of numbers.
        """
        from compressor.graphs.contents import graph_contents
        from compressor.graphs.external_data import external_locations
        from compressor.graphs.files import read_graph

        _check_inputs(graph_contents(read_graph(parent.model)))
        for graph in sorted(parent.model.glob("*.onnx")):
            files = [graph, *(graph.parent / name for name in external_locations(graph))]
            _check_size(sum(file.stat().st_size for file in files))

    def run(
        self, config: ExportOrtConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Write the ``.ort`` files and compare them with their graphs."""
        from passes.export_ort.run import export_ort

        return export_ort(config, parent.model, out, context)


def _check_inputs(contents: GraphContents) -> None:
    """Raise RequirementError if there are inputs for which no samples can be made."""
    if problems := list(contents.input_problems()):
        raise RequirementError(
            "\n".join(what for what, _ in problems),
            remedy="; ".join(dict.fromkeys(remedy for _, remedy in problems)),
        )


def _check_size(size_bytes: int) -> None:
    """Raise RequirementError if a graph does not fit the format."""
    if size_bytes > _MAX_BYTES:
        raise RequirementError(
            f"the graph has {size_bytes / 1e9:.1f} GB, and the format .ort holds 2 GB",
            remedy="make the model smaller first, such as with `awq`, or ship the .onnx file with "
            "its external data: the whole runtime for phones loads it too",
        )
