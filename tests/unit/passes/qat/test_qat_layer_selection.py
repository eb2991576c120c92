"""Layers that the config selects, and models that the pass refuses."""

import json

import pytest

from compressor.config.permission import allow_code
from compressor.engine.contract import PlanContext
from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.facts import ModelFacts, facts_of, planned_facts
from compressor.models.families.module.config import ModuleConfig
from compressor.models.families.module.family import Module
from compressor.models.families.module.probing import complete
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.family import Transformers
from compressor.models.quantized.quantization import read_quantization
from passes.qat.step import Qat
from tests.support.encoder_classes import CLASSES
from tests.support.own_modules import TAGGER
from tests.support.qat import qat_config, run_qat


def test_layers_are_ignored_by_pattern(parent, tmp_path):
    out, summary, _ = run_qat(parent, tmp_path, {"ignore": ["head", "vision.blocks.0.*"]})
    quantization = read_quantization(out)
    ignored = {"head", "vision.blocks.0.expand", "vision.blocks.0.filter"}
    assert ignored <= set(quantization.kept_float)
    assert "vision.blocks.0.filter" in quantization.folded
    assert summary["float_layers"] == len(quantization.kept_float) == 4


def test_patterns_that_match_no_layer_are_an_error(parent, tmp_path):
    message = r"`ignore`: tail, x\.\* matches no layer of this model\n.*its layers: .*vision.stem"
    with pytest.raises(RequirementError, match=message):
        run_qat(parent, tmp_path, {"ignore": ["tail", "head", "x.*"]})


def test_a_model_without_a_layer_left_is_an_error(parent, tmp_path):
    with pytest.raises(RequirementError, match="no linear or convolutional layer is left"):
        run_qat(parent, tmp_path, {"ignore": ["*"]})


def test_embeddings_of_a_model_without_tables_are_an_error(parent, tmp_path):
    with pytest.raises(RequirementError, match="`quantize_embeddings`: the model has no embedding"):
        run_qat(parent, tmp_path, {"quantize_embeddings": True})


def preset_facts(family, preset):
    return ModelFacts(family.name, family.presets[preset].model_dump(mode="json"))


def test_fields_that_compare_logits_need_a_model_with_logits():
    config = qat_config(keep_float={"data": "texts"}, fine_tuning={"train": "texts"})
    facts = preset_facts(SentenceEncoder(), "tiny")
    with pytest.raises(RequirementError, match=r"`keep_float`: .* no logits.*\n.*`fine_tuning`: "):
        Qat().estimate(config, facts, PlanContext({}))


def test_misspelt_patterns_are_refused_in_the_plan(parent):
    config = qat_config(ignore=["vison.*", "head"])
    message = r"`ignore`: vison\.\* matches no layer of this model\n.*did you mean vision\.\*"
    with pytest.raises(RequirementError, match=message):
        Qat().estimate(config, facts_of(parent.model), PlanContext({}))
    Qat().estimate(qat_config(ignore=["vision.*"]), facts_of(parent.model), PlanContext({}))


def test_models_of_recurrent_layers_are_refused_in_the_plan():
    allow_code()
    tree = {
        "python": "tagger.py:Tagger",
        "code": {"tagger.py": TAGGER},
        "inputs": [
            {"name": "tokens", "shape": ["batch", "length"], "dtype": "int64", "below": 20},
            {"name": "mask", "shape": ["batch", "length"]},
        ],
    }
    config = complete(ModuleConfig.model_validate_json(json.dumps(tree)), None)
    facts = planned_facts(Architecture(Module(), config))
    with pytest.raises(RequirementError, match=r"`min_share`: at most 4\.5% .*recurrent"):
        Qat().estimate(qat_config(), facts, PlanContext({}))
    Qat().estimate(qat_config(min_share=0.04), facts, PlanContext({}))


def test_the_plan_notes_recordings_without_a_mask():
    notes = {}
    for norm in ("group", "layer"):
        tree = {**CLASSES["wav2vec2"].config().to_dict(), "feat_extract_norm": norm}
        config = CheckpointConfig.model_validate_json(json.dumps(tree))
        facts = planned_facts(Architecture(Transformers(), config))
        notes[norm] = Qat().estimate(qat_config(), facts, PlanContext({})).notes
    assert "counts in their ranges" in notes["group"][0]
    assert notes["layer"] == ()


def test_a_family_without_integer_grids_is_an_error():
    facts = preset_facts(Transformers(), "tiny-llama")
    with pytest.raises(RequirementError, match="transformers has no storage for integer grids"):
        Qat().estimate(qat_config(), facts, PlanContext({}))


def test_an_unknown_model_is_planned():
    estimate = Qat().estimate(qat_config(), ModelFacts(), PlanContext({}))
    assert estimate.model == ModelFacts(
        integers=estimate.model.integers, activation_bits=estimate.model.activation_bits
    )
    assert estimate.model.activation_bits == 8
