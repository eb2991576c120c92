"""Engines that cannot run here: their graph answers, nothing is timed, and all of it is said."""

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
from tests.unit.evaluation.test_measure import onnx_model

__all__ = ["onnx_model"]

NOWHERE = "sm999"
EVALUATE = EvaluateConfig(
    accuracy=AccuracyConfig(data="test", metrics=("top1", "agreement"), reference="engine"),
    latency=LatencyConfig(warmup=1, repeats=5, threads=1),
)


def entry(file):
    size = file.stat().st_size
    return EngineFile(
        file=file.name,
        target=NOWHERE,
        sha256=digest_file(file),
        bytes=size,
        warnings=(),
        executed=False,
    )


@pytest.fixture
def engine(onnx_model, tmp_path):
    """The graph, and two files that say that they are engines for a GPU that there is none of."""
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


def measured(format_name, folder, tmp_path, reference):
    sources = {"test": {"source": "tiny"}}
    context = SourceContext(tmp_path, cache=tmp_path)
    return measure(
        StoredModel(format_named(format_name), folder),
        EVALUATE,
        sources,
        context,
        reference=ReferenceModel(id="ab", format="engine", model=reference),
    )


def test_its_graph_stands_in_and_nothing_is_timed(engine, onnx_model, tmp_path):
    found = measured("engine", engine, tmp_path, engine)
    graph = measured("onnx", onnx_model, tmp_path, engine)
    assert found.stand_in == found.accuracy.stand_in
    assert "GPU" in found.stand_in
    assert found.latency is None
    metrics = {metric.name: metric.value for metric in found.metrics}
    assert metrics["executed"] == 0
    assert not [name for name in metrics if name.startswith("latency") or name == "throughput"]
    assert (
        metrics["size_bytes"] == 7
    )  # the largest engine; the graph beside it is not what is deployed
    assert found.accuracy.predictions == graph.accuracy.predictions
    assert (graph.stand_in, graph.accuracy.stand_in) == (None, None)
    assert "executed" not in {metric.name for metric in graph.metrics}
    assert next(metric.value for metric in graph.metrics if metric.name == "agreement") == 1


def test_one_that_is_damaged_is_not_measured(engine, tmp_path):
    (engine / "model.b.engine").write_bytes(b"321")
    with pytest.raises(DamagedArtifactError, match=r"model\.b\.engine: changed"):
        measured("engine", engine, tmp_path, engine)
