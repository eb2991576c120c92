"""``export-ort``: the .ort file answers as its graph, and states what it needs on a phone."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from compressor.engine.contract import PlanContext
from compressor.errors import ParityError, PassError, RequirementError
from compressor.graphs.graph_index import GraphIndex
from compressor.graphs.lint.targets import lint
from compressor.models.facts import ModelFacts
from compressor.runtimes.formats import format_named, open_session, recognize
from compressor.runtimes.rows import RowOptions
from passes.export_ort import convert
from passes.export_ort.config import ExportOrtConfig
from passes.export_ort.step import ExportOrt
from tests.support.decoders import TOKENS, export_decoder, save_decoder
from tests.support.engines import Arrays, node
from tests.support.foreign_graphs import DRAW, IMAGES, Optimized, graph, residual_network, weight


def export(parent, out, samples, **fields):
    """Run the pass; return its summary and notes."""
    out.mkdir()
    notes = []
    context = SimpleNamespace(
        data=lambda _: Arrays(**samples),
        threads=1,
        progress=lambda *_: None,
        note=notes.append,
    )
    config = ExportOrtConfig.model_validate_json(json.dumps(fields))
    step, artifact = ExportOrt(), SimpleNamespace(model=parent)
    step.requires(config, artifact, context)
    summary = dict(step.run(config, artifact, out, context).summary)
    format_named("ort").check(out)
    return summary, notes


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    onnx.save(residual_network(), folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """Return the folder of an exported network; tests do not change it."""
    out = tmp_path_factory.mktemp("exported") / "out"
    export(network, out, {"image": IMAGES})
    return out


@pytest.mark.parametrize("optimizations", ["applied", "saved"])
def test_the_file_is_opened_and_answers_as_the_graph(network, tmp_path, optimizations):
    out = tmp_path / "out"
    summary, _ = export(network, out, {"image": IMAGES}, optimizations=optimizations)
    expected, actual = (
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
            None, {"image": IMAGES}
        )[0]
        for file in (network / "model.onnx", out / "model.ort")
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert summary["against_parent"]["scores"]["relative_error"] < 1e-5
    assert summary["files"]["model.onnx"]["ort_bytes"] == (out / "model.ort").stat().st_size


def test_the_operator_list_names_operators_and_no_path_of_this_machine(network, tmp_path):
    summary, _ = export(network, tmp_path / "out", {"image": IMAGES})
    listed = (tmp_path / "out" / convert.OPERATORS).read_text()
    assert "FusedConv" in listed
    assert str(tmp_path) not in listed
    assert any(line.startswith("com.microsoft;1;") for line in summary["operator_sets"])


def test_equal_graphs_give_equal_bytes(network, exported, tmp_path):
    again = tmp_path / "in a folder whose path is longer" / "again"
    again.parent.mkdir()
    export(network, again, {"image": IMAGES})
    first, second = ((out / "model.ort").read_bytes() for out in (exported, again))
    assert first == second


def test_a_file_that_answers_otherwise_fails(network, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    onnx.save(residual_network(), other / "model.onnx")  # other random weights
    export(other, tmp_path / "wrong", {"image": IMAGES})
    run = convert._run_converter

    def swapped(config, folder):
        run(config, folder)
        shutil.copy(tmp_path / "wrong" / "model.ort", folder / "ort" / "model.ort")

    monkeypatch.setattr(convert, "_run_converter", swapped)
    with pytest.raises(ParityError, match="scores: relative error"):
        export(network, tmp_path / "out", {"image": IMAGES})


def test_the_folder_is_measured_by_the_ort_file(network, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    stored = recognize(tmp_path / "out" / "model.ort")
    cost = stored.format.cost(stored.path, {"image": (1, 3, 16, 16)})
    assert stored.format.name == "ort"
    assert cost.size_bytes == (tmp_path / "out" / "model.ort").stat().st_size
    assert cost.macs == format_named("onnx").cost(network, {"image": (1, 3, 16, 16)}).macs
    shutil.copyfile(network / "model.onnx", tmp_path / "out" / "model.ort")
    with pytest.raises(Exception, match=r"model\.ort"):
        stored.open_session(threads=1)


def test_a_decoder_generates_from_the_ort_file(tmp_path):
    parent = save_decoder(tmp_path / "checkpoint", "tiny-llama")
    export_decoder(parent, tmp_path / "onnx")
    export(tmp_path / "onnx", tmp_path / "ort", {"input_ids": TOKENS})
    logits = []
    for name in ("onnx", "ort"):
        options = RowOptions(rows=1, capacity=64, threads=1)
        rows = format_named(name).open_rows(tmp_path / name, options)
        logits.append(rows.append(0, 0, TOKENS[0][:16], None, 4).copy())
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-3, atol=1e-4)


def test_a_graph_beyond_2_gb_is_refused_by_the_plan():
    with pytest.raises(RequirementError, match=r"3\.0 GB, and the format \.ort holds 2 GB"):
        ExportOrt().estimate(ExportOrtConfig(), ModelFacts(size_bytes=3_000_000_000), None)


def test_what_the_runtime_cannot_open_is_one_error(tmp_path):
    model = graph([node("Foreign", "x", "y", domain="acme")], {}, {"x": [1]}, {"y": [1]})
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(PassError, match="Foreign"):
        convert.convert_graphs(ExportOrtConfig(), tmp_path)


@pytest.mark.parametrize(
    ("target", "left"),
    [("onnxruntime", {"UINT8 activations with INT8 weights"}), ("tensorrt", set())],
)
def test_xnnpack_takes_integers_of_one_sign(tmp_path, target, left):
    samples = {"image": IMAGES}
    optimized = Optimized(residual_network(), tmp_path, samples, precision="int8", target=target)
    summary, notes = export(optimized.out, tmp_path / "ort", samples)
    assert (summary["xnnpack"]["left"] > 0) == bool(left)
    assert all(any(reason in note for note in notes) for reason in left)


@pytest.mark.parametrize(
    ("shape", "fields", "reason"),
    [
        (["N", 4, "H", 8], {}, "not fixed: height"),
        (["N", 4, 8, 8], {"group": 2}, "2 groups of 4 channels"),
        (["N", 4, 8], {}, "not known to have the shape"),
        (["N", 4, 8, 8], {"auto_pad": "SAME_LOWER"}, "SAME_LOWER"),
    ],
)
def test_lint_tells_why_xnnpack_leaves_a_convolution(shape, fields, reason):
    kernel = weight(4, 4 // fields.get("group", 1), *[3] * (len(shape) - 2))
    model = graph([node("Conv", "x k", "y", **fields)], {"k": kernel}, {"x": shape}, {"y": None})
    details = [problem.detail for problem in lint(model, "onnxruntime-mobile")]
    assert any(reason in detail for detail in details)


def test_shapes_name_the_sizes_that_vary():
    kernel = DRAW.normal(size=(4, 3, 3, 3)).astype(np.float32)
    model = graph([node("Conv", "x k", "y")], {"k": kernel}, {"x": ["N", 3, 8, "W"]}, {"y": None})
    shapes = GraphIndex(model).shapes
    assert shapes["x"] == ("N", 3, 8, "W")
    assert shapes["y"][:3] == ("N", 4, 6)
    assert shapes["k"] == (4, 3, 3, 3)


def test_a_lone_ort_file_is_named_with_the_way_back(exported, tmp_path):
    shutil.copyfile(exported / "model.ort", tmp_path / "lone.ort")
    with pytest.raises(Exception, match="ONNX Runtime model"):
        recognize(tmp_path / "lone.ort")
    with open_session("ort", exported, threads=1) as session:
        assert session.output_names == ("scores",)


def test_inputs_that_have_no_samples_are_refused_by_the_plan(tmp_path):
    model = graph([node("MatMul", "x w", "y")], {"w": weight(8, 4)}, {"x": [1, 8]}, {"y": [1, 4]})
    text = onnx.helper.make_tensor_value_info("city", onnx.TensorProto.STRING, [1])
    model.graph.input.append(text)
    onnx.save(model, tmp_path / "model.onnx")
    facts = format_named("onnx").facts(tmp_path)
    with pytest.raises(RequirementError, match="city is no tensor of numbers"):
        ExportOrt().estimate(ExportOrtConfig(), facts, PlanContext({"parent": facts}))
