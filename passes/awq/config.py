"""Configuration of the ``awq`` pass; planning imports it, so it imports neither torch nor numpy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from compressor.config.record import BatchSize, DataName, LeftOutOfIds, Record
from compressor.engine.contract import PassConfig
from compressor.models.consumers.targets import Consumers
from compressor.models.quantized.weight_grid import FormatName, WeightBits, WeightGrid
from passes.common.changed_share import DEFAULT_MIN_SHARE, MinShare
from passes.common.field_problems import is_set, raise_problems

WEIGHTS_PER_CHUNK = 1 << 24
"""Number of weights that are rounded together; peak memory grows with it."""
GROUP_SIZES = (128, 64, 32, 16)
"""Usual group sizes, which error messages suggest."""


class CalibrationConfig(Record):
    """Samples on which the pass measures the inputs of linear layers."""

    data: DataName = "calibration"
    """Data set under `data:`. Labels are not used."""
    num_samples: Annotated[int, Field(ge=1)] = 128
    """Number of calibration samples. The set is divided into that many equal stretches, and one
    sample is drawn at random from each."""
    batch_size: BatchSize = 4
    """Samples per forward pass. Peak memory grows with it."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed with which the samples are drawn."""


class AwqConfig(PassConfig):
    """Fields of an ``awq`` step."""

    calibration: CalibrationConfig = CalibrationConfig()
    """Calibration samples. They determine channel scales, ranges and rounding."""
    bits: WeightBits = 4
    """Bits per weight: 2, 3, 4 or 8. `effective_bits` replaces it."""
    group_size: Annotated[int, Field(ge=-1)] = 128
    """Number of consecutive inputs that share a scale and a zero-point; -1: one group per row.
    Linear layers of a decoder whose input size it does not divide have the largest of 64, 32 and 16
    that does; if there is none, or with `format: awq`, they are not quantized. Layers of models
    that are loaded as a whole are not quantized then. The report lists both. It is an error if it
    divides no layer."""
    effective_bits: Annotated[float, Field(gt=2, le=8.5)] | None = None
    """Mixed precision: average bits per weight, scales and zero-points included. Linear layers
    that share an input get 2, 3, 4 or 8 bits together; those whose rounding changes the output of
    their decoder layer most, or that of a model that is loaded whole, get the most. With
    `format: compressed-tensors`. By default every layer has `bits`."""
    candidate_bits: Annotated[tuple[WeightBits, ...], Field(min_length=2), LeftOutOfIds()] = (
        2,
        3,
        4,
        8,
    )
    """Bits that `effective_bits` chooses from. Before an `export-onnx` step, leave out those that
    its operators cannot hold: 3, and with `decoder.target: portable` 2 too."""
    vision: WeightGrid | None = None
    """Grid of the vision tower's linear layers, for example `{bits: 8, group_size: -1}`. They are
    quantized by the methods of decoder layers if calibration samples bring images, and rounded to
    nearest where none reaches them. For transformers checkpoints with
    `format: compressed-tensors`. By default the vision tower is not quantized."""
    lm_head: Annotated[
        WeightGrid | None, Field(validation_alias=AliasChoices("lm_head", "head"))
    ] = None
    """Grid of the language-model head, for example `{bits: 8, group_size: 128}`. It is rounded to
    nearest, without calibration, and must not be tied to the embedding. For transformers
    checkpoints with `format: compressed-tensors`. By default the head is not quantized."""
    symmetric: bool = False
    """Symmetric quantization: the zero-point is the middle of the integer range and is not stored.
    Requires `format: compressed-tensors`."""
    gguf_scales: Annotated[bool, LeftOutOfIds()] = False
    """Choose scales that blocks of GGUF hold, for an `export-gguf` step. With zero-points: scales
    whose product with the zero-point is a float16 (Q4_1). Symmetric: scales of either sign, so that
    the additional negative integer serves whichever end of a group reaches further (Q4_0). Other
    consumers read such a checkpoint too, but TensorRT refuses negative scales."""
    format: FormatName = "awq"
    """Checkpoint format: `awq` (AutoAWQ's GEMM layout: 4 bits, zero-points, float16) or
    `compressed-tensors` (its pack-quantized layout: 2, 3, 4 or 8 bits)."""
    serve_with: Annotated[Consumers | None, LeftOutOfIds()] = None
    """Consumers that have to load the result, for example `{vllm: {tp: 2, gpu: sm89}}`. `plan`
    refuses grids that one of them does not load, with the nearest grid that it does; where
    `group_size` and `symmetric` (of `vision` and `lm_head` too) are left out, they are chosen:
    the first of groups of 128, 64 and 32 that loads, symmetric if nothing else does."""
    scaling: bool = True
    """Search for input channel scales that reduce the rounding error, and fold them into the norm
    or linear layer before (AWQ, Lin et al. 2024)."""
    refine: Literal["none", "gptq"] = "gptq"
    """Rounding method. `gptq`: round one input after another and compensate each error in the
    remaining weights (GPTQ, Frantar et al. 2023), then improve integers and scales by coordinate
    descent. `none`: round to nearest."""
    error_compensation: Annotated[
        float, Field(ge=0, le=1, validation_alias=AliasChoices("error_compensation", "drift"))
    ] = 0.5
    """Fraction, from 0 to 1, of the error of earlier quantized layers that later weights compensate
    (propagation strength of QEP, Arai and Ichikawa 2025). 0 disables it and halves the work. Layers
    compensate less where calibration samples are too few to tell; the report has the fraction of
    each."""
    min_share: MinShare = DEFAULT_MIN_SHARE
    """Smallest part of the weights that are multiplied (all but embeddings and vectors) that must
    be quantized, from 0 to 1. With less the step is refused: convolutions and recurrent layers stay
    in float, and so do linear layers whose input size `group_size` does not divide."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """dtype of all tensors that are not packed, such as embeddings and norms. By default float16
    for `format: awq`, otherwise the dtype of the parent."""

    @property
    def grids(self) -> tuple[WeightGrid, ...]:
        """Grids to choose from for each linear layer; a single one without `effective_bits`."""
        candidates: tuple[WeightBits, ...] = (
            (self.bits,) if self.effective_bits is None else self.candidate_bits
        )
        return tuple(
            WeightGrid(bits=bits, group_size=self.group_size, symmetric=self.symmetric)
            for bits in candidates
        )

    @property
    def grouped_methods(self) -> tuple[str, ...]:
        """Fields of the enabled methods that need ``LinearGroups``: layers with a common input."""
        in_use = {
            "refine": self.refine == "gptq",
            "scaling": self.scaling,
            "error_compensation": self.error_compensation > 0,
        }
        return tuple(name for name, is_used in in_use.items() if is_used)

    @model_validator(mode="after")
    def _check_fields(self) -> AwqConfig:
        problems = []
        if self.group_size == 0:
            problems.append("group_size 0: a group has at least one weight; -1 means a whole row")
        if self.effective_bits is not None and "bits" in self.model_fields_set:
            problems.append("`bits` has no effect beside `effective_bits`: remove one of them")
        if self.effective_bits is None and is_set(self, "candidate_bits"):
            problems.append("`candidate_bits` has no effect without `effective_bits`: remove it")
        if self.format == "awq" and (fields := self._fields_beyond_autoawq()):
            problems.append(
                "`format: awq` stores 4-bit weights with zero-points beside float16 tensors, which "
                f"{' and '.join(fields)} contradict: use `format: compressed-tensors`"
            )
        raise_problems(problems)
        return self

    def _fields_beyond_autoawq(self) -> list[str]:
        """Return the fields whose values AutoAWQ's format cannot store."""
        contradicts = {
            "bits": self.bits != 4,
            "effective_bits": self.effective_bits is not None,
            "vision": self.vision is not None,
            "lm_head": self.lm_head is not None,
            "symmetric": self.symmetric,
            "dtype": self.dtype not in {None, "float16"},
        }
        return [name for name, is_wrong in contradicts.items() if is_wrong]
