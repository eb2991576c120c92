"""Fields of an ``awq`` step: contradictions, old names, and fields that do not apply to a model."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from compressor.data.contract import DataFacts, InputFacts
from compressor.engine.contract import PlanContext
from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.models.capabilities.linear_groups import Block, LinearGroups, Site
from compressor.models.facts import ModelFacts
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.models.families.transformers.family import Transformers
from passes.awq.config import AwqConfig
from passes.awq.search_time import search_seconds
from passes.awq.step import Awq
from tests.support.awq import (
    AUTOAWQ,
    CHECKPOINTS,
    COMPRESSED_TENSORS,
    NEAREST,
    PHONE,
    SMALL_PHONE,
)


def facts(family, config):
    parameters = sum(family.parameters(config).values())
    return ModelFacts(family.name, config.model_dump(mode="json"), parameters, 1, 4 * parameters)


def estimate(model, fields):
    return Awq().estimate(AwqConfig.model_validate(fields), model, PlanContext({}))


def test_candidate_bits_belong_to_effective_bits():
    with pytest.raises(ValueError, match="`candidate_bits` has no effect without"):
        AwqConfig.model_validate({"candidate_bits": (4, 8)})
    fields = {"effective_bits": 5.0, "candidate_bits": (4, 8), "format": "compressed-tensors"}
    assert [grid.bits for grid in AwqConfig.model_validate(fields).grids] == [4, 8]


def test_values_that_the_format_cannot_store_are_refused():
    with pytest.raises(ValueError, match="bits and symmetric contradict"):
        AwqConfig.model_validate({"bits": 3, "symmetric": True})
    with pytest.raises(ValueError, match="vision and lm_head contradict"):
        AwqConfig.model_validate({"vision": {"bits": 4}, "head": {"bits": 8}})


def test_all_problems_of_the_config_are_reported_at_once():
    with pytest.raises(ValueError, match=r"group_size 0.*`bits` has no effect") as caught:
        AwqConfig.model_validate({"group_size": 0, "bits": 4, "effective_bits": 4.25})
    assert "effective_bits contradict" in str(caught.value)


def test_old_field_names_are_accepted_and_unknown_ones_are_not():
    config = AwqConfig.model_validate({**COMPRESSED_TENSORS, "head": {"bits": 8}, "drift": 0.25})
    assert config.lm_head.bits == 8
    assert config.error_compensation == 0.25
    renamed = {**COMPRESSED_TENSORS, "lm_head": {"bits": 8}, "error_compensation": 0.25}
    assert config == AwqConfig.model_validate(renamed)
    with pytest.raises(ValidationError, match="drift\n  Extra inputs"):
        AwqConfig.model_validate({"drift": 0.0, "error_compensation": 0.5})
    with pytest.raises(ValidationError, match="drift\n  Input should be less than or equal to 1"):
        AwqConfig.model_validate({"drift": 2.0})


@pytest.mark.parametrize(
    ("preset", "fields", "messages"),
    [
        ("tiny-llama", {"vision": {"group_size": -1}}, ["`vision`: llama has no vision tower"]),
        ("tiny-llama", {"lm_head": {"group_size": -1}}, ["the head is tied to the embedding"]),
        ("tiny-llama", {"effective_bits": 2.2}, ["less than the 2.562 that 2 bits in groups"]),
        (
            "tiny-llama",
            {"vision": {}, "lm_head": {}, "effective_bits": 2.2},
            ["`vision`", "`lm_head`", "`effective_bits`", "remove `vision`; remove `lm_head`"],
        ),
    ],
)
def test_fields_that_do_not_apply_to_a_checkpoint_are_errors_of_the_plan(preset, fields, messages):
    model = facts(CHECKPOINTS, CHECKPOINTS.presets[preset])
    with pytest.raises(RequirementError) as caught:
        estimate(model, {**COMPRESSED_TENSORS, **fields})
    for message in messages:
        assert message in str(caught.value)


def test_fields_for_checkpoints_are_errors_of_the_plan_for_other_families():
    fields = {**COMPRESSED_TENSORS, "vision": {}, "lm_head": {}}
    with pytest.raises(RequirementError) as caught:
        estimate(facts(PHONE, SMALL_PHONE), fields)
    for name in ("vision", "lm_head"):
        assert f"`{name}`: for decoders whose layers run one at a time" in str(caught.value)
    with pytest.raises(RequirementError, match="`format`: AutoAWQ's format holds"):
        estimate(facts(PHONE, SMALL_PHONE), AUTOAWQ)


def test_linear_groups_that_a_family_does_not_state_are_left_to_the_run(monkeypatch):
    monkeypatch.setattr(AutoGLMPhone, "capabilities", lambda self, config: {})
    model = facts(PHONE, SMALL_PHONE)
    for fields in (COMPRESSED_TENSORS, {**COMPRESSED_TENSORS, **NEAREST}):
        assert estimate(model, fields).model.size_bytes is None


def test_scaling_is_an_error_where_no_scale_can_be_folded(monkeypatch):
    groups = LinearGroups((Block("", (Site("image", ("fusion.from_vision",)),)),))
    table = {LinearGroups: lambda: groups}
    monkeypatch.setattr(AutoGLMPhone, "capabilities", lambda self, config: table)
    model = facts(PHONE, SMALL_PHONE)
    with pytest.raises(RequirementError, match="no layer into which scales could be folded"):
        estimate(model, {**COMPRESSED_TENSORS, "scaling": True})
    estimate(model, COMPRESSED_TENSORS)
    estimate(model, {**COMPRESSED_TENSORS, "scaling": False})


def test_a_model_that_the_plan_does_not_know_is_not_judged():
    fields = {**COMPRESSED_TENSORS, "vision": {}}
    assert estimate(ModelFacts(size_bytes=3), fields).model.size_bytes is None


def test_the_memory_estimate_follows_the_layer_and_not_the_model():
    def resized(layers):
        sizes = {("num_hidden_layers",): layers, ("hidden_size",): 512}
        return facts(CHECKPOINTS, replace_fields(CHECKPOINTS.presets["tiny-llama"], sizes))

    few, many = (estimate(resized(layers), AUTOAWQ) for layers in (2, 40))
    assert few.peak_memory_bytes == many.peak_memory_bytes
    assert many.model.size_bytes > 5 * few.model.size_bytes


def test_the_time_follows_from_the_tokens_of_the_calibration_samples():
    family = Transformers()
    model = replace(facts(family, family.presets["tiny-llama"]), macs=10**9)
    fields = {"calibration": {"data": "texts", "num_samples": 32}}

    def seconds(*shapes):
        inputs = tuple(InputFacts("input_ids", "int64", shape) for shape in shapes)
        context = PlanContext({}, {"texts": DataFacts(inputs=inputs)})
        return search_seconds(AwqConfig.model_validate(fields), model, context)

    base = seconds((0,))
    short, long = (seconds((length,)) for length in (128, 1024))
    assert (long - base) / (short - base) == pytest.approx(8)
    assert seconds((None,)) is None, "the length is not known"
    assert seconds() is None
