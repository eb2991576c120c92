"""Conversion of graphs to INT4 and FP16, and what stays in FP32."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from compressor.errors import NumericalError, RequirementError
from compressor.runtimes.tensorrt.manifest import read_verified_manifest
from tests.support.engines import (
    FP16,
    NETWORKS,
    SAMPLES,
    Arrays,
    build_engine,
    fields_of,
    model_of,
    node,
    save_parent,
    transformer,
    weight,
)


def test_norms_and_softmax_stay_in_fp32_and_products_do_not(tmp_path):
    parent = save_parent(transformer(), tmp_path / "onnx")
    fields = fields_of("transformer")
    summary = build_engine(fields, parent, SAMPLES["transformer"], tmp_path / "out")
    assert [(row["operator"], row["reason"]) for row in summary["kept_fp32"]] == [
        ("LayerNormalization", "sums over many values"),
        ("Softmax", "sums over many values"),
        ("LayerNormalization", "sums over many values"),
    ]
    typed = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "out" / "model.onnx")).graph
    types = {value.name: value.type.tensor_type.elem_type for value in typed.value_info}
    products = [node.output[0] for node in typed.node if node.op_type == "MatMul"]
    assert len(products) == 8
    assert {types[name] for name in products} == {TensorProto.FLOAT16}


def test_float_weights_are_stored_as_int4_in_blocks(tmp_path):
    parent = save_parent(transformer(opset=21), tmp_path / "onnx")
    fields = fields_of("transformer", precision="int4", block_size=32)
    summary = build_engine(fields, parent, SAMPLES["transformer"], tmp_path / "out")
    assert (summary["int4_weights"], summary["not_int4"]) == (6, [])
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    stored = [value for value in graph.initializer if value.data_type == TensorProto.INT4]
    assert [tuple(value.dims) for value in stored] == [(64, 64)] * 4 + [(64, 128), (128, 64)]
    assert summary["layer_types"]["int4"] == 6
    assert 0.98 < summary["against_parent"]["cosine"] < 0.9999


@pytest.mark.parametrize(
    ("network", "fields", "opset", "message"),
    [
        ("transformer", {}, 20, "the graph has opset 20, and INT4 needs opset 21"),
        ("cnn", {"block_size": 128}, 21, "no weight of the graph can be stored in blocks of 128"),
    ],
)
def test_a_graph_without_int4_weights_is_refused(network, fields, opset, message, tmp_path):
    model = NETWORKS[network]()
    model.opset_import[0].version = opset
    parent = save_parent(model, tmp_path / "onnx")
    fields = fields_of(network, precision="int4", **fields)
    with pytest.raises(RequirementError, match=message):
        build_engine(fields, parent, SAMPLES[network], tmp_path / "out")


def overflowing():
    """Return two products with small results, and about 1e5 between them."""
    nodes = [node("MatMul", "x w", "large"), node("MatMul", "large small", "logits")]
    return model_of(nodes, {"w": 2000 * weight(16, 16), "small": weight(16, 4) / 2000}, ("n", 16))


LARGE = Arrays(x=50 * np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32))
LARGE_PROFILES = {"x": {"min": (1, 16), "opt": (1, 16), "max": (4, 16)}}


def test_nodes_that_would_overflow_stay_in_fp32_and_are_reported(tmp_path):
    parent = save_parent(overflowing(), tmp_path / "onnx")
    fields = {**FP16, "profiles": LARGE_PROFILES}
    summary = build_engine(fields, parent, LARGE, tmp_path / "out")
    assert summary["largest_magnitude"] > 65504
    assert [row["node"] for row in summary["kept_fp32"]] == ["large", "logits"]
    assert all("large reaches" in row["reason"] for row in summary["kept_fp32"])
    assert summary["kept_fp32_reasons"] == {"overflows FP16": 2}
    assert summary["against_parent"]["cosine"] > 0.99999


def test_products_kept_in_fp32_have_no_kernels_on_an_old_gpu(tmp_path):
    parent = save_parent(overflowing(), tmp_path / "onnx")
    fields = {**FP16, "targets": ("sm75",), "profiles": LARGE_PROFILES}
    with pytest.raises(
        RequirementError, match="MatMul large: FP32 products have no kernels on sm75"
    ) as caught:
        build_engine(fields, parent, LARGE, tmp_path / "out")
    assert "`data_max`" in caught.value.remedy


def test_a_graph_that_computes_nan_is_an_error(tmp_path):
    model = model_of([node("Log", "x", "log"), node("Relu", "log", "logits")], {}, ("n", 4))
    samples = Arrays(x=np.full((6, 4), -1, np.float32))
    fields = {**FP16, "profiles": {"x": {"min": (1, 4), "opt": (1, 4), "max": (4, 4)}}}
    with pytest.raises(NumericalError, match="computes NaN in FP32 on samples of 'some': log"):
        build_engine(fields, save_parent(model, tmp_path / "onnx"), samples, tmp_path / "out")


def bytes_model():
    nodes = [
        node("Reshape", "x flat", "rows"),
        node("Cast", "rows", "cast", to=1),
        node("MatMul", "cast w", "logits"),
    ]
    model = model_of(nodes, {"flat": np.array([-1, 16]), "w": weight(16, 4)}, ("n", 4, 4))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


BYTES = Arrays(x=np.random.default_rng(0).integers(0, 256, (6, 4, 4)).astype(np.uint8))
BYTES_FIELDS = {**FP16, "profiles": {"x": {"min": (1, 4, 4), "opt": (1, 4, 4), "max": (4, 4, 4)}}}


def test_byte_inputs_are_cast_where_they_enter_the_graph(tmp_path):
    parent = save_parent(bytes_model(), tmp_path / "onnx")
    build_engine(BYTES_FIELDS, parent, BYTES, tmp_path / "out")
    assert read_verified_manifest(tmp_path / "out").inputs[0].dtype == "uint8"


def test_arithmetic_on_byte_inputs_is_refused(tmp_path):
    model = bytes_model()
    model.graph.node[0].op_type = "Neg"
    del model.graph.node[0].input[1:]
    with pytest.raises(
        RequirementError, match="input x: it is UINT8, and Neg rows computes with it"
    ):
        build_engine(BYTES_FIELDS, save_parent(model, tmp_path / "neg"), BYTES, tmp_path / "out")
