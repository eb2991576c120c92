"""``export-mnn``: MNN answers as the graph does, or the step fails with a reason."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from compressor.errors import (
    MissingExtraError,
    ModelError,
    ParityError,
    PassError,
    RequirementError,
)
from compressor.graphs.files import load_typed_model
from compressor.graphs.reductions import COMPOSITE, write_out_reductions
from compressor.graphs.saving import save_model
from compressor.models.facts import ModelFacts, PlannedGraph
from compressor.runtimes.formats import format_named, recognize
from passes.export_mnn import run
from passes.export_mnn import step as step_module
from passes.export_mnn.config import ExportMnnConfig
from passes.export_mnn.identity import with_content_uuid
from passes.export_mnn.step import ExportMnn
from tests.support.engines import Arrays, node
from tests.support.foreign_graphs import DRAW, IMAGES, Optimized, graph, residual_network, weight

ROWS = DRAW.normal(size=(8, 3, 6)).astype(np.float32)


def export(model, folder, samples, **fields):
    """Run the pass on a graph; return its summary and its folder."""
    parent, out = folder / "parent", folder / "out"
    parent.mkdir()
    out.mkdir()
    onnx.save(model, parent / "model.onnx")
    context = SimpleNamespace(
        data=lambda _: Arrays(**samples),
        threads=1,
        progress=lambda *_: None,
        note=lambda _: None,
    )
    config = ExportMnnConfig.model_validate_json(json.dumps(fields))
    step, artifact = ExportMnn(), SimpleNamespace(model=parent)
    step.requires(config, artifact, context)
    summary = dict(step.run(config, artifact, out, context).summary)
    format_named("mnn").check(out)
    return summary, out


def reduction(operator, *, keepdims=1):
    """Return a product behind a reduction of the last axis, which is an input (opset 18)."""
    nodes = [
        node("Abs", "x", "positive"),
        node(operator, "positive axes", "r", keepdims=keepdims),
        node("MatMul", "x w", "m"),
        node("Unsqueeze", "r axes", "u") if not keepdims else node("Identity", "r", "u"),
        node("Add", "m u", "y"),
    ]
    weights = {"axes": np.array([2], np.int64), "w": weight(6, 6)}
    return graph(nodes, weights, {"x": ["N", 3, 6]}, {"y": ["N", 3, 6]}, opset=18)


@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_a_network_answers_as_its_graph(tmp_path, weights):
    model = residual_network()
    summary, out = export(model, tmp_path, {"image": IMAGES}, weights=weights)
    assert summary["against_parent"]["scores"]["relative_error"] < 0.05
    assert summary["bytes"] == (out / "model.mnn").stat().st_size
    session = onnxruntime.InferenceSession(model.SerializeToString())
    [expected] = session.run(None, {"image": IMAGES[:3]})
    stored = recognize(out / "model.mnn")
    with stored.open_session(threads=1) as mnn:
        actual = mnn.run({"image": IMAGES[:3]})["scores"]
    assert stored.format.name == "mnn"
    assert np.linalg.norm(actual - expected) < 0.05 * np.linalg.norm(expected)


def test_narrow_weights_take_less_space(tmp_path):
    model = graph(
        [node("MatMul", "x w", "y")], {"w": weight(256, 256)}, {"x": ["N", 256]}, {"y": None}
    )
    samples = {"x": DRAW.normal(size=(8, 256)).astype(np.float32)}
    sizes = []
    for name in ("float32", "float16", "int8"):
        (tmp_path / name).mkdir()
        summary, _ = export(model, tmp_path / name, samples, weights=name)
        sizes.append(summary["bytes"])
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] < 0.4 * sizes[0]


@pytest.mark.parametrize("operator", sorted(COMPOSITE))
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions_are_written_out_before_mnn_misreads_them(tmp_path, operator, keepdims):
    summary, _ = export(reduction(operator, keepdims=keepdims), tmp_path, {"x": ROWS})
    assert summary["rewritten_reductions"] == 1
    assert summary["against_parent"]["y"]["relative_error"] < 1e-5


@pytest.mark.parametrize("operator", sorted(COMPOSITE))
def test_a_reduction_that_is_written_out_has_the_same_values(tmp_path, operator):
    onnx.save(reduction(operator, keepdims=0), tmp_path / "model.onnx")
    model = load_typed_model(tmp_path)
    assert write_out_reductions(model) == 1
    save_model(model, tmp_path, external=False, name="written.onnx")
    large = {"x": 50 * ROWS}
    expected, actual = (
        onnxruntime.InferenceSession(tmp_path / name).run(None, large)[0]
        for name in ("model.onnx", "written.onnx")
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_file_that_answers_otherwise_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "write_out_reductions", lambda _: 0)
    with pytest.raises(ParityError, match="MNN reports success") as caught:
        export(reduction("ReduceL2"), tmp_path, {"x": ROWS})
    assert "export-ort" in str(caught.value.remedy)


def test_operators_that_mnn_lacks_are_refused_by_the_plan(tmp_path):
    nodes = [node("Hardmax", "x", "h"), node("Mish", "h", "m"), node("Mish", "m", "y")]
    onnx.save(graph(nodes, {}, {"x": ["N", 4]}, {"y": ["N", 4]}, 18), tmp_path / "model.onnx")
    with pytest.raises(RequirementError, match="1 Hardmax, 2 Mish"):
        ExportMnn().estimate(ExportMnnConfig(), format_named("onnx").facts(tmp_path), None)


def test_quantized_graphs_are_refused_by_the_plan(tmp_path):
    quantized = ModelFacts(graph=PlannedGraph(21, frozenset({"int8"})))
    with pytest.raises(RequirementError, match="is quantized"):
        ExportMnn().estimate(ExportMnnConfig(), quantized, None)
    foreign = ModelFacts(graph=PlannedGraph(21, frozenset(), is_standard=False))
    with pytest.raises(RequirementError, match="operators of ONNX Runtime's own"):
        ExportMnn().estimate(ExportMnnConfig(), foreign, None)
    optimized = Optimized(residual_network(), tmp_path, {"image": IMAGES}, precision="int8")
    facts = format_named("onnx").facts(optimized.out)
    with pytest.raises(RequirementError, match="is quantized"):
        ExportMnn().estimate(ExportMnnConfig(), facts, None)


def test_equal_graphs_give_equal_bytes(tmp_path):
    contents, model = [], residual_network()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _, out = export(model, tmp_path / name, {"image": IMAGES})
        contents.append((out / "model.mnn").read_bytes())
    assert contents[0] == contents[1]
    assert with_content_uuid(contents[0]) == contents[0]


@pytest.mark.parametrize("content", [b"", bytes(64), b"\xff" * 64])
def test_a_file_without_an_identifier_is_refused(content):
    with pytest.raises(PassError, match="no identifier"):
        with_content_uuid(content)


def test_a_truncated_file_is_one_error(tmp_path):
    _, out = export(residual_network(), tmp_path, {"image": IMAGES})
    content = (out / "model.mnn").read_bytes()
    for length in (0, 1, 100, len(content) // 2):
        (out / "model.mnn").write_bytes(content[:length])
        with pytest.raises(ModelError, match="MNN cannot open") as caught:
            recognize(out).open_session(threads=1)
        assert "export-mnn" in caught.value.remedy


def test_nothing_is_printed_while_a_file_is_opened(tmp_path, capfd):
    _, out = export(residual_network(), tmp_path, {"image": IMAGES})
    recognize(out).open_session(threads=1).close()
    assert capfd.readouterr().out == ""


def test_the_plan_names_the_extra_that_is_missing(monkeypatch):
    monkeypatch.setattr(step_module, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="`export-mnn` needs MNN") as caught:
        ExportMnn().estimate(ExportMnnConfig(), ModelFacts(), None)
    assert "autoglm-compress[mnn]" in str(caught.value.remedy)
