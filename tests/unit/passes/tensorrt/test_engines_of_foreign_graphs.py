"""Engines of graphs as other exporters write them: dimensions, batches and control flow."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.engine.contract import StarterModel
from compressor.errors import PassError
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.tensorrt.manifest import read_verified_manifest
from passes.tensorrt.compile import engine_from_onnx
from passes.tensorrt.compile_worker import BuildRequest
from passes.tensorrt.step import TensorRT
from tests.support.engines import Arrays, build_engine, model_of, node, save_parent, weight

DRAW = np.random.default_rng(5)


def convolution(shape):
    nodes = [node("Conv", "x k", "c", pads=[1, 1, 1, 1]), node("GlobalAveragePool", "c", "logits")]
    return model_of(nodes, {"k": weight(8, 3, 3, 3)}, shape)


def test_unnamed_dimensions_of_one_sign_can_have_different_sizes(tmp_path):
    parent = save_parent(convolution(("?", 3, "?", "?")), tmp_path / "onnx")
    shape = (1, 3, 8, 24)
    fields = {"profiles": {"x": {"min": shape, "opt": shape, "max": (4, *shape[1:])}}}
    samples = Arrays(x=DRAW.normal(size=(4, *shape[1:])).astype(np.float32))
    build_engine(fields | {"calibration": {"data": "c"}}, parent, samples, tmp_path / "out")
    assert read_verified_manifest(tmp_path / "out").inputs[0].shape == (-1, 3, -1, -1)


def test_samples_run_in_the_batches_that_the_graph_takes(tmp_path):
    parent = save_parent(convolution((1, 3, 8, 8)), tmp_path / "onnx")
    samples = Arrays(x=DRAW.normal(size=(4, 3, 8, 8)).astype(np.float32))
    notes: list[str] = []
    summary = build_engine({"calibration": {"data": "c"}}, parent, samples, tmp_path / "out", notes)
    assert 0 < summary["against_parent"]["relative_error"] < 0.01
    assert [note for note in notes if "per run" in note] == [
        "1 samples per run: the model takes one sample per call"
    ]


def test_a_first_step_has_a_profile_of_the_sizes_of_the_samples():
    declared = (
        InputSpec("audio", "float32", (1, "samples")),
        InputSpec("state", "float32", (2, "batch", 16)),
        InputSpec("chunk", "float32", ("batch", "width")),
        InputSpec("rate", "int64", ()),
    )
    sampled = (
        InputSpec("audio", "float32", (1, 800)),
        InputSpec("state", "float32", (2, 1, 16)),
        InputSpec("chunk", "float32", ("batch", 96)),
        InputSpec("rate", "int64", ()),
    )
    facts = SimpleNamespace(graph_inputs=lambda: declared)
    fields = TensorRT().starter_fields(StarterModel(facts, sampled, data="c"))
    assert fields["profiles"] == {
        "audio": {"min": [1, 800], "opt": [1, 800], "max": [1, 800]},
        "state": {"min": [2, 1, 16], "opt": [2, 1, 16], "max": [2, 8, 16]},
        "chunk": {"min": [1, 96], "opt": [1, 96], "max": [8, 96]},
    }


def test_a_failed_build_of_control_flow_says_what_to_change(tmp_path):
    def branch(operator):
        value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        return helper.make_graph([node(operator, "x", "y")], operator, [], [value])

    nodes = [
        node("ReduceMax", "x", "top", keepdims=0),
        node("Cast", "top", "flag", to=TensorProto.BOOL),
        helper.make_node(
            "If", ["flag"], ["logits"], then_branch=branch("Relu"), else_branch=branch("NonZero")
        ),
    ]
    onnx.save(model_of(nodes, {}, (2, 3)), tmp_path / "model.onnx")
    request = BuildRequest(
        backend="rtx",
        onnx="model.onnx",
        engine="e",
        target="sm86",
        workspace_mb=64,
        optimization_level=None,
    )
    with pytest.raises(PassError) as caught:
        engine_from_onnx(request, tmp_path)
    assert "1 If" in str(caught.value.remedy)
    assert "without branches" in str(caught.value.remedy)
