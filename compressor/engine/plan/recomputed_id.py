"""The id of an artifact computed again from what its manifest states."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from compressor.artifacts.artifact import MODEL
from compressor.artifacts.fingerprint import canonical_json, digest_json
from compressor.artifacts.manifest import Manifest
from compressor.config.discovery import PASSES, load
from compressor.config.record import with_former_names
from compressor.config.validation import references
from compressor.engine.plan.identity import BuildSettings, compute_id, replace_value
from compressor.engine.plan.plan import Recipe
from compressor.engine.plan.source_model import SourceModel
from compressor.errors import UsageError


def id_problem(manifest: Manifest) -> str | None:
    """Return what contradicts the id in a manifest, None if nothing does.

    The id covers the config, versions, data and parents, which the manifest states, and for a
    source model that was copied the bytes of its files. The bytes that a pass computes follow from
    them, and can be checked only by building the artifact again. Nothing is checked of a pass that
    is not installed, or whose config has changed since.
    """
    if manifest.pass_.name == SourceModel.name:
        config: Mapping[str, Any] | None = manifest.pass_.config
        if "files" in manifest.pass_.config and (problem := _files_problem(manifest)):
            return problem
    else:
        config = _hashed_config(manifest)
    if config is None or _computed_id(manifest, config) == manifest.id:
        return None
    return "its id is not that of the config, versions, data and parents that its manifest states"


def _files_problem(manifest: Manifest) -> str | None:
    digests = {
        name.removeprefix(f"{MODEL}/"): entry.sha256 for name, entry in manifest.files.items()
    }
    if digest_json(digests) == manifest.pass_.config["files"]:
        return None
    return "its id is that of a source model with other files"


def _hashed_config(manifest: Manifest) -> Mapping[str, Any] | None:
    """Return a pass's config as ids cover it; None if it is not known how."""
    try:
        record = load(PASSES, manifest.pass_.name).Config
        written = _without_defaults(record, manifest.pass_.config)
        config = record.model_validate_json(canonical_json(written))
    except (UsageError, ValidationError):
        return None
    hashed = config.model_dump(mode="json")
    if hashed != manifest.pass_.config:
        return None
    for location, target, name in references(config):
        if target.to == "data":
            replacement = manifest.data.get(name)
        elif target.to == "step":
            replacement = manifest.parents.get(str(location[-1]))
        else:
            continue
        if replacement is None:
            return None
        replace_value(hashed, location, replacement)
    return with_former_names(config, hashed)


def _without_defaults(record: type[BaseModel], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's JSON values without those at their default.

    Records refuse fields that are set and have no effect; a manifest states every field.
    """
    written = {}
    for name, value in tree.items():
        field = record.model_fields.get(name)
        if field is not None and not field.is_required():
            default = field.get_default(call_default_factory=True)
            if to_jsonable_python(default) == value:
                continue
        nested = [] if field is None else _records_in(field.annotation)
        is_record = len(nested) == 1 and isinstance(value, dict)
        written[name] = _without_defaults(nested[0], value) if is_record else value
    return written


def _records_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in {Union, UnionType, Annotated}:
        return [record for part in get_args(annotation) for record in _records_in(part)]
    return []


def _computed_id(manifest: Manifest, config: Mapping[str, Any]) -> str:
    pass_ = manifest.pass_
    recipe = Recipe(
        pass_.name, pass_.version, pass_.config, pass_.code, manifest.tools, manifest.data
    )
    machine = manifest.environment
    settings = BuildSettings(manifest.seed, machine.threads, machine.device)
    return compute_id(recipe, config, manifest.parents, settings)
