"""Config of the ``tensorrt`` pass; planning imports it, so it imports neither torch nor onnx."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from compressor.config.record import BatchSize, DataName, Record
from compressor.engine.contract import PassConfig
from compressor.runtimes.tensorrt.backends import BackendName
from compressor.runtimes.tensorrt.manifest import FloatType, Precision
from compressor.runtimes.tensorrt.profiles import Profile
from passes.common.field_problems import is_set, raise_problems


class Calibration(Record):
    """Samples on which ranges and outputs of the graph are measured."""

    data: DataName
    """Data set under `data:`. Labels are not used."""
    num_samples: Annotated[int, Field(ge=1)] = 64
    """Number of samples; the whole data set if it has fewer."""
    batch_size: BatchSize = 16
    """Samples per run of the graph; those that the graph takes, where its inputs fix them."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the selection. The data set is divided into `num_samples` equal stretches, and one
    sample is drawn at random from each."""


class TensorRTConfig(PassConfig):
    """Fields of a ``tensorrt`` step."""

    backend: Literal["auto"] | BackendName = "auto"
    """Library that builds the engines. `rtx`: tensorrt-rtx, which needs no GPU and builds for the
    GPUs in `targets`. `trt`: enterprise TensorRT (10 or newer), which builds for the GPU of the
    machine it runs on. `auto`: the one that is installed; an error if both are, because their
    engines differ."""
    precision: Precision = "fp16"
    """Type of the matrix products and convolutions. Engines are strongly typed: they compute in the
    types of the graph. `fp32`: the float graph as it is. `fp16`: the float graph is converted.
    `int8`: the graph must come from a `qat` step with `target: tensorrt`. `int4`: weights only; a
    graph with INT4 weights is built as it is, and the weights of a float graph are rounded here
    (export it with `opset: 21`)."""
    floats: FloatType | None = None
    """Type of everything that is not in integers. By default `fp16`, and `fp32` with
    `precision: fp32`."""
    block_size: Literal[16, 32, 64, 128] = 64
    """Number of consecutive weights that share a scale, where `precision: int4` rounds the weights
    of a float graph."""
    targets: tuple[Annotated[str, Field(pattern=r"^sm\d{2,3}$")], ...] = ()
    """Compute capabilities of the GPUs to build for, such as `[sm86, sm89]`: one engine each.
    Required with `backend: rtx`. With `backend: trt` at most one, which the GPU of the machine must
    have."""
    profiles: dict[str, Profile] = Field(default_factory=dict)
    """Range of shapes of each input with a dynamic dimension: input name to
    `{min: […], opt: […], max: […]}`. A name may be a pattern such as `past_key_values.*`, which
    applies to the matching inputs without a profile of their own."""
    calibration: Calibration | None = None
    """Samples for three purposes. Ranges: with FP16, values beyond `data_max` stay in FP32, so FP16
    requires samples. Profiles: the shapes of the samples must lie within them. Comparison: the
    converted graph is compared with the parent's, and an engine that can run on this machine is run
    once. By default nothing is measured."""
    data_max: Annotated[
        float,
        Field(gt=0, le=65504, validation_alias=AliasChoices("data_max", "highest")),
    ] = 32752.0
    """Largest magnitude that a value may reach on the samples to be computed in FP16; nodes that
    read or write larger values stay in FP32. The default is half of what FP16 can represent
    (65504), as other samples may reach further."""
    workspace_mb: Annotated[int, Field(ge=1)] = 1024
    """Largest temporary memory of a layer, in MiB. Less memory leaves fewer kernels to choose from;
    too little fails the build."""
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    """Effort of the builder's search for fast kernels, from 0 (fastest build) to 5. By default the
    backend's own level, which is 3 in TensorRT 10."""
    on_missing_gpu: Literal["fail", "bundle"] = "fail"
    """Behaviour of `backend: trt` on a machine without the GPU to build for. `fail`: end the plan
    with an error. `bundle`: write the graph, the profiles and the build command, and no engine."""

    @property
    def float_type(self) -> FloatType:
        """``floats``, or its default."""
        return self.floats or ("fp32" if self.precision == "fp32" else "fp16")

    @model_validator(mode="after")
    def _check_fields(self) -> TensorRTConfig:
        problems = []
        is_float = self.precision in {"fp32", "fp16"}
        if self.floats is not None and is_float and self.floats != self.precision:
            problems.append(
                f"`floats: {self.floats}` contradicts `precision: {self.precision}`: leave it out"
            )
        elif self.float_type == "fp16" and self.calibration is None:
            problems.append(
                "FP16 requires samples, which show what would overflow: set "
                "`calibration: {data: …}`, or `floats: fp32`"
            )
        if repeated := sorted({name for name in self.targets if self.targets.count(name) > 1}):
            problems.append(f"`targets` names {', '.join(repeated)} more than once")
        raise_problems(problems + self._unused_fields())
        return self

    def _unused_fields(self) -> list[str]:
        """Return a line for each field that the user set and another field makes useless."""
        without_effect = {
            "block_size": (self.precision != "int4", f"`precision: {self.precision}`"),
            "data_max": (self.float_type == "fp32", "FP32 computations"),
            "on_missing_gpu": (self.backend == "rtx", "`backend: rtx`, which needs no GPU"),
        }
        return [
            f"`{name}` has no effect with {reason}: leave it out"
            for name, (unused, reason) in without_effect.items()
            if unused and is_set(self, name)
        ]
