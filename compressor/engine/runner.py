"""Carries a plan out: for each step, take what is there and whole, or build, measure and publish it.

A step's life on disk: ``.staging/<id>/work`` holds its checkpoints; ``.staging/<id>/out`` its files; ``.staging/<id>/built.json``
says that the model is whole and what its files' hashes are, so that a kill while measuring does not cost the model. Then the
reports are written beside the model and all of it gets its final name at once.
"""

from __future__ import annotations

import datetime
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compressor.artifacts.errors_from_os import storage_error, writing
from compressor.artifacts.files import copy_file, write_atomic
from compressor.artifacts.manifest import FileEntry, Manifest, PassRecord
from compressor.artifacts.store import (
    LOGS,
    MANIFEST,
    MODEL,
    REPORTS,
    Artifact,
    damage,
    entries_of,
    open_artifact,
    verify,
)
from compressor.data.contract import Dataset
from compressor.engine import events
from compressor.engine.contract import PassContext
from compressor.engine.gates import check_gates
from compressor.engine.machine import PeakMemory, environment
from compressor.engine.plan import Plan, PlannedStep, evaluate_of
from compressor.engine.steplog import StepLog
from compressor.errors import (
    CompressError,
    DamagedArtifactError,
    Interrupted,
    PassError,
    RequirementError,
    StorageError,
    UsageError,
)
from compressor.evaluation.measure import measure
from compressor.evaluation.protocol import ReferenceModel
from compressor.evaluation.records import Measurement

Reporter = Callable[[Path, Manifest, Measurement | None], None]
"""Writes an artifact's reports into its folder, before it is published."""

_BUILT = "built.json"
_REPORT_FILES = (REPORTS, LOGS, "report.md", "report.html")


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
    gates: tuple[events.GateResult, ...]
    seconds: float


