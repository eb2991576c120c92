"""A model and a target in, what goes and what stays out; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from compressor.artifacts.store import Artifact
from compressor.config.record import Record
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import Axis, AxisKind, CuttableAxes
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.contract import Family
from passes.prune.allocation import widths_of
from passes.prune.memory import recomputed
from passes.prune.schedule import Stage
from passes.prune.scoring import Calibration, opened_calibration, scored
from passes.prune.sizes import Choice, Start, macs, parameters, units_of_widths
from passes.prune.speed import Clock, check_faster
from passes.prune.step import PruneConfig


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as it is now."""

    family: Family[Any]
    config: Record
    module: nn.Module


def subject_of(artifact: Artifact, device: str) -> Subject:
    """The model of an artifact."""
    model = read_description(artifact.model)
    return Subject(model.family, model.config, load_module(model, device))


@dataclass(frozen=True, slots=True)
class PlannedCut:
    """What goes and what stays."""

    subject: Subject
    after: Record
    calibration: Calibration | None
    axes: tuple[Axis, ...]
    kept: Mapping[str, Tensor]
    """Axis name to the units that stay, for axes that are cut."""
    scores: Mapping[str, Tensor]
    milliseconds: tuple[float, float] | None
    """Of all operators together before and after, where they were timed."""
    start: Start

    def rows(self) -> Iterator[dict[str, Any]]:
        """For each axis its dimension before and after, and the part of its importance that is kept; then the whole model."""
        for axis in self.axes:
            score, kept = self.scores[axis.name], self.kept.get(axis.name)
            if kept is None:
                yield row(axis.name, axis.label, axis.units, axis.units, 1.0)
            else:
                share = float(
                    score[kept].sum() / score.sum().clamp(min=torch.finfo(score.dtype).tiny)
                )
                yield row(axis.name, axis.label, axis.units, len(kept), share)
        for name, count in (("parameters", parameters), ("macs", macs)):
            before, after = (
                count(self.subject.family, config) for config in (self.subject.config, self.after)
            )
            yield row("all", name, before, after, after / max(before, 1))
        if self.milliseconds is not None:
            before_ms, after_ms = self.milliseconds
            yield row(
                "all",
                "operators_ms",
                before_ms,
                after_ms,
                after_ms / before_ms if before_ms else 1.0,
            )


def row(axis: str, field: str, before: float, after: float, kept: float) -> dict[str, Any]:
    """A line of the dry run's table."""
    return {"axis": axis, "field": field, "before": before, "after": after, "kept": kept}


def planned_cut(
    config: PruneConfig,
    subject: Subject,
    context: PassContext,
    clock: Clock | None,
    stage: Stage,
    start: Start | None,
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
    family, architecture, module = subject.family, subject.config, subject.module
    every = family.require(CuttableAxes, architecture).axes
    axes = _axes(config, family, every)
    calibration = opened_calibration(config, family, architecture, module, context)
    with recomputed(module, {axis.stack for axis in every if axis.stack}):
        scores = scored(config, module, axes, calibration)
    arrays = {name: score.numpy() for name, score in scores.items()}
    whole = None if start is None else start.units
    widths = widths_of(
        axes, arrays, multiple=config.multiple, min_keep=config.min_keep, whole=whole
    )
    milliseconds = None if clock is None else clock.operators(module, widths)
    ranked = {
        name: score.argsort(descending=True, stable=True).tolist() for name, score in scores.items()
    }
    choice = Choice(family, architecture, widths, config.target, milliseconds, ranked)
    start = start or choice.start()
    if stage.first or stage.last:
        sizes = choice.final(start)
        if milliseconds is not None and start.milliseconds is not None:
            check_faster(widths, sizes, milliseconds, start.milliseconds)
    if not stage.last:
        sizes = choice.after(stage, config.schedule, start, arrays)
    kept = {name: torch.tensor(units) for name, units in choice.chosen(sizes).items()}
    after = choice.resized(sizes)
    timed = (
        None
        if milliseconds is None
        else (milliseconds(units_of_widths(widths)), milliseconds(sizes))
    )
    if clock is not None:
        clock.table.save()
    return PlannedCut(subject, after, calibration, axes, kept, scores, timed, start)


def _axes(config: PruneConfig, family: Family[Any], every: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """What may be cut, with what goes with it."""
    every = tuple(axis for axis in every if axis.units > 0)
    wanted = get_args(AxisKind) if config.target.dimensions is not None else config.axes
    coupled = {axis.width for axis in every if axis.width and axis.kind in wanted}
    axes = tuple(axis for axis in every if axis.kind in wanted or axis.width in coupled)
    if not axes:
        known = sorted({axis.kind for axis in every})
        raise RequirementError(
            f"this {family.name} has no {', '.join(config.axes)} to cut",
            remedy=f"it has {', '.join(known) or 'no axes at all'}",
        )
    return axes
