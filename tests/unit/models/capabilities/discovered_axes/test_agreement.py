"""Discovered axes of models whose families state them: the same units in the same tensors."""

from __future__ import annotations

import pytest
import torch

from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.capabilities.discovered_axes.discover import discover_axes
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.families.transformers.generic.axes import described_axes
from compressor.models.families.transformers.generic.sample import sample_batch
from tests.support.tiny_models import CHECKPOINT, DEEP, OTHER, PHONE

INNER = ("ffn", "channels", "heads")


def held(axis):
    """Return the indices that hold the units, by tensor and dimension.

    The phone model states whole groups of heads also where the architecture allows single heads,
    so the number of units is not compared.
    """
    return frozenset(
        (cut.tensor, cut.dim, axis.units * cut.block, cut.segments) for cut in axis.cuts
    )


def stated_and_discovered(family, config):
    stated = family.require(CuttableAxes, config).axes
    torch.manual_seed(0)
    module = family.build(config).eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.rand_like(tensor))
    model = LoadedModel(module, sample_batch(family.signature(config).inputs))
    return stated, discover_axes(model).axes, model


@pytest.mark.parametrize(("name", "config"), [("deep", DEEP), ("other", OTHER)])
def test_the_axes_of_the_phone_model_are_found(name, config):
    stated, discovered, _ = stated_and_discovered(PHONE, config)
    found = {held(axis) for axis in discovered}
    missing = [
        axis.name
        for axis in stated
        if axis.kind in INNER and axis.units > 1 and held(axis) not in found
    ]
    assert missing == []


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-qwen3", "tiny-glm4"])
def test_the_axes_of_decoders_are_found_with_their_fields(preset):
    config = CHECKPOINT.presets[preset]
    stated, discovered, model = stated_and_discovered(CHECKPOINT, config)
    described = described_axes(discovered, config, model).axes
    found = {(axis.stack, held(axis), axis.units, frozenset(axis.fields)) for axis in described}
    for axis in stated:
        if axis.kind in (*INNER, "layers"):
            assert (axis.stack, held(axis), axis.units, frozenset(axis.fields)) in found, axis.name
