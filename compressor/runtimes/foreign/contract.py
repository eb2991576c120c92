"""Contract of foreign kinds: model files and folders that are recognized, and that no pass reads.

A foreign kind is one instance in the table of ``identify.py``. It looks at magic bytes, headers and
file names, and never executes or unpickles anything. Installed formats are asked first.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import CompressError, ModelError
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.opening import open_file
from compressor.runtimes.tensor_listing import ListedTensor

EXPORT_FROM_PYTHON = (
    "export the module in Python: `torch.onnx.export(module, args, 'model.onnx', dynamo=True)`; "
    "the pass tensorrt reads that file"
)
"""Remedy for everything that can be loaded as a module of torch."""
CONVERT_TO_ONNX = "convert it to ONNX with its own tools; the pass tensorrt reads ONNX files"
START_FROM_CHECKPOINT = (
    "start from the checkpoint it was converted from: a folder with config.json and safetensors"
)


@dataclass(frozen=True, slots=True)
class Description:
    """Content of a foreign model, as far as it can be read without executing anything."""

    details: tuple[tuple[str, str], ...] = ()
    """Labelled facts."""
    tensors: tuple[ListedTensor, ...] | None = None
    """None where the tensors cannot be listed."""
    inner: tuple[Path, ...] = ()
    """Models below the path."""


class ForeignKind(ABC):
    """One kind of model file or folder."""

    title: str
    """Name of the kind with its article: ``a GGUF file``."""
    default_remedy: str | None = None
    """Remedy: the way to a model that passes read; None if there is none."""
    is_collection: bool = False
    """True for a folder that holds models and is none itself."""

    @property
    def short_title(self) -> str:
        """The title without its article and its explanation."""
        start = re.split(r"[,:(]", self.title)[0].strip()
        return re.sub(r"^(an?|the) ", "", start)

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Return True if a file or folder is of this kind; may raise ``OSError``."""

    def describe(self, path: Path) -> Description:  # noqa: ARG002
        """Return the content.

        Raises:
            ModelError: a header is truncated or damaged.
        """
        return Description()

    def remedy(self, path: Path) -> str | None:  # noqa: ARG002
        """Return the way to a model that passes read, for one path; None if there is none."""
        return self.default_remedy


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A file or folder of a foreign kind."""

    kind: ForeignKind
    path: Path

    @property
    def title(self) -> str:
        """Name of its kind with its article."""
        return self.kind.title

    @property
    def remedy(self) -> str | None:
        """The way to a model that passes read; None if there is none."""
        return self.kind.remedy(self.path)

    def describe(self) -> Description:
        """Return the content; errors as ``ForeignKind.describe``."""
        return self.kind.describe(self.path)

    def refusal(self) -> ModelError:
        """Return the error for a pass or a command that needs a model of an installed format."""
        return ModelError(
            f"{self.path} is {self.title}; no pass reads it",
            remedy=self.remedy or f"`autoglm-compress show {self.path}` describes it",
        )


def first_bytes(path: Path, count: int = 512) -> bytes:
    """Return the first bytes of a regular file; none for anything else."""
    if not path.is_file():
        return b""
    with open_file(path, ModelError) as file:
        return file.read(count)


def json_object_or_empty(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if the file is missing or holds no object."""
    try:
        return read_json_object(file, ModelError, remedy="")
    except CompressError:
        return {}
