"""Graphs with traits of other exporters: each is converted rightly, or refused with a reason."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.errors import NumericalError
from passes.common.graph_comparison import compare_graphs, compare_runs
from tests.support.engines import node
from tests.support.foreign_graphs import (
    DRAW,
    IMAGES,
    TOKENS,
    Optimized,
    feed_forward,
    graph,
    optimized_operators,
    residual_network,
    weight,
)

ROWS = DRAW.normal(size=(16, 32)).astype(np.float32)


def add_input(model, name, dtype, shape):
    model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
    return model


def masked_product():
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "y")]
    weights = {"w": weight(32, 16), "b": np.zeros(16, np.float32)}
    model = graph(nodes, weights, {"x": ["N", "T", 32]}, {"y": ["N", "T", 16]})
    return add_input(model, "attention_mask", TensorProto.INT64, ["N", "T"])


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_padding_counts_nowhere(tmp_path_factory, precision):
    x = DRAW.normal(size=(16, 6, 32)).astype(np.float32)
    mask = np.ones((16, 6), np.int64)
    mask[:, 3:] = 0
    model, errors = masked_product(), {}
    for factor in (1, 30):
        padded = x.copy()
        padded[:, 3:] *= factor
        samples = {"x": padded, "attention_mask": mask}
        folder = tmp_path_factory.mktemp("m")
        result = Optimized(model, folder, samples, precision=precision)
        result.samples = {"x": x[:, :3], "attention_mask": mask[:, :3]}
        errors[factor] = result.error()
    assert errors[30] == pytest.approx(errors[1], rel=1e-5)


def test_a_mask_is_not_applied_to_other_axes(tmp_path):
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "y")]
    model = graph(nodes, {"w": weight(8, 8)}, {"x": ["N", 4, 4, 8]}, {"y": None})
    add_input(model, "attention_mask", TensorProto.INT64, ["N", 4])
    x = DRAW.normal(size=(16, 4, 4, 8)).astype(np.float32)
    x[:, 3] *= 50
    mask = np.ones((16, 4), np.int64)
    mask[:, 3] = 0
    assert Optimized(model, tmp_path, {"x": x, "attention_mask": mask}).error() < 0.03


def test_a_limit_of_keep_float_holds_for_the_file_with_its_tables(tmp_path):
    limit = {"data": "c", "metric": "relative_error", "max_drop": 0.1}
    result = Optimized(feed_forward(), tmp_path, {"tokens": TOKENS}, keep_float=limit)
    assert result.summary["embeddings"] == ["table"]
    measured = result.summary["keep_float"]["by_products_kept"][-1]
    assert measured == pytest.approx(result.summary["against_parent"]["features"]["relative_error"])


def test_small_tables_stay_in_float_and_rows_have_their_own_scales(
    tmp_path_factory,
):
    anchors = DRAW.uniform(0, 640, size=(400, 4)).astype(np.float32)
    nodes = [
        node("Gather", "anchors tokens", "boxes"),
        node("MatMul", "boxes w", "y"),
    ]
    model = graph(nodes, {"anchors": anchors, "w": weight(4, 8)}, {}, {"y": None})
    add_input(model, "tokens", TensorProto.INT64, ["N", "T"])
    result = Optimized(model, tmp_path_factory.mktemp("a"), {"tokens": TOKENS})
    assert result.summary["embeddings"] == []
    outlier = feed_forward()
    (tensor,) = [each for each in outlier.graph.initializer if each.name == "table"]
    table = onnx.numpy_helper.to_array(tensor).copy()
    table[7] *= 400
    tensor.CopyFrom(onnx.numpy_helper.from_array(table, "table"))
    result = Optimized(outlier, tmp_path_factory.mktemp("o"), {"tokens": TOKENS})
    assert result.summary["embeddings"] == ["table"]
    assert result.error() < 0.03
    plain = Optimized(
        feed_forward(), tmp_path_factory.mktemp("i"), {"tokens": TOKENS}, ignore=["table"]
    )
    assert plain.summary["embeddings"] == []


@pytest.mark.parametrize("simplify", [True, False])
def test_weights_that_are_inputs_too_become_constants(tmp_path, simplify):
    model = residual_network(9)
    for tensor in model.graph.initializer:
        add_input(model, tensor.name, tensor.data_type, list(tensor.dims))
    model.ir_version = 3
    result = Optimized(model, tmp_path, {"image": IMAGES}, simplify=simplify)
    assert [value.name for value in result.graph.input] == ["image"]
    assert any("inputs with a default value became constants" in note for note in result.notes)
    assert result.error() < 0.04


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_two_products_share_a_weight(tmp_path, precision):
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "r"), node("MatMul", "r w", "y")]
    model = graph(nodes, {"w": weight(32, 32)}, {"x": ["N", 32]}, {"y": ["N", 32]})
    result = Optimized(model, tmp_path, {"x": ROWS}, precision=precision)
    assert result.error() < 0.15
    stored = [each.name for each in result.graph.initializer if "integers" in each.name]
    assert len(stored) == 1


def selected_rows():
    """Return a network whose second product sees only the rows whose flag is set."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("NonZero", "flags", "set"),
        node("Transpose", "set", "rows", perm=[1, 0]),
        node("Squeeze", "rows last", "index"),
        node("Gather", "h index", "chosen"),
        node("MatMul", "chosen v", "y"),
    ]
    weights = {"w": weight(32, 16), "v": weight(16, 6), "last": np.array([1])}
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": None})
    return add_input(model, "flags", TensorProto.FLOAT, ["N"])


