"""The ``awq`` pass: its config and what the engine calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from compressor.artifacts.store import Artifact
from compressor.config.record import DataName, Record
from compressor.engine.contract import Estimate, Pass, PassConfig, PassContext, PassOutput, PlanContext
from compressor.models.facts import ModelFacts
from compressor.models.quantized.description import FormatName, WeightBits, WeightGrid

WEIGHTS_AT_ONCE = 1 << 24
"""How many are rounded together: memory follows it."""


class Calibration(Record):
    """The samples that decide."""

    data: DataName = "calibration"
    """The set; labels are not looked at."""
    num_samples: Annotated[int, Field(ge=1)] = 128
    """How many."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Samples at a time."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Which samples: one from each of so many equal stretches of the set, at random within it."""


class AwqConfig(PassConfig):
    """The fields of an ``awq`` step."""

    calibration: Calibration = Calibration()
    """The samples that decide about scales and rounding."""
    bits: WeightBits = 4
    """Of each weight."""
    group_size: Annotated[int, Field(ge=-1)] = 128
    """Inputs that share a scale and a zero-point; -1: all of a row. It has to divide the inputs of every layer of a checkpoint;
    of the other families, layers whose inputs it does not divide stay as they are."""
    effective_bits: Annotated[float, Field(gt=2, le=8.5)] | None = None
    """Of each weight on average, scales and zero-points counted: instead of `bits`, layers get 2, 3, 4 or 8 of them, by how much
    rounding them changes what their decoder layer says. For `format: compressed-tensors`."""
    vision: WeightGrid | None = None
    """Of the linear layers of a vision tower, rounded to the nearest, as `{bits: 8, group_size: -1}`; by default they stay
    as they are. For `format: compressed-tensors`."""
    head: WeightGrid | None = None
    """Of the head, where it is no table of the embedding's, rounded to the nearest, as `{bits: 8, group_size: 128}`; by default
    it stays as it is. For `format: compressed-tensors`."""
    symmetric: bool = False
    """No zero-points are stored; for `format: compressed-tensors`."""
    format: FormatName = "awq"
    """How it is stored: AutoAWQ's GEMM checkpoint (4 bits), or pack-quantized of compressed-tensors."""
    scaling: bool = True
    """Search scales of the inputs that make weights round better, taken up by the norm or the layer before (AWQ)."""
    refine: Literal["none", "gptq"] = "gptq"
    """Round to the nearest; or one input after another with the error fed back (GPTQ), then fit scales and choose again."""
    drift: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The part of what rounding earlier layers changed that later weights make up for; 0: none, and half the work."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Of all that is not packed, such as embeddings and norms. By default float16 for `format: awq`, else as it is."""

    @property
    def grids(self) -> tuple[WeightGrid, ...]:
        """How weights may be rounded."""
        choice: tuple[WeightBits, ...] = (
            (self.bits,) if self.effective_bits is None else get_args(WeightBits)
        )
        return tuple(
            WeightGrid(bits=bits, group_size=self.group_size, symmetric=self.symmetric)
            for bits in choice
        )

    @property
    def is_nearest(self) -> bool:
        """Whether each weight becomes the nearest value of its grid, whatever comes before or after."""
        return self.refine == "none" and not self.scaling and not self.drift

    @model_validator(mode="after")
    def _fits(self) -> AwqConfig:
        if self.group_size == 0:
            raise ValueError(
                "group_size 0: a group has at least one weight; -1 stands for a whole row"
            )
        if self.format == "awq":
            wrong = {
                "bits": self.bits != 4,
                "effective_bits": self.effective_bits is not None,
                "vision": self.vision is not None,
                "head": self.head is not None,
                "symmetric": self.symmetric,
                "dtype": self.dtype not in {None, "float16"},
            }
            if bad := [name for name, is_wrong in wrong.items() if is_wrong]:
                raise ValueError(
                    f"the format awq holds 4 bits with zero-points beside float16, which {' and '.join(bad)} contradict: "
                    "use `format: compressed-tensors`"
                )
        return self


class Awq(Pass[AwqConfig]):
    """Packs the weights of linear layers into a few bits (AWQ, Lin et al. 2024; GPTQ, Frantar et al. 2023), layer by layer.

    Of a checkpoint of transformers one decoder layer is in memory at a time, and a killed run goes on after the last whole layer.
    Embeddings stay as they are; a vision tower and the head do, or get bits of their own.

    Models of the other families are in memory whole, and are stored with `format: compressed-tensors` beside their own config.
    Layers that do not fit stay as they are, and the report names them. A family that does not state in ``linear_blocks`` where
    its linear layers read is rounded to the nearest, if that is asked for: `refine: none`, `scaling: false`, `drift: 0`.
    """

    name = "awq"
    version = 3
    accepts = frozenset({"torch"})
    produces = "packed"
    Config = AwqConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors", "numpy")

    def estimate(self, config: AwqConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """From the widths alone."""
        from passes.awq.estimates import estimate

        return estimate(config, parent)

    def requires(self, config: AwqConfig, parent: Artifact, context: PassContext) -> None:
        """Layers that can be packed, finite weights, data that fit, room on the disk."""
        from compressor.models.checkpoint.loading import check_finite
        from passes.awq.fitting import check_family
        from passes.awq.shapes import check_shapes
        from passes.common.fitting import check_data

        (check_shapes if is_checkpoint(parent) else check_family)(config, parent)
        check_finite(parent.model)
        check_data(parent, (config.calibration.data,), context, labels=False)

    def run(
        self, config: AwqConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Layer by layer; of a checkpoint, ``context.work`` holds what is done."""
        from passes.awq.quantizing import quantize
        from passes.awq.whole import quantize_whole

        return (quantize if is_checkpoint(parent) else quantize_whole)(config, parent, out, context)

    def ensures(self, config: AwqConfig, parent: Artifact, out: Path, context: PassContext) -> None:
        """Headers, config and weights can be read again, and are finite; each shard was compared when it was written."""
        from compressor.models.checkpoint.loading import check_finite, read_description

        read_description(out)
        check_finite(out)


def is_checkpoint(parent: Artifact) -> bool:
    """Whether it is a checkpoint of transformers, which is read part by part; other models are in memory whole."""
    from compressor.models.checkpoint.files import read_description

    return read_description(parent.model)[0] == "transformers"


def tree_of(parent: ModelFacts) -> dict[str, Any] | None:
    """config.json of a checkpoint, where that is what the facts tell of."""
    return (
        dict(parent.config)
        if parent.family == "transformers" and parent.config is not None
        else None
    )
