"""Build one step: run its pass, measure the model, write the reports, publish the artifact.

Layout while a step is being built: ``.staging/<id>/work`` holds checkpoints, ``.staging/<id>/out``
the output, and ``.staging/<id>/built.json`` the hashes of the complete model, so that a kill during
measurement does not cost the model. Reports are written beside the model, then everything gets its
final name in one rename.
"""

from __future__ import annotations

import datetime
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from compressor import interrupts
from compressor.artifacts.artifact import LOGS, MODEL, REPORTS, Artifact, entries_of, folder_damage
from compressor.artifacts.causes import known_cause, summary
from compressor.artifacts.errors_from_os import storage_error, writing
from compressor.artifacts.files import copy_file, write_atomic
from compressor.artifacts.manifest import FileEntry, Manifest, PassRecord
from compressor.artifacts.records import parse, read_unlisted
from compressor.engine import events
from compressor.engine.contract import PassContext
from compressor.engine.machine import PeakMemory, environment
from compressor.engine.plan.plan import Plan, PlannedStep, evaluate_of
from compressor.engine.run.checked_data import RunData, uses_of_pass
from compressor.engine.run.step_log import StepLog
from compressor.errors import CompressError, DamagedArtifactError, PassError
from compressor.evaluation.measure import measure
from compressor.evaluation.protocol import ReferenceModel
from compressor.evaluation.records import Measurement
from compressor.runtimes.call_limit import limit_calls
from compressor.runtimes.formats import StoredModel, format_named

Reporter = Callable[[Path, Manifest, Measurement | None], None]
"""Writes an artifact's reports into its folder, before it is published."""

_BUILT = "built.json"
_REPORT_FILES = (REPORTS, LOGS, "report.md", "report.html")


