"""The TensorRT libraries and GPUs of a machine."""

from types import SimpleNamespace

import pytest

from compressor.errors import CompressError, MissingExtraError, UsageError
from compressor.runtimes.tensorrt import backends, cuda
from compressor.runtimes.tensorrt.backends import BACKENDS, import_backend, resolve_backend
from compressor.runtimes.tensorrt.cuda import Gpu, list_gpus


def install(monkeypatch, *modules):
    monkeypatch.setattr(backends, "find_spec", lambda name: name if name in modules else None)


def test_auto_is_the_only_installed_backend(monkeypatch):
    install(monkeypatch, "tensorrt")
    assert resolve_backend("auto").name == "trt"
    install(monkeypatch, "tensorrt_rtx")
    assert resolve_backend("auto").name == "rtx"


def test_auto_is_ambiguous_where_both_are_installed(monkeypatch):
    install(monkeypatch, "tensorrt", "tensorrt_rtx")
    with pytest.raises(UsageError, match="`backend: auto` is ambiguous"):
        resolve_backend("auto")


def test_auto_names_an_extra_where_neither_is_installed(monkeypatch):
    install(monkeypatch)
    with pytest.raises(MissingExtraError) as caught:
        resolve_backend("auto")
    assert "autoglm-compress[trt-rtx]" in str(caught.value)


@pytest.mark.parametrize(("name", "extra"), [("rtx", "trt-rtx"), ("trt", "trt")])
def test_a_backend_that_is_not_installed_names_its_extra(name, extra, monkeypatch):
    install(monkeypatch)
    with pytest.raises(MissingExtraError) as caught:
        import_backend(BACKENDS[name])
    assert f"autoglm-compress[{extra}]" in str(caught.value)


def test_a_tensorrt_that_is_too_old_is_refused(monkeypatch):
    install(monkeypatch, "tensorrt")
    monkeypatch.setattr(backends, "import_module", lambda _: SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(CompressError, match=r"tensorrt 8\.6\.1 is too old"):
        import_backend(BACKENDS["trt"])


def test_a_tensorrt_with_missing_libraries_is_refused(monkeypatch):
    install(monkeypatch, "tensorrt")

    def fail(_):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(backends, "import_module", fail)
    with pytest.raises(CompressError, match=r"cannot be loaded: libnvinfer\.so\.10"):
        import_backend(BACKENDS["trt"])


@pytest.mark.skipif(bool(list_gpus()), reason="there is a GPU")
def test_a_machine_without_a_driver_has_no_gpu():
    assert list_gpus() == ()


def test_name_and_capability_are_read_from_the_driver(monkeypatch):
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

    monkeypatch.setattr(cuda, "_load_driver", Driver)
    assert list_gpus() == (Gpu("a card", "sm89"),)
