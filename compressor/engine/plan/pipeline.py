"""pipeline.yaml as a typed record: what the user asks for, checked for form (the plan checks the rest)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compressor.config import discovery
from compressor.config.document import Document, parse_document, read_document
from compressor.config.record import Record
from compressor.config.validation import validate
from compressor.data.contract import DataSource, SourceConfig
from compressor.engine.contract import Pass, PassConfig
from compressor.errors import CompressError, ConfigError, Problem, UsageError
from compressor.evaluation.metrics import METRICS, referring
from compressor.evaluation.records import EvaluateConfig
from compressor.models.contract import Family

SOURCE = "source"
_NAME = r"^[A-Za-z][A-Za-z0-9_.-]*$"


class ModelConfig(Record):
    """The model that the pipeline starts from: a directory, or a family of ours with a preset or a config."""

    path: str | None = None
    """A model directory (safetensors only), or an artifact; relative to pipeline.yaml."""
    family: str | None = None
    """A model family, freshly initialised from `seed`."""
    preset: str | None = None
    """One of the family's presets."""
    config: dict[str, Any] | None = None
    """The family's own fields; over those of `preset` where both are given."""
    measure: bool = True
    """Whether `evaluate:` applies to the source itself."""

    @model_validator(mode="after")
    def _one_of(self) -> ModelConfig:
        if (self.path is None) == (self.family is None):
            raise ValueError(
                "give either `path` (a model directory) or `family` (with `preset` or `config`)"
            )
        if self.path is not None and (self.preset is not None or self.config is not None):
            raise ValueError("`preset` and `config` go with `family`, not with `path`")
        if self.family is not None and self.preset is None and self.config is None:
            raise ValueError("`family` needs a `preset` or a `config`")
        return self


class StepHeader(Record):
    """The keys that every step under `passes:` may have, beside those of its pass."""

    type: str
    """The pass; `autoglm-compress passes` lists them."""
    name: Annotated[str, Field(pattern=_NAME)] | None = None
    """How other steps and the reports call this step; by default its type."""
    from_: Annotated[str | None, Field(alias="from")] = None
    """The step whose artifact is read; by default the one before."""
    measure: bool = True
    """Whether `evaluate:` applies to this step."""


class BudgetConfig(Record):
    """How long a latency gate may go on measuring; what is undecided then stays so."""

    seconds: Annotated[float, Field(gt=0)] = 60.0
    """Wall time, once both models are open and warm."""
    rounds: Annotated[int, Field(ge=8, le=1024)] = 32
    """Rounds at most; in each, what is judged and what it is compared with are timed in turns."""


class GateConfig(Record):
    """A limit that a metric must keep; the run ends with exit code 3 when it does not."""

    metric: str
    """As `top1`, `top1[input=speech]`, `latency_p50_ms`, `size_bytes`."""
    step: str | None = None
    """The step that is judged; by default the last one."""
    against: str | None = None
    """What it is compared with: a step, `parent`, `source`; or the path of an artifact, a run or a store, with a `/` in it."""
    min: float | None = None
    """The value must be at least this."""
    max: float | None = None
    """The value must be at most this."""
    max_drop: float | None = None
    """The value may be lower than that of `against` by at most this."""
    max_ratio: float | None = None
    """The value, divided by that of `against`, must be at most this."""
    judge: Literal["interval", "value"] = "interval"
    """`interval`: the 95 % interval must be clear of the limit, and latency is measured anew until it is; `value`: the recorded
    figure alone decides."""
    undecided: Literal["fail", "pass"] = "fail"
    """What becomes of a gate whose interval holds the limit."""
    budget: BudgetConfig = BudgetConfig()
    """For latency."""

    @model_validator(mode="after")
    def _limits(self) -> GateConfig:
        relative = self.max_drop is not None or self.max_ratio is not None
        if not relative and self.min is None and self.max is None:
            raise ValueError("a gate needs a limit: `min`, `max`, `max_drop` or `max_ratio`")
        if relative and self.against is None:
            raise ValueError(
                "`max_drop` and `max_ratio` need `against: <step>`, `parent` or `source`"
            )
        return self


