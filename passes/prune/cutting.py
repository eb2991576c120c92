"""One cut: score every unit, choose how many stay, and build the smaller model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from compressor.artifacts.store import Artifact
from compressor.config import discovery
from compressor.config.record import Record
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.models.axes import Axis, AxisKind
from compressor.models.contract import Family
from compressor.models.loading import load_module, read_description
from passes.common.accuracy import device_of
from passes.prune.allocation import Cost, Width, widths_of
from passes.prune.schedule import Stage
from passes.prune.scoring import scores_of
from passes.prune.speed import Clock, check_faster
from passes.prune.step import PruneConfig
from passes.prune.surgery import without
from passes.prune.targets import Start, cost_of, fields_of, macs_of, parameters_of, sizes_after, sizes_of


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as it is now."""

    family: Family[Any]
    config: Record
    module: nn.Module


def subject_of(artifact: Artifact, device: str) -> Subject:
    """The model of an artifact."""
    name, config = read_description(artifact.model)
    return Subject(discovery.load(discovery.FAMILIES, name), config, load_module(artifact.model, device))


def built(family: Family[Any], config: Record, weights: Mapping[str, Tensor], device: str) -> Subject:
    """The model of a config with these weights."""
    with torch.random.fork_rng(devices=[]):
        module = family.build(config)
    module.load_state_dict(weights)
    return Subject(family, config, module.eval().to(device))


@dataclass(frozen=True, slots=True)
class PlannedCut:
    """What goes and what stays."""

    subject: Subject
    after: Record
    axes: tuple[Axis, ...]
    kept: Mapping[str, Tensor]
    """Axis name to the units that stay, for axes that are cut."""
    scores: Mapping[str, Tensor]
    milliseconds: tuple[float, float] | None
    """Of all operators together before and after, where they were timed."""
    start: Start

    def done(self) -> Subject:
        """The smaller model."""
        weights = without(self.subject.module.state_dict(), self.axes, self.kept)
        return built(self.subject.family, self.after, weights, str(device_of(self.subject.module)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """For each axis its dimension before and after, and the part of its importance that is kept; then the whole model."""
        for axis in self.axes:
            score, kept = self.scores[axis.name], self.kept.get(axis.name)
            if kept is None:
                yield row(axis.name, axis.label, axis.units, axis.units, 1.0)
            else:
                share = float(score[kept].sum() / score.sum().clamp(min=torch.finfo(score.dtype).tiny))
                yield row(axis.name, axis.label, axis.units, len(kept), share)
        for name, count in (("parameters", parameters_of), ("macs", macs_of)):
            before, after = (count(self.subject.family, config) for config in (self.subject.config, self.after))
            yield row("all", name, before, after, after / max(before, 1))
        if self.milliseconds is not None:
            before_ms, after_ms = self.milliseconds
            yield row("all", "operators_ms", before_ms, after_ms, after_ms / before_ms if before_ms else 1.0)


def row(axis: str, field: str, before: float, after: float, kept: float) -> dict[str, Any]:
    """A line of the dry run's table."""
    return {"axis": axis, "field": field, "before": before, "after": after, "kept": kept}


def planned_cut(
    config: PruneConfig, subject: Subject, context: PassContext, clock: Clock | None, stage: Stage, start: Start | None
) -> PlannedCut:
    """Score every unit and choose.

    Args:
        config: of the pass.
        subject: the parent, or what earlier rounds left of it.
        context: of the pass.
        clock: times operators, where the config asks for it.
        stage: which round this is.
        start: what the first round found of the parent; None in the first.

    Raises:
        RequirementError: nothing can be cut, or the target cannot be met; the first round tells it for all.
    """
    axes = _axes(config, subject)
    scores = scores_of(config, subject.family, subject.module, axes, context)
    arrays = {name: score.numpy() for name, score in scores.items()}
    widths = widths_of(
        axes, arrays, multiple=config.multiple, min_keep=config.min_keep, whole=start.units if start else None
    )
    milliseconds = None if clock is None else clock.operators(subject.module, widths)
    cost = cost_of(config.target, subject.family, subject.config, widths, milliseconds)
    start = start or _start(widths, cost, milliseconds)
    if stage.first or stage.last:
        sizes = sizes_of(config.target, start, widths, cost)
        if milliseconds is not None and start.milliseconds is not None:
            check_faster(widths, sizes, milliseconds, start.milliseconds)
    if not stage.last:
        sizes = sizes_after(stage, config.schedule, config.target, start, widths, arrays, cost)
    kept = {
        axis.name: scores[axis.name].argsort(descending=True, stable=True)[: sizes[width.label]].sort().values
        for width in widths
        if sizes[width.label] < width.units
        for axis in width.axes
    }
    after = subject.family.resized(subject.config, fields_of(widths, sizes))
    timed = None if milliseconds is None else (milliseconds(_units(widths)), milliseconds(sizes))
    if clock is not None:
        clock.table.save()
    return PlannedCut(subject, after, axes, kept, scores, timed, start)


def _axes(config: PruneConfig, subject: Subject) -> tuple[Axis, ...]:
    every = subject.family.axes(subject.config)
    wanted = get_args(AxisKind) if config.target.dimensions is not None else config.axes
    axes = tuple(axis for axis in every if axis.kind in wanted and axis.units > 0)
    if not axes:
        known = sorted({axis.kind for axis in every})
        raise RequirementError(
            f"this {subject.family.name} has no {', '.join(config.axes)} to cut",
            remedy=f"it has {', '.join(known) or 'no axes at all'}",
        )
    return axes


def _units(widths: tuple[Width, ...]) -> dict[str, int]:
    return {width.label: width.units for width in widths}


def _start(widths: tuple[Width, ...], cost: Cost | None, milliseconds: Cost | None) -> Start:
    units = _units(widths)
    return Start(units, None if cost is None else cost(units), None if milliseconds is None else milliseconds(units))
