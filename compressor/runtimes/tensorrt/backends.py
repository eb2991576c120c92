"""The two TensorRT libraries, which share one API: tensorrt-rtx and enterprise TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from compressor.errors import CompressError, MissingExtraError, UsageError

BackendName = Literal["rtx", "trt"]
_MIN_TRT_MAJOR = 10


@dataclass(frozen=True, slots=True)
class Backend:
    """One of the two libraries."""

    name: BackendName
    module: str
    """Name of the Python module."""
    distribution: str
    """Name of the distribution, whose version can change an engine's bytes."""
    extra: str
    """Extra of autoglm-compress that installs it."""
    targets: tuple[str, ...]
    """Compute capabilities that it builds for without such a GPU; empty if it builds only for the
    GPU of the machine it runs on."""

    @property
    def installed(self) -> bool:
        """True if the module can be found."""
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


def resolve_backend(name: Literal["auto"] | BackendName) -> Backend:
    """Return the backend of a name; ``auto`` is the one that is installed.

    Raises:
        MissingExtraError: ``auto``, and neither is installed.
        UsageError: ``auto``, and both are installed: their engines differ.
    """
    if name != "auto":
        return BACKENDS[name]
    installed = [backend for backend in BACKENDS.values() if backend.installed]
    if not installed:
        raise MissingExtraError("tensorrt-rtx (or tensorrt)", "the pass tensorrt", "trt-rtx")
    if len(installed) > 1:
        raise UsageError(
            "`backend: auto` is ambiguous: tensorrt-rtx and tensorrt are both installed, "
            "and their engines differ",
            remedy="set `backend: rtx` or `backend: trt`",
        )
    return installed[0]


def import_backend(backend: Backend) -> Any:
    """Import and return a backend's module.

    Raises:
        MissingExtraError: it is not installed.
        CompressError: it is too old, or its shared libraries cannot be loaded.
    """
    if not backend.installed:
        raise MissingExtraError(
            backend.distribution, f"the TensorRT backend {backend.name!r}", backend.extra
        )
    try:
        module = import_module(backend.module)
    except (ImportError, OSError) as error:
        raise CompressError(
            f"{backend.distribution} is installed but cannot be loaded: "
            f"{str(error).splitlines()[0]}",
            remedy=f"pip install --force-reinstall 'autoglm-compress[{backend.extra}]'",
        ) from error
    version = str(getattr(module, "__version__", "0"))
    if backend.name == "trt" and int(version.split(".")[0]) < _MIN_TRT_MAJOR:
        raise CompressError(
            f"tensorrt {version} is too old: strongly typed engines need version "
            f"{_MIN_TRT_MAJOR} or newer",
            remedy=f"pip install 'autoglm-compress[{backend.extra}]'",
        )
    return module
