"""Selection of the units to keep: scores and target in, a smaller config out; nothing is cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compressor.config.record import Record
from compressor.engine.contract import PassContext
from compressor.models.capabilities.cuttable_axes import Axis
from passes.prune.allocation import Cost, all_units, group_axes
from passes.prune.axes import select_axes
from passes.prune.config import PruneConfig
from passes.prune.importance import Scores
from passes.prune.memory import recompute_activations
from passes.prune.model import PrunableModel
from passes.prune.model_latency import LatencyMeter, check_faster
from passes.prune.schedule import Round
from passes.prune.scoring import Calibration, open_calibration, score_axes
from passes.prune.shape_costs import shape_costs
from passes.prune.size_search import (
    Count,
    ParentSize,
    SizeSearch,
    count_macs,
    count_parameters,
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Units to keep of a model, and the config of the model that results."""

    model: PrunableModel
    """The model before the cut."""
    pruned_config: Record
    calibration: Calibration | None
    axes: tuple[Axis, ...]
    """The axes that may be cut."""
    kept_units: Mapping[str, Tensor]
    """Axis name to the units to keep, int64, increasing; only axes that are cut."""
    scores: Mapping[str, Tensor]
    """Axis name to the importance of its units, float64."""
    milliseconds: tuple[float, float] | None
    """Time of all operators before and after; None if they are not timed."""
    parent: ParentSize

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the size of each axis before and after with its kept importance, then totals."""
        for axis in self.axes:
            score, units = self.scores[axis.name], self.kept_units.get(axis.name)
            if units is None:
                yield table_row(axis.name, axis.label, axis.units, axis.units, 1.0)
            else:
                total = score.sum().clamp(min=torch.finfo(score.dtype).tiny)
                share = float(score[units].sum() / total)
                yield table_row(axis.name, axis.label, axis.units, len(units), share)
        for name, count in (("parameters", count_parameters), ("macs", count_macs)):
            before = count(self.model.family, self.model.config)
            after = count(self.model.family, self.pruned_config)
            yield table_row("all", name, before, after, after / max(before, 1))
        if self.milliseconds is not None:
            before_ms, after_ms = self.milliseconds
            share = after_ms / before_ms if before_ms else 1.0
            yield table_row("all", "operators_ms", before_ms, after_ms, share)


def table_row(axis: str, field: str, before: float, after: float, share: float) -> dict[str, Any]:
    """Return a row of the table that previews and manifests show."""
    return {"axis": axis, "field": field, "before": before, "after": after, "kept": share}


def select_units(
    config: PruneConfig,
    model: PrunableModel,
    context: PassContext,
    meter: LatencyMeter | None,
    round_: Round,
    parent: ParentSize | None,
) -> Selection:
    """Score all units and select those to keep.

    Args:
        config: the config of the pass.
        model: the parent, or the model that earlier rounds left.
        context: the context of the pass.
        meter: times operators; None if the config has no `latency`.
        round_: the round to select for.
        parent: the size of the parent; None in the first round, which computes it.

    Raises:
        RequirementError: the target cannot be met. The first round raises it for all rounds.
    """
    axes = select_axes(config, model.axes)
    context.progress("score units", 0, 1, {})
    calibration = open_calibration(config, model, context)
    stacks = {axis.stack for axis in model.axes if axis.stack}
    with recompute_activations(model.module, stacks):
        scores = score_axes(config, model.module, axes, calibration)
    search = replace(
        _size_search(config, model, axes, scores, meter, parent),
        report=lambda done, total: context.progress("search sizes", done, total, {}),
    )
    parent = parent or search.parent_size()
    sizes = _select_sizes(config, search, scores, round_, parent)
    milliseconds = None
    if meter is not None and search.milliseconds is not None:
        milliseconds = search.milliseconds(all_units(search.widths)), search.milliseconds(sizes)
        meter.table.save()
    return Selection(
        model=model,
        pruned_config=search.pruned_config(sizes),
        calibration=calibration,
        axes=axes,
        kept_units={name: torch.tensor(units) for name, units in search.kept_units(sizes).items()},
        scores=scores,
        milliseconds=milliseconds,
        parent=parent,
    )


def _size_search(
    config: PruneConfig,
    model: PrunableModel,
    axes: tuple[Axis, ...],
    scores: Scores,
    meter: LatencyMeter | None,
    parent: ParentSize | None,
) -> SizeSearch:
    widths = group_axes(
        axes,
        {name: score.numpy() for name, score in scores.items()},
        multiple=config.multiple,
        min_keep=config.min_keep,
        parent_units=None if parent is None else parent.units,
    )
    milliseconds = None if meter is None else meter.operator_cost(model.module, widths)
    ranking = {
        name: score.argsort(descending=True, stable=True).tolist() for name, score in scores.items()
    }
    search = SizeSearch(model.family, model.config, widths, config.target, milliseconds, ranking)
    if not model.batch:
        return search
    costs = shape_costs(model)
    measured: dict[Count, Cost] = {
        count_macs: costs.counted(costs.macs, widths),
        count_parameters: costs.counted(costs.parameters, widths),
    }
    return replace(search, measured=measured, shapes=costs.shapes)


def _select_sizes(
    config: PruneConfig, search: SizeSearch, scores: Scores, round_: Round, parent: ParentSize
) -> dict[str, int]:
    """Return the sizes after a round.

    The first round also checks that the target can be met, before anything is trained.
    """
    if round_.first or round_.last:
        final = search.final_sizes(parent)
        if search.milliseconds is not None and parent.milliseconds is not None:
            check_faster(search.widths, final, search.milliseconds, parent.milliseconds)
        if round_.last:
            return final
    arrays = {name: score.numpy() for name, score in scores.items()}
    return search.round_sizes(round_, config.schedule, parent, arrays)
