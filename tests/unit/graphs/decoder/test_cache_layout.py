"""Tests of the layout of a decoder's cache, read from the inputs of its graph."""

from types import SimpleNamespace

import numpy as np
import pytest

from compressor.errors import ModelError
from compressor.graphs.decoder.cache_layout import KvCacheLayout


def graph_input(name, shape, type_="tensor(float)"):
    return SimpleNamespace(name=name, shape=shape, type=type_)


INPUTS = [
    graph_input("input_ids", ["batch", "tokens"], "tensor(int64)"),
    graph_input("past_key_values.0.conv_state", ["batch", 32, 3]),
    graph_input("past_key_values.1.key", ["batch", 2, "past", 16]),
    graph_input("past_key_values.1.value", ["batch", 2, "past", 8], "tensor(float16)"),
]


def test_keys_values_and_states_may_differ_in_width_and_type():
    layout = KvCacheLayout.from_inputs(INPUTS)
    buffers = layout.zeros(3, 5)
    assert {name: array.shape for name, array in buffers.items()} == {
        "past_key_values.0.conv_state": (3, 32, 3),
        "past_key_values.1.key": (3, 2, 5, 16),
        "past_key_values.1.value": (3, 2, 5, 8),
    }
    assert buffers["past_key_values.1.value"].dtype == np.float16
    assert layout.size_bytes(3, 5) == 3 * (4 * 32 * 3 + 4 * 2 * 5 * 16 + 2 * 2 * 5 * 8)
    assert layout.has_states


def test_the_first_positions_are_views_and_states_stay_whole():
    layout = KvCacheLayout.from_inputs(INPUTS)
    buffers = layout.zeros(1, 5)
    first = layout.first(buffers, 2)
    assert first["past_key_values.1.key"].shape == (1, 2, 2, 16)
    assert first["past_key_values.0.conv_state"].shape == (1, 32, 3)
    assert np.shares_memory(first["past_key_values.1.key"], buffers["past_key_values.1.key"])


def test_a_graph_without_a_cache_has_no_layout():
    assert KvCacheLayout.from_inputs(INPUTS[:1]) is None


@pytest.mark.parametrize(
    "value",
    [
        graph_input("past_key_values.0.key", ["batch", "heads", "past", 16]),
        graph_input("past_key_values.0.key", ["batch", 2, "past", 16], "tensor(int64)"),
    ],
    ids=["two variable sizes", "integers"],
)
def test_caches_that_cannot_be_allocated_are_errors(value):
    with pytest.raises(ModelError, match=r"past_key_values\.0\.key"):
        KvCacheLayout.from_inputs([value])
