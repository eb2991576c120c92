"""`serve_with`: grids that consumers load, chosen or refused before anything is quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.analysis.consumer_lint import lint_checkpoint
from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.consumers.targets import VllmServer
from compressor.models.facts import planned_facts
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.family import Transformers
from passes.awq.config import AwqConfig
from passes.awq.quantizers import quantizer_from_facts, starter_fields
from passes.awq.serving import Serving
from tests.support.awq import NEAREST, run_awq, save_checkpoint

# AutoGLM-Phone-9B, with one layer of decoder and tower.
NINE_B: dict[str, Any] = {
    "model_type": "glm4v",
    "architectures": ("Glm4vForConditionalGeneration",),
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "glm4v_text",
        "vocab_size": 151552,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 1,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [8, 12, 12],
        },
    },
    "vision_config": {"depth": 1},
}
ADA = {"serve_with": {"vllm": {"tp": 2, "gpu": "sm89"}}, "format": "compressed-tensors"}
EIGHT_BITS = {"vision": {"bits": 8}, "lm_head": {"bits": 8}}


def architecture() -> Architecture:
    return Architecture(Transformers(), CheckpointConfig.model_validate(NINE_B))


def resolved(fields: dict[str, Any]) -> AwqConfig:
    layers = architecture().require(StreamedLayers)
    return Serving(AwqConfig.model_validate(fields), NINE_B, layers).resolved()


def problems(fields: dict[str, Any]) -> str:
    model = planned_facts(architecture())
    quantizer = quantizer_from_facts(AwqConfig.model_validate(fields), model)
    assert quantizer is not None
    try:
        quantizer.check_planned(model)
    except RequirementError as error:
        return str(error)
    return ""


def test_groups_and_symmetry_are_chosen_for_two_gpus() -> None:
    config = resolved({**ADA, **EIGHT_BITS})
    assert (config.group_size, config.symmetric) == (64, False)
    assert config.vision is not None
    assert config.lm_head is not None
    assert (config.vision.group_size, config.vision.symmetric) == (64, True)
    assert (config.lm_head.group_size, config.lm_head.symmetric) == (128, True)
    assert problems({**ADA, **EIGHT_BITS}) == ""
    one = resolved({**ADA, "serve_with": {"vllm": {"gpu": "sm90"}}, "vision": {"bits": 8}})
    assert one.group_size == 128
    assert one.vision is not None
    assert not one.vision.symmetric  # Machete takes zero-points of 8 bits
    assert resolved({"vision": None}) == AwqConfig()


def test_transformers_gets_symmetric_grids() -> None:
    config = resolved({"serve_with": {"transformers": True}, "format": "compressed-tensors"})
    assert (config.group_size, config.symmetric) == (128, True)


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"group_size": 128}, ["down_proj: 13696 inputs over 2 GPUs are 53.5", "group_size: 64"]),
        (
            {"vision": {"bits": 8, "symmetric": False}},
            ["`vision`", "no kernel on sm89", "symmetric: true} under `vision`"],
        ),
        ({"effective_bits": 4.5}, ["no kernel on sm89 for 2 bits"]),
        ({"serve_with": {"vllm": {"tp": 3}}}, ["32 attention heads do not divide by tp 3"]),
    ],
)
def test_explicit_values_that_do_not_load_are_refused(
    fields: dict[str, Any], lines: list[str]
) -> None:
    text = problems({**ADA, **fields})
    for line in lines:
        assert line in text


GPT2 = {
    "model_type": "gpt2",
    "architectures": ("GPT2LMHeadModel",),
    "vocab_size": 320,
    "n_positions": 32,
    "n_embd": 64,
    "n_layer": 1,
    "n_head": 4,
}


def test_layers_that_transformers_does_not_fill_are_named_in_the_plan() -> None:
    model = planned_facts(Architecture(Transformers(), CheckpointConfig.model_validate(GPT2)))
    fields = {"format": "compressed-tensors", "symmetric": True, "group_size": 32}
    quantizer = quantizer_from_facts(AwqConfig.model_validate(fields), model)
    assert quantizer is not None
    quantizer.check_planned(model)
    [note] = quantizer.estimate(model).notes
    assert "leaves random weights in the Conv1D layers" in note
    fields["serve_with"] = {"transformers": True}
    refused = quantizer_from_facts(AwqConfig.model_validate(fields), model)
    assert refused is not None
    with pytest.raises(RequirementError, match="transformers packs no Conv1D") as caught:
        refused.check_planned(model)
    assert "remove `serve_with.transformers`" in str(caught.value)


def test_the_starter_of_a_glm4v_loads_on_two_gpus() -> None:
    fields = starter_fields(planned_facts(architecture()))
    assert fields == {"serve_with": {"vllm": {"tp": 2, "gpu": "sm89"}}}
    assert resolved(fields).group_size == 64


def test_ids_of_configs_without_the_field_do_not_change() -> None:
    from compressor.config.record import with_former_names

    config = AwqConfig()
    assert "serve_with" not in with_former_names(config, config.model_dump(mode="json"))


def test_a_packed_glm4v_has_the_names_that_vllm_looks_up(tmp_path: Path) -> None:
    parent = save_checkpoint(tmp_path / "float", "tiny-glm4v")
    fields = {
        **NEAREST,
        "format": "compressed-tensors",
        "calibration": {"data": "text", "num_samples": 4, "batch_size": 4},
        "serve_with": {"vllm": {"tp": 1, "gpu": "sm89"}},
        "vision": {"bits": 4, "group_size": -1},
    }
    model, _ = run_awq(parent, tmp_path / "awq", fields)
    quantization = json.loads((model / "config.json").read_text())["quantization_config"]
    names = {*quantization["ignore"]}
    for group in quantization["config_groups"].values():
        names |= {*group["targets"]}
    assert "model.visual.blocks.0.mlp.gate_up_proj" in names
    assert lint_checkpoint(model, "vllm", VllmServer()).loads
