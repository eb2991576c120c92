"""A model and a target in, a smaller model out: scores, choice and surgery together."""

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
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import DataError, RequirementError
from compressor.models.axes import Axis, AxisKind, Field
from compressor.models.contract import Family
from compressor.models.loading import load_module, read_description, save_module
from passes.common.accuracy import device_of, tensors_from_batch
from passes.common.losses import hard_cross_entropy
from passes.common.setup import prepare_torch
from passes.prune.allocation import Width, allocate, widths_of
from passes.prune.depth import layers_by_cosine, layers_by_taylor, layers_by_weight
from passes.prune.importance import activation, entropy, gradient, magnitude, taylor
from passes.prune.latency import LatencyTable, Operator, latency_of, operators_of
from passes.prune.step import PruneConfig, Target
from passes.prune.surgery import without

_BYTES_PER_WEIGHT = 4
"""Models are saved in float32."""


@dataclass(frozen=True, slots=True)
class PlannedCut:
    """What goes and what stays."""

    family: Family[Any]
    before: Record
    after: Record
    module: nn.Module
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
        for name, count in (("parameters", _parameters), ("macs", _macs)):
            before, after = count(self.family, self.before), count(self.family, self.after)
            yield _row("all", name, before, after, after / max(before, 1))
        if self.latency is not None:
            yield _row("all", "operators_ms", *self.latency, self.latency[1] / self.latency[0])


def _row(axis: str, field: str, before: float, after: float, kept: float) -> dict[str, Any]:
    return {"axis": axis, "field": field, "before": before, "after": after, "kept": kept}


