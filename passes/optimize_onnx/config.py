"""Config of the ``optimize-onnx`` pass, without torch and onnx, as planning imports it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from compressor.config.record import BatchSize, DataName, Record
from compressor.engine.contract import PassConfig
from compressor.evaluation.metrics import is_metric, known_metrics
from compressor.models.quantized.quantization import Target
from passes.common.field_problems import is_set, raise_problems

Precision = Literal["fp32", "fp16", "int8", "int4"]
BlockSize = Literal[16, 32, 64, 128]


class Calibration(Record):
    """Samples on which ranges are measured, and the result is compared with the parent."""

    data: DataName
    """Data set under `data:`. Labels are not used."""
    num_samples: Annotated[int, Field(ge=1)] = 128
    """Number of samples; the whole data set if it has fewer."""
    batch_size: BatchSize = 8
    """Samples per run of the graph; those that the graph takes, where its inputs fix them."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the selection. The data set is divided into `num_samples` equal stretches, and one
    sample is drawn at random from each."""
    observer: Literal["min-max", "moving-average", "percentile", "entropy", "mse"] = "mse"
    """Choice of the clipping range of each value with `precision: int8`, as in a `qat` step."""
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.99
    """Percentage of the magnitudes that `observer: percentile` does not clip."""

    @model_validator(mode="after")
    def _check_effects(self) -> Calibration:
        if self.observer != "percentile" and is_set(self, "percentile"):
            raise ValueError(
                f"`percentile` has no effect with `observer: {self.observer}`: leave it out"
            )
        return self


class KeepFloat(Record):
    """Keep products in float until the outputs are close enough to those of the float graph.

    Products are ranked by the error that each causes alone.
    """

    data: DataName
    """Data set on which the metric is computed; do not use the test set."""
    metric: str = "relative_error"
    """A metric of `evaluate.accuracy.metrics`, such as `relative_error`, `agreement:scores` or,
    with labels, `top1`."""
    max_drop: Annotated[float, Field(gt=0)]
    """How much worse than that of the float graph the metric may be, in its own unit."""
    max_products: Annotated[int, Field(ge=1)] = 8
    """Largest number of products that are kept in float."""
    num_samples: Annotated[int, Field(ge=1)] = 32
    """Number of calibration samples on which products are ranked."""

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, name: str) -> str:
        if not is_metric(name):
            raise ValueError(f"unknown metric {name!r}; known: {', '.join(known_metrics())}")
        return name


class OptimizeOnnxConfig(PassConfig):
    """Fields of an ``optimize-onnx`` step."""

    precision: Precision = "int8"
    """`fp32`: the graph is simplified and stays in float. `fp16`: floats are stored and computed in
    FP16, but for nodes that would overflow or lose too much. `int8`: convolutions and products with
    constant weights multiply integers of 8 bits, weights and activations (QuantizeLinear and
    DequantizeLinear); with `target: onnxruntime` LSTM layers too (DynamicQuantizeLSTM, with ranges
    of each run). `int4`: constant weights of matrix products are stored in 4 bits, in blocks that
    share a scale (DequantizeLinear); activations stay in float."""
    target: Target = "onnxruntime"
    """Runtime that the integers are laid out for. `onnxruntime`: values have zero-points, results
    of convolutions are rounded too, and the operators between them compute integers. `tensorrt`:
    all integers are signed and symmetric, and values are rounded where products read them."""
    calibration: Calibration | None = None
    """Samples. `fp16` and `int8` require them; `int4` rounds weights to nearest without them."""
    simplify: bool = True
    """Fold constants and fuse operators with onnxsim before anything else. Control flow stays as it
    is."""
    block_size: BlockSize = 32
    """Number of consecutive weights that share a scale with `precision: int4`. The last block of an
    output may have fewer, except for TensorRT, which leaves such products in float."""
    weight_only: bool = False
    """Store weights alone as INT8, with `precision: int8` and `target: onnxruntime`: values stay in
    float, and need no samples. The file is as small and closer to its parent, and matrix products
    are faster than in float; convolutions are slower, as their weights are dequantized in each run.
    LSTM layers multiply integers all the same."""
    ignore: tuple[str, ...] = ()
    """Products, LSTM layers, transposed convolutions and embedding tables that stay in float, with
    `precision: int8` and `int4`, by the name of the node or the table or a pattern such as
    `/head/*`."""
    bias_correction: bool = True
    """Correct biases so that rounding does not shift the mean of a result (Nagel et al. 2019), with
    `precision: int8`."""
    smoothing: bool = True
    """Scale outlier channels down before matrix products, and the weights up by the same factor (as
    SmoothQuant, Xiao et al. 2023), where that lessens the error of the results on the samples, with
    `precision: int8`. Transformers have a few such channels, which make the grid too coarse for all
    others."""
    quantize_embeddings: bool = True
    """Store embedding tables as INT8 with a scale for each row, with `precision: int8` and
    `int4` and `target: onnxruntime`. TensorRT has no lookup of integers."""
    keep_float: KeepFloat | None = None
    """Keep the most sensitive products in float, with `precision: int8`. By default all are
    quantized, except those in `ignore`."""
    data_max: Annotated[float, Field(gt=0, le=65504)] = 32752.0
    """Largest magnitude that a value may reach on the samples to be computed in FP16, with
    `precision: fp16`. The default is half of what FP16 can represent (65504), as other samples may
    reach further."""

    @model_validator(mode="after")
    def _check_fields(self) -> OptimizeOnnxConfig:
        problems = []
        if (self.precision == "fp16" or self.rounds_values) and self.calibration is None:
            what = "what would overflow" if self.precision == "fp16" else "the ranges of values"
            problems.append(
                f"`precision: {self.precision}` requires samples, which show {what}: set "
                "`calibration: {data: …}`"
            )
        if self.precision == "fp32" and not self.simplify:
            problems.append("`precision: fp32` with `simplify: false` changes nothing")
        if self.target == "tensorrt" and is_set(self, "quantize_embeddings"):
            problems.append(
                "TensorRT has no embedding lookup of integers: leave `quantize_embeddings` out, or "
                "use `target: onnxruntime`"
            )
        raise_problems(problems + self._unused_fields() + self._weight_only_problems())
        return self

    @property
    def rounds_values(self) -> bool:
        """True if the values that products multiply are rounded too."""
        return self.precision == "int8" and not self.weight_only

    @property
    def stores_tables(self) -> bool:
        """True if embedding tables are stored as INT8."""
        return (
            self.quantize_embeddings
            and self.precision in {"int8", "int4"}
            and self.target == "onnxruntime"
        )

    @property
    def stores_layers(self) -> bool:
        """True if weights of LSTM layers and transposed convolutions are stored as INT8."""
        return self.precision == "int8" and self.target == "onnxruntime"

    def _unused_fields(self) -> list[str]:
        """Return a line for each field that the user set and the precision makes useless."""
        used_by: dict[str, set[str]] = {
            "block_size": {"int4"},
            "weight_only": {"int8"},
            "ignore": {"int8", "int4"},
            "bias_correction": {"int8"},
            "smoothing": {"int8"},
            "quantize_embeddings": {"int8", "int4"},
            "keep_float": {"int8"},
            "data_max": {"fp16"},
            "target": {"int8", "int4"},
        }
        problems = [
            f"`{name}` has no effect with `precision: {self.precision}`: leave it out"
            for name, precisions in used_by.items()
            if self.precision not in precisions and is_set(self, name)
        ]
        calibration = self.calibration
        if calibration is not None and self.precision != "int8" and is_set(calibration, "observer"):
            problems.append(
                f"`calibration.observer` has no effect with `precision: {self.precision}`: "
                "leave it out"
            )
        return problems

    def _weight_only_problems(self) -> list[str]:
        """Return a line for each field that does not go with weights alone."""
        if self.precision != "int8" or not self.weight_only:
            return []
        problems = []
        if self.target == "tensorrt":
            problems.append(
                "`weight_only` is for ONNX Runtime: leave it out, or use `target: onnxruntime`"
            )
        if is_set(self, "smoothing"):
            problems.append("`smoothing` has no effect with `weight_only: true`: leave it out")
        calibration = self.calibration
        if calibration is not None and is_set(calibration, "observer"):
            problems.append(
                "`calibration.observer` has no effect with `weight_only: true`: leave it out"
            )
        problems += [
            f"`{name}` requires samples: set `calibration: {{data: …}}`"
            for name in ("bias_correction", "keep_float")
            if calibration is None and is_set(self, name) and getattr(self, name)
        ]
        return problems
