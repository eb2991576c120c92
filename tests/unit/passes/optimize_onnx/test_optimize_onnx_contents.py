"""The contents of a graph are found when a pipeline is planned, and shown by `show` and `lint`."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.engine.contract import PlanContext
from compressor.errors import ModelError, RequirementError
from compressor.graphs.contents import graph_contents
from compressor.graphs.files import load_typed_model
from compressor.runtimes.formats import format_named
from passes.optimize_onnx.config import OptimizeOnnxConfig
from passes.optimize_onnx.step import OptimizeOnnx
from passes.tensorrt.config import TensorRTConfig
from passes.tensorrt.planned_graph import check_planned_graph
from tests.support.cli import cli
from tests.support.engines import node
from tests.support.foreign_graphs import Optimized, branched, graph, half, residual_network, weight

CALIBRATION = {"data": "c"}


def plan(model, folder, **fields):
    """Return the estimate of a step on a graph, as `plan` asks for it."""
    onnx.save(model, folder / "model.onnx")
    facts = format_named("onnx").facts(folder)
    config = OptimizeOnnxConfig.model_validate_json(json.dumps(fields))
    return OptimizeOnnx().estimate(config, facts, PlanContext({"parent": facts}))


def product(**initializers):
    weights = {"w": weight(32, 16), **initializers}
    return graph([node("MatMul", "x w", "y")], weights, {"x": ["N", 32]}, {"y": ["N", 16]})


def quantized(scheme):
    """Return a graph that holds integers in one of the usual ways."""
    scale, zero = np.float32(0.1), np.int8(0)
    integers = weight(32, 16).astype(np.int8)
    constants = {"s": scale, "z": zero, "q": integers, "b": np.zeros((16, 1, 16), np.uint8)}
    constants["scales"] = np.ones(16, np.float32)
    nodes = {
        "qdq": [
            node("QuantizeLinear", "x s z", "i"),
            node("DequantizeLinear", "i s z", "r"),
            node("DequantizeLinear", "q s z", "w"),
            node("MatMul", "r w", "y"),
        ],
        "weights": [node("DequantizeLinear", "q s z", "w"), node("MatMul", "x w", "y")],
        "dynamic": [node("DynamicQuantizeLinear", "x", "i")],
        "nbits": [
            helper.make_node(
                "MatMulNBits",
                ["x", "b", "scales"],
                ["y"],
                domain="com.microsoft",
                K=32,
                N=16,
                bits=4,
                block_size=32,
            )
        ],
    }[scheme]
    if scheme == "dynamic":
        nodes[0].output.extend(["step", "offset"])
        nodes += [node("MatMulInteger", "i q offset", "y")]
    opsets = [helper.make_opsetid("com.microsoft", 1)]
    return graph(nodes, constants, {"x": ["N", 32]}, {"y": None}, opsets=opsets)


@pytest.mark.parametrize(
    ("scheme", "label"),
    [
        ("qdq", "DequantizeLinear around float operators: 2 DequantizeLinear, 1 QuantizeLinear"),
        ("weights", "integers as weights alone: 1 DequantizeLinear"),
        ("dynamic", "activations rounded at run time: 1 DynamicQuantizeLinear, 1 MatMulInteger"),
        ("nbits", "integers as weights alone: 1 MatMulNBits"),
    ],
)
@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_a_quantized_graph_is_refused_by_the_plan(tmp_path, scheme, label, precision):
    fields = {"precision": precision, "calibration": CALIBRATION}
    with pytest.raises(RequirementError) as error:
        plan(quantized(scheme), tmp_path, **fields)
    assert "the graph is quantized already" in error.value.what
    assert label in error.value.what
    assert "start from the float graph" in error.value.remedy
    plan(quantized(scheme), tmp_path, precision="fp32")  # as the remedy says


def test_a_step_on_a_planned_graph_of_integers_is_refused(tmp_path):
    estimate = plan(residual_network(), tmp_path, calibration=CALIBRATION)
    config = OptimizeOnnxConfig(precision="int4")
    with pytest.raises(RequirementError, match="quantized already"):
        OptimizeOnnx().estimate(config, estimate.model, SimpleNamespace())
    halved = plan(residual_network(), tmp_path, precision="fp16", calibration=CALIBRATION)
    OptimizeOnnx().estimate(config, halved.model, SimpleNamespace())
    config = OptimizeOnnxConfig.model_validate({"precision": "fp16", "calibration": CALIBRATION})
    with pytest.raises(RequirementError, match="is in FP16 already"):
        OptimizeOnnx().estimate(config, halved.model, SimpleNamespace())


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_graph_without_products_is_refused_by_the_plan(tmp_path, precision):
    model = graph([node("Relu", "x", "y")], {}, {"x": ["N", 4]}, {"y": ["N", 4]})
    with pytest.raises(RequirementError, match="with a constant float weight") as error:
        plan(model, tmp_path, precision=precision, calibration=CALIBRATION)
    assert error.value.remedy == "set `precision: fp16`"
    plan(model, tmp_path, precision="fp16", calibration=CALIBRATION)


def test_a_graph_of_lstm_layers_alone_is_planned_for_onnxruntime(tmp_path):
    nodes = [helper.make_node("LSTM", ["x", "k", "r"], ["y"], name="lstm", hidden_size=4)]
    weights = {"k": weight(1, 16, 8), "r": weight(1, 16, 4)}
    model = graph(nodes, weights, {"x": ["T", "N", 8]}, {"y": None})
    plan(model, tmp_path, calibration=CALIBRATION)
    with pytest.raises(RequirementError, match="no convolution or matrix product"):
        plan(model, tmp_path, calibration=CALIBRATION, target="tensorrt")


def test_int4_of_convolutions_alone_is_sent_to_int8(tmp_path):
    model = graph([node("Conv", "x k", "y")], {"k": weight(4, 3, 3, 3)}, {"x": None}, {"y": None})
    with pytest.raises(RequirementError, match="no matrix product") as error:
        plan(model, tmp_path, precision="int4")
    assert "`precision: int8`, which converts convolutions too" in error.value.remedy
    plan(model, tmp_path, precision="int8", calibration=CALIBRATION)


def test_a_weight_that_simplification_folds_counts_where_it_is_folded(tmp_path):
    nodes = [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t", "y")]
    model = graph(nodes, {"w": weight(16, 32)}, {"x": ["N", 32]}, {"y": None})
    with pytest.raises(RequirementError, match="before it is simplified") as error:
        plan(model, tmp_path, precision="int4", simplify=False)
    assert error.value.remedy == "leave out `simplify: false`"
    plan(model, tmp_path, precision="int4")


def test_a_graph_in_fp16_is_planned_for_integers_but_not_again_for_fp16(tmp_path):
    estimate = plan(half(product()), tmp_path, precision="int4")
    with pytest.raises(RequirementError, match="the graph is in FP16 already") as error:
        plan(half(product()), tmp_path, precision="fp16", calibration=CALIBRATION)
    assert "leave the step out" in error.value.remedy
    float_size = plan(product(), tmp_path, precision="int4").disk_bytes
    assert estimate.disk_bytes == pytest.approx(float_size, rel=0.3)


def test_bfloat16_is_refused_with_its_reason(tmp_path):
    model = product()
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor)
    words = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    bf16 = helper.make_tensor("w", TensorProto.BFLOAT16, values.shape, words, raw=True)
    tensor.CopyFrom(bf16)
    with pytest.raises(RequirementError, match="bfloat16, which ONNX Runtime does not compute"):
        plan(model, tmp_path, precision="int4")


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_fp64_is_refused_with_its_reason(tmp_path, precision):
    model = graph([node("MatMul", "x w", "y")], {"w": np.eye(4)}, {"x": ["N", 4]}, {"y": ["N", 4]})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(RequirementError, match="in FP64, and only FP32 and FP16") as error:
        plan(model, tmp_path, precision=precision, calibration=CALIBRATION)
    assert error.value.remedy.startswith("export the model in float32, or set `precision: fp32`")
    plan(model, tmp_path, precision="fp32")


def test_a_metric_of_keep_float_that_does_not_fit_is_refused_by_the_plan(tmp_path):
    keep = {"data": "c", "metric": "agreement:nothing", "max_drop": 0.1}
    with pytest.raises(RequirementError, match="scores `nothing`") as error:
        plan(residual_network(), tmp_path, calibration=CALIBRATION, keep_float=keep)
    assert "agreement:scores" in error.value.remedy or "agreement" in error.value.remedy
    [_, need] = OptimizeOnnx().data_needs(
        OptimizeOnnxConfig.model_validate(
            {"calibration": CALIBRATION, "keep_float": {**keep, "metric": "top1:scores"}}
        )
    )
    assert (need.labels, need.unlabelled) == ("metric: top1:scores", "metric: relative_error")


def test_show_and_lint_tell_what_a_graph_is(tmp_path):
    for name, model, expected in (
        ("half", half(product()), ["constants float16 1.02 kB"]),
        ("qdq", quantized("qdq"), ["quantized QuantizeLinear and DequantizeLinear around"]),
        (
            "branched",
            branched(),
            [
                "products with weights 1 MatMul",
                "control flow If gate (2 products in its branches)",
                "operators of com.microsoft 1 QuickGelu",
            ],
        ),
    ):
        file = tmp_path / f"{name}.onnx"
        onnx.save(model, file)
        shown = " ".join(cli("show", file).stdout.split())
        linted = cli("lint", file).stdout.replace(":", "")
        for text in expected:
            assert text in shown
            assert text in linted


@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_products_in_branches_stay_in_float_and_are_named(tmp_path, precision):
    x = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    fields = {"precision": precision, "calibration": {"data": "c", "batch_size": 16}}
    result = Optimized(branched(), tmp_path, {"x": x}, **fields)
    assert result.summary["branches"] == {"If gate": 2}
    form = (
        "computed in FP32, with weights from 1 kB on in FP16"
        if precision == "fp16"
        else "left in float"
    )
    assert f"{form}: If gate: 2 products in its branches" in result.notes
    branches = next(each for each in result.graph.node if each.op_type == "If").attribute
    inner = [tensor for branch in branches for tensor in branch.g.initializer]
    stored = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    assert {tensor.data_type for tensor in inner} == {stored}
    assert result.error() < 0.15


def test_maps_and_sparse_tensors_are_refused_by_the_plan(tmp_path):
    model = product()
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    maps = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    model.graph.node.append(
        helper.make_node("ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=range(16))
    )
    model.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(maps)))
    with pytest.raises(RequirementError, match="output z holds maps") as caught:
        plan(model, tmp_path, precision="int4")
    assert "'zipmap': False" in str(caught.value.remedy)
    with pytest.raises(ModelError, match="output z holds maps"):
        load_typed_model(tmp_path)

    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    sparse = product()
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [32, 16]))
    with pytest.raises(RequirementError, match="1 sparse tensor"):
        plan(sparse, tmp_path, precision="int4")


def test_inputs_of_text_are_refused_by_the_plan(tmp_path):
    model = product()
    model.graph.input.append(helper.make_tensor_value_info("city", TensorProto.STRING, ["N"]))
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.input.append(helper.make_value_info("more", kind))
    with pytest.raises(RequirementError, match=r"city is no tensor of numbers \(text\)") as caught:
        plan(model, tmp_path, precision="int4")
    assert "more is no tensor of numbers (optional)" in str(caught.value)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_functions_of_the_file_are_converted_too(tmp_path, precision):
    """As exporters write graphs whose modules are functions."""
    body = [node("MatMul", "a b", "c"), node("Relu", "c", "d")]
    opset = helper.make_opsetid("", 18)
    dense = helper.make_function("own", "Dense", ["a", "b"], ["d"], body, [opset])
    nodes = [
        helper.make_node("Dense", ["x", "w"], ["h"], domain="own"),
        helper.make_node("Dense", ["h", "v"], ["y"], domain="own"),
    ]
    weights = {"w": weight(32, 64), "v": weight(64, 16)}
    opsets = [helper.make_opsetid("own", 1)]
    model = graph(
        nodes, weights, {"x": ["N", 32]}, {"y": ["N", 16]}, 18, opsets=opsets, functions=[dense]
    )
    assert graph_contents(model).products == {"MatMul": 2}
    x = weight(16, 32) * 5
    result = Optimized(model, tmp_path, {"x": x}, precision=precision)
    before, after = result.sizes()
    assert after < 0.6 * before
    assert 0 < result.error() < 0.2


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.65), ("int4", 0.5)])
def test_a_head_that_is_tied_to_the_embeddings_is_quantized(tmp_path, precision, share):
    """The simplifier keeps the Transpose of the table, which is read as embeddings too."""
    nodes = [
        node("Gather", "table tokens", "rows"),
        node("Transpose", "table", "head", perm=[1, 0]),
        node("MatMul", "rows head", "scores"),
    ]
    model = graph(nodes, {"table": weight(300, 32) * 3}, {}, {"scores": ["N", "T", 300]})
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "T"])
    model.graph.input.append(tokens)
    samples = {"tokens": np.arange(96).reshape(8, 12)}
    result = Optimized(model, tmp_path, samples, precision=precision)
    before, after = result.sizes()
    assert after < share * before
    assert (result.summary["products"], result.summary["embeddings"]) == (1, ["table"])
    assert 0 < result.error() < 0.2


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_scales_beyond_float16_are_kept(tmp_path, calibration):
    weights = {"w": weight(32, 64) * np.float32(1e7), "f": np.float32(1e-7)}
    nodes = [node("MatMul", "x w", "h"), node("Mul", "h f", "y")]
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": ["N", 64]})
    fields = {"precision": "int4", "simplify": False, "calibration": calibration}
    result = Optimized(model, tmp_path, {"x": weight(16, 32) * 5}, **fields)
    assert 0 < result.error() < 0.2


@pytest.mark.parametrize("factor", [1e-7, 1e-12, 1e-30])
@pytest.mark.parametrize(
    ("calibration", "target"),
    [(None, "onnxruntime"), (CALIBRATION, "onnxruntime"), (CALIBRATION, "tensorrt")],
)
def test_scales_below_float16_are_kept(tmp_path, calibration, target, factor):
    weights = {"w": weight(64, 32) * np.float32(factor), "f": np.float32(1 / factor)}
    nodes = [node("MatMul", "x w", "h"), node("Mul", "h f", "y")]
    model = graph(nodes, weights, {"x": ["N", 64]}, {"y": ["N", 32]})
    fields = {"precision": "int4", "calibration": calibration, "target": target}
    result = Optimized(model, tmp_path, {"x": weight(16, 64) * 5}, **fields)
    assert 0 < result.error() < 0.2


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("stored", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_constants_that_are_cast_count_as_what_they_are_computed_in(tmp_path, stored, precision):
    nodes = [
        node("Cast", "stored", "w", to=TensorProto.FLOAT),
        node("MatMul", "x w", "y"),
    ]
    model = graph(nodes, {}, {"x": ["N", 64]}, {"y": ["N", 32]})
    w = weight(64, 32)
    model.graph.initializer.append(helper.make_tensor("stored", stored, w.shape, w.ravel()))
    contents = graph_contents(model)
    assert contents.computed_float_type == "float32"
    assert contents.stored_products == contents.products == {"MatMul": 1}
    result = Optimized(
        model, tmp_path, {"x": weight(16, 64) * 5}, precision=precision, simplify=False
    )
    assert result.error() < 0.1
    assert result.operators()[0] != "Cast" or precision == "fp16"


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_a_graph_of_trees_is_refused_by_the_plan(tmp_path, precision):
    """Its parameters are attributes of operators of ai.onnx.ml, for which there is one form."""
    trees = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml")
    opsets = [helper.make_opsetid("ai.onnx.ml", 3)]
    model = graph([trees], {}, {"x": ["N", 32]}, {"y": ["N", 1]}, opsets=opsets)
    with pytest.raises(RequirementError, match=r"1 TreeEnsembleRegressor of ai\.onnx\.ml") as error:
        plan(model, tmp_path, precision=precision, calibration=CALIBRATION)
    assert "leave this step out" in str(error.value.remedy)
    assert "fp16" not in str(error.value.remedy)
    config = TensorRTConfig.model_validate({"targets": ("sm86",), "precision": "fp32"})
    with pytest.raises(RequirementError, match="which TensorRT does not have: 1 TreeEnsemble"):
        check_planned_graph(config, format_named("onnx").facts(tmp_path))


def test_constants_of_one_name_are_refused_by_the_plan(tmp_path):
    model = product()
    model.graph.initializer.append(model.graph.initializer[0])
    name = model.graph.initializer[0].name
    with pytest.raises(RequirementError, match=f"constants share a name.*: {name}"):
        plan(model, tmp_path, precision="fp16", calibration=CALIBRATION)
