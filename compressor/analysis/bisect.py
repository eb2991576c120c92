"""Which pass lost an accuracy, and then which layer: those of the float parent are put back, and the model is measured again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compressor.analysis.layer_restoration import LayerTrial, Ruler, search_layers
from compressor.artifacts.runs import RunRecord, find_run
from compressor.artifacts.store import Artifact, open_artifact, verify
from compressor.data.contract import Dataset, SourceContext
from compressor.engine.plan.pipeline import Pipeline
from compressor.errors import UsageError
from compressor.runtimes.formats import StoredModel

Progress = Callable[[str, int, int], None]


class PassLoss(BaseModel):
    """What one step lost of the metric; on the samples of the bisection, or as recorded."""

    model_config = ConfigDict(frozen=True)

    step: str
    pass_name: str
    parent: str
    before: float
    after: float
    lost: float
    """How much worse it became; below 0, better."""


class Bisection(BaseModel):
    """The whole."""

    model_config = ConfigDict(frozen=True)

    metric: str
    samples: int
    passes: tuple[PassLoss, ...]
    """From the first step to the last."""
    culprit: str
    """The step that lost most."""
    trials: tuple[LayerTrial, ...]
    """Layers put back, and what the metric was then; in the order in which they were tried."""
    layer: str | None
    """The layer that lost most; None where none can be put back."""
    why_not: str | None = None
    """Why no layer can be put back."""


@dataclass(frozen=True, slots=True)
class _Link:
    step: str
    parent: str
    child: Artifact
    reads: Artifact


def bisect(
    run: Path,
    metric: str,
    pipeline: Pipeline,
    context: SourceContext,
    *,
    step: str | None = None,
    within: str | None = None,
    samples: int = 256,
    each: bool = False,
    progress: Progress = lambda *_: None,
) -> Bisection:
    """Look down the chain of a run, measuring every link on the same samples, then into the link that lost most.

    Args:
        run: a run, or a store (its last run).
        metric: as ``top1``.
        pipeline: whose ``evaluate.accuracy`` says on what set.
        context: what its data sources may use.
        step: the end of the chain; by default the last step.
        within: look for the layer in this step; by default in the one that lost most.
        samples: how many, from the start of the set.
        each: put layers back one at a time, which tells of all of them; otherwise by halves, which finds the worst sooner.
        progress: called as (what, done, total).

    Raises:
        UsageError: there is no such step, no accuracy to measure, or nothing was lost.
    """

    def load_set(name: str) -> Dataset:
        return pipeline.data[name].source.load(pipeline.data[name].config, context)

    folder, record = find_run(run)
    links = _chain(folder.parent.parent, record, step)
    ruler = Ruler.of(pipeline.config.evaluate, load_set, pipeline.config.threads, metric, samples)
    figures: dict[str, float] = {}
    for at, link in enumerate(links):
        progress("passes", at, len(links))
        for name, artifact in ((link.parent, link.reads), (link.step, link.child)):
            if name not in figures and _is_measurable(artifact, links):
                figures[name] = ruler.of_artifact(artifact)
    losses = _losses(links, figures, ruler)
    worst = max(
        (one for one in losses if within in {None, one.step}),
        key=lambda one: one.lost,
        default=None,
    )
    if worst is None:
        raise UsageError(
            f"--within {within}: no such step of the chain was measured",
            remedy=f"one of {_names(losses)}",
        )
    if worst.lost <= 0:
        told = f"no step lost {metric}" if within is None else f"{within} lost no {metric}"
        raise UsageError(f"{told} on these samples", remedy="try more --samples")
    (link,) = (one for one in links if one.step == worst.step)
    formats = [StoredModel.of(artifact).format for artifact in (link.reads, link.child)]
    if not all(format_.restorable_layers for format_ in formats):
        names = " and ".join(format_.name for format_ in formats)
        why = (
            f"layers can be exchanged between torch models only, and these are {names}: "
            "`compare -p` shows the error that each layer adds"
        )
        found: tuple[tuple[LayerTrial, ...], str | None, str | None] = ((), None, why)
    else:
        folders = (link.reads.model, link.child.model)
        found = search_layers(*folders, ruler, worst.after, each=each, progress=progress)
    return Bisection(
        metric=metric,
        samples=ruler.samples,
        passes=losses,
        culprit=worst.step,
        trials=found[0],
        layer=found[1],
        why_not=found[2],
    )


def _chain(root: Path, record: RunRecord, end: str | None) -> list[_Link]:
    """The links from the first step to the last."""
    steps = {step.name: step for step in record.steps}
    name = end or record.steps[-1].name
    if name not in steps:
        raise UsageError(
            f"there is no step {name!r} in the run", remedy=f"one of {', '.join(steps)}"
        )
    links: list[_Link] = []
    while (parent := steps[name].parent) is not None and parent in steps:
        child, reads = (open_artifact(root / steps[one].artifact) for one in (name, parent))
        links.insert(0, _Link(name, parent, child, reads))
        name = parent
    for link in links:
        verify(link.child)
    if not links:
        raise UsageError(f"{name} was made from nothing: there is no chain to look down")
    return links


def _is_measurable(artifact: Artifact, links: list[_Link]) -> bool:
    """A source that is not measured is often not trained at all."""
    return bool(artifact.manifest.metrics) or artifact.id != links[0].reads.id


def _losses(links: list[_Link], figures: dict[str, float], ruler: Ruler) -> tuple[PassLoss, ...]:
    found = []
    for link in links:
        if link.parent in figures and link.step in figures:
            before, after = figures[link.parent], figures[link.step]
            lost = before - after if ruler.better == "higher" else after - before
            name = link.child.manifest.pass_.name
            found.append(
                PassLoss(
                    step=link.step,
                    pass_name=name,
                    parent=link.parent,
                    before=before,
                    after=after,
                    lost=lost,
                )
            )
    if not found:
        raise UsageError("no two steps of the chain were measured", remedy="name another --step")
    return tuple(found)


def _names(losses: tuple[PassLoss, ...]) -> str:
    return ", ".join(one.step for one in losses)
