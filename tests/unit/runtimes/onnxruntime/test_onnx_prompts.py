"""Packed layers as integers with one scale for each output: the weights, and what a graph of them answers."""

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


def packed_graph(
    bits, outputs, inputs, size, *, zeros=True, bias=False, level=4, split=(), signs=False, seed=0
):
    """Tokens are looked up, and go through one packed layer; and the weights as floats."""
    rng = np.random.default_rng(seed)
    groups, each = -(-inputs // size), 8 // bits
    integers = rng.integers(0, 1 << bits, (outputs, groups, size))
    scales = rng.uniform(0.01, 0.1, (outputs, groups)).astype(np.float16)
    if signs:
        scales *= rng.choice([-1, 1], scales.shape).astype(np.float16)
    points = (
        rng.integers(0, 1 << bits, (outputs, groups))
        if zeros
        else np.full((outputs, groups), 1 << (bits - 1))
    )

    def octets(values):
        padded = np.pad(
            values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % each)]
        ).astype(np.uint8)
        return sum(padded[..., place::each] << (place * bits) for place in range(each)).astype(
            np.uint8
        )

    arrays = {
        "table": rng.standard_normal((50, inputs)).astype(np.float32),
        "data": octets(integers),
        "scales": scales,
        "zeros": octets(points).ravel(),
        "bias": rng.standard_normal(outputs).astype(np.float32),
        "sizes": np.array(split or [outputs]),
    }
    given = ["x", "data", "wide", "zeros" if zeros else "", "", "bias" if bias else ""]
    while not given[-1]:
        given.pop()
    parts = [f"part.{number}" for number in range(len(split))]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Cast", ["scales"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node(
            "MatMulNBits",
            given,
            ["whole"],
            domain="com.microsoft",
            K=inputs,
            N=outputs,
            bits=bits,
            block_size=size,
            accuracy_level=level,
        ),
        *([helper.make_node("Split", ["whole", "sizes"], parts, axis=-1)] if split else []),
        *[
            helper.make_node("Identity", [part], [f"logits.{n}"])
            for n, part in enumerate(parts or ["whole"])
        ],
    ]
    graph = helper.make_graph(
        nodes,
        "packed",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "t"])],
        [
            helper.make_tensor_value_info(f"logits.{n}", TensorProto.FLOAT, ["b", "t", width])
            for n, width in enumerate(split or [outputs])
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    floats = ((integers - points[..., None]) * scales.astype(np.float64)[..., None]).reshape(
        outputs, -1
    )[:, :inputs]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11), floats, arrays


def packed_layer(model):
    graph = ir.from_proto(model).graph  # nodes know their graph, but do not keep it
    [layer] = [found for node in graph if (found := MatMulNBitsLayer.of(node))]
    return layer


