"""Files of torch: pickles of ``torch.save``, TorchScript archives, and exported programs."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from compressor.errors import ModelError
from compressor.foreign_files.json_files import parse_json
from compressor.foreign_files.opening import open_file
from compressor.runtimes.foreign.contract import (
    EXPORT_FROM_PYTHON,
    Description,
    ForeignKind,
    first_bytes,
    json_object_or_empty,
)
from compressor.runtimes.foreign.pickle_opcodes import PickledObject, read_object
from compressor.runtimes.tensor_listing import ListedTensor

ZIP = b"PK\x03\x04"
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""The opcode PROTO and a protocol; older protocols begin with no magic bytes."""
_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})
_MAX_MEMBER_BYTES = 64 << 20
"""Largest file of an archive that is read: a list of tensors, or a pickle without its data."""
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # encrypted
    EOFError,
    ValueError,
)
_SAFE_MODULES = ("torch", "collections", "numpy", "builtins.", "_codecs")
"""Modules from which the pickle of an ordinary state dictionary imports."""
_SCALAR_TYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
}
"""Number of a dtype in an exported program (``torch._export.serde.schema.ScalarType``)."""


def entry_names(path: Path) -> tuple[str, ...]:
    """Return the names in a zip archive, without its top folder; none for any other file."""
    if first_bytes(path, 4) != ZIP:
        return ()
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _ZIP_ERRORS:
        return ()
    tops = {name.split("/", 1)[0] for name in names}
    nested = len(tops) == 1 and all("/" in name for name in names)
    return tuple(name.split("/", 1)[1] for name in names) if nested else tuple(names)


class TorchScript(ForeignKind):
    """An archive of ``torch.jit.save``: code and pickled constants."""

    title = "a TorchScript archive"
    default_remedy = f"TorchScript cannot be traced again: {EXPORT_FROM_PYTHON}"

    def recognizes(self, path: Path) -> bool:
        """Return True for a zip archive with code and constants."""
        names = entry_names(path)
        return "constants.pkl" in names and any(name.startswith("code/") for name in names)

    def describe(self, path: Path) -> Description:
        """Return the top class, and the tensors of the pickled module."""
        return _zipped_description(path)


class ExportedProgram(ForeignKind):
    """An archive of ``torch.export.save``."""

    title = "an exported program of torch.export (.pt2)"
    default_remedy = (
        "export it where you trust it: `torch.onnx.export(torch.export.load(file), (), "
        "'model.onnx', dynamo=True)`; the pass tensorrt reads that file"
    )

    def recognizes(self, path: Path) -> bool:
        """Return True for a zip archive with the program's JSON, of the present or older layout."""
        names = entry_names(path)
        return "models/model.json" in names or "serialized_exported_program.json" in names

    def describe(self, path: Path) -> Description:
        """Return the parameters and buffers from the archive's own list."""
        try:
            content = _read_member(path, "data/weights/model_weights_config.json")
            tree = parse_json(content, str(path), ModelError, None)
            tensors = tuple(
                _described_tensor(name, entry["tensor_meta"])
                for name, entry in sorted(tree["config"].items())
            )
        except (*_ZIP_ERRORS, ModelError, LookupError, TypeError, AttributeError):
            return Description()  # an older layout without this list, or a damaged one
        return Description(tensors=tensors)


class Pickle(ForeignKind):
    """A pickle, zipped by ``torch.save`` or raw; it is never unpickled."""

    title = "a pickle, which can run code when it is loaded"
    default_remedy = (
        "load it where you trust it (`torch.load(path, weights_only=True)`) and save the model "
        "with `save_pretrained`, which writes config.json and safetensors"
    )

    def recognizes(self, path: Path) -> bool:
        """Return True for an archive of ``torch.save``, or a file whose opcodes are a pickle's."""
        if "data.pkl" in entry_names(path):
            return True
        start = first_bytes(path, 2)
        if start not in _PICKLE and path.suffix.lower() not in _SUFFIXES:
            return False
        if not start or not path.is_file():
            return False
        return _read_pickle(path) is not None

    def describe(self, path: Path) -> Description:
        """Return the tensors, and the names that unpickling would import."""
        if entry_names(path):
            return _zipped_description(path)
        return _pickle_description(_read_pickle(path))

    def remedy(self, path: Path) -> str | None:
        """Return the command for a checkpoint's folder, else the way in Python."""
        return convert_remedy(path.parent) or self.default_remedy


def convert_remedy(folder: Path) -> str | None:
    """Return the command that converts a checkpoint with pickled weights; None for others."""
    if "model_type" not in json_object_or_empty(folder / "config.json"):
        return None
    return f"convert the checkpoint: `autoglm-compress convert {folder} NEW_FOLDER`"


def _zipped_description(path: Path) -> Description:
    try:
        pickled = read_object(io.BytesIO(_read_member(path, "data.pkl")))
    except _ZIP_ERRORS:
        return Description((("container", "zip archive"),))
    return _pickle_description(pickled, "zip archive")


def _pickle_description(pickled: PickledObject | None, container: str = "raw") -> Description:
    rows = [("container", container)]
    if pickled is None:
        return Description(tuple(rows))
    unusual = [name for name in pickled.imports if not name.startswith(_SAFE_MODULES)]
    if unusual:
        rows.append(("would import", ", ".join(unusual[:8]) + (", …" if unusual[8:] else "")))
    tensors = pickled.tensors()
    return Description(tuple(rows), tensors or None)


def _read_pickle(path: Path) -> PickledObject | None:
    """Return the object of a raw pickle, followed by its opcodes; None if it is not a pickle."""
    try:
        with open_file(path, ModelError) as file:
            return read_object(file)
    except (ValueError, struct.error):
        return None


def _read_member(path: Path, name: str) -> bytes:
    """Return a file of an archive by the end of its name; errors are ``_ZIP_ERRORS``."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(name) and info.file_size <= _MAX_MEMBER_BYTES:
                return archive.read(info)
    raise ValueError(f"{path} has no {name}")


def _described_tensor(name: str, meta: dict[str, Any]) -> ListedTensor:
    shape = tuple(int(size["as_int"]) for size in meta["sizes"])
    return ListedTensor(name, _SCALAR_TYPES.get(meta["dtype"], f"type {meta['dtype']}"), shape)
