"""Interface behind which the pass exports traced models and built decoders alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import ParityError
from compressor.models.attention_patterns.record import (
    ATTENTION_PATTERN,
    read_attention_pattern,
)
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.facts import ModelFacts, PlannedGraph
from passes.common.field_problems import FieldProblem, check_no_problems
from passes.export_onnx.config import ExportOnnxConfig


class Exporter(ABC):
    """Export of one model with one config.

    Importing an implementation, ``field_problems`` and ``planned_problems`` must not import torch:
    a plan calls them.
    """

    config: ExportOnnxConfig
    start_seconds: float = 14.0
    """Time of tracing a small model and comparing it, imports included."""

    @abstractmethod
    def field_problems(self) -> list[FieldProblem]:
        """Return the config fields that do not apply to the model, judged by its description."""

    def planned_problems(self, model: ModelFacts) -> list[FieldProblem]:  # noqa: ARG002
        """Return what does not fit a planned model beside ``field_problems``, without torch.

        ``check_model`` finds the same in a stored model.
        """
        return []

    def pattern_problems(self) -> list[FieldProblem]:
        """Return what keeps the graph from computing the attention pattern of a model."""
        return [
            FieldProblem(
                "decoder",
                f"the graph of this model is traced, and its heads would attend to all tokens in "
                f"spite of {ATTENTION_PATTERN}",
                "export the model that `sparse-attention` starts from",
            )
        ]

    @abstractmethod
    def planned_graph(self, model: ModelFacts) -> PlannedGraph:
        """Return what is known of the graph of a planned model."""

    @abstractmethod
    def check_model(self, model: ModelDescription) -> None:
        """Check that the graph of a stored model can be written.

        Raises:
            RequirementError: it cannot; the message names every offender.
        """

    @abstractmethod
    def export(self, model: ModelDescription, out: Path, context: PassContext) -> PassOutput:
        """Write the graph of a stored model into ``out``, and compare it with torch.

        Raises:
            DataError: the parity set is empty or does not fit the model.
            PassError: onnx's checker refuses the graph.
            ParityError: ONNX Runtime does not compute what torch does.
        """

    def check_fields(self) -> None:
        """Check that every config field that is set applies to the model.

        Raises:
            RequirementError: fields do not apply; the message names all of them.
        """
        check_no_problems(self.field_problems())

    def check_planned(self, model: ModelFacts) -> None:
        """Check everything that is known of a planned model.

        Raises:
            RequirementError: the graph could not be written; the message names every offender.
        """
        patterns = self.pattern_problems() if model.attention_pattern else []
        check_no_problems([*self.field_problems(), *self.planned_problems(model), *patterns])

    def check_pattern(self, folder: Path) -> None:
        """Check that the graph computes the attention pattern of a stored model, if it has one.

        Raises:
            RequirementError: it does not.
        """
        if read_attention_pattern(folder) is not None:
            check_no_problems(self.pattern_problems())

    def check_interface(self, model: ModelDescription, out: Path, threads: int) -> None:
        """Check that ONNX Runtime opens the graph, with the inputs and outputs of the model.

        A graph may require inputs that are optional in the model, such as images.

        Raises:
            ModelError: ONNX Runtime cannot open the graph.
            ParityError: its inputs or outputs have other names.
        """
        from compressor.runtimes.formats import open_session

        inputs = tuple(spec.name for spec in model.signature.required_inputs)
        expected = (inputs, tuple(model.signature.outputs))
        with open_session("onnx", out, threads=threads) as session:
            required = tuple(spec.name for spec in session.inputs if not spec.optional)
            actual = (required, session.output_names)
        optional = {spec.name for spec in model.signature.inputs} - {*inputs}
        if (tuple(n for n in required if n not in optional), actual[1]) != expected:
            raise ParityError(
                f"the exported graph has the inputs and outputs {actual}; "
                f"the family {model.family.name} has {expected}"
            )
