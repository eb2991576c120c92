"""Find the pass, and then the layer, that lost a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compressor.analysis.layer_restoration import (
    LayerSearch,
    LayerTrial,
    MetricEvaluator,
    search_layers,
)
from compressor.artifacts.artifact import Artifact
from compressor.artifacts.runs import RunRecord, kept_run, verified_step
from compressor.data.contract import Dataset, SourceContext
from compressor.engine.plan.pipeline import Pipeline
from compressor.errors import UsageError
from compressor.evaluation.records import Progress
from compressor.runtimes.formats import StoredModel


class PassLoss(BaseModel):
    """Loss of the metric in one step, on the samples of the bisection."""

    model_config = ConfigDict(frozen=True)

    step: str
    pass_name: str
    parent: str
    before: float
    after: float
    lost: float
    """Amount by which the metric got worse; negative if it improved."""


class Bisection(BaseModel):
    """Result of `bisect`."""

    model_config = ConfigDict(frozen=True)

    metric: str
    samples: int
    passes: tuple[PassLoss, ...]
    """Steps of the chain, first to last."""
    culprit: str
    """The step that lost most, or the step that `--within` names."""
    trials: tuple[LayerTrial, ...]
    """Measurements with restored layers, in order."""
    layer: str | None
    """The layer that lost most; None if there is none to name."""
    why_not: str | None = None
    """Why no layer is named."""


@dataclass(frozen=True, slots=True)
class BisectOptions:
    """Options of `bisect`."""

    metric: str | None = None
    """An accuracy metric; None for the first of the pipeline that compares with labels, or else the
    first. One without labels, such as ``kl``, compares with the model at the start of the chain."""
    step: str | None = None
    """Last step of the chain; None: the last step of the run."""
    within: str | None = None
    """Step whose layers are searched; None: the step that lost most."""
    samples: int = 256
    """Number of samples, from the start of the data set."""
    each: bool = False
    """Restore layers one at a time, which measures all of them, instead of bisecting."""


@dataclass(frozen=True, slots=True)
class _Link:
    """A step of the chain and its parent."""

    step: str
    parent: str
    artifact: Artifact
    parent_artifact: Artifact


def bisect(
    run: Path,
    pipeline: Pipeline,
    context: SourceContext,
    options: BisectOptions,
    progress: Progress = lambda *_: None,
) -> Bisection:
    """Measure every step of a chain on the same samples, then search the layers of the worst step.

    Args:
        run: a run, or a store (its last run).
        pipeline: its ``evaluate.accuracy`` names the data set.
        context: base folder, cache and permissions of the data sources.
        options: the metric, and the extent of the search.
        progress: called with a task, the number of steps or trials done, and their total.

    Raises:
        UsageError: there is no such step, no accuracy to measure, or nothing was lost.
    """

    def load_dataset(name: str) -> Dataset:
        return pipeline.data[name].source.load(pipeline.data[name].config, context)

    with kept_run(run) as (folder, record):
        links = _chain(folder, record, options.step)
        evaluator = MetricEvaluator.create(
            pipeline.config.evaluate,
            load_dataset,
            options.metric,
            samples=options.samples,
            threads=pipeline.config.threads,
            start=StoredModel.of(links[0].parent_artifact).runnable()[0],
        )
        losses = _losses(links, _measure_steps(links, evaluator, progress), evaluator)
        worst = _worst_step(losses, options, evaluator.metric)
        link = next(link for link in links if link.step == worst.step)
        search = _search_step(link, worst, evaluator, each=options.each, progress=progress)
        return Bisection(
            metric=evaluator.metric,
            samples=evaluator.samples,
            passes=losses,
            culprit=worst.step,
            trials=search.trials,
            layer=search.layer,
            why_not=search.why_not,
        )


def _chain(folder: Path, record: RunRecord, end: str | None) -> list[_Link]:
    """Return the links from the first step to the step ``end``, verified."""
    steps = {step.name: step for step in record.steps}
    name = end or record.steps[-1].name
    if name not in steps:
        raise UsageError(
            f"there is no step {name!r} in the run", remedy=f"one of {', '.join(steps)}"
        )
    links: list[_Link] = []
    while (parent := steps[name].parent) is not None and parent in steps:
        pair = (verified_step(folder, steps[step], as_measured=False) for step in (name, parent))
        links.insert(0, _Link(name, parent, *pair))
        name = parent
    if not links:
        raise UsageError(f"{name} has no parent: there is no chain of steps to bisect")
    return links


def _measure_steps(
    links: Sequence[_Link], evaluator: MetricEvaluator, progress: Progress
) -> dict[str, float]:
    """Return the metric of each step; a source without metrics is omitted, as often untrained."""
    values: dict[str, float] = {}
    source_id = links[0].parent_artifact.id
    for done, link in enumerate(links):
        progress("passes", done, len(links))
        for name, artifact in ((link.parent, link.parent_artifact), (link.step, link.artifact)):
            is_measured = bool(artifact.manifest.metrics) or artifact.id != source_id
            is_measured = is_measured or evaluator.reference is not None
            if name not in values and is_measured:
                values[name] = evaluator.measure_artifact(artifact)
    return values


def _losses(
    links: Sequence[_Link], values: Mapping[str, float], evaluator: MetricEvaluator
) -> tuple[PassLoss, ...]:
    losses = []
    for link in links:
        if link.parent in values and link.step in values:
            before, after = values[link.parent], values[link.step]
            losses.append(
                PassLoss(
                    step=link.step,
                    pass_name=link.artifact.manifest.pass_.name,
                    parent=link.parent,
                    before=before,
                    after=after,
                    lost=before - after if evaluator.better == "higher" else after - before,
                )
            )
    if not losses:
        raise UsageError("no two steps of the chain were measured", remedy="name another --step")
    return tuple(losses)


def _worst_step(losses: Sequence[PassLoss], options: BisectOptions, metric: str) -> PassLoss:
    candidates = [loss for loss in losses if options.within in {None, loss.step}]
    if not candidates:
        raise UsageError(
            f"--within {options.within}: no such step of the chain was measured",
            remedy=f"one of {', '.join(loss.step for loss in losses)}",
        )
    worst = max(candidates, key=lambda loss: loss.lost)
    if worst.lost <= 0:
        step = "no step" if options.within is None else options.within
        verb = "lost" if options.within is None else "did not lose"
        raise UsageError(f"{step} {verb} {metric} on these samples", remedy="try more --samples")
    return worst


def _search_step(
    link: _Link, loss: PassLoss, evaluator: MetricEvaluator, *, each: bool, progress: Progress
) -> LayerSearch:
    artifacts = (link.parent_artifact, link.artifact)
    formats = [StoredModel.of(artifact).format for artifact in artifacts]
    if not all(format_.restorable_layers for format_ in formats):
        names = " and ".join(format_.name for format_ in formats)
        return LayerSearch(
            why_not=f"layers can be exchanged between torch models only, and these are {names}: "
            "`compare -p` shows the error that each layer adds"
        )
    parent, child = (artifact.model for artifact in artifacts)
    return search_layers(parent, child, evaluator, loss.after, each=each, progress=progress)
