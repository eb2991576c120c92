"""engine.json against the files beside it, and engines on machines that cannot run them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from compressor.artifacts.fingerprint import digest_file
from compressor.errors import (
    CompressError,
    DamagedArtifactError,
    GpuError,
    MissingExtraError,
    ModelError,
    UsageError,
)
from compressor.runtimes.formats import open_session
from compressor.runtimes.tensorrt import backends as tensorrt_backends
from compressor.runtimes.tensorrt import cuda
from compressor.runtimes.tensorrt import session as engine_session
from compressor.runtimes.tensorrt.backends import BACKENDS, chosen, library
from compressor.runtimes.tensorrt.cuda import Gpu, gpus
from compressor.runtimes.tensorrt.manifest import (
    BUNDLE,
    ENGINE,
    EngineFile,
    EngineManifest,
    Tensor,
    read_verified_manifest,
    write_record,
)
from compressor.runtimes.tensorrt.profiles import Profile
from compressor.runtimes.tensorrt.session import unavailable_reason

AMPERE, HOPPER = Gpu("an RTX 3090", "sm86"), Gpu("an H200", "sm90")


@pytest.fixture
def folder(tmp_path):
    """What a build leaves; no TensorRT ever sees these bytes."""
    (tmp_path / "model.onnx").write_bytes(b"graph")
    engines = []
    for target in ("sm86", "sm89"):
        file = tmp_path / f"model.{target}.engine"
        file.write_bytes(f"an engine for {target}".encode())
        engines.append(
            EngineFile(
                file=file.name,
                target=target,
                sha256=digest_file(file),
                bytes=18,
                warnings=("slow",),
                executed=False,
            )
        )
    tensor = Tensor(name="x", dtype="float", shape=(-1, 3))
    manifest = EngineManifest(
        backend="rtx",
        precision="fp16",
        floats="fp16",
        workspace_mb=64,
        optimization_level=None,
        profiles={"x": Profile(min=(1, 3), opt=(1, 3), max=(4, 3))},
        onnx={"model.onnx": digest_file(tmp_path / "model.onnx")},
        backend_version="1.2.3",
        inputs=(tensor,),
        outputs=(tensor,),
        layer_types={"half": 2},
        engines=tuple(engines),
    )
    write_record(manifest, tmp_path / ENGINE)
    return tmp_path


def test_what_was_written_is_read(folder):
    found = read_verified_manifest(folder)
    assert [one.target for one in found.engines] == ["sm86", "sm89"]
    assert found.profiles["x"].max == (4, 3)


def test_all_that_is_not_what_was_built_is_named_before_anything_loads_it(folder, monkeypatch):
    monkeypatch.setattr(engine_session, "gpus", lambda: (AMPERE,))
    monkeypatch.setattr(engine_session, "library", lambda _: pytest.fail("native code was reached"))
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


def test_an_engine_outside_the_folder_is_not_read(folder):
    text = (folder / ENGINE).read_text()
    (folder / ENGINE).write_text(text.replace('"model.sm86.engine"', '"../model.sm86.engine"'))
    (folder.parent / "model.sm86.engine").write_bytes((folder / "model.sm86.engine").read_bytes())
    with pytest.raises(DamagedArtifactError, match=r"\.\./model\.sm86\.engine: outside the folder"):
        read_verified_manifest(folder)


@pytest.mark.parametrize(
    "change", [lambda tree: tree.pop("engines"), lambda tree: tree.update(version=2)]
)
def test_an_engine_json_that_is_not_understood(folder, change):
    tree = json.loads((folder / ENGINE).read_text())
    change(tree)
    (folder / ENGINE).write_text(json.dumps(tree))
    with pytest.raises(DamagedArtifactError, match=r"engine\.json is damaged"):
        read_verified_manifest(folder)


def test_no_gpu_is_no_bad_engine(folder, monkeypatch):
    monkeypatch.setattr(engine_session, "gpus", lambda: ())
    with pytest.raises(GpuError, match="there is no GPU here") as caught:
        open_session("engine", folder, threads=1)
    assert caught.value.exit_code == 1
    assert caught.value.remedy == "copy the artifact to a machine with sm86 or sm89"
    assert unavailable_reason(folder) == caught.value.what


def test_another_gpu_is_named(folder, monkeypatch):
    monkeypatch.setattr(engine_session, "gpus", lambda: (HOPPER,))
    with pytest.raises(
        GpuError, match=r"was built for sm86, sm89; the GPU here \(an H200\) is sm90"
    ):
        open_session("engine", folder, threads=1)


def test_another_version_is_named_and_not_given_the_engine(folder, monkeypatch):
    monkeypatch.setattr(engine_session, "gpus", lambda: (AMPERE,))
    monkeypatch.setattr(engine_session, "library", lambda _: SimpleNamespace(__version__="9.9"))
    assert unavailable_reason(folder) is None
    with pytest.raises(ModelError, match=r"built by rtx 1\.2\.3; 9\.9 is installed"):
        open_session("engine", folder, threads=1)


def test_a_bundle_is_called_one(tmp_path):
    (tmp_path / BUNDLE).write_text("{}")
    with pytest.raises(ModelError, match="holds a build bundle, not an engine"):
        open_session("engine", tmp_path, threads=1)
    assert unavailable_reason(tmp_path) == "it is a build bundle: no engine was built yet"


def test_a_folder_without_any(tmp_path):
    with pytest.raises(ModelError, match=r"holds no engine: engine\.json is missing"):
        open_session("engine", tmp_path, threads=1)


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_a_machine_without_a_driver_has_no_gpu():
    assert gpus() == ()


def test_a_driver_is_asked_for_name_and_capability(monkeypatch):
    class Driver:
        def cuInit(self, flags):  # noqa: N802
            return 0

        def cuDeviceGetCount(self, count):  # noqa: N802
            count._obj.value = 1

        def cuDeviceGet(self, device, index):  # noqa: N802
            device._obj.value = index

        def cuDeviceGetAttribute(self, number, attribute, device):  # noqa: N802
            number._obj.value = {75: 8, 76: 9}[attribute]

        def cuDeviceGetName(self, name, size, device):  # noqa: N802
            name.value = b"a card"

    monkeypatch.setattr(cuda, "_driver", Driver)
    assert gpus() == (Gpu("a card", "sm89"),)


def installed(monkeypatch, *modules):
    monkeypatch.setattr(
        tensorrt_backends, "find_spec", lambda name: name if name in modules else None
    )


def test_auto_is_the_one_that_is_installed_and_never_one_of_two(monkeypatch):
    installed(monkeypatch, "tensorrt")
    assert chosen("auto").name == "trt"
    installed(monkeypatch, "tensorrt_rtx")
    assert chosen("auto").name == "rtx"
    installed(monkeypatch, "tensorrt", "tensorrt_rtx")
    with pytest.raises(UsageError, match="cannot choose"):
        chosen("auto")
    installed(monkeypatch)
    with pytest.raises(MissingExtraError) as caught:
        chosen("auto")
    assert "autoglm-compress[trt-rtx]" in str(caught.value)


@pytest.mark.parametrize(("name", "extra"), [("rtx", "trt-rtx"), ("trt", "trt")])
def test_a_backend_that_is_not_installed_names_its_extra(name, extra, monkeypatch):
    installed(monkeypatch)
    with pytest.raises(MissingExtraError) as caught:
        library(BACKENDS[name])
    assert f"autoglm-compress[{extra}]" in str(caught.value)


def test_a_tensorrt_that_is_too_old_or_broken(monkeypatch):
    installed(monkeypatch, "tensorrt")
    monkeypatch.setattr(
        tensorrt_backends, "import_module", lambda _: SimpleNamespace(__version__="8.6.1")
    )
    with pytest.raises(CompressError, match=r"tensorrt 8\.6\.1 is too old"):
        library(BACKENDS["trt"])

    def broken(_):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt_backends, "import_module", broken)
    with pytest.raises(CompressError, match=r"does not load: libnvinfer\.so\.10"):
        library(BACKENDS["trt"])


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no GPU")
def test_an_engine_for_this_gpu_computes(tmp_path):
    import onnx

    from passes.tensorrt.compile_worker import build
    from tests.unit.runtimes.tensorrt_graphs import F, product, request_of

    target = gpus()[0].target
    if target not in BACKENDS["rtx"].targets:
        pytest.skip(f"tensorrt-rtx does not build for {target}")
    onnx.save(product(F), tmp_path / "model.onnx")
    profiles = {"x": Profile(min=(1, 4), opt=(2, 4), max=(4, 4))}
    built = build(request_of(tmp_path, target, profiles))
    file = tmp_path / "model.engine"
    entry = EngineFile(
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
        backend_version=built.version,
        inputs=built.inputs,
        outputs=built.outputs,
        layer_types=built.layer_types,
        engines=(entry,),
    )
    write_record(manifest, tmp_path / ENGINE)
    with open_session("engine", tmp_path, threads=1) as session:
        found = session.run({"x": np.ones((3, 4), np.float32)})["y"]
    np.testing.assert_allclose(found, np.full((3, 4), 4.0))
