"""Conversion of graphs to FP16: the nodes that stay in FP32, and results in ONNX Runtime."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from compressor.graphs.files import load_typed_model
from compressor.graphs.fp16 import convert_to_fp16, float_values
from compressor.graphs.fp16_block_list import FP16_MAX, BlockList, Cause
from compressor.runtimes.onnxruntime.ranges import measure_magnitudes
from tests.support.engines import model_of, node, transformer, weight

X = np.random.default_rng(3).normal(size=(3, 8)).astype(np.float32)


@dataclass
class Converted:
    """A converted graph whose outputs match those of the original."""

    fp32_nodes: dict[str, str]
    """Name to the reason."""
    causes: dict[str, Cause]
    types: dict[str, int]
    """Value to element type."""


def run(model, feeds):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def convert(model, tmp_path, feeds=None, largest=FP16_MAX):
    feeds = {"x": X} if feeds is None else feeds
    onnx.save(model, tmp_path / "model.onnx")
    typed = load_typed_model(tmp_path)
    magnitudes = measure_magnitudes(typed, float_values(typed), [feeds])
    fp32_nodes = convert_to_fp16(typed, BlockList(magnitudes, largest))
    converted = ir.to_proto(typed)
    onnx.checker.check_model(converted, full_check=True)
    for before, after in zip(run(model, feeds), run(converted, feeds), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_allclose(after, before, atol=0.01, rtol=0.01)
    inferred = onnx.shape_inference.infer_shapes(converted).graph
    return Converted(
        {entry.node: entry.reason for entry in fp32_nodes},
        {entry.node: entry.cause for entry in fp32_nodes},
        {
            value.name: value.type.tensor_type.elem_type
            for value in (*inferred.value_info, *inferred.output)
        },
    )


def test_a_decomposed_norm_stays_in_fp32_with_its_epsilon(tmp_path):
    nodes = [
        node("Pow", "x two", "square"),
        node("ReduceMean", "square axis", "mean"),
        node("Add", "mean eps", "safe"),
        node("Sqrt", "safe", "root"),
        node("Div", "x root", "normed"),
        node("MatMul", "normed w", "logits"),
    ]
    constants = {
        "two": np.float32(2),
        "axis": np.array([-1]),
        "eps": np.float32(1e-3),
        "w": weight(8, 4),
    }
    converted = convert(model_of(nodes, constants, ("n", 8)), tmp_path)
    assert set(converted.fp32_nodes) == {"square", "mean", "safe", "root"}
    assert converted.fp32_nodes["safe"] == "between nodes in FP32"
    assert converted.types["normed"] == TensorProto.FLOAT16


def test_a_constant_below_the_range_of_fp16_keeps_its_reader_in_fp32(tmp_path):
    nodes = [node("Max", "x tiny", "some"), node("Mul", "some w", "logits")]
    constants = {"tiny": np.float32(1e-9), "w": np.array([1, *[1e-9] * 7], np.float32)}
    converted = convert(model_of(nodes, constants, ("n", 8)), tmp_path)
    # Small weights among others may be converted.
    assert converted.fp32_nodes == {"some": "tiny is too small for FP16"}


def test_recurrent_layers_stay_in_fp32(tmp_path):
    nodes = [
        node("MatMul", "x w", "inputs"),
        node("Unsqueeze", "inputs first", "steps"),
        onnx.helper.make_node("GRU", ["steps", "k", "r"], ["", "state"], name="g", hidden_size=4),
        node("MatMul", "state v", "logits"),
    ]
    weights = {
        "w": weight(8, 6),
        "first": np.array([0]),
        "k": weight(1, 12, 6),
        "r": weight(1, 12, 4),
        "v": weight(4, 3),
    }
    converted = convert(model_of(nodes, weights, ("n", 8)), tmp_path)
    assert list(converted.fp32_nodes) == ["g"]
    assert "add up over the steps" in converted.fp32_nodes["g"]
    assert converted.types["inputs"] == TensorProto.FLOAT16


def test_positions_stay_in_fp32_since_fp16_cannot_count(tmp_path):
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape one", "length"),
        node("Range", "zero length step", "places"),
        node("Cast", "places", "positions", to=1),
        node("Mul", "positions frequency", "angles"),
        node("Add", "x angles", "logits"),
    ]
    constants = {
        "one": np.int64(1),
        "zero": np.int64(0),
        "step": np.int64(1),
        "frequency": np.float32(0.1),
    }
    converted = convert(model_of(nodes, constants, ("n", 8)), tmp_path)
    assert set(converted.fp32_nodes) == {"positions", "angles"}
    assert converted.types["logits"] == TensorProto.FLOAT


@pytest.mark.parametrize("masked", [-np.inf, np.finfo(np.float32).min])
def test_an_attention_mask_stays_in_fp32_and_still_masks(masked, tmp_path):
    mask = np.where(np.arange(8) < 4, 0, masked).astype(np.float32)
    nodes = [node("Add", "x mask", "masked"), node("Softmax", "masked", "logits")]
    converted = convert(model_of(nodes, {"mask": mask}, ("n", 8)), tmp_path)
    assert set(converted.fp32_nodes) == {"masked", "logits"}


@pytest.mark.parametrize(("largest", "fp32_nodes"), [(FP16_MAX, set()), (4.0, {"wide", "narrow"})])
def test_values_beyond_the_largest_keep_producer_and_readers_in_fp32(largest, fp32_nodes, tmp_path):
    nodes = [
        node("Mul", "x eight", "wide"),
        node("Mul", "wide eighth", "narrow"),
        node("Relu", "narrow", "logits"),
    ]
    model = model_of(nodes, {"eight": np.float32(8), "eighth": np.float32(0.125)}, ("n", 8))
    converted = convert(model, tmp_path, largest=largest)
    assert set(converted.fp32_nodes) == fp32_nodes
    assert set(converted.causes.values()) <= {Cause.RANGE}


def test_inputs_that_are_too_large_keep_their_readers_in_fp32(tmp_path):
    nodes = [node("Mul", "x small", "less"), node("Relu", "less", "logits")]
    model = model_of(nodes, {"small": np.float32(0.01)}, ("n", 8))
    assert set(convert(model, tmp_path, {"x": 1e6 * X}).fp32_nodes) == {"less"}


def test_values_that_subgraphs_read_keep_their_type(tmp_path):
    inner = [helper.make_node("Mul", ["double", "double"], ["product"], name="inner")]
    branch = helper.make_graph(
        inner, "b", [], [helper.make_tensor_value_info("product", TensorProto.FLOAT, None)]
    )
    nodes = [
        node("Add", "x x", "double"),
        node("Add", "double double", "fourfold"),
        node("If", "yes", "chosen", then_branch=branch, else_branch=branch),
        node("Add", "chosen fourfold", "logits"),
    ]
    converted = convert(model_of(nodes, {"yes": np.array(True)}, ("n", 8)), tmp_path)
    assert converted.fp32_nodes["double"] == "read in a graph within"
    assert converted.types["fourfold"] == TensorProto.FLOAT16


def test_values_of_unknown_type_and_their_neighbours_stay_in_fp32(tmp_path):
    nodes = [
        node("Mul", "x x", "square"),
        node("QuickGelu", "square", "gelu", domain="com.microsoft"),
        node("QuickGelu", "gelu", "twice", domain="com.microsoft"),
        node("MatMul", "square w", "known"),
        node("MatMul", "known twice", "product"),
        node("Mul", "product product", "logits"),
    ]
    model = model_of(nodes, {"w": weight(8, 3)}, (3, 8))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.output[0].type.tensor_type.shape.dim.extend([onnx.TensorShapeProto.Dimension()] * 2)
    converted = convert(model, tmp_path)
    assert converted.causes == {"product": Cause.TYPE}
    assert converted.types["square"] == converted.types["known"] == TensorProto.FLOAT16


def test_sequences_keep_their_type(tmp_path):
    nodes = [
        node("Mul", "x x", "square"),
        node("SplitToSequence", "square", "parts", axis=1),
        node("Identity", "parts", "same"),
        node("SequenceAt", "same first", "part"),
        node("Mul", "part part", "logits"),
    ]
    converted = convert(model_of(nodes, {"first": np.int64(0)}, ("n", 8)), tmp_path)
    assert converted.causes == {"part": Cause.TYPE}
    assert converted.types["square"] == TensorProto.FLOAT16


def test_constant_nodes_and_filled_shapes_are_converted(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["c"], name="c", value_float=0.5),
        node("Mul", "x c", "scaled"),
        helper.make_node("Constant", [], ["size"], name="size", value_ints=[8]),
        node("ConstantOfShape", "size", "zeros"),
        node("Add", "scaled zeros", "logits"),
    ]
    converted = convert(model_of(nodes, {}, ("n", 8)), tmp_path)
    assert converted.fp32_nodes == {}
    assert {converted.types["scaled"], converted.types["zeros"]} == {TensorProto.FLOAT16}


def test_an_output_that_nodes_read_keeps_its_name_and_type(tmp_path):
    model = model_of(
        [node("Relu", "x", "first"), node("Mul", "first first", "logits")], {}, ("n", 8)
    )
    model.graph.output.append(helper.make_tensor_value_info("first", TensorProto.FLOAT, None))
    converted = convert(model, tmp_path)
    assert converted.fp32_nodes == {}
    assert {converted.types[name] for name in ("first", "logits")} == {TensorProto.FLOAT}


def test_a_transformer_block_keeps_norms_and_softmax_in_fp32(tmp_path):
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 5, 64)).astype(np.float32)}
    converted = convert(transformer(), tmp_path, feeds)
    assert set(converted.fp32_nodes) == {"n1", "attention", "n2"}
    assert converted.types["scores"] == converted.types["gelu"] == TensorProto.FLOAT16


def batch_norm(scale=1.0, variance=1.0, mean=0.0, epsilon=1e-5):
    """Return a graph of one batch normalization of four channels, the last one with factors."""
    constants = {
        "scale": np.array([1, 1, 1, scale], np.float32),
        "bias": np.zeros(4, np.float32),
        "mean": np.array([0, 0, 0, mean], np.float32),
        "var": np.array([1, 1, 1, variance], np.float32),
    }
    nodes = [
        helper.make_node(
            "BatchNormalization", ["x", *constants], ["logits"], name="norm", epsilon=epsilon
        )
    ]
    return model_of(nodes, constants, shape=(2, 4, 3))


NORMED = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)


def test_a_batch_normalization_at_inference_is_a_scale_and_a_shift(tmp_path):
    small = batch_norm(scale=0.003, variance=1e-5, mean=2.5)
    converted = convert(small, tmp_path, {"x": NORMED})
    assert converted.fp32_nodes == {}


@pytest.mark.parametrize(
    ("factors", "cause"),
    [
        ({"scale": 1e4, "variance": 1e-3, "epsilon": 1e-8}, Cause.RANGE),
        ({"scale": 1e-3, "variance": 1e-9, "epsilon": 1e-12}, Cause.PRECISION),
        ({"mean": 1e5, "variance": 1e-3}, Cause.RANGE),
    ],
)
def test_a_batch_normalization_whose_factors_leave_fp16_stays(factors, cause, tmp_path):
    typed = load_typed(batch_norm(**factors), tmp_path)
    [entry] = convert_to_fp16(typed, BlockList({}))
    assert entry.cause is cause


def test_a_batch_normalization_by_the_batch_sums(tmp_path):
    model = batch_norm()
    model.graph.node[0].attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.node[0].output.extend(["mean_out", "var_out"])
    [entry] = convert_to_fp16(load_typed(model, tmp_path), BlockList({}))
    assert (entry.cause, entry.reason) == (
        Cause.OPERATOR,
        "normalizes by the batch, which sums over many values",
    )


def load_typed(model, folder):
    onnx.save(model, folder / "model.onnx")
    return load_typed_model(folder)


@pytest.mark.parametrize(("order", "is_fp32"), [((1, 0, 2), True), ((0, 2, 1), False)])
def test_a_product_that_onnxruntime_crashes_on_stays_in_fp32(order, is_fp32, tmp_path):
    weight = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    shape = (2, 4, 4)
    nodes = [node("Transpose", "x", "t", perm=order), node("MatMul", "t k", "logits")]
    model = model_of(nodes, {"k": weight}, shape=shape)
    [*entries] = convert_to_fp16(load_typed(model, tmp_path), BlockList({}))
    operators = [str(entry.row()["operator"]) for entry in entries]
    assert sorted(operators) == (["MatMul", "Transpose"] if is_fp32 else [])
    convert(model, tmp_path, {"x": np.ones(shape, np.float32)})  # runs it
