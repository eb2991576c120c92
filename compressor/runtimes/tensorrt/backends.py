"""TensorRT as two libraries with one API: ``rtx`` (tensorrt-rtx) and ``trt`` (enterprise TensorRT, 10 or newer)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from compressor.errors import CompressError, MissingExtraError, UsageError

BackendName = Literal["rtx", "trt"]
_OLDEST_TRT = 10


@dataclass(frozen=True, slots=True)
class Backend:
    """One of the two libraries."""

    name: BackendName
    module: str
    distribution: str
    """Whose version can change an engine's bytes."""
    extra: str
    targets: tuple[str, ...]
    """The compute capabilities that it builds for without having such a GPU; none where it builds for the GPU at hand."""

    @property
    def installed(self) -> bool:
        """Whether its module can be found."""
        return find_spec(self.module) is not None


BACKENDS: dict[BackendName, Backend] = {
    "rtx": Backend(
        "rtx",
        "tensorrt_rtx",
        "tensorrt-rtx",
        "trt-rtx",
        ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
    ),
    "trt": Backend("trt", "tensorrt", "tensorrt", "trt", ()),
}


def chosen(name: Literal["auto"] | BackendName) -> Backend:
    """The backend of that name; ``auto`` is the one that is installed, and never one of two.

    Raises:
        MissingExtraError: ``auto``, and none is installed.
        UsageError: ``auto``, and both are installed: they make different engines.
    """
    if name != "auto":
        return BACKENDS[name]
    found = [one for one in BACKENDS.values() if one.installed]
    if not found:
        raise MissingExtraError("tensorrt-rtx (or tensorrt)", "the pass tensorrt", "trt-rtx")
    if len(found) > 1:
        raise UsageError(
            "`backend: auto` cannot choose: tensorrt-rtx and tensorrt are both installed, and their engines differ",
            remedy="say `backend: rtx` or `backend: trt`",
        )
    return found[0]


def library(backend: Backend) -> Any:
    """The backend's module, imported.

    Raises:
        MissingExtraError: it is not installed.
        CompressError: it is too old, or its libraries do not load.
    """
    if not backend.installed:
        raise MissingExtraError(
            backend.distribution, f"the TensorRT backend {backend.name!r}", backend.extra
        )
    try:
        module = import_module(backend.module)
    except (ImportError, OSError) as error:
        raise CompressError(
            f"{backend.distribution} is installed and does not load: {str(error).splitlines()[0]}",
            remedy=f"pip install --force-reinstall 'autoglm-compress[{backend.extra}]'",
        ) from error
    version = str(getattr(module, "__version__", "0"))
    if backend.name == "trt" and int(version.split(".")[0]) < _OLDEST_TRT:
        raise CompressError(
            f"tensorrt {version} is too old: engines are built strongly typed, which needs {_OLDEST_TRT} or newer",
            remedy=f"pip install 'autoglm-compress[{backend.extra}]'",
        )
    return module
