"""Format of programs of torch.export: .pt2 archives, which a pipeline takes over as a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compressor.models.families.module.config import ModuleConfig
from compressor.runtimes.foreign.torch_files import ExportedProgram
from compressor.runtimes.formats import Format, ModuleSource

if TYPE_CHECKING:
    from compressor.runtimes.tensor_listing import ListedTensor

_KIND = ExportedProgram()


class Program(Format):
    """A program of torch.export. Reading it may run code, so pipelines need ``--allow-code``."""

    name = "program"
    summary = "a program of torch.export (.pt2)"
    accepted_as: ClassVar[tuple[str, ...]] = ("torch",)
    precedence: ClassVar[int] = 1

    def recognizes(self, path: Path) -> bool:
        """Return True for a zip archive with the program's JSON."""
        return path.is_file() and _KIND.recognizes(path)

    def model_path(self, path: Path) -> Path:
        """Return the file itself."""
        return path

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return the file."""
        return {path.name: path}

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return parameters and buffers from the archive's own list; nothing is unpickled."""
        return _KIND.describe(path).tensors

    def module_source(self, path: Path) -> ModuleSource:
        """Return the program as a module, with its weights.

        Raises:
            UsageError: code is not allowed.
            ModelError: the program cannot be read, or takes other inputs than batches of tensors.
        """
        from compressor.models.families.module.probing import complete
        from compressor.models.families.module.programs import (
            load_program,
            program_inputs,
            program_text,
        )

        program = load_program(path, str(path))
        config = ModuleConfig(inputs=program_inputs(program), program=program_text(program))
        return ModuleSource(complete(config, None), path)
