"""The generated parts of docs/pipeline.md: every field, from the docstrings in the code."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from compressor.analysis.catalogue import CatalogueEntry, FieldEntry, config_fields, list_entries
from compressor.config import discovery
from compressor.engine.plan.config import GateConfig, ModelConfig, PipelineConfig, StepHeader
from compressor.evaluation.metrics import known_metrics
from compressor.evaluation.records import EvaluateConfig
from website.remedies import PACKAGES
from website.tables import code, escaped, table

_SECTIONS = ("model", "data", "evaluate", "passes", "gates")
"""Fields of a pipeline with a chapter of their own."""


def own_entries() -> list[CatalogueEntry]:
    """Return the plugins of this repository, without others that are installed."""
    return [entry for entry in list_entries() if _is_own(entry)]


def _is_own(entry: CatalogueEntry) -> bool:
    groups = (discovery.PASSES, discovery.SOURCES, discovery.FAMILIES, discovery.FORMATS)
    loaded = [
        type(discovery.load(group, entry.name))
        for group in groups
        if entry.name in discovery.names(group)
    ]
    return any(plugin.__module__.partition(".")[0] in PACKAGES for plugin in loaded)


def pipeline_fields() -> str:
    """Return the table of the top level of a pipeline."""
    entries = [entry for entry in config_fields(PipelineConfig) if "." not in entry.name]
    rows = [
        _row(entry.model_copy(update={"type": "see below", "default": None, "limits": ""}))
        if entry.name.partition("[")[0] in _SECTIONS
        else _row(entry)
        for entry in entries
    ]
    return table(_HEADER, rows)


def model_fields() -> str:
    """Return the table of ``model:``."""
    return _record(ModelConfig, "model.")


def evaluate_fields() -> str:
    """Return the table of ``evaluate:``."""
    return _record(EvaluateConfig, "evaluate.")


def metric_names() -> str:
    """Return the names of all metrics."""
    return ", ".join(map(code, known_metrics())) + "."


def gate_fields() -> str:
    """Return the table of a gate."""
    return _record(GateConfig)


def step_fields() -> str:
    """Return the table of the fields that every step has."""
    return _record(StepHeader)


def passes() -> str:
    """Return a section for each pass."""
    return _entries("pass")


def sources() -> str:
    """Return a section for each data source."""
    return _entries("data source")


def families() -> str:
    """Return the table of model families."""
    rows = [
        [code(entry.name), escaped(entry.summary), ", ".join(map(code, entry.presets)) or "–"]
        for entry in own_entries()
        if entry.group == "model family"
    ]
    return table(["Family", "", "Presets"], rows)


def formats() -> str:
    """Return the table of formats."""
    entries = own_entries()
    rows = []
    for entry in (entry for entry in entries if entry.group == "model format"):
        readers = [code(one.name) for one in entries if entry.name in one.reads]
        writers = [code(one.name) for one in entries if one.writes == entry.name]
        rows.append(
            [code(entry.name), escaped(entry.summary), ", ".join(writers), ", ".join(readers)]
        )
    return table(["Format", "Content", "Written by", "Read by"], rows)


def renamed_keys() -> str:
    """Return the table of old keys."""
    rows = [
        [code(entry.name), _parent(field.name), code(old), code(field.name.rpartition(".")[2])]
        for entry in own_entries()
        for field in entry.fields
        for old in field.former_names
    ]
    return table(["Pass", "Under", "Old key", "Key"], rows)


def _entries(group: str) -> str:
    return "\n\n".join(_entry(entry) for entry in own_entries() if entry.group == group)


def _entry(entry: CatalogueEntry) -> str:
    lines = [f"### {entry.name}", escaped(" ".join(entry.description.split("\n\n")[0].split()))]
    facts = []
    if entry.writes:
        reads = ", ".join(map(code, entry.reads))
        facts.append(f"Reads {reads}; writes {code(entry.writes)}.")
    if entry.aliases:
        facts.append(f"Also named {', '.join(map(code, entry.aliases))}.")
    if entry.needs:
        facts.append(f"Needs a model with {', '.join(entry.needs)}.")
    fields = [field for field in entry.fields if field.name != "source"]
    lines += [" ".join(facts)] if facts else []
    return "\n\n".join([*lines, table(_HEADER, map(_row, fields))] if fields else lines)


_HEADER = ("Field", "Type", "Default", "Meaning")


def _record(config: type[BaseModel], prefix: str = "") -> str:
    return table(_HEADER, [_row(entry) for entry in config_fields(config, prefix)])


def _row(field: FieldEntry) -> list[str]:
    type_ = _type_text(field)
    return [code(field.name), type_, _default(field), escaped(field.description)]


def _type_text(field: FieldEntry) -> str:
    """Return the type in words: records are explained field by field."""
    parts = [_type_part(part) for part in field.type.split(" | ")]
    parts = [part for part in parts if part != "null" or field.default is not None]
    return ", ".join(filter(None, (" or ".join(parts), field.limits)))


def _type_part(part: str) -> str:
    """Return one of the types of a union; ``Calibration`` is a mapping, ``'mse'`` a word."""
    for container in ("list of ", "mapping of "):
        if part.startswith(container):
            inner = _type_part(part.removeprefix(container))
            return "mapping" if inner == "Any" else f"{container}{inner}"
    if part == "True":
        return code("true")
    if part.startswith("'"):
        return code(part.strip("'"))
    return "mapping" if part[:1].isupper() and part != "Any" else part


def _default(field: FieldEntry) -> str:
    if field.required:
        return "**required**"
    return _value(field.default)


def _value(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return code(str(value).lower())
        case dict():
            return "–" if value else code("{}")
        case list() | tuple():
            return code(f"[{', '.join(map(str, value))}]")
        case _:
            return code(str(value))


def _parent(path: str) -> str:
    parent = path.rpartition(".")[0]
    return code(parent) if parent else "–"
