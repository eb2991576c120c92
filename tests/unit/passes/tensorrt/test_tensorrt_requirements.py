"""Refusals before the build: all offenders at once, while planning where the plan knows enough."""

import onnx
import pytest

from compressor.config.discovery import FAMILIES, load
from compressor.engine.contract import PlanContext
from compressor.errors import RequirementError
from compressor.models.facts import ModelFacts
from compressor.runtimes.formats import format_named
from compressor.runtimes.tensorrt import backends
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.step import TensorRT
from tests.support.engines import SAMPLES, build_engine, fields_of, save_parent, transformer


def test_every_offender_is_named_before_anything_is_built(tmp_path):
    model = transformer()
    quick_gelu = onnx.helper.make_node(
        "QuickGelu", ["x"], ["unused"], name="quick", domain="com.microsoft"
    )
    model.graph.node.append(quick_gelu)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    profiles = {
        "x": {"min": (1, 8, 64), "opt": (1, 8, 64), "max": (4, 16, 64)},
        "z": {"min": (1,), "opt": (1,), "max": (1,)},
    }
    parent = save_parent(model, tmp_path / "onnx")
    fields = fields_of("transformer", precision="int8", profiles=profiles)
    with pytest.raises(RequirementError) as caught:
        build_engine(fields, parent, SAMPLES["transformer"], tmp_path / "out")
    assert caught.value.exit_code == 1
    for line in (
        "precision int8: the graph holds no INT8 integers",
        "profile z: the graph has no such input",
        "profile x: dimension 1 ranges from 8 to 16, but is 7 in the samples",
        "QuickGelu quick: an operator of com.microsoft",
    ):
        assert line in caught.value.what
    assert not (tmp_path / "out").exists()


def test_a_dynamic_input_without_a_profile_is_refused_with_the_remedy(tmp_path):
    parent = save_parent(transformer(), tmp_path / "onnx")
    fields = fields_of("transformer", profiles={})
    with pytest.raises(RequirementError) as caught:
        build_engine(fields, parent, SAMPLES["transformer"], tmp_path / "out")
    assert "input x [n, tokens, 64]: it is dynamic, and has no profile" in caught.value.what
    assert "profiles: {<input>: {min:" in caught.value.remedy


def planned(family, preset, profiles, monkeypatch):
    """Return the error of a plan on a model of a family; None if it is planned."""
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    family = load(FAMILIES, family)
    config = family.presets[preset]
    facts = ModelFacts(family.name, config.model_dump(mode="json"))
    fields = {"precision": "fp32", "backend": "rtx", "targets": ("sm86",), "profiles": profiles}
    try:
        TensorRT().estimate(TensorRTConfig.model_validate(fields), facts, PlanContext({}))
    except RequirementError as error:
        return error.what
    return None


IMAGE = {"min": (1, 3, 16, 16), "opt": (1, 3, 16, 16), "max": (8, 3, 16, 16)}


def test_a_profile_of_no_input_is_refused_in_the_plan(monkeypatch):
    profiles = {"image": IMAGE, "picture": IMAGE}
    error = planned("image-classifier", "tiny", profiles, monkeypatch)
    assert "profile picture: the graph has no such input; its inputs are image" in error


def test_a_profile_with_another_fixed_size_is_refused_in_the_plan(monkeypatch):
    wide = {"min": (1, 3, 16, 24), "opt": (1, 3, 16, 24), "max": (8, 3, 16, 24)}
    error = planned("image-classifier", "tiny", {"image": wide}, monkeypatch)
    assert "profile image: dimension 3 is fixed to 16, but the profile has 24, 24, 24" in error
    assert planned("image-classifier", "tiny", {"image": IMAGE}, monkeypatch) is None


DECODER = {
    "input_ids": {"min": (1, 1), "opt": (1, 8), "max": (1, 64)},
    "attention_mask": {"min": (1, 1), "opt": (1, 16), "max": (1, 128)},
    "past_key_values.*": {"min": (1, 2, 0, 16), "opt": (1, 2, 8, 16), "max": (1, 2, 64, 16)},
}


def test_the_plan_knows_the_cache_of_a_decoder(monkeypatch):
    assert planned("transformers", "tiny-llama", DECODER, monkeypatch) is None
    last = {"past_key_values.9.key": DECODER["past_key_values.*"]}
    error = planned("transformers", "tiny-llama", DECODER | last, monkeypatch)
    assert "profile past_key_values.9.key: the graph has no such input" in error


def test_profiles_of_an_unknown_model_are_not_checked_in_the_plan(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    fields = {"precision": "fp32", "backend": "rtx", "targets": ("sm86",), "profiles": DECODER}
    TensorRT().estimate(TensorRTConfig.model_validate(fields), ModelFacts(), PlanContext({}))


def test_a_dynamic_input_of_an_existing_graph_needs_a_profile_in_the_plan(monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    facts = format_named("onnx").facts(save_parent(transformer(), tmp_path / "onnx").model)
    fields = {"precision": "fp32", "backend": "rtx", "targets": ("sm86",)}
    with pytest.raises(RequirementError, match=r"input x \[n, tokens, 64\]: it is dynamic"):
        TensorRT().estimate(TensorRTConfig.model_validate(fields), facts, PlanContext({}))