def test_a_product_that_no_sample_reaches_stays_in_float(tmp_path_factory):
    for flags in (np.zeros(16, np.float32), np.ones(16, np.float32)):
        samples = {"x": ROWS, "flags": flags}
        result = Optimized(selected_rows(), tmp_path_factory.mktemp("s"), samples)
        assert result.summary["products"] == 1 + int(flags[0])


def test_a_relu_in_a_branch_is_no_part_of_a_product(tmp_path):
    def branch(operator):
        out = helper.make_tensor_value_info(f"o{operator}", TensorProto.FLOAT, None)
        return helper.make_graph([node(operator, "c", f"o{operator}")], operator, [], [out])

    nodes = [
        node("Conv", "x k", "c"),
        helper.make_node(
            "If", ["flag"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")
        ),
    ]
    weights = {"k": weight(4, 3, 3, 3), "flag": np.array(True)}
    model = graph(nodes, weights, {"x": ["N", 3, 16, 16]}, {"y": None})
    result = Optimized(model, tmp_path, {"x": IMAGES}, simplify=False)
    assert result.error() < 0.04


def test_sequences_are_compared_and_texts_are_not(tmp_path):
    nodes = [
        node("MatMul", "x w", "y"),
        node("SplitToSequence", "y", "parts", axis=1),
        node("ArgMax", "y", "class", axis=1, keepdims=0),
        node("Gather", "names class", "label"),
    ]
    model = graph(nodes, {"w": weight(32, 2)}, {"x": ["N", 32]}, {"y": ["N", 2]})
    model.graph.initializer.append(
        helper.make_tensor("names", TensorProto.STRING, [2], [b"a", b"b"])
    )
    model.graph.output.extend(
        [
            helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("label", TensorProto.STRING, ["N"]),
        ]
    )
    result = Optimized(model, tmp_path, {"x": ROWS})
    differences = result.summary["against_parent"]
    assert list(differences) == ["y", "parts"]
    assert 0 < differences["parts"]["relative_error"] < 0.05
    assert any("not compared, as they are no numbers: label" in note for note in result.notes)


def test_an_output_that_became_zero_is_not_equal(tmp_path):
    for name, factor in (("a", 1.0), ("b", 0.0)):
        model = graph(
            [node("Mul", "x f", "y")], {"f": np.float32(factor)}, {"x": ["N", 32]}, {"y": None}
        )
        (tmp_path / name).mkdir()
        onnx.save(model, tmp_path / name / "model.onnx")
    difference = compare_graphs(tmp_path / "a", tmp_path / "b", [{"x": ROWS}], 1)["y"]
    assert difference.cosine == 0.0


@pytest.mark.parametrize("name", ["x.scale", "x.rounded", "x.quantized", "w.integers"])
def test_values_of_a_foreign_graph_have_any_name(tmp_path, name):
    nodes = [
        node("MatMul", "x w", "h"),
        helper.make_node("Relu", ["h"], [name]),
        helper.make_node("MatMul", [name, "v"], ["y"]),
    ]
    weights = {"w": weight(32, 16), "v": weight(16, 8)}
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": ["N", 8]})
    assert Optimized(model, tmp_path, {"x": ROWS}, simplify=False).error() < 0.03


def test_a_table_that_is_an_output_stays(tmp_path):
    model = feed_forward()
    model.graph.output.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [300, 32]))
    result = Optimized(model, tmp_path, {"tokens": TOKENS}, simplify=False)
    assert result.summary["embeddings"] == []


