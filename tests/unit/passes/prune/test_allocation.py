"""Allocation meets a limit at the least loss of importance, and rounds approach the target."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import RequirementError
from compressor.models.capabilities.cuttable_axes import Axis, Cut, CuttableAxes
from passes.prune.allocation import allocate, group_axes
from passes.prune.schedule import Round, protect_high_scores
from tests.support.pruning import widths_from_scores
from tests.support.tiny_models import CLASSIFIER


def total_units(sizes):
    return float(sum(sizes.values()))


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=12), min_size=1, max_size=4),
    st.floats(0.3, 1.0),
)
def test_the_limit_is_met_or_reported_as_out_of_reach(scores, ratio):
    widths = widths_from_scores(**{f"w{number}": values for number, values in enumerate(scores)})
    limit = ratio * sum(width.units for width in widths)
    try:
        sizes = allocate(widths, total_units, limit, "units")
    except RequirementError:
        assert sum(min(width.min_units, width.units) for width in widths) > limit
        return
    assert sum(sizes.values()) <= limit
    for width in widths:
        assert sizes[width.label] == width.units or sizes[width.label] % 2 == 0
        assert width.min_units <= sizes[width.label] <= width.units


def test_the_units_with_the_least_importance_per_cost_are_cut_first():
    widths = widths_from_scores(cheap=[1.0] * 8, expensive=[1.0] * 8)
    sizes = allocate(widths, lambda sizes: sizes["cheap"] + 10.0 * sizes["expensive"], 70, "units")
    assert sizes == {"cheap": 8, "expensive": 6}
    widths = widths_from_scores(unimportant=[0.1] * 8, important=[9.0] * 8)
    assert allocate(widths, total_units, 12, "units") == {"unimportant": 4, "important": 8}


def test_a_step_that_saves_nothing_is_skipped():
    widths = widths_from_scores(width=[1.0] * 8)
    milliseconds = {8: 10.0, 6: 11.0, 4: 10.0, 2: 3.0}
    assert allocate(widths, lambda sizes: milliseconds[sizes["width"]], 5, "ms") == {"width": 2}


def test_cubic_rounds_approach_the_target():
    rounds = [Round(number, 4) for number in range(1, 5)]
    assert [round_.remaining for round_ in rounds] == [27 / 64, 8 / 64, 1 / 64, 0]
    assert [round_.limit(100, 36) for round_ in rounds] == [63, 44, 37, 36]
    assert [round_.size(8, 4) for round_ in rounds] == [6, 5, 5, 4]
    steps = [range(2), range(2, 5), range(5, 7), range(7, 10)]
    assert [round_.steps(10) for round_ in rounds] == steps
    assert Round().first
    assert Round().last


def test_only_units_below_the_threshold_may_be_cut():
    scores = {"w": np.array([1.0, 0.05, 0.5, 0.09]), "v": np.array([1.0, 1.0, 1.0, 1.0])}
    protected = protect_high_scores(widths_from_scores(**scores), scores, 0.1)
    assert {width.label: width.min_units for width in protected} == {"w": 2, "v": 4}


@pytest.mark.parametrize("growth", [1, 2])
def test_min_keep_is_a_part_of_the_units_of_the_parent(growth):
    config = CLASSIFIER.presets["small"]
    axes = [
        axis
        for axis in CLASSIFIER.capability(CuttableAxes, config).axes
        if axis.label == "vision_width"
    ]
    (width,) = group_axes(
        axes,
        {axis.name: np.ones(axis.units) for axis in axes},
        multiple=8,
        min_keep=0.25,
        parent_units={"vision_width": growth * axes[0].units},
    )
    assert width.min_units == growth * axes[0].units // 4


@pytest.mark.parametrize(
    ("width", "fields"), [(8, ()), (8, ((("width",), 8),)), (6, ()), (1, ((("width",), 1),))]
)
def test_groups_of_channels_are_kept_so_that_the_channels_are_a_multiple(width, fields):
    cuts = (Cut("conv.weight", 0, width), Cut("head.weight", 1, width * 9))
    axis = Axis("conv", "channels", 32, cuts, fields, dimension="width")
    (kept,) = group_axes([axis], {"conv": np.ones(32)}, multiple=8, min_keep=0.1)
    assert kept.multiple * width % 8 == 0
    assert (kept.multiple - 1) * width % 8 or kept.multiple == 1
    assert kept.min_units * width % 8 == 0


def test_a_search_reports_how_far_it_is():
    widths = widths_from_scores(first=[1.0] * 8, second=[1.0] * 8)
    reports = []
    allocate(widths, total_units, 8, "units", lambda *report: reports.append(report))
    shares = [done for done, _ in reports]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 50 < shares[-1] < 100
