"""Export of a tiny model by tracing: contents of the file, reproducible bytes, and errors."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compressor.engine.contract import PlanContext
from compressor.errors import DataError, NumericalError, ParityError
from compressor.models.facts import ModelFacts
from compressor.runtimes.formats import open_session
from passes.export_onnx import traced_run
from passes.export_onnx.config import ExportOnnxConfig, ParityConfig
from passes.export_onnx.step import ExportOnnx

PLUGIN = Path(__file__).parents[2] / "evaluation" / "plugin"


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(config, parent, out, context):
    step = ExportOnnx()
    step.requires(config, parent, context)
    output = step.run(config, parent, out, context)
    step.ensures(config, parent, out, context)
    return output


def test_the_file_has_dynamic_shapes_metadata_and_no_traces_of_the_run(parent, out, context):
    output = run(ExportOnnxConfig(), parent, out, context())
    assert [path.name for path in out.iterdir()] == ["model.onnx"]
    model = onnx.load(out / "model.onnx")
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    assert shapes == {"image": ["batch", 3, 8, 8], "words": ["batch", "length"]}
    assert [value.name for value in model.graph.output] == ["logits"]
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {20}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["autoglm_compress.artifact_id"] == "ab" * 32
    assert metadata["autoglm_compress.family"] == "tiny"
    assert "torch" in json.loads(metadata["autoglm_compress.tools"])
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b"/work/" not in (out / "model.onnx").read_bytes()
    assert b".py" not in (out / "model.onnx").read_bytes()
    parity = output.summary["parity"]
    assert parity.keys() == {"batch_1", "batch_16"}
    assert parity["batch_16"]["samples"] == 40
    assert parity["batch_16"]["max_abs"] < 1e-5
    assert parity["batch_1"]["agreement"] == 1.0
    json.dumps(output.summary)


def test_other_lengths_and_batch_sizes_run(parent, out, context):
    run(ExportOnnxConfig(), parent, out, context())
    batch = {"image": np.ones((3, 3, 8, 8), np.uint8), "words": np.ones((3, 11), np.int64)}
    with (
        open_session("torch", parent.model, threads=1) as reference,
        open_session("onnx", out, threads=1) as exported,
    ):
        actual, expected = exported.run(batch)["logits"], reference.run(batch)["logits"]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_dimensions_that_are_not_dynamic_have_the_size_of_the_samples(parent, out, context):
    run(ExportOnnxConfig(dynamic=("batch",)), parent, out, context())
    inputs = onnx.load(out / "model.onnx").graph.input
    [words] = [value for value in inputs if value.name == "words"]
    sizes = [size.dim_param or size.dim_value for size in words.type.tensor_type.shape.dim]
    assert sizes == ["batch", 5]


def test_weights_beyond_the_threshold_are_stored_beside_the_graph(parent, out, context):
    config = ExportOnnxConfig(external_data_threshold_mb=0, simplify=False)
    output = run(config, parent, out, context())
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert (out / "model.onnx.data").stat().st_size > 0
    assert output.summary["external_data"] is True
    assert output.summary["simplify"] == "not asked for"


_SCRIPT = """
import hashlib, sys
from pathlib import Path
from types import SimpleNamespace
import tiny
from compressor.engine.contract import PassContext
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.step import ExportOnnx
data = tiny.TinySet(tiny.TinySourceConfig(source="tiny"))
out = Path("out"); out.mkdir()
context = PassContext({}, lambda _: data, out, 0, 1, "cpu", "ab" * 32, lambda *_: None, print)
config = ExportOnnxConfig(external_data_threshold_mb=int(sys.argv[2]))
ExportOnnx().run(config, SimpleNamespace(model=Path(sys.argv[1])), out, context)
"""


def test_another_process_in_another_folder_writes_the_same_bytes(parent, out, context, tmp_path):
    folder = tmp_path / "far" / "away"
    folder.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN), "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(parent.model), "0"],
        cwd=folder,
        env=environment,
        check=True,
    )
    run(ExportOnnxConfig(external_data_threshold_mb=0), parent, out, context())
    here, there = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.iterdir()}
        for files in (out, folder / "out")
    )
    assert here == there
    assert here.keys() == {"model.onnx", "model.onnx.data"}


def test_a_wrong_export_fails_parity_and_names_the_worst_sample(parent, out, context, monkeypatch):
    save = traced_run.save_checked_model

    def save_corrupted(model, folder, metadata, threshold):
        weight = max(model.graph.initializers.values(), key=lambda value: value.const_value.nbytes)
        values = weight.const_value.numpy().copy()
        values[0] += 0.5
        weight.const_value = ir.tensor(values, name=weight.name)
        return save(model, folder, metadata, threshold)

    monkeypatch.setattr(traced_run, "save_checked_model", save_corrupted)
    message = r"max\|Δ\| .* > 0.001 \(sample \d+, output logits\)"
    with pytest.raises(ParityError, match=message) as caught:
        run(ExportOnnxConfig(), parent, out, context())
    assert "at batch size 1:" in caught.value.what
    assert "at batch size 16:" in caught.value.what


def test_a_graph_that_onnxsim_makes_larger_is_kept_with_a_note(parent, out, context, monkeypatch):
    import onnxsim

    def grow(proto, **_):
        grown = onnx.ModelProto()
        grown.CopyFrom(proto)
        duplicate = onnx.numpy_helper.from_array(np.zeros(9000, np.float32), "duplicate")
        grown.graph.initializer.append(duplicate)
        return grown, True

    monkeypatch.setattr(onnxsim, "simplify", grow)
    notes = []
    output = run(ExportOnnxConfig(), parent, out, context(notes))
    assert notes == [output.summary["simplify"]]
    assert "is larger" in notes[0]
    assert (out / "model.onnx").stat().st_size < 9000


def test_a_failure_of_onnxsim_is_noted(parent, out, context, monkeypatch):
    import onnxsim

    def fail(proto, **_):
        raise RuntimeError("unsupported operator\nand more")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    notes = []
    run(ExportOnnxConfig(), parent, out, context(notes))
    assert notes == ["not simplified: onnxsim cannot (unsupported operator)"]


def test_weights_with_nan_are_refused_before_the_graph_is_traced(parent, context):
    import safetensors.torch

    file = parent.model / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["conv.weight"][0, 0, 0, 0] = float("nan")
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(NumericalError, match=r"conv\.weight: 1 of 216 values"):
        ExportOnnx().requires(ExportOnnxConfig(), parent, context())


def test_an_empty_data_set_is_refused(parent, out, context):
    with pytest.raises(DataError, match="empty"):
        run(ExportOnnxConfig(), parent, out, context(num_samples=0))


def test_one_sample_is_enough(parent, out, context):
    config = ExportOnnxConfig(parity=ParityConfig(num_samples=1))
    output = run(config, parent, out, context())
    assert output.summary["parity"]["batch_16"]["samples"] == 1


def test_the_estimate_follows_the_weights():
    facts = ModelFacts("tiny", {}, 1_000_000, 5, 4_000_000)
    estimate = ExportOnnx().estimate(ExportOnnxConfig(), facts, PlanContext({}))
    assert estimate.model.parameters == 1_000_000
    assert 4_000_000 < estimate.disk_bytes < 4_200_000
    assert estimate.peak_memory_bytes > 16_000_000
    assert ExportOnnx().estimate(ExportOnnxConfig(), ModelFacts(), PlanContext({})).seconds is None


@pytest.mark.parametrize("module", ["step", "exporters"])
def test_planning_imports_neither_torch_nor_onnx(module):
    code = (
        f"import sys, passes.export_onnx.{module}; "
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
