"""Carries a plan out: for each step, take what is there and whole, or have it built, measured and published."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compressor.artifacts.runs import GateResult
from compressor.artifacts.store import (
    MANIFEST,
    MODEL,
    REPORTS,
    Artifact,
    damage,
    open_artifact,
    verify,
)
from compressor.engine.gates.baseline import earlier_verdicts, timer_opener
from compressor.engine.gates.rules import check_gates
from compressor.engine.gates.verdicts import GateChecker
from compressor.engine.machine import environment
from compressor.engine.plan.plan import Plan, PlannedStep
from compressor.engine.run import events
from compressor.engine.run.step_builder import Reporter, Workshop
from compressor.errors import (
    CompressError,
    DamagedArtifactError,
    Interrupted,
    RequirementError,
    StorageError,
    UsageError,
)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step."""

    step: PlannedStep
    artifact: Artifact
    how: Literal["built", "cached", "measured"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a run."""

    steps: tuple[StepResult, ...]
    gates: tuple[GateResult, ...]
    seconds: float


def select(plan: Plan, *, start: str | None, until: str | None, only: str | None) -> frozenset[str]:
    """Names of the steps that ``--from``, ``--until`` and ``--only`` leave to be built.

    Raises:
        UsageError: a name is not in the plan.
    """
    names = [step.name for step in plan.steps]
    for flag, name in (("--from", start), ("--until", until), ("--only", only)):
        if name is not None and name not in names:
            raise UsageError(
                f"{flag} {name}: there is no such step", remedy=f"steps: {', '.join(names)}"
            )
    if only is not None:
        return frozenset({only})
    first = names.index(start) if start else 0
    last = names.index(until) if until else len(names) - 1
    if first > last:
        raise UsageError(f"--from {start} comes after --until {until}")
    return frozenset(names[first : last + 1])


class Runner:
    """One run of one plan."""

    def __init__(
        self,
        plan: Plan,
        listener: events.Listener,
        reporter: Reporter,
        *,
        selected: frozenset[str],
        force: bool = False,
    ) -> None:
        self.plan = plan
        self.workshop = Workshop(plan, listener, reporter)
        self.tell = self.workshop.tell
        self.selected = selected
        self.force = force
        self.done: dict[str, StepResult] = {}

    def run(self) -> RunResult:
        """Carry out the selected steps; the others are inputs and must be there.

        Raises:
            CompressError: the first step that failed; what it had is kept, and the next run goes on from there.
        """
        start = time.perf_counter()
        self.plan.store.check_writable()
        wanted = self._wanted()
        self._check_room(wanted)
        self.tell(
            events.RunStarted(
                self.plan.pipeline.config.name, self.plan.store.root, tuple(s.name for s in wanted)
            )
        )
        for step in wanted:
            try:
                self._step(step)
            except KeyboardInterrupt as error:
                interrupted = Interrupted(
                    f"{step.name} was interrupted", remedy="the same command goes on from there"
                )
                self.tell(events.StepFailed(step.name, interrupted))
                raise interrupted from error
            except CompressError as error:
                self.tell(events.StepFailed(step.name, error))
                raise
        return RunResult(
            tuple(self.done.values()), self._gates(wanted), time.perf_counter() - start
        )

    def _gates(self, wanted: Sequence[PlannedStep]) -> tuple[GateResult, ...]:
        pipeline = self.plan.pipeline
        earlier = {} if self.force else earlier_verdicts(self.plan.store.root)
        judge = GateChecker(timer_opener(pipeline, self.plan.sources), earlier, self.tell)
        return check_gates(
            pipeline, self.workshop.artifacts, {step.name: step.parent for step in wanted}, judge
        )

    def _wanted(self) -> list[PlannedStep]:
        """The selected steps and, before them, all that they need."""
        needed = set(self.selected)
        for step in reversed(self.plan.steps):
            if step.name in needed:
                needed |= {*step.inputs.values(), *filter(None, [step.reference])}
        return [step for step in self.plan.steps if step.name in needed]

    def _check_room(self, wanted: Sequence[PlannedStep]) -> None:
        todo = [step for step in wanted if step.state not in {"cached", "measure", "given"}]
        needed = sum(step.estimate.disk_bytes or 0 for step in todo)
        free = shutil.disk_usage(self.plan.store.root).free
        if needed > free:
            raise StorageError(
                f"the steps to build need about {needed / 1e9:.2f} GB on disk; {self.plan.store.root} has {free / 1e9:.2f} GB",
                remedy="free some space (`autoglm-compress gc`), or choose another --output-dir",
            )
        total = environment(1, "cpu").memory_bytes
        for step in todo:
            if (peak := step.estimate.peak_memory_bytes or 0) > total and self.plan.device == "cpu":
                raise RequirementError(
                    f"{step.name} needs about {peak / 1e9:.1f} GB of memory; this machine has {total / 1e9:.1f} GB"
                )

    def _step(self, step: PlannedStep) -> None:
        start = time.perf_counter()
        if step.given is not None:
            verify(step.given)
            self._finish(step, step.given, "cached", start, 0)
            return
        with self.plan.store.lock(
            step.artifact_id, lambda: self.tell(events.Waiting(step.name, step.directory))
        ):
            found = self._sound(step)
            rebuild = self.force and step.name in self.selected
            if found is not None and not rebuild:
                self.plan.store.discard_staging(step.artifact_id)
                if found.manifest.measured == step.measured:
                    self._finish(step, found, "cached", start, 0)
                else:
                    self._finish(
                        step, self.workshop.measure_again(step, found), "measured", start, 0
                    )
                return
            if step.name not in self.selected:
                raise UsageError(
                    f"{step.name} is needed and its artifact {step.directory} is not there",
                    remedy="run without --from/--only first",
                )
            artifact = self.workshop.build(step, found)
            self._finish(step, artifact, "built", start, artifact.manifest.peak_rss_bytes)

    def _finish(
        self,
        step: PlannedStep,
        artifact: Artifact,
        how: Literal["built", "cached", "measured"],
        start: float,
        peak: int,
    ) -> None:
        self.done[step.name] = StepResult(step, artifact, how)
        self.workshop.artifacts[step.name] = artifact
        seconds = time.perf_counter() - start
        estimate = step.estimate
        self.tell(
            events.StepFinished(
                step.name,
                artifact.path,
                how,
                seconds,
                peak,
                estimate.seconds,
                estimate.peak_memory_bytes,
            )
        )

    def _sound(self, step: PlannedStep) -> Artifact | None:
        """The published artifact if every file of it is as written; a damaged one is set aside.

        Damaged reports do not cost the model: they are measured again.
        """
        store = self.plan.store
        try:
            artifact = store.find(step.pass_name, step.artifact_id)
        except DamagedArtifactError as error:
            self._set_aside(step, store.path_of(step.pass_name, step.artifact_id), error.what)
            return None
        if artifact is None:
            return None
        if found := damage(artifact, artifact.manifest.files, MODEL):
            self._set_aside(step, artifact.path, "; ".join(found))
            return None
        if found := damage(artifact, artifact.manifest.reports, REPORTS):
            self.tell(
                events.StepNote(
                    step.name, f"reports are damaged and measured again: {'; '.join(found)}"
                )
            )
            return Artifact(
                artifact.path, artifact.manifest.model_copy(update={"measured": "damaged"})
            )
        return artifact

    def _set_aside(self, step: PlannedStep, path: Path, details: str) -> None:
        moved = self.plan.store.set_aside(path)
        self.tell(events.ArtifactDamaged(step.name, path, moved, details))


def load_given(path: Path) -> Artifact:
    """An artifact that a command names, every file of it verified.

    Raises:
        UsageError: there is none.
        DamagedArtifactError: a file differs from the manifest.
    """
    artifact = open_artifact(path if path.name != MANIFEST else path.parent)
    verify(artifact)
    return artifact
