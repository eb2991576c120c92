"""Fields of ``distill`` that exclude each other, have no effect, or do not apply to the models."""

import json

import pytest

from compressor.engine.contract import PlanContext
from compressor.errors import RequirementError
from compressor.models.facts import ModelFacts
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.transformers.family import Transformers
from passes.distill.config import DistillConfig
from passes.distill.step import Distill

PHONE, CLASSIFIER, DECODER = AutoGLMPhone(), ImageClassifier(), Transformers()
TRAINING = {"steps": 100, "evaluate_every": 20}


def parse(**fields):
    tree = {"student": {"slim": "tiny"}} | fields
    return DistillConfig.model_validate_json(json.dumps(tree))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"student": {}}, "set one of preset, config, slim or parent; set are: none"),
        ({"student": {"preset": "a", "slim": "b"}}, "set are: preset and slim"),
        ({"student": {"parent": True}}, "needs another model as its `teacher`"),
        (
            {"temperature": {"steps": 3}},
            "`steps` has no effect with `schedule: linear`",
        ),
        (
            {"temperature": {"start": 2, "end": 2, "schedule": "cosine"}},
            "`schedule` has no effect if `start` equals `end`",
        ),
        (
            {"soft_weight": 0, "temperature": {"start": 3}},
            "`temperature` has no effect with `soft_weight: 0`",
        ),
        (
            {"student": {"preset": "tiny"}, "soft_weight": 0, "teacher": "large"},
            "`teacher` has no effect with `soft_weight: 0` and without `features`",
        ),
        ({"feedback": {}, "validation": None}, "`feedback` needs a `validation` set"),
        ({"feedback": {}}, "`feedback` has no effect: no evaluation falls between"),
        (
            {"feedback": {"start": 0.9}, "training": TRAINING},
            "`feedback` has no effect: no evaluation falls between",
        ),
        (
            {"validation": None, "training": TRAINING | {"patience": 2}},
            r"`training.patience` has no effect",
        ),
    ],
)
def test_fields_without_effect_are_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        parse(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": {"start": 5, "end": 1, "schedule": "linear"}},
        {"temperature": {"schedule": "steps", "steps": 3}},
        {"feedback": {"start": 0.8}, "training": TRAINING},
        {"soft_weight": 0, "features": {}, "teacher": "large"},
        {"soft_weight": 0, "teacher": "large"},  # `slim` copies weights of the teacher
    ],
)
def test_fields_with_an_effect_are_accepted(fields):
    assert parse(**fields)


def facts(family, preset):
    return ModelFacts(family.name, family.presets[preset].model_dump(mode="json"))


def estimate(config, parent, **roles):
    return Distill().estimate(config, parent, PlanContext(roles))


def test_an_unknown_preset_is_an_error_of_the_plan():
    with pytest.raises(RequirementError, match="`student`: image-classifier has no preset 'tine'"):
        estimate(parse(student={"slim": "tine"}), facts(CLASSIFIER, "small"))


def test_features_that_the_student_lacks_are_an_error_of_the_plan():
    with pytest.raises(RequirementError, match="`features`: the student has no hidden states"):
        estimate(parse(features={}, student={"slim": "tiny-llama"}), facts(DECODER, "tiny-llama"))
    config = parse(features={"names": ["cells", "cell"]})
    with pytest.raises(RequirementError, match=r"`features.names`: .* no hidden state 'cell'\n"):
        estimate(config, facts(PHONE, "tiny"))


def test_a_teacher_of_another_family_is_an_error_of_the_plan():
    config = parse(teacher="other", features={"names": ["x"]})
    message = r"`teacher`: it is of the family image-classifier.*\n.*`features.names`"
    with pytest.raises(RequirementError, match=message):
        estimate(config, facts(PHONE, "tiny"), teacher=facts(CLASSIFIER, "small"))


def test_unknown_models_are_planned():
    assert estimate(parse(features={}), ModelFacts()).model == ModelFacts()
