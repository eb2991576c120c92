"""The ``optimize-onnx`` pass."""

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
from compressor.evaluation.metrics import reference_metrics
from compressor.models.facts import Integers, ModelFacts, PlannedGraph
from passes.optimize_onnx.config import OptimizeOnnxConfig

_SIZE = {"fp32": 1.0, "fp16": 0.5, "int8": 0.26, "int4": 0.16}
"""Part of the parent's size that a graph has whose weights are all converted."""
_BASE_MEMORY_BYTES = 1_200_000_000
"""The process with torch and ONNX Runtime, and the observed values of a batch."""
_WEIGHT_COPIES, _LARGE_COPIES = 6, 4
"""Copies of the weights that are in memory at once. Beyond 2 GB they stay in their file until they
are rounded, and nothing simplifies them."""
_LARGE_BYTES = 1_900_000_000
_BASE_SECONDS = 2.0


class OptimizeOnnx(Pass[OptimizeOnnxConfig]):
    """Convert an ONNX graph of any origin to FP16, INT8 or INT4 weights, as another ONNX graph.

    The graph is simplified first, and upgraded where its operators are too old. INT8 is static
    quantization on samples (Jacob et al. 2018): ranges by the least squared error, weights with a
    scale for each output, corrected biases. INT4 rounds weights by GPTQ (Frantar et al. 2022). FP16
    leaves nodes in FP32 that would overflow on the samples. The result is compared with the parent
    on the samples, output by output.
    """

    name = "optimize-onnx"
    version = 8
    accepts = frozenset({"onnx"})
    produces = "onnx"
    Config = OptimizeOnnxConfig
    tools: ClassVar[tuple[str, ...]] = (
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "onnxsim",
        "torch",
    )

    def data_needs(self, config: OptimizeOnnxConfig) -> tuple[DataNeed, ...]:
        """Return the samples of the calibration and of `keep_float`."""
        needs = []
        if config.calibration is not None:
            needs.append(DataNeed("calibration.data", config.calibration.data, ignores_inputs=True))
        keep_float = config.keep_float
        if keep_float is not None:
            needs_labels = not reference_metrics([keep_float.metric])
            need = DataNeed(
                "keep_float.data",
                keep_float.data,
                labels=f"metric: {keep_float.metric}" if needs_labels else None,
                unlabelled="metric: relative_error",
                ignores_inputs=True,
            )
            needs.append(need)
        return tuple(needs)

    def is_recommended(self, model: StarterModel) -> bool:
        """Return True where there are samples: integers are smaller and faster."""
        return model.data is not None

    def starter_fields(self, model: StarterModel) -> Mapping[str, Any]:
        """Return INT8 with samples, and INT4 weights without."""
        if model.data is None:
            return {"precision": "int4"}
        return {"calibration": {"data": model.data}}

    def estimate(
        self, config: OptimizeOnnxConfig, parent: ModelFacts, context: PlanContext
    ) -> Estimate:
        """Return sizes and memory by the weights; the time depends on the operators.

        Raises:
            RequirementError: the graph does not fit, as far as it is known without its weights.
        """
        from passes.optimize_onnx.planned import HALF_TYPES, OPSETS, check_facts, planned_contents

        contents = check_facts(config, parent)
        is_half = contents is not None and contents.float_type in HALF_TYPES
        weight_bytes = (parent.size_bytes or 0) * (
            2 if is_half and config.precision in OPSETS else 1
        )
        size = None if parent.size_bytes is None else int(_SIZE[config.precision] * weight_bytes)
        needed = OPSETS.get(config.precision, 0)
        present = parent.graph
        graph = None
        if present is not None or needed:
            dynamic = None if present is None else present.dynamic
            opset = max(needed, 0 if present is None else present.opset)
            graph = PlannedGraph(opset, _integers(config), dynamic)
        planned = None if contents is None else planned_contents(config, contents)
        return Estimate(
            replace(
                parent,
                size_bytes=size,
                graph=graph,
                graph_contents=None if planned is None else lambda: planned,
            ),
            None,
            _BASE_MEMORY_BYTES
            + weight_bytes * (_LARGE_COPIES if weight_bytes > _LARGE_BYTES else _WEIGHT_COPIES),
            size,
        )

    def requires(self, config: OptimizeOnnxConfig, parent: Artifact, context: PassContext) -> None:
        """Check that the graph is in float, and has products that the config quantizes.

        Raises:
            RequirementError: it is not, or has none.
        """
        from passes.optimize_onnx.prepare import check_graph

        check_graph(config, parent.model)

    def run(
        self, config: OptimizeOnnxConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Convert the graph, write it, and compare it with its parent."""
        from passes.optimize_onnx.run import optimize

        return optimize(config, parent.model, out, context)

    def ensures(
        self, config: OptimizeOnnxConfig, parent: Artifact, out: Path, context: PassContext
    ) -> None:
        """Open the graph in ONNX Runtime.

        Raises:
            ModelError: it cannot be opened.
        """
        from compressor.runtimes.formats import open_session

        open_session("onnx", out, threads=context.threads).close()


def _integers(config: OptimizeOnnxConfig) -> Integers:
    if config.precision not in {"int8", "int4"}:
        return frozenset()
    if config.target == "onnxruntime":
        return frozenset({"unsigned"})
    return frozenset({"int8"}) if config.precision == "int8" else frozenset({"int4"})
