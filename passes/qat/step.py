"""The ``qat`` pass: its config and what the engine calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.artifacts.store import Artifact
from compressor.config.record import DataName, Record, Reference
from compressor.engine.contract import (
    Estimate,
    Pass,
    PassConfig,
    PassContext,
    PassOutput,
    PlanContext,
)
from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.quantizable_layers import QuantizableLayers
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.facts import ModelFacts
from compressor.models.quantized.quantization import Bits, Target
from passes.common.config import TrainingConfig


class Calibration(Record):
    """Where the ranges of activations come from."""

    data: DataName
    """The set whose samples are looked at; labels are not."""
    num_samples: Annotated[int, Field(ge=1)] = 256
    """How many."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Samples at a time."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Which samples: one from each of so many equal stretches of the set, at random within it."""
    observer: Literal["min-max", "moving-average", "percentile", "entropy", "mse"] = "mse"
    """What chooses where to clip."""
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.99
    """The part of all magnitudes that the observer `percentile` keeps."""
    table: Annotated[str, Reference("step", made_by="qat")] | None = None
    """Take the ranges that another qat step found on the same parent, and look for none."""

    @model_validator(mode="after")
    def _fits(self) -> Calibration:
        if self.table is not None and (given := {"observer", "percentile"} & self.model_fields_set):
            raise ValueError(
                f"`table` brings its bounds with it: leave out {' and '.join(sorted(given))}"
            )
        return self


class KeepFloat(Record):
    """Which layers stay in float so that the model answers as before."""

    data: DataName
    """The set that decides; never the test set."""
    metric: Literal["top1", "agreement"] = "top1"
    """Right answers; or answers that are the float model's, where there are no labels to trust."""
    max_drop: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """How much lower than the float model's it may be."""
    at_most: Annotated[int, Field(ge=1)] = 8
    """Layers that may stay in float."""
    num_samples: Annotated[int, Field(ge=1)] = 64
    """Calibration samples on which layers are ranked, each quantized alone, by the Kullback-Leibler divergence of the answers."""


class TuningConfig(TrainingConfig):
    """A recipe of few and small steps: the model is nearly right."""

    steps: Annotated[int, Field(ge=1)] = 200
    """Optimizer steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-5
    """Highest learning rate of AdamW."""


class FineTuning(Record):
    """Training with the rounding in place, from labels and from what the float parent says."""

    train: DataName = "train"
    """The set that is learnt from."""
    validation: DataName | None = "validation"
    """The set that is looked at while training; never the test set."""
    training: TuningConfig = TuningConfig()
    """Steps, batch size, learning rate and so on."""
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Weight of what the float parent says, for each of the family's heads; the hard labels have the rest."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The temperature of what the parent says."""
    scales: Literal["fixed", "learned", "observed"] = "learned"
    """Scales stay as calibrated; learn (LSQ, Esser et al. 2020); or follow the largest magnitudes that are seen."""
    freeze_after: Annotated[float, Field(gt=0, le=1)] = 0.75
    """The part of the training after which scales no longer change."""


class QatConfig(PassConfig):
    """The fields of a ``qat`` step."""

    calibration: Calibration
    """Where the ranges of activations come from."""
    target: Target = "onnxruntime"
    """Who is to compute. `tensorrt`: every grid is symmetric, and values are rounded where layers read them. `onnxruntime`:
    values after a ReLU get a grid from 0 up, and results of convolutions are rounded too, or they would be computed in float."""
    weight_bits: Bits = 8
    """Of every weight; on symmetric grids, one for each output channel."""
    activation_bits: Bits = 8
    """Of every activation; 4 is for studies, no runtime here computes so."""
    weight_observer: Literal["min-max", "mse"] = "mse"
    """What chooses where weights are clipped."""
    smoothing: Annotated[float, Field(gt=1)] | None = None
    """Channels of a linear layer's input that reach beyond so many standard deviations of it are scaled down to there, and the
    layer's weights up: transformers have a few of such channels, which make all others coarse. 8 is a good number."""
    embeddings: bool = False
    """Store tables of embeddings as integers too, with a scale for each column: a smaller file, with `target: onnxruntime`."""
    bias_correction: bool = True
    """Change biases such that the mean of each layer's result is the float layer's, on some calibration samples."""
    exclude: tuple[str, ...] = ()
    """Layers that stay in float, by name or pattern, as `head` or `vision.*`."""
    keep_float: KeepFloat | None = None
    """Find the layers that must stay in float; none by default."""
    fine_tuning: FineTuning | None = None
    """Train with rounding in place; by default there is none, and this is post-training quantization."""

    @model_validator(mode="after")
    def _fits(self) -> QatConfig:
        if self.target == "onnxruntime" and self.activation_bits == 4:
            raise ValueError(
                "ONNX Runtime has no kernels for 4-bit activations: use 8, or `target: tensorrt` to study them"
            )
        if self.smoothing is not None and self.calibration.table is not None:
            raise ValueError(
                "`table` holds ranges of inputs as they are: leave `smoothing` out, or calibrate on samples"
            )
        if self.target == "tensorrt" and self.embeddings:
            raise ValueError(
                "TensorRT looks no integers up: leave `embeddings` out, or use `target: onnxruntime`"
            )
        return self


