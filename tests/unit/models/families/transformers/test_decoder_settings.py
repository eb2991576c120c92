"""The settings of a config.json are those that the class of transformers computes with."""

from __future__ import annotations

import copy
import re
from itertools import product
from typing import Any

import pytest
import torch

from compressor.errors import ModelError
from compressor.models.families.transformers.decoder_settings import (
    SLIDING,
    decoder_settings,
    settings_problems,
)
from compressor.models.families.transformers.family import Transformers
from compressor.models.families.transformers.layouts import LAYOUTS
from compressor.models.families.transformers.modules import build_module

FAMILY = Transformers()
DEFAULTED = (
    "hidden_act",
    "hidden_activation",
    "layer_types",
    "max_position_embeddings",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
)
"""Fields that a config.json may leave to transformers."""
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
ATTENTION: list[dict[str, Any]] = [
    {},
    {"sliding_window": 8},
    {"sliding_window": None},
    {"layer_types": ["sliding_attention"] * 3, "sliding_window": 8},
    {
        "layer_types": ["attention", "sliding_attention", "full_attention"],
        "sliding_window": 8,
        "use_sliding_window": True,
    },
    {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
    {"layer_types": ["chunked_attention"] * 3},
    {"sliding_window_pattern": 2},
]
ROTARY: list[dict[str, Any]] = [
    {},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_theta": 5e5},
    {"rope_scaling": {"type": "ntk", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear"}},
    {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
    {"rope_parameters": {"rope_type": "longrope", "factor": 2.0, **FACTORS}},
    {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"partial_rotary_factor": 0.5}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
    {"partial_rotary_factor": 0.25},
    {"head_dim": 10},
    {"head_dim": 9},
]


def changed(preset: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return a preset's config.json with fields of the language model replaced."""
    tree = copy.deepcopy(FAMILY.presets[preset].tree)
    path = LAYOUTS[tree["model_type"]].text
    text = tree[path[0]] if path else tree
    text.update(copy.deepcopy(fields))
    return tree


def without_defaults(preset: str) -> dict[str, Any]:
    """Return a preset's config.json without the fields that transformers has defaults for."""
    tree = changed(preset, {})
    path = LAYOUTS[tree["model_type"]].text
    text = tree[path[0]] if path else tree
    for name in DEFAULTED:
        text.pop(name, None)
    return tree


def assert_settings_equal_the_modules(tree: dict[str, Any]) -> None:
    settings, layout = decoder_settings(tree), LAYOUTS[tree["model_type"]]
    module: Any = build_module(copy.deepcopy(tree))
    config = module.config.get_text_config()
    rotary = module.get_submodule(f"{layout.root}.rotary_emb")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    assert (settings.activation, settings.epsilon, settings.positions) == (
        activation,
        config.rms_norm_eps,
        config.max_position_embeddings,
    )
    for layer_type, expected in settings.rotary.items():
        prefix = f"{layer_type}_" if hasattr(rotary, f"{layer_type}_inv_freq") else ""
        kind = rotary.rope_type[layer_type] if prefix else rotary.rope_type
        frequencies = getattr(rotary, f"{prefix}inv_freq")
        assert (expected.kind, expected.pairs) == (kind, len(frequencies))
    for layer, layer_type in zip(
        module.get_submodule(layout.layers_name), settings.layer_types, strict=True
    ):
        attention: Any = layer.self_attn
        assert attention.scaling == pytest.approx(settings.attention_scale)
        if layout.attention == "by layer":
            window = settings.window if layer_type == SLIDING else None
            assert attention.sliding_window == window
    if layout.attention == "sliding":
        assert settings.window == config.sliding_window


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_absent_fields_have_the_defaults_of_transformers(preset: str) -> None:
    tree = without_defaults(preset)
    if preset == "tiny-glm4v":  # by default its heads are 128 wide
        tree["text_config"]["rope_parameters"] = {"mrope_section": [4, 2, 2]}
    assert_settings_equal_the_modules(tree)


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_a_config_has_problems_exactly_where_transformers_cannot_compute_with_it(
    preset: str,
) -> None:
    tokens = torch.randint(3, 400, (1, 24))
    for attention, rotary in product(ATTENTION, ROTARY):
        if attention and rotary and attention is not ATTENTION[4]:
            continue
        tree = changed(preset, attention | rotary)
        problems = settings_problems(tree)
        try:
            with torch.no_grad():
                build_module(copy.deepcopy(tree))(input_ids=tokens)
        except (KeyError, ModelError, RuntimeError, ValueError):
            assert problems, (attention, rotary)
        else:
            assert not problems, (attention, rotary)
            assert_settings_equal_the_modules(tree)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_scaling": "linear"}, "`rope_scaling` is 'linear', expected a mapping"),
        ({"sliding_window": "8"}, "`sliding_window` is '8', expected a whole number"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "`rope_scaling.factor` is '2'"),
        ({"rope_theta": 0.0}, "`rope_theta` is 0.0, expected more than 0"),
        ({"rms_norm_eps": 0}, "`rms_norm_eps` is 0, expected a number with a decimal point"),
        ({"max_position_embeddings": 10**30}, "expected at most 2147483647"),
        ({"eos_token_id": [1, "2"]}, "expected a whole number at each place of the list"),
        ({"hidden_act": "softsilu"}, "`hidden_act` is 'softsilu', expected one of gelu, "),
    ],
)
def test_values_of_another_type_are_named(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        FAMILY.Config.model_validate(changed("tiny-llama", fields))


def test_a_config_that_the_class_cannot_compute_with_is_refused_as_a_model() -> None:
    tree = changed("tiny-llama", {"rope_scaling": {"type": "su", **FACTORS}})
    with pytest.raises(ValueError, match="transformers has no rotary embeddings of type 'su'"):
        FAMILY.Config.model_validate(tree)