def test_a_weight_behind_a_transpose_is_constant_once_folded(tmp_path):
    nodes = [node("Transpose", "w", "wt", perm=[1, 0]), node("MatMul", "x wt", "y")]
    model = graph(nodes, {"w": weight(16, 32)}, {"x": ["N", 32]}, {"y": ["N", 16]})
    assert Optimized(model, tmp_path, {"x": ROWS}).summary["products"] == 1


def test_what_multiplies_in_float_all_the_same_is_said(tmp_path):
    nodes = [
        node("MatMul", "x w", "h"),
        node("Transpose", "h", "t", perm=[1, 0]),
        node("MatMul", "h t", "y"),
    ]
    model = graph(nodes, {"w": weight(32, 16)}, {"x": [16, 32]}, {"y": None})
    result = Optimized(model, tmp_path, {"x": ROWS})
    assert result.summary["float_operators"] == {"MatMul": 1}
    assert any("without an integer form, so in float: 1 MatMul" in note for note in result.notes)


def test_external_data_of_the_parent_is_not_copied_and_a_tokenizer_is(tmp_path, monkeypatch):
    save = onnx.save

    def save_external(model, path, **options):
        if path.parent.name == "parent":
            options = {"location": "model.onnx_data", "size_threshold": 256}
            options["save_as_external_data"] = True
            (path.parent / "tokenizer.json").write_text("{}")
        save(model, path, **options)

    monkeypatch.setattr(onnx, "save", save_external)
    result = Optimized(feed_forward(), tmp_path, {"tokens": TOKENS})
    assert {file.name for file in result.out.iterdir()} == {"model.onnx", "tokenizer.json"}
    assert result.error() < 0.03
    operators = optimized_operators(result.out / "model.onnx", tmp_path)
    assert "MatMulIntegerToFloat" in operators


