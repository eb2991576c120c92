"""FP16, INT4 and simplification of foreign graphs, and fields that do not go together."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from compressor.errors import RequirementError
from passes.optimize_onnx.config import OptimizeOnnxConfig
from tests.support.engines import node
from tests.support.foreign_graphs import (
    IMAGES,
    TOKENS,
    Optimized,
    feed_forward,
    graph,
    optimized_operators,
    residual_network,
    weight,
)


def test_fp16_halves_the_file_and_keeps_the_types_of_inputs_and_outputs(tmp_path):
    result = Optimized(residual_network(), tmp_path, {"image": IMAGES}, precision="fp16")
    types = {tensor.data_type for tensor in result.graph.initializer if len(tensor.dims) > 1}
    assert types == {TensorProto.FLOAT16}
    assert {value.type.tensor_type.elem_type for value in result.graph.output} == {1}
    assert 0 < result.error() < 0.003


def test_fp16_stores_tied_embeddings_once(tmp_path):
    model = feed_forward()
    nodes = [node("Transpose", "table", "head", perm=[1, 0]), node("MatMul", "features head", "y")]
    model.graph.node.extend(nodes)
    model.graph.output[0].name = "y"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 300
    result = Optimized(model, tmp_path, {"tokens": TOKENS}, precision="fp16")
    before, after = result.sizes()
    assert after < 0.6 * before
    assert result.error() < 0.01


def test_values_beyond_the_range_of_fp16_stay_in_fp32(tmp_path):
    nodes = [node("MatMul", "x w", "huge"), node("MatMul", "huge v", "y")]
    weights = {"w": 4e4 * np.abs(weight(8, 8)), "v": weight(8, 8) * 1e-4}
    model = graph(nodes, weights, {"x": ["N", 8]}, {"y": ["N", 8]})
    samples = {"x": np.abs(IMAGES.reshape(24, -1)[:, :8])}
    result = Optimized(model, tmp_path, samples, precision="fp16")
    assert result.summary["largest_magnitude"] > 65504
    assert "huge" in {row["node"] for row in result.summary["kept_fp32"]}
    assert result.error() < 0.003


def test_int4_weights_are_rounded_for_the_samples_and_multiplied_as_such(tmp_path_factory):
    errors, model = {}, feed_forward(8.0)
    for calibration in (None, {"data": "c"}):
        result = Optimized(
            model,
            tmp_path_factory.mktemp("i"),
            {"tokens": TOKENS},
            precision="int4",
            calibration=calibration,
        )
        errors[calibration is None] = result.error()
        operators = optimized_operators(result.out / "model.onnx", tmp_path_factory.mktemp("o"))
        assert operators.count("MatMulNBits") == 2
        before, after = result.sizes()
        assert after < 0.35 * before
    assert errors[False] < 0.8 * errors[True] < 0.2


def test_int4_for_tensorrt_is_symmetric(tmp_path):
    result = Optimized(
        feed_forward(), tmp_path, {"tokens": TOKENS}, precision="int4", target="tensorrt"
    )
    types = {tensor.data_type for tensor in result.graph.initializer}
    assert TensorProto.INT4 in types
    assert not types & {TensorProto.UINT4, TensorProto.UINT8}


def test_weights_that_blocks_do_not_divide_are_named_for_tensorrt(tmp_path):
    nodes = [node("MatMul", "x odd", "h"), node("MatMul", "h even", "y")]
    weights = {"odd": weight(40, 64), "even": weight(64, 64)}
    model = graph(nodes, weights, {"x": ["N", 40]}, {"y": ["N", 64]})
    samples = {"x": IMAGES.reshape(24, -1)[:, :40]}
    result = Optimized(model, tmp_path, samples, precision="int4", target="tensorrt")
    assert result.summary["not_int4"] == ["h"]
    assert any("blocks of 32 do not divide their inputs, as" in note for note in result.notes)


def test_a_block_size_that_divides_is_named_where_there_is_one(tmp_path_factory):
    for width, remedy in ((48, {"block_size": 16}), (40, {"target": "onnxruntime"})):
        nodes, weights = [node("Gemm", "x w", "y")], {"w": weight(width, 8)}
        model = graph(nodes, weights, {"x": ["N", width]}, {"y": ["N", 8]})
        samples = {"x": IMAGES.reshape(24, -1)[:, :width]}
        fields = {"precision": "int4", "target": "tensorrt"}
        with pytest.raises(RequirementError, match="divide the inputs of no product") as error:
            Optimized(model, tmp_path_factory.mktemp("g"), samples, **fields)
        assert all(f"`{key}: {field}`" in str(error.value.remedy) for key, field in remedy.items())
        assert Optimized(model, tmp_path_factory.mktemp("r"), samples, **fields | remedy)


@pytest.mark.parametrize("calibration", [{"data": "c"}, None])
@pytest.mark.parametrize("inputs", [5, 40, 100])
def test_the_last_block_may_be_shorter(tmp_path, inputs, calibration):
    w = weight(inputs, 24)
    model = graph([node("MatMul", "x w", "y")], {"w": w}, {"x": ["N", inputs]}, {"y": ["N", 24]})
    samples = {"x": IMAGES.reshape(24, -1)[:, :inputs]}
    result = Optimized(model, tmp_path, samples, precision="int4", calibration=calibration)
    assert result.summary["products"] == 1
    operators = optimized_operators(result.out / "model.onnx", tmp_path)
    assert operators.count("MatMulNBits") == 1
    # The identity gives the weights as the file dequantizes them: every one on the grid of its
    # block, whose last may be short.
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    integers, scales, zeros = (
        next(stored[name] for name in stored if part in name)
        for part in (".integers", ".scales", ".zeros")
    )
    blocks = -(-inputs // 32)
    assert (integers.shape, scales.shape) == ((inputs, 24), (blocks, 24))
    spread = [np.repeat(each, 32, axis=0)[:inputs].astype(np.float32) for each in (scales, zeros)]
    expected = (integers.astype(np.float32) - spread[1]) * spread[0]
    result.samples = {"x": np.eye(inputs, dtype=np.float32)}
    assert np.array_equal(result.outputs()[1], expected)
    assert np.linalg.norm(expected - w) < 0.15 * np.linalg.norm(w)


def test_a_gemm_is_stored_once(tmp_path):
    nodes, weights = [node("Gemm", "x w b", "y", transB=1)], {"w": weight(64, 256)}
    weights["b"] = np.ones(64, np.float32)
    model = graph(nodes, weights, {"x": ["N", 256]}, {"y": ["N", 64]})
    samples = {"x": IMAGES.reshape(24, -1)[:, :256]}
    result = Optimized(model, tmp_path, samples, precision="int4")
    before, after = result.sizes()
    assert after < 0.3 * before
    assert result.error() < 0.1


def test_outputs_that_are_zero_have_no_relative_error(tmp_path):
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "y")]
    model = graph(nodes, {"w": -np.eye(8, dtype=np.float32)}, {"x": ["N", 8]}, {"y": ["N", 8]})
    samples = {"x": np.abs(IMAGES.reshape(24, -1)[:, :8])}
    difference = Optimized(model, tmp_path, samples).summary["against_parent"]["y"]
    assert difference == {"max_abs": 0.0, "cosine": 1.0, "relative_error": 0.0}


def test_int4_that_leaves_most_weights_says_so(tmp_path):
    nodes = [
        node("Conv", "x k", "c"),
        node("GlobalAveragePool", "c", "pool"),
        node("Flatten", "pool", "flat"),
        node("MatMul", "flat w", "y"),
    ]
    weights = {"k": weight(32, 3, 7, 7), "w": weight(32, 4)}
    model = graph(nodes, weights, {"x": ["N", 3, 16, 16]}, {"y": ["N", 4]})
    result = Optimized(model, tmp_path, {"x": IMAGES}, precision="int4")
    assert any("`precision: int8` converts convolutions too" in note for note in result.notes)


def test_convolutions_have_no_int4_form(tmp_path):
    model = graph(
        [node("Conv", "x k", "y")], {"k": weight(4, 3, 3, 3)}, {"x": ["N", 3, 8, 8]}, {"y": None}
    )
    with pytest.raises(RequirementError, match="no matrix product") as error:
        Optimized(model, tmp_path, {"x": IMAGES[:, :, :8, :8]}, precision="int4")
    assert "`precision: int8`, which converts convolutions" in str(error.value.remedy)


def test_simplification_alone_computes_the_same(tmp_path):
    result = Optimized(residual_network(), tmp_path, {"image": IMAGES}, precision="fp32")
    assert "BatchNormalization" not in result.operators()
    assert result.error() < 1e-5


def test_hard_swish_is_restored(tmp_path):
    nodes = [
        node("Conv", "x k", "c"),
        node("Add", "c three", "shifted"),
        node("Clip", "shifted zero six", "clipped"),
        node("Mul", "c clipped", "product"),
        node("Div", "product six", "y"),
    ]
    constants = {"three": 3, "zero": 0, "six": 6}
    weights = {name: np.float32(value) for name, value in constants.items()}
    model = graph(nodes, {"k": weight(4, 3, 3, 3), **weights}, {"x": ["N", 3, 8, 8]}, {"y": None})
    result = Optimized(model, tmp_path, {"x": IMAGES[:, :, :8, :8]}, precision="fp32")
    assert result.operators() == ["Conv", "HardSigmoid", "Mul"]
    assert result.error() < 1e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "int8"}, "requires samples, which show the ranges of values"),
        ({"precision": "fp16"}, "requires samples, which show what would overflow"),
        ({"precision": "fp32", "simplify": False}, "changes nothing"),
        (
            {"precision": "int4", "bias_correction": True, "smoothing": True},
            "`bias_correction` has no effect with `precision: int4`: leave it out; `smoothing`",
        ),
        (
            {"precision": "fp16", "calibration": {"data": "c", "observer": "mse"}},
            "`calibration.observer` has no effect with `precision: fp16`",
        ),
        (
            {
                "calibration": {"data": "c"},
                "keep_float": {"data": "c", "metric": "x", "max_drop": 1},
            },
            "unknown metric 'x'; known: top1",
        ),
    ],
)
def test_fields_without_effect_are_refused(fields, message):
    with pytest.raises(ValidationError) as error:
        OptimizeOnnxConfig.model_validate(fields)
    assert message in str(error.value)


@pytest.mark.parametrize("own_weights", [True, False])
def test_weights_of_branches_are_stored_in_fp16(tmp_path, own_weights):
    """As exporters write: a branch has weights of its own, or reads those of the graph."""
    weights = {name: weight(64, 64) for name in ("a", "b")}
    inner = [
        helper.make_graph(
            [node("MatMul", f"x {name}", f"o{name}")],
            f"branch_{name}",
            [],
            [helper.make_tensor_value_info(f"o{name}", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weights[name], name)] if own_weights else [],
        )
        for name in weights
    ]
    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        helper.make_node("If", ["positive"], ["y"], then_branch=inner[0], else_branch=inner[1]),
    ]
    outer = {"zero": np.float32(0), **({} if own_weights else weights)}
    model = graph(nodes, outer, {"x": ["N", 64]}, {"y": ["N", 64]})
    result = Optimized(model, tmp_path, {"x": IMAGES.reshape(24, -1)[:, :64]}, precision="fp16")
    before, after = result.sizes()
    assert after < 0.6 * before
    assert sorted(result.summary["stored_fp16"]) == ["a", "b"]
    assert 0 < result.error() < 0.003
    assert any("weights from 1 kB on in FP16" in note for note in result.notes)


def test_a_graph_without_floats_to_convert_is_said(tmp_path):
    nodes = [
        node("Cast", "x", "i", to=TensorProto.INT64),
        node("Mul", "i two", "d"),
        node("Cast", "d", "y", to=TensorProto.DOUBLE),
    ]
    model = graph(nodes, {"two": np.array(2)}, {"x": ["N", 8]}, {"y": ["N", 8]})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    samples = {"x": IMAGES.reshape(24, -1)[:, :8]}
    result = Optimized(model, tmp_path, samples, precision="fp16")
    assert any("nothing became FP16 (no node computes floats" in n for n in result.notes)


def test_a_graph_that_would_overflow_everywhere_is_said(tmp_path):
    samples = {"x": np.abs(IMAGES.reshape(24, -1)[:, :8]) * np.float32(1e7)}
    model = graph([node("Relu", "x", "y")], {}, {"x": ["N", 8]}, {"y": ["N", 8]})
    result = Optimized(model, tmp_path, samples, precision="fp16")
    assert any("nothing became FP16 (overflows FP16: 1" in n for n in result.notes)
