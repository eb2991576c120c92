"""What is installed, told from the code itself: passes, data sources, families, and each of their fields."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticUndefined

from compressor.config import discovery
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
    """One pass, data source or family."""

    model_config = ConfigDict(frozen=True)

    group: str
    name: str
    summary: str
    description: str
    reads: tuple[str, ...] = ()
    writes: str | None = None
    presets: tuple[str, ...] = ()
    fields: tuple[FieldEntry, ...] = ()


_GROUPS = {
    discovery.PASSES: "pass",
    discovery.SOURCES: "data source",
    discovery.FAMILIES: "model family",
}


def catalogue() -> list[CatalogueEntry]:
    """Everything installed, passes first."""
    return [_entry(group, name) for group in _GROUPS for name in discovery.names(group)]


def entry(name: str) -> CatalogueEntry:
    """The entry of that name, whatever it is.

    Raises:
        UsageError: nothing of that name is installed.
    """
    for group in _GROUPS:
        if name in discovery.names(group):
            return _entry(group, name)
    discovery.load(discovery.PASSES, name)
    raise AssertionError("load raises for an unknown name")


def _entry(group: str, name: str) -> CatalogueEntry:
    found = discovery.load(group, name)
    text = inspect.getdoc(type(found)) or ""
    return CatalogueEntry(
        group=_GROUPS[group],
        name=name,
        summary=text.splitlines()[0] if text else "",
        description=text,
        reads=tuple(sorted(getattr(found, "accepts", ()))),
        writes=getattr(found, "produces", None),
        presets=tuple(getattr(found, "presets", {})),
        fields=tuple(_fields(found.Config)),
    )


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
