"""Experts are calibrated with the tokens that reach them; too few tokens: rounded to nearest."""

from functools import partial

import pytest
import torch

from compressor.models.capabilities.discovered_groups import discover_sites
from compressor.models.families.transformers.experts.sites import router_names, sites_of_experts
from compressor.models.families.transformers.experts.split import split_experts
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.activations import Captures
from passes.awq.block import BlockCalibration, BlockQuantizer
from passes.awq.config import AwqConfig
from passes.awq.expert_scaling import find_expert_inputs, scale_expert_inputs
from passes.awq.float_reference import FloatReference
from passes.awq.settings import QuantizationSettings
from passes.awq.valid_positions import MaskedPositions
from tests.support.mixtures import mixture

GRID = WeightGrid(bits=4, group_size=16)
BATCHES = 6
TOKENS = torch.randint(3, 96, (BATCHES, 4, 24), generator=torch.Generator().manual_seed(0))


class Recorded(Exception):  # noqa: N818  it ends the forward pass
    """Raised once the arguments of a layer are known."""


def _layer_runs(model, number):
    """Return a decoder layer and what runs each batch through it."""
    layer = model.model.layers[number]
    arguments = []

    def record(_, args, kwargs):
        arguments.append((args, kwargs))
        raise Recorded

    handle = layer.register_forward_pre_hook(record, with_kwargs=True)
    for batch in TOKENS:
        with pytest.raises(Recorded):
            model(input_ids=batch, use_cache=False)
    handle.remove()
    return layer, [partial(layer, *args, **kwargs) for args, kwargs in arguments]


def _sites(layer, run):
    return sites_of_experts(layer, lambda: discover_sites(layer, run))


def _quantize(layer, sites, runs, tmp_path, masks=None, **fields):
    config = AwqConfig.model_validate(
        {"calibration": {"data": "text"}, "format": "compressed-tensors"} | fields
    )
    settings = QuantizationSettings.of(config, torch.bfloat16)
    captures = Captures(tmp_path / "captures", 1 << 20)
    reference = FloatReference(captures)
    for number, run in enumerate(runs):
        reference.record(layer, sites, number, run)
    quantizer = BlockQuantizer(
        layer,
        sites,
        {site.name: GRID for site in sites},
        settings,
        BlockCalibration(
            lambda: enumerate(runs), MaskedPositions(masks or [None] * BATCHES), captures, reference
        ),
    )
    quantizer.quantize()
    return quantizer


@torch.no_grad()
def test_every_expert_has_sites_of_its_own_and_down_folds_into_up():
    model = mixture("MixtralForCausalLM")
    layer, runs = _layer_runs(model, 0)
    split_experts(layer)
    sites = {site.name: site for site in _sites(layer, runs[0])}
    first = sites["mlp.experts.3.gate_proj"]
    assert first.linears == ("mlp.experts.3.gate_proj", "mlp.experts.3.up_proj")
    assert first.source is None  # the router reads the norm's output too
    assert sites["mlp.experts.3.down_proj"].source.module == "mlp.experts.3.up_proj"
    routed = [site.routing.stage for site in sites.values() if site.routing is not None]
    assert routed == [0] * 4 + [1] * 4


@torch.no_grad()
def test_a_gate_that_adds_to_up_does_not_fold_even_for_experts_that_no_token_reaches():
    model = mixture("GptOssForCausalLM", num_experts_per_tok=1)
    layer, runs = _layer_runs(model, 0)
    split_experts(layer)
    assert all(s.source is None for s in _sites(layer, runs[0]) if s.routing is not None)


@pytest.mark.parametrize(
    ("name", "number"),
    [("MixtralForCausalLM", 0), ("Qwen3MoeForCausalLM", 0), ("DeepseekV3ForCausalLM", 1)],
)
@torch.no_grad()
def test_calibrated_experts_are_nearer_to_the_float_layer_than_rounded_ones(name, number, tmp_path):
    changes = {}
    for fields in ({}, {"refine": "none", "scaling": False, "error_compensation": 0.0}):
        layer, runs = _layer_runs(mixture(name), number)
        split_experts(layer)
        expected = [run() for run in runs]
        quantizer = _quantize(layer, _sites(layer, runs[0]), runs, tmp_path, **fields)
        experts = [row for row in quantizer.report if "tokens" in row]
        assert len(experts) == 3 * 4
        assert {row["linear"] for row in experts} <= quantizer.packed.keys()
        changes[len(fields)] = sum(
            float((run() - value).square().sum()) for run, value in zip(runs, expected, strict=True)
        )
    assert changes[0] < 0.8 * changes[3]


