"""A model and a target in, what goes and what stays out; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from compressor.artifacts.store import Artifact
from compressor.config import discovery
from compressor.config.record import Record
from compressor.data.contract import SourceContext
from compressor.engine.contract import PassContext
from compressor.errors import RequirementError
from compressor.models.axes import Axis, AxisKind
from compressor.models.contract import Family
from compressor.models.loading import load_module, read_description
from passes.common.accuracy import device_of, tensors_from_batch
from passes.common.setup import prepare_torch
from passes.prune.allocation import Width, widths_of
from passes.prune.latency import LatencyTable, Operator, latency_of, operators_of
from passes.prune.scoring import Calibration, opened_calibration, scored
from passes.prune.sizes import fields_of, macs, parameters, sizes_for
from passes.prune.step import PruneConfig


@dataclass(frozen=True, slots=True)
class PlannedCut:
    """What goes and what stays."""

    family: Family[Any]
    before: Record
    after: Record
    module: nn.Module
    calibration: Calibration | None
    axes: tuple[Axis, ...]
    kept: Mapping[str, Tensor]
    """Axis name to the units that stay, for axes that are cut."""
    scores: Mapping[str, Tensor]
    latency: tuple[float, float] | None
    """Milliseconds of all operators together before and after, where they were timed."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """For each axis its dimension before and after, and the part of its importance that is kept; then the whole model."""
        for axis in self.axes:
            score, kept = self.scores[axis.name], self.kept.get(axis.name)
            if kept is None:
                yield _row(axis.name, axis.label, axis.units, axis.units, 1.0)
            else:
                share = float(score[kept].sum() / score.sum().clamp(min=torch.finfo(score.dtype).tiny))
                yield _row(axis.name, axis.label, axis.units, len(kept), share)
        for name, count in (("parameters", parameters), ("macs", macs)):
            before, after = count(self.family, self.before), count(self.family, self.after)
            yield _row("all", name, before, after, after / max(before, 1))
        if self.latency is not None:
            yield _row("all", "operators_ms", *self.latency, self.latency[1] / self.latency[0])


def _row(axis: str, field: str, before: float, after: float, kept: float) -> dict[str, Any]:
    return {"axis": axis, "field": field, "before": before, "after": after, "kept": kept}


def planned_cut(config: PruneConfig, parent: Artifact, context: PassContext) -> PlannedCut:
    """Score every unit and choose.

    Raises:
        RequirementError: nothing can be cut, or the target cannot be met.
        DataError: the calibration set lacks what the importance needs.
    """
    prepare_torch(context)
    name, architecture = read_description(parent.model)
    family: Family[Any] = discovery.load(discovery.FAMILIES, name)
    axes = _axes(config, family, architecture)
    module = load_module(parent.model, context.device)
    calibration = opened_calibration(config, family, module, context)
    scores = scored(config, module, axes, calibration)
    arrays = {name: score.numpy() for name, score in scores.items()}
    widths = widths_of(axes, arrays, multiple=config.multiple, min_keep=config.min_keep)
    table = _latency_table(config)
    milliseconds = None if table is None else latency_of(_operators(config, module, context), widths, table)
    sizes = sizes_for(config.target, family, architecture, widths, milliseconds)
    latency = None
    if milliseconds is not None and table is not None:
        latency = _checked_latency(widths, sizes, milliseconds)
        table.save()
        torch.set_num_threads(context.threads)
    kept = {
        axis.name: _best(scores[axis.name], width.of(axis, sizes[width.label]))
        for width in widths
        if sizes[width.label] < width.units
        for axis in width.axes
    }
    chosen = {name: units.tolist() for name, units in kept.items()}
    after = family.resized(architecture, fields_of(widths, sizes, architecture, chosen))
    return PlannedCut(family, architecture, after, module, calibration, axes, kept, scores, latency)


def _best(score: Tensor, count: int) -> Tensor:
    """The places of the most important units, rising."""
    return score.argsort(descending=True, stable=True)[:count].sort().values


def _axes(config: PruneConfig, family: Family[Any], architecture: Record) -> tuple[Axis, ...]:
    """What may be cut, with what goes with it."""
    every = [axis for axis in family.axes(architecture) if axis.units > 0]
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


def _latency_table(config: PruneConfig) -> LatencyTable | None:
    if config.latency is None:
        return None
    timing = config.latency
    return LatencyTable(timing.runtime, timing.threads, timing.repeats, SourceContext(Path()).cache)


def _operators(config: PruneConfig, module: nn.Module, context: PassContext) -> dict[str, tuple[Operator, int]]:
    """The operators of the model as one sample goes through it."""
    dataset = context.data(str(config.calibration))
    batch = tensors_from_batch(dataset.batch(np.zeros(1, dtype=np.int64)), device_of(module))
    return operators_of(module, {name: batch[name] for name in dataset.input_names})


def _checked_latency(
    widths: tuple[Width, ...], sizes: Mapping[str, int], milliseconds: Callable[[Mapping[str, int]], float]
) -> tuple[float, float]:
    """The time of all operators before and after.

    Raises:
        RequirementError: the smaller model is slower; with the time that each width alone wins or loses.
    """
    whole = {width.label: width.units for width in widths}
    before, after = milliseconds(whole), milliseconds(sizes)
    if after >= before and dict(sizes) != whole:
        alone = (
            f"{label} {whole[label]} → {size}: {milliseconds({**whole, label: size}) - before:+.4f} ms"
            for label, size in sizes.items()
            if size < whole[label]
        )
        raise RequirementError(
            f"the smaller model is not faster here: {before:.3f} ms before, {after:.3f} ms after; " + "; ".join(alone),
            remedy="aim at latency_ms instead, or ask for a larger `multiple`",
        )
    return before, after
