"""Cuts and recovery in the rounds of a schedule, and their preview.

Units that a round cuts are removed at once, not masked until the end. The model computes the same
as with a permanent mask, but each round trains a smaller one. ``rounds.ckpt`` is written after each
cut and after each training. A killed run resumes from it and ends with the same bytes; a training
that was interrupted resumes from its own checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.models.capabilities.discovered_axes.verification import cut_problem
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.capabilities.unit_removal import remove_units
from passes.common.checkpoint import UnusableCheckpointError, load_checkpoint, save_checkpoint
from passes.common.device import device_of, prepare_torch
from passes.prune.axes import check_discovered
from passes.prune.config import PruneConfig
from passes.prune.memory import map_to_disk
from passes.prune.model import PrunableModel, build_model, load_model
from passes.prune.model_latency import LatencyMeter, create_meter
from passes.prune.recovery import recover
from passes.prune.repair import reconstruct_weights, rescale_norms
from passes.prune.schedule import Round
from passes.prune.selection import Selection, select_units, table_row
from passes.prune.size_search import ParentSize, count_macs, count_parameters

CHECKPOINT = "rounds.ckpt"
_SMALL_CUT = 0.01
"""Removed part of a model below which the cut is noted as small."""


def preview_cut(
    config: PruneConfig, parent: Artifact, context: PassContext
) -> list[Mapping[str, Any]]:
    """Return the rows of one cut to the whole target, selected by the parent's scores."""
    prepare_torch(context)
    meter = create_meter(config, context)
    model = load_model(parent, config.calibration, context)
    check_discovered(config, model)
    selection = select_units(config, model, context, meter, round_=Round(), parent=None)
    if config.schedule.kind == "gradual":
        context.note(
            f"this preview uses the scores of the parent; each of the {config.schedule.rounds} "
            "rounds scores anew, so the sizes of single dimensions may differ, but not the target"
        )
    rows: list[Mapping[str, Any]] = list(selection.rows())
    if meter is not None:
        pruned = cut_model(selection, context.work, repair=False)
        rows += _model_rows(meter, selection.model, pruned)
    return rows


