"""Folders of other libraries, and folders that hold several models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from compressor.errors import CompressError, ModelError
from compressor.foreign_files.json_files import read_json
from compressor.runtimes.foreign.contract import (
    CONVERT_TO_ONNX,
    EXPORT_FROM_PYTHON,
    START_FROM_CHECKPOINT,
    Description,
    ForeignKind,
    json_object_or_empty,
)
from compressor.runtimes.tensor_listing import ListedTensor, safetensors_tensors

_MAX_DEPTH = 4
_MAX_FOLDERS = 2000
_MARKERS = ("adapter_config.json", "model_index.json", "model.onnx", "engine.json", "bundle.json")
"""Files that make a folder a model."""
_DESCRIBED = ("family", "model_type", "architecture", "_class_name")
"""Keys of a config.json that describes a model."""


class DiffusersPipeline(ForeignKind):
    """A pipeline of diffusers: model_index.json names the class of each component."""

    title = "a pipeline of diffusers"
    default_remedy = f"a pipeline has several models; take one of them, and {EXPORT_FROM_PYTHON}"

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder with model_index.json."""
        return (path / "model_index.json").is_file()

    def describe(self, path: Path) -> Description:
        """Return the class of the pipeline and of its components."""
        index = json_object_or_empty(path / "model_index.json")
        rows = [("class", str(index.get("_class_name", "not named")))]
        inner = []
        for name, entry in index.items():
            if isinstance(entry, list) and len(entry) == 2 and entry[1]:
                rows.append((name, f"{entry[0]}.{entry[1]}"))
                if (path / name / "config.json").is_file():
                    inner.append(path / name)
        return Description(tuple(rows), inner=tuple(inner))


class DiffusersModel(ForeignKind):
    """One component of a diffusers pipeline: config.json names its class."""

    title = "a model of diffusers"
    default_remedy = EXPORT_FROM_PYTHON

    def recognizes(self, path: Path) -> bool:
        """Return True for a config.json with diffusers' class name."""
        config = json_object_or_empty(path / "config.json")
        return {"_class_name", "_diffusers_version"} <= config.keys()

    def describe(self, path: Path) -> Description:
        """Return the class and the tensors."""
        config = json_object_or_empty(path / "config.json")
        return Description((("class", str(config["_class_name"])),), _tensors(path))


class SentenceTransformersFolder(ForeignKind):
    """A folder of sentence-transformers whose transformer lies in a folder of its own."""

    title = "a model of sentence-transformers"

    def recognizes(self, path: Path) -> bool:
        """Return True for modules.json where no config.json lies beside it."""
        return (path / "modules.json").is_file() and not (path / "config.json").is_file()

    def describe(self, path: Path) -> Description:
        """Return the modules, and the folders among them that hold a checkpoint."""
        modules = sentence_modules(path)
        inner = tuple(
            path / name for _, name in modules if name and (path / name / "config.json").is_file()
        )
        return Description((("modules", ", ".join(kind for kind, _ in modules)),), inner=inner)

    def remedy(self, path: Path) -> str | None:
        """Return the folder of the transformer, or the way through ONNX."""
        inner = self.describe(path).inner
        return f"name the folder of its transformer: {inner[0]}" if inner else EXPORT_FROM_PYTHON


def sentence_modules(path: Path) -> list[tuple[str, str]]:
    """Return class and folder of the modules of a sentence-transformers model, in order."""
    try:
        modules = read_json(path / "modules.json", ModelError, remedy=None)
        return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in modules]
    except (CompressError, LookupError, TypeError):
        return []


class ConsolidatedCheckpoint(ForeignKind):
    """A checkpoint in the layout of Meta and Mistral: params.json beside consolidated files."""

    title = "a consolidated checkpoint (params.json, consolidated.*)"
    default_remedy = "take the checkpoint in transformers' layout: a folder with config.json"

    def recognizes(self, path: Path) -> bool:
        """Return True where both files lie, and no config.json."""
        if not (path / "params.json").is_file() or (path / "config.json").is_file():
            return False
        return any(path.glob("consolidated*"))

    def describe(self, path: Path) -> Description:
        """Return the sizes in params.json, and the tensors of safetensors files."""
        params = json_object_or_empty(path / "params.json")
        keys = ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "vocab_size")
        rows = [(key, str(params[key])) for key in keys if key in params]
        files = sorted(path.glob("consolidated*.safetensors"))
        return Description(tuple(rows), safetensors_tensors(files) if files else None)


class MarkedFolder(ForeignKind):
    """A folder that one file makes a model of another framework."""

    def __init__(self, title: str, marker: str, default_remedy: str | None) -> None:
        self.title, self.default_remedy, self._marker = title, default_remedy, marker

    def recognizes(self, path: Path) -> bool:
        """Return True if the file lies in the folder."""
        return (path / self._marker).exists()


FOLDER_KINDS: tuple[ForeignKind, ...] = (
    DiffusersPipeline(),
    DiffusersModel(),
    SentenceTransformersFolder(),
    ConsolidatedCheckpoint(),
    MarkedFolder("a SavedModel of TensorFlow", "saved_model.pb", CONVERT_TO_ONNX),
    MarkedFolder("a Core ML package", "Data/com.apple.CoreML", START_FROM_CHECKPOINT),
)


def _tensors(folder: Path) -> tuple[ListedTensor, ...] | None:
    """Return the tensors of the safetensors files of a folder; None if there are none.

    Libraries store the same weights in half precision in files named ``*.fp16.safetensors``.
    """
    files = [file for file in sorted(folder.glob("*.safetensors")) if ".fp16." not in file.name]
    return safetensors_tensors(files) if files else None


def model_folders(root: Path) -> Iterator[Path]:
    """Yield the folders below a folder that hold a model, outermost first.

    The first ``_MAX_FOLDERS`` folders in the order of their paths, at most four levels down, are
    looked at. Hidden folders, and folders inside a model, are not.
    """
    remaining, level = _MAX_FOLDERS, [root]
    for _ in range(_MAX_DEPTH):
        below = []
        for folder in level:
            if not os.access(folder, os.R_OK | os.X_OK):
                continue
            for child in sorted(folder.iterdir()):
                if remaining == 0 or child.name.startswith(".") or not child.is_dir():
                    continue
                remaining -= 1
                if is_model_folder(child):
                    yield child
                else:
                    below.append(child)
        level = below


def is_model_folder(folder: Path) -> bool:
    """Return True if file names and config.json make a folder a model."""
    if any((folder / name).is_file() for name in _MARKERS):
        return True
    if not json_object_or_empty(folder / "config.json").keys().isdisjoint(_DESCRIBED):
        return True
    return any(kind.recognizes(folder) for kind in FOLDER_KINDS)
