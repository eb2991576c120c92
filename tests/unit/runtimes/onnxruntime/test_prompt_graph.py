"""Graphs for prompts: 8-bit weights with one scale per output, and the results of the graph."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import UsageError
from compressor.graphs.matmul_nbits import MatMulNBitsLayer
from compressor.runtimes.onnxruntime.decoder.fast_prompts import PromptGraph
from compressor.runtimes.onnxruntime.inference import open_inference_session
from compressor.runtimes.onnxruntime.integer_kernels import (
    EXACT_PRODUCTS,
    integer_products_saturate,
)


@dataclass(frozen=True)
class PackedGraph:
    """A graph that looks up tokens and multiplies them by one packed layer."""

    bits: int = 4
    outputs: int = 12
    inputs: int = 96
    size: int = 32
    zeros: bool = True
    bias: bool = False
    level: int = 4
    split: tuple[int, ...] = ()
    signs: bool = False
    seed: int = 0

    @cached_property
    def _draws(self):
        rng = np.random.default_rng(self.seed)
        shape = (self.outputs, -(-self.inputs // self.size))
        integers = rng.integers(0, 1 << self.bits, (*shape, self.size))
        scales = rng.uniform(0.01, 0.1, shape).astype(np.float16)
        if self.signs:
            scales *= rng.choice([-1, 1], shape).astype(np.float16)
        middle = np.full(shape, 1 << (self.bits - 1))
        points = rng.integers(0, 1 << self.bits, shape) if self.zeros else middle
        table = rng.standard_normal((50, self.inputs)).astype(np.float32)
        bias = rng.standard_normal(self.outputs).astype(np.float32)
        return integers, scales, points, table, bias

    @property
    def weights(self):
        """The dequantized weights, [outputs, inputs]."""
        integers, scales, points, _, _ = self._draws
        floats = (integers - points[..., None]) * scales.astype(np.float64)[..., None]
        return floats.reshape(self.outputs, -1)[:, : self.inputs]

    @property
    def arrays(self):
        integers, scales, points, table, bias = self._draws
        return {
            "table": table,
            "data": self._pack(integers),
            "scales": scales,
            "zeros": self._pack(points).ravel(),
            "bias": bias,
            "sizes": np.array(self.split or [self.outputs]),
        }

    def _pack(self, values):
        per_byte = 8 // self.bits
        padding = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % per_byte)]
        padded = np.pad(values, padding).astype(np.uint8)
        parts = [padded[..., place::per_byte] << (place * self.bits) for place in range(per_byte)]
        return sum(parts).astype(np.uint8)

    @property
    def nodes(self):
        inputs = ["x", "data", "wide", "zeros" if self.zeros else "", "", "bias"]
        while not inputs[-1] or (inputs[-1] == "bias" and not self.bias):
            inputs.pop()
        attributes = {
            "K": self.inputs,
            "N": self.outputs,
            "bits": self.bits,
            "block_size": self.size,
            "accuracy_level": self.level,
        }
        parts = [f"part.{number}" for number in range(len(self.split))]
        split = [helper.make_node("Split", ["whole", "sizes"], parts, axis=-1)]
        return [
            helper.make_node("Gather", ["table", "input_ids"], ["x"]),
            helper.make_node("Cast", ["scales"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node(
                "MatMulNBits", inputs, ["whole"], domain="com.microsoft", **attributes
            ),
            *(split if parts else []),
            *[
                helper.make_node("Identity", [part], [f"logits.{number}"])
                for number, part in enumerate(parts or ["whole"])
            ],
        ]

    @property
    def model(self):
        widths = self.split or [self.outputs]
        graph = helper.make_graph(
            self.nodes,
            "packed",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "t"])],
            [
                helper.make_tensor_value_info(
                    f"logits.{number}", TensorProto.FLOAT, ["b", "t", width]
                )
                for number, width in enumerate(widths)
            ],
            [numpy_helper.from_array(array, name) for name, array in self.arrays.items()],
        )
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def packed_layer(model):
    graph = ir.from_proto(model).graph  # nodes refer to their graph, but do not keep it alive
    [layer] = [layer for node in graph if (layer := MatMulNBitsLayer.from_node(node))]
    return layer


@settings(deadline=None, max_examples=40)
@given(
    graph=st.builds(
        PackedGraph,
        bits=st.sampled_from([2, 4, 8]),
        outputs=st.integers(1, 9),
        inputs=st.integers(1, 70),
        size=st.sampled_from([16, 32]),
        zeros=st.booleans(),
        signs=st.booleans(),
        seed=st.integers(0, 99),
    )
)
def test_weights_are_rounded_to_half_a_step_and_fill_their_range(graph):
    layer, weights_OI = packed_layer(graph.model), graph.weights
    peaks_O = layer.max_magnitudes()
    assert (np.abs(weights_OI).max(axis=1) <= peaks_O * (1 + 1e-6)).all()
    rows = slice(graph.outputs // 2, graph.outputs)
    scales_O = peaks_O[rows] / 127
    integers_IO = layer.requantize(rows, scales_O)
    assert integers_IO.dtype == np.int8
    assert np.abs(integers_IO.astype(int)).max(initial=0) <= 127
    error_OI = np.abs(integers_IO.T * scales_O[:, None] - weights_OI[rows])
    assert error_OI.max() <= 0.5001 * scales_O.max()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"zeros": False},
        {"bias": True},
        {"split": (5, 3, 4)},
        {"bias": True, "split": (8, 4)},
        {"bits": 8},
        {"bits": 2},
    ],
    ids=str,
)
def test_the_graph_multiplies_activations_by_token_and_weights_by_output(fields, tmp_path):
    packed = PackedGraph(**fields)
    onnx.save(packed.model, tmp_path / "model.onnx")
    graph = PromptGraph(tmp_path)
    expected_bytes = graph.size_bytes
    written = tmp_path / "written"
    written.mkdir()
    graph.write(written, 2)
    onnx.checker.check_model(str(written / "model.onnx"))
    result = onnx.load(written / "model.onnx").graph
    assert not {"MatMulNBits", "Split", "Cast"} & {node.op_type for node in result.node}
    assert not {"data", "scales", "zeros", "sizes"} & {value.name for value in result.initializer}
    size = sum(len(numpy_helper.to_array(value).tobytes()) for value in result.initializer)
    assert 0.95 * size < expected_bytes < 1.05 * size
    ids = np.array([[3, 7, 1], [0, 49, 7]])
    outputs = run(written, ids)
    expected = reference(packed, ids)
    error = np.abs(np.concatenate(outputs, axis=-1) - expected)
    assert error.max() < 1e-4 * np.abs(expected).max()
    assert [output.shape[-1] for output in outputs] == list(packed.split or (12,))


def run(folder, ids):
    exact = EXACT_PRODUCTS if integer_products_saturate() else {}
    return open_inference_session(folder, 1, settings=exact).run(None, {"input_ids": ids})


def reference(packed, ids):
    """Return the product of rounded activations and rounded weights, in float64."""
    x = packed.arrays["table"][ids].astype(np.float64)
    steps = np.abs(x).max(axis=-1, keepdims=True) / 127
    layer = packed_layer(packed.model)
    scales_O = layer.max_magnitudes() / 127
    weights_IO = layer.requantize(slice(None), scales_O) * scales_O
    product = (np.rint(x / steps) * steps) @ weights_IO
    return product + (packed.arrays["bias"] if packed.bias else 0)


def test_a_token_of_zeros_gives_zeros(tmp_path):
    model = PackedGraph().model
    [table] = [value for value in model.graph.initializer if value.name == "table"]
    values = numpy_helper.to_array(table).copy()
    values[5] = 0
    table.CopyFrom(numpy_helper.from_array(values, "table"))
    onnx.save(model, tmp_path / "model.onnx")
    written = tmp_path / "written"
    written.mkdir()
    PromptGraph(tmp_path).write(written, 1)
    session = open_inference_session(written, 1)
    [output] = session.run(None, {"input_ids": np.array([[5, 6]])})
    assert not output[0, 0].any()
    assert output[0, 1].any()


NO_INTEGERS = "has no weights that are multiplied as packed integers"


@pytest.mark.parametrize("level", [0, 1])
def test_a_layer_that_computes_in_float_is_refused(level, tmp_path):
    onnx.save(replace(PackedGraph(), level=level).model, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=NO_INTEGERS):
        PromptGraph(tmp_path)


def compute_scales(model, layer):
    model.graph.node.insert(2, helper.make_node("Mul", ["wide", "wide"], ["computed"]))
    layer.input[2] = "computed"


def scales_from_a_constant_node(model, layer):
    constant = helper.make_node("Constant", [], ["computed"], value_float=1.0)
    model.graph.node.insert(2, constant)
    layer.input[2] = "computed"


def reorder_groups(model, layer):
    layer.input.append("sizes")


def use_float_zero_points(model, layer):
    layer.input[3] = "bias"


def lower_the_opset(model, layer):
    model.opset_import[0].version = 20


def make_it_an_output_of_the_graph(model, layer):
    layer.output[0] = "logits.0"
    del model.graph.node[-1]


@pytest.mark.parametrize(
    "change",
    [
        compute_scales,
        scales_from_a_constant_node,
        reorder_groups,
        use_float_zero_points,
        lower_the_opset,
        make_it_an_output_of_the_graph,
    ],
)
def test_a_layer_in_a_form_of_other_exporters_is_refused(change, tmp_path):
    model = PackedGraph().model
    [layer] = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    change(model, layer)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=NO_INTEGERS):
        PromptGraph(tmp_path)
