"""Config fields that do not apply to a model: refused while planning, by name and all at once."""

import json
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from compressor.engine.contract import PlanContext
from compressor.errors import RequirementError
from compressor.models.facts import ModelFacts
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.step import ExportOnnx
from tests.support.decoders import FAMILY, FIELDS, export_decoder, save_decoder

PHONE, CLASSIFIER, TEXTS = AutoGLMPhone(), ImageClassifier(), SentenceEncoder()


def estimate(fields, family, preset):
    config = family.presets[preset]
    facts = ModelFacts(family.name, config.model_dump(mode="json"), 10, None, 40)
    return ExportOnnx().estimate(
        ExportOnnxConfig.model_validate(fields), facts, PlanContext({"parent": facts})
    )


def refused_fields(fields, family, preset):
    with pytest.raises(RequirementError, match="the config does not fit the model") as caught:
        estimate(fields, family, preset)
    lines = caught.value.what.splitlines()[1:]
    return [line.split("`")[1] for line in lines]


def test_a_language_model_refuses_fields_of_traced_models():
    fields = {
        "opset": 18,
        "dynamic": ("nonsense",),
        "simplify": False,
        "parity": {"batch_size": 8},
    }
    assert refused_fields(fields, FAMILY, "tiny-llama") == [
        "dynamic",
        "opset",
        "parity.batch_size",
        "simplify",
    ]


def test_a_language_model_with_images_takes_simplify_for_its_vision_tower():
    estimate({"simplify": False}, FAMILY, "tiny-glm4v")
    assert refused_fields({"opset": 21, "simplify": False}, FAMILY, "tiny-glm4v") == ["opset"]


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        ({"int8_embeddings": True}, ["decoder.int8_embeddings"]),
        ({"int8_tables": True}, ["decoder.int8_embeddings"]),
        ({"target": "portable"}, ["decoder.target"]),
        (
            {"int8_kv_cache": {"data": "text", "num_samples": 4}, "context_length": 8},
            [
                "decoder.context_length",
                "decoder.int8_kv_cache.data",
                "decoder.int8_kv_cache.num_samples",
            ],
        ),
    ],
)
def test_other_models_refuse_fields_of_language_models(decoder, expected):
    fields = {"decoder": decoder, "parity": {"kl": 0.1}}
    assert refused_fields(fields, PHONE, "tiny") == [*expected, "parity.kl"]


def test_dimensions_that_the_model_lacks_are_named_with_those_it_has():
    fields = {"dynamic": ("frames", "batch", "time")}
    with pytest.raises(RequirementError, match="no dimensions frames, time") as caught:
        estimate(fields, CLASSIFIER, "small")
    assert "its dimensions" in str(caught.value.remedy) or "batch" in str(caught.value.remedy)
    estimate({"dynamic": ("batch",)}, CLASSIFIER, "small")


def test_a_model_without_logits_refuses_a_limit_of_agreement():
    assert refused_fields({"parity": {"agreement": 0.9}}, TEXTS, "tiny") == ["parity.agreement"]
    estimate({"parity": {"agreement": 0.9}}, CLASSIFIER, "small")


def test_sizes_that_do_not_fit_a_language_model_are_refused():
    fields = {"decoder": {"context_length": 513, "int8_embeddings": True}}
    assert refused_fields(fields, FAMILY, "tiny-llama") == ["decoder.context_length"]
    tree = FAMILY.presets["tiny-llama"].tree | {"hidden_size": 72, "num_attention_heads": 6}
    tree["head_dim"] = 16
    odd_config = FAMILY.Config.model_validate_json(json.dumps(tree))
    odd_family = SimpleNamespace(name=FAMILY.name, presets={"odd": odd_config})
    assert refused_fields(fields, odd_family, "odd") == [
        "decoder.context_length",
        "decoder.int8_embeddings",
    ]


def test_fields_that_are_not_set_and_unknown_models_are_accepted():
    estimate({}, FAMILY, "tiny-llama")
    estimate({"decoder": {}, "parity": {"num_samples": 3}}, PHONE, "tiny")
    unknown = ModelFacts(None, None, 10, None, 40)
    config = ExportOnnxConfig.model_validate({"dynamic": ("nonsense",)})
    ExportOnnx().estimate(config, unknown, PlanContext({"parent": unknown}))


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"int8_kv_cache": {"data": "text"}}, "`int8_kv_cache` requires ONNX Runtime's own"),
        ({"accuracy_level": 4}, "`accuracy_level` sets ONNX Runtime's own"),
    ],
)
def test_the_portable_target_refuses_fields_of_onnxruntime(decoder, message):
    with pytest.raises(ValidationError, match=message):
        ExportOnnxConfig.model_validate({"decoder": {"target": "portable", **decoder}})


def test_an_accuracy_level_without_packed_weights_is_refused(tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-llama")
    with pytest.raises(RequirementError, match=r"`decoder\.accuracy_level`: no weights"):
        export_decoder(parent, tmp_path / "out", {**FIELDS, "decoder": {"accuracy_level": 4}})


def test_fields_are_checked_again_before_the_export(tmp_path):
    parent = save_decoder(tmp_path / "parent", "tiny-llama")
    with pytest.raises(RequirementError, match="`dynamic`"):
        export_decoder(parent, tmp_path / "out", {**FIELDS, "dynamic": ("batch",)})
