"""Axes discovered from small modules, whose cut equals a mask."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compressor.models.capabilities.discovered_axes.discover import discover_axes
from compressor.models.capabilities.discovered_axes.verification import verified_axes
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.checkpoint.weights import assign_weights
from compressor.models.families.module.resizing import resize
from tests.support.channel_modules import MODULES, create

EXPECTED = {
    "residual": {("stem", "channels", 8), ("inner", "channels", 6)},
    "squeezed": {("expand", "channels", 8), ("squeeze", "channels", 4)},
    "concatenated": {
        ("left", "channels", 4),
        ("right", "channels", 6),
        ("reader", "channels", 5),
    },
    "flattened": {("features", "channels", 4), ("reader", "ffn", 6)},
    "grouped": {("stem", "channels", 4)},
    "fused": {("gate_up", "ffn", 10)},
    "attending": {("query_key_value", "heads", 2)},
}


def discover(name):
    module, batch = create(name)
    model = LoadedModel(module, batch)
    return discover_axes(model).axes, model


def cut(name, axis_name):
    axes, _ = discover(name)
    axis = next(axis for axis in axes if axis.name == axis_name)
    return {
        (cut.tensor, cut.dim): (cut.offset, cut.block, cut.segments, cut.reads) for cut in axis.cuts
    }


@pytest.mark.parametrize("name", MODULES)
def test_every_axis_is_found_and_its_cut_equals_a_mask(name):
    axes, model = discover(name)
    assert {(axis.name, axis.kind, axis.units) for axis in axes} == EXPECTED[name]

    def build(_, weights):
        shapes = {key: tuple(value.shape) for key, value in weights.items()}
        return assign_weights(resize(copy.deepcopy(model.module), shapes), weights)

    kept, failures = verified_axes(axes, model, build)
    assert kept == axes, failures


def test_a_cut_that_changes_the_output_otherwise_is_dropped_with_its_reason():
    axes, model = discover("residual")

    def build(_, weights):
        broken = dict(weights)
        if broken["inner.weight"].shape[0] < 6:
            broken["inner.bias"] = broken["inner.bias"] + 1
        shapes = {key: tuple(value.shape) for key, value in weights.items()}
        return assign_weights(resize(copy.deepcopy(model.module), shapes), broken)

    kept, failures = verified_axes(axes, model, build)
    assert [axis.name for axis in kept] == ["stem"]
    assert len(failures) == 1
    assert failures[0].startswith("inner: its outputs differ")


class Auxiliary(nn.Module):
    """A module with a second head that only training mode runs, as GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.stem = nn.Conv2d(3, 8, 3)
        self.head, self.second = nn.Linear(8, 4), nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.dropout(self.norm(self.stem(x).relu().mean((2, 3))))
        return (self.head(x), self.second(x)) if self.training else self.head(x)


def test_heads_of_training_mode_alone_are_cut_with_the_channels_that_they_read():
    module = Auxiliary().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    [axis] = discover_axes(LoadedModel(module, {"x": torch.randn(2, 3, 8, 8)})).axes
    assert ("second.weight", 1) in {(cut.tensor, cut.dim) for cut in axis.cuts}
    assert not module.training
    assert not module.norm.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Tied(nn.Module):
    """A module whose first table is read through a second layer alone, as T5."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.table = nn.Embedding(5, 4), nn.Embedding(5, 4)
        self.table.weight = self.shared.weight
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(self.inner(self.table(x)).relu())


def test_training_mode_is_not_run_for_weights_that_a_called_layer_shares():
    module = Tied().eval()
    modes = []
    module.train = lambda mode=True: modes.append(mode) or module
    axes = discover_axes(LoadedModel(module, {"x": torch.tensor([[1, 2]])})).axes
    assert ("inner", "ffn", 6) in {(axis.name, axis.kind, axis.units) for axis in axes}
    assert modes == []


def test_the_whole_module_is_unchanged_by_the_trials():
    axes, model = discover("attending")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}

    def build(_, weights):
        return assign_weights(copy.deepcopy(model.module), weights)

    verified_axes(axes, model, build)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_channels_side_by_side_have_an_offset_in_the_layer_that_reads_them():
    assert cut("concatenated", "left")["reader.weight", 1] == (0, 1, 1, True)
    assert cut("concatenated", "right")["reader.weight", 1] == (4, 1, 1, True)


def test_a_flattened_channel_is_a_block_of_columns():
    assert cut("flattened", "features")["reader.weight", 1] == (0, 4, 1, True)


def test_gate_and_up_are_segments_of_one_matrix():
    cuts = cut("fused", "gate_up")
    assert cuts["gate_up.weight", 0] == (0, 1, 2, False)
    assert cuts["down.weight", 1] == (0, 1, 1, True)


def test_a_residual_stream_holds_all_that_add_to_it_with_the_batch_norm():
    cuts = cut("residual", "stem")
    tensors = {tensor for tensor, _ in cuts}
    assert {"outer.weight", "stem_norm.running_var", "head.weight"} <= tensors


def test_the_width_under_a_layer_norm_is_no_axis():
    axes, _ = discover("fused")
    assert all(cut.tensor != "norm.weight" for axis in axes for cut in axis.cuts)


def test_heads_that_share_a_key_head_are_one_unit():
    axes, _ = discover("attending")
    spans = [
        (cut.offset, cut.block) for cut in axes[0].cuts if cut.tensor == "query_key_value.weight"
    ]
    assert spans == [(0, 8), (16, 4)]
    assert axes[0].cuts[-1].tensor == "out.weight"
