"""Engines of graphs as other exporters write them: dimensions, batches and control flow."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from compressor.engine.contract import StarterModel
from compressor.engine.plan.model_starter import write_model_starter
from compressor.errors import PassError
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.formats import open_session
from compressor.runtimes.tensorrt.manifest import read_verified_manifest
from compressor.runtimes.tensorrt.profiles import Profile
from compressor.runtimes.working_inputs import runs
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


def pooled():
    """Return a network that shrinks pictures: small ones vanish."""
    nodes = [
        node("Conv", "x k", "c", strides=[4, 4]),
        node("MaxPool", "c", "m", kernel_shape=[3, 3], strides=[2, 2]),
        node("GlobalAveragePool", "m", "logits"),
    ]
    return model_of(nodes, {"k": weight(8, 3, 7, 7)}, ("n", 3, "h", "w"))


def test_profiles_of_a_first_step_have_sizes_with_which_the_graph_runs(tmp_path):
    onnx.save(pooled(), tmp_path / "model.onnx")
    written = write_model_starter(tmp_path / "model.onnx", tmp_path / "pipeline", None)
    steps = yaml.safe_load(written.file.read_text())["passes"]
    [profile] = next(step for step in steps if step["type"] == "tensorrt")["profiles"].values()
    with open_session("onnx", tmp_path, threads=1) as session:
        assert all(runs(session, {"x": profile[bound]}) for bound in ("min", "opt", "max"))
        assert not runs(session, {"x": (1, 3, 1, 1)})
    assert profile["min"][2:] == [16, 16]


def test_a_build_that_fails_by_its_profile_names_the_profile(tmp_path):
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "logits")]
    onnx.save(model_of(nodes, {"w": weight(32, 8)}, ("n", "t")), tmp_path / "model.onnx")
    for size, is_built in ((64, False), (32, True)):
        request = BuildRequest(
            backend="rtx",
            onnx="model.onnx",
            engine="e",
            target="sm86",
            workspace_mb=64,
            optimization_level=None,
            profiles={"x": Profile(min=(1, size), opt=(1, size), max=(4, size))},
        )
        if is_built:
            assert engine_from_onnx(request, tmp_path)
            continue
        with pytest.raises(PassError) as caught:
            engine_from_onnx(request, tmp_path)
        remedy = str(caught.value.remedy)
        assert "`min` of `profiles` (x [1, 64])" in remedy
        assert "set shapes that the model can have" in remedy
        assert "lint" not in remedy
