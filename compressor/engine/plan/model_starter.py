"""Pipelines that ``init --from`` writes for a model on disk.

Steps, their fields and the data set are chosen by the installed passes and sources themselves, for
the format, the capabilities and the inputs of the model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.config import discovery
from compressor.config.validation import references
from compressor.data.contract import (
    DataFacts,
    InputFacts,
    SourceContext,
    StarterData,
    StarterInputs,
)
from compressor.engine.contract import Pass, StarterModel
from compressor.engine.plan.capabilities import installed_passes, suitable_passes
from compressor.engine.plan.starter import WrittenPipeline, starter_file, write_pipeline
from compressor.engine.plan.starter_text import (
    DataSet,
    PipelineParts,
    StartingPoint,
    pipeline_text,
)
from compressor.errors import UsageError
from compressor.models.architecture import Architecture
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.signature import REST, InputSpec
from compressor.models.facts import planned_facts
from compressor.models.families.module.family import Module
from compressor.runtimes.formats import Format, format_named, recognize_model
from compressor.runtimes.working_inputs import SizeTrial

_TORCH = "torch"
"""Format of modules of other libraries once a pipeline has taken them over."""


def write_model_starter(model: Path, folder: Path, data: Path | None) -> WrittenPipeline:
    """Write a pipeline for a model on disk, and its JSON Schema, into ``folder``.

    Args:
        model: an artifact, or a model's folder or file.
        folder: the folder for pipeline.yaml.
        data: the user's samples; None to write a placeholder.

    Raises:
        ModelError: the model is not recognized, or cannot be opened.
        UsageError: no pass reads the model, the data do not fit, or there is a pipeline.yaml.
    """
    starter_file(folder)
    stored = recognize_model(model)
    format_ = stored.format
    source = format_.module_source(stored.path)
    facts = format_.facts(stored.path)
    is_graph = facts.graph_inputs is not None
    trial = SizeTrial(format_, stored.path, os.cpu_count() or 1)
    start = StartingPoint(
        pipeline_name(model),
        format_.title(stored.path),
        {"path": model},
        stored.path if stored.path.is_dir() else stored.path.parent,
        format_,
        StarterModel(facts, format_.inputs(stored.path), runs=trial if is_graph else None),
        remedy=format_.default_remedy,
    )
    if source is not None:
        facts = planned_facts(Architecture(Module(), source.config))
        start = replace(
            start,
            format=format_named(_TORCH),
            starter=StarterModel(facts, source.config.input_specs()),
            needs_code=source.config.program is not None,
            data_fields=source.data_fields,
        )
    with trial:
        return write_starting_point(start, folder, data)


def write_starting_point(start: StartingPoint, folder: Path, data: Path | None) -> WrittenPipeline:
    """Write a pipeline for a model; arguments and errors as ``write_model_starter``."""
    file, starter = starter_file(folder), start.starter
    if not _steps(start.format, starter):
        raise _no_pass(start)
    is_module = start.format.name == _TORCH
    data_set = _choose_data(_fitting_data(start), data, uses_code=is_module)
    if data_set is not None and data_set.inputs and start.with_inputs is not None:
        start = start.with_inputs(data_set.inputs)
        starter = start.starter
        data_set = _choose_data(_fitting_data(start), data, uses_code=is_module)
    if data_set is not None and starter.inputs is not None:
        starter = replace(starter, inputs=_with_sizes(starter.inputs, data_set.inputs))
    without_data = replace(starter, data=None)
    is_optional = data is None and (data_set is None or data_set.starter.needs_code)
    if data_set is None or (is_optional and _runs_without_data(start.format, without_data)):
        data_set, starter = None, without_data
    steps = _steps(start.format, starter)
    if not steps:
        raise UsageError(
            f"no installed data source has samples with the inputs of {start.name}",
            remedy="write the pipeline by hand, with data of the source python",
        )
    parts = PipelineParts(replace(start, starter=starter), tuple(steps), data_set)
    write_pipeline(file, pipeline_text(parts, folder))
    missing = () if data_set is None else _missing_files(data_set.starter, data)
    needs_code = data_set is not None and data_set.starter.needs_code
    return WrittenPipeline(file, (*start.missing, *missing), start.needs_code or needs_code)


def _with_sizes(specs: Sequence[InputSpec], samples: Sequence[InputFacts]) -> tuple[InputSpec, ...]:
    """Return inputs in which dimensions that vary have the sizes of the samples, but for batches.

    Only the passes read them, which need shapes that the model can have.
    """
    shapes = {facts.name: facts.shape for facts in samples}
    return tuple(
        spec if (shape := shapes.get(spec.name)) is None else _with_known_sizes(spec, shape)
        for spec in specs
    )


def _with_known_sizes(spec: InputSpec, sample: tuple[int | None, ...]) -> InputSpec:
    """Return an input with the sizes of a sample, which lacks the batch or is a whole input."""
    if spec.shape == (REST,):
        known = [
            size if size is not None else f"{spec.name}.{axis}"
            for axis, size in enumerate(sample, 1)
        ]
        return replace(spec, shape=("batch", *known))
    is_whole = len(sample) == len(spec.shape)
    return replace(spec, shape=_with_known(spec.shape, sample if is_whole else (None, *sample)))


def _with_known(shape: tuple[int | str, ...], sizes: Sequence[int | None]) -> tuple[int | str, ...]:
    if len(shape) != len(sizes):
        return shape
    return tuple(
        size if known is None or isinstance(size, int) else known
        for size, known in zip(shape, sizes, strict=True)
    )


def _fitting_data(start: StartingPoint) -> list[DataSet]:
    """Return the data sets that feed the model: those for it first, then those without code."""
    model = start.starter
    if model.inputs is None:
        return []
    required = frozenset(spec.name for spec in model.inputs if not spec.optional)
    generation = model.facts.capability(CachedGeneration)
    lengths = [spec.longest for spec in model.inputs if spec.longest is not None]
    lengths += [] if generation is None else [generation.context_length]
    wanted = StarterInputs(
        start.folder,
        tuple(map(_facts, model.inputs)),
        required,
        min(lengths, default=None),
    )
    sources = [
        discovery.load(discovery.SOURCES, name) for name in discovery.names(discovery.SOURCES)
    ]
    fitting = [
        DataSet(source, replace(starter, fields=_with_values(starter.fields, start.data_fields)))
        for source in sources
        if (starter := source.starter(wanted)) is not None
        and required <= starter.inputs
        and (start.knows_inputs or starter.fits_any_model)
    ]
    return sorted(
        fitting,
        key=lambda data: (
            data.starter.fits_any_model,
            data.starter.needs_code,
            -len(data.starter.inputs),
            data.source.name,
        ),
    )


def _with_values(fields: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with the values of those among them that are known."""
    return {name: values.get(name, value) for name, value in fields.items()}


