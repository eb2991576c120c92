"""Conversion of traced graphs to float16."""

import numpy as np
import onnx
import pytest

from compressor.graphs.files import MODEL
from compressor.runtimes.formats import open_session
from passes.export_onnx.half import convert_to_half
from tests.support.engines import model_of, node, weight

X = np.random.default_rng(3).normal(size=(3, 64)).astype(np.float32)


@pytest.mark.parametrize("external", [False, True])
def test_weights_take_half_the_bytes_and_results_stay_float32(external, tmp_path):
    nodes = [node("MatMul", "x a", "hidden"), node("Tanh", "hidden", "act")]
    nodes.append(node("MatMul", "act b", "logits"))
    model = model_of(nodes, {"a": weight(64, 256), "b": weight(256, 64)}, ("n", 64))
    model.metadata_props.add(key="k", value="v")
    onnx.save(model, tmp_path / MODEL, save_as_external_data=external, location=f"{MODEL}.data")
    before = sum(file.stat().st_size for file in tmp_path.iterdir())
    with open_session("onnx", tmp_path, threads=1) as session:
        expected = session.run({"x": X})["logits"]
    summary = convert_to_half(tmp_path, [{"x": X}], 0 if external else 10**9)
    assert (summary["kept_float32"], summary["external_data"]) == (0, external)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 0.52 * before
    assert onnx.load(tmp_path / MODEL).metadata_props[0].value == "v"
    with open_session("onnx", tmp_path, threads=1) as session:
        actual = session.run({"x": X})["logits"]
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=0.02)


def test_a_value_beyond_float16_stays_in_float32(tmp_path):
    nodes = [node("MatMul", "x a", "large"), node("Mul", "large small", "logits")]
    constants = {"a": 1e5 * weight(64, 8), "small": np.float32(1e-4)}
    onnx.save(model_of(nodes, constants, ("n", 64)), tmp_path / MODEL)
    with open_session("onnx", tmp_path, threads=1) as session:
        expected = session.run({"x": X})["logits"]
    assert convert_to_half(tmp_path, [{"x": X}], 10**9)["kept_float32"] == 2
    with open_session("onnx", tmp_path, threads=1) as session:
        np.testing.assert_allclose(session.run({"x": X})["logits"], expected, rtol=1e-5)
