"""Graphs to FP16: which nodes stay, and what ONNX Runtime makes of the result."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxscript import ir

from compressor.graphs.fp16 import to_half
from compressor.runtimes.onnxruntime.ranges import measure_magnitudes
from passes.tensorrt import graph
from tests.unit.passes.tensorrt.engines import model_of, node, transformer, weight

X = np.random.default_rng(3).normal(size=(3, 8)).astype(np.float32)


def run(model, feeds):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def halved(model, tmp_path, feeds=None, highest=65504.0):
    """The graph in FP16, checked to compute what it did; its nodes in FP32 by name, and the types of its values."""
    feeds = {"x": X} if feeds is None else feeds
    onnx.save(model, tmp_path / "model.onnx")
    opened = graph.opened(tmp_path)
    largest = measure_magnitudes(ir.to_proto(opened), graph.values_in_float(opened), [feeds])
    kept = to_half(opened, largest, highest)
    made = ir.to_proto(opened)
    onnx.checker.check_model(made, full_check=True)
    for before, after in zip(run(model, feeds), run(made, feeds), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_allclose(after, before, atol=0.01, rtol=0.01)
    inferred = onnx.shape_inference.infer_shapes(made).graph
    types = {
        one.name: one.type.tensor_type.elem_type for one in (*inferred.value_info, *inferred.output)
    }
    return {one.node: one.reason for one in kept}, types


def test_a_norm_that_is_written_out_stays_with_its_epsilon(tmp_path):
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
    kept, types = halved(model_of(nodes, constants, ("n", 8)), tmp_path)
    assert set(kept) == {"square", "mean", "safe", "root"}
    assert kept["safe"] == "between nodes in FP32"
    assert types["normed"] == TensorProto.FLOAT16


def test_a_constant_that_fp16_does_not_have_keeps_its_reader(tmp_path):
    nodes = [node("Max", "x tiny", "some"), node("Mul", "some w", "logits")]
    constants = {"tiny": np.float32(1e-9), "w": np.full(8, 1e-9, np.float32)}
    kept, _ = halved(model_of(nodes, constants, ("n", 8)), tmp_path)
    assert kept == {"some": "tiny is too small for FP16"}  # small weights among others may go


def test_positions_stay_as_fp16_cannot_count(tmp_path):
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
    kept, types = halved(model_of(nodes, constants, ("n", 8)), tmp_path)
    assert set(kept) == {"positions", "angles"}
    assert types["logits"] == TensorProto.FLOAT


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min])
def test_a_mask_stays_and_what_it_hides_stays_hidden(hidden, tmp_path):
    mask = np.where(np.arange(8) < 4, 0, hidden).astype(np.float32)
    nodes = [node("Add", "x mask", "masked"), node("Softmax", "masked", "logits")]
    assert set(halved(model_of(nodes, {"mask": mask}, ("n", 8)), tmp_path)[0]) == {
        "masked",
        "logits",
    }


@pytest.mark.parametrize(("highest", "kept"), [(65504.0, set()), (4.0, {"wide", "narrow"})])
def test_values_beyond_the_highest_keep_who_makes_and_who_reads_them(highest, kept, tmp_path):
    nodes = [
        node("Mul", "x eight", "wide"),
        node("Mul", "wide eighth", "narrow"),
        node("Relu", "narrow", "logits"),
    ]
    model = model_of(nodes, {"eight": np.float32(8), "eighth": np.float32(0.125)}, ("n", 8))
    assert set(halved(model, tmp_path, highest=highest)[0]) == kept


def test_inputs_that_are_too_large_are_seen(tmp_path):
    nodes = [node("Mul", "x small", "less"), node("Relu", "less", "logits")]
    model = model_of(nodes, {"small": np.float32(0.01)}, ("n", 8))
    assert set(halved(model, tmp_path, {"x": 1e6 * X})[0]) == {"less"}


def test_what_graphs_within_read_stays_as_they_know_it(tmp_path):
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
    kept, types = halved(model_of(nodes, {"yes": np.array(True)}, ("n", 8)), tmp_path)
    assert kept["double"] == "read in a graph within"
    assert types["fourfold"] == TensorProto.FLOAT16


def test_constants_that_are_nodes_and_shapes_that_are_filled(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["c"], name="c", value_float=0.5),
        node("Mul", "x c", "scaled"),
        helper.make_node("Constant", [], ["size"], name="size", value_ints=[8]),
        node("ConstantOfShape", "size", "zeros"),
        node("Add", "scaled zeros", "logits"),
    ]
    kept, types = halved(model_of(nodes, {}, ("n", 8)), tmp_path)
    assert kept == {}
    assert {types["scaled"], types["zeros"]} == {TensorProto.FLOAT16}


def test_an_output_that_others_read_too_keeps_its_name_and_type(tmp_path):
    model = model_of(
        [node("Relu", "x", "first"), node("Mul", "first first", "logits")], {}, ("n", 8)
    )
    model.graph.output.append(helper.make_tensor_value_info("first", TensorProto.FLOAT, None))
    kept, types = halved(model, tmp_path)
    assert kept == {}
    assert (types["first"], types["logits"]) == (TensorProto.FLOAT, TensorProto.FLOAT)


def test_a_block_of_a_transformer(tmp_path):
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 5, 64)).astype(np.float32)}
    kept, types = halved(transformer(), tmp_path, feeds)
    assert set(kept) == {"n1", "attention", "n2"}
    assert types["scores"] == types["gelu"] == TensorProto.FLOAT16


def test_ranges_are_the_largest_magnitudes_over_all_batches():
    model = model_of([node("Neg", "x", "minus"), node("Log", "x", "logits")], {}, ("n", 2))
    batches = [{"x": np.array([[1, 2]], np.float32)}, {"x": np.array([[5, 1]], np.float32)}]
    found = measure_magnitudes(model, ["x", "minus", "logits"], batches)
    assert found == {"x": 5.0, "minus": 5.0, "logits": pytest.approx(np.log(5))}
    found = measure_magnitudes(model, ["logits"], [{"x": np.array([[0, 1]], np.float32)}, *batches])
    assert found == {"logits": np.inf}
    found = measure_magnitudes(
        model, ["logits"], [{"x": np.array([[-1, 1]], np.float32)}, *batches]
    )
    assert np.isnan(found["logits"])
