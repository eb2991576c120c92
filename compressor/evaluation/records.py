"""The ``evaluate:`` section of pipeline.yaml, and the reports of a measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from compressor.artifacts.manifest import Metric
from compressor.config.record import BatchSize, DataName, LeftOutOfIds, Record, StepName

Progress = Callable[[str, int, int], None]
"""Called with a task, the number of samples, calls or layers done, and their total."""


TEXT_METRICS = frozenset({"wer", "cer"})
"""Metrics that compare texts."""


class AccuracyConfig(Record):
    """Measurement of accuracy."""

    data: DataName
    """Data set to measure on; the samples are the same for every artifact."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("top1",)
    """Metrics. With labels: `top1`, `mrr` (mean reciprocal rank), `cross_entropy` (nats) and
    `perplexity` for classes, `recall@1`, `recall@10` and so on for retrieval by embeddings, `mse`
    and `spearman` (rank correlation) for one score per sample, and `wer` and `cer` (error rates of
    words and characters) for the texts that an encoder-decoder generates, or that speech
    recognition by CTC spells. With `reference`: `agreement` and `kl` (nats) for classes, `cosine`,
    `max_abs` (the largest difference) and `relative_error` for the values of any output, and
    `correlation` for one score per sample. A name such as `cosine:pred_boxes` also names the output
    that is scored; by default that is `logits`, or embeddings, or the only output. Probabilities
    are taken as such: `kl:output_0` compares them without a softmax. Embeddings are scored on
    retrieval: each query by its nearest passages, and with `reverse_recall@1` each passage by its
    nearest queries. Of a model of images and texts, `recall@1:text_embeds` finds the image of each
    text, and `recall@1:image_embeds` a text of each image."""
    reference: StepName | None = None
    """Step or artifact directory whose outputs are compared with; default: `source`."""
    batch_size: BatchSize = 64
    """Samples per call; the logits of one call are in memory at once."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of samples, from the start of the data set; default: all."""
    bootstrap: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    """Number of bootstrap resamples for the 95 % interval; 0: no interval."""
    normalize: Annotated[bool, LeftOutOfIds()] = False
    """Compare texts for `wer` and `cer` in lower case, without punctuation and text in brackets."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000), LeftOutOfIds()] = 256
    """Largest number of tokens that are generated for each sample, for `wer` and `cer`; fewer where
    the decoder takes fewer."""

    @field_validator("metrics")
    @classmethod
    def _each_once(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({name for name in metrics if metrics.count(name) > 1}):
            raise ValueError(f"{', '.join(repeated)}: named more than once")
        return metrics

    @model_validator(mode="after")
    def _check_effects(self) -> AccuracyConfig:
        compares_texts = any(name.partition(":")[0] in TEXT_METRICS for name in self.metrics)
        fields = type(self).model_fields
        # A value that differs, since messages between processes set every field.
        without = [
            name
            for name in ("normalize", "max_tokens")
            if getattr(self, name) != fields[name].default
        ]
        if without and not compares_texts:
            names = " and ".join(f"`{name}`" for name in without)
            raise ValueError(f"{names} have no effect without the metrics `wer` or `cer`")
        return self

    def sample_count(self, size: int) -> int:
        """Return the number of samples that are measured of a data set with ``size`` samples."""
        return size if self.num_samples is None else min(self.num_samples, size)


class LatencyConfig(Record):
    """Measurement of latency and peak memory."""

    data: DataName | None = None
    """Data set whose samples are fed to the model; default: that of `accuracy`."""
    batch_size: BatchSize = 1
    """Samples per call."""
    warmup: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    """Number of calls before timing starts."""
    repeats: Annotated[int, Field(ge=2, le=1_000_000)] = 100
    """Number of timed calls."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """Number of threads of the runtime."""


class EnergyConfig(Record):
    """Measurement of energy."""

    seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """Time for which the calls of `latency` are repeated; counters are too coarse for one call."""


class EvaluateConfig(Record):
    """Measurements of every artifact."""

    accuracy: AccuracyConfig | None = None
    """Accuracy on a data set and its slices, with 95 % intervals; default: not measured."""
    latency: LatencyConfig | None = None
    """Latency percentiles, throughput and peak memory, in a process of its own; default: not
    measured."""
    energy: Annotated[EnergyConfig | None, LeftOutOfIds()] = None
    """Joules per sample by the counters of the machine (RAPL, NVML, a battery), idle power
    included, over calls as for `latency`; nothing is estimated where there is no counter."""
    call_timeout: Annotated[float | None, Field(gt=0, le=1_000_000), LeftOutOfIds()] = None
    """Seconds that one call of a model may take before measuring fails, or the calibration or
    comparison of a pass, since a graph may loop without end; by default ten minutes, and 0.2 s for
    each megabyte of the model and each sample of a batch."""

    @model_validator(mode="after")
    def _check_energy(self) -> EvaluateConfig:
        if self.energy is not None and self.latency is None:
            raise ValueError("`energy` needs `latency`, whose calls it repeats")
        return self

    def without_accuracy(self) -> EvaluateConfig:
        """Return the section without accuracy; latency keeps the data set it is measured on."""
        latency = self.latency
        if latency is not None and latency.data is None and self.accuracy is not None:
            latency = latency.model_copy(update={"data": self.accuracy.data})
        return self.model_copy(update={"accuracy": None, "latency": latency})


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AccuracyReport(_Report):
    """``reports/accuracy.json``."""

    data: str
    samples: int
    """Samples with a label that is scored; all samples if there are no labels."""
    metrics: tuple[Metric, ...]
    """Metrics of the whole data set, then those of slices, such as ``top1[input=speech]``."""
    slices: dict[str, dict[str, int]]
    """Axis to slice to number of samples."""
    predictions: tuple[int, ...]
    """Class of the largest logit of each sample; empty unless a sample has one label."""
    labels: tuple[int, ...]
    """Label of each sample; empty unless a sample has one label."""
    values: dict[str, tuple[float, ...]] = {}
    """Metric to its value for each sample that it scores, in order, for paired comparisons."""
    reference: str | None = None
    """Id of the artifact that is compared with."""
    stand_in: str | None = None
    """Why another model was run in place of this one, such as an engine's ONNX graph; else None."""
    notes: tuple[str, ...] = ()
    """Interpretation of outputs whose names do not state it, such as probabilities."""


class EnergyReport(_Report):
    """Energy of repeated calls."""

    meter: str | None
    """The counters that were read; None if this machine has none, and nothing was measured."""
    joules: float = 0.0
    seconds: float = 0.0
    samples: int = 0


class LatencyReport(_Report):
    """``reports/latency.json``."""

    runtime: str
    """Name and version, such as ``onnxruntime 1.32.0``."""
    batch_size: int
    threads: int
    warmup: int
    metrics: tuple[Metric, ...]
    milliseconds: tuple[float, ...]
    """Duration of every timed call, in order."""
    other_cores: float | None = None
    """Mean number of cores that other processes kept busy; much above 0, latency is overstated."""
    energy: EnergyReport | None = None
    """Energy of the same calls; None if `evaluate` has no `energy`."""


class Measurement(_Report):
    """Everything that was measured of a model."""

    accuracy: AccuracyReport | None
    latency: LatencyReport | None
    metrics: tuple[Metric, ...]
    """Metrics of both reports, then size, parameters and MACs, then the format's own."""
    stand_in: str | None = None
    """See ``AccuracyReport``; latency is not measured if it is set."""
