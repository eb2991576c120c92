"""Pipelines that ``init --from`` writes for a user's own module, or one of timm or torchvision.

A Python file is read, not run: what its text does not state is a placeholder that the pipeline's
validation names. Models of the libraries are created without weights.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.config.permission import code_is_allowed
from compressor.data.contract import InputFacts
from compressor.engine.contract import StarterModel
from compressor.engine.plan.model_starter import (
    pipeline_name,
    write_model_starter,
    write_starting_point,
)
from compressor.engine.plan.starter import WrittenPipeline
from compressor.engine.plan.starter_text import StartingPoint
from compressor.errors import ModelError, UsageError
from compressor.models.architecture import Architecture
from compressor.models.capabilities.signature import InputSpec
from compressor.models.facts import ModelFacts, planned_facts
from compressor.models.families.module.config import BATCH, ModuleConfig, NamedInput
from compressor.models.families.module.family import Module
from compressor.models.families.module.input_hints import InputHint, input_hint
from compressor.models.families.module.outline import Outline, Parameter, outline
from compressor.models.families.module.source_code import collect_code, split_target
from compressor.runtimes.formats import format_named

_LIBRARIES = ("timm", "torchvision")
_PYTHON = re.compile(r"\.py(:[^/\\]*)?$")
_FORMAT = "torch"
_ANY_FUNCTION = "build"
"""Stands for the function of a file that names none, so that its form can be checked."""
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_MAPPING = re.compile(r"['\"]?(\w+\.)*(dict|Dict|Mapping)\b")
_LABELS = frozenset({"label", "labels", "target", "targets"})
"""Optional parameters of ``forward`` that are no inputs of a model in use."""
_EXAMPLES = f"[{BATCH}, 3, 224, 224] or [{BATCH}, length]"
_WEIGHTS = "Without `weights: FILE` (.safetensors, .pt or .pth), they are initialized from `seed`."


def write_starter_for(source: str, folder: Path, data: Path | None) -> WrittenPipeline:
    """Write a pipeline for a model, and its JSON Schema, into ``folder``.

    Args:
        source: a model's folder or file, ``my_model.py`` or ``my_model.py:function``, or
            ``timm:NAME`` or ``torchvision:NAME``.
        folder: the folder for pipeline.yaml.
        data: the user's samples; None to write a placeholder.

    Raises:
        MissingExtraError: the library is not installed.
        ModelError: the model is not recognized, or the function is not found.
        UsageError: as ``write_model_starter``.
    """
    library, _, name = source.partition(":")
    if library in _LIBRARIES and not Path(source).exists():
        return write_starting_point(_library_model(library, name), folder, data)
    if _PYTHON.search(source) and not Path(source).is_dir():
        return write_starting_point(_python_module(source), folder, data)
    return write_model_starter(Path(source), folder, data)


def _library_model(library: str, name: str) -> StartingPoint:
    from compressor.models.families.module.libraries import LIBRARIES
    from compressor.models.families.module.probing import complete

    if not name:
        raise UsageError(f"`{library}:` names no model", remedy=f"write {library}:NAME")
    settings = LIBRARIES[library].image_settings(name)
    image = NamedInput(name="image", shape=(BATCH, *settings.shape))
    config = complete(ModuleConfig.model_validate({library: name, "inputs": (image,)}), None)
    facts = planned_facts(Architecture(Module(), config))
    return StartingPoint(
        pipeline_name(Path(name)),
        f"{name} of {library}",
        {library: name},
        Path.cwd(),
        format_named(_FORMAT),
        StarterModel(facts, config.input_specs()),
        data_fields={"mean": list(settings.mean), "std": list(settings.std)},
        comments=(_WEIGHTS,),
    )


def _python_module(source: str, samples: Sequence[InputFacts] = ()) -> StartingPoint:
    """Return the module of a Python file, as far as its text, the module or samples describe it."""
    is_file = source.endswith(".py")
    path, function = split_target(f"{source}:{_ANY_FUNCTION}" if is_file else source)
    file = Path(path)
    name, code = collect_code(file)
    found = outline(code[name], path, None if is_file else function)
    if code_is_allowed() and not found.arguments:
        found = _with_signature(found, ModuleConfig(python=f"{name}:{found.function}", code=code))
    sampled = {facts.name for facts in samples} - _LABELS
    used = [parameter for parameter in found.optional if parameter.name in sampled]
    if found.forward is not None:
        found = replace(found, forward=(*found.forward, *used))
    hints = [_completed(hint, samples) for hint in _hints(found)]
    missing = [f"`model.arguments.{argument}`: a value for it" for argument in found.arguments]
    missing += [line for hint in hints if (line := _missing(hint)) is not None]
    if not hints:
        hints = [InputHint("input")]
        missing.append(
            f"`model.inputs`: name, shape and dtype of each input; {found.function} does not state "
            "the parameters of `forward`"
        )
    arguments = {"arguments": dict.fromkeys(found.arguments)} if found.arguments else {}
    return StartingPoint(
        pipeline_name(file),
        f"{found.function} of {file.name}",
        {
            "python": Path(f"{path}:{found.function}"),
            **arguments,
            "inputs": {hint.name: _fields(hint) for hint in hints},
        },
        file.parent,
        format_named(_FORMAT),
        StarterModel(
            ModelFacts() if missing else _called(found.function, name, code, hints),
            tuple(map(_spec, hints)),
        ),
        missing=tuple(missing),
        needs_code=True,
        with_inputs=partial(_python_module, source),
        knows_inputs=all(hint.shape and hint.dtype for hint in hints),
        comments=(_WEIGHTS,),
    )


def _called(
    function: str, name: str, code: dict[str, str], hints: Sequence[InputHint]
) -> ModelFacts:
    """Return the facts of the module after one call; none if its code may not run, or it fails."""
    from compressor.models.families.module.probing import complete

    if not code_is_allowed():
        return ModelFacts()
    try:
        inputs = tuple(
            NamedInput.model_validate(
                {"name": hint.name, "shape": hint.shape, "dtype": hint.dtype or "float32"}
            )
            for hint in hints
        )
        config = ModuleConfig(python=f"{name}:{function}", code=code, inputs=inputs)
        config = complete(config, None)
    except (ModelError, ValidationError):  # the plan of the pipeline explains it
        return ModelFacts()
    return planned_facts(Architecture(Module(), config))


def _with_signature(found: Outline, config: ModuleConfig) -> Outline:
    """Return an outline with the signature and the docstrings of the module that is built."""
    from compressor.models.families.module.building import build_original

    module = build_original(config)
    parameters = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind in _ANY_NUMBER for parameter in parameters):
        return found
    docs = [inspect.getdoc(part) for part in (module.forward, type(module))]
    stated = {parameter.name: parameter for parameter in found.forward or ()}
    forward, optional = (
        tuple(
            stated.get(entry.name, Parameter(entry.name, _annotation(entry)))
            for entry in parameters
            if (entry.default is entry.empty) is required
        )
        for required in (True, False)
    )
    docstring = "\n".join(doc for doc in docs if doc)
    return replace(found, forward=forward, optional=optional, docstring=docstring)


def _annotation(parameter: inspect.Parameter) -> str:
    if parameter.annotation is parameter.empty:
        return ""
    return inspect.formatannotation(parameter.annotation)


def _hints(found: Outline) -> list[InputHint]:
    """Return the inputs; none where ``forward`` is not known, or takes them as a mapping."""
    parameters = found.forward or ()
    if any(_MAPPING.match(parameter.annotation) for parameter in parameters):
        return []
    return [input_hint(parameter, found.docstring) for parameter in parameters]


def _completed(hint: InputHint, samples: Sequence[InputFacts]) -> InputHint:
    """Return a hint with the shape and the type of samples, where the code states none."""
    facts = next((facts for facts in samples if facts.name == hint.name), None)
    if facts is None:
        return hint
    sizes = [size or f"{hint.name}_{axis}" for axis, size in enumerate(facts.shape, start=1)]
    return replace(hint, shape=hint.shape or (BATCH, *sizes), dtype=hint.dtype or facts.dtype)


def _fields(hint: InputHint) -> dict[str, Any]:
    shape = None if hint.shape is None else list(hint.shape)
    return {"shape": shape, "dtype": hint.dtype or "float32"}


def _missing(hint: InputHint) -> str | None:
    """Return the line for an input whose shape, or type, is not stated."""
    place = f"`model.inputs.{hint.name}"
    if hint.shape is None:
        also = "" if hint.dtype else "; and `dtype`, if it is not float32"
        return f"{place}.shape`: its sizes, such as {_EXAMPLES}{also}"
    if hint.dtype is None:
        return f"{place}.dtype`, if it is not float32"
    return None


def _spec(hint: InputHint) -> InputSpec:
    return InputSpec(hint.name, hint.dtype or "float32", hint.shape or (BATCH,))
