"""The ``export-gguf`` pass."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.artifacts.artifact import Artifact
from compressor.engine.contract import Estimate, Pass, PassContext, PassOutput, PlanContext
from compressor.errors import MissingExtraError
from compressor.models.facts import ModelFacts
from passes.export_gguf.config import ExportGgufConfig
from passes.export_gguf.requirements import check_planned

if TYPE_CHECKING:
    from passes.export_gguf.run import GgufExport

_BASE_MEMORY_BYTES = 500_000_000
_SECONDS_PER_WEIGHT = 5e-8
_START_SECONDS = 5.0


class ExportGguf(Pass[ExportGgufConfig]):
    """Write a language model as a GGUF file, which llama.cpp, Ollama and LM Studio load.

    The integers of an `awq` step are carried over and never rounded again: symmetric groups become
    Q4_0, groups with zero-points Q4_1, symmetric 8 bits Q8_0. A group may be any multiple of 32.
    After writing, every tensor is dequantized and compared with the checkpoint's, number by number.

    The vision tower of `glm4v` is a second file, `mmproj.gguf`.

    Tokenizer, special tokens, chat template and hyperparameters are written as llama.cpp expects
    them. What a GGUF file cannot hold, or llama.cpp does not compute, is refused.
    """

    name = "export-gguf"
    version = 3
    accepts = frozenset({"torch", "packed"})
    produces = "gguf"
    Config = ExportGgufConfig
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "gguf")

    def estimate(
        self, config: ExportGgufConfig, parent: ModelFacts, context: PlanContext
    ) -> Estimate:
        """Estimate the size as that of the parent's weights.

        Raises:
            MissingExtraError: the package gguf is not installed.
            RequirementError: llama.cpp does not compute the model, or splits text by no such rule,
                or no block holds the integers; the message names every offender.
        """
        _check_installed()
        check_planned(config, parent)
        if parent.parameters is None:
            return Estimate(model=parent)
        size_bytes = parent.size_bytes or 4 * parent.parameters
        return Estimate(
            replace(parent, size_bytes=size_bytes),
            seconds=_START_SECONDS + _SECONDS_PER_WEIGHT * parent.parameters,
            peak_memory_bytes=_BASE_MEMORY_BYTES + size_bytes // 4,
            disk_bytes=size_bytes,
        )

    def requires(self, config: ExportGgufConfig, parent: Artifact, context: PassContext) -> None:
        """Check that the file can hold every number of the checkpoint, and its tokenizer.

        Raises:
            RequirementError: it cannot; the message names every offender.
            NumericalError: weights hold NaN or infinity.
        """
        from compressor.models.checkpoint.finite import check_finite

        _check_installed()
        _open(config, parent).check()
        check_finite(parent.model)

    def run(
        self, config: ExportGgufConfig, parent: Artifact, out: Path, context: PassContext
    ) -> PassOutput:
        """Write ``model.gguf`` and compare it with the checkpoint.

        Raises:
            ParityError: a tensor of the file holds other numbers.
        """
        return _open(config, parent).write(out, context)

    def ensures(
        self, config: ExportGgufConfig, parent: Artifact, out: Path, context: PassContext
    ) -> None:
        """Check that the header can be read."""
        from compressor.runtimes.formats import format_named

        format_named(self.produces).check(out)


def _open(config: ExportGgufConfig, parent: Artifact) -> GgufExport:
    from compressor.models.checkpoint.description import read_description
    from compressor.models.facts import facts_of
    from passes.export_gguf.run import GgufExport

    check_planned(config, facts_of(parent.model))
    tree: dict[str, Any] = read_description(parent.model).config.model_dump(mode="json")
    return GgufExport(config, tree, parent.model)


def _check_installed() -> None:
    if find_spec("gguf") is None:
        raise MissingExtraError("gguf", "export-gguf", "gguf")
