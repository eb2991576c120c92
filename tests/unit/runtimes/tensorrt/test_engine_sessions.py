"""Sessions of engines: every check before native code, and one real engine where there is a GPU."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from compressor.artifacts.fingerprint import digest_file
from compressor.errors import DamagedArtifactError, GpuError, ModelError
from compressor.runtimes.formats import open_session
from compressor.runtimes.tensorrt import session as engine_session
from compressor.runtimes.tensorrt.backends import BACKENDS
from compressor.runtimes.tensorrt.cuda import Gpu, list_gpus
from compressor.runtimes.tensorrt.manifest import (
    BUNDLE,
    ENGINE,
    EngineFile,
    EngineManifest,
    write_record,
)
from compressor.runtimes.tensorrt.profiles import Profile
from compressor.runtimes.tensorrt.session import unavailable_reason
from passes.tensorrt.compile_worker import build
from tests.support.engines import write_engine_folder
from tests.support.tensorrt_graphs import F, build_request, product

AMPERE, HOPPER = Gpu("an RTX 3090", "sm86"), Gpu("an H200", "sm90")


@pytest.fixture
def folder(tmp_path):
    return write_engine_folder(tmp_path)


def test_every_file_that_differs_is_named_before_native_code_runs(folder, monkeypatch):
    monkeypatch.setattr(engine_session, "list_gpus", lambda: (AMPERE,))
    monkeypatch.setattr(
        engine_session, "import_backend", lambda _: pytest.fail("native code was reached")
    )
    (folder / "model.sm86.engine").write_bytes(b"an engine")
    (folder / "model.sm89.engine").write_bytes(b"an engine for someone!")
    (folder / "model.onnx").unlink()
    with pytest.raises(DamagedArtifactError) as caught:
        open_session("engine", folder, threads=1)
    assert "model.sm86.engine: truncated: 9 bytes, 18 expected" in caught.value.what
    assert "model.sm89.engine: changed since it was built" in caught.value.what
    assert "model.onnx: missing" in caught.value.what
    assert caught.value.exit_code == 4
    with pytest.raises(DamagedArtifactError):
        unavailable_reason(folder)


def test_a_missing_gpu_is_reported_as_such(folder, monkeypatch):
    monkeypatch.setattr(engine_session, "list_gpus", lambda: ())
    with pytest.raises(GpuError, match="this machine has no GPU") as caught:
        open_session("engine", folder, threads=1)
    assert caught.value.exit_code == 1
    assert caught.value.remedy == "copy the artifact to a machine with sm86 or sm89"
    assert unavailable_reason(folder) == caught.value.what


def test_another_gpu_is_named(folder, monkeypatch):
    monkeypatch.setattr(engine_session, "list_gpus", lambda: (HOPPER,))
    with pytest.raises(
        GpuError, match=r"was built for sm86, sm89; the GPU of this machine \(an H200\) is sm90"
    ):
        open_session("engine", folder, threads=1)


def test_another_version_of_the_library_does_not_load_the_engine(folder, monkeypatch):
    monkeypatch.setattr(engine_session, "list_gpus", lambda: (AMPERE,))
    monkeypatch.setattr(
        engine_session, "import_backend", lambda _: SimpleNamespace(__version__="9.9")
    )
    assert unavailable_reason(folder) is None
    with pytest.raises(ModelError, match=r"built by rtx 1\.2\.3, but 9\.9 is installed"):
        open_session("engine", folder, threads=1)


def test_a_build_bundle_is_no_engine(tmp_path):
    (tmp_path / BUNDLE).write_text("{}")
    with pytest.raises(ModelError, match="holds a build bundle, not an engine"):
        open_session("engine", tmp_path, threads=1)
    assert unavailable_reason(tmp_path) == "it is a build bundle: the engine is not built yet"


def test_an_empty_folder_holds_no_engine(tmp_path):
    with pytest.raises(ModelError, match=r"holds no engine: engine\.json is missing"):
        open_session("engine", tmp_path, threads=1)


@pytest.mark.gpu
@pytest.mark.skipif(not list_gpus(), reason="no GPU")
def test_an_engine_for_this_gpu_computes(tmp_path):
    target = list_gpus()[0].target
    if target not in BACKENDS["rtx"].targets:
        pytest.skip(f"tensorrt-rtx does not build for {target}")
    onnx.save(product(F), tmp_path / "model.onnx")
    profiles = {"x": Profile(min=(1, 4), opt=(2, 4), max=(4, 4))}
    report = build(build_request(tmp_path, target, profiles))
    file = tmp_path / "model.engine"
    engine = EngineFile(
        file=file.name,
        target=target,
        sha256=digest_file(file),
        bytes=file.stat().st_size,
        warnings=(),
        executed=False,
    )
    manifest = EngineManifest(
        backend="rtx",
        precision="fp32",
        floats="fp32",
        workspace_mb=64,
        optimization_level=None,
        profiles=profiles,
        onnx={},
        backend_version=report.version,
        inputs=report.inputs,
        outputs=report.outputs,
        layer_types=report.layer_types,
        engines=(engine,),
    )
    write_record(manifest, tmp_path / ENGINE)
    with open_session("engine", tmp_path, threads=1) as session:
        y = session.run({"x": np.ones((3, 4), np.float32)})["y"]
    np.testing.assert_allclose(y, np.full((3, 4), 4.0))
