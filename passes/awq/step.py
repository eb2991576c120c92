"""The ``awq`` pass, also registered as ``weight-only``."""

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
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.facts import ModelFacts
from passes.awq.config import AwqConfig


class Awq(Pass[AwqConfig]):
    """Quantize the weights of linear layers to 2, 3, 4 or 8 bits; activations stay in float.

    Weight-only post-training quantization. For each group of linear layers that read the same
    input, in this order, unless a field turns the method off:

    1. `scaling`: AWQ scales of the input channels (Lin et al. 2024, arXiv:2306.00978);
    2. `error_compensation`: weights that compensate the error of the layers quantized before
       (QEP, Arai and Ichikawa 2025, arXiv:2504.09629), and after rounding, where positions are
       fewer than inputs, biases that take up the mean error (Nagel et al. 2019, arXiv:1906.04721);
    3. `refine`: GPTQ rounding (Frantar et al. 2023, arXiv:2210.17323), then coordinate descent;
       otherwise rounding to nearest.

    With few calibration tokens for their inputs, layers compensate less: correlations between
    inputs and the error of earlier layers are shrunk by the part that is sampling error
    (`correlation_shrinkage` and `error_compensation` of each layer in the report). With fewer than
    4, they are rounded to nearest, and the report names them.

    The groups, and the layers into which scales fold, are stated by the model's family or
    discovered: a batch runs, layers that read the same tensor are a group, and a layer before them
    is a source of their input if scaling both sides leaves the output unchanged. A source that does
    not pass this test is not used.

    A decoder of transformers is streamed: one decoder layer is in memory at a time, and a killed
    run resumes after the last complete layer. Fused experts are quantized as one linear layer per
    expert and projection, calibrated with the tokens that reach them; an expert that few reach is
    rounded to nearest, and the report names it. Embeddings stay in float; a vision tower and an
    untied language-model head do too, unless `vision` or `lm_head` sets a grid for them. A tower is
    quantized part by part before the decoder, with what it receives for the images of the samples;
    if the run is killed there, it starts again with the tower.

    Any other model, and a decoder whose layers depend on each other beside their results, is loaded
    as a whole and written with `format: compressed-tensors`. Linear layers that do not fit the grid
    stay in float, and so do those whose outputs are a vocabulary; the report names them.
    """

    name = "awq"
    version = 7
    accepts = frozenset({"torch"})
    produces = "packed"
    Config = AwqConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors", "numpy")

    def needs(self, config: AwqConfig) -> tuple[type[Capability], ...]:
        """Return linear groups, unless weights are only rounded to nearest."""
        return (LinearGroups,) if config.grouped_methods else ()

    def data_needs(self, config: AwqConfig) -> tuple[DataNeed, ...]:
        """Return the calibration samples, of which there must be enough."""
        field, calibration = "calibration.num_samples", config.calibration
        return (
            DataNeed(
                "calibration.data",
                calibration.data,
                min_samples=calibration.num_samples,
                min_samples_field=field,
            ),
        )

    def is_recommended(self, model: StarterModel) -> bool:
        """Return True for models that generate: reading the weights limits their speed."""
        return model.facts.capability(CachedGeneration) is not None

    def starter_fields(self, model: StarterModel) -> Mapping[str, Any]:
        """Return the calibration data, and a format and a group size that the model can have."""
        from passes.awq.quantizers import starter_fields

        fields = {} if model.data is None else {"calibration": {"data": model.data}}
        return {**fields, **starter_fields(model.facts)}

    def estimate(self, config: AwqConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Return time, memory, disk space and size as far as they are known.

        Raises:
            RequirementError: fields of the config, or linear layers, do not fit.
        """
        from passes.awq.quantizers import quantizer_from_facts
        from passes.awq.search_time import search_seconds

        seconds = search_seconds(config, parent, context)
        quantizer = quantizer_from_facts(config, parent)
        if quantizer is None:
            return Estimate(replace(parent, size_bytes=None, integers=None), seconds=seconds)
        quantizer.check_planned(parent)
        return replace(quantizer.estimate(parent), seconds=seconds)

    def requires(self, config: AwqConfig, parent: Artifact, context: PassContext) -> None:
        """Check fields and layer sizes, and that all weights are finite.

        Raises:
            RequirementError: fields of the config or linear layers do not fit.
            NumericalError: weights hold NaN or infinity.
        """
        from compressor.models.checkpoint.description import read_description
        from compressor.models.checkpoint.finite import check_finite
        from passes.awq.quantizers import quantizer_from_model

        model = read_description(parent.model)
        quantizer = quantizer_from_model(config, model)
        quantizer.check_fields()
        quantizer.check_layers(model)
        check_finite(parent.model)

    def run(
        self, config: AwqConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Quantize the linear layers, block by block, and write the packed model."""
        from compressor.models.checkpoint.description import read_description
        from passes.awq.quantizers import quantizer_from_model

        model = read_description(parent.model)
        return quantizer_from_model(config, model).quantize(model, out, context)

    def ensures(self, config: AwqConfig, parent: Artifact, out: Path, context: PassContext) -> None:
        """Check that description and headers can be read and that all tensors are finite.

        Packed weights were read back and compared when they were written.
        """
        from compressor.models.checkpoint.description import read_description
        from compressor.models.checkpoint.finite import check_finite

        read_description(out)
        check_finite(out)
