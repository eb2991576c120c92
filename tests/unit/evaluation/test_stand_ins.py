"""Tests of engines that cannot run here: their ONNX graph is measured, and latency is not."""

import shutil

import pytest

from compressor.artifacts.fingerprint import digest_file
from compressor.data.contract import SourceContext
from compressor.errors import DamagedArtifactError
from compressor.evaluation.measure import measure
from compressor.evaluation.protocol import ReferenceModel
from compressor.evaluation.records import AccuracyConfig, EvaluateConfig, LatencyConfig
from compressor.runtimes.formats import StoredModel, format_named
from compressor.runtimes.tensorrt.manifest import ENGINE, EngineFile, EngineManifest, write_record

MISSING_TARGET = "sm999"
EVALUATE = EvaluateConfig(
    accuracy=AccuracyConfig(data="test", metrics=("top1", "agreement"), reference="engine"),
    latency=LatencyConfig(warmup=1, repeats=5, threads=1),
)


def entry(file):
    size = file.stat().st_size
    return EngineFile(
        file=file.name,
        target=MISSING_TARGET,
        sha256=digest_file(file),
        bytes=size,
        warnings=(),
        executed=False,
    )


@pytest.fixture
def engine(onnx_model, tmp_path):
    """Write an ONNX graph, and two engine files for a GPU that does not exist."""
    folder = tmp_path / "engine"
    shutil.copytree(onnx_model, folder)
    (folder / "model.a.engine").write_bytes(b"1234567")
    (folder / "model.b.engine").write_bytes(b"123")
    manifest = EngineManifest(
        backend="rtx",
        precision="fp16",
        floats="fp16",
        workspace_mb=1,
        optimization_level=None,
        profiles={},
        onnx={"model.onnx": digest_file(folder / "model.onnx")},
        backend_version="1",
        inputs=(),
        outputs=(),
        layer_types={},
        engines=tuple(entry(file) for file in sorted(folder.glob("*.engine"))),
    )
    write_record(manifest, folder / ENGINE)
    return folder


def measure_on_test(format_name, folder, tmp_path, reference):
    sources = {"test": {"source": "tiny"}}
    context = SourceContext(tmp_path, cache=tmp_path)
    return measure(
        StoredModel(format_named(format_name), folder),
        EVALUATE,
        sources,
        context,
        reference=ReferenceModel(id="ab", format="engine", model=reference),
    )


def test_the_graph_is_measured_and_not_timed(engine, onnx_model, tmp_path):
    report = measure_on_test("engine", engine, tmp_path, engine)
    graph = measure_on_test("onnx", onnx_model, tmp_path, engine)
    assert report.stand_in == report.accuracy.stand_in
    assert "GPU" in report.stand_in
    assert report.latency is None
    metrics = {metric.name: metric.value for metric in report.metrics}
    assert metrics["executed"] == 0
    assert not [name for name in metrics if name.startswith("latency") or name == "throughput"]
    assert metrics["size_bytes"] == 7, "the largest engine, without the graph"
    assert report.accuracy.predictions == graph.accuracy.predictions
    assert (graph.stand_in, graph.accuracy.stand_in) == (None, None)
    assert "executed" not in {metric.name for metric in graph.metrics}
    assert next(metric.value for metric in graph.metrics if metric.name == "agreement") == 1


def test_a_damaged_engine_is_not_measured(engine, tmp_path):
    (engine / "model.b.engine").write_bytes(b"321")
    with pytest.raises(DamagedArtifactError, match=r"model\.b\.engine: changed"):
        measure_on_test("engine", engine, tmp_path, engine)
