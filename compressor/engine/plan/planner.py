"""Planning: check a pipeline, and compute the id, the state and the estimate of every step.

Planning has no side effects and loads neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compressor.artifacts.artifact import MANIFEST, open_artifact
from compressor.artifacts.store import Store
from compressor.config.document import Location
from compressor.config.permission import allow_code
from compressor.config.record import with_former_names
from compressor.config.validation import references
from compressor.data.contract import SourceContext
from compressor.engine.contract import Estimate, PlanContext
from compressor.engine.plan.capabilities import missing_capabilities, pattern_refusal
from compressor.engine.plan.class_checks import class_notes, class_problems
from compressor.engine.plan.code_checks import check_user_code
from compressor.engine.plan.config import SOURCE
from compressor.engine.plan.data_uses import PlannedData, measured_uses, pass_uses
from compressor.engine.plan.identity import (
    BuildSettings,
    compute_id,
    measurement_digest,
    replace_value,
    third_party_digest,
    tool_versions,
)
from compressor.engine.plan.pipeline import Pipeline, Step, reference_of
from compressor.engine.plan.plan import (
    Builder,
    CheckedPipeline,
    DataUse,
    PassBuilder,
    Plan,
    PlannedStep,
    Recipe,
    evaluate_of,
)
from compressor.engine.plan.source_model import SourceModel, open_source
from compressor.engine.plan.stored_steps import facts_of_artifact, measured_copy, state_of
from compressor.engine.plan.wiring import format_problem, format_read, wiring_problems
from compressor.errors import CompressError, ConfigError, DamagedArtifactError, Problem
from compressor.foreign_files.real_path import real_path
from compressor.models.facts import ModelFacts
from compressor.runtimes.formats import accepts, format_named


def make_plan(
    pipeline: Pipeline,
    store: Store,
    sources: SourceContext,
    *,
    seed: int | None = None,
    device: str = "cpu",
) -> Plan:
    """Check everything, compute every id, and look up what is already in the store.

    Raises:
        ConfigError: all problems at once: formats that do not fit, unknown names, missing files,
            data sets that do not fit the models, GPUs that this machine lacks.
    """
    if pipeline.problems:
        check_pipeline(pipeline, sources)  # raises, before content is hashed
    seed = pipeline.config.seed if seed is None else seed
    notes: list[str] = []
    noting = replace(sources, note=notes.append)
    plan = _Planner(pipeline, store, noting, seed, device).plan(store)
    return replace(plan, sources=sources, notes=tuple(dict.fromkeys(notes)))


def check_pipeline(pipeline: Pipeline, sources: SourceContext) -> CheckedPipeline:
    """Check everything that a plan checks, without reading weights and samples for their digests.

    Raises:
        ConfigError: as ``make_plan``.
    """
    notes: list[str] = []
    noting = replace(sources, note=notes.append)
    planner = _Planner(pipeline, None, noting, pipeline.config.seed, "cpu")
    planner.check()
    return CheckedPipeline(tuple(planner.steps), tuple(dict.fromkeys(notes)))


@dataclass(slots=True)
class _StepWithoutId:
    """A step before its id is computed."""

    name: str
    recipe: Recipe
    format: str
    builder: Builder
    estimate: Estimate
    measure: bool
    hashed_config: Mapping[str, Any]
    """The config as the id covers it: renamed fields have their first name, and names of steps and
    data sets are replaced by the ids they stand for."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    data: tuple[DataUse, ...] = ()


