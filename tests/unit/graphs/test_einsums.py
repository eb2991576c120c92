"""Einsum with a constant weight becomes a matrix product of the same results."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from compressor.graphs.contents import graph_contents
from compressor.graphs.einsums import product_equation, split_einsums
from compressor.graphs.files import typed_model
from tests.support.engines import node
from tests.support.foreign_graphs import graph, weight


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("bti,io->bto", [8, 4]),
        ("bti, oi -> bto", [4, 8]),
        ("...i,io->...o", [8, 4]),
        ("bti,ind->btnd", [8, 2, 3]),
        ("bti,ndi->btdn", [2, 3, 8]),
    ],
)
@pytest.mark.parametrize("weight_first", [False, True])
def test_an_einsum_of_a_weight_is_a_product(equation, shape, weight_first):
    operands = "x w"
    if weight_first:
        left, _, result = equation.partition("->")
        equation = ",".join(reversed(left.split(","))) + "->" + result
        operands = "w x"
    check(equation, operands, shape, [2, 5, 8])


def test_several_summed_axes_are_joined():
    check("btnd,ndh->bth", "x w", [4, 2, 6], [2, 5, 4, 2])
    check("btnd,hdn->bth", "x w", [6, 2, 4], [2, 5, 4, 2])


def check(equation, operands, shape, input_shape):
    nodes = [node("Einsum", operands, "y", equation=equation)]
    dims = ["B", "T", *input_shape[2:]]
    proto = graph(nodes, {"w": weight(*shape)}, {"x": dims}, {"y": None})
    assert graph_contents(proto).products == {"Einsum": 1}
    model = typed_model(proto)
    assert split_einsums(model) == 1
    assert [each.op_type for each in model.graph if each.op_type != "Reshape"] == ["MatMul"]
    feeds = {"x": np.random.default_rng(0).normal(size=input_shape).astype(np.float32)}
    expected, actual = (
        ort.InferenceSession(each.SerializeToString()).run(None, feeds)[0]
        for each in (proto, ir.to_proto(model))
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
    "equation",
    [
        "bti,bio->bto",  # a weight for each sample
        "bit,io->bto",  # the sum is not over the last axis
        "bti,io->tbo",  # the result is transposed
        "bti,io->bt",  # the weight is summed
        "bti,i->bt",
        "bii,io->bo",
        "bti,io",
        "...nd,ndh->...h",  # joins axes of unknown number
        "bti",
    ],
)
def test_other_equations_stay(equation):
    assert product_equation(equation, 1) is None