@settings(deadline=None, max_examples=40)
@given(
    bits=st.sampled_from([2, 4, 8]),
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 70),
    size=st.sampled_from([16, 32]),
    zeros=st.booleans(),
    signs=st.booleans(),
    seed=st.integers(0, 99),
)
def test_weights_are_rounded_to_half_a_step_and_fill_their_range(
    bits, outputs, inputs, size, zeros, signs, seed
):
    model, floats_OI, _ = packed_graph(
        bits, outputs, inputs, size, zeros=zeros, signs=signs, seed=seed
    )
    layer = packed_layer(model)
    peaks_O = layer.peaks()
    assert (np.abs(floats_OI).max(axis=1) <= peaks_O * (1 + 1e-6)).all()
    some = slice(outputs // 2, outputs)
    scales_O = peaks_O[some] / 127
    integers_IO = layer.integers(some, scales_O)
    assert integers_IO.dtype == np.int8
    assert np.abs(integers_IO.astype(int)).max(initial=0) <= 127
    assert (
        np.abs(integers_IO.T * scales_O[:, None] - floats_OI[some]).max() <= 0.5001 * scales_O.max()
    )


@pytest.mark.parametrize(
    "given",
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
def test_a_graph_multiplies_what_is_rounded_by_token_and_by_output(given, tmp_path):
    fields = {"bits": 4, "outputs": 12, "inputs": 96, "size": 32, **given}
    model, _, arrays = packed_graph(**fields)
    onnx.save(model, tmp_path / "model.onnx")
    graph = PromptGraph(tmp_path)
    asked = graph.size_bytes
    written = tmp_path / "made"
    written.mkdir()
    graph.write(written, 2)
    made = onnx.load(written / "model.onnx")
    onnx.checker.check_model(str(written / "model.onnx"))
    kinds = [node.op_type for node in made.graph.node]
    assert not {"MatMulNBits", "Split", "Cast"} & set(kinds)
    assert not {"data", "scales", "zeros", "sizes"} & {one.name for one in made.graph.initializer}
    size = sum(len(numpy_helper.to_array(one).tobytes()) for one in made.graph.initializer)
    assert 0.95 * size < asked < 1.05 * size
    ids = np.array([[3, 7, 1], [0, 49, 7]])
    found = open_inference_session(written, 1, settings=EXACT_PRODUCTS if integer_products_saturate() else {}).run(None, {"input_ids": ids})
    x = arrays["table"][ids].astype(np.float64)
    steps = np.abs(x).max(axis=-1, keepdims=True) / 127
    layer = packed_layer(model)
    scales = layer.peaks() / 127
    weights = layer.integers(slice(None), scales) * scales
    wanted = (np.rint(x / steps) * steps) @ weights + (arrays["bias"] if fields.get("bias") else 0)
    assert np.abs(np.concatenate(found, axis=-1) - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert [one.shape[-1] for one in found] == list(fields.get("split", (12,)))


def test_a_token_of_zeros_is_no_trouble(tmp_path):
    model, _, _ = packed_graph(4, 12, 96, 32)
    [table] = [one for one in model.graph.initializer if one.name == "table"]
    values = numpy_helper.to_array(table).copy()
    values[5] = 0
    table.CopyFrom(numpy_helper.from_array(values, "table"))
    onnx.save(model, tmp_path / "model.onnx")
    written = tmp_path / "made"
    written.mkdir()
    PromptGraph(tmp_path).write(written, 1)
    [found] = open_inference_session(written, 1).run(None, {"input_ids": np.array([[5, 6]])})
    assert not found[0, 0].any()
    assert found[0, 1].any()


@pytest.mark.parametrize("level", [0, 1])
def test_a_file_that_asks_for_floats_is_taken_at_its_word(level, tmp_path):
    onnx.save(packed_graph(4, 12, 96, 32, level=level)[0], tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="holds no weights that are multiplied as packed integers"):
        PromptGraph(tmp_path)


@pytest.mark.parametrize(
    "given", ["a product", "a constant", "an order", "float zero-points", "opset 20", "a result"]
)
def test_a_layer_that_others_wrote_another_way_is_left_alone(given, tmp_path):
    model, _, _ = packed_graph(4, 12, 96, 32)
    graph, [layer] = (
        model.graph,
        [node for node in model.graph.node if node.op_type == "MatMulNBits"],
    )
    if given == "a product":
        graph.node.insert(2, helper.make_node("Mul", ["wide", "wide"], ["computed"]))
        layer.input[2] = "computed"
    if given == "a constant":
        graph.node.insert(2, helper.make_node("Constant", [], ["computed"], value_float=1.0))
        layer.input[2] = "computed"
    if given == "an order":
        layer.input.append("sizes")
    if given == "float zero-points":
        layer.input[3] = "bias"
    if given == "opset 20":
        model.opset_import[0].version = 20
    if given == "a result":
        layer.output[0] = "logits.0"
        del graph.node[-1]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="holds no weights that are multiplied as packed integers"):
        PromptGraph(tmp_path)
