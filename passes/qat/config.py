"""Config of the ``qat`` pass, also registered as ``ptq``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from compressor.config.record import BatchSize, DataName, Record, Reference
from compressor.engine.contract import PassConfig
from compressor.models.quantized.quantization import Bits, Target
from passes.common.changed_share import DEFAULT_MIN_SHARE, MinShare
from passes.common.config import TrainingConfig, validation_problems
from passes.common.field_problems import is_set, raise_problems


class Calibration(Record):
    """Calibration samples, and the observer that chooses activation ranges from them."""

    data: DataName
    """Data set to calibrate on; it needs no labels."""
    num_samples: Annotated[int, Field(ge=1)] = 256
    """Number of calibration samples; the whole data set if it has fewer."""
    batch_size: BatchSize = 32
    """Samples per forward pass."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the selection. The data set is divided into `num_samples` equal stretches, and one
    sample is drawn at random from each."""
    observer: Literal["min-max", "moving-average", "percentile", "entropy", "mse"] = "mse"
    """Choice of the clipping range of each activation: the extreme values; a moving average of the
    extreme values of each batch; a percentile of the magnitudes; the smallest Kullback-Leibler
    divergence, or the smallest squared error, between the values and the quantized values."""
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.99
    """Percentage of the magnitudes that `observer: percentile` does not clip."""
    table: Annotated[str, Reference("step", made_by="qat")] | None = None
    """Reuse the activation ranges of another `qat` step on the same parent. By default the ranges
    are observed on the calibration samples."""

    @model_validator(mode="after")
    def _check_effects(self) -> Calibration:
        problems = []
        observing = ("observer", "percentile", "batch_size")
        if self.table is not None and (
            unused := [name for name in observing if is_set(self, name)]
        ):
            names = " and ".join(f"`{name}`" for name in unused)
            problems.append(f"`table` replaces the observation of ranges: leave out {names}")
        elif self.observer != "percentile" and is_set(self, "percentile"):
            problems.append(
                f"`percentile` has no effect with `observer: {self.observer}`: leave it out"
            )
        raise_problems(problems)
        return self


class KeepFloat(Record):
    """Keep layers in float until the accuracy drop of the quantized model is small enough.

    Layers are ranked by their sensitivity: one layer at a time is quantized, and the outputs are
    compared with those of the float model by their Kullback-Leibler divergence.
    """

    data: DataName
    """Data set on which the metric is computed; do not use the test set."""
    metric: Literal["top1", "agreement"] = "top1"
    """`top1`: part of the predictions that equal the label. `agreement`: part of the predictions
    that equal those of the float model, for data without labels."""
    max_drop: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Largest allowed drop of the metric below that of the float model."""
    max_layers: Annotated[
        int, Field(ge=1, validation_alias=AliasChoices("max_layers", "at_most"))
    ] = 8
    """Largest number of layers that are kept in float."""
    num_samples: Annotated[int, Field(ge=1)] = 64
    """Number of calibration samples on which layers are ranked."""


