"""From a pipeline to typed, hashed steps: everything that can be known, and refused, before any work is done.

Planning has no side effects and loads neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from compressor.artifacts.fingerprint import digest_json, digest_tree
from compressor.artifacts.kinds import OF_FAMILIES, Kind
from compressor.artifacts.store import MANIFEST, Artifact, Store, open_artifact
from compressor.config.discovery import suggestion
from compressor.config.validation import references
from compressor.data.contract import SourceContext
from compressor.engine.contract import Estimate, ModelFacts, Pass, PassContext, PassOutput, PlanContext
from compressor.engine.gates import gate_problems
from compressor.engine.machine import tool_version
from compressor.engine.pipeline import SOURCE, Pipeline, Step, reference_of
from compressor.engine.source import DirectorySource, FamilySource, open_source
from compressor.errors import CompressError, ConfigError, DamagedArtifactError, GpuError, Problem
from compressor.evaluation.measure import evaluation_digest
from compressor.evaluation.metrics import referring
from compressor.evaluation.records import EvaluateConfig

MEASURABLE = OF_FAMILIES | {Kind.ONNX, Kind.ENGINE}
"""The kinds that a runtime opens, or, of an engine without its GPU, whose graph answers for it."""

State = Literal["cached", "measure", "resume", "build", "given", "damaged"]


class Builder(Protocol):
    """What the runner calls: a source, or a pass with its config."""

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:
        """Cheap checks of the inputs."""

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """Write the model."""

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:
        """Reload what was written."""


@dataclass(frozen=True, slots=True)
class PassBuilder:
    """A pass with its config; the input ``parent`` is the artifact it reads."""

    step: Step

    def requires(self, inputs: Mapping[str, Artifact], context: PassContext) -> None:
        """As ``Pass.requires``."""
        self.step.pass_.requires(self.step.config, inputs["parent"], context)

    @property
    def previews(self) -> bool:
        """Whether the pass can tell what it would decide."""
        return type(self.step.pass_).preview is not Pass.preview

    def preview(self, inputs: Mapping[str, Artifact], context: PassContext) -> list[Mapping[str, Any]]:
        """As ``Pass.preview``."""
        return self.step.pass_.preview(self.step.config, inputs["parent"], context)

    def run(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> PassOutput:
        """As ``Pass.run``."""
        return self.step.pass_.run(self.step.config, inputs["parent"], out, context)

    def ensures(self, inputs: Mapping[str, Artifact], out: Path, context: PassContext) -> None:
        """As ``Pass.ensures``."""
        self.step.pass_.ensures(self.step.config, inputs["parent"], out, context)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step whose id is known."""

    name: str
    pass_name: str
    pass_version: int
    kind: Kind
    artifact_id: str
    builder: Builder | None
    """None for an artifact that is given as it is."""
    given: Artifact | None
    inputs: Mapping[str, str]
    """Role to the name of a planned step."""
    config: Mapping[str, Any]
    code: str | None
    tools: Mapping[str, str]
    data: Mapping[str, str]
    """Data set to digest, of those the pass reads."""
    measured: str
    """Digest of what is to be measured; empty for nothing."""
    reference: str | None
    """The planned step that it is compared with: itself or an earlier one; None where nothing is compared."""
    state: State
    estimate: Estimate

    @property
    def parent(self) -> str | None:
        """The step whose artifact is read, if any."""
        return self.inputs.get("parent")

    @property
    def directory(self) -> str:
        """The name of the artifact's directory."""
        return self.given.name if self.given else f"{self.pass_name}-{self.artifact_id[:12]}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps, in an order in which each finds its inputs done."""

    pipeline: Pipeline
    store: Store
    seed: int
    device: str
    sources: SourceContext
    steps: tuple[PlannedStep, ...]

    def step(self, name: str) -> PlannedStep:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)


def evaluate_of(pipeline: Pipeline, *, compared: bool) -> EvaluateConfig:
    """What is measured of a step: without the metrics that compare, where there is nothing to compare with yet."""
    evaluate = pipeline.config.evaluate
    accuracy = evaluate.accuracy
    if compared or accuracy is None:
        return evaluate
    left = tuple(name for name in accuracy.metrics if name not in referring(accuracy.metrics))
    if not left:
        return evaluate.without_accuracy()
    return evaluate.model_copy(update={"accuracy": accuracy.model_copy(update={"metrics": left})})


