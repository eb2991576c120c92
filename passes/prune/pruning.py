"""A model and a target in, a smaller model out: cuts and recovery, in as many rounds as the schedule has.

A unit that a round cuts is gone at once, not masked until the end: the function is the same as with a mask that stays, each
round trains a smaller model, and what is left is dense. After each cut and after each training, ``rounds.ckpt`` holds all that
the next one needs; a killed run goes on from there, within a training from its own checkpoint, and ends in the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.artifacts.store import Artifact
from compressor.config.record import Record
from compressor.engine.contract import PassContext, PassOutput
from compressor.models.checkpoint.weights import assigned, weights_on_meta
from compressor.models.contract import Family
from passes.common.checkpoint import UnusableCheckpointError, load_checkpoint, save_checkpoint
from passes.common.device import device_of, prepare_torch
from passes.prune.memory import on_disk
from passes.prune.planning import PlannedCut, Subject, planned_cut, row, subject_of
from passes.prune.recovery import recover
from passes.prune.repair import least_squares, norm_scales
from passes.prune.schedule import Stage
from passes.prune.sizes import Start
from passes.prune.speed import Clock
from passes.prune.step import PruneConfig
from passes.prune.surgery import without

CHECKPOINT = "rounds.ckpt"


def preview(config: PruneConfig, parent: Artifact, context: PassContext) -> list[Mapping[str, Any]]:
    """The rows of the cut that meets the whole target, by the parent's scores."""
    prepare_torch(context)
    clock = _clock(config, context)
    cut = planned_cut(config, subject_of(parent, context.device), context, clock, Stage(), None)
    if config.schedule.kind == "gradual":
        context.note(
            f"this is foretold from the first scores: each of the {config.schedule.rounds} rounds scores anew, and the sizes "
            "that are kept may differ; the target will not"
        )
    return [
        *cut.rows(),
        *(
            _whole_model(clock, cut.subject, cut_model(cut, context.work, repair=False))
            if clock is not None
            else ()
        ),
    ]


