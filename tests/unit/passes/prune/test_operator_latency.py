"""Operators are traced, resized and measured once; the table of their times is kept."""

import numpy as np
import pytest
import torch

from compressor.models.capabilities.cuttable_axes import CuttableAxes, replace_fields
from passes.prune.allocation import all_units, group_axes
from passes.prune.config import LatencyConfig
from passes.prune.operator_latency import (
    LatencyTable,
    Operator,
    latency_cost,
    resize_operator,
    trace_operators,
)
from tests.support.tiny_models import PHONE, build_model, random_inputs


def table_in(folder, note=print, runtime="torch", threads=1):
    return LatencyTable(LatencyConfig(runtime=runtime, threads=threads, repeats=3), folder, note)


def test_an_operator_is_resized_with_its_weight():
    convolution = Operator("conv2d", (1, 8, 5, 5), (16, 8, 3, 3), 2, 1)
    smaller = Operator("conv2d", (1, 4, 5, 5), (12, 4, 3, 3), 2, 1)
    assert resize_operator(convolution, (12, 4, 3, 3)) == smaller
    depthwise = Operator("conv2d", (1, 8, 5, 5), (8, 1, 3, 3), 1, 1, 8)
    smaller = Operator("conv2d", (1, 6, 5, 5), (6, 1, 3, 3), 1, 1, 6)
    assert resize_operator(depthwise, (6, 1, 3, 3)) == smaller
    linear = Operator("linear", (2, 7, 8), (16, 8))
    assert resize_operator(linear, (16, 4)) == Operator("linear", (2, 7, 4), (16, 4))


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_operators_are_measured_once_and_kept(runtime, tmp_path, monkeypatch):
    table = table_in(tmp_path, runtime=runtime)
    large = Operator("conv2d", (1, 64, 40, 40), (64, 64, 3, 3), 1, 1)
    small = Operator("linear", (1, 4), (4, 4))
    assert table.milliseconds(large) > table.milliseconds(small) >= 0
    assert table.milliseconds(Operator("conv1d", (1, 4, 9), (4, 1, 3), 1, 1, 4)) >= 0
    table.save()
    reopened = table_in(tmp_path, runtime=runtime)
    monkeypatch.setattr("passes.prune.operator_latency.measure_operator", None)
    assert reopened.milliseconds(large) == table.milliseconds(large)


@pytest.mark.parametrize(
    "content", ["", "{", '{"linear 1x1": "fast"}', '{"linear 1x1": -1}', "[1]"]
)
def test_a_damaged_table_is_noted_and_measured_again(content, tmp_path):
    notes = []
    table = table_in(tmp_path, notes.append)
    table.file.parent.mkdir()
    table.file.write_text(content)
    reopened = table_in(tmp_path, notes.append)
    assert reopened.milliseconds(Operator("linear", (1, 4), (4, 4))) >= 0
    reopened.save()
    table_in(tmp_path, notes.append)
    assert ["damaged" in note for note in notes] == [True]


def test_measuring_in_torch_restores_its_number_of_threads(tmp_path):
    before = torch.get_num_threads()
    table_in(tmp_path, threads=before + 1).milliseconds(Operator("linear", (1, 4), (4, 4)))
    assert torch.get_num_threads() == before


class MacTable:
    """Time of one millisecond per multiply-accumulate."""

    def milliseconds(self, operator):
        positions = np.prod(operator.input[2:]) / operator.stride ** (len(operator.input) - 2)
        if operator.kind == "linear":
            positions = np.prod(operator.input[:-1])
        batch = 1 if operator.kind == "linear" else operator.input[0]
        return float(np.prod(operator.weight) * positions * batch)


def test_every_layer_that_reads_an_axis_is_measured():
    config = PHONE.presets["bed-teacher"]
    model = build_model(PHONE, config)
    operators = trace_operators(model, random_inputs(PHONE, config, 1))
    axes = PHONE.capability(CuttableAxes, config).axes
    for axis in axes:
        assert all(cut.tensor in operators for cut in axis.cuts if cut.reads), axis.name
    scores = {axis.name: np.ones(axis.units) for axis in axes}
    widths = group_axes(axes, scores, multiple=8, min_keep=0.25)
    total = latency_cost(operators, widths, MacTable())
    parent = all_units(widths)
    smaller = replace_fields(
        config,
        {
            ("speech_width",): 48,
            ("ffn",): 64,
            ("vision_blocks", 2, "expanded"): 96,
            ("vision_blocks", 2, "squeezed"): 48,
        },
    )
    sizes = {**parent, "speech_width": 48, "ffn": 64, "vision_blocks.2.expanded": 96}
    predicted = total(sizes) / total(parent)
    assert predicted == pytest.approx(PHONE.macs(smaller) / PHONE.macs(config), abs=0.02)
