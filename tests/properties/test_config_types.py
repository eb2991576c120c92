"""A config.json that the classes of transformers reject is refused before a model is built."""

from __future__ import annotations

import dataclasses
import json
import types
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import transformers
from pydantic import ValidationError
from transformers.activations import ACT2FN

from compressor.errors import ModelError
from compressor.models.families.transformers.field_types import ACTIVATIONS, CLASS_FIELDS
from compressor.models.families.transformers.modules import build_on_meta
from tests.support.checkpoints import FAMILY, PRESETS

VALUES = (0, -1, 2.0, True, "1", [], ["1"], {"a": 1}, 2**70)
NOT_COMPARED = frozenset(
    {
        *("architectures", "dtype"),  # checked against what is supported
        *("output_hidden_states", "return_dict"),  # options of a call, left out
        *("text_config", "vision_config"),  # mappings
        *("image_size", "patch_size", "temporal_patch_size"),  # lists are not supported
    }
)


def classes_of(preset: str) -> list[Any]:
    config = transformers.AutoConfig.for_model(FAMILY.presets[preset].model_type)
    parts = [getattr(config, name, None) for name in ("text_config", "vision_config")]
    return [type(part) for part in (config, *parts) if part is not None]


def plain_types(annotation: Any) -> set[type]:
    if isinstance(annotation, str):
        return plain_types(eval(annotation, {"Literal": Literal}))
    origin = get_origin(annotation)
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    if origin in {Union, types.UnionType}:
        return {kind for part in get_args(annotation) for kind in plain_types(part)}
    if getattr(annotation, "__total__", None) is not None:  # a typed dictionary
        return {dict}
    return {origin or annotation}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_has_the_types_of_the_classes(preset: str) -> None:
    for config_class in classes_of(preset):
        for field in dataclasses.fields(config_class):
            if field.name not in NOT_COMPARED:
                expected = plain_types(field.type) - {types.NoneType}
                assert set(CLASS_FIELDS[field.name]) == expected, field.name


def test_the_activations_are_those_of_transformers() -> None:
    assert set(ACT2FN) == ACTIVATIONS


def places(tree: dict[str, Any]) -> list[tuple[str, ...]]:
    text = ("text_config",) if "text_config" in tree else ()
    rotary = [(*text, name) for name in ("rope_theta", "rope_scaling", "partial_rotary_factor")]
    return [*((*text, name) for name in CLASS_FIELDS), *rotary, *((name,) for name in CLASS_FIELDS)]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_class_rejects_is_refused_before(preset: str) -> None:
    accepted = []
    for *parts, name in places(FAMILY.presets[preset].tree):
        for value in VALUES:
            tree = json.loads(json.dumps(FAMILY.presets[preset].tree))
            holder = tree
            for part in parts:
                holder = holder[part]
            holder[name] = value
            try:
                config = FAMILY.Config.model_validate_json(json.dumps(tree))
            except ValidationError:
                continue
            try:
                build_on_meta(config.tree)
            except ModelError as error:
                accepted.append(f"{'.'.join((*parts, name))} = {value!r}: {error.what[:200]}")
    assert not accepted, "\n".join(accepted)
