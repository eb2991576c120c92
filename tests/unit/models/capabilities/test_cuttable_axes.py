"""Cuttable axes of the families, compared with the modules' dimensions."""

import pytest
import torch

from compressor.models.capabilities.cuttable_axes import CuttableAxes, replace_fields
from tests.support.tiny_models import CLASSIFIER, CUTTABLE


def tensor_shapes(family, config):
    with torch.device("meta"):
        return {
            name: tuple(tensor.shape) for name, tensor in family.build(config).state_dict().items()
        }


def axes_of(family, config):
    return family.require(CuttableAxes, config).axes


@pytest.mark.parametrize(("family", "config"), CUTTABLE)
def test_an_axis_names_every_dimension_that_its_fields_change(family, config):
    before = tensor_shapes(family, config)
    groups = {}
    for axis in (axis for axis in axes_of(family, config) if not axis.stack):
        groups.setdefault(axis.width or axis.fields, []).append(axis)
    for axes in groups.values():
        units = min(axis.units for axis in axes)
        if units == 1:
            continue
        assert all(axis.units % units == 0 for axis in axes)
        # Llama's class requires a multiple of its heads.
        rechanged = 4 if {axis.kind for axis in axes} == {"hidden"} else 1
        sizes = {axis.name: axis.units // units * (units - rechanged) for axis in axes}
        fields = {path: value for axis in axes for path, value in axis.pinned} | {
            path: sizes[axis.name] * factor for axis in axes for path, factor in axis.fields
        }
        after = tensor_shapes(family, replace_fields(config, fields))
        assert after.keys() == before.keys()
        changed = {
            (name, dim)
            for name, shape in before.items()
            for dim, (old, new) in enumerate(zip(shape, after[name], strict=True))
            if old != new
        }
        cuts = [(axis, cut) for axis in axes for cut in axis.cuts]
        assert changed == {(cut.tensor, cut.dim) for _, cut in cuts}
        assert len(changed) == len(cuts), "no dimension is in two axes"
        for axis, cut in cuts:
            assert before[cut.tensor][cut.dim] == axis.units * cut.block * cut.segments
            assert after[cut.tensor][cut.dim] == sizes[axis.name] * cut.block * cut.segments


@pytest.mark.parametrize(("family", "config"), CUTTABLE)
def test_every_axis_is_read_by_a_layer(family, config):
    axes = axes_of(family, config)
    assert axes
    assert all(any(cut.reads for cut in axis.cuts) for axis in axes if not axis.stack)
    assert len({axis.name for axis in axes}) == len(axes)


@pytest.mark.parametrize(("family", "config"), CUTTABLE)
def test_a_stack_holds_the_layers_that_its_field_counts(family, config):
    before = tensor_shapes(family, config)
    for axis in (axis for axis in axes_of(family, config) if axis.stack and axis.fields):
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
            after = tensor_shapes(family, replace_fields(config, fields))
            assert before.keys() - after.keys() == {
                name for name in before if name.startswith(f"{axis.stack}.{axis.units - 1}.")
            }


@pytest.mark.parametrize(("family", "config"), CUTTABLE)
def test_removing_the_entry_of_a_residual_block_removes_the_block(family, config):
    before = tensor_shapes(family, config)
    for axis in (axis for axis in axes_of(family, config) if axis.unit_entries):
        for member, entry in zip(axis.members(range(axis.units)), axis.unit_entries, strict=True):
            expected = {}
            for name, shape in before.items():
                number, _, rest = name.removeprefix(f"{axis.stack}.").partition(".")
                if not name.startswith(f"{axis.stack}."):
                    expected[name] = shape
                elif int(number) != member:  # later blocks move up by one
                    expected[f"{axis.stack}.{int(number) - (int(number) > member)}.{rest}"] = shape
            assert tensor_shapes(family, replace_fields(config, {entry: None})) == expected


def test_residual_blocks_in_a_row_are_layers_of_one_stack():
    axes = axes_of(CLASSIFIER, CLASSIFIER.presets["efficientnet-lite0"])
    units = {axis.label: axis.units for axis in axes if axis.unit_entries}
    assert units == {"vision_blocks.6-7": 2, "vision_blocks.9-10": 2, "vision_blocks.12-14": 3}
