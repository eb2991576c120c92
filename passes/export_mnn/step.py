"""The ``export-mnn`` pass."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import (
    DataNeed,
    Estimate,
    Pass,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.errors import MissingExtraError, RequirementError
from compressor.models.facts import ModelFacts
from compressor.models.graph_contents import GraphContents
from passes.common.graph_conversion import conversion_estimate
from passes.export_mnn.config import ExportMnnConfig
from passes.export_mnn.decoder_limits import check_decoder, decoder_fields
from passes.export_mnn.operators import missing_operators

if TYPE_CHECKING:
    from passes.export_mnn.decoder_run import DecoderExport

_SIZE = {"float32": 1.0, "float16": 0.5, "int8": 0.28}
"""Size of the file in parts of the graph's, where most weights belong to products."""
_PROCESS_BYTES = 600_000_000
_COMPARED_BYTES = 8
"""Bytes per weight of the comparison: torch and MNN multiply in float32."""
_LOGIT_BYTES = 72
"""Bytes per logit: float32 of both, and float64 of what they are compared by."""
_MAX_BYTES = 1_900_000_000
_FOR_TEXT = "`export-gguf` and `export-onnx` make files of language models that phones run"


class ExportMnn(Pass[ExportMnnConfig]):
    """Convert a model to MNN, Alibaba's runtime for phones, and compare both.

    A packed language model (Llama, Mistral, Qwen2, Qwen3) becomes a folder of MNN's engine for
    language models: the integers of `awq` are carried over and never rounded again. Any other
    model is converted from its ONNX graph.

    MNN's converter reports success for graphs that it converts wrongly, so the file is executed in
    MNN on samples and compared with the graph. What is known to go wrong is rewritten first: it
    reduces over all axes where the axes of ReduceL1, ReduceL2, ReduceLogSum, ReduceLogSumExp and
    ReduceSumSquare are an input (MNN 3.6.1). Nothing is sent or installed while it converts.
    """

    name = "export-mnn"
    version = 2
    accepts = frozenset({"onnx", "packed"})
    produces = "mnn"
    Config = ExportMnnConfig
    tools: ClassVar[tuple[str, ...]] = ("MNN", "onnx", "onnx-ir", "onnxruntime")

    def data_needs(self, config: ExportMnnConfig) -> tuple[DataNeed, ...]:
        """Return the samples of the comparison."""
        need = DataNeed("parity.data", config.parity.data, ignores_inputs=True, any_values=True)
        return (need,)

    def estimate(
        self, config: ExportMnnConfig, parent: ModelFacts, context: PlanContext
    ) -> Estimate:
        """Estimate the size by the type of the weights.

        Raises:
            MissingExtraError: MNN is not installed.
            RequirementError: MNN does not convert such a graph.
        """
        _check_installed()
        if parent.family is not None:
            return _estimate_decoder(config, parent, context)
        if config.tables is not None:
            raise RequirementError(
                "`tables` is the type of a packed language model's embedding, and this is a graph",
                remedy="remove `tables`, or set `weights`",
            )
        planned = parent.graph
        if planned is not None and planned.integers:
            raise _quantized()
        if planned is not None and not planned.is_standard:
            raise _foreign("operators of ONNX Runtime's own")
        if parent.graph_contents is not None:
            _check(parent.graph_contents())
        return conversion_estimate(parent, _SIZE[config.weights])

    def requires(self, config: ExportMnnConfig, parent: Artifact, context: PassContext) -> None:
        """Check that MNN's converter reads such a graph.

        Raises:
            RequirementError: it does not.
        """
        if (export := _decoder_export(config, parent)) is not None:
            export.check()
            return
        from compressor.graphs.contents import graph_contents
        from compressor.graphs.files import read_graph

        _check(graph_contents(read_graph(parent.model)))

    def run(
        self, config: ExportMnnConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Write the model and compare it with the parent."""
        if (export := _decoder_export(config, parent)) is not None:
            return export.write(out, context)
        from passes.export_mnn.run import export_mnn

        return export_mnn(config, parent.model, out, context)


def _estimate_decoder(
    config: ExportMnnConfig, parent: ModelFacts, context: PlanContext
) -> Estimate:
    """Return the estimate of a packed language model's folder.

    Raises:
        RequirementError: MNN cannot hold or compute it.
    """
    if config.weights != "float32":
        raise RequirementError(
            "`weights` is the type of a graph's weights, and packed weights keep their integers",
            remedy="remove `weights`, or set `tables`",
        )
    check_decoder(parent)
    size = parent.size_bytes
    if size is None:
        return Estimate(parent)
    weights = size + _COMPARED_BYTES * (parent.parameters or 0)
    peak = _PROCESS_BYTES + weights + _logits_bytes(config, parent, context)
    return Estimate(parent, peak_memory_bytes=peak, disk_bytes=size)


def _logits_bytes(config: ExportMnnConfig, parent: ModelFacts, context: PlanContext) -> int:
    """Return the memory in which the logits of a batch are compared; 0 if they are not known."""
    facts, tree = context.data.get(config.parity.data), parent.config
    if facts is None or tree is None:
        return 0
    shapes = [entry.shape for entry in facts.inputs or () if entry.name == "input_ids"]
    tokens = [math.prod(size or 0 for size in shape) for shape in shapes]
    values = sum(tokens) * int(decoder_fields(tree)["vocab_size"])
    return _LOGIT_BYTES * values * min(config.parity.batch_size, config.parity.num_samples)


def _decoder_export(config: ExportMnnConfig, parent: Artifact) -> DecoderExport | None:
    """Return the export of a packed language model; None for a graph."""
    from compressor.models.checkpoint.layout import CONFIG
    from compressor.models.facts import facts_of

    if not (parent.model / CONFIG).is_file() or (parent.model / "model.onnx").is_file():
        return None
    from compressor.models.checkpoint.description import read_description
    from passes.export_mnn.decoder_run import DecoderExport

    check_decoder(facts_of(parent.model))
    tree = read_description(parent.model).config.model_dump(mode="json")
    return DecoderExport(config, tree, parent.model)


def _check_installed() -> None:
    """Raise MissingExtraError if MNN is not installed."""
    if find_spec("MNN") is None:
        raise MissingExtraError("MNN", "`export-mnn`", "mnn")


def _check(contents: GraphContents) -> None:
    """Raise RequirementError for a graph that MNN does not convert."""
    if contents.quantized:
        raise _quantized()
    if contents.is_decoder:
        raise RequirementError("the graph is a decoder with a key-value cache", remedy=_FOR_TEXT)
    for what, remedy in (*contents.unreadable, *contents.input_problems()):
        raise RequirementError(what, remedy=remedy)
    if contents.domains:
        raise _foreign(f"operators of {', '.join(contents.domains)}")
    if missing := missing_operators(contents.operators):
        listed = ", ".join(f"{count} {name}" for name, count in sorted(missing.items()))
        raise RequirementError(
            f"MNN's converter lacks operators of the graph: {listed}",
            remedy="export the model without them; `export-ort` makes a file for phones too",
        )
    if sum(contents.weight_bytes.values()) > _MAX_BYTES:
        raise RequirementError(
            "the weights exceed 1.9 GB, and MNN's converter reads one ONNX file of 2 GB",
            remedy="make the model smaller first",
        )


def _quantized() -> RequirementError:
    return RequirementError(
        "the graph is quantized, and MNN's converter writes files for such graphs that do not run",
        remedy="convert the float graph, with `weights: int8` for a small file",
    )


def _foreign(operators: str) -> RequirementError:
    return RequirementError(
        f"the graph has {operators}, which MNN lacks", remedy=f"export it without them; {_FOR_TEXT}"
    )