def make_plan(
    pipeline: Pipeline, store: Store, sources: SourceContext, *, seed: int | None = None, device: str = "cpu"
) -> Plan:
    """Check everything, compute every id, and look up what is there already.

    Raises:
        ConfigError: all problems at once: kinds that do not fit, names that do not exist, files that are missing.
        GpuError: a step needs a GPU that is not here.
    """
    return _Planner(pipeline, store, sources, pipeline.config.seed if seed is None else seed, device).plan()


class _Planner:
    def __init__(self, pipeline: Pipeline, store: Store, sources: SourceContext, seed: int, device: str) -> None:
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
        self._check_data()
        self._check_evaluate()
        self._check_order()
        self.problems += gate_problems(self.pipeline)
        source = self._opened_source()
        self._raise_if_any()
        self._plan_reference()
        self._plan_source(source)
        for step in self.pipeline.steps:
            self._plan_step(step)
        self._check_reference()
        self._raise_if_any()
        return Plan(self.pipeline, self.store, self.seed, self.device, self.sources, tuple(self.steps.values()))

    def _raise_if_any(self) -> None:
        if self.problems:
            raise ConfigError(sorted(self.problems, key=lambda problem: problem.line or 0))

    def _problem(self, at: tuple[str | int, ...], what: str, **more: str | None) -> None:
        self.problems.append(self.document.problem(at, what, **more))

    def _check_data(self) -> None:
        for name, one in self.pipeline.data.items():
            for text in one.source.problems(one.config, self.sources):
                self._problem(("data", name), text)

    def _check_evaluate(self) -> None:
        evaluate = self.pipeline.config.evaluate
        steps = frozenset({SOURCE, *(step.name for step in self.pipeline.steps)})
        self._check_references(evaluate, ("evaluate",), steps, "a step")
        if evaluate.accuracy is None and evaluate.latency is not None and evaluate.latency.data is None:
            self._problem(("evaluate", "latency"), "names no data to feed", remedy="add `data: <set>`, or `accuracy:`")

    def _check_references(
        self, record: Any, at: tuple[str | int, ...], steps: frozenset[str], called: str = "an earlier step"
    ) -> None:
        for place, reference, value in references(record):
            if reference.to == "data" and value not in self.pipeline.data:
                known = list(self.pipeline.data)
                self._problem((*at, *place), f"there is no data set {value!r}", remedy=suggestion(value, known))
            elif reference.to == "step" and value not in steps and not self._outside(value).is_dir():
                what = f"{value!r} is neither {called} nor an artifact directory"
                self._problem((*at, *place), what, remedy=suggestion(value, sorted(steps)))
            elif reference.made_by is not None and value in steps:
                self._check_maker(value, reference.made_by, (*at, *place))

    def _check_maker(self, name: str, wanted: str, at: tuple[str | int, ...]) -> None:
        makers = {step.name: step.pass_.name for step in self.pipeline.steps}
        if makers.get(name) != wanted:
            some = [step for step, maker in makers.items() if maker == wanted]
            what = f"{name!r} is {makers.get(name, 'the source')}, and a {wanted} step is expected"
            self._problem((*at,), what, remedy=f"there are: {', '.join(some)}" if some else f"add a {wanted} step")

    def _outside(self, value: str) -> Path:
        return (self.pipeline.base / value).resolve()

    def _check_order(self) -> None:
        """``from:`` and other step names must lead to earlier steps; kinds must fit."""
        steps = {step.name: step for step in self.pipeline.steps}
        earlier = {SOURCE}
        for step in self.pipeline.steps:
            at = ("passes", step.index)
            if step.parent not in earlier:
                if step.parent not in steps:
                    remedy = suggestion(step.parent, sorted({SOURCE, *steps} - {step.name}))
                    self._problem((*at, "from"), f"`from: {step.parent}` leads nowhere: no such step", remedy=remedy)
                elif circle := _circle(step, steps):
                    self._problem((*at, "from"), f"`from:` goes in a circle: {' → '.join(circle)}", remedy="break it")
                else:
                    self._problem(
                        (*at, "from"), f"`from: {step.parent}` names a later step", remedy="move that step up"
                    )
            self._check_references(step.config, at, frozenset(earlier))
            parent = steps.get(step.parent)
            if parent is not None and parent.pass_.produces not in step.pass_.accepts:
                self._kind_problem(step, f"{parent.name} ({parent.pass_.name})", parent.pass_.produces)
            earlier.add(step.name)

    def _kind_problem(self, step: Step, parent: str, kind: Kind) -> None:
        accepts = " or ".join(sorted(step.pass_.accepts))
        what = f"{step.pass_.name} cannot follow {parent}: it reads {accepts}, not {kind}"
        self._problem(("passes", step.index), what, remedy="reorder the steps, or branch with `from:`")

    def _plan_reference(self) -> None:
        """An artifact that lies outside comes first, as the source is compared with it already."""
        if self.reference not in {None, SOURCE, *(step.name for step in self.pipeline.steps)}:
            self._plan_given(str(self.reference), self._outside(str(self.reference)))

    def _check_reference(self) -> None:
        if self.reference is not None and (kind := self.steps[self.reference].kind) not in MEASURABLE:
            what = f"{self.reference!r} cannot be compared with: nothing here runs artifacts of kind {kind}"
            self._problem(("evaluate", "accuracy", "reference"), what, remedy="name its torch or onnx parent")

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
            self._problem(("model", "path" if model.path else "family"), error.what, remedy=error.remedy)
        return None

    def _plan_source(self, source: FamilySource | DirectorySource | None) -> None:
        if source is not None:
            self._add_source(source)
        else:
            self._plan_given(SOURCE, self._outside(str(self.pipeline.config.model.path)))
        for step in self.pipeline.steps:
            if step.parent == SOURCE and self.steps[SOURCE].kind not in step.pass_.accepts:
                self._kind_problem(step, "the source model", self.steps[SOURCE].kind)

    def _plan_given(self, name: str, path: Path) -> None:
        artifact = open_artifact(path)
        manifest = artifact.manifest
        self.steps[name] = PlannedStep(
            name, manifest.pass_.name, manifest.pass_.version, manifest.kind, manifest.id, None, artifact, {},
            manifest.pass_.config, None, manifest.tools, manifest.data, manifest.measured, None, "given",
            Estimate(self._given_facts(artifact)),
        )  # fmt: skip

    def _given_facts(self, artifact: Artifact) -> ModelFacts:
        if artifact.manifest.kind not in OF_FAMILIES:
            return ModelFacts(size_bytes=artifact.manifest.model_bytes)
        from compressor.models.loading import facts_of

        return ModelFacts(**facts_of(artifact.model))

    def _add_source(self, source: FamilySource | DirectorySource) -> None:
        facts = source.facts()
        size = facts.size_bytes
        self._add(
            SOURCE, source.name, source.version, source.kind, source, {}, source.fingerprint(), source.fingerprint(),
            None, source.tools, {}, self.pipeline.config.model.measure, Estimate(facts, disk_bytes=size),
        )  # fmt: skip

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
            step.name, pass_.name, pass_.version, pass_.produces, PassBuilder(step), inputs, config, neutral,
            _foreign_code(pass_), pass_.tools_for(step.config), data, step.measure, estimate,
        )  # fmt: skip

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
        if not wanted or kind not in MEASURABLE or (evaluate.accuracy is None and evaluate.latency is None):
            return ""
        used = {value for _, named, value in references(evaluate) if named.to == "data"}
        return evaluation_digest(evaluate, {name: self._data_digest(name) for name in sorted(used)}, reference)

    def _add(
        self, name: str, pass_name: str, version: int, kind: Kind, builder: Builder, inputs: Mapping[str, str],
        config: Mapping[str, Any], neutral: Mapping[str, Any], code: str | None, tools: tuple[str, ...],
        data: Mapping[str, str], measure: bool, estimate: Estimate,
    ) -> None:  # fmt: skip
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
            name, pass_name, version, kind, artifact_id, builder, None, inputs, config, code, versions, data, measured,
            self.reference if measured and reference else None, state, estimate,
        )  # fmt: skip

    def _state(self, pass_name: str, artifact_id: str, measured: str) -> State:
        try:
            artifact = self.store.find(pass_name, artifact_id)
        except DamagedArtifactError:
            return "damaged"
        if artifact is not None:
            return "cached" if artifact.manifest.measured == measured else "measure"
        return "resume" if (self.store.root / ".staging" / artifact_id[:12]).is_dir() else "build"


def _circle(step: Step, steps: Mapping[str, Step]) -> list[str] | None:
    seen = [step.name]
    name = step.parent
    while name in steps:
        seen.append(name)
        if name == step.name:
            return seen
        if name in seen[:-1]:
            return None
        name = steps[name].parent
    return None


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