_OBSERVED = 6
"""A forward pass with all activations counted in histograms, in forward passes; measured on EfficientNet-Lite0."""
_ROUNDED = 1.7
"""A training step with rounding, in steps without; time and memory, measured on the phone bed."""


class Qat(Pass[QatConfig]):
    """Rounds weights and activations to integers, and fine-tunes with the rounding in place (Jacob et al. 2018).

    Batch normalizations are folded first. Ranges come from observers on real samples (calibration/observers.py). Without
    `fine_tuning` it is post-training quantization. `export-onnx` writes the result with QuantizeLinear, DequantizeLinear and INT8
    weights.
    """

    name = "qat"
    version = 3
    accepts = frozenset({"torch"})
    produces = "quantized"
    Config = QatConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy")

    def needs(self, config: QatConfig) -> tuple[type[Capability], ...]:
        """Return layers, and heads where answers are compared or the model is trained."""
        compared = config.keep_float is not None or config.fine_tuning is not None
        return (QuantizableLayers, TrainingHeads) if compared else (QuantizableLayers,)

    def estimate(self, config: QatConfig, parent: ModelFacts, context: PlanContext) -> Estimate:
        """A few passes over the calibration set, and the training."""
        from passes.common.estimates import training_estimate, training_memory, training_seconds

        calibration = config.calibration
        samples = 0 if calibration.table is not None else _OBSERVED * calibration.num_samples
        looking = training_seconds(parent, samples)
        memory = training_memory(parent, calibration.batch_size)
        if config.fine_tuning is None:
            return Estimate(parent, looking, memory, parent.size_bytes)
        training = training_estimate(parent, config.fine_tuning.training, forward_only=parent)
        known = looking is not None and training.seconds is not None
        return Estimate(
            parent,
            looking + _ROUNDED * training.seconds if known else None,  # type: ignore[operator]
            max(memory, int(_ROUNDED * (training.peak_memory_bytes or 0))),
            training.disk_bytes,
        )

    def requires(self, config: QatConfig, parent: Artifact, context: PassContext) -> None:
        """Finite weights, data that fit, a table of this model."""
        from compressor.models.checkpoint.safetensors_files import check_finite
        from passes.common.requirements import check_data
        from passes.qat.quantizing import check_supported, table_of

        check_supported(config, parent)
        check_finite(parent.model)
        tuning = config.fine_tuning
        learns = (tuning.train, tuning.validation) if tuning else ()
        keep = config.keep_float
        by_labels = (keep.data,) if keep and keep.metric == "top1" else ()
        check_data(parent, (*by_labels, *learns), context)
        check_data(
            parent, (config.calibration.data, keep.data if keep else None), context, labels=False
        )
        table_of(config, parent, context)

    def run(
        self, config: QatConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Fold, calibrate, round, choose, train, save; checkpoints go to ``context.work``."""
        from passes.qat.quantizing import quantize

        return quantize(config, parent, out, context)

    def ensures(self, config: QatConfig, parent: Artifact, out: Path, context: PassContext) -> None:
        """It loads again, and its weights are finite."""
        from compressor.models.checkpoint.loading import load_module
        from compressor.models.checkpoint.safetensors_files import check_finite

        check_finite(out)
        load_module(out, context.device)