class _Built(BaseModel):
    """``built.json``: a model that is complete, and not measured yet."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    summary: dict[str, Any]
    seconds: float
    peak_rss_bytes: int
    files: dict[str, FileEntry]


class StepBuilder:
    """Builds and measures the steps of one plan, one after the other.

    Attributes:
        artifacts: step to artifact, of the steps that are done. Later steps read them and are
            compared with them.
    """

    def __init__(self, plan: Plan, listener: events.Listener, reporter: Reporter) -> None:
        self.plan, self.listener, self.reporter = plan, listener, reporter
        self.artifacts: dict[str, Artifact] = {}
        self._log: StepLog | None = None
        self.data = RunData(plan, self.emit)

    def emit(self, event: events.Event) -> None:
        """Send an event to the listener, and to the log of the step that is being built.

        Raises:
            KeyboardInterrupt: the run was asked to stop, and a library has lost the exception.
        """
        interrupts.check()
        self.listener(event)
        if self._log is not None:
            self._log(event)

    def build(self, step: PlannedStep, replaced: Artifact | None) -> Artifact:
        """Run or resume a step's pass; the new artifact takes the place of ``replaced`` at once."""
        store = self.plan.store
        staging = store.staging(step.artifact_id)
        out = staging / "out"
        resumed = any((staging / "work").iterdir()) or (staging / _BUILT).is_file()
        with self._logging(staging / "log.txt"):
            self.emit(events.StepStarted(step.name, step.pass_name, step.directory, resumed))
            built = self._finished_model(staging)
            if built is None:
                built = self._run_pass(step, staging)
            manifest = self._report(step, out, self._manifest(step, built), staging / "log.txt")
        interrupts.check()
        artifact = store.publish(out, manifest, replaced)
        store.discard(staging)
        return artifact

    @contextmanager
    def _logging(self, path: Path) -> Iterator[None]:
        self._log = StepLog(path)
        try:
            yield
        finally:
            self._log = None

    def _finished_model(self, staging: Path) -> _Built | None:
        """Return the content of built.json if it and the files it lists are intact, else None."""
        content = read_unlisted(staging / _BUILT)
        if content is None:
            return None
        try:
            built = parse(staging / _BUILT, content, _Built)
        except DamagedArtifactError:
            return None
        return None if folder_damage(staging / "out", built.files, MODEL) else built

    def _run_pass(self, step: PlannedStep, staging: Path) -> _Built:
        assert step.builder is not None  # noqa: S101 - given artifacts are never built
        out = staging / "out"
        inputs = {role: self.artifacts[name] for role, name in step.inputs.items()}
        with writing(staging):
            shutil.rmtree(out, ignore_errors=True)
            (out / MODEL).mkdir(parents=True)
        notes: list[str] = []
        context = self.context(step, staging / "work", inputs, notes)
        peak = PeakMemory()
        start = time.perf_counter()
        try:
            context.progress("check the inputs", 0, 1, {})
            with self.limited_calls(inputs, out):
                self.require(step, inputs, context)
                output = step.builder.run(inputs, out / MODEL, context)
                context.progress("check the result", 0, 1, {})
                step.builder.ensures(inputs, out / MODEL, context)
        except CompressError:
            raise
        except Exception as error:
            interrupts.check()  # a library may have made an error of it
            raise unexpected_error(step, error, self.plan.store.root / ".staging") from error
        built = _Built(
            summary={**output.summary, **({"notes": notes} if notes else {})},
            seconds=time.perf_counter() - start,
            peak_rss_bytes=peak.bytes(),
            files=entries_of(out, MODEL),
        )
        content = json.dumps(built.model_dump(), allow_nan=False)
        with writing(staging):
            write_atomic(staging / _BUILT, content.encode())
        return built

    def limited_calls(
        self, inputs: Mapping[str, Artifact], out: Path
    ) -> AbstractContextManager[None]:
        """Limit the calls of models by a pass; a step without a parent writes ``out``."""
        model = inputs["parent"].model if "parent" in inputs else out
        return limit_calls(model, self.plan.pipeline.config.evaluate.call_timeout)

    def require(
        self, step: PlannedStep, inputs: Mapping[str, Artifact], context: PassContext
    ) -> None:
        """Check a step's data sets against its input artifacts, and what its pass requires.

        Raises:
            ConfigError: data sets do not fit; all problems are listed.
            RequirementError: as ``Pass.requires``.
        """
        assert step.builder is not None  # noqa: S101 - given artifacts are never built
        self.data.check([(step, use) for use in uses_of_pass(step, inputs)])
        step.builder.requires(inputs, context)

    def context(
        self, step: PlannedStep, work: Path, inputs: Mapping[str, Artifact], notes: list[str]
    ) -> PassContext:
        """Return the context of a step's pass; ``notes`` collects its notes."""
        uses = uses_of_pass(step, inputs)

        def progress(what: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            self.emit(events.StepProgress(step.name, what, done, total, figures))

        def note(text: str) -> None:
            notes.append(text)
            self.emit(events.StepNote(step.name, text))

        return PassContext(
            artifacts=inputs,
            data=lambda name: self.data.checked(step, name, uses),
            work=work,
            seed=self.plan.seed,
            threads=self.plan.pipeline.config.threads,
            device=self.plan.device,
            artifact_id=step.artifact_id,
            progress=progress,
            note=note,
            cache=self.plan.sources.cache,
        )

    def _manifest(self, step: PlannedStep, built: _Built) -> Manifest:
        plan = self.plan
        return Manifest(
            id=step.artifact_id,
            step=step.name,
            format=step.format,
            parents={role: self.artifacts[name].id for role, name in step.inputs.items()},
            pass_=PassRecord(
                name=step.pass_name,
                version=step.recipe.pass_version,
                config=dict(step.recipe.config),
                code=step.recipe.code,
            ),
            seed=plan.seed,
            tools=dict(step.recipe.tools),
            data=dict(step.recipe.data),
            files=built.files,
            reports={},
            measured="",
            metrics=(),
            summary=built.summary,
            environment=environment(plan.pipeline.config.threads, plan.device),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds=built.seconds,
            peak_rss_bytes=built.peak_rss_bytes,
        )

    def build_unpublished(self, step: PlannedStep, folder: Path) -> Artifact:
        """Build a step without inputs in ``folder``, unpublished, for a pass to inspect."""
        assert step.builder is not None  # noqa: S101 - given artifacts exist already
        (folder / MODEL).mkdir()
        step.builder.run({}, folder / MODEL, self.context(step, folder, {}, []))
        empty = _Built(summary={}, seconds=0.0, peak_rss_bytes=0, files={})
        return Artifact(folder, self._manifest(step, empty))

    def _report(self, step: PlannedStep, folder: Path, manifest: Manifest, log: Path) -> Manifest:
        """Measure the model in ``folder``, write its reports, and return the manifest."""
        measurement = self._measure(step, folder / MODEL)
        metrics = measurement.metrics if measurement else ()
        manifest = manifest.model_copy(
            update={"metrics": metrics, "measured": step.measured, "reports": {}}
        )
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
            self.emit(events.StepProgress(step.name, what, done, total))

        measurement = measure(
            StoredModel(format_named(step.format), model),
            evaluate_of(plan.pipeline, compared=step.reference is not None),
            {
                name: data.config.model_dump(mode="json")
                for name, data in plan.pipeline.data.items()
            },
            plan.sources,
            reference=self._reference(step, model),
            progress=progress,
        )
        for note in measurement.notes:
            self.emit(events.StepNote(step.name, note))
        self.emit(events.StepMeasured(step.name, measurement.metrics))
        return measurement

    def _reference(self, step: PlannedStep, model: Path) -> ReferenceModel | None:
        """Return the model to compare with; ``model`` is the step's own, not published yet."""
        if step.reference is None:
            return None
        if step.reference == step.name:
            return ReferenceModel(id=step.artifact_id, format=step.format, model=model)
        artifact = self.artifacts[step.reference]
        return ReferenceModel(id=artifact.id, format=artifact.manifest.format, model=artifact.model)

    def remeasure(self, step: PlannedStep, artifact: Artifact) -> Artifact:
        """Measure an unchanged model again and replace its reports."""
        store = self.plan.store
        staging = store.staging(step.artifact_id)
        with store.current_session() as session:
            fresh = session.temporary("reports")
            fresh.mkdir(parents=True)
            (fresh / MODEL).symlink_to(artifact.model.resolve())
            with self._logging(staging / "log.txt"):
                self.emit(events.StepStarted(step.name, step.pass_name, step.directory, False))
                manifest = self._report(step, fresh, artifact.manifest, staging / "log.txt")
            (fresh / MODEL).unlink()
            interrupts.check()
            measured = store.replace_reports(artifact, fresh, manifest)
        store.discard(staging)
        return measured


def unexpected_error(step: PlannedStep, error: Exception, folder: Path) -> CompressError:
    """Return the error for a library's exception; its traceback goes to a file in ``folder``.

    A cause that has nothing to do with the pass, such as a full disk, is reported as itself.
    """
    if (cause := known_cause(error, folder)) is not None:
        return cause
    if isinstance(error, OSError):
        return storage_error(error, folder)
    log = folder / f"{step.directory}.traceback.txt"
    with writing(log):
        write_atomic(log, "".join(traceback.format_exception(error)).encode())
    return PassError(
        f"{step.name} ({step.pass_name}) failed: {summary(error)}", remedy=f"see {log}"
    )


def _existing(folder: Path) -> list[str]:
    return [name for name in _REPORT_FILES if (folder / name).exists()]
