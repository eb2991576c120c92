"""The table of foreign kinds, and the search in it."""

from __future__ import annotations

from pathlib import Path

from compressor.artifacts.errors_from_os import reading
from compressor.runtimes.foreign.contract import Description, ForeignKind, ForeignModel
from compressor.runtimes.foreign.folders import FOLDER_KINDS, is_model_folder, model_folders
from compressor.runtimes.foreign.gguf import GgufFile
from compressor.runtimes.foreign.magic import NOT_MODELS, SIMPLE_KINDS
from compressor.runtimes.foreign.safetensors_kinds import (
    CheckpointPart,
    LoraFile,
    SafetensorsFile,
)
from compressor.runtimes.foreign.torch_files import Pickle, TorchScript

_MODEL_FILES: tuple[ForeignKind, ...] = (
    GgufFile(),
    TorchScript(),
    *SIMPLE_KINDS,
    LoraFile(),
    CheckpointPart(),
    SafetensorsFile(),
    Pickle(),
)
MODEL_KINDS: tuple[ForeignKind, ...] = (*FOLDER_KINDS, *_MODEL_FILES)
"""Every foreign kind of model, in the order in which they are tested."""


def identify(path: Path) -> ForeignModel | None:
    """Return the foreign model at a path, or None.

    Raises:
        StorageError: the path cannot be read.
    """
    kinds = FOLDER_KINDS if path.is_dir() else (*_MODEL_FILES, *NOT_MODELS)
    with reading(path):
        kind = next((kind for kind in kinds if kind.recognizes(path)), None)
    return None if kind is None else ForeignModel(kind, path)


def identify_any(path: Path) -> ForeignModel | None:
    """Return the foreign model at a path, or the folder of models that it is; errors as above."""
    found = identify(path)
    if found is None and path.is_dir() and inner_models(path):
        return ForeignModel(FolderOfModels(), path)
    return found


def inner_models(folder: Path) -> tuple[Path, ...]:
    """Return the models in a folder: folders that hold one, and single files."""
    with reading(folder):
        files = [file for file in sorted(folder.iterdir()) if _is_model_file(file)]
        return (*model_folders(folder), *files)


def _is_model_file(file: Path) -> bool:
    if file.name.startswith(".") or not file.is_file():
        return False
    return file.suffix in {".onnx", ".pt2"} or any(kind.recognizes(file) for kind in _MODEL_FILES)


class FolderOfModels(ForeignKind):
    """A folder that is no model itself: a cache, the output of a trainer, a collection of files."""

    title = "a folder of models, not a model itself"
    is_collection = True

    def recognizes(self, path: Path) -> bool:
        """Return True if models lie in the folder, and it is none itself."""
        return path.is_dir() and not is_model_folder(path) and bool(inner_models(path))

    def describe(self, path: Path) -> Description:
        """Return the models in the folder."""
        return Description(inner=inner_models(path))

    def remedy(self, path: Path) -> str | None:
        """Return the paths to name."""
        inner = inner_models(path)
        more = f", or one of {len(inner) - 5} more" if inner[5:] else ""
        return f"name one of them: {', '.join(map(str, inner[:5]))}{more}"
