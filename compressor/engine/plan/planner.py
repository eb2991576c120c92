"""From a pipeline to its plan: everything that can be known, and refused, before any work is done.

Planning has no side effects and loads neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.artifacts.fingerprint import digest_json, digest_tree
from compressor.artifacts.kinds import OF_FAMILIES, Kind
from compressor.artifacts.store import MANIFEST, Artifact, Store, open_artifact
from compressor.config.validation import references
from compressor.data.contract import SourceContext
from compressor.engine.contract import Estimate, PlanContext
from compressor.models.facts import ModelFacts
from compressor.engine.machine import tool_version
from compressor.engine.plan.pipeline import SOURCE, Pipeline, Step, reference_of
from compressor.engine.plan.plan import Builder, PassBuilder, Plan, PlannedStep, State, evaluate_of
from compressor.engine.plan.source_model import DirectorySource, FamilySource, open_source
from compressor.engine.plan.wiring import kind_problem, wiring_problems
from compressor.errors import CompressError, ConfigError, DamagedArtifactError, GpuError, Problem
from compressor.evaluation.measure import evaluation_digest

MEASURABLE = OF_FAMILIES | {Kind.ONNX, Kind.ENGINE}
"""The kinds that a runtime opens, or, of an engine without its GPU, whose graph answers for it."""


def make_plan(
    pipeline: Pipeline,
    store: Store,
    sources: SourceContext,
    *,
    seed: int | None = None,
    device: str = "cpu",
) -> Plan:
    """Check everything, compute every id, and look up what is there already.

    Raises:
        ConfigError: all problems at once: kinds that do not fit, names that do not exist, files that are missing.
        GpuError: a step needs a GPU that is not here.
    """
    return _Planner(
        pipeline, store, sources, pipeline.config.seed if seed is None else seed, device
    ).plan()


class _Planner:
    def __init__(
        self, pipeline: Pipeline, store: Store, sources: SourceContext, seed: int, device: str
    ) -> None:
        self.pipeline = pipeline
        self.document = pipeline.document
        self.store = store
        self.sources = sources
        self.seed = seed
        self.device = device
        self.problems: list[Problem] = []
        self.steps: dict[str, PlannedStep] = {}
        self.data_digests: dict[str, str] = {}
        self.reference = reference_of(pipeline.config.evaluate)

    def plan(self) -> Plan:
        self.problems += wiring_problems(self.pipeline, self.sources)
        source = self._opened_source()
        self._raise_if_any()
        self._plan_reference()
        self._plan_source(source)
        for step in self.pipeline.steps:
            self._plan_step(step)
        self._check_reference()
        self._raise_if_any()
        return Plan(
            self.pipeline,
            self.store,
            self.seed,
            self.device,
            self.sources,
            tuple(self.steps.values()),
        )

    def _raise_if_any(self) -> None:
        if self.problems:
            raise ConfigError(sorted(self.problems, key=lambda problem: problem.line or 0))

    def _problem(self, at: tuple[str | int, ...], what: str, **more: str | None) -> None:
        self.problems.append(self.document.problem(at, what, **more))

    def _outside(self, value: str) -> Path:
        return (self.pipeline.base / value).resolve()

    def _plan_reference(self) -> None:
        """An artifact that lies outside comes first, as the source is compared with it already."""
        if self.reference not in {None, SOURCE, *(step.name for step in self.pipeline.steps)}:
            self._plan_given(str(self.reference), self._outside(str(self.reference)))

    def _check_reference(self) -> None:
        if (
            self.reference is not None
            and (kind := self.steps[self.reference].kind) not in MEASURABLE
        ):
            what = f"{self.reference!r} cannot be compared with: nothing here runs artifacts of kind {kind}"
            self._problem(
                ("evaluate", "accuracy", "reference"), what, remedy="name its torch or onnx parent"
            )

    def _opened_source(self) -> FamilySource | DirectorySource | None:
        """What ``model:`` names; None for an artifact, and where there is something wrong with it."""
        model = self.pipeline.config.model
        try:
            if model.path is not None and (self._outside(model.path) / MANIFEST).is_file():
                open_artifact(self._outside(model.path))
                return None
            return open_source(model, self.document, self.pipeline.base)
        except ConfigError as error:
            self.problems += error.problems
        except DamagedArtifactError:
            raise
        except CompressError as error:
            self._problem(
                ("model", "path" if model.path else "family"), error.what, remedy=error.remedy
            )
        return None

    def _plan_source(self, source: FamilySource | DirectorySource | None) -> None:
        if source is not None:
            self._add_source(source)
        else:
            self._plan_given(SOURCE, self._outside(str(self.pipeline.config.model.path)))
        for step in self.pipeline.steps:
            if step.parent == SOURCE and self.steps[SOURCE].kind not in step.pass_.accepts:
                self.problems.append(
                    kind_problem(self.pipeline, step, "the source model", self.steps[SOURCE].kind)
                )

    def _plan_given(self, name: str, path: Path) -> None:
        artifact = open_artifact(path)
        manifest = artifact.manifest
        self.steps[name] = PlannedStep(
            name,
            manifest.pass_.name,
            manifest.pass_.version,
            manifest.kind,
            manifest.id,
            None,
            artifact,
            {},
            manifest.pass_.config,
            None,
            manifest.tools,
            manifest.data,
            manifest.measured,
            None,
            "given",
            Estimate(self._given_facts(artifact)),
        )

    def _given_facts(self, artifact: Artifact) -> ModelFacts:
        if artifact.manifest.kind not in OF_FAMILIES:
            return ModelFacts(size_bytes=artifact.manifest.model_bytes)
        from compressor.models.facts import facts_of

        return facts_of(artifact.model)

    def _add_source(self, source: FamilySource | DirectorySource) -> None:
        facts = source.facts()
        size = facts.size_bytes
        self._add(
            SOURCE,
            source.name,
            source.version,
            source.kind,
            source,
            {},
            source.fingerprint(),
            source.fingerprint(),
            None,
            source.tools,
            {},
            self.pipeline.config.model.measure,
            Estimate(facts, disk_bytes=size),
        )

    def _plan_step(self, step: Step) -> None:
        inputs = {"parent": step.parent}
        data: dict[str, str] = {}
        config = step.config.model_dump(mode="json")
        neutral = step.config.model_dump(mode="json")
        for place, reference, value in references(step.config):
            if reference.to == "data":
                data[value] = self._data_digest(value)
                _put(neutral, place, data[value])
            elif reference.to == "step":
                self._name_input(inputs, place, value)
                _put(neutral, place, self.steps[inputs[str(place[-1])]].artifact_id)
        roles = {role: self.steps[name].estimate.model for role, name in inputs.items()}
        context = PlanContext(roles)
        try:
            estimate = step.pass_.estimate(step.config, roles["parent"], context)
        except GpuError:  # what this machine lacks is no mistake of the file
            raise
        except CompressError as error:
            self._problem(("passes", step.index), error.what, remedy=error.remedy)
            self._raise_if_any()
            raise
        pass_ = step.pass_
        self._add(
            step.name,
            pass_.name,
            pass_.version,
            pass_.produces,
            PassBuilder(step),
            inputs,
            config,
            neutral,
            _foreign_code(pass_),
            pass_.tools_for(step.config),
            data,
            step.measure,
            estimate,
        )

    def _name_input(self, inputs: dict[str, str], place: tuple[str | int, ...], value: str) -> None:
        if value not in self.steps:
            self._plan_given(value, self._outside(value))
        inputs[str(place[-1])] = value

    def _data_digest(self, name: str) -> str:
        if name not in self.data_digests:
            one = self.pipeline.data[name]
            self.data_digests[name] = one.source.digest(one.config, self.sources)
        return self.data_digests[name]

    def _measured(self, kind: Kind, wanted: bool, reference: str | None) -> str:
        """The digest of what is measured; ``reference`` is the id of the artifact that is compared with."""
        evaluate = evaluate_of(self.pipeline, compared=reference is not None)
        if (
            not wanted
            or kind not in MEASURABLE
            or (evaluate.accuracy is None and evaluate.latency is None)
        ):
            return ""
        used = {value for _, named, value in references(evaluate) if named.to == "data"}
        return evaluation_digest(
            evaluate, {name: self._data_digest(name) for name in sorted(used)}, reference
        )

    def _add(
        self,
        name: str,
        pass_name: str,
        version: int,
        kind: Kind,
        builder: Builder,
        inputs: Mapping[str, str],
        config: Mapping[str, Any],
        neutral: Mapping[str, Any],
        code: str | None,
        tools: tuple[str, ...],
        data: Mapping[str, str],
        measure: bool,
        estimate: Estimate,
    ) -> None:
        """Compute the id from all that can change the bytes; the names of steps and sets cannot."""
        versions = {tool: tool_version(tool) for tool in tools}
        artifact_id = digest_json(
            {
                "pass": [pass_name, version, code],
                "config": neutral,
                "inputs": {role: self.steps[parent].artifact_id for role, parent in inputs.items()},
                "data": sorted(data.values()),
                "tools": versions,
                "seed": self.seed,
                "threads": self.pipeline.config.threads,
                "device": self.device,
            }
        )
        reference = None
        if self.reference == name:
            reference = artifact_id
        elif self.reference in self.steps:
            reference = self.steps[self.reference].artifact_id
        measured = self._measured(kind, measure, reference)
        state = self._state(pass_name, artifact_id, measured)
        self.steps[name] = PlannedStep(
            name,
            pass_name,
            version,
            kind,
            artifact_id,
            builder,
            None,
            inputs,
            config,
            code,
            versions,
            data,
            measured,
            self.reference if measured and reference else None,
            state,
            estimate,
        )

    def _state(self, pass_name: str, artifact_id: str, measured: str) -> State:
        try:
            artifact = self.store.find(pass_name, artifact_id)
        except DamagedArtifactError:
            return "damaged"
        if artifact is not None:
            return "cached" if artifact.manifest.measured == measured else "measure"
        return "resume" if (self.store.root / ".staging" / artifact_id[:12]).is_dir() else "build"


def _put(tree: Any, place: tuple[str | int, ...], value: str) -> None:
    for part in place[:-1]:
        tree = tree[part]
    tree[place[-1]] = value


def _foreign_code(pass_: object) -> str | None:
    """sha256 of the package that holds a pass of somebody else's; ours are told apart by their version."""
    import sys

    module = sys.modules[type(pass_).__module__]
    if module.__name__.split(".")[0] == "passes" or module.__file__ is None:
        return None
    return digest_tree(Path(module.__file__).parent, "*.py")