class TuningConfig(TrainingConfig):
    """Training with few steps and a low learning rate, for a model that is already trained."""

    steps: Annotated[int, Field(ge=1)] = 200
    """Number of optimizer steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-5
    """Peak learning rate of AdamW."""


class FineTuning(Record):
    """Quantization-aware training: fine-tune with rounding in the forward pass.

    The labels of the data set are hard labels, the outputs of the float parent are soft labels.
    """

    train: DataName = "train"
    """Data set to train on."""
    validation: DataName | None = "validation"
    """Data set that is evaluated during training; do not use the test set. `null` for none."""
    training: TuningConfig = TuningConfig()
    """Steps, batch size, learning rate and so on."""
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Weight of the soft labels in the loss of each head; the hard labels have the rest."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the soft labels."""
    scales: Literal["fixed", "learned", "observed"] = "learned"
    """Quantization scales in training: stay as calibrated, are learned (LSQ, Esser et al. 2020), or
    follow the largest magnitudes of weights and activations."""
    freeze_after: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Part of the training after which the scales no longer change."""

    @model_validator(mode="after")
    def _check_effects(self) -> FineTuning:
        problems = validation_problems(self.validation, self.training)
        if self.soft_weight == 0 and is_set(self, "temperature"):
            problems.append("`temperature` has no effect with `soft_weight: 0`: leave it out")
        if self.scales == "fixed" and is_set(self, "freeze_after"):
            problems.append("`freeze_after` has no effect with `scales: fixed`: leave it out")
        raise_problems(problems)
        return self


class QatConfig(PassConfig):
    """Fields of a ``qat`` step."""

    calibration: Calibration
    """Calibration samples, and the choice of activation ranges."""
    target: Target = "onnxruntime"
    """Runtime that the grids are laid out for. `tensorrt`: every grid is symmetric, and values are
    rounded at the inputs of layers. `onnxruntime`: grids of values after a ReLU start at 0, grids
    of other activations are asymmetric, and outputs of convolutions are rounded too, without which
    ONNX Runtime would compute the convolutions in float."""
    weight_bits: Bits = 8
    """Bits per weight, on symmetric grids with one scale per output channel."""
    activation_bits: Bits = 8
    """Bits per activation; 4 is for experiments, no runtime computes with it."""
    weight_observer: Literal["min-max", "mse"] = "mse"
    """Choice of the clipping range of weights: the largest magnitude of each output channel, or the
    smallest squared error."""
    smoothing: Annotated[float, Field(gt=1)] | None = None
    """Scale input channels of linear layers down where they exceed this number of standard
    deviations of the whole input, and the weights up by the same factor (as SmoothQuant, Xiao et
    al. 2023). Transformers have a few such channels, which make the grid too coarse for all others;
    8 is a good value. Off by default."""
    quantize_embeddings: Annotated[
        bool, Field(validation_alias=AliasChoices("quantize_embeddings", "embeddings"))
    ] = False
    """Store embedding tables as integers too, with one scale per column, for a smaller file. Needs
    `target: onnxruntime`."""
    bias_correction: bool = True
    """Correct biases so that the mean of each layer's output equals that of the float layer on
    calibration samples (Nagel et al. 2019)."""
    ignore: Annotated[
        tuple[str, ...], Field(validation_alias=AliasChoices("ignore", "exclude"))
    ] = ()
    """Layers and embedding tables that stay in float, by name or pattern, such as `head` or
    `vision.*`."""
    min_share: MinShare = DEFAULT_MIN_SHARE
    """Smallest part of the weights that are multiplied (all but embeddings and vectors) that must
    become integers, from 0 to 1. With less the step is refused: layers that are not linear or
    convolutional, such as recurrent ones, stay in float. It does not apply with `ignore`, which
    states what stays in float."""
    keep_float: KeepFloat | None = None
    """Keep the most sensitive layers in float until the accuracy drop is small enough. By default
    all layers are quantized, except those in `ignore`."""
    fine_tuning: FineTuning | None = None
    """Quantization-aware training after calibration. Without it, the default, the step is
    post-training quantization (PTQ) and does not train."""

    @model_validator(mode="after")
    def _check_fields(self) -> QatConfig:
        problems = self._target_problems()
        table = self.calibration.table
        if self.smoothing is not None and table is not None:
            problems.append(
                "`smoothing` changes the ranges in `calibration.table`: leave one of them out"
            )
        if table is not None and not self.bias_correction and self.keep_float is None:
            problems += [
                f"`calibration.{name}` has no effect with `table`, without `keep_float` and with "
                "`bias_correction: false`: leave it out"
                for name in ("num_samples", "seed")
                if is_set(self.calibration, name)
            ]
        if self.ignore and is_set(self, "min_share"):
            problems.append("`min_share` has no effect with `ignore`: leave one of them out")
        raise_problems(problems)
        return self

    def _target_problems(self) -> list[str]:
        problems = []
        if self.target == "onnxruntime" and self.activation_bits == 4:
            problems.append(
                "ONNX Runtime has no kernels for 4-bit activations: use `activation_bits: 8`, or "
                "`target: tensorrt` for experiments"
            )
        if self.target == "tensorrt" and self.quantize_embeddings:
            problems.append(
                "TensorRT has no embedding lookup of integers: leave `quantize_embeddings` out, or "
                "use `target: onnxruntime`"
            )
        return problems
