"""Two artifacts side by side: metrics, sizes, and all that differs in how they came to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from compressor.analysis.layerwise import LayerComparison, compare_layers
from compressor.analysis.tensors import TensorDifference, tensor_differences
from compressor.artifacts.manifest import Manifest, Metric
from compressor.artifacts.store import Artifact
from compressor.data.contract import Batch, SourceContext
from compressor.engine.plan.pipeline import Pipeline
from compressor.errors import UsageError
from compressor.runtimes.formats import StoredModel


class MetricPair(BaseModel):
    """One metric of both artifacts; ``change`` is b − a, ``ratio`` b / a; None where one side lacks it or a is 0."""

    model_config = ConfigDict(frozen=True)

    name: str
    unit: str
    better: str
    a: float | None
    b: float | None
    change: float | None
    ratio: float | None
    overlap: bool | None
    """Whether the 95 % intervals overlap; None where one side has none."""


class Difference(BaseModel):
    """One thing that is not the same in both."""

    model_config = ConfigDict(frozen=True)

    what: str
    a: Any
    b: Any


class Comparison(BaseModel):
    """The whole."""

    model_config = ConfigDict(frozen=True)

    a: str
    b: str
    same_model: bool
    """Whether the models are byte for byte the same."""
    metrics: tuple[MetricPair, ...]
    differences: tuple[Difference, ...]
    tensors: tuple[TensorDifference, ...] | None = None
    """Weights, those that differ most first; None where they were not asked for."""
    layers: LayerComparison | None = None
    """Layer by layer, where samples were given."""


def tensors_of_both(a: Artifact, b: Artifact) -> tuple[TensorDifference, ...]:
    """The weights of two artifacts, those that differ most first."""
    return tensor_differences(StoredModel.of(a), StoredModel.of(b))


def layers_of_both(
    a: Artifact,
    b: Artifact,
    pipeline: Pipeline,
    context: SourceContext,
    data: str | None,
    samples: int,
) -> LayerComparison:
    """Two artifacts layer by layer.

    Args:
        a: what is compared with.
        b: what is compared.
        pipeline: whose ``data:`` gives the samples.
        context: what its data sources may use.
        data: the set; by default that of ``evaluate.accuracy``.
        samples: how many, from the start of the set.

    Raises:
        UsageError: the set is not there, or the two cannot be looked at layer by layer.
    """
    batch = samples_of_set(pipeline, context, data, samples)
    threads = pipeline.config.threads
    models = (StoredModel.of(artifact) for artifact in (a, b))
    left, right = (model.format.open_layers(model.path, threads) for model in models)
    return compare_layers(left, right, batch)


def samples_of_set(
    pipeline: Pipeline, context: SourceContext, data: str | None, samples: int
) -> Batch:
    """The first samples of a set, by default that of ``evaluate.accuracy``, as one batch.

    Raises:
        UsageError: there is no such set, or nothing in it.
    """
    accuracy = pipeline.config.evaluate.accuracy
    name = data or (accuracy.data if accuracy else None)
    if name is None or name not in pipeline.data:
        raise UsageError(
            f"there is no set {name!r}", remedy=f"--data, one of {', '.join(pipeline.data)}"
        )
    one = pipeline.data[name]
    for batch in one.source.load(one.config, context).batches(samples, samples):
        return batch
    raise UsageError(f"the set {name!r} is empty")


def compare(a: Artifact, b: Artifact) -> Comparison:
    """Compare two artifacts by their manifests."""
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
    assert either is not None  # noqa: S101 - the name came from one of them
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


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], at: str = "") -> Iterator[Difference]:
    for key in dict.fromkeys((*a, *b)):
        left, right = a.get(key), b.get(key)
        where = f"{at}.{key}" if at else str(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _differences(left, right, where)
        elif left != right:
            yield Difference(what=where, a=left, b=right)
