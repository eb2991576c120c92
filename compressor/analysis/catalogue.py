"""Catalogue of installed plugins, such as passes and data sources, with their fields."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AliasChoices, BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from compressor.config import discovery
from compressor.config.record import Reference
from compressor.engine.contract import Pass


class FieldEntry(BaseModel):
    """One field of a config."""

    model_config = ConfigDict(frozen=True)

    name: str
    type: str
    limits: str = ""
    """Limits of a number or a list: ``at least 1``; empty if there are none."""
    former_names: tuple[str, ...] = ()
    """Old names, which are still valid."""
    required: bool
    default: Any
    description: str


class CatalogueEntry(BaseModel):
    """One pass, data source, model family, model format or metric."""

    model_config = ConfigDict(frozen=True)

    group: str
    """``pass``, ``data source``, ``model family``, ``model format`` or ``metric``."""
    name: str
    aliases: tuple[str, ...] = ()
    """Other names that pipeline.yaml may use."""
    summary: str
    """First line of the description."""
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
    discovery.METRICS: "metric",
}


def list_entries() -> list[CatalogueEntry]:
    """Return every installed plugin, passes first."""
    return [
        _entry(group, name)
        for group in _GROUPS
        for name in discovery.names(group)
        if discovery.load(group, name).name == name
    ]


def find_entry(name: str) -> CatalogueEntry:
    """Return the entry of a name, from the first group that has it.

    Raises:
        UsageError: no plugin of that name is installed.
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
        fields=() if config is None else tuple(config_fields(config)),
    )


def _aliases(group: str, name: str) -> tuple[str, ...]:
    """Return the other entry points of the plugin ``name``."""
    return tuple(
        alias
        for alias in discovery.names(group)
        if alias != name and discovery.load(group, alias).name == name
    )


def _needs(pass_: Pass[Any]) -> tuple[str, ...]:
    needs = pass_.needs(pass_.Config.model_construct())
    return tuple(need.label for need in needs)


def config_fields(config: type[BaseModel], prefix: str = "") -> list[FieldEntry]:
    """Return the fields of a config, each followed by those of the record inside it.

    Args:
        config: the record.
        prefix: path of the record, with a dot at its end.
    """
    fields: list[FieldEntry] = []
    for name, field in config.model_fields.items():
        label = prefix + (field.alias or name)
        nested = _nested(field.annotation)
        default = None if field.default is PydanticUndefined else field.default
        fields.append(
            FieldEntry(
                name=label,
                type=_reference(field.metadata) or _type_name(field.annotation),
                limits=", ".join(_limits(field.metadata, field.annotation)),
                former_names=_former_names(field),
                required=field.is_required(),
                default=default.model_dump(mode="json")
                if isinstance(default, BaseModel)
                else default,
                description=" ".join((field.description or "").split()),
            )
        )
        if nested is not None:
            fields += config_fields(nested, f"{label}{_item(field.annotation)}.")
    return fields


def _item(annotation: Any) -> str:
    """Return the path from a field to the records inside of it: ``.<name>`` for a mapping."""
    text = _type_name(annotation)
    return ".<name>" if text.startswith("mapping") else "[]" if text.startswith("list") else ""


def _former_names(field: FieldInfo) -> tuple[str, ...]:
    alias = field.validation_alias
    return tuple(map(str, alias.choices[1:])) if isinstance(alias, AliasChoices) else ()


def _reference(metadata: Sequence[Any]) -> str | None:
    """Return the type of a field that names a data set, a step or a path; None for others."""
    names = {"data": "data set", "step": "step", "path": "path"}
    return next((names[entry.to] for entry in metadata if isinstance(entry, Reference)), None)


def _limits(metadata: Sequence[Any], annotation: Any) -> list[str]:
    """Return the limits of a field, those inside of its type included: ``at least 1``."""
    found = [text for entry in metadata if (text := _limit(entry))]
    for argument in getattr(annotation, "__args__", ()):
        found += _limits(getattr(argument, "__metadata__", ()), argument)
    if hasattr(annotation, "__metadata__"):
        found += _limits((), annotation.__origin__)
    return list(dict.fromkeys(found))


def _limit(entry: Any) -> str:
    if isinstance(entry, FieldInfo):
        return ", ".join(_limits(entry.metadata, None))
    match entry:
        case Ge():
            return f"at least {entry.ge}"
        case Gt():
            return f"above {entry.gt}"
        case Le():
            return f"at most {entry.le}"
        case Lt():
            return f"below {entry.lt}"
        case MinLen():
            return f"{entry.min_length} or more entries"
    return ""


def _nested(annotation: Any) -> type[BaseModel] | None:
    """Return the config record in an annotation such as ``Inner | None``, if there is one."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    records = (_nested(argument) for argument in getattr(annotation, "__args__", ()))
    return next((record for record in records if record is not None), None)


def _type_name(annotation: Any) -> str:
    if hasattr(annotation, "__metadata__"):
        return _reference(annotation.__metadata__) or _type_name(annotation.__origin__)
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