class PipelineConfig(Record):
    """The whole file."""

    version: Literal[1]
    """The version of this format."""
    name: Annotated[str, Field(pattern=_NAME)]
    """What reports call this pipeline."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Everything random starts from it."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """Threads a pass computes with. It changes the order of sums, so it is part of every id."""
    model: ModelConfig
    """The model that the pipeline starts from."""
    data: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - pydantic copies it
    """Named sets; each names its `source`."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured of every artifact."""
    passes: tuple[dict[str, Any], ...] = ()
    """The steps, in order."""
    gates: tuple[GateConfig, ...] = ()
    """Limits that decide the exit code."""


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of ``passes:``, its pass found and its config typed."""

    index: int
    name: str
    parent: str
    measure: bool
    pass_: Pass[Any]
    config: PassConfig


@dataclass(frozen=True, slots=True)
class DataSet:
    """One entry of ``data:``, its source found and its config typed."""

    name: str
    source: DataSource[Any]
    config: SourceConfig


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline whose form is right."""

    document: Document
    config: PipelineConfig
    steps: tuple[Step, ...]
    data: Mapping[str, DataSet]

    @property
    def base(self) -> Path:
        """Where relative paths of the file start."""
        return self.document.file.parent if self.document.file else Path.cwd()


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read, override and check a pipeline file.

    Raises:
        ConfigError: every problem of form in it.
    """
    return pipeline_from_document(override(read_document(path), overrides))


def override(document: Document, overrides: Sequence[str]) -> Document:
    """The document with each ``a.b[0].c=value`` (the value in YAML) put in.

    Raises:
        UsageError: an override has no ``=``, or leads into something that is no mapping or list.
    """
    tree = json.loads(json.dumps(document.tree)) if overrides else document.tree
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(
                f"--set {text}: expected key=value", remedy="as --set passes[1].epochs=3"
            )
        parts = [
            int(part) if part.isdigit() else part
            for part in key.replace("[", ".").replace("]", "").split(".")
        ]
        node = tree
        try:
            for part in parts[:-1]:
                node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
            node[parts[-1]] = parse_document(value.encode()).tree
        except (TypeError, IndexError, AttributeError) as error:
            raise UsageError(f"--set {text}: there is no {key} in the file") from error
    return Document(document.file, tree, document.lines)


def pipeline_from_document(document: Document) -> Pipeline:
    """Check the form of a parsed file. Raises as ``load_pipeline``."""
    tree = document.tree
    if not isinstance(tree, dict):
        raise ConfigError(
            [
                document.problem(
                    (), "is not a pipeline", expected="a mapping with version, name, model, passes"
                )
            ]
        )
    config, problems = validate(PipelineConfig, tree, document)
    data = _data_sets(tree.get("data"), document, problems)
    steps = _steps(tree.get("passes"), document, problems)
    if isinstance(tree.get("model"), dict):
        problems += _model_problems(tree["model"], document)
    problems += _metric_problems(tree.get("evaluate"), document)
    if problems or config is None:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line or 0))
    return Pipeline(document, config, tuple(steps), data)


def reference_of(evaluate: EvaluateConfig) -> str | None:
    """The step or artifact directory whose answers count as right, where a metric compares with one."""
    accuracy = evaluate.accuracy
    if accuracy is None or not referring(accuracy.metrics):
        return None
    return accuracy.reference or SOURCE


def _data_sets(tree: Any, document: Document, problems: list[Problem]) -> dict[str, DataSet]:
    found: dict[str, DataSet] = {}
    for name, entry in tree.items() if isinstance(tree, dict) else ():
        at = ("data", name)
        if not isinstance(entry, dict):
            continue
        if not isinstance(entry.get("source"), str):
            problems.append(
                document.problem(
                    at,
                    "has no `source`",
                    remedy=f"one of {', '.join(discovery.names(discovery.SOURCES))}",
                )
            )
            continue
        try:
            source: DataSource[Any] = discovery.load(discovery.SOURCES, entry["source"])
        except CompressError as error:
            problems.append(document.problem((*at, "source"), error.what, remedy=error.remedy))
            continue
        config, wrong = validate(source.Config, entry, document, at)
        problems += wrong
        if config is not None:
            found[name] = DataSet(name, source, config)
    return found


def _steps(tree: Any, document: Document, problems: list[Problem]) -> list[Step]:
    steps: list[Step] = []
    names: dict[str, int] = {}
    previous = SOURCE
    for index, entry in enumerate(tree if isinstance(tree, list) else ()):
        at = ("passes", index)
        if not isinstance(entry, dict):
            continue
        own = {
            key: value for key, value in entry.items() if key in {"type", "name", "from", "measure"}
        }
        header, wrong = validate(StepHeader, own, document, at)
        problems += wrong
        if header is None:
            continue
        name = header.name or header.type
        if name == SOURCE or name in names:
            taken = (
                "the model that the pipeline starts from"
                if name == SOURCE
                else f"passes[{names[name]}]"
            )
            problems.append(
                document.problem(
                    at,
                    f"the name {name!r} is taken by {taken}",
                    remedy="give the step a `name:` of its own",
                )
            )
        names.setdefault(name, index)
        parent, previous = header.from_ or previous, name
        try:
            pass_: Pass[Any] = discovery.load(discovery.PASSES, header.type)
        except CompressError as error:
            problems.append(document.problem((*at, "type"), error.what, remedy=error.remedy))
            continue
        rest = {key: value for key, value in entry.items() if key not in own}
        config, wrong = validate(pass_.Config, rest, document, at)
        problems += wrong
        if config is not None:
            steps.append(Step(index, name, parent, header.measure, pass_, config))
    return steps


def _metric_problems(tree: Any, document: Document) -> list[Problem]:
    accuracy = tree.get("accuracy") if isinstance(tree, dict) else None
    metrics = accuracy.get("metrics") if isinstance(accuracy, dict) else None
    return [
        document.problem(
            ("evaluate", "accuracy", "metrics", index),
            f"unknown metric {metric!r}",
            remedy=discovery.suggestion(metric, list(METRICS)),
        )
        for index, metric in enumerate(metrics if isinstance(metrics, list) else ())
        if isinstance(metric, str) and metric not in METRICS
    ]


def _model_problems(tree: dict[str, Any], document: Document) -> list[Problem]:
    if not isinstance(tree.get("family"), str):
        return []
    try:
        resolve_family(tree["family"], tree.get("preset"), tree.get("config"), document)
    except ConfigError as error:
        return list(error.problems)
    return []


def resolve_family(
    family_name: str, preset: str | None, fields: dict[str, Any] | None, document: Document
) -> tuple[Family[Any], Record]:
    """The family and the typed architecture that ``model:`` asks for.

    Raises:
        ConfigError: the family or preset is unknown, or a field does not fit.
    """
    try:
        family: Family[Any] = discovery.load(discovery.FAMILIES, family_name)
    except CompressError as error:
        raise ConfigError(
            [document.problem(("model", "family"), error.what, remedy=error.remedy)]
        ) from error
    base: dict[str, Any] = {}
    if preset is not None:
        if preset not in family.presets:
            remedy = discovery.suggestion(preset, list(family.presets))
            what = f"{family_name} has no preset {preset!r}"
            raise ConfigError([document.problem(("model", "preset"), what, remedy=remedy)])
        base = family.presets[preset].model_dump(mode="json")
    config, problems = validate(family.Config, base | (fields or {}), document, ("model", "config"))
    if config is None:
        raise ConfigError(problems)
    return family, config
