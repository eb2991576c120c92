"""What ``evaluate:`` asks for, and what measuring answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from compressor.artifacts.manifest import Metric
from compressor.config.record import DataName, Record, StepName


class AccuracyConfig(Record):
    """How accuracy is measured."""

    data: DataName
    """The set that is measured on; its samples are the same for every artifact."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("top1",)
    """Names of metrics: `top1`, `mrr` (mean reciprocal rank), `cross_entropy`, `perplexity`; `agreement`, `kl` and, of
    embeddings, `cosine` compare with `reference`. A model with embeddings alone answers a query with the nearest passage."""
    reference: StepName | None = None
    """Whose answers `agreement`, `kl` and `cosine` take as right: a step or an artifact directory; by default `source`."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Samples per call; the logits of one call are in memory at once."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """At most so many samples, from the start of the set; all of them by default."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples for the 95 % interval."""


class LatencyConfig(Record):
    """How latency is measured."""

    data: DataName | None = None
    """The set whose samples are fed; by default that of `accuracy`."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Samples per call."""
    warmup: Annotated[int, Field(ge=0)] = 10
    """Calls before the clock runs."""
    repeats: Annotated[int, Field(ge=2)] = 100
    """Calls that are timed, each by itself."""
    threads: Annotated[int, Field(ge=1)] = 2
    """Threads the runtime may use."""


class EvaluateConfig(Record):
    """What is measured of every artifact."""

    accuracy: AccuracyConfig | None = None
    """Accuracy, by slices, with a bootstrap interval."""
    latency: LatencyConfig | None = None
    """Latency percentiles, throughput and peak memory, in a process of its own."""

    def without_accuracy(self) -> EvaluateConfig:
        """Latency alone, of the samples that it would be measured on anyway."""
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
    """Those of which a label counts; all of them where there are no labels."""
    metrics: tuple[Metric, ...]
    """Whole-set metrics first, then those of slices, as ``top1[input=speech]``."""
    slices: dict[str, dict[str, int]]
    """Axis to slice to number of samples."""
    predictions: tuple[int, ...]
    """The largest logit of each sample; empty unless a sample has one label."""
    labels: tuple[int, ...]
    """Empty unless a sample has one."""
    values: dict[str, tuple[float, ...]] = {}
    """Metric to what it is of each sample that it counts, in order: two reports of the same samples are compared in pairs."""
    reference: str | None = None
    """Id of the artifact whose answers count as right for `agreement` and `kl`."""
    stand_in: str | None = None
    """Why the model itself did not answer, and the ONNX graph it was built from did, in ONNX Runtime; None where it answered."""


class LatencyReport(_Report):
    """``reports/latency.json``."""

    runtime: str
    """As ``onnxruntime 1.32.0`` or ``torch 2.13.0``."""
    batch_size: int
    threads: int
    warmup: int
    metrics: tuple[Metric, ...]
    milliseconds: tuple[float, ...]
    """Every timed call, in order."""
    other_cores: float | None = None
    """Cores that other processes kept busy meanwhile; much above 0, and the figures are not the model's alone."""


class Measurement(_Report):
    """All that was measured of one artifact."""

    accuracy: AccuracyReport | None
    latency: LatencyReport | None
    metrics: tuple[Metric, ...]
    """All of both reports, and size, parameters and MACs; `executed` of an engine: 1 where it ran, 0 where its graph stood in."""
    stand_in: str | None = None
    """As in ``AccuracyReport``: latency was not measured then."""