def _choose_data(
    fitting: Sequence[DataSet], files: Path | None, *, uses_code: bool
) -> DataSet | None:
    """Return the first data set that can read the user's files, or the first with a placeholder.

    Args:
        fitting: the data sets that feed the model.
        files: the user's files; None for a placeholder.
        uses_code: True if the user's code is executed for the model, and may be for its data.

    Raises:
        UsageError: no data set reads the files.
    """
    if files is None:
        without_code = [data for data in fitting if not data.starter.needs_code]
        preferred = fitting if uses_code else without_code or fitting
        return preferred[0] if preferred else None
    refused = []
    for data in (data for data in fitting if "path" in data.starter.fields):
        chosen, problems = _with_files(data, files)
        if not problems:
            return chosen
        refused += [f"    {data.source.name}: {problem}" for problem in problems]
    if not refused:
        raise UsageError(
            f"`--data {files}` has no effect: no installed source reads files for this model",
            remedy="leave it out",
        )
    expected = "; or ".join(data.starter.files for data in fitting if data.starter.files)
    raise UsageError(
        f"{files} does not fit the model:\n" + "\n".join(refused), remedy=f"name {expected}"
    )


def _facts(spec: InputSpec) -> InputFacts:
    shape = tuple(size if isinstance(size, int) else None for size in spec.shape[1:])
    return InputFacts(spec.name, spec.dtype, shape)


def _steps(source: Format, model: StarterModel) -> list[Pass[Any]]:
    """Return recommended passes in order, up to the first model of another runtime."""
    steps: list[Pass[Any]] = []
    current = source
    while current.runtime == source.runtime:
        ready = {
            answer.pass_name for answer in suitable_passes(current, model) if not answer.reasons
        }
        candidates = [
            pass_
            for pass_ in installed_passes()
            if pass_.name in ready and pass_ not in steps and pass_.is_recommended(model)
        ]
        if not candidates:
            break
        step = min(
            candidates,
            key=lambda pass_: (format_named(pass_.produces).runtime != source.runtime, pass_.name),
        )
        steps.append(step)
        current = format_named(step.produces)
    return steps


def _runs_without_data(format_: Format, model: StarterModel) -> bool:
    """Return True if no step for the model names a data set."""
    steps = _steps(format_, model)
    try:
        configs = [
            pass_.Config.model_validate_json(json.dumps(dict(pass_.starter_fields(model))))
            for pass_ in steps
        ]
    except ValidationError:  # a data set is required
        return False
    named = [entry for config in configs for entry in references(config) if entry[1].to == "data"]
    return bool(steps) and not named


def _no_pass(start: StartingPoint) -> UsageError:
    answers = suitable_passes(start.format, start.starter)
    lines = [
        f"    {answer.pass_name}: "
        + ("; ".join(answer.reasons) or "not part of a first pipeline")
        + (f" → {'; '.join(answer.remedies)}" if answer.remedies else "")
        for answer in answers
    ]
    return UsageError(
        f"there is no pipeline for {start.name}, {start.title}:\n" + "\n".join(lines),
        remedy=start.remedy,
    )


def _with_files(data: DataSet, files: Path) -> tuple[DataSet, list[str]]:
    """Return a data set with the user's files, and what its source finds wrong with them."""
    fields = {**data.starter.fields, "path": files.absolute()}
    config = data.source.Config.model_validate_json(
        json.dumps({"source": data.source.name, **fields}, default=str)
    )
    context = SourceContext(Path.cwd(), allow_code=True)
    problems = data.source.problems(config, context)
    facts = DataFacts() if problems else data.source.facts(config, context)
    starter = replace(data.starter, fields=fields)
    return DataSet(data.source, starter, facts.num_classes, facts.inputs or ()), problems


def _missing_files(starter: StarterData, data: Path | None) -> tuple[str, ...]:
    missing = [
        f"`{name}`: {value.name} is not there"
        for name, value in starter.fields.items()
        if isinstance(value, Path) and name != "path" and not value.exists()
    ]
    if data is None and "path" in starter.fields:
        missing.insert(0, f"`path`: {starter.files}")
    return tuple(missing)


def pipeline_name(model: Path) -> str:
    """Return a name for the pipeline from that of the model's file or folder."""
    path = model.absolute()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem if path.is_file() else path.name)
    return name if re.match(r"[A-Za-z]", name) else f"model-{name}".rstrip("-")
