"""The ``tensorrt`` pass: its config and what the engine calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.artifacts.store import Artifact
from compressor.config.record import DataName, Record
from compressor.engine.contract import (
    Estimate,
    Pass,
    PassConfig,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.facts import ModelFacts
from compressor.runtimes.tensorrt.backends import BackendName, chosen
from compressor.runtimes.tensorrt.manifest import Floats, Precision
from compressor.runtimes.tensorrt.profiles import Profile

_BASE_MEMORY_BYTES = (
    700_000_000  # measured with tensorrt-rtx 1.7: the library, its kernels, ONNX Runtime
)
_COPIES = 5
_SECONDS_PER_TARGET = 3.0
_KERNELS_BYTES = 12_000_000  # that an engine of rtx carries beside its weights


class CalibrationSamples(Record):
    """Real samples, on which ranges and shapes are looked at."""

    data: DataName
    """The set; labels are not looked at."""
    num_samples: Annotated[int, Field(ge=1)] = 64
    """How many."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Samples at a time."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Which samples: one from each of so many equal stretches of the set, at random within it."""


class TensorRTConfig(PassConfig):
    """The fields of a ``tensorrt`` step."""

    backend: Literal["auto"] | BackendName = "auto"
    """`rtx` is tensorrt-rtx, which builds without a GPU for the targets named; `trt` is enterprise TensorRT (10 or newer), which
    builds for the GPU at hand. `auto` is the one that is installed, and an error where both are: their engines differ."""
    precision: Precision = "fp16"
    """What the engine computes in. It lies in the graph: `fp16` is converted here; `int8` wants the integers of a `qat` step with
    `target: tensorrt`; `int4` takes a graph with INT4 weights, or rounds those of a float one (`opset: 21` of `export-onnx`)."""
    floats: Floats | None = None
    """What computes that which is not integer: `fp16` by default, and `fp32` for `precision: fp32`."""
    block_size: Literal[16, 32, 64, 128] = 64
    """Of weights that are rounded to INT4 here: so many values share a scale."""
    targets: tuple[Annotated[str, Field(pattern=r"^sm\d{2,3}$")], ...] = ()
    """Compute capabilities, as `[sm86, sm89]`; an engine for each. `rtx` wants them named, `trt` builds for the GPU at hand."""
    profiles: dict[str, Profile] = Field(default_factory=dict)
    """The shapes of each input that varies: `{min: […], opt: […], max: […]}` by its name, or by a pattern such as
    `past_key_values.*`."""
    calibration: CalibrationSamples | None = None
    """Real samples. FP16 wants them: what exceeds `highest` on them stays in FP32. Profiles are held against their shapes."""
    highest: Annotated[float, Field(gt=0, le=65504)] = 32752.0
    """The largest magnitude of a value in FP16; by default half of what FP16 holds, as other samples may reach further."""
    workspace_mb: Annotated[int, Field(ge=1)] = 1024
    """Memory that a layer may use for its work, in MiB."""
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    """How hard the builder tries; the backend's own by default."""
    on_missing_gpu: Literal["fail", "bundle"] = "fail"
    """What `trt` does where there is no GPU: fail, or write a build bundle (graph, profiles, command) and no engine."""

    @property
    def float_type(self) -> Floats:
        """``floats``, or its default."""
        return self.floats or ("fp32" if self.precision == "fp32" else "fp16")

    @model_validator(mode="after")
    def _fits(self) -> TensorRTConfig:
        if (
            self.floats is not None
            and self.precision in {"fp32", "fp16"}
            and self.floats != self.precision
        ):
            raise ValueError(
                f"`precision: {self.precision}` and `floats: {self.floats}` contradict each other"
            )
        if self.float_type == "fp16" and self.calibration is None:
            raise ValueError(
                "FP16 wants `calibration: {data: …}`: samples that show what would overflow; or say `floats: fp32`"
            )
        if twice := sorted({one for one in self.targets if self.targets.count(one) > 1}):
            raise ValueError(f"`targets` names {', '.join(twice)} more than once")
        return self


class TensorRT(Pass[TensorRTConfig]):
    """Builds TensorRT engines of an ONNX graph, with or without a GPU, strongly typed.

    What TensorRT would refuse is told before it is asked, every offender at once. The graph that is given to the builder lies
    beside the engines, and answers in their place where there is no GPU. engine.json says what was built, for what, and whether
    it ever ran.
    """

    name = "tensorrt"
    version = 1
    accepts = frozenset({"onnx"})
    produces = "engine"
    Config = TensorRTConfig
    tools: ClassVar[tuple[str, ...]] = ("numpy", "onnx", "onnx-ir", "onnxruntime")

    def tools_for(self, config: TensorRTConfig) -> tuple[str, ...]:
        """Those, and the backend."""
        return (*self.tools, chosen(config.backend).distribution)

    def estimate(
        self,
        config: TensorRTConfig,
        parent: ModelFacts,
        context: PlanContext,
    ) -> Estimate:
        """A few seconds a target; an engine carries kernels beside its weights.

        Raises:
            MissingExtraError: the backend is not installed.
            RequirementError: it does not build for the targets.
        """
        from passes.tensorrt.select_backend import check_backend

        check_backend(config)
        count = max(1, len(config.targets))
        weights = parent.size_bytes or 0
        size = weights + _KERNELS_BYTES
        facts = ModelFacts(parent.family, parent.config, parent.parameters, parent.macs, size)
        return Estimate(
            facts,
            1.0 + count * _SECONDS_PER_TARGET,
            _BASE_MEMORY_BYTES + _COPIES * weights,
            count * size + weights,
        )

    def requires(self, config: TensorRTConfig, parent: Artifact, context: PassContext) -> None:
        """The graph is one that TensorRT takes, profiles fit it and the samples, and there is a GPU where one is needed."""
        from passes.tensorrt.pipeline import check

        check(config, parent.model, context)

    def run(
        self, config: TensorRTConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Make the graph fit, look at its ranges, convert it, hold it against its parent, build."""
        from passes.tensorrt.pipeline import build

        return build(config, parent.model, out, context)

    def ensures(
        self,
        config: TensorRTConfig,
        parent: Artifact,
        out: Path,
        context: PassContext,
    ) -> None:
        """Every file is the one that engine.json tells of, and ONNX Runtime opens the graph."""
        from passes.tensorrt.pipeline import check_written

        check_written(out, context)
