"""Catalogue of everything installed: passes, data sources, families, formats, and their fields."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticUndefined

from compressor.config import discovery
from compressor.engine.contract import Pass
from compressor.engine.plan.plan import Plan


class FieldEntry(BaseModel):
    """One field of a config."""

    model_config = ConfigDict(frozen=True)

    name: str
    type: str
    required: bool
    default: Any
    description: str


class CatalogueEntry(BaseModel):
    """One pass, data source, model family or model format."""

    model_config = ConfigDict(frozen=True)

    group: str
    name: str
    aliases: tuple[str, ...] = ()
    """Other names that pipeline.yaml may use."""
    summary: str
    description: str
    reads: tuple[str, ...] = ()
    """Formats that a pass reads."""
    writes: str | None = None
    """The format that a pass writes."""
    needs: tuple[str, ...] = ()
    """Capabilities of the model that a pass needs at its default configuration."""
    presets: tuple[str, ...] = ()
    fields: tuple[FieldEntry, ...] = ()


_GROUPS = {
    discovery.PASSES: "pass",
    discovery.SOURCES: "data source",
    discovery.FAMILIES: "model family",
    discovery.FORMATS: "model format",
}


def catalogue() -> list[CatalogueEntry]:
    """Return everything that is installed, passes first."""
    return [
        _entry(group, name)
        for group in _GROUPS
        for name in discovery.names(group)
        if discovery.load(group, name).name == name
    ]


def entry(name: str) -> CatalogueEntry:
    """Return the entry of a name, whatever its group.

    Raises:
        UsageError: nothing of that name is installed.
    """
    for group in _GROUPS:
        if name in discovery.names(group):
            return _entry(group, name)
    discovery.load(discovery.PASSES, name)
    raise AssertionError("load raises for an unknown name")


def _entry(group: str, name: str) -> CatalogueEntry:
    plugin = discovery.load(group, name)
    text = inspect.getdoc(type(plugin)) or ""
    is_pass = isinstance(plugin, Pass)
    config = getattr(plugin, "Config", None)
    return CatalogueEntry(
        group=_GROUPS[group],
        name=plugin.name,
        aliases=_aliases(group, plugin.name),
        summary=text.splitlines()[0] if text else "",
        description=text,
        reads=tuple(sorted(plugin.accepts)) if is_pass else (),
        writes=plugin.produces if is_pass else None,
        needs=_needs(plugin) if is_pass else (),
        presets=tuple(getattr(plugin, "presets", {})),
        fields=() if config is None else tuple(_fields(config)),
    )


def _aliases(group: str, name: str) -> tuple[str, ...]:
    others = (other for other in discovery.names(group) if other != name)
    return tuple(other for other in others if discovery.load(group, other).name == name)


def _needs(pass_: Pass[Any]) -> tuple[str, ...]:
    needs = pass_.needs(pass_.Config.model_construct())
    return tuple(need.label for need in needs)


def _fields(config: type[BaseModel], prefix: str = "") -> list[FieldEntry]:
    fields: list[FieldEntry] = []
    for name, field in config.model_fields.items():
        label = prefix + (field.alias or name)
        nested = _nested(field.annotation)
        default = None if field.default is PydanticUndefined else field.default
        fields.append(
            FieldEntry(
                name=label,
                type=_type_name(field.annotation),
                required=field.is_required(),
                default=default.model_dump(mode="json")
                if isinstance(default, BaseModel)
                else default,
                description=" ".join((field.description or "").split()),
            )
        )
        if nested is not None:
            fields += _fields(nested, f"{label}.")
    return fields


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_nested(argument) for argument in getattr(annotation, "__args__", ()))
    return next((one for one in found if one is not None), None)


def _type_name(annotation: Any) -> str:
    if hasattr(annotation, "__metadata__"):
        return _type_name(annotation.__origin__)
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return "null" if annotation is type(None) else annotation.__name__
    arguments = getattr(annotation, "__args__", ())
    origin = str(getattr(annotation, "__origin__", ""))
    if "Literal" in origin:
        return " | ".join(repr(argument) for argument in arguments)
    inner = [_type_name(argument) for argument in arguments if argument is not Ellipsis]
    if "tuple" in origin or "list" in origin:
        return f"list of {' | '.join(dict.fromkeys(inner))}"
    if "dict" in origin:
        return f"mapping of {inner[-1]}" if inner else "mapping"
    return " | ".join(inner) or str(annotation).removeprefix("typing.")


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The plan for a program to read."""
    return {
        "pipeline": plan.pipeline.config.name,
        "store": str(plan.store.root),
        "seed": plan.seed,
        "steps": [
            {
                "name": step.name,
                "pass": step.pass_name,
                "kind": step.format,
                "id": step.artifact_id,
                "artifact": step.directory,
                "inputs": dict(step.inputs),
                "state": step.state,
                "estimate": {
                    "parameters": step.estimate.model.parameters,
                    "macs": step.estimate.model.macs,
                    "seconds": step.estimate.seconds,
                    "peak_memory_bytes": step.estimate.peak_memory_bytes,
                    "disk_bytes": step.estimate.disk_bytes,
                },
            }
            for step in plan.steps
        ],
    }
