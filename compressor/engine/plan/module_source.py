"""The module that ``model:`` names by `python`, `timm` or `torchvision`, checked before a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.config.document import Document
from compressor.config.permission import code_is_allowed
from compressor.engine.plan.config import ModelConfig
from compressor.errors import CompressError, ConfigError, Problem
from compressor.foreign_files.real_path import real_path
from compressor.models.families.module.config import BATCH, InputConfig, ModuleConfig
from compressor.models.families.module.source_code import collect_code, split_target
from compressor.runtimes.format_records import ModuleSource

_IMAGE = "image"


def complete_module(model: ModelConfig, document: Document, base: Path) -> ModuleSource:
    """Return the module that ``model:`` names, with a complete config.

    The module is built on the device ``meta`` and called once, and compared with the weights.

    Raises:
        ConfigError: code is not allowed, or a field is wrong.
    """
    weights = None if model.weights is None else real_path(base / model.weights)
    problems = []
    if weights is not None and not weights.is_file():
        problems.append(
            _problem(document, "weights", f"{model.weights} does not exist ({weights})")
        )
    code: Mapping[str, Any] = {}
    if model.python is not None:
        try:
            code = _python_fields(model.python, base)
        except CompressError as error:
            problems.append(_problem(document, "python", error.what, error.remedy))
        if not code_is_allowed():
            what = f"runs {model.python}, which is code: allow it with --allow-code"
            problems.append(_problem(document, "python", what))
    if problems:
        raise ConfigError(problems)
    try:
        config = _complete(model, code)
    except CompressError as error:
        raise _at(document, model.start, error) from error
    if weights is not None:
        try:
            _check_weights(config, weights)
        except CompressError as error:
            raise _at(document, "weights", error) from error
    return ModuleSource(config, weights)


def _python_fields(python: str, base: Path) -> Mapping[str, Any]:
    """Return the fields of a config for a function in a file."""
    file, function = split_target(python)
    name, code = collect_code(base / file)
    return {"python": f"{name}:{function}", "code": code}


def _complete(model: ModelConfig, code: Mapping[str, Any]) -> ModuleConfig:
    from compressor.models.families.module.probing import complete

    inputs = model.inputs or _image_inputs(model)
    fields = {
        "arguments": model.arguments,
        "inputs": [{"name": name, **spec.model_dump(mode="json")} for name, spec in inputs.items()],
        "unit": model.unit or "sample",
        **(code or {model.start: getattr(model, model.start)}),
    }
    return complete(ModuleConfig.model_validate_json(json.dumps(fields)), _outputs(model))


def _image_inputs(model: ModelConfig) -> Mapping[str, InputConfig]:
    """Return an image of the size that a library's model was trained on."""
    from compressor.models.families.module.libraries import LIBRARIES

    library = LIBRARIES[model.start]
    shape = library.image_settings(getattr(model, model.start)).shape
    return {_IMAGE: InputConfig(shape=(BATCH, *shape))}


def _outputs(model: ModelConfig) -> Any:
    """Return names of outputs, or their places as paths."""
    if not isinstance(model.outputs, Mapping):
        return model.outputs
    return {
        name: place if isinstance(place, tuple) else (place,)
        for name, place in model.outputs.items()
    }


def _check_weights(config: ModuleConfig, file: Path) -> None:
    from compressor.models.families.module.probing import unfilled_module
    from compressor.models.families.module.weights import check_weights, read_weights

    check_weights(unfilled_module(config), read_weights(file)[0], file)


def _problem(document: Document, key: str, what: str, remedy: str | None = None) -> Problem:
    return document.problem(("model", key), what, remedy=remedy)


def _at(document: Document, key: str, error: CompressError) -> ConfigError:
    return ConfigError([_problem(document, key, error.what, error.remedy)])