def prune(config: PruneConfig, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
    """Cut, and save into ``out``."""
    cut = planned_cut(config, parent, context)
    smaller = cut.family.build(cut.after)
    smaller.load_state_dict(without(cut.module.state_dict(), cut.axes, cut.kept))
    save_module(smaller, cut.family.name, cut.after, out)
    return PassOutput({"cuts": list(cut.rows())})


def planned_cut(config: PruneConfig, parent: Artifact, context: PassContext) -> PlannedCut:
    """Score every unit and choose.

    Raises:
        RequirementError: nothing can be cut, or the target cannot be met.
        DataError: the calibration set lacks what the importance needs.
    """
    prepare_torch(context)
    name, architecture = read_description(parent.model)
    family: Family[Any] = discovery.load(discovery.FAMILIES, name)
    wanted = get_args(AxisKind) if config.target.dimensions is not None else config.axes
    axes = tuple(axis for axis in family.axes(architecture) if axis.kind in wanted and axis.units > 0)
    if not axes:
        known = sorted({axis.kind for axis in family.axes(architecture)})
        raise RequirementError(
            f"this {name} has no {', '.join(config.axes)} to cut",
            remedy=f"it has {', '.join(known) or 'no axes at all'}",
        )
    module = load_module(parent.model, context.device)
    scores = {name: score.cpu() for name, score in _scores(config, family, module, axes, context).items()}
    arrays = {name: score.numpy() for name, score in scores.items()}
    widths = widths_of(axes, arrays, multiple=config.multiple, min_keep=config.min_keep)
    table = _latency_table(config)
    milliseconds = None if table is None else latency_of(_operators(config, module, context), widths, table)
    sizes = _sizes(config.target, family, architecture, widths, milliseconds)
    changed = [width for width in widths if sizes[width.label] < width.units]
    latency = None
    if milliseconds is not None and table is not None:
        latency = _checked_latency(widths, sizes, milliseconds)
        table.save()
        torch.set_num_threads(context.threads)
    after = family.resized(architecture, _fields(changed, sizes))
    kept = {
        axis.name: scores[axis.name].argsort(descending=True, stable=True)[: sizes[width.label]].sort().values
        for width in changed
        for axis in width.axes
    }
    return PlannedCut(family, architecture, after, module, axes, kept, scores, latency)


def _scores(
    config: PruneConfig, family: Family[Any], module: nn.Module, axes: tuple[Axis, ...], context: PassContext
) -> Mapping[str, Tensor]:
    stacks = [axis for axis in axes if axis.stack]
    axes = tuple(axis for axis in axes if not axis.stack)
    if config.importance == "magnitude" or config.calibration is None:
        return magnitude(module, axes) | layers_by_weight(module, stacks)
    dataset = context.data(config.calibration)
    total = min(config.num_samples, len(dataset))
    if total == 0:
        raise DataError(f"data set {config.calibration!r} is empty")
    if dataset.label_name is None:
        raise DataError(f"data set {config.calibration!r} has no labels", remedy="use importance `magnitude`")
    device = device_of(module)

    def batches() -> Iterator[dict[str, Tensor]]:
        for start in range(0, total, config.batch_size):
            indices = np.arange(start, min(start + config.batch_size, total), dtype=np.int64)
            yield tensors_from_batch(dataset.batch(indices), device)
            context.progress("sample", min(start + config.batch_size, total), total, {})

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        outputs = module(**{name: batch[name] for name in dataset.input_names})
        return torch.stack(list(hard_cross_entropy(family.heads(module, outputs), batch).values())).sum()

    score = {"activation": activation, "entropy": entropy, "gradient": gradient, "taylor": taylor}[config.importance]
    scores = score(module, axes, batches(), loss) if axes else {}
    if stacks:
        of_layers = layers_by_taylor if config.importance == "taylor" else layers_by_cosine
        scores |= of_layers(module, stacks, batches(), loss)
    return scores


def _sizes(
    target: Target,
    family: Family[Any],
    architecture: Record,
    widths: tuple[Width, ...],
    milliseconds: Callable[[Mapping[str, int]], float] | None,
) -> dict[str, int]:
    """Units that each width keeps."""
    if target.dimensions is not None:
        return _stated_sizes(target.dimensions, widths)

    def counted(count: Callable[[Family[Any], Record], int], scale: float) -> Callable[[Mapping[str, int]], float]:
        def cost(kept: Mapping[str, int]) -> float:
            changed = [width for width in widths if kept[width.label] < width.units]
            return scale * count(family, family.resized(architecture, _fields(changed, kept)))

        return cost

    costs = {
        "macs": counted(_macs, 1),
        "params": counted(_parameters, 1),
        "size_mb": counted(_parameters, _BYTES_PER_WEIGHT / 1e6),
        "latency_ms": milliseconds,
    }
    whole = {width.label: width.units for width in widths}
    for name, cost in costs.items():
        if cost is not None and (limit := target.limit(name, cost(whole))) is not None:
            return allocate(widths, cost, limit, name)
    raise AssertionError("a target names one of these")


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


def _stated_sizes(dimensions: Mapping[str, int], widths: tuple[Width, ...]) -> dict[str, int]:
    """The sizes that the user states, each checked; all problems at once."""
    known = {width.label: width for width in widths}
    problems = []
    sizes = {label: width.units for label, width in known.items()}
    for label, size in dimensions.items():
        if label not in known:
            problems.append(f"{label} is no dimension here: {discovery.suggestion(label, list(known))}")
            continue
        factor = known[label].axes[0].fields[0][1]
        if size % factor or not 0 < size // factor <= known[label].units:
            whole_groups = f", in steps of {factor}: heads go by whole key groups" if factor > 1 else ""
            problems.append(f"{label}: {size} is not between {factor} and {known[label].units * factor}{whole_groups}")
            continue
        sizes[label] = size // factor
    if problems:
        raise RequirementError("; ".join(problems), remedy=f"dimensions of this model: {', '.join(known)}")
    return sizes


def _fields(widths: list[Width], sizes: Mapping[str, int]) -> dict[Field, int | bool]:
    """What the config has to say of the widths that are cut."""
    fields: dict[Field, int | bool] = {}
    for width in widths:
        for axis in width.axes:
            fields |= {path: sizes[width.label] * factor for path, factor in axis.fields}
            fields |= dict(axis.stated)
    return fields


def _macs(family: Family[Any], config: Record) -> int:
    return family.macs(config)


def _parameters(family: Family[Any], config: Record) -> int:
    return sum(family.parameters(config).values())