def prune(config: PruneConfig, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
    """Cut and recover, and save into ``out``."""
    prepare_torch(context)
    run = _Rounds(config, subject_of(parent, context.device), context)
    run.go()
    run.now.family.save(run.now.module, run.now.config, out, parent.model)
    return PassOutput(run.summary())


def cut_model(cut: PlannedCut, work: Path, *, repair: bool) -> Subject:
    """The smaller model; its weights are maps of files in ``work``."""
    before = cut.subject
    state: dict[str, Tensor] = {
        name: tensor.detach().cpu() for name, tensor in before.module.state_dict().items()
    }
    if cut.calibration is not None:
        batches, loss = cut.calibration.batches, cut.calibration.loss
        narrowed = [one for axis in cut.axes if axis.name in cut.kept for one in axis.cuts]
        if any(one.norm for one in narrowed):
            state |= norm_scales(before.module, cut.axes, cut.kept, batches("norms"), loss)
        if repair and any(one.reads for one in narrowed):
            state |= on_disk(
                least_squares(before.module, cut.axes, cut.kept, lambda: batches("repair"), loss),
                work,
            )
    weights = on_disk(without(state, cut.axes, cut.kept), work)
    return _built(before.family, cut.after, weights, str(device_of(before.module)))


def _built(
    family: Family[Any], config: Record, weights: Mapping[str, Tensor], device: str
) -> Subject:
    """The model of a config with these weights."""
    with torch.random.fork_rng(devices=[]), weights_on_meta():
        module = family.build(config)
    return Subject(family, config, assigned(module, weights).eval().to(device))


@dataclass(slots=True)
class _Done:
    """What is behind a run, apart from the model; plain values for a checkpoint."""

    cut: int = 0
    """Rounds that have cut."""
    learnt: int = 0
    """Rounds that have cut and recovered."""
    start: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """What each round cut."""
    history: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    """What the last training tells."""


class _Rounds:
    """One call of ``prune``."""

    def __init__(self, config: PruneConfig, parent: Subject, context: PassContext) -> None:
        self.config, self.parent = config, parent
        self.context = replace(context, note=_once(context.note))
        self.now, self.done = parent, _Done()
        self.checkpoint = context.work / CHECKPOINT

    def go(self) -> None:
        """All rounds that are not done yet."""
        self._resume()
        count = self.config.schedule.cuts
        while self.done.learnt < count:
            stage = Stage(self.done.learnt + 1, count)
            if self.done.cut == self.done.learnt:
                self._cut(stage)
            self._learn(stage)

    def _cut(self, stage: Stage) -> None:
        start = None if self.done.start is None else Start(**self.done.start)
        clock = _clock(self.config, self.context)
        cut = planned_cut(self.config, self.now, self.context, clock, stage, start)
        self.now = cut_model(cut, self.context.work, repair=self.config.repair)
        self.done.cut = stage.number
        self.done.start = asdict(cut.start)
        self.done.rounds.append(_told(cut, stage, clock))
        self._save()

    def _learn(self, stage: Stage) -> None:
        self.done.learnt = stage.number
        recovery = self.config.recovery
        if recovery is None:
            return
        folder = self.context.work / f"round-{stage.number}"
        folder.mkdir(exist_ok=True)
        self.parent.module.requires_grad_(False)
        self.now.module.float()
        told = recover(recovery, self.now, self.parent, stage, folder, self.context).summary()
        self.done.history += told.pop("history")
        self.done.training = told
        self._save()
        shutil.rmtree(folder)

    def summary(self) -> dict[str, Any]:
        """What the manifest says of it all."""
        done = self.done
        told: dict[str, Any] = (
            {"rounds": done.rounds} if len(done.rounds) > 1 else dict(done.rounds[0])
        )
        if (clock := _clock(self.config, self.context)) is not None:
            told["model"] = _whole_model(clock, self.parent, self.now)
        return told | (
            {"history": done.history, **done.training} if self.config.recovery is not None else {}
        )

    def _save(self) -> None:
        if self.config.recovery is None:
            return
        state = {
            "config": self.now.config.model_dump(mode="json"),
            "weights": self.now.module.state_dict(),
            "done": asdict(self.done),
        }
        save_checkpoint(self.checkpoint, self.context.artifact_id, state)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        try:
            saved = load_checkpoint(self.checkpoint, self.context.artifact_id)
        except UnusableCheckpointError as error:
            self.context.note(f"{error}: the first round starts anew")
            for folder in self.context.work.glob("round-*"):
                shutil.rmtree(folder)
            return
        family = self.parent.family
        config = type(self.parent.config).model_validate_json(json.dumps(saved["config"]))
        self.now = _built(family, config, saved["weights"], self.context.device)
        self.done = _Done(**saved["done"])


def _once(note: Callable[[str], None]) -> Callable[[str], None]:
    """Every round finds the same to say; it is said once."""
    said: set[str] = set()

    def tell(text: str) -> None:
        if text not in said:
            said.add(text)
            note(text)

    return tell


def _clock(config: PruneConfig, context: PassContext) -> Clock | None:
    return Clock(config, context) if config.latency is not None else None


def _told(cut: PlannedCut, stage: Stage, clock: Clock | None) -> dict[str, Any]:
    """What the manifest says of a cut; of one of several rounds, only what it changes."""
    rows = [
        row
        for row in cut.rows()
        if stage.count == 1 or row["axis"] == "all" or row["after"] < row["before"]
    ]
    told: dict[str, Any] = (
        {"cuts": rows} if stage.count == 1 else {"round": stage.number, "cuts": rows}
    )
    return told | ({"latency": clock.record()} if clock is not None else {})


def _whole_model(clock: Clock, before: Subject, after: Subject) -> list[dict[str, Any]]:
    """Both models timed as a whole, as a row, where that is cheap."""
    found = clock.whole(before.module, after.module)
    return [] if found is None else [row("all", "model_ms", *found, found[1] / found[0])]
