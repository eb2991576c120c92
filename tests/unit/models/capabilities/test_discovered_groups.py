"""Discovery of linear groups: the same as the tables, and right where there is no table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor.models.capabilities.discovered_groups import (
    discover_linear_groups,
    discover_sites,
    keep_verified_sources,
)
from compressor.models.capabilities.linear_groups import LinearGroups, Source
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.family import Transformers
from compressor.models.families.transformers.linear_groups import decoder_blocks
from tests.support.awq import MODELS, family_tensors, save_model
from tests.support.decoder_classes import build_decoder

FAMILY = Transformers()
TOKENS = torch.arange(3, 27).view(2, 12) * 7 % 300


def discover(module, **batch):
    groups = discover_linear_groups(module, batch or {"input_ids": TOKENS})
    return {block.name: block.sites for block in groups.blocks if block.name}


def comparable(site):
    """Return the fields of a site that have a meaning; its name has none."""
    source = site.source
    if source is not None and source.repeats == 1:
        source = replace(source, block=1)
    return site.linears, source, site.block, site.stream, site.with_weights


@pytest.mark.parametrize("preset", FAMILY.presets)
def test_discovery_agrees_with_the_tables(preset):
    torch.manual_seed(0)
    config = FAMILY.presets[preset]
    found = discover(FAMILY.build(config).eval().float())
    for block in decoder_blocks(config.tree):
        assert [comparable(site) for site in found[block.name]] == [
            comparable(site) for site in block.sites
        ]


def sources(module):
    """Return the sources of all sites, by their first linear layer; None where none folds."""
    return {
        site.linears[0]: None
        if site.source is None
        else (site.source.module, site.source.kind, site.source.offset, site.source.repeats)
        for sites in discover(module).values()
        for site in sites
    }


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("gemma", {"self_attn.q_proj": ("input_layernorm", "norm", 1.0, 1)}),
        ("phi3", {"self_attn.o_proj": ("self_attn.qkv_proj", "rows", 0.0, 2)}),
        ("glm", {"mlp.down_proj": ("mlp.gate_up_proj", "rows", 0.0, 1)}),
        ("opt", {"fc1": ("final_layer_norm", "norm", 0.0, 1), "fc2": ("fc1", "rows", 0.0, 1)}),
        ("gpt_neox", {"attention.dense": ("attention.query_key_value", "rows", 0.0, 1)}),
        ("falcon", {"self_attention.dense": ("self_attention.query_key_value", "rows", 0.0, 4)}),
        ("minicpm3", {"self_attn.o_proj": ("self_attn.kv_b_proj", "rows", 0.0, 1)}),
        ("bitnet", {"mlp.down_proj": ("mlp.ffn_sub_norm", "norm", 0.0, 1)}),
        ("qwen3_5_text", {"linear_attn.out_proj": ("linear_attn.norm", "norm", 0.0, 4)}),
        ("olmo2", {"self_attn.q_proj": None, "mlp.gate_proj": None}),
        ("starcoder2", {"mlp.c_proj": None}),
        ("apertus", {"mlp.down_proj": None}),
    ],
)
def test_sources_without_a_table(model_type, expected):
    found = sources(build_decoder(model_type))
    assert {name: found[name] for name in expected} == expected


def test_fused_heads_name_the_rows_of_the_values():
    found = discover(build_decoder("gpt_neox"))["gpt_neox.layers.0"]
    (site,) = [site for site in found if site.linears == ("attention.dense",)]
    assert site.source.rows[:17] == (*range(32, 48), 80)


def test_a_router_that_returns_more_than_a_product_is_no_linear_layer():
    names = [
        name
        for sites in discover(build_decoder("phimoe")).values()
        for s in sites
        for name in s.linears
    ]
    assert not [name for name in names if "router" in name or "gate" in name]


@pytest.mark.parametrize("model", ["images", "texts", "texts with relu"])
def test_sites_of_our_own_families_are_found(model, tmp_path):
    family, config = MODELS[model]
    module = load_module(save_model(tmp_path, family, config).model).float()
    stated = family.capability(LinearGroups, config).blocks
    groups = discover_linear_groups(module, family_tensors(family))
    found = {block.full(site.linears[0]): site for block in groups.blocks for site in block.sites}
    for block in stated:
        for site in block.sites:
            same = found[block.full(site.linears[0])]
            if block.name in {found.name for found in groups.blocks if found.name}:
                assert same.linears == site.linears
                assert (same.source is None) == (site.source is None)


class Wrong(nn.Module):
    """A block in which a second reader of the norm makes folding wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(torch.relu(self.up(y))) + 0.1 * y


def test_a_source_with_another_reader_is_not_kept():
    torch.manual_seed(0)
    block, x = Wrong().eval(), torch.randn(2, 5, 16)
    up, down = discover_sites(block, lambda: block(x))
    assert up.source is None
    assert down.source == Source("up", "rows")
    wrong = replace(up, source=Source("norm", "norm"))
    before = [value.clone() for value in block.parameters()]
    kept = keep_verified_sources(block, lambda: block(x), (wrong, down))
    assert [site.source for site in kept] == [None, Source("up", "rows")]
    assert all(torch.equal(a, b) for a, b in zip(before, block.parameters(), strict=True))
