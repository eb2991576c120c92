"""Files of other frameworks, recognized by their first bytes or by the names in a zip archive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compressor.foreign_files.opening import LFS_POINTER
from compressor.runtimes.foreign.contract import (
    CONVERT_TO_ONNX,
    START_FROM_CHECKPOINT,
    ForeignKind,
    first_bytes,
)
from compressor.runtimes.foreign.torch_files import ZIP, entry_names

_ENGINE_SUFFIXES = frozenset({".engine", ".plan", ".trt"})
_ENGINE_MAGIC = (b"ftrt", b"vtrt")
"""TensorRT and TensorRT-RTX."""


class SimpleKind(ForeignKind):
    """A kind that one test recognizes, and that is described by one line."""

    def __init__(
        self, title: str, default_remedy: str | None, test: Callable[[Path], bool]
    ) -> None:
        self.title, self.default_remedy, self._test = title, default_remedy, test

    def recognizes(self, path: Path) -> bool:
        """Return the result of the test."""
        return self._test(path)


def _begins(magic: bytes, offset: int = 0) -> Callable[[Path], bool]:
    return lambda path: first_bytes(path)[offset : offset + len(magic)] == magic


def _zip_with(name: str) -> Callable[[Path], bool]:
    return lambda path: name in entry_names(path)


def _is_engine(path: Path) -> bool:
    """Return True for a serialized engine; Ultralytics writes a JSON header of its own before."""
    start = first_bytes(path, 4096)
    if start.startswith(_ENGINE_MAGIC):
        return True
    return path.suffix in _ENGINE_SUFFIXES and any(magic in start for magic in _ENGINE_MAGIC)


def _is_onnx_elsewhere(path: Path) -> bool:
    """Return True for an ONNX graph whose name does not end in .onnx: its first fields.

    These are ``ir_version`` (1), and then ``producer_name`` (2), ``graph`` (7) or ``opset`` (8).
    """
    start = first_bytes(path, 3)
    if path.suffix == ".onnx" or len(start) < 3:
        return False
    return start[0] == 0x08 and 3 <= start[1] <= 32 and start[2] in {0x12, 0x3A, 0x42}


def _is_openvino(path: Path) -> bool:
    return path.suffix == ".xml" and b"<net " in first_bytes(path)


def _is_msgpack(path: Path) -> bool:
    start = first_bytes(path, 1)
    return path.suffix == ".msgpack" and bool(start) and (start[0] >> 4 == 8 or start[0] >= 0xDC)


def _has_suffix(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes and bool(first_bytes(path, 1))


def _is_npz(path: Path) -> bool:
    names = entry_names(path)
    return bool(names) and all(name.endswith(".npy") for name in names)


_UNPACK = "unpack it, and name the folder or file inside"
SIMPLE_KINDS: tuple[ForeignKind, ...] = (
    SimpleKind(
        "a TensorRT engine without engine.json",
        "start from the ONNX file it was built from: the pass tensorrt reads that file",
        _is_engine,
    ),
    SimpleKind(
        "an ONNX graph whose name does not end in .onnx",
        "rename it to model.onnx",
        _is_onnx_elsewhere,
    ),
    SimpleKind("a TensorFlow Lite model", CONVERT_TO_ONNX, _begins(b"TFL3", 4)),
    SimpleKind(
        "an ONNX Runtime model (.ort)",
        "start from the ONNX file it was converted from",
        _begins(b"ORTM", 4),
    ),
    SimpleKind("an ExecuTorch program (.pte)", START_FROM_CHECKPOINT, _begins(b"ET12", 4)),
    SimpleKind("an HDF5 file (Keras)", CONVERT_TO_ONNX, _begins(b"\x89HDF\r\n\x1a\n")),
    SimpleKind("a Keras archive (.keras)", CONVERT_TO_ONNX, _zip_with("model.weights.h5")),
    SimpleKind("an OpenVINO model (.xml with .bin)", CONVERT_TO_ONNX, _is_openvino),
    SimpleKind("Flax weights (.msgpack)", START_FROM_CHECKPOINT, _is_msgpack),
    SimpleKind("an MNN model", START_FROM_CHECKPOINT, _has_suffix(".mnn")),
    SimpleKind("a Core ML model", START_FROM_CHECKPOINT, _has_suffix(".mlmodel")),
    SimpleKind("an ncnn model", START_FROM_CHECKPOINT, _begins(b"7767517\n")),
    SimpleKind("a GGML file (llama.cpp, before GGUF)", START_FROM_CHECKPOINT, _begins(b"tjgg")),
)
"""Models of other frameworks, in the order in which they are tested."""
NOT_MODELS: tuple[ForeignKind, ...] = (
    SimpleKind(
        "a Git LFS pointer, not the file it stands for",
        "fetch the file itself: `git lfs pull`",
        _begins(LFS_POINTER),
    ),
    SimpleKind("NumPy arrays (.npz)", None, _is_npz),
    SimpleKind("a NumPy array (.npy)", None, _begins(b"\x93NUMPY")),
    SimpleKind(
        "a Zstandard archive",
        "restore an archived artifact with `autoglm-compress restore FILE`; unpack any other",
        _begins(b"\x28\xb5\x2f\xfd"),
    ),
    SimpleKind("a gzip archive", _UNPACK, _begins(b"\x1f\x8b")),
    SimpleKind("a tar archive", _UNPACK, _begins(b"ustar", 257)),
    SimpleKind("a zip archive without a model that is known here", _UNPACK, _begins(ZIP)),
    SimpleKind("an HTML page, not a model", "download the file itself", _begins(b"<!DOCTYPE html")),
)
"""Other files that lie where a model is expected, tested after all models."""
