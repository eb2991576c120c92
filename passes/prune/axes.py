"""Axes that a config cuts, and checks of the config against the axes of a model; without torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from compressor.config.record import Record
from compressor.models.architecture import Architecture
from compressor.models.capabilities.cuttable_axes import Axis, AxisKind, CuttableAxes
from compressor.models.contract import Family
from passes.common.config import training_problems
from passes.common.field_problems import FieldProblem, check_no_problems, is_set
from passes.prune.allocation import group_axes
from passes.prune.config import PruneConfig
from passes.prune.size_search import ParentSize, SizeSearch

if TYPE_CHECKING:
    from passes.prune.model import PrunableModel


def select_axes(config: PruneConfig, axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Return the axes that a config allows to be cut, with the axes that are coupled to them."""
    dimensions = config.target.dimensions is not None
    kinds = get_args(AxisKind) if dimensions else config.axes
    present = [axis for axis in axes if axis.units > 0]
    coupled = {axis.width for axis in present if axis.width and axis.kind in kinds}
    return tuple(axis for axis in present if axis.kind in kinds or axis.width in coupled)


def check_applicable(config: PruneConfig, family: Family[Any], architecture: Record) -> None:
    """Check that every field of a config has an effect on a model, and that its dimensions exist.

    Axes that are discovered are checked once the model is loaded: see ``check_discovered``.

    Raises:
        RequirementError: fields do not apply to the model; the message names all of them.
    """
    problems = _problems_of_measures(config, family, architecture)
    stated = family.capability(CuttableAxes, architecture)
    if stated is None and family.can_discover(CuttableAxes, architecture):
        check_no_problems([*_problems_of_possible_kinds(config, family, architecture), *problems])
        return
    axes = family.require(CuttableAxes, architecture).axes
    _check_axes(config, family, architecture, axes, problems)


def check_discovered(config: PruneConfig, model: PrunableModel) -> None:
    """Check a config against the axes that were discovered in a loaded model.

    Raises:
        RequirementError: there are none, or fields do not apply; the message names all of them.
    """
    if model.batch:
        _check_axes(config, model.family, model.config, model.axes, [])


def _check_axes(
    config: PruneConfig,
    family: Family[Any],
    architecture: Record,
    axes: Sequence[Axis],
    problems: list[FieldProblem],
) -> None:
    problems = [*_problems_of_kinds(config, family, axes), *problems]
    cut_axes = _axes_to_cut(config, family, architecture, select_axes(config, axes))
    check_no_problems([*problems, *_fields_without_effect(config, cut_axes)])


def _problems_of_measures(
    config: PruneConfig, family: Family[Any], architecture: Record
) -> list[FieldProblem]:
    """Return the problems that do not depend on axes."""
    problems = []
    if config.target.macs is not None and not family.macs(architecture):
        problems.append(
            FieldProblem(
                "target.macs",
                f"the family {family.name} does not count MACs",
                "set a target of params or size_mb",
            )
        )
    if config.recovery is not None:
        trained = Architecture(family, architecture)
        problems += training_problems(config.recovery.training, "recovery.training", trained)
    return problems


def _problems_of_possible_kinds(
    config: PruneConfig, family: Family[Any], architecture: Record
) -> list[FieldProblem]:
    """Return a problem if no axis of the kinds that the config names can be discovered."""
    if config.target.dimensions is not None:
        return []
    possible = family.possible_axis_kinds(architecture, config.axes)
    if possible is None or possible & set(config.axes):
        return []
    return [_nothing_to_cut(family, config.axes, possible)]


def _nothing_to_cut(
    family: Family[Any], missing: Sequence[AxisKind], present: Collection[AxisKind]
) -> FieldProblem:
    reason = f"this model of the family {family.name} has no {', '.join(missing)} to cut"
    return FieldProblem("axes", reason, f"its axes are {', '.join(sorted(present)) or 'none'}")


