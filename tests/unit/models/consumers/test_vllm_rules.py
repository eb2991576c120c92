"""Rules by which vLLM loads packed layers, on the shapes of real models."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.models.consumers.findings import Checked, StoredLinear, Verdict
from compressor.models.consumers.targets import VllmServer
from compressor.models.consumers.vllm import check_vllm
from compressor.models.consumers.vllm_names import with_vllm_names
from compressor.models.quantized.weight_grid import WeightGrid

# AutoGLM-Phone-9B: one layer of the decoder, and one of the vision tower.
GLM4V: dict[str, Any] = {
    "model_type": "glm4v",
    "dtype": "bfloat16",
    "text_config": {"num_attention_heads": 32, "num_key_value_heads": 2},
    "vision_config": {"num_heads": 12},
}
DECODER = {
    "model.language_model.layers.0.self_attn.q_proj": (4096, 4096),
    "model.language_model.layers.0.self_attn.k_proj": (256, 4096),
    "model.language_model.layers.0.self_attn.v_proj": (256, 4096),
    "model.language_model.layers.0.self_attn.o_proj": (4096, 4096),
    "model.language_model.layers.0.mlp.gate_up_proj": (27392, 4096),
    "model.language_model.layers.0.mlp.down_proj": (4096, 13696),
}
TOWER = {
    "model.visual.blocks.0.attn.qkv": (4608, 1536),
    "model.visual.blocks.0.attn.proj": (1536, 1536),
    "model.visual.blocks.0.mlp.gate_proj": (4096, 1536),
    "model.visual.blocks.0.mlp.up_proj": (4096, 1536),
    "model.visual.blocks.0.mlp.down_proj": (1536, 4096),
}


def check(
    shapes: dict[str, tuple[int, int]],
    grid: dict[str, Any],
    tree: dict[str, Any] = GLM4V,
    method: str = "compressed-tensors",
    **server: Any,
) -> Checked:
    packed = WeightGrid.model_validate(grid)
    layers = [StoredLinear(name, *shape, packed) for name, shape in shapes.items()]
    return check_vllm(layers, tree, method, VllmServer.model_validate(server))


def refused(checked: Checked) -> set[str]:
    return {finding.layer.name.rpartition(".")[2] for finding in checked.refused}


def test_groups_of_128_do_not_split_the_9b_over_two_gpus() -> None:
    """13,696 inputs are 107 groups of 128."""
    assert check(DECODER, {"group_size": 128}).loads
    for method in ("awq", "compressed-tensors"):
        checked = check(DECODER, {"group_size": 128}, method=method, tp=2)
        assert refused(checked) == {"down_proj"}
        (finding,) = checked.refused
        assert "53.5 groups" in str(finding.reason)
        assert finding.nearest == WeightGrid(group_size=64)
    assert check(DECODER, {"group_size": 64}, tp=2).loads
    assert refused(check(DECODER, {"group_size": 64}, tp=4)) == {"down_proj"}
    assert check(DECODER, {"group_size": 32}, tp=4).loads


def test_the_nearest_grid_of_eight_bits_with_zero_points_is_symmetric() -> None:
    checked = check(TOWER, {"bits": 8, "group_size": 128}, gpu="sm89")
    assert refused(checked) == {"qkv", "proj", "gate_proj", "up_proj", "down_proj"}
    symmetric = WeightGrid(bits=8, group_size=128, symmetric=True)
    assert {finding.nearest for finding in checked.refused} == {symmetric}
    assert check(TOWER, symmetric.model_dump(), gpu="sm89", tp=2).loads
    assert check(TOWER, {"bits": 8, "group_size": 128}, gpu="sm90").loads


def test_heads_have_to_divide_over_the_gpus() -> None:
    checked = check(DECODER, {"group_size": 32}, tp=3)
    assert any("32 attention heads do not divide by tp 3" in line for line in checked.problems)
    assert any("2 key heads neither divide" in line for line in checked.problems)
    eight = check(TOWER, {"group_size": 32}, tp=8)
    assert ["12 attention heads of the vision tower" in line for line in eight.problems] == [True]
    assert not check(TOWER, {"group_size": 32}, tp=8, mm_encoder_tp_mode="data").problems
    # Two key heads on four GPUs: each head is on two of them.
    assert not check(DECODER, {"group_size": 32}, tp=4).problems


def test_fused_layers_need_one_grid() -> None:
    coarse, fine = WeightGrid(group_size=128), WeightGrid(group_size=64)
    names = [name for name in DECODER if name.endswith(("q_proj", "k_proj", "v_proj"))]
    layers = [
        StoredLinear(name, *DECODER[name], fine if name.endswith("v_proj") else coarse)
        for name in names
    ]
    checked = check_vllm(layers, GLM4V, "compressed-tensors", VllmServer())
    assert refused(checked) == {"q_proj", "k_proj", "v_proj"}
    mixed = [*layers[:2], StoredLinear(names[2], *DECODER[names[2]], None)]
    assert "one grid" in str(
        check_vllm(mixed, GLM4V, "compressed-tensors", VllmServer()).refused[0].reason
    )


def test_autoawq_needs_eight_outputs_per_gpu() -> None:
    shapes = {"model.layers.0.mlp.up_proj": (24, 64), "model.layers.0.mlp.gate_proj": (24, 64)}
    tree = {"num_attention_heads": 4}
    assert check(shapes, {"group_size": 32}, tree, "awq").loads
    checked = check(shapes, {"group_size": 32}, tree, "awq", tp=2)
    assert "12 outputs per GPU are no multiple of 8" in str(checked.refused[0].reason)


def test_a_layer_of_unknown_split_is_not_judged_where_it_matters() -> None:
    shapes = {"model.layers.0.mixer.x_proj": (128, 96)}
    tree = {"num_attention_heads": 4}
    assert check(shapes, {"group_size": 32}, tree).loads
    (finding,) = check(shapes, {"group_size": 32}, tree, tp=2).findings
    assert finding.verdict is Verdict.UNKNOWN
    experts = {"model.layers.0.mlp.experts.3.up_proj": (128, 96)}
    assert check(experts, {"group_size": 32}, tree).findings[0].verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("method", ["awq", "compressed-tensors"])
def test_vllm_finds_fused_layers_of_the_tower_by_its_own_names(
    is_packed: bool, method: str
) -> None:
    """Seen in vLLM 0.32: without them glm4v does not load."""
    if is_packed and method == "awq":
        pytest.skip("AutoAWQ's format names float layers only")
    grid = WeightGrid(group_size=64) if is_packed else None
    names = list(TOWER)
    quantization = {
        "quant_method": method,
        "modules_to_not_convert": names,
        "config_groups": {"group_0": {"targets": names if is_packed else ["Linear"]}},
        "ignore": [] if is_packed else names,
    }
    layers = [StoredLinear(name, *shape, grid) for name, shape in TOWER.items()]
    named = with_vllm_names(quantization, "glm4v", names if is_packed else ())
    for fields, loads in ((quantization, False), (named, True)):
        checked = check_vllm(layers, {**GLM4V, "quantization_config": fields}, method, VllmServer())
        assert checked.loads == loads


@pytest.mark.parametrize("model_type", ["glm4v", "llama"])
def test_vllm_finds_a_packed_head_by_name_alone(model_type: str) -> None:
    quantization = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"]}},
        "ignore": [],
    }
    layers = [StoredLinear("lm_head", 512, 64, WeightGrid(group_size=64))]
    named = with_vllm_names(quantization, model_type, ["lm_head"])
    for fields, loads in ((quantization, False), (named, True)):
        tree = {"model_type": model_type, "quantization_config": fields}
        assert check_vllm(layers, tree, "compressed-tensors", VllmServer()).loads == loads
