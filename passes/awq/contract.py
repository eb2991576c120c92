"""Interface behind which the pass quantizes streamed checkpoints and whole modules alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from compressor.engine.contract import Estimate, PassContext, PassOutput
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.consumers.transformers import transposed_note
from compressor.models.facts import ModelFacts
from compressor.models.quantized.weight_grid import WeightGrid
from passes.common.field_problems import FieldProblem, check_no_problems


@dataclass(frozen=True, slots=True)
class Parts:
    """Linear layers of a model that do not have the grid of the config."""

    grids: dict[str, WeightGrid] = field(default_factory=dict)
    """Those with another grid."""
    kept_float: dict[str, str] = field(default_factory=dict)
    """Those that stay in float, with the reason."""


def transposed_notes(weights: Collection[str]) -> tuple[str, ...]:
    """Return a plan's notes about weights that the class stores as [inputs, outputs]."""
    if not weights:
        return ()
    return (transposed_note(min(weights).removesuffix(".weight")),)


class ModelQuantizer(ABC):
    """Quantization of one model with one config.

    Importing an implementation, ``field_problems``, ``planned_problems`` and ``estimate`` must not
    import torch: a plan calls them.
    """

    @abstractmethod
    def field_problems(self) -> list[FieldProblem]:
        """Return the config fields that do not apply to the model, judged by its description."""

    def planned_problems(self, parent: ModelFacts) -> list[FieldProblem]:  # noqa: ARG002
        """Return what does not fit a planned model beside ``field_problems``, without torch.

        ``check_layers`` finds the same in a stored model.
        """
        return []

    @abstractmethod
    def estimate(self, parent: ModelFacts) -> Estimate:
        """Return peak memory, disk space and the size of the result."""

    @abstractmethod
    def check_layers(self, model: ModelDescription) -> None:
        """Check that the linear layers of a stored model can be quantized with the config.

        Raises:
            RequirementError: they cannot; the message names every layer that does not fit.
        """

    @abstractmethod
    def quantize(self, model: ModelDescription, out: Path, context: PassContext) -> PassOutput:
        """Write the quantized model into ``out`` and return the summary for the manifest.

        Raises:
            NumericalError: activations are not finite, or values exceed the range of the dtype.
        """

    def check_fields(self) -> None:
        """Check that every config field that is set applies to the model.

        Raises:
            RequirementError: fields do not apply; the message names all of them.
        """
        check_no_problems(self.field_problems())

    def check_planned(self, parent: ModelFacts) -> None:
        """Check everything that is known of a planned model.

        Raises:
            RequirementError: it cannot be quantized; the message names every offender.
        """
        check_no_problems([*self.field_problems(), *self.planned_problems(parent)])
