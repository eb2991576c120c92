"""Artifacts of real engines, built by tensorrt-rtx without a GPU, and build bundles."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from compressor.artifacts.fingerprint import digest_file
from compressor.errors import DamagedArtifactError, RequirementError
from compressor.graphs import saving
from compressor.runtimes.formats import open_session
from compressor.runtimes.tensorrt.manifest import read_verified_manifest
from passes.tensorrt import select_backend
from tests.support.engines import (
    NETWORKS,
    SAMPLES,
    build_engine,
    cnn,
    fields_of,
    save_parent,
    transformer,
)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engine_json_describes_the_engine_of_a_network(network, precision, tmp_path):
    notes = []
    parent = save_parent(NETWORKS[network](), tmp_path / "onnx")
    out = tmp_path / "out"
    fields = fields_of(network, precision=precision)
    summary = build_engine(fields, parent, SAMPLES[network], out, notes)
    manifest = read_verified_manifest(out)
    assert sorted(file.name for file in out.iterdir()) == [
        "engine.json",
        "model.onnx",
        "model.sm86.engine",
    ]
    assert (manifest.backend, manifest.precision) == ("rtx", precision)
    assert manifest.backend_version == "1.7.1.116"
    assert [(engine.target, engine.executed) for engine in manifest.engines] == [("sm86", False)]
    assert manifest.onnx == {"model.onnx": digest_file(out / "model.onnx")}
    tensors = [(tensor.name, tensor.dtype) for tensor in (*manifest.inputs, *manifest.outputs)]
    assert tensors == [("x", "float"), ("logits", "float")]
    assert manifest.inputs[0].shape[0] == -1
    assert ("half" in manifest.layer_types) == (precision == "fp16")
    assert not summary["executed"]
    assert "never run" in notes[0]
    assert summary["against_parent"]["max_abs"] < (1e-6 if precision == "fp32" else 0.02)
    with (
        open_session("onnx", parent.model, threads=1) as before,
        open_session("onnx", out, threads=1) as after,
    ):
        batch = SAMPLES[network].batch(np.arange(2))
        expected, logits = before.run(batch)["logits"], after.run(batch)["logits"]
    np.testing.assert_allclose(logits, expected, atol=0.02)


@pytest.mark.parametrize(
    "profiles", [{}, {"x": {"min": (2, 3, 12, 12), "opt": (2, 3, 12, 12), "max": (2, 3, 12, 12)}}]
)
def test_a_graph_of_one_size_needs_no_profile(profiles, tmp_path):
    model = cnn()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    fields = {"precision": "fp32", "profiles": profiles}
    build_engine(fields, save_parent(model, tmp_path / "onnx"), SAMPLES["cnn"], tmp_path / "out")
    assert read_verified_manifest(tmp_path / "out").inputs[0].shape == (2, 3, 12, 12)


def test_another_process_and_folder_give_the_same_bytes(tmp_path):
    parent = save_parent(cnn(), tmp_path / "onnx")
    build_engine(fields_of("cnn"), parent, SAMPLES["cnn"], tmp_path / "out")
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace\n"
        "from tests.support.engines import SAMPLES, build_engine, fields_of\n"
        "parent = SimpleNamespace(model=Path(sys.argv[1]))\n"
        "build_engine(fields_of('cnn'), parent, SAMPLES['cnn'], Path(sys.argv[2]))\n"
    )
    again = tmp_path / "elsewhere" / "again"
    again.parent.mkdir()
    subprocess.run([sys.executable, "-c", code, parent.model, again], check=True)
    for file in (tmp_path / "out").iterdir():
        assert digest_file(file) == digest_file(again / file.name), file.name


def test_each_target_has_an_engine(tmp_path):
    fields = fields_of("cnn", targets=("sm75", "sm89"))
    parent = save_parent(cnn(), tmp_path / "onnx")
    summary = build_engine(fields, parent, SAMPLES["cnn"], tmp_path / "out")
    assert set(summary["engine_bytes"]) == {"sm75", "sm89"}
    manifest = read_verified_manifest(tmp_path / "out")
    engines = {engine.target: engine for engine in manifest.engines}
    assert engines["sm75"].sha256 != engines["sm89"].sha256


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-100], lambda data: data[:50] + b"!" + data[51:]],
    ids=["truncated", "tampered"],
)
def test_a_damaged_engine_is_refused(damage, tmp_path):
    parent = save_parent(cnn(), tmp_path / "onnx")
    build_engine(fields_of("cnn"), parent, SAMPLES["cnn"], tmp_path / "out")
    assert read_verified_manifest(tmp_path / "out")
    file = tmp_path / "out" / "model.sm86.engine"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DamagedArtifactError, match=r"model\.sm86\.engine: (truncated|changed)"):
        open_session("engine", tmp_path / "out", threads=1)


def test_large_weights_are_written_beside_the_graph(tmp_path, monkeypatch):
    folder, samples = tmp_path / "onnx", SAMPLES["transformer"]
    folder.mkdir()
    onnx.save(
        transformer(),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=256,
    )
    parent = SimpleNamespace(model=folder)
    build_engine(fields_of("transformer"), parent, samples, tmp_path / "out")
    assert set(read_verified_manifest(tmp_path / "out").onnx) == {"model.onnx"}
    monkeypatch.setattr(saving, "PROTOBUF_LIMIT_BYTES", 1000)
    fields = fields_of("transformer", precision="fp32")
    build_engine(fields, parent, samples, tmp_path / "large")
    files = set(read_verified_manifest(tmp_path / "large").onnx)
    assert files == {"model.onnx", "model.onnx.data"}
    with pytest.raises(RequirementError, match="more than 2 GB cannot be converted to FP16"):
        build_engine(fields_of("transformer"), parent, samples, tmp_path / "half")


def test_a_bundle_holds_everything_but_an_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(select_backend, "list_gpus", lambda: ())
    notes = []
    fields = fields_of("cnn", backend="trt", on_missing_gpu="bundle", optimization_level=4)
    parent = save_parent(cnn(), tmp_path / "onnx")
    summary = build_engine(fields, parent, SAMPLES["cnn"], tmp_path / "out", notes)
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == ["bundle.json", "model.onnx"]
    assert json.loads((tmp_path / "out" / "bundle.json").read_text())["command"] == (
        "trtexec --onnx=model.onnx --stronglyTyped --memPoolSize=workspace:1024 "
        "--builderOptimizationLevel=4 --minShapes=x:1x3x12x12 --optShapes=x:1x3x12x12 "
        "--maxShapes=x:8x3x12x12 --saveEngine=model.engine"
    )
    assert not summary["executed"]
    assert "a build bundle was written, and no engine" in notes[0]