def select(plan: Plan, *, start: str | None, until: str | None, only: str | None) -> frozenset[str]:
    """Names of the steps that ``--from``, ``--until`` and ``--only`` leave to be built.

    Raises:
        UsageError: a name is not in the plan.
    """
    names = [step.name for step in plan.steps]
    for flag, name in (("--from", start), ("--until", until), ("--only", only)):
        if name is not None and name not in names:
            raise UsageError(f"{flag} {name}: there is no such step", remedy=f"steps: {', '.join(names)}")
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
        self.listener = listener
        self.log: StepLog | None = None
        self.reporter = reporter
        self.selected = selected
        self.force = force
        self.done: dict[str, StepResult] = {}
        self.datasets: dict[str, Dataset] = {}

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
            events.RunStarted(self.plan.pipeline.config.name, self.plan.store.root, tuple(s.name for s in wanted))
        )
        for step in wanted:
            try:
                self._step(step)
            except KeyboardInterrupt as error:
                interrupted = Interrupted(f"{step.name} was interrupted", remedy="the same command goes on from there")
                self.tell(events.StepFailed(step.name, interrupted))
                raise interrupted from error
            except CompressError as error:
                self.tell(events.StepFailed(step.name, error))
                raise
        manifests = {name: result.artifact.manifest for name, result in self.done.items()}
        gates = check_gates(self.plan.pipeline, manifests, {step.name: step.parent for step in wanted})
        return RunResult(tuple(self.done.values()), gates, time.perf_counter() - start)

    def tell(self, event: events.Event) -> None:
        """Pass an event on to the listener, and to the log of the step that is being built."""
        self.listener(event)
        if self.log is not None:
            self.log(event)

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
        with self.plan.store.lock(step.artifact_id, lambda: self.tell(events.Waiting(step.name, step.directory))):
            found = self._sound(step)
            rebuild = self.force and step.name in self.selected
            if found is not None and not rebuild:
                self.plan.store.discard_staging(step.artifact_id)
                if found.manifest.measured == step.measured:
                    self._finish(step, found, "cached", start, 0)
                else:
                    self._finish(step, self._measure_again(step, found), "measured", start, 0)
                return
            if step.name not in self.selected:
                raise UsageError(
                    f"{step.name} is needed and its artifact {step.directory} is not there",
                    remedy="run without --from/--only first",
                )
            artifact = self._build(step, found)
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
        seconds = time.perf_counter() - start
        estimate = step.estimate
        self.tell(
            events.StepFinished(
                step.name, artifact.path, how, seconds, peak, estimate.seconds, estimate.peak_memory_bytes
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
            self.tell(events.StepNote(step.name, f"reports are damaged and measured again: {'; '.join(found)}"))
            return Artifact(artifact.path, artifact.manifest.model_copy(update={"measured": "damaged"}))
        return artifact

    def _set_aside(self, step: PlannedStep, path: Path, details: str) -> None:
        moved = self.plan.store.set_aside(path)
        self.tell(events.ArtifactDamaged(step.name, path, moved, details))

    def _build(self, step: PlannedStep, replaced: Artifact | None) -> Artifact:
        store = self.plan.store
        staging = store.staging(step.artifact_id)
        out = staging / "out"
        resumed = any((staging / "work").iterdir()) or (staging / _BUILT).is_file()
        with self._logging(staging / "log.txt"):
            self.tell(events.StepStarted(step.name, step.pass_name, step.directory, resumed))
            built = self._finished_model(staging)
            if built is None:
                built = self._run_pass(step, staging)
            manifest = self._report(step, out, self._manifest(step, built), staging / "log.txt")
        if replaced is not None:
            store.remove(replaced.path)
        artifact = store.publish(out, manifest)
        store.discard(staging)
        return artifact

    @contextmanager
    def _logging(self, path: Path) -> Iterator[None]:
        self.log = StepLog(path)
        try:
            yield
        finally:
            self.log = None

    def _finished_model(self, staging: Path) -> dict[str, Any] | None:
        """What ``built.json`` says, where the files are still what it says."""
        marker = staging / _BUILT
        if not marker.is_file():
            return None
        built: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        found = {name: entry.model_dump() for name, entry in entries_of(staging / "out", MODEL).items()}
        return built if found == built["files"] else None

    def _run_pass(self, step: PlannedStep, staging: Path) -> dict[str, Any]:
        assert step.builder is not None  # noqa: S101 - given artifacts are never built
        out = staging / "out"
        inputs = {role: self.done[name].artifact for role, name in step.inputs.items()}
        with writing(staging):
            shutil.rmtree(out, ignore_errors=True)
            (out / MODEL).mkdir(parents=True)
        notes: list[str] = []
        context = self.context(step, staging / "work", inputs, notes)
        peak = PeakMemory()
        start = time.perf_counter()
        try:
            step.builder.requires(inputs, context)
            output = step.builder.run(inputs, out / MODEL, context)
            step.builder.ensures(inputs, out / MODEL, context)
        except CompressError:
            raise
        except OSError as error:
            raise storage_error(error, out) from error
        except Exception as error:
            raise unexpected(step, error, self.plan.store.root / ".staging") from error
        built = {
            "summary": {**output.summary, **({"notes": notes} if notes else {})},
            "seconds": time.perf_counter() - start,
            "peak_rss_bytes": peak.bytes(),
            "files": {name: entry.model_dump() for name, entry in entries_of(out, MODEL).items()},
        }
        with writing(staging):
            write_atomic(staging / _BUILT, json.dumps(built, allow_nan=False).encode())
        return built

    def context(self, step: PlannedStep, work: Path, inputs: Mapping[str, Artifact], notes: list[str]) -> PassContext:
        """What a step's pass is given; ``notes`` collects what it has to say."""

        def progress(what: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            self.tell(events.StepProgress(step.name, what, done, total, figures))

        def note(text: str) -> None:
            notes.append(text)
            self.tell(events.StepNote(step.name, text))

        return PassContext(
            artifacts=inputs,
            data=lambda name: self._dataset(step, name),
            work=work,
            seed=self.plan.seed,
            threads=self.plan.pipeline.config.threads,
            device=self.plan.device,
            artifact_id=step.artifact_id,
            progress=progress,
            note=note,
            cache=self.plan.sources.cache,
        )

    def _dataset(self, step: PlannedStep, name: str) -> Dataset:
        if name not in self.datasets:
            one = self.plan.pipeline.data[name]
            sources = self.plan.sources

            def progress(what: str, done: int, total: int) -> None:
                self.tell(events.StepProgress(step.name, what, done, total))

            context = type(sources)(sources.base, sources.allow_code, sources.cache, progress)
            self.datasets[name] = one.source.load(one.config, context)
        return self.datasets[name]

    def _manifest(self, step: PlannedStep, built: Mapping[str, Any]) -> Manifest:
        plan = self.plan
        return Manifest(
            id=step.artifact_id,
            step=step.name,
            kind=step.kind,
            parents={role: self.done[name].artifact.id for role, name in step.inputs.items()},
            pass_=PassRecord(name=step.pass_name, version=step.pass_version, config=dict(step.config), code=step.code),
            seed=plan.seed,
            tools=dict(step.tools),
            data=dict(step.data),
            files={name: FileEntry.model_validate(entry) for name, entry in built["files"].items()},
            reports={},
            measured="",
            metrics=(),
            summary=built["summary"],
            environment=environment(plan.pipeline.config.threads, plan.device),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds=built["seconds"],
            peak_rss_bytes=built["peak_rss_bytes"],
        )

    def _report(self, step: PlannedStep, folder: Path, manifest: Manifest, log: Path) -> Manifest:
        """Measure the model in ``folder``, write its reports and log there, and return the manifest that lists them."""
        measurement = self._measure(step, folder / MODEL)
        metrics = measurement.metrics if measurement else ()
        manifest = manifest.model_copy(update={"metrics": metrics, "measured": step.measured, "reports": {}})
        with writing(folder):
            for name in _REPORT_FILES:
                shutil.rmtree(folder / name, ignore_errors=True)
            self.reporter(folder, manifest, measurement)
            copy_file(log, folder / LOGS / "log.txt")
            return manifest.model_copy(update={"reports": entries_of(folder, *_existing(folder))})

    def _measure(self, step: PlannedStep, model: Path) -> Measurement | None:
        if not step.measured:
            return None
        plan = self.plan

        def progress(what: str, done: int, total: int) -> None:
            self.tell(events.StepProgress(step.name, what, done, total))

        measurement = measure(
            step.kind,
            model,
            evaluate_of(plan.pipeline, compared=step.reference is not None),
            {name: one.config.model_dump(mode="json") for name, one in plan.pipeline.data.items()},
            plan.sources,
            reference=self._reference(step, model),
            progress=progress,
        )
        self.tell(events.StepMeasured(step.name, measurement.metrics))
        return measurement

    def _reference(self, step: PlannedStep, model: Path) -> ReferenceModel | None:
        """What a step is compared with; ``model`` is its own, which is not published yet."""
        if step.reference is None:
            return None
        if step.reference == step.name:
            return ReferenceModel(id=step.artifact_id, kind=step.kind, model=model)
        artifact = self.done[step.reference].artifact
        return ReferenceModel(id=artifact.id, kind=artifact.manifest.kind, model=artifact.model)

    def _measure_again(self, step: PlannedStep, artifact: Artifact) -> Artifact:
        """New reports for a model that stays as it is."""
        staging = self.plan.store.staging(step.artifact_id)
        fresh = staging / "reports-only"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        (fresh / MODEL).symlink_to(artifact.model.resolve())
        with self._logging(staging / "log.txt"):
            self.tell(events.StepStarted(step.name, step.pass_name, step.directory, resumed=False))
            manifest = self._report(step, fresh, artifact.manifest, staging / "log.txt")
        replaced = self.plan.store.replace_reports(artifact, fresh, manifest)
        self.plan.store.discard(staging)
        return replaced


def unexpected(step: PlannedStep, error: Exception, folder: Path) -> CompressError:
    """What a library threw, as the error of the pass; its traceback goes into a file of ``folder``."""
    if "No space left on device" in str(error):
        return storage_error(OSError(28, "No space left on device"), folder)
    log = folder / f"{step.directory}.traceback.txt"
    with writing(log):
        write_atomic(log, "".join(traceback.format_exception(error)).encode())
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return PassError(f"{step.name} ({step.pass_name}) failed: {type(error).__name__}: {first}", remedy=f"see {log}")


def _existing(folder: Path) -> list[str]:
    return [name for name in _REPORT_FILES if (folder / name).exists()]


def load_given(path: Path) -> Artifact:
    """An artifact that a command names, every file of it verified.

    Raises:
        UsageError: there is none.
        DamagedArtifactError: a file differs from the manifest.
    """
    artifact = open_artifact(path if path.name != MANIFEST else path.parent)
    verify(artifact)
    return artifact
