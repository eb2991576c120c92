"""Fused experts as linear layers: the same outputs, in every class of mixtures."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from compressor.models.checkpoint.weights import weights_on_meta
from compressor.models.families.transformers.experts.split import (
    every_token_reaches,
    join_experts,
    named_experts,
    split_experts,
    split_tensors,
)
from tests.support.mixtures import MIXTURES, mixture

TOKENS = torch.tensor([[5, 9, 2, 77, 31, 8, 60, 4], [90, 3, 3, 12, 55, 41, 7, 19]])


@torch.no_grad()
def _logits(model):
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("name", MIXTURES)
def test_split_experts_compute_what_the_fused_ones_do(name):
    model = mixture(name)
    expected, fused = _logits(model), dict(model.state_dict())
    report = split_experts(model)
    assert report.split
    assert not report.kept
    assert not any(
        parameter.ndim == 3
        for _, experts in named_experts(model)
        for parameter in experts.parameters()
    )
    torch.testing.assert_close(_logits(model), expected, rtol=1e-5, atol=1e-5)
    assert split_tensors(model, fused).keys() == model.state_dict().keys()
    join_experts(model)
    assert model.state_dict().keys() == fused.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, fused[key]), key
    assert torch.equal(_logits(model), expected)


def test_a_module_without_weights_is_split_and_filled_from_fused_tensors():
    model = mixture("GptOssForCausalLM")
    with weights_on_meta():
        empty = type(model)(model.config).eval()
    assert split_experts(empty).split
    empty.load_state_dict(split_tensors(empty, model.state_dict()), assign=True)
    torch.testing.assert_close(_logits(empty), _logits(model), rtol=1e-5, atol=1e-5)


def test_each_expert_receives_its_tokens_in_one_call():
    model = mixture("MixtralForCausalLM")
    split_experts(model)
    experts = model.model.layers[0].mlp.experts
    rows = []
    for number in range(4):
        experts.get_submodule(f"{number}.up_proj").register_forward_pre_hook(
            lambda _, arguments: rows.append(len(arguments[0]))
        )
    _logits(model)
    assert rows == [len(tokens) for tokens in experts.token_indices]
    assert sum(rows) == 2 * TOKENS.numel()
    with every_token_reaches(model):
        _logits(model)
    assert rows[4:] == [TOKENS.numel()] * 4


def test_experts_that_compute_something_else_are_kept_and_named():
    class Unusual(type(mixture("MixtralForCausalLM").model.layers[0].mlp.experts)):
        def forward(self, hidden_states, top_k_index, top_k_weights):
            return super().forward(hidden_states, top_k_index, top_k_weights) + self.down_proj.sum()

    model = mixture("MixtralForCausalLM")
    layer = model.model.layers[0]
    layer.mlp.experts.__class__ = Unusual
    report = split_experts(layer)
    assert report.split == []
    assert list(report.kept) == ["mlp.experts"]


def test_three_dimensional_parameters_of_another_form_are_named():
    layer = nn.Module()
    layer.mixer = type("Mixer", (nn.Module,), {})()
    layer.mixer.kernels = nn.Parameter(torch.zeros(4, 8, 8))
    assert "kernels [4, 8, 8]" in split_experts(layer).kept["mixer"]


def test_a_copy_of_split_experts_has_its_own_weights():
    model = mixture("OlmoeForCausalLM")
    split_experts(model)
    copy, expected = deepcopy(model), _logits(model)
    with torch.no_grad():
        copy.model.layers[0].mlp.experts.get_submodule("0").up_proj.weight.zero_()
    assert torch.equal(_logits(model), expected)
    assert not torch.equal(_logits(copy), expected)