@torch.no_grad()
def test_an_expert_that_few_tokens_reach_is_rounded_to_nearest(tmp_path):
    layer, runs = _layer_runs(mixture("MixtralForCausalLM", num_experts_per_tok=1), 0)
    router = layer.mlp.gate.weight
    router[3] = router[:3].mean(dim=0) + 0.15 * router[3]  # hardly ever above the other three
    split_experts(layer)
    sites = _sites(layer, runs[0])
    weight = layer.mlp.experts.get_submodule("3.up_proj").weight.clone()
    quantizer = _quantize(layer, sites, runs, tmp_path)
    few = {row["linear"] for row in quantizer.report if row.get("rounded_to_nearest")}
    tokens = {row["linear"]: row["tokens"] for row in quantizer.report if "tokens" in row}
    counted = sum(tokens[f"mlp.experts.{number}.up_proj"] for number in range(4))
    assert counted == TOKENS.numel()
    assert 0 < tokens["mlp.experts.3.up_proj"] < 32
    assert {name.split(".")[2] for name in few} == {"3"}
    packed = quantizer.packed["mlp.experts.3.up_proj"]
    zeros_O1, scales_O1 = packed.zeros_OG[:, :1].float(), packed.scales_OG[:, :1].float()
    integers_OS = (weight[:, :16] / scales_O1).round().add(zeros_O1).clamp(0, 15)
    assert (packed.integers_OI[:, :16] == integers_OS).float().mean() > 0.99


@torch.no_grad()
def test_padding_reaches_no_expert(tmp_path):
    layer, runs = _layer_runs(mixture("OlmoeForCausalLM"), 0)
    split_experts(layer)
    masks = [torch.arange(96) % 24 < 12 for _ in range(BATCHES)]
    quantizer = _quantize(layer, _sites(layer, runs[0]), runs, tmp_path, masks)
    tokens = [row["tokens"] for row in quantizer.report if row["linear"].endswith("up_proj")]
    assert sum(tokens) == TOKENS.numel()  # half of the tokens, two experts each


def test_routers_and_weights_of_shared_experts_are_named():
    for name, routers in (
        ("Qwen2MoeForCausalLM", {"mlp.shared_expert_gate"}),
        ("PhimoeForCausalLM", {"mlp.router"}),
        ("MixtralForCausalLM", set()),
    ):
        layer = mixture(name).model.layers[0]
        split_experts(layer)
        assert router_names(layer) == routers


def _uneven_layer(name, number):
    """Return a layer whose experts read channels of unequal sizes, and what runs each batch."""
    layer, runs = _layer_runs(mixture(name), number)
    split_experts(layer)
    weight = layer.post_attention_layernorm.weight
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).exp())
    weight.copy_(weight.bfloat16())
    return layer, runs


def _scaled(layer, sites, runs, masks=None):
    config = AwqConfig.model_validate(
        {"calibration": {"data": "text"}, "format": "compressed-tensors"}
    )
    settings = QuantizationSettings.of(config, torch.bfloat16)
    inputs = find_expert_inputs(layer, sites, runs[0])
    grids = {site.name: GRID for site in sites}
    batches = [None] * BATCHES if masks is None else masks
    return inputs, scale_expert_inputs(
        layer, inputs, lambda: enumerate(runs), batches, grids, settings
    )


@pytest.mark.parametrize(
    ("name", "number", "others"),
    [
        ("Qwen2MoeForCausalLM", 0, {"mlp.gate.weight"}),
        ("Ernie4_5_MoeForCausalLM", 1, {"mlp.gate.weight"}),
        ("GptOssForCausalLM", 0, {"mlp.router.weight"}),
    ],
)
@torch.no_grad()
def test_a_scale_of_what_all_experts_read_changes_no_output_and_rounds_better(
    name, number, others, tmp_path
):
    layer, runs = _uneven_layer(name, number)
    norm, expected = layer.post_attention_layernorm.weight.clone(), [run() for run in runs]
    inputs, exponent = _scaled(layer, _sites(layer, runs[0]), runs)
    assert {n for n in inputs.others if "gate.weight" in n or "router" in n} >= others
    assert exponent > 0
    ratio = norm / layer.post_attention_layernorm.weight
    assert torch.equal(ratio.log2(), ratio.log2().round()) and len(ratio.unique()) > 1
    for run, value in zip(runs, expected, strict=True):
        assert (run() - value).abs().max() < 1e-4 * value.abs().max()
    errors = []
    for scales in (False, True):
        layer, runs = _uneven_layer(name, number)
        sites = _sites(layer, runs[0])
        if scales:
            _scaled(layer, sites, runs)
        _quantize(layer, sites, runs, tmp_path)
        errors.append(
            sum(float((run() - v).square().sum()) for run, v in zip(runs, expected, strict=True))
        )
    assert errors[1] < errors[0]


@torch.no_grad()
def test_no_scale_folds_where_experts_read_tokens_weighted_by_the_router():
    layer, runs = _layer_runs(mixture("Llama4ForCausalLM"), 0)
    split_experts(layer)
    assert find_expert_inputs(layer, _sites(layer, runs[0]), runs[0]) is None


@torch.no_grad()
def test_padding_does_not_count_for_the_scale_of_experts():
    layer, runs = _uneven_layer("MixtralForCausalLM", 0)
    nothing = [torch.zeros(96, dtype=torch.bool) for _ in range(BATCHES)]
    assert _scaled(layer, _sites(layer, runs[0]), runs, nothing)[1] == 0.0