def _problems_of_kinds(
    config: PruneConfig, family: Family[Any], axes: Sequence[Axis]
) -> list[FieldProblem]:
    """Return a problem if the model lacks kinds of axes that the config names."""
    if config.target.dimensions is not None:
        return []
    present = sorted({axis.kind for axis in axes if axis.units > 0})
    missing = [kind for kind in config.axes if kind not in present]
    if missing and (is_set(config, "axes") or len(missing) == len(config.axes)):
        return [_nothing_to_cut(family, missing, present)]
    return []


def _axes_to_cut(
    config: PruneConfig, family: Family[Any], architecture: Record, axes: tuple[Axis, ...]
) -> tuple[Axis, ...]:
    """Return the axes that a target of dimensions cuts, which it checks; else all selected axes.

    Raises:
        RequirementError: dimensions are unknown, out of range, or do not fit together.
    """
    if config.target.dimensions is None:
        return axes
    search, sizes = _stated_sizes(config, family, architecture, axes)
    return tuple(
        axis for width in search.widths if sizes[width.label] < width.units for axis in width.axes
    )


def planned_config(config: PruneConfig, family: Family[Any], architecture: Record) -> Record | None:
    """Return the config of the pruned model; None where it depends on scores.

    Raises:
        RequirementError: dimensions are unknown, out of range, or do not fit together.
    """
    if config.target.dimensions is None:
        return None
    stated = family.capability(CuttableAxes, architecture)
    if stated is None:  # they are discovered once the model is loaded
        return None
    axes = select_axes(config, stated.axes)
    search, sizes = _stated_sizes(config, family, architecture, axes)
    if search.kept_units(sizes, listed_only=True):
        return None
    return search.pruned_config(sizes)


def _stated_sizes(
    config: PruneConfig, family: Family[Any], architecture: Record, axes: tuple[Axis, ...]
) -> tuple[SizeSearch, dict[str, int]]:
    """Return the search of a target of dimensions, and the sizes that it states.

    Raises:
        RequirementError: dimensions are unknown, out of range, or do not fit together.
    """
    widths = group_axes(
        axes,
        {axis.name: np.zeros(axis.units) for axis in axes},
        multiple=config.multiple,
        min_keep=config.min_keep,
    )
    ranking = {axis.name: range(axis.units) for axis in axes}
    search = SizeSearch(family, architecture, widths, config.target, None, ranking)
    return search, search.final_sizes(ParentSize({}, None, None))


def _fields_without_effect(config: PruneConfig, cut_axes: Sequence[Axis]) -> list[FieldProblem]:
    """Return a problem for each field that has no effect on the axes that are cut."""
    if not cut_axes:  # A target of dimensions states the present sizes.
        return []
    stacks = [axis for axis in cut_axes if axis.stack]
    inner_axes = [axis for axis in cut_axes if not axis.stack]
    norms = any(cut.norm for axis in inner_axes for cut in axis.cuts)
    reasons = {}
    if is_set(config, "layer_importance") and not stacks:
        reasons["layer_importance"] = "no layers are cut"
    if is_set(config, "importance") and not inner_axes and config.calibration is not None:
        reasons["importance"] = "only layers are cut"
    if is_set(config, "repair") and not inner_axes:
        reasons["repair"] = "only layers are cut"
    scores = config.importance != "magnitude" and bool(inner_axes)
    repairs = config.repair and bool(inner_axes)
    if config.calibration is not None and not (scores or repairs or norms or stacks):
        reason = "`importance: magnitude` and `repair: false` use no samples for these axes"
        if config.latency is None:
            reasons["calibration"] = reason
        elif unused := [name for name in ("num_samples", "batch_size") if is_set(config, name)]:
            reasons |= dict.fromkeys(unused, f"{reason}, and `latency` uses one")
    return [FieldProblem(field, reason, "leave it out") for field, reason in reasons.items()]
