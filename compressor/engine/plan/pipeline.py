"""Read pipeline.yaml into typed records and check its form; the planner checks the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.config import discovery
from compressor.config.document import Document, parse_document, read_document
from compressor.config.record import Record
from compressor.config.validation import missing_key, validate
from compressor.data.contract import DataSource, SourceConfig, SourceContext
from compressor.engine.contract import Pass, PassConfig
from compressor.engine.plan.config import SOURCE, ModelConfig, PipelineConfig, StepHeader
from compressor.errors import CompressError, ConfigError, Problem, UsageError
from compressor.evaluation.metrics import is_metric, known_metrics, reference_metrics
from compressor.evaluation.records import EvaluateConfig
from compressor.models.contract import Family


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of ``passes:``, with its pass and its typed config."""

    index: int
    name: str
    parent: str
    measure: bool
    pass_: Pass[Any]
    config: PassConfig


@dataclass(frozen=True, slots=True)
class DataSet:
    """One entry of ``data:``, with its source and its typed config."""

    name: str
    source: DataSource[Any]
    config: SourceConfig


_DEFINING_SECTIONS = ("data", "evaluate", "passes")
"""Sections that define what others name: data sets, metrics and steps."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline whose form has been checked."""

    document: Document
    config: PipelineConfig
    steps: tuple[Step, ...]
    data: Mapping[str, DataSet]
    problems: tuple[Problem, ...] = ()
    """Problems of a draft that the planner reports: unknown keys, and those of the model."""

    @property
    def base(self) -> Path:
        """Folder that relative paths in the file start from."""
        return _base(self.document)


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file, apply overrides and check its form.

    Raises:
        ConfigError: lists every problem of form.
    """
    return pipeline_from_document(override(read_document(path), overrides))


def draft_pipeline(
    path: Path, overrides: Sequence[str] = (), *, allow_code: bool = False
) -> Pipeline:
    """Return a pipeline to plan: what it cannot state does not hide what else is wrong with it.

    Unknown keys and problems of ``model:`` are left to the planner, unless a section is misspelt:
    all names that it defines would then be unknown too.

    Raises:
        ConfigError: lists every other problem of form, and every problem of a data set.
    """
    document = override(read_document(path), overrides)
    pipeline = _draft(document, SourceContext(_base(document), allow_code))
    absent = [name for name in _DEFINING_SECTIONS if name not in document.tree]
    unknown = document.tree.keys() - PipelineConfig.model_fields.keys()
    if pipeline.problems and any(discovery.closest(str(key), absent) for key in unknown):
        raise ConfigError(pipeline.problems)
    return pipeline


def data_set_problems(
    data_set: DataSet, document: Document, context: SourceContext
) -> list[Problem]:
    """Return the problems that a data set has by itself, such as missing files."""
    texts = data_set.source.problems(data_set.config, context)
    return [document.problem(("data", data_set.name), text) for text in texts]


def _base(document: Document) -> Path:
    return document.file.parent if document.file else Path.cwd()


def override(document: Document, overrides: Sequence[str]) -> Document:
    """Return the document with each override ``a.b[0].c=value`` applied; values are YAML.

    Raises:
        UsageError: an override has no ``=``, or its path does not exist in the document.
    """
    tree = json.loads(json.dumps(document.tree)) if overrides else document.tree
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(
                f"--set {text}: expected key=value", remedy="as --set passes[0].training.steps=100"
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
            raise UsageError(f"--set {text}: the file has no {key}") from error
    return Document(document.file, tree, document.lines)


def pipeline_from_document(document: Document) -> Pipeline:
    """Check the form of a parsed file; errors as ``load_pipeline``."""
    pipeline = _draft(document)
    if pipeline.problems:
        raise ConfigError(pipeline.problems)
    return pipeline


def _draft(document: Document, context: SourceContext | None = None) -> Pipeline:
    """Return a pipeline; with a context, an error lists the problems of the data sets too."""
    tree = document.tree
    if not isinstance(tree, dict):
        raise ConfigError(
            [
                document.problem(
                    (), "is not a pipeline", expected="a mapping with version, name, model, passes"
                )
            ]
        )
    config, unknown = validate(PipelineConfig, tree, document)
    problems = [] if config is not None else unknown
    unknown = [] if config is None else unknown
    data = _data_sets(tree.get("data"), document, problems, unknown)
    steps = _steps(tree.get("passes"), document, problems, unknown)
    model, _ = validate(ModelConfig, tree.get("model"), document, ("model",))
    if model is not None:  # a misspelt `preset` must not report every field of the architecture
        unknown += _model_problems(model, document)
    problems += _metric_problems(tree.get("evaluate"), document)
    if problems or config is None:
        problems += unknown
        if context is not None:
            for data_set in data.values():
                problems += data_set_problems(data_set, document, context)
        raise ConfigError(sorted(problems, key=lambda problem: problem.line or 0))
    ordered = sorted(unknown, key=lambda problem: problem.line or 0)
    return Pipeline(document, config, tuple(steps), data, tuple(ordered))


def reference_of(evaluate: EvaluateConfig) -> str | None:
    """Return the step or artifact folder that metrics compare with; None if no metric compares."""
    accuracy = evaluate.accuracy
    if accuracy is None or not reference_metrics(accuracy.metrics):
        return None
    return accuracy.reference or SOURCE


def _data_sets(
    tree: Any, document: Document, problems: list[Problem], unknown: list[Problem]
) -> dict[str, DataSet]:
    """Return the data sets; add unknown keys to ``unknown``, other problems to ``problems``."""
    data_sets: dict[str, DataSet] = {}
    for name, entry in tree.items() if isinstance(tree, dict) else ():
        at = ("data", name)
        if not isinstance(entry, dict):
            continue
        if "source" not in entry:
            problem = missing_key("source", entry, document, at)
            sources = f"one of {', '.join(discovery.names(discovery.SOURCES))}"
            problems.append(problem if problem.remedy else replace(problem, remedy=sources))
            continue
        if not isinstance(entry["source"], str):
            problems.append(document.problem((*at, "source"), "is not the name of a data source"))
            continue
        try:
            source: DataSource[Any] = discovery.load(discovery.SOURCES, entry["source"])
        except CompressError as error:
            problems.append(document.problem((*at, "source"), error.what, remedy=error.remedy))
            continue
        config, wrong = validate(source.Config, entry, document, at)
        (problems if config is None else unknown).extend(wrong)
        if config is not None:
            data_sets[name] = DataSet(name, source, config)
    return data_sets


def _steps(
    tree: Any, document: Document, problems: list[Problem], unknown: list[Problem]
) -> list[Step]:
    """Return the steps; add unknown keys to ``unknown``, other problems to ``problems``."""
    steps: list[Step] = []
    names: dict[str, int] = {}
    previous = SOURCE
    for index, entry in enumerate(tree if isinstance(tree, list) else ()):
        at = ("passes", index)
        if not isinstance(entry, dict):
            continue
        if "type" not in entry and (problem := missing_key("type", entry, document, at)).remedy:
            problems.append(problem)
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
        (problems if config is None else unknown).extend(wrong)
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
            remedy=discovery.suggestion(metric.partition(":")[0], known_metrics()),
        )
        for index, metric in enumerate(metrics if isinstance(metrics, list) else ())
        if isinstance(metric, str) and not is_metric(metric)
    ]


def _model_problems(model: ModelConfig, document: Document) -> list[Problem]:
    if model.family is None:
        return []
    try:
        resolve_family(model.family, model.preset, model.config, document)
    except ConfigError as error:
        return list(error.problems)
    return []


def resolve_family(
    family_name: str, preset: str | None, fields: dict[str, Any] | None, document: Document
) -> tuple[Family[Any], Record]:
    """Return the family and the typed architecture that ``model:`` names.

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
    if config is None or problems:
        raise ConfigError(problems)
    return family, config
