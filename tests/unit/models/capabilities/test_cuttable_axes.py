"""The axes that a family states are the dimensions that its modules have."""

import pytest
import torch

from compressor.models.capabilities.cuttable_axes import CuttableAxes, replace_fields
from tests.support.tiny_models import CLASSIFIER, CUTTABLE


def shapes(family, config):
    with torch.device("meta"):
        return {
            name: tuple(tensor.shape) for name, tensor in family.build(config).state_dict().items()
        }


@pytest.mark.parametrize(("family", "config"), CUTTABLE)
def test_an_axis_names_every_dimension_that_its_fields_move(family, config):
    before = shapes(family, config)
    groups = {}
    for axis in (axis for axis in family.capability(CuttableAxes, config).axes if not axis.stack):
        groups.setdefault(axis.width or axis.fields, []).append(axis)
    for axes in groups.values():
        units = min(axis.units for axis in axes)
        if units == 1:
            continue
        assert all(axis.units % units == 0 for axis in axes)
        gone = (
            4 if {axis.kind for axis in axes} == {"hidden"} else 1
        )  # Llama's class wants a multiple of its heads
        left = {axis.name: axis.units // units * (units - gone) for axis in axes}
        stated = {path: value for axis in axes for path, value in axis.pinned}
        wanted = stated | {
            path: left[axis.name] * factor for axis in axes for path, factor in axis.fields
        }
        after = shapes(family, replace_fields(config, wanted))
        assert after.keys() == before.keys()
        moved = {
            (name, dim)
            for name, shape in before.items()
            for dim, (old, new) in enumerate(zip(shape, after[name], strict=True))
            if old != new
        }
        cuts = [(axis, cut) for axis in axes for cut in axis.cuts]
        assert moved == {(cut.tensor, cut.dim) for _, cut in cuts}
        assert len(moved) == len(cuts), "no dimension is in two axes"
        for axis, cut in cuts:
            assert before[cut.tensor][cut.dim] == axis.units * cut.block * cut.segments
            assert after[cut.tensor][cut.dim] == left[axis.name] * cut.block * cut.segments


@pytest.mark.parametrize(("family", "config"), CUTTABLE)
def test_every_axis_is_read_by_something(family, config):
    axes = family.capability(CuttableAxes, config).axes
    assert axes
    assert all(any(cut.reads for cut in axis.cuts) for axis in axes if not axis.stack)
    assert len({axis.name for axis in axes}) == len(axes)


@pytest.mark.parametrize(("family", "config"), CUTTABLE)
def test_a_stack_holds_the_layers_that_its_field_counts(family, config):
    before = shapes(family, config)
    for axis in (
        axis for axis in family.capability(CuttableAxes, config).axes if axis.stack and axis.fields
    ):
        layers = {
            name.removeprefix(f"{axis.stack}.").split(".")[0]
            for name in before
            if name.startswith(f"{axis.stack}.")
        }
        assert layers == {str(number) for number in range(axis.units)}
        if axis.units > 1:
            fields = {axis.fields[0][0]: axis.units - 1} | {
                path: ["full_attention"] * (axis.units - 1) for path in axis.unit_lists
            }
            after = shapes(family, replace_fields(config, fields))
            assert before.keys() - after.keys() == {
                name for name in before if name.startswith(f"{axis.stack}.{axis.units - 1}.")
            }


@pytest.mark.parametrize(("family", "config"), CUTTABLE)
def test_a_residual_block_goes_with_its_entry_of_the_config(family, config):
    before = shapes(family, config)
    for axis in (
        axis for axis in family.capability(CuttableAxes, config).axes if axis.unit_entries
    ):
        for member, entry in zip(axis.members(range(axis.units)), axis.unit_entries, strict=True):
            wanted = {}
            for name, shape in before.items():
                number, _, rest = name.removeprefix(f"{axis.stack}.").partition(".")
                if not name.startswith(f"{axis.stack}."):
                    wanted[name] = shape
                elif int(number) != member:  # what follows it moves up
                    wanted[f"{axis.stack}.{int(number) - (int(number) > member)}.{rest}"] = shape
            assert shapes(family, replace_fields(config, {entry: None})) == wanted


def test_residual_blocks_in_a_row_are_layers_of_one_stack():
    stages = [
        axis
        for axis in CLASSIFIER.capability(
            CuttableAxes, CLASSIFIER.presets["efficientnet-lite0"]
        ).axes
        if axis.unit_entries
    ]
    found = {axis.label: axis.units for axis in stages}
    assert found == {"vision_blocks.6-7": 2, "vision_blocks.9-10": 2, "vision_blocks.12-14": 3}
