"""Compare two artifacts: their metrics, their manifests, and their layers on samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from compressor.analysis.layerwise import LayerComparison, compare_layers
from compressor.analysis.tensors import TensorDifference
from compressor.artifacts.artifact import Artifact
from compressor.artifacts.manifest import Manifest, Metric
from compressor.data.contract import Batch, SourceContext
from compressor.engine.plan.pipeline import Pipeline
from compressor.errors import UsageError
from compressor.runtimes.call_limit import limit_calls
from compressor.runtimes.formats import StoredModel


class MetricPair(BaseModel):
    """One metric of both artifacts.

    ``change`` is b − a, ``ratio`` is b / a; None where one side lacks the metric, or a is 0.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    unit: str
    better: str
    a: float | None
    b: float | None
    change: float | None
    ratio: float | None
    overlap: bool | None
    """True if the 95 % intervals overlap; None where one side has no interval."""


class Difference(BaseModel):
    """One entry of the manifests that differs."""

    model_config = ConfigDict(frozen=True)

    what: str
    """Path of the entry, such as ``config.epochs``."""
    a: Any
    b: Any


class Comparison(BaseModel):
    """Result of `compare`."""

    model_config = ConfigDict(frozen=True)

    a: str
    b: str
    same_model: bool
    """True if the models are identical, byte for byte."""
    metrics: tuple[MetricPair, ...]
    differences: tuple[Difference, ...]
    tensors: tuple[TensorDifference, ...] | None = None
    """Weights, largest difference first; None without `--tensors`."""
    layers: LayerComparison | None = None
    """Comparison of the layers on samples; None without `--pipeline`."""


def compare_samples(
    a: Artifact,
    b: Artifact,
    pipeline: Pipeline,
    context: SourceContext,
    data: str | None,
    samples: int,
) -> LayerComparison:
    """Compare the layers of two artifacts on samples of a pipeline's data.

    Args:
        a: the artifact to compare with.
        b: the artifact to compare.
        pipeline: its ``data:`` has the data set.
        context: base folder, cache and permissions of the data sources.
        data: name of the data set; by default that of ``evaluate.accuracy``.
        samples: number of samples, from the start of the data set.

    Raises:
        UsageError: there is no such data set, or layers of a format cannot be inspected.
    """
    batch = load_batch(pipeline, context, data, samples)
    threads = pipeline.config.threads
    models = (StoredModel.of(artifact) for artifact in (a, b))
    left, right = (model.format.open_layers(model.path, threads) for model in models)
    with limit_calls(b.model, pipeline.config.evaluate.call_timeout):
        return compare_layers(left, right, batch)


def load_batch(pipeline: Pipeline, context: SourceContext, data: str | None, samples: int) -> Batch:
    """Return the first samples of a data set as one batch.

    Args:
        pipeline: its ``data:`` has the data set.
        context: base folder, cache and permissions of the data sources.
        data: name of the data set; by default that of ``evaluate.accuracy``.
        samples: number of samples.

    Raises:
        UsageError: there is no such data set, or it is empty.
    """
    accuracy = pipeline.config.evaluate.accuracy
    name = data or (accuracy.data if accuracy else None)
    if name is None or name not in pipeline.data:
        raise UsageError(
            f"there is no data set {name!r}", remedy=f"--data, one of {', '.join(pipeline.data)}"
        )
    source, config = pipeline.data[name].source, pipeline.data[name].config
    for batch in source.load(config, context).batches(samples, samples):
        return batch
    raise UsageError(f"the data set {name!r} is empty")


def compare_artifacts(a: Artifact, b: Artifact) -> Comparison:
    """Compare the manifests of two artifacts."""
    left, right = a.manifest, b.manifest
    names = list(dict.fromkeys(metric.name for metric in (*left.metrics, *right.metrics)))
    return Comparison(
        a=a.name,
        b=b.name,
        same_model=left.files == right.files,
        metrics=tuple(_pair(name, left.metric(name), right.metric(name)) for name in names),
        differences=tuple(_differences(_facts(left), _facts(right))),
    )


def _pair(name: str, a: Metric | None, b: Metric | None) -> MetricPair:
    either = a or b
    assert either is not None  # noqa: S101 - one of them has the name
    change = b.value - a.value if a and b else None
    ratio = b.value / a.value if a and b and a.value else None
    overlap = None
    if a and b and None not in (a.low, a.high, b.low, b.high):
        overlap = a.low <= b.high and b.low <= a.high  # type: ignore[operator]
    return MetricPair(
        name=name,
        unit=either.unit,
        better=either.better,
        a=a.value if a else None,
        b=b.value if b else None,
        change=change,
        ratio=ratio,
        overlap=overlap,
    )


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": manifest.format,
        "pass": f"{manifest.pass_.name} version {manifest.pass_.version}",
        "config": manifest.pass_.config,
        "seed": manifest.seed,
        "model bytes": manifest.model_bytes,
        "parents": {role: parent[:12] for role, parent in manifest.parents.items()},
        "tools": manifest.tools,
        "data": {name: digest[:12] for name, digest in manifest.data.items()},
        "environment": manifest.environment.model_dump(),
    }


def _differences(
    a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = ""
) -> Iterator[Difference]:
    for key in dict.fromkeys((*a, *b)):
        left, right = a.get(key), b.get(key)
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _differences(left, right, path)
        elif left != right:
            yield Difference(what=path, a=left, b=right)
