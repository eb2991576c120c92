"""Fields that have no effect are refused by name: beside other fields, and on the model at hand."""

import json

import pytest
from pydantic import ValidationError

from compressor.engine.contract import PlanContext
from compressor.errors import RequirementError
from compressor.models.facts import ModelFacts
from passes.prune.config import PruneConfig
from passes.prune.step import Prune
from tests.support.tiny_models import CHECKPOINT, CLASSIFIER

TRAINING = {"steps": 12, "batch_size": 16}
GRADUAL = {"recovery": {"training": TRAINING}, "schedule": {"kind": "gradual", "rounds": 3}}


def config_of(**fields):
    defaults = {"target": {"macs": 0.5}, "calibration": "train"}
    return PruneConfig.model_validate_json(json.dumps(defaults | fields))


def facts_of(family, preset):
    config = family.presets[preset]
    return ModelFacts(family.name, config.model_dump(mode="json"), 10**6, 10**6, 4 * 10**6)


def plan(family, preset, **fields):
    return Prune().estimate(config_of(**fields), facts_of(family, preset), PlanContext({}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (GRADUAL | {"recovery": None}, "configure `recovery`"),
        (
            GRADUAL | {"recovery": {"training": {"steps": 2}}},
            "3 rounds need at least 3 steps of recovery",
        ),
        (
            GRADUAL | {"recovery": {"training": TRAINING | {"patience": 2, "evaluate_every": 1}}},
            "leave it out with a gradual",
        ),
        (GRADUAL | {"schedule": {"rounds": 4}}, "kind"),
        ({"calibration": None}, "importance 'taylor' needs samples"),
        ({"target": {"latency_ms": 3}}, "latency_ms needs `latency`"),
        ({"axes": []}, "at least 1"),
    ],
)
def test_missing_fields_are_named(fields, message):
    with pytest.raises(ValidationError, match=message):
        config_of(**fields)


NO_SAMPLES = {"importance": "magnitude", "calibration": None}
DIMENSIONS = {"target": {"dimensions": {"ffn": 64}}}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (NO_SAMPLES | {"num_samples": 4, "batch_size": 2}, ["num_samples", "batch_size"]),
        (NO_SAMPLES | {"repair": True, "layer_importance": "loss"}, ["repair", "layer_importance"]),
        ({"layer_importance": "loss"}, ["layer_importance"]),
        ({"importance": "taylor", "axes": ["layers"]}, ["importance"]),
        ({"multiple": 16, "axes": ["heads", "layers"]}, ["multiple"]),
        (
            DIMENSIONS | {"axes": ["ffn"], "multiple": 16, "min_keep": 0.5},
            ["axes", "multiple", "min_keep"],
        ),
        ({"schedule": {"kind": "once", "rounds": 4, "rule": "cubic"}}, ["rounds", "rule"]),
        (GRADUAL | {"schedule": {"kind": "gradual", "threshold": 0.2}}, ["threshold"]),
        ({"recovery": {"soft_weight": 0, "temperature": 3}}, ["temperature"]),
        (
            {
                "recovery": {
                    "validation": None,
                    "training": TRAINING | {"patience": 2, "evaluate_every": 1},
                }
            },
            ["training.patience"],
        ),
    ],
)
def test_fields_without_effect_beside_others_are_named(fields, names):
    with pytest.raises(ValidationError) as caught:
        config_of(**fields)
    for name in names:
        assert f"`{name}` has no effect" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        NO_SAMPLES | {"repair": False},
        NO_SAMPLES | {"axes": ["layers"]},
        DIMENSIONS
        | {"multiple": 16, "min_keep": 0.5, "recovery": {}}
        | {"schedule": {"kind": "gradual", "rule": "threshold"}},
        {"recovery": {"soft_weight": 0}},
    ],
)
def test_fields_that_have_an_effect_are_accepted(fields):
    config_of(**fields)


@pytest.mark.parametrize(
    ("family", "preset", "fields", "message"),
    [
        (CLASSIFIER, "small", {"axes": ["channels", "hidden", "heads"]}, "no hidden, heads to cut"),
        (CLASSIFIER, "small-vit", {"axes": ["channels", "ffn"]}, "no channels to cut"),
        (CLASSIFIER, "small", {"target": {"dimensions": {"width": 8}}}, "the model has no width"),
        (
            CHECKPOINT,
            "tiny-llama",
            {"target": {"dimensions": {"hidden": 48, "layers": 9}}},
            "layers: 9 is not between",
        ),
        (
            CHECKPOINT,
            "tiny-llama",
            DIMENSIONS | {"layer_importance": "loss"},
            "`layer_importance`: no layers are cut",
        ),
        (
            CHECKPOINT,
            "tiny-llama",
            {"target": {"dimensions": {"layers": 2}}, "importance": "taylor", "repair": True},
            "`importance`: only layers are cut\n    `repair`: only layers are cut",
        ),
        (
            CLASSIFIER,
            "small",
            {"importance": "magnitude", "repair": False},
            "`calibration`: `importance: magnitude` and `repair: false` use no samples",
        ),
        (
            CLASSIFIER,
            "small",
            {"importance": "magnitude", "repair": False, "latency": {}, "batch_size": 8},
            "`batch_size`: `importance: magnitude` and `repair: false` use no samples",
        ),
        (
            CHECKPOINT,
            "tiny-llama",
            {"axes": ["layers"], "repair": True}
            | {"recovery": {"training": {"batch_norm": "freeze"}}},
            "batch_norm`: the model has no batch normalization\n    `repair`: only layers are cut",
        ),
    ],
)
def test_fields_that_do_not_apply_to_the_model_are_named_by_the_plan(
    family, preset, fields, message
):
    with pytest.raises(RequirementError) as caught:
        plan(family, preset, **fields)
    assert message in caught.value.what


@pytest.mark.parametrize(
    ("family", "preset", "fields"),
    [
        (CLASSIFIER, "small", {}),
        (CLASSIFIER, "small", {"importance": "magnitude"}),
        (CLASSIFIER, "small-vit", {"axes": ["layers", "ffn"], "layer_importance": "loss"}),
        (
            CHECKPOINT,
            "tiny-llama",
            {"importance": "magnitude", "repair": False, "axes": ["hidden"]},
        ),
        (CHECKPOINT, "tiny-glm4v", {"target": {"dimensions": {"ffn": 64, "layers": 2}}}),
    ],
)
def test_a_config_that_applies_to_the_model_is_planned(family, preset, fields):
    assert plan(family, preset, **fields).model.family == family.name


def test_the_id_covers_the_runtime_that_measures():
    def tools(**latency):
        return Prune().tools_for(config_of(**latency))

    assert tools() == tools(latency={"runtime": "torch"}) == ("torch", "numpy")
    assert tools(latency={}) == ("torch", "numpy", "onnxruntime")
