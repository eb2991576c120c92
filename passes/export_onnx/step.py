"""The ``export-onnx`` pass: its config and what the engine calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from compressor.artifacts.kinds import Kind
from compressor.artifacts.store import Artifact
from compressor.config.record import DataName, Record
from compressor.engine.contract import Estimate, ModelFacts, Pass, PassConfig, PassContext, PassOutput, PlanContext

_BASE_MEMORY_BYTES = 900_000_000  # torch, the exporter, ONNX Runtime
_COPIES = 4  # torch's weights, the graph's, the serialized file, the runtime's
_BASE_SECONDS = 20.0
_GRAPH_BYTES = 100_000


class ParityConfig(Record):
    """How the exported model is held against its parent, on real samples."""

    data: DataName = "test"
    """The set whose samples are compared; the export is traced on its shapes too."""
    num_samples: Annotated[int, Field(ge=1)] = 64
    """Samples from the start of the set."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Compared one sample at a time, and so many at a time."""
    max_abs: Annotated[float, Field(gt=0)] | None = None
    """The largest |Δ| that any value of any output may have; by default 1e-3, and any for a model with integers, where two
    runtimes may round a value to neighbours."""
    cosine: Annotated[float, Field(ge=0, le=1)] | None = None
    """The smallest cosine that any sample's output may have with its parent's; by default 0.9999, and 0.98 with integers."""
    agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    """The part of the samples whose answer must be the same, ties within `max_abs` or 1e-3 counted as the same; by default all,
    and 90 % with integers."""


class ExportOnnxConfig(PassConfig):
    """The fields of an ``export-onnx`` step."""

    opset: Annotated[int, Field(ge=18, le=24)] = 20
    """The version of ONNX's operators; 20 is read by every runtime of the last two years."""
    dynamic: tuple[str, ...] | None = None
    """Dimensions that stay variable, by the family's names, as `[batch]`; all of them by default. The others keep the size
    they have in the samples: a smaller, faster graph, and tracing takes a third less time."""
    simplify: bool = True
    """Fold constants and drop what is redundant, through onnxsim; what it makes larger is left as it was."""
    external_data_threshold_mb: Annotated[int, Field(ge=0, le=2000)] = 2000
    """Weights beyond so many megabytes go into `model.onnx.data`; one file cannot hold more than 2 GB."""
    parity: ParityConfig = ParityConfig()
    """The comparison with torch that the pass ends with; it fails where they differ."""


class ExportOnnx(Pass[ExportOnnxConfig]):
    """Writes ``model.onnx`` through ``torch.onnx.export(dynamo=True)`` and holds it against torch in ONNX Runtime.

    Every dimension that the family names (the batch, and sequences where there are any) may stay variable. Equal weights give
    equal bytes: what an exporter notes of its own run (stack traces, paths, node histories) is stripped. The layers of a `qat`
    step come with QuantizeLinear, DequantizeLinear and INT8 weights; it is told how many ONNX Runtime computes with integers.
    """

    name = "export-onnx"
    version = 4
    accepts = frozenset({Kind.TORCH, Kind.QUANTIZED})
    produces = Kind.ONNX
    Config = ExportOnnxConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime")

    def estimate(self, config: ExportOnnxConfig, parent: ModelFacts, context: PlanContext) -> Estimate:  # noqa: ARG002
        """The weights as they are, and a graph; tracing takes most of the time."""
        if parent.parameters is None:
            return Estimate(model=parent)
        weights = parent.size_bytes or 4 * parent.parameters
        facts = ModelFacts(parent.family, parent.config, parent.parameters, parent.macs, weights + _GRAPH_BYTES)
        return Estimate(facts, _BASE_SECONDS + 3e-9 * weights, _BASE_MEMORY_BYTES + _COPIES * weights, facts.size_bytes)

    def requires(self, config: ExportOnnxConfig, parent: Artifact, context: PassContext) -> None:  # noqa: ARG002
        """The model can be opened, has the dimensions that the config names, and its weights are finite."""
        from compressor.models.loading import check_finite
        from passes.export_onnx.pipeline import check_integers, traced_inputs

        traced_inputs(config, parent.model)
        check_integers(parent.model)
        check_finite(parent.model)

    def run(self, config: ExportOnnxConfig, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
        """Trace, strip, simplify, check, write, compare."""
        from passes.export_onnx.pipeline import export

        return export(config, parent.model, out, context)

    def ensures(self, config: ExportOnnxConfig, parent: Artifact, out: Path, context: PassContext) -> None:  # noqa: ARG002
        """ONNX Runtime opens it, with the family's inputs and outputs."""
        from passes.export_onnx.pipeline import check_interface

        check_interface(parent.model, out, context.threads)