class _Planner:
    """State of planning.

    Without a store no content is hashed: ids have no meaning, and every step is to be built.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        store: Store | None,
        sources: SourceContext,
        seed: int,
        device: str,
    ) -> None:
        self.pipeline, self.store, self.sources = pipeline, store, sources
        if sources.allow_code:
            allow_code()
        self.seed, self.device = seed, device
        self.problems: list[Problem] = list(pipeline.problems)
        self.steps: dict[str, PlannedStep] = {}
        self.data = PlannedData(pipeline, sources, self.problems)
        self.reference = reference_of(pipeline.config.evaluate)

    def plan(self, store: Store) -> Plan:
        self.check()
        steps = tuple(self.steps.values())
        return Plan(self.pipeline, store, self.seed, self.device, self.sources, steps)

    def check(self) -> None:
        unknown_keys = len(self.problems)
        self.problems += wiring_problems(self.pipeline)
        source = self._open_source()
        can_plan = len(self.problems) == unknown_keys
        self.data.check_sets()
        if not can_plan:  # data sets with problems do not keep the steps from being checked
            self._raise_if_any()
        self._plan_reference()
        self._plan_source(source)
        for step in self.pipeline.steps:
            self._plan_step(step)
        self._check_reference()
        uses = [use for step in self.steps.values() for use in step.data]
        self.problems += class_problems(self.pipeline, uses, self.data.facts)
        for note in class_notes(uses, self.data.facts):
            self.sources.note(note)
        self._raise_if_any()

    def _raise_if_any(self) -> None:
        if self.problems:
            problems = dict.fromkeys(self.problems)
            raise ConfigError(sorted(problems, key=lambda problem: problem.line or 0))

    def _add_problem(self, location: Location, what: str, remedy: str | None = None) -> None:
        self.problems.append(self.pipeline.document.problem(location, what, remedy=remedy))

    def _resolve(self, path: str) -> Path:
        return real_path(self.pipeline.base / path)

    def _plan_reference(self) -> None:
        """Add the reference first if it is outside the pipeline: the source needs its id."""
        if self.reference not in {None, SOURCE, *(step.name for step in self.pipeline.steps)}:
            self._add_existing(str(self.reference), self._resolve(str(self.reference)))

    def _check_reference(self) -> None:
        if self.reference is None:
            return
        format_name = self.steps[self.reference].format
        if format_named(format_name).runtime is None:
            location = ("evaluate", "accuracy", "reference")
            what = f"{self.reference!r} cannot be the reference: no runtime executes {format_name}"
            self._add_problem(location, what, remedy="name its torch or onnx parent")

    def _open_source(self) -> SourceModel | None:
        """Return the source that ``model:`` names.

        None for an artifact, and after an error has been added to the problems.
        """
        model = self.pipeline.config.model
        try:
            if model.path is not None and (self._resolve(model.path) / MANIFEST).is_file():
                artifact = open_artifact(self._resolve(model.path))
                check_user_code(facts_of_artifact(artifact), artifact.path)
                return None
            source = open_source(model, self.pipeline.document, self.pipeline.base)
            check_user_code(source.facts(), self._resolve(model.path or ""))
            return source
        except ConfigError as error:
            self.problems += error.problems
        except DamagedArtifactError:  # not a mistake in the file
            raise
        except CompressError as error:
            self._add_problem(("model", model.start), error.what, error.remedy)
        return None

    def _plan_source(self, source: SourceModel | None) -> None:
        if source is not None:
            for note in source.notes():
                self.sources.note(note)
            self._add_source(source)
        else:
            self._add_existing(SOURCE, self._resolve(str(self.pipeline.config.model.path)))
            self._measure_existing(SOURCE)
        format_name = self.steps[SOURCE].format
        for step in self.pipeline.steps:
            read = format_read(self.pipeline, step, format_name)
            is_source = format_read(self.pipeline, step) is None
            if is_source and read and not accepts(step.pass_.accepts, read):
                parent = "the source model" if step.parent == SOURCE else step.parent
                self.problems.append(format_problem(self.pipeline, step, parent, read))

    def _add_existing(self, name: str, path: Path) -> None:
        """Add an existing artifact as a planned step."""
        artifact = open_artifact(path)
        facts, manifest = facts_of_artifact(artifact), artifact.manifest
        check_user_code(facts, path)
        pass_ = manifest.pass_
        self.steps[name] = PlannedStep(
            name=name,
            recipe=Recipe(
                pass_.name, pass_.version, pass_.config, pass_.code, manifest.tools, manifest.data
            ),
            format=format_named(manifest.format).name,
            artifact_id=manifest.id,
            inputs={},
            state="given",
            estimate=Estimate(facts),
            given=artifact,
            measured=manifest.measured,
        )

    def _measure_existing(self, name: str) -> None:
        """Measure an existing artifact by the settings of this pipeline, if they differ."""
        step = self.steps[name]
        reference_id = self._reference_id(name, step.artifact_id)
        measure = self.pipeline.config.model.measure
        measured = self._measurement_digest(step.format, reference_id, measure=measure)
        if measured in {"", step.measured}:
            return
        if (copy := measured_copy(self.store, step, measured)) is not None:
            self.steps[name] = replace(step, given=copy, measured=measured)
            return
        facts = step.estimate.model
        uses = self._measured_uses(facts, measured, reference_id)
        self.data.check(uses)
        reference = self.reference if reference_id else None
        self.steps[name] = replace(
            step, state="measure", measured=measured, reference=reference, data=uses
        )

    def _add_source(self, source: SourceModel) -> None:
        facts = source.facts()
        config = {} if self.store is None else source.fingerprint()
        tools = tool_versions(source.tools)
        self._add(
            _StepWithoutId(
                name=SOURCE,
                recipe=Recipe(source.name, source.version, config, None, tools, {}),
                format=source.format,
                builder=source,
                estimate=Estimate(facts, disk_bytes=facts.size_bytes),
                measure=self.pipeline.config.model.measure,
                hashed_config=config,
            )
        )

    def _plan_step(self, step: Step) -> None:
        inputs = {"parent": step.parent}
        data: dict[str, str] = {}
        hashed_config = step.config.model_dump(mode="json")
        for location, target, name in references(step.config):
            if target.to == "data":
                data[name] = self._digest(name)
                replace_value(hashed_config, location, data[name])
            elif target.to == "step":
                if name not in self.steps:
                    self._add_existing(name, self._resolve(name))
                inputs[str(location[-1])] = name  # the field's name is the role
                replace_value(hashed_config, location, self.steps[name].artifact_id)
        pass_ = step.pass_
        estimate = self._estimate(step, inputs)
        self._add(
            _StepWithoutId(
                name=step.name,
                recipe=Recipe(
                    pass_.name,
                    pass_.version,
                    step.config.model_dump(mode="json"),
                    third_party_digest(pass_),
                    self._tools(step),
                    data,
                ),
                format=self._format_written(step),
                builder=PassBuilder(step),
                estimate=estimate,
                measure=step.measure,
                hashed_config=with_former_names(step.config, hashed_config),
                inputs=inputs,
                data=pass_uses(step, self._input_facts(inputs), estimate),
            )
        )

    def _format_written(self, step: Step) -> str:
        return self.steps[step.parent].format if step.pass_.keeps_format else step.pass_.produces

    def _tools(self, step: Step) -> dict[str, str]:
        try:
            return tool_versions(step.pass_.tools_for(step.config))
        except CompressError as error:
            self._add_problem(("passes", step.index), error.what, error.remedy)
            return {}

    def _input_facts(self, inputs: Mapping[str, str]) -> dict[str, ModelFacts]:
        return {role: self.steps[name].estimate.model for role, name in inputs.items()}

    def _estimate(self, step: Step, inputs: Mapping[str, str]) -> Estimate:
        facts = self._input_facts(inputs)
        lacking = missing_capabilities(facts["parent"], step.pass_.needs(step.config))
        for need in lacking:
            what = f"{step.pass_.name} needs {need.label}, which the model of {step.parent} lacks"
            self._add_problem(("passes", step.index), what, need.remedy)
        if (refusal := pattern_refusal(step.pass_, facts["parent"])) is not None:
            self._add_problem(("passes", step.index), refusal.what, refusal.remedy)
            return Estimate(facts["parent"])
        if lacking:  # later steps are checked against the parent, so that their problems show
            return Estimate(facts["parent"])
        names = [name for _, target, name in references(step.config) if target.to == "data"]
        formats = {role: self.steps[name].format for role, name in inputs.items()}
        context = PlanContext(facts, {name: self.data.facts(name) for name in names}, formats)
        try:
            estimate = step.pass_.estimate(step.config, facts["parent"], context)
        except CompressError as error:
            self._add_problem(("passes", step.index), error.what, error.remedy)
            return Estimate(facts["parent"])
        for note in estimate.notes:
            self.sources.note(f"{step.name}: {note}")
        return estimate

    def _measured_uses(
        self, model: ModelFacts, measured: str, reference_id: str | None
    ) -> tuple[DataUse, ...]:
        """Return the data sets that a step is measured on; add metrics that do not apply."""
        if not measured:
            return ()
        evaluate = evaluate_of(self.pipeline, compared=reference_id is not None)
        self.data.check_metrics(evaluate, model)
        return measured_uses(evaluate, model)

    def _digest(self, name: str) -> str:
        """Return the digest of a data set."""
        return name if self.store is None else self.data.digest(name)

    def _add(self, draft: _StepWithoutId) -> None:
        """Compute a step's id from all that can change the bytes, and look it up in the store."""
        inputs = {role: self.steps[parent].artifact_id for role, parent in draft.inputs.items()}
        settings = BuildSettings(self.seed, self.pipeline.config.threads, self.device)
        artifact_id = compute_id(draft.recipe, draft.hashed_config, inputs, settings)
        reference_id = self._reference_id(draft.name, artifact_id)
        measured = self._measurement_digest(draft.format, reference_id, measure=draft.measure)
        model = draft.estimate.model
        uses = (*draft.data, *self._measured_uses(model, measured, reference_id))
        self.data.check(uses)
        self.steps[draft.name] = PlannedStep(
            name=draft.name,
            recipe=draft.recipe,
            format=draft.format,
            artifact_id=artifact_id,
            inputs=draft.inputs,
            state=state_of(self.store, draft.recipe.pass_name, artifact_id, measured),
            estimate=draft.estimate,
            builder=draft.builder,
            measured=measured,
            reference=self.reference if measured and reference_id else None,
            data=uses,
        )

    def _reference_id(self, name: str, artifact_id: str) -> str | None:
        """Return the id of the artifact that a step is compared with; None if none exists yet."""
        if self.reference == name:
            return artifact_id
        return self.steps[self.reference].artifact_id if self.reference in self.steps else None

    def _measurement_digest(
        self, format_name: str, reference_id: str | None, *, measure: bool
    ) -> str:
        """Return the digest of a step's measurement settings; empty if it is not measured."""
        evaluate = evaluate_of(self.pipeline, compared=reference_id is not None)
        if not measure or evaluate.measures_nothing:
            return ""
        if remedy := format_named(format_name).runtime_remedy:
            self.sources.note(f"{format_name} files are not measured here: {remedy}")
        if format_named(format_name).runtime is None:
            return ""
        return measurement_digest(evaluate, reference_id, self._digest)
