"""A converted graph computes what its parent does, or the step says that it does not."""

import numpy as np
import onnx_ir as ir
import pytest

from compressor.errors import NumericalError, ParityError
from compressor.graphs import files
from compressor.graphs.values import constant_array
from passes.optimize_onnx import prepare, verification
from passes.optimize_onnx import run as verification_run
from tests.support.engines import node
from tests.support.foreign_graphs import (
    DRAW,
    IMAGES,
    TOKENS,
    Optimized,
    feed_forward,
    graph,
    residual_network,
    weight,
)

ROWS = DRAW.normal(size=(16, 32)).astype(np.float32)


@pytest.fixture
def broken_simplifier(monkeypatch):
    """Make simplification double the first convolution or product."""
    simplify = prepare.simplify

    def simplify_wrongly(model):
        result = simplify(model)
        products = [each for each in result.model.graph if each.op_type in {"Conv", "MatMul"}]
        tensor = products[0].inputs[1]
        doubled = constant_array(tensor) * np.float32(2)
        tensor.const_value = ir.tensor(doubled, name=tensor.name)
        return result

    monkeypatch.setattr(prepare, "simplify", simplify_wrongly)


@pytest.mark.usefixtures("broken_simplifier")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_simplifier_that_changes_the_outputs_is_an_error(tmp_path_factory, precision):
    folder = tmp_path_factory.mktemp("b")
    with pytest.raises(ParityError, match=r"simplified graph does not compute .* scores") as error:
        Optimized(residual_network(), folder, {"image": IMAGES}, precision=precision)
    assert list((folder / "out").iterdir()) == []
    remedy = "leave this step out" if precision == "fp32" else "set `simplify: false`"
    assert remedy in str(error.value.remedy)
    if precision != "fp32":
        folder = tmp_path_factory.mktemp("s")
        fields = {"precision": precision, "simplify": False}
        assert Optimized(residual_network(), folder, {"image": IMAGES}, **fields).error() < 0.05


@pytest.mark.usefixtures("broken_simplifier")
def test_random_inputs_find_it_where_there_are_no_samples(tmp_path):
    with pytest.raises(ParityError, match="features"):
        Optimized(feed_forward(), tmp_path, {"tokens": TOKENS}, precision="int4", calibration=None)


def test_a_choice_that_hangs_on_rounding_is_no_difference(tmp_path):
    # ArgMax of equal sums: any other order of the terms may choose another class.
    nodes = [node("MatMul", "x w", "h"), node("ArgMax", "h", "y", axis=1, keepdims=0)]
    w = np.repeat(weight(32, 1), 64, axis=1)
    model = graph(nodes, {"w": w}, {"x": ["N", 32]}, {"y": None})
    model.graph.output[0].type.tensor_type.elem_type = 7
    assert (
        "y" in Optimized(model, tmp_path, {"x": ROWS}, precision="fp32").summary["against_parent"]
    )


def test_a_graph_that_is_read_wrongly_is_no_noise(tmp_path, monkeypatch):
    load = prepare.load_typed_model

    def load_wrongly(folder):
        model = load(folder)
        tensor = model.graph.initializers["w"]
        tensor.const_value = ir.tensor(constant_array(tensor) * np.float32(2), name="w")
        return model

    monkeypatch.setattr(prepare, "load_typed_model", load_wrongly)
    monkeypatch.setattr(files, "load_typed_model", load_wrongly)
    model = graph([node("MatMul", "x w", "y")], {"w": weight(32, 8)}, {"x": ["N", 32]}, {"y": None})
    with pytest.raises(ParityError, match="does not compute what its parent does"):
        Optimized(model, tmp_path, {"x": ROWS}, precision="fp32")


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        (
            [
                node("MatMul", "x w", "h"),
                node("Abs", "h", "size"),
                node("Mul", "size tenth", "divisor"),
                node("MatMul", "x v", "g"),
                node("Div", "g divisor", "y"),
            ],
            {"tenth": np.array([1e-7] * 4 + [1] * 4, np.float32)},
            "divisor, a divisor, is down to",
        ),
        (
            [node("MatMul", "x w", "h"), node("Mul", "h tenth", "g"), node("Mul", "g large", "y")],
            {"tenth": np.full(8, 1e-7, np.float32), "large": np.full(8, 1e4, np.float32)},
            "only",
        ),
    ],
    ids=["divisor", "values"],
)
def test_what_vanishes_in_fp16_stays_in_fp32(tmp_path, nodes, weights, reason):
    weights = {"w": weight(32, 8) + 0.3, "v": weight(32, 8), **weights}
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": ["N", 8]})
    result = Optimized(model, tmp_path, {"x": np.abs(ROWS)}, precision="fp16", simplify=False)
    assert any(reason in row["reason"] for row in result.summary["kept_fp32"])
    assert result.error() < 0.01


