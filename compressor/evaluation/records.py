"""The ``evaluate:`` section of pipeline.yaml, and the reports of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    `max_abs` (the largest difference) and `relative_error` for the values of any output, `equal`
    (the share of equal values) for class ids and other integers, and
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


class GenerationConfig(Record):
    """Measurement of text generation, token by token, with one sequence."""

    data: DataName | None = None
    """Data set of texts, from whose tokens prompts are cut; default: that of `accuracy`."""
    prompt_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Tokens of each prompt."""
    new_tokens: Annotated[int, Field(ge=2, le=1_000_000)] = 64
    """Tokens generated after each prompt: the most probable ones, past the end of an answer too."""
    repeats: Annotated[int, Field(ge=1, le=100_000)] = 6
    """Number of timed answers; from 6 on, medians have 95 % intervals. One more is not timed."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """Number of threads of the runtime."""

    def context_problems(self, context_length: int) -> Iterator[tuple[str, str]]:
        """Yield a problem and its remedy if prompt and answer exceed a model's context."""
        tokens = self.prompt_tokens + self.new_tokens
        if tokens > context_length:
            yield (
                f"prompt and answer have {tokens} tokens; the model's context has {context_length}",
                "lower `prompt_tokens` or `new_tokens` in `evaluate.generation`",
            )


class EvaluateConfig(Record):
    """Measurements of every artifact."""

    accuracy: AccuracyConfig | None = None
    """Accuracy on a data set and its slices, with 95 % intervals; default: not measured."""
    latency: LatencyConfig | None = None
    """Latency percentiles, throughput and peak memory, in a process of its own; default: not
    measured."""
    generation: Annotated[GenerationConfig | None, LeftOutOfIds()] = None
    """Time to the first token, tokens per second, size of the key-value cache and peak memory of
    models that generate text, in a process of its own; default: not measured."""
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

    @property
    def measures_nothing(self) -> bool:
        """True without accuracy, latency and generation."""
        return self.accuracy is None and self.latency is None and self.generation is None

    def without_accuracy(self) -> EvaluateConfig:
        """Return the section without accuracy; the rest keeps the data set it is measured on."""
        if self.accuracy is None:
            return self
        data = {"data": self.accuracy.data}
        latency, generation = self.latency, self.generation
        if latency is not None and latency.data is None:
            latency = latency.model_copy(update=data)
        if generation is not None and generation.data is None:
            generation = generation.model_copy(update=data)
        changes = {"accuracy": None, "latency": latency, "generation": generation}
        return self.model_copy(update=changes)


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


class GenerationReport(_Report):
    """``reports/generation.json``."""

    reason: str | None = None
    """Why generation was not measured, such as that the model does not generate; else None."""
    runtime: str | None = None
    """The runtime, such as ``ONNX Runtime``; None if generation was not measured."""
    prompt_tokens: int = 0
    new_tokens: int = 0
    threads: int = 0
    metrics: tuple[Metric, ...] = ()
    first_token_ms: tuple[float, ...] = ()
    """Time from the prompt to the first token, of every timed answer in order."""
    tokens_per_second: tuple[float, ...] = ()
    """Tokens per second after the first one, of every timed answer in order."""
    other_cores: float | None = None
    """Mean number of cores that other processes kept busy; much above 0, times are overstated."""


class Measurement(_Report):
    """Everything that was measured of a model."""

    accuracy: AccuracyReport | None
    latency: LatencyReport | None
    generation: GenerationReport | None = None
    metrics: tuple[Metric, ...]
    """Metrics of these reports, then size, parameters and MACs, then the format's own."""
    stand_in: str | None = None
    """See ``AccuracyReport``; latency is not measured if it is set."""

    @property
    def notes(self) -> tuple[str, ...]:
        """How outputs were interpreted, and what was not measured."""
        notes = self.accuracy.notes if self.accuracy else ()
        reason = self.generation.reason if self.generation else None
        return notes if reason is None else (*notes, f"generation is not measured: {reason}")
