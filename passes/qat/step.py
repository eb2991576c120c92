"""The ``qat`` pass, also registered as ``ptq``."""

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
from compressor.models.capabilities.integer_storage import IntegerStorage
from compressor.models.capabilities.quantizable_layers import QuantizableLayers
from compressor.models.capabilities.signature import RECORDING_AXES
from compressor.models.facts import Integers, ModelFacts, facts_of
from passes.common.data_needs import training_needs
from passes.qat.config import QatConfig

_OBSERVATION_COST = 6
"""Cost of a forward pass with histograms of all activations, in plain forward passes: measured on
EfficientNet-Lite0."""
_ROUNDING_COST = 1.7
"""Time and memory of a training step with rounding, relative to one without: measured on the phone
bed."""


class Qat(Pass[QatConfig]):
    """Quantize weights and activations to integers: PTQ, or QAT with `fine_tuning`.

    Without `fine_tuning` the step is post-training quantization (PTQ): nothing is trained. With it,
    the quantized model is then trained with rounding in the forward pass (quantization-aware
    training, QAT, Jacob et al. 2018). The pass is registered as `qat` and as `ptq`; both names
    accept the same fields.

    Batch normalizations are folded into the layers before them. Activation ranges are observed on
    calibration samples. `export-onnx` writes the result with QuantizeLinear, DequantizeLinear and
    INT8 weights.
    """

    name = "qat"
    version = 3
    accepts = frozenset({"torch"})
    produces = "quantized"
    Config = QatConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy")
    capabilities = (QuantizableLayers, IntegerStorage)

    def data_needs(self, config: QatConfig) -> tuple[DataNeed, ...]:
        """Return the data sets of the calibration, of `keep_float` and of the training."""
        needs = [DataNeed("calibration.data", config.calibration.data)]
        tuning, keep = config.fine_tuning, config.keep_float
        if keep is not None:
            labels = "keep_float.metric: top1" if keep.metric == "top1" else None
            instead = "keep_float.metric: agreement"
            needs.append(DataNeed("keep_float.data", keep.data, labels=labels, unlabelled=instead))
        if tuning is not None:
            weight = tuning.soft_weight
            hard = f"fine_tuning.soft_weight: {weight:g}" if weight < 1 else None
            instead = "fine_tuning.soft_weight: 1"
            needs += training_needs(
                tuning.train, tuning.validation, hard, instead, prefix="fine_tuning."
            )
        return tuple(needs)

    def is_recommended(self, model: StarterModel) -> bool:
        """Return True for models that do not generate: arithmetic limits their speed."""
        return model.facts.capability(CachedGeneration) is None

    def starter_fields(self, model: StarterModel) -> Mapping[str, Any]:
        """Return the calibration data."""
        return {} if model.data is None else {"calibration": {"data": model.data}}

    def estimate(self, config: QatConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """Estimate calibration and training from the parameters and MACs of the model.

        Raises:
            RequirementError: Fields, or the pass, do not apply to the model.
        """
        from passes.common.estimates import training_estimate, training_memory, training_seconds
        from passes.qat.layer_selection import check_model

        check_model(config, parent)
        notes = _padding_notes(parent) if config.calibration.table is None else ()
        parent = replace(parent, integers=_integers(config), activation_bits=config.activation_bits)
        calibration = config.calibration
        observed = 0 if calibration.table is not None else calibration.num_samples
        seconds = training_seconds(parent, _OBSERVATION_COST * observed)
        memory = training_memory(parent, calibration.batch_size)
        if config.fine_tuning is None:
            return Estimate(parent, seconds, memory, parent.size_bytes, notes)
        training = training_estimate(parent, config.fine_tuning.training, forward_only=parent)
        if seconds is not None:
            seconds = (
                None if training.seconds is None else seconds + _ROUNDING_COST * training.seconds
            )
        memory = max(memory, int(_ROUNDING_COST * (training.peak_memory_bytes or 0)))
        return Estimate(parent, seconds, memory, training.disk_bytes, notes)

    def requires(self, config: QatConfig, parent: Artifact, context: PassContext) -> None:
        """Check the model, its weights, and the calibration table if one is named.

        Raises:
            RequirementError: The model or the table does not fit the config.
            NumericalError: A weight is NaN or infinite.
        """
        from compressor.models.checkpoint.finite import check_finite
        from passes.qat.layer_selection import check_model
        from passes.qat.ranges import load_table

        check_model(config, facts_of(parent.model))
        check_finite(parent.model)
        load_table(config, parent, context)

    def run(
        self, config: QatConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Quantize the model, with training checkpoints in ``context.work``, and save it."""
        from passes.qat.quantize import quantize

        return quantize(config, parent, out, context)

    def ensures(self, config: QatConfig, parent: Artifact, out: Path, context: PassContext) -> None:
        """Check that the saved model loads, and that its weights are finite."""
        from passes.common.requirements import check_saved_model

        check_saved_model(out, context.device)


def _padding_notes(parent: ModelFacts) -> tuple[str, ...]:
    """Return a plan's notes about padding that the model cannot tell from values."""
    signature = parent.signature()
    if signature is None:
        return ()
    inputs = {spec.name: spec for spec in signature.inputs}
    recordings = [
        name for name, spec in inputs.items() if not RECORDING_AXES.isdisjoint(spec.shape)
    ]
    if not recordings or any("mask" in name for name in inputs):
        return ()
    return (
        f"{recordings[0]} has no mask: what layers compute at the padding of shorter recordings "
        "counts in their ranges, so calibrate on recordings of similar lengths",
    )


def _integers(config: QatConfig) -> Integers | None:
    """Return the integers that a graph of the result has; None for bits that no runtime reads."""
    if config.target == "onnxruntime":
        return frozenset({"unsigned"})
    return frozenset({"int8"}) if config.weight_bits == 8 else None
