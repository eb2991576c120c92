"""Exporter of models whose graph is traced from the torch module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.capabilities.signature import InputSpec
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.facts import ModelFacts, PlannedGraph
from passes.common.field_problems import FieldProblem, set_fields
from passes.export_onnx.config import HALF, ExportOnnxConfig
from passes.export_onnx.contract import Exporter

_LOGITS = "logits"
_FIXED = -1
"""Size of a dimension that is fixed to that of the samples."""
_MIN_ACTIVATION_BITS = 8


class TracedExporter(Exporter):
    """Export of a model of any family by tracing its module."""

    def __init__(self, config: ExportOnnxConfig, model: Architecture) -> None:
        self.config, self.model = config, model
        self.signature = model.signature

    def field_problems(self) -> list[FieldProblem]:
        """Return problems of `decoder`, `parity.kl`, `parity.agreement` and `dynamic`."""
        name = self.model.family.name
        problems = [
            FieldProblem(
                field,
                f"only for language models; the family {name} has no cached generation",
                "remove `decoder`",
            )
            for field in set_fields(self.config.decoder, "decoder.")
        ]
        if self.config.parity.kl is not None:
            problems.append(
                FieldProblem(
                    "parity.kl",
                    f"only for language models, and models of the family {name} have no next token",
                    "set `parity.max_abs`, `parity.cosine` or `parity.agreement` instead",
                )
            )
        if self.config.parity.agreement is not None and _LOGITS not in self.signature.outputs:
            problems.append(
                FieldProblem(
                    "parity.agreement",
                    f"models of the family {name} have no logits whose largest could be compared",
                    "set `parity.max_abs` or `parity.cosine` instead",
                )
            )
        dimensions = self._dimensions()
        if unknown := [size for size in self.config.dynamic or () if size not in dimensions]:
            problems.append(
                FieldProblem(
                    "dynamic",
                    f"models of the family {name} have no dimensions {', '.join(unknown)}",
                    f"their dimensions are {', '.join(dimensions)}",
                )
            )
        return problems

    def check_planned(self, model: ModelFacts) -> None:
        """Check the fields, and that the integers of a planned model have kernels.

        Raises:
            RequirementError: fields do not apply, or activations have less than 8 bits.
        """
        super().check_planned(model)
        is_narrow = model.activation_bits is not None and (
            model.activation_bits < _MIN_ACTIVATION_BITS
        )
        _check_activation_bits(["all quantized layers"] if is_narrow else [])

    def planned_graph(self, model: ModelFacts) -> PlannedGraph:
        """Return the graph with the opset, the variable dimensions and the model's integers."""
        return PlannedGraph(self.config.opset, model.integers, self.config.dynamic)

    def check_model(self, model: ModelDescription) -> None:
        """Check that the integers of a quantized model have kernels.

        Raises:
            RequirementError: layers have activations of less than 8 bits, or `dtype` is float16.
        """
        quantization = model.quantization()
        layers = {} if quantization is None else quantization.layers
        if layers and self.config.dtype == HALF:
            raise RequirementError(
                "`dtype: float16` does not apply to a model with INT8 layers: their scales and "
                "products are float32",
                remedy="remove `dtype`",
            )
        narrow = [
            name
            for name, layer in layers.items()
            if layer.input is not None and layer.input.bits < _MIN_ACTIVATION_BITS
        ]
        _check_activation_bits(narrow)

    def export(self, model: ModelDescription, out: Path, context: PassContext) -> PassOutput:
        """Trace, simplify, save and compare; see ``Exporter.export``."""
        from passes.export_onnx.traced_run import export_traced

        return export_traced(self.config, self._graph_inputs(), model, out, context)

    def _graph_inputs(self) -> tuple[InputSpec, ...]:
        """Return the inputs of the graph; dimensions that are not `dynamic` have the size -1."""
        inputs = self.signature.required_inputs
        dynamic = self.config.dynamic
        if dynamic is None:
            return inputs

        def fixed(size: int | str) -> int | str:
            return size if isinstance(size, int) or size in dynamic else _FIXED

        return tuple(replace(spec, shape=tuple(map(fixed, spec.shape))) for spec in inputs)

    def _dimensions(self) -> list[str]:
        """Return the names of the variable dimensions of the model's inputs."""
        return sorted(
            {
                size
                for spec in self.signature.required_inputs
                for size in spec.shape
                if isinstance(size, str)
            }
        )


def _check_activation_bits(narrow_layers: Sequence[str]) -> None:
    """Check that there are no layers with activations of less than 8 bits.

    Raises:
        RequirementError: there are; the message names them.
    """
    if narrow_layers:
        raise RequirementError(
            f"no runtime computes with 4-bit activations: {', '.join(narrow_layers)}",
            remedy="quantize with `activation_bits: 8`",
        )