def prune(config: PruneConfig, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
    """Cut and recover in all rounds, and save the model into ``out``."""
    prepare_torch(context)
    model = load_model(parent, config.calibration, context)
    check_discovered(config, model)
    run = _Run(config, model, context)
    model = run.finish()
    _note_small_cut(run.parent, model, context)
    model.family.save(model.module, model.config, out, parent.model)
    return PassOutput(run.summary())


def _note_small_cut(before: PrunableModel, after: PrunableModel, context: PassContext) -> None:
    """Note the cut if it changes next to nothing."""
    removed = {
        name: 1 - count(after.family, after.config) / max(count(before.family, before.config), 1)
        for name, count in (("parameters", count_parameters), ("MACs", count_macs))
    }
    if max(removed.values()) < _SMALL_CUT:
        shares = " and ".join(f"{share:.1%} of the {name}" for name, share in removed.items())
        context.note(f"the cut removes only {shares}: lower the target to make the model smaller")


def cut_model(selection: Selection, work: Path, *, repair: bool) -> PrunableModel:
    """Return the pruned model; its weights are memory-mapped.

    Args:
        selection: the units to keep.
        work: the folder of the mapped files.
        repair: True to adjust weights by least squares, if there are calibration samples.
    """
    model, axes, kept_units = selection.model, selection.axes, selection.kept_units
    if model.batch:
        _check_cut(selection)
    state: dict[str, Tensor] = {
        name: tensor.detach().cpu() for name, tensor in model.module.state_dict().items()
    }
    if selection.calibration is not None:
        batches, run = selection.calibration.batches, selection.calibration.run
        cuts = [cut for axis in axes if axis.name in kept_units for cut in axis.cuts]
        if any(cut.norm for cut in cuts):
            state |= rescale_norms(model.module, axes, kept_units, batches("norms"), run)
        if repair and any(cut.reads for cut in cuts):
            # Iterates over the samples several times, so it gets a function.
            changed = reconstruct_weights(
                model.module, axes, kept_units, lambda: batches("repair"), run
            )
            state |= map_to_disk(changed, work)
    weights = map_to_disk(remove_units(state, axes, kept_units), work)
    device = str(device_of(model.module))
    return build_model(model, selection.pruned_config, weights, device)


def _check_cut(selection: Selection) -> None:
    """Check that the smaller model computes what the whole one does without the cut units.

    Axes are verified with other sizes when they are discovered.

    Raises:
        RequirementError: it computes something else, or cannot be built.
    """
    model, kept_units = selection.model, selection.kept_units
    device = str(device_of(model.module))
    problem = cut_problem(
        [axis for axis in selection.axes if axis.name in kept_units],
        kept_units,
        LoadedModel(model.module, model.batch),
        lambda _, weights: build_model(model, selection.pruned_config, weights, device).module,
    )
    if problem is not None:
        raise RequirementError(
            f"the model cannot be cut to these sizes: {problem}",
            remedy="set another target or `multiple`, or leave kinds out of `axes`",
        )


@dataclass(slots=True)
class _Progress:
    """State of a run apart from the model; plain values, saved in the checkpoint."""

    rounds_cut: int = 0
    """Number of rounds that have cut."""
    rounds_done: int = 0
    """Number of rounds that have cut and trained."""
    parent: dict[str, Any] | None = None
    """Fields of the ``ParentSize``; None before the first cut."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Manifest entry of each cut."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations of all trainings."""
    training: dict[str, Any] = field(default_factory=dict)
    """Summary of the last training, without its history."""


class _Run:
    """One call of ``prune``."""

    def __init__(self, config: PruneConfig, parent: PrunableModel, context: PassContext) -> None:
        self.config, self.parent = config, parent
        self.context = replace(context, note=_without_repetition(context.note))
        self.model, self.progress = parent, _Progress()
        self.checkpoint = context.work / CHECKPOINT

    def finish(self) -> PrunableModel:
        """Run the rounds that are not done yet, and return the model."""
        self._resume()
        count = self.config.schedule.cuts
        while self.progress.rounds_done < count:
            round_ = Round(self.progress.rounds_done + 1, count)
            if self.progress.rounds_cut == self.progress.rounds_done:
                self._cut(round_)
            self._train(round_)
        return self.model

    def _cut(self, round_: Round) -> None:
        progress = self.progress
        parent_size = None if progress.parent is None else ParentSize(**progress.parent)
        meter = create_meter(self.config, self.context)
        selection = select_units(self.config, self.model, self.context, meter, round_, parent_size)
        self.model = cut_model(selection, self.context.work, repair=self.config.repair)
        progress.rounds_cut = round_.number
        progress.parent = asdict(selection.parent)
        progress.rounds.append(_manifest_entry(selection, round_, meter))
        self._save()

    def _train(self, round_: Round) -> None:
        self.progress.rounds_done = round_.number  # saved only after the training
        recovery = self.config.recovery
        if recovery is None:
            return
        folder = self.context.work / f"round-{round_.number}"
        folder.mkdir(exist_ok=True)
        self.parent.module.requires_grad_(False)  # the teacher
        self.model.module.float()  # trained in float32, whatever the parent's dtype
        result = recover(recovery, self.model, self.parent, round_, folder, self.context)
        summary = result.summary()
        self.progress.history += summary.pop("history")
        self.progress.training = summary
        self._save()
        shutil.rmtree(folder)

    def summary(self) -> dict[str, Any]:
        """Return the JSON values for the manifest."""
        progress = self.progress
        summary: dict[str, Any] = (
            {"rounds": progress.rounds} if len(progress.rounds) > 1 else dict(progress.rounds[0])
        )
        if (meter := create_meter(self.config, self.context)) is not None:
            summary["model"] = _model_rows(meter, self.parent, self.model)
        if self.config.recovery is not None:
            summary |= {"history": progress.history, **progress.training}
        return summary

    def _save(self) -> None:
        if self.config.recovery is None:  # a single cut, which a resumed run repeats
            return
        state = {
            "config": self.model.config.model_dump(mode="json"),
            "weights": self.model.module.state_dict(),
            "progress": asdict(self.progress),
        }
        save_checkpoint(self.checkpoint, self.context.artifact_id, state)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        try:
            saved = load_checkpoint(self.checkpoint, self.context.artifact_id)
        except UnusableCheckpointError as error:
            self.context.note(f"{error}: starting again from the first round")
            for folder in self.context.work.glob("round-*"):
                shutil.rmtree(folder)
            return
        config = type(self.parent.config).model_validate_json(json.dumps(saved["config"]))
        self.model = build_model(self.parent, config, saved["weights"], self.context.device)
        self.progress = _Progress(**saved["progress"])


def _without_repetition(note: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that passes each line on once, since every round may give the same."""
    noted: set[str] = set()

    def note_once(line: str) -> None:
        if line not in noted:
            noted.add(line)
            note(line)

    return note_once


def _manifest_entry(
    selection: Selection, round_: Round, meter: LatencyMeter | None
) -> dict[str, Any]:
    """Return the manifest entry of a cut.

    Of several rounds, each lists only the axes that it changes, and the totals (axis "all").
    """
    rows = [
        row
        for row in selection.rows()
        if round_.count == 1 or row["axis"] == "all" or row["after"] < row["before"]
    ]
    entry: dict[str, Any] = (
        {"cuts": rows} if round_.count == 1 else {"round": round_.number, "cuts": rows}
    )
    return entry | ({"latency": meter.record()} if meter is not None else {})


def _model_rows(
    meter: LatencyMeter, before: PrunableModel, after: PrunableModel
) -> list[dict[str, Any]]:
    """Return a row with the time of both models as a whole; none if the meter cannot run them."""
    times = meter.compare_models(before.module, after.module)
    return [] if times is None else [table_row("all", "model_ms", *times, times[1] / times[0])]
