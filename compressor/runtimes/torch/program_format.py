"""Format of programs of torch.export: .pt2 archives, which a pipeline takes over as a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compressor.models.facts import ModelFacts
from compressor.models.families.module.config import Counts, ModuleConfig, Output
from compressor.runtimes.foreign.torch_files import ExportedProgram
from compressor.runtimes.format_records import ModuleSource
from compressor.runtimes.formats import Format

if TYPE_CHECKING:
    from compressor.models.capabilities.signature import InputSpec
    from compressor.runtimes.tensor_listing import ListedTensor

_KIND = ExportedProgram()
_FAMILY = "module"


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

    def facts(self, path: Path) -> ModelFacts:
        """Return the family and what holds for every program; nothing is opened.

        Passes can thus refuse a program, such as to train or to cut it. Inputs and sizes are
        unknown, and an output `logits` is assumed.
        """
        config = ModuleConfig(program="", outputs=(Output(name="logits"),))
        counts = Counts(of=config.digest, parameters={}, macs=0)
        fields = config.model_copy(update={"counts": counts}).model_dump(mode="json")
        return ModelFacts(family=_FAMILY, config=fields, size_bytes=path.stat().st_size)

    def inputs(self, path: Path) -> tuple[InputSpec, ...] | None:
        """Return None: the inputs are known when the program is opened."""
        return None

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