def test_fp16_that_is_not_finite_is_refused_with_a_limit_that_helps(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(verification, "compare_graphs", _not_finite)
    with pytest.raises(NumericalError, match="NaN or infinity in y, and its parent") as error:
        Optimized(_product(), tmp_path_factory.mktemp("n"), {"x": ROWS}, precision="fp16")
    assert "data_max: 2047" in str(error.value.remedy)


def _not_finite(parent, changed, feeds, threads):
    if changed.name == "out":
        raise NumericalError("the converted graph computes NaN or infinity in y")
    return {}


def test_a_result_far_from_the_parent_is_told_with_what_is_closer(tmp_path_factory):
    # The output is a small difference of large sums.
    w = np.repeat(weight(32, 1), 2, axis=1)
    w[:, 1] += 0.02 * weight(32, 1)[:, 0]
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h v", "y")]
    weights = {"w": w, "v": np.array([[1.0], [-1.0]], np.float32)}
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": ["N", 1]})
    notes, errors = {}, {}
    for precision, extra in (("int4", {"block_size": 32}), ("int8", {})):
        result = Optimized(
            model, tmp_path_factory.mktemp("f"), {"x": ROWS}, precision=precision, **extra
        )
        notes[precision] = [note for note in result.notes if "far from the parent" in note]
        errors[precision] = result.error()
    assert "y (relative error" in notes["int4"][0]
    assert "`precision: int8` is closer" in notes["int4"][0]
    assert errors["int8"] < errors["int4"]


def _product():
    return graph(
        [node("MatMul", "x w", "y")], {"w": weight(32, 8)}, {"x": ["N", 32]}, {"y": ["N", 8]}
    )


def test_outputs_that_were_all_zero_may_not_become_others(tmp_path, monkeypatch):
    nodes = [node("MatMul", "x w", "h"), node("Mul", "h zero", "y")]
    weights = {"w": weight(32, 8), "zero": np.zeros((1,), np.float32)}
    model = graph(nodes, weights, {"x": ["N", 32]}, {"y": ["N", 8]})
    prepare = verification_run.prepare_graph

    def wrong(*arguments):
        prepared = prepare(*arguments)
        prepared.graph.initializers["zero"].const_value = ir.tensor(np.ones((1,), np.float32))
        return prepared

    monkeypatch.setattr(verification_run, "prepare_graph", wrong)
    monkeypatch.setattr(verification, "prepare_graph", wrong)
    with pytest.raises(ParityError, match="y "):
        Optimized(model, tmp_path, {"x": ROWS}, precision="int8", simplify=False)


def test_random_numbers_are_named_where_outputs_differ(tmp_path):
    nodes = [
        node("RandomNormalLike", "x", "noise", scale=5.0),
        node("Add", "x noise", "s"),
        node("MatMul", "s w", "y"),
    ]
    model = graph(nodes, {"w": weight(32, 8)}, {"x": ["N", 32]}, {"y": ["N", 8]})
    notes = Optimized(model, tmp_path, {"x": ROWS}).notes
    assert any("as RandomNormalLike draw random numbers" in note for note in notes)
    assert not any("far from the parent" in note for note in notes)
