"""Catalogue of installed plugins: passes, data sources, model families, formats, their fields."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticUndefined

from compressor.config import discovery
from compressor.engine.contract import Pass


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
    """``pass``, ``data source``, ``model family`` or ``model format``."""
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
        fields=() if config is None else tuple(_fields(config)),
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
    """Return the config record in an annotation such as ``Inner | None``, if there is one."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    records = (_nested(argument) for argument in getattr(annotation, "__args__", ()))
    return next((record for record in records if record is not None), None)


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
