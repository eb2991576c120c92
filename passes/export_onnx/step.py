"""The ``export-onnx`` pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import (
    DataNeed,
    Estimate,
    Pass,
    PassContext,
    PassOutput,
    PlanContext,
    StarterModel,
)
from compressor.models.facts import ModelFacts
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.contract import Exporter

_BASE_MEMORY_BYTES = 900_000_000
"""Memory of torch, the exporter and ONNX Runtime."""
_WEIGHT_COPIES = 3
"""Copies of the weights beside torch's: the graph's, the serialized file's and the runtime's."""
_GRAPH_BYTES = 100_000


class ExportOnnx(Pass[ExportOnnxConfig]):
    """Export a model to ONNX, and compare it with torch in ONNX Runtime.

    A model is traced with ``torch.onnx.export(dynamo=True)``. Every dimension that its family names
    (the batch, and sequences where there are any) may stay variable. Equal weights give equal
    bytes: what the exporter notes about its own run (stack traces, paths, node histories) is
    removed. The layers of a `qat` step become QuantizeLinear, DequantizeLinear and INT8 weights,
    and the report states how many of them ONNX Runtime computes with integers.

    The graph of a language model is built instead of traced where its architecture is covered: one
    graph for prefill and decode, with the key-value cache as inputs and outputs, in ONNX Runtime's
    own operators. The integers of an `awq` step are carried over. The tokenizer's files and a
    `genai_config.json` for onnxruntime-genai are written beside the graph.

    Every other class of transformers that generates is traced with its cache, in ONNX's own
    operators; encoder-decoders as `encoder.onnx` and the decoder `model.onnx`.
    """

    name = "export-onnx"
    version = 15
    keeps_attention_pattern = True
    accepts = frozenset({"torch", "quantized", "packed"})
    produces = "onnx"
    Config = ExportOnnxConfig
    tools: ClassVar[tuple[str, ...]] = (
        "torch",
        "onnx",
        "onnx-ir",
        "onnxscript",
        "onnxsim",
        "onnxruntime",
    )

    def data_needs(self, config: ExportOnnxConfig) -> tuple[DataNeed, ...]:
        """Return the samples of the comparison, and of the calibration of an 8-bit cache."""
        needs = [DataNeed("parity.data", config.parity.data, ignores_inputs=True)]
        if (cache := config.decoder.int8_kv_cache) is not None:
            field = "decoder.int8_kv_cache.data"
            needs.append(DataNeed(field, cache.data, ignores_inputs=True))
        return tuple(needs)

    def is_recommended(self, model: StarterModel) -> bool:
        """Return True: a runtime loads the result."""
        return True

    def starter_fields(self, model: StarterModel) -> Mapping[str, Any]:
        """Return the data set of the comparison with torch."""
        return {} if model.data is None else {"parity": {"data": model.data}}

    def estimate(
        self,
        config: ExportOnnxConfig,
        parent: ModelFacts,
        context: PlanContext,
    ) -> Estimate:
        """Estimate the size as that of the parent's weights; tracing takes most of the time.

        Raises:
            RequirementError: fields of the config do not apply to the model, or its graph cannot
                be written.
        """
        from passes.export_onnx.export_time import export_seconds
        from passes.export_onnx.exporters import planned_exporter

        start_seconds = Exporter.start_seconds
        exporter = planned_exporter(config, parent)
        if exporter is not None:
            exporter.check_planned(parent)
            start_seconds = exporter.start_seconds
            parent = replace(parent, graph=exporter.planned_graph(parent))
        if parent.parameters is None:
            return Estimate(model=parent)
        reference_bytes = 4 * parent.parameters  # torch's weights in float32
        weight_bytes = parent.size_bytes or reference_bytes
        size_bytes = weight_bytes + _GRAPH_BYTES
        return Estimate(
            replace(parent, size_bytes=size_bytes),
            seconds=export_seconds(
                config,
                parent,
                context,
                start_seconds=start_seconds,
                weight_bytes=weight_bytes,
            ),
            peak_memory_bytes=_BASE_MEMORY_BYTES + reference_bytes + _WEIGHT_COPIES * weight_bytes,
            disk_bytes=size_bytes,
        )

    def requires(self, config: ExportOnnxConfig, parent: Artifact, context: PassContext) -> None:
        """Check that the fields apply, that the graph can be written, and that weights are finite.

        Raises:
            RequirementError: fields do not apply, or the graph cannot be written.
            NumericalError: weights hold NaN or infinity.
        """
        from compressor.models.checkpoint.description import read_description
        from compressor.models.checkpoint.finite import check_finite
        from passes.export_onnx.exporters import stored_exporter

        model = read_description(parent.model)
        exporter = stored_exporter(config, model)
        exporter.check_fields()
        exporter.check_model(model)
        exporter.check_pattern(model.folder)
        check_finite(parent.model)

    def run(
        self, config: ExportOnnxConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Write the graph and compare it with torch; see ``Exporter.export``."""
        from compressor.models.checkpoint.description import read_description
        from passes.export_onnx.exporters import stored_exporter

        model = read_description(parent.model)
        return stored_exporter(config, model).export(model, out, context)

    def ensures(
        self, config: ExportOnnxConfig, parent: Artifact, out: Path, context: PassContext
    ) -> None:
        """Check that ONNX Runtime opens the graph, with the model's inputs and outputs."""
        from compressor.models.checkpoint.description import read_description
        from passes.export_onnx.exporters import stored_exporter

        model = read_description(parent.model)
        stored_exporter(config, model).check_interface(model, out, context.threads)
