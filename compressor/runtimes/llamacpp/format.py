"""The GGUF format: ``model.gguf``, which llama.cpp executes and this program does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.artifacts.files import size_bytes
from compressor.models.checkpoint.companions import is_licence
from compressor.models.facts import ModelFacts
from compressor.runtimes.foreign.gguf import GgufFile
from compressor.runtimes.formats import Format

if TYPE_CHECKING:
    from compressor.runtimes.tensor_listing import ListedTensor

MODEL_FILE = "model.gguf"
_FILE = GgufFile()


class Gguf(Format):
    """One GGUF file in a folder of its own."""

    name = "gguf"
    summary = "a GGUF file of llama.cpp: model.gguf in a folder of its own"
    default_remedy = "start from the checkpoint that it was exported from"

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder that holds model.gguf, and nothing else but licences."""
        if not (path / MODEL_FILE).is_file():
            return False
        names = {child.name for child in path.iterdir()}
        return all(name == MODEL_FILE or is_licence(name) for name in names)

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return the file and the licences beside it."""
        return {file.name: file for file in sorted(path.iterdir()) if file.is_file()}

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return names, types and shapes from the header."""
        return _FILE.describe(path / MODEL_FILE).tensors

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return name, architecture and context length from the header."""
        return list(_FILE.describe(path / MODEL_FILE).details)

    def check(self, path: Path) -> None:
        """Check that the header can be read."""
        _FILE.describe(path / MODEL_FILE)

    def facts(self, path: Path) -> ModelFacts:
        """Return the size, and the number of weights that the header lists."""
        parameters = sum(tensor.values for tensor in self.tensor_listing(path) or ())
        return ModelFacts(parameters=parameters, size_bytes=size_bytes(path))
