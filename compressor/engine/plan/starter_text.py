"""Text of the pipelines that ``init --from`` writes, and the records that it is made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compressor.data.contract import DataSource, InputFacts, StarterData
from compressor.engine.contract import Pass, StarterModel
from compressor.engine.plan.capabilities import suitable_passes
from compressor.engine.plan.config import SOURCE
from compressor.evaluation.outputs import fitting_metrics, misfit
from compressor.foreign_files.real_path import real_path
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.runtimes.formats import Format

_DATA = "samples"
"""Name of the data set."""
_WINDOWS = 16
"""Number of samples for the accuracy of language models, whose logits are large."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """The data set of the pipeline."""

    source: DataSource[Any]
    starter: StarterData
    num_classes: int | None = None
    """Exclusive upper bound of the labels; None if it is not known, or there are no labels."""
    inputs: tuple[InputFacts, ...] = ()
    """Arrays of the user's files that a model takes, where they are known."""


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """The model that a pipeline is written for."""

    name: str
    """Name of the pipeline."""
    title: str
    model: Mapping[str, Any]
    """Fields under ``model:``; values of the type ``Path`` are written relative to the pipeline."""
    folder: Path
    """Folder that may hold a tokenizer."""
    format: Format
    starter: StarterModel
    missing: tuple[str, ...] = ()
    """Fields of ``model`` that the user has to set, with their meaning."""
    needs_code: bool = False
    knows_inputs: bool = True
    """False if shapes or types of the inputs are not known: their data can have any."""
    with_inputs: Callable[[Sequence[InputFacts]], StartingPoint] | None = None
    """Returns the starting point with the shapes and types that samples have, where the model does
    not state them."""
    data_fields: Mapping[str, Any] = field(default_factory=dict)
    """Values of fields of the data set, for sources that have them: mean and deviation."""
    comments: tuple[str, ...] = ()
    """Lines above ``model:``."""
    remedy: str | None = None
    """Way to a model that passes read, where none of them reads this one."""


@dataclass(frozen=True, slots=True)
class PipelineParts:
    """Everything that the text of a pipeline is made of."""

    start: StartingPoint
    steps: tuple[Pass[Any], ...]
    data: DataSet | None


def pipeline_text(parts: PipelineParts, folder: Path) -> str:
    """Return a pipeline with comments; paths are relative to ``folder``."""
    start, steps = parts.start, parts.steps
    chosen = {pass_.name for pass_ in steps}
    others = [
        answer.pass_name
        for answer in suitable_passes(start.format, start.starter)
        if not answer.reasons and answer.pass_name not in chosen
    ]
    lines = ["# yaml-language-server: $schema=pipeline.schema.json", f"# Model: {start.title}."]
    if others:
        lines.append(f"# It can also go through {', '.join(others)}; for their fields, run")
        lines.append(f"# `autoglm-compress passes explain {others[0]}`.")
    lines += ["version: 1", f"name: {start.name}", *(f"# {line}" for line in start.comments)]
    lines.append(f"model: {_flow(_written(start.model, folder))}")
    if parts.data is not None:
        source, starter = parts.data.source, parts.data.starter
        fields = {"source": source.name, **_written(starter.fields, folder)}
        lines += ["data:"]
        lines += [f"  # {starter.files}"] if starter.files else []
        lines += [f"  {_DATA}: {_flow(fields)}"]
        lines += ["evaluate:  # measured for every artifact", *_accuracy(parts)]
        lines += [f"  latency: {{data: {_DATA}}}"]
    lines.append("passes:")
    for number, pass_ in enumerate(steps):
        # Of two passes that read the model's own format, the second is a branch.
        is_branch = number > 0 and steps[number - 1].produces == start.format.name
        fields = {
            "type": pass_.name,
            **({"from": SOURCE} if is_branch else {}),
            **pass_.starter_fields(start.starter),
        }
        summary = (type(pass_).__doc__ or pass_.name).splitlines()[0]
        lines += [f"  # {summary}", f"  - {_flow(fields)}"]
    return "\n".join(lines) + "\n"


def _accuracy(parts: PipelineParts) -> list[str]:
    """Return the line with metrics that fit the outputs; none if the outputs are not known.

    They compare each step with the model; where the samples have labels that fit, `top1` goes
    first.
    """
    facts = parts.start.starter.facts
    signature = facts.signature()
    if signature is None or parts.data is None or not signature.outputs:
        return []
    labels = parts.data.num_classes
    metrics = fitting_metrics(signature.outputs, signature.classes, signature.output_specs)
    fits = misfit("top1", signature.outputs, signature.classes) is None
    if fits and labels is not None and labels <= (signature.classes or labels):
        metrics = ("top1", *metrics)
    fields: dict[str, Any] = {"data": _DATA, "metrics": list(metrics)}
    if facts.capability(CachedGeneration) is not None:
        fields["num_samples"] = _WINDOWS
    return [f"  accuracy: {_flow(fields)}  # compared with the model"]


def _written(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {
        name: _relative(value, folder) if isinstance(value, Path) else value
        for name, value in fields.items()
    }


def _relative(path: Path, folder: Path) -> str:
    """Return a path as the pipeline file in a folder has to write it."""
    target = real_path(path) if path.is_dir() else real_path(path.parent) / path.name
    return Path(os.path.relpath(target, real_path(folder))).as_posix()


def _flow(fields: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(
        dict(fields), default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    )
    return text.strip()
