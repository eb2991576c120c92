"""The ``tensorrt`` pass."""

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
from compressor.runtimes.tensorrt.backends import resolve_backend
from passes.tensorrt.config import TensorRTConfig

_BASE_MEMORY_BYTES = 700_000_000
"""The process beside the weights: 0.5 GB in a run of this step alone, 1.06 GB behind steps in
torch."""
_WEIGHT_COPIES = 6
"""Copies of the weights in memory at the peak, while the ranges of a float graph are measured: from
graphs of 10, 50, 200 and 600 MB."""
_BASE_SECONDS = 1.0
_SECONDS_PER_TARGET = 3.0
_KERNELS_BYTES = 12_000_000
"""Kernels in an engine of tensorrt-rtx, beside its weights."""


class TensorRT(Pass[TensorRTConfig]):
    """Build strongly typed TensorRT engines from an ONNX graph, with or without a GPU.

    Everything that TensorRT would refuse is reported before the build, all offenders at once. The
    graph that the engines were built from lies beside them, and is measured in their place where
    there is no GPU for them. engine.json records what was built, for which GPUs, and which engines
    have run.
    """

    name = "tensorrt"
    version = 2
    accepts = frozenset({"onnx"})
    produces = "engine"
    Config = TensorRTConfig
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx", "onnx-ir", "onnxruntime")

    def tools_for(self, config: TensorRTConfig) -> tuple[str, ...]:
        """Return ``tools`` and the backend's distribution."""
        return (*self.tools, resolve_backend(config.backend).distribution)

    def data_needs(self, config: TensorRTConfig) -> tuple[DataNeed, ...]:
        """Return the samples that the graph runs on."""
        calibration = config.calibration
        if calibration is None:
            return ()
        return (DataNeed("calibration.data", calibration.data, ignores_inputs=True),)

    def is_recommended(self, model: StarterModel) -> bool:
        """Return True: GPUs run engines."""
        return True

    def starter_fields(self, model: StarterModel) -> Mapping[str, Any]:
        """Return targets, a precision, and a profile of each dynamic input."""
        from passes.tensorrt.starter import starter_fields

        return starter_fields(model)

    def estimate(
        self, config: TensorRTConfig, parent: ModelFacts, context: PlanContext
    ) -> Estimate:
        """Return time by the number of targets, and sizes by the weights.

        Raises:
            MissingExtraError: the backend is not installed.
            GpuError: the backend needs a GPU that this machine lacks.
            RequirementError: fields do not apply to the backend, or the graph that the parent will
                be does not fit.
        """
        from passes.tensorrt.planned_graph import check_planned_graph
        from passes.tensorrt.select_backend import select_backend

        select_backend(config)
        check_planned_graph(config, parent)
        count = max(1, len(config.targets))
        weight_bytes = parent.size_bytes or 0
        engine_bytes = weight_bytes + _KERNELS_BYTES
        return Estimate(
            replace(parent, size_bytes=engine_bytes),
            _BASE_SECONDS + count * _SECONDS_PER_TARGET,
            _BASE_MEMORY_BYTES + _WEIGHT_COPIES * weight_bytes,
            count * engine_bytes + weight_bytes,
        )

    def requires(self, config: TensorRTConfig, parent: Artifact, context: PassContext) -> None:
        """Check the graph, the profiles and the samples against TensorRT's rules.

        Raises:
            RequirementError: TensorRT refuses the graph, or fields do not fit it.
            DataError: the samples do not fit the graph.
            GpuError: the backend needs a GPU that this machine lacks.
        """
        from passes.tensorrt.requirements import check_graph

        check_graph(config, parent.model, context)

    def run(
        self, config: TensorRTConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Convert the graph to its precision, compare it with the parent, and build the engines."""
        from passes.tensorrt.engine_artifact import build_artifact

        return build_artifact(config, parent.model, out, context)

    def ensures(
        self, config: TensorRTConfig, parent: Artifact, out: Path, context: PassContext
    ) -> None:
        """Check every file against engine.json, and open the graph in ONNX Runtime."""
        from passes.tensorrt.engine_artifact import check_artifact

        check_artifact(out, context)