def test_rows_that_appear_where_there_were_none_are_a_difference():
    expected, actual = np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32)
    batch = {"x": ROWS}
    for rows, others in ((actual, 1), (expected, 0)):
        found = compare_runs(lambda _: {"boxes": expected}, lambda _, r=rows: {"boxes": r}, [batch])
        assert found["boxes"].other_shapes == others


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_and_can_be_ignored(
    tmp_path_factory, precision, damage
):
    """Integers have no NaN: the result would be finite where the parent's is not."""
    weights = {"w": weight(32, 32), "v": weight(32, 8)}
    weights["v"][3, 2] = damage
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h v", "y")]
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": ["N", 8]})
    fields = {"precision": precision, "simplify": False}
    with pytest.raises(NumericalError, match="NaN or infinite in y") as error:
        Optimized(model, tmp_path_factory.mktemp("r"), {"x": ROWS}, **fields)
    assert "`ignore: [y]`" in str(error.value.remedy)
    result = Optimized(model, tmp_path_factory.mktemp("i"), {"x": ROWS}, ignore=["y"], **fields)
    assert not np.isfinite(result.outputs()[1][:, 2]).any()
    nodes = [node("MatMul", "x v", "y")]
    model = graph(nodes, {"v": weights["v"]}, {"x": ["N", 32]}, {"y": ["N", 8]})
    with pytest.raises(NumericalError, match="NaN or infinite in y") as error:
        Optimized(model, tmp_path_factory.mktemp("a"), {"x": ROWS}, **fields)
    assert "ignore" not in str(error.value.remedy)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_products_without_values_stay(tmp_path, precision):
    """As exporters write a Concat with nothing."""
    nodes = [
        node("MatMul", "x none", "n"),
        node("MatMul", "x w", "h"),
        node("Concat", "n h", "y", axis=1),
    ]
    weights = {"none": np.zeros((32, 0), np.float32), "w": weight(32, 8)}
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": ["N", 8]})
    result = Optimized(model, tmp_path, {"x": ROWS}, precision=precision)
    assert 0 < result.error() < 0.2


def test_a_file_of_version_3_whose_weights_are_no_inputs_is_upgraded(tmp_path):
    nodes = [node("Conv", "x k", "c"), node("Relu", "c", "y")]
    model = graph(nodes, {"k": weight(4, 3, 3, 3)}, {"x": ["N", 3, 16, 16]}, {"y": None}, opset=7)
    model.ir_version = 3
    assert Optimized(model, tmp_path, {"x": IMAGES}).error() < 0.05


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_the_long_form_of_the_standard_domain_is_read(tmp_path, precision):
    nodes = [
        node("MatMul", "x w", "h", domain="ai.onnx"),
        node("Relu", "h", "y"),
    ]
    model = graph(nodes, {"w": weight(32, 64)}, {"x": ["N", 32]}, {"y": ["N", 64]}, 17)
    model.opset_import[0].domain = "ai.onnx"
    result = Optimized(model, tmp_path, {"x": ROWS}, precision=precision, simplify=False)
    before, after = result.sizes()
    assert after < 0.65 * before
    assert 0 < result.error() < 0.1


@pytest.mark.parametrize("simplify", [True, False])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_factors_of_products_and_transposed_operands_are_written_out(tmp_path, precision, simplify):
    """A shared weight with other factors, a bias that is computed, and operands read by columns."""
    nodes = [
        node("Gemm", "x w b", "h", alpha=0.5, beta=2.0),
        node("Transpose", "h", "columns", perm=[1, 0]),
        node("Gemm", "columns w h", "g", transA=1, beta=-1.0),
        node("Gemm", "g v b", "y", alpha=3.0, transB=1),
    ]
    weights = {"w": weight(32, 32), "b": weight(32), "v": weight(32, 32)}
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": ["N", 32]}, 17)
    result = Optimized(model, tmp_path, {"x": ROWS}, precision=precision, simplify=simplify)
    assert result.summary["products"] == 3
    assert 0 < result.error() < (0.05 if precision == "int8" else 0.2)


def test_an_output_without_an_axis_of_samples_is_compared_as_a_whole():
    # Its first value is small, and of another sign: alone, its relative error would be 2.
    expected, actual = np.array([0.01, 10.0]), np.array([-0.01, 10.0])
    for shape, inputs in (((2,), 32), ((2,), 2), ((2, 1), 1)):
        outputs = ({"y": values.reshape(shape)} for values in (expected, actual))
        runs = [lambda _, each=each: each for each in outputs]
        difference = compare_runs(*runs, [{"x": np.zeros((inputs, 3))}])["y"]
        assert difference.relative_error == pytest.approx(0.002, rel=0.01)
        assert difference.cosine > 0.999
