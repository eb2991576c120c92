"""Run a plan: for each step, use the verified artifact in the store, or build and publish it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compressor import interrupts
from compressor.artifacts.artifact import (
    MANIFEST,
    MODEL,
    REPORTS,
    Artifact,
    damage,
    open_artifact,
    verified_artifact,
)
from compressor.artifacts.records import with_reports
from compressor.artifacts.runs import GateResult
from compressor.artifacts.sessions import keep
from compressor.artifacts.trust import import_of, require_trust, signatures_required
from compressor.engine import events
from compressor.engine.device import check_device
from compressor.engine.gates.baseline import earlier_verdicts, timer_opener
from compressor.engine.gates.rules import check_gates
from compressor.engine.gates.verdicts import GateChecker
from compressor.engine.machine import environment
from compressor.engine.plan.plan import DataUse, Plan, PlannedStep
from compressor.engine.run.step_builder import Reporter, StepBuilder
from compressor.errors import (
    CompressError,
    DamagedArtifactError,
    Interrupted,
    RequirementError,
    StorageError,
    UsageError,
)
from compressor.evaluation.process import require_linux


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of a step."""

    step: PlannedStep
    artifact: Artifact
    how: Literal["built", "cached", "measured"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """Outcome of a run."""

    steps: tuple[StepResult, ...]
    gates: tuple[GateResult, ...]
    seconds: float


def select(plan: Plan, *, start: str | None, until: str | None, only: str | None) -> frozenset[str]:
    """Return the names of the steps that ``--from``, ``--until`` and ``--only`` select.

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


@contextmanager
def protected(plan: Plan) -> Iterator[None]:
    """Keep `gc` from removing what a run builds and reads, until the run is recorded.

    Artifacts that are given may lie in other stores; one that cannot be written has no `gc` either.

    Raises:
        StorageError: the plan's store is not writable, or this platform has no file locks.
    """
    plan.store.check_writable()
    ids = {plan.store.root.resolve(): {step.artifact_id for step in plan.steps}}
    for step in plan.steps:
        root = step.given.path.resolve().parent if step.given is not None else None
        if root is not None:
            ids.setdefault(root, set()).add(step.artifact_id)
    with plan.store.session(ids.pop(plan.store.root.resolve())), keep(ids):
        yield


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
        self.builder = StepBuilder(plan, listener, reporter)
        self.emit, self.listener = self.builder.emit, listener
        self.selected = selected
        self.force = force
        self.done: dict[str, StepResult] = {}

    def run(self) -> RunResult:
        """Run the selected steps; the artifacts of the others must exist.

        Raises:
            CompressError: the first step that failed. Its checkpoints are kept, and the next run
                resumes from them.
        """
        start = time.perf_counter()
        self.plan.store.check_writable()
        steps = self._needed_steps()
        if any(step.measured for step in steps):
            require_linux()
        check_device(self.plan.device)
        self._check_resources(steps)
        self.emit(
            events.RunStarted(
                self.plan.pipeline.config.name,
                self.plan.store.root,
                tuple(step.name for step in steps),
            )
        )
        self._check_data(steps)
        for step in steps:
            try:
                self._step(step)
            except KeyboardInterrupt as error:
                raise self._interrupted(step) from error
            except CompressError as error:
                if interrupts.requested():  # what a library, or a child, made of the interrupt
                    raise self._interrupted(step) from error
                self.listener(events.StepFailed(step.name, error))
                raise
        return RunResult(tuple(self.done.values()), self._gates(steps), time.perf_counter() - start)

    def _interrupted(self, step: PlannedStep) -> Interrupted:
        error = Interrupted(
            f"{step.name} was interrupted", remedy="run the same command again to resume"
        )
        self.listener(events.StepFailed(step.name, error))
        return error

    def _gates(self, steps: Sequence[PlannedStep]) -> tuple[GateResult, ...]:
        pipeline = self.plan.pipeline
        earlier, notes = ({}, []) if self.force else earlier_verdicts(self.plan.store.root)
        for note in notes:
            self.emit(events.StepNote("gates", note))
        judge = GateChecker(timer_opener(pipeline, self.plan.sources), earlier, self.emit)
        return check_gates(
            pipeline, self.builder.artifacts, {step.name: step.parent for step in steps}, judge
        )

    def _needed_steps(self) -> list[PlannedStep]:
        """Return the selected steps and all steps they depend on, in order."""
        needed = set(self.selected)
        for step in reversed(self.plan.steps):
            if step.name in needed:
                needed |= {*step.inputs.values(), *filter(None, [step.reference])}
        return [step for step in self.plan.steps if step.name in needed]

    def _check_resources(self, steps: Sequence[PlannedStep]) -> None:
        to_build = [step for step in steps if step.state not in {"cached", "measure", "given"}]
        needed = sum(step.estimate.disk_bytes or 0 for step in to_build)
        free = shutil.disk_usage(self.plan.store.root).free
        if needed > free:
            raise StorageError(
                f"the steps to build need about {needed / 1e9:.2f} GB on disk; "
                f"{self.plan.store.root} has {free / 1e9:.2f} GB",
                remedy="free some space (`autoglm-compress gc`), or choose another --output-dir",
            )
        total = environment(1, "cpu").memory_bytes
        for step in to_build:
            if (peak := step.estimate.peak_memory_bytes or 0) > total and self.plan.device == "cpu":
                raise RequirementError(
                    f"{step.name} needs about {peak / 1e9:.1f} GB of memory; "
                    f"this machine has {total / 1e9:.1f} GB"
                )

    def _check_data(self, steps: Sequence[PlannedStep]) -> None:
        """Check the data sets of all steps that are to be built or measured, before the first."""
        uses = [(step, use) for step in steps for use in step.data if self._runs(step, use)]
        self.builder.data.check(uses)
        self.builder.data.keep(use.need.data for _, use in uses if not use.measures)

    def _runs(self, step: PlannedStep, use: DataUse) -> bool:
        """Return True if this run needs a step's data set."""
        if step.state in {"cached", "measure", "given"} and not (
            self.force and step.name in self.selected
        ):
            return step.state == "measure" and use.measures
        return step.name in self.selected

    def _step(self, step: PlannedStep) -> None:
        start = time.perf_counter()
        if step.given is not None:
            given = verified_artifact(step.given.path)
            self._check_origin(step, given)
            if step.state == "measure":
                self._measure_given(step, given, start)
            else:
                self._finish(step, given, "cached", start, 0)
            return
        with self.plan.store.lock(
            step.artifact_id, lambda: self.emit(events.Waiting(step.name, step.directory))
        ):
            cached = self._verified(step)
            rebuild = self.force and step.name in self.selected
            if cached is not None and not rebuild:
                self._check_origin(step, cached)
                self.plan.store.discard_staging(step.artifact_id)
                if cached.manifest.measured == step.measured:
                    self._finish(step, cached, "cached", start, 0)
                else:
                    self._finish(step, self.builder.remeasure(step, cached), "measured", start, 0)
                return
            if step.name not in self.selected:
                raise UsageError(
                    f"{step.name} is needed, and its artifact {step.directory} does not exist",
                    remedy="run without --from/--only first",
                )
            artifact = self.builder.build(step, cached)
            self._finish(step, artifact, "built", start, artifact.manifest.peak_rss_bytes)

    def _measure_given(self, step: PlannedStep, given: Artifact, start: float) -> None:
        """Measure an artifact as this pipeline asks: in its store, or in this one a copy of it."""
        store = self.plan.store
        with store.lock(
            step.artifact_id, lambda: self.emit(events.Waiting(step.name, step.directory))
        ):
            artifact = given
            if given.path.resolve().parent != store.root.resolve():
                artifact = self._verified(step) or store.copy(given)
                self._check_origin(step, artifact)
            if artifact.manifest.measured == step.measured:
                self._finish(step, artifact, "cached", start, 0)
            else:
                self._finish(step, self.builder.remeasure(step, artifact), "measured", start, 0)

    def _check_origin(self, step: PlannedStep, artifact: Artifact) -> None:
        """Check that an artifact may be used, and say so if another store has built it.

        Raises:
            DamagedArtifactError: signatures are required, and it has none of a trusted key.
        """
        if signatures_required(self.plan.pipeline.config.require_signatures):
            require_trust(artifact, self.plan.store.root)
        if (origin := import_of(artifact)) is not None:
            self.emit(events.StepNote(step.name, str(origin)))

    def _finish(
        self,
        step: PlannedStep,
        artifact: Artifact,
        how: Literal["built", "cached", "measured"],
        start: float,
        peak: int,
    ) -> None:
        # With its reports: another run may measure the model again before this one ends.
        artifact = with_reports(artifact)
        self.done[step.name] = StepResult(step, artifact, how)
        self.builder.artifacts[step.name] = artifact
        seconds = time.perf_counter() - start
        estimate = step.estimate
        self.emit(
            events.StepFinished(
                step.name,
                artifact.path,
                how,
                seconds,
                artifact.manifest.seconds,
                peak,
                estimate.seconds,
                estimate.peak_memory_bytes,
            )
        )

    def _verified(self, step: PlannedStep) -> Artifact | None:
        """Return the published artifact if all its files match; a damaged one is set aside.

        If only reports are damaged, the model is kept and measured again.
        """
        store = self.plan.store
        store.settle(store.path_of(step.pass_name, step.artifact_id))
        try:
            artifact = store.find(step.pass_name, step.artifact_id)
        except DamagedArtifactError as error:
            self._set_aside(step, store.path_of(step.pass_name, step.artifact_id), error.what)
            return None
        if artifact is None:
            return None
        if damaged := damage(artifact, artifact.manifest.files, MODEL):
            self._set_aside(step, artifact.path, "; ".join(damaged))
            return None
        if damaged := damage(artifact, artifact.manifest.reports, REPORTS):
            self.emit(
                events.StepNote(
                    step.name, f"reports are damaged and measured again: {'; '.join(damaged)}"
                )
            )
            return Artifact(
                artifact.path, artifact.manifest.model_copy(update={"measured": "damaged"})
            )
        return artifact

    def _set_aside(self, step: PlannedStep, path: Path, details: str) -> None:
        moved = self.plan.store.set_aside(path)
        self.emit(events.ArtifactDamaged(step.name, path, moved, details))


@contextmanager
def kept_artifact(path: Path) -> Iterator[Artifact]:
    """Load an artifact as ``load_given``, and have `gc` keep it while a command reads it."""
    folder = path if path.name != MANIFEST else path.parent
    with keep({folder.resolve().parent: {open_artifact(folder).id}}):
        yield load_given(folder)


def load_given(path: Path) -> Artifact:
    """Return the artifact at a path, with every file verified.

    Raises:
        UsageError: there is no artifact.
        DamagedArtifactError: a file differs from the manifest.
    """
    return verified_artifact(path if path.name != MANIFEST else path.parent)
