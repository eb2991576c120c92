"""Exporter of language models, whose graph is built and not traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.engine.contract import PassContext, PassOutput
from compressor.graphs.opsets import DECODER_OPSETS
from compressor.models.attention_patterns.record import ATTENTION_PATTERN
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.facts import ModelFacts, PlannedGraph
from compressor.models.families.transformers.layouts import LM_HEAD
from compressor.models.quantized.packing_schemes import planned_grids
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid, is_packed
from passes.common.field_problems import FieldProblem, check_no_problems, set_fields
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.contract import Exporter
from passes.export_onnx.decoder.requirements import (
    decoder_problems,
    embedding_problems,
    packing_problems,
    stacking_problems,
)

_BUILD_SECONDS = 5.0
"""Time of building and comparing the graph of a small model, imports included."""


class DecoderExporter(Exporter):
    """Export of a transformers checkpoint, described by its config.json.

    Tracing a decoder with its key-value cache takes minutes and gives seven times the nodes that
    ONNX Runtime needs; so the graph is built from the architecture instead.
    """

    def __init__(
        self, config: ExportOnnxConfig, tree: dict[str, Any], generation: CachedGeneration
    ) -> None:
        self.config, self.tree, self.generation = config, tree, generation
        tower_seconds = Exporter.start_seconds if generation.image_inputs else 0.0
        self.start_seconds = _BUILD_SECONDS + tower_seconds

    def field_problems(self) -> list[FieldProblem]:
        """Return fields of traced models, and what the graph cannot compute."""
        problems = decoder_problems(self.config.decoder, self.tree)
        problems = problems or stacking_problems(self.config, self.tree)
        return [*self._fields_of_traced_models(), *problems]

    def planned_problems(self, model: ModelFacts) -> list[FieldProblem]:
        """Return sizes and packed integers that do not fit, as far as the plan knows them."""
        if not model.sizes_known:
            return []
        decoder = self.config.decoder
        problems = embedding_problems(decoder, self.tree)
        if is_packed(self.tree):
            grids_of = planned_grids(self.tree[QUANTIZATION_CONFIG], model.candidate_grids, LM_HEAD)
            problems += packing_problems(decoder, self.tree, grids_of)
        return problems

    def pattern_problems(self) -> list[FieldProblem]:
        """Return a problem for the standard's operators, which have no bounded caches."""
        if self.config.decoder.target == "onnxruntime":
            return []
        return [
            FieldProblem(
                "decoder.target",
                f"the heads of {ATTENTION_PATTERN} need caches of their own, which only ONNX "
                "Runtime's attention operator has",
                "set `decoder.target: onnxruntime`, or export the model that `sparse-attention` "
                "starts from",
            )
        ]

    def _fields_of_traced_models(self) -> list[FieldProblem]:
        reasons = {
            "opset": "the graph of a language model states its own opset, which follows from "
            "`decoder.target`",
            "dynamic": "batch and tokens always vary in the graph of a language model",
            "parity.batch_size": "a language model is compared window by window",
        }
        if not self.generation.image_inputs:
            reasons["simplify"] = "the graph of a language model is built in its final form"
        return [
            FieldProblem(field, reasons[field], f"remove `{field}`")
            for field in set_fields(self.config)
            if field in reasons
        ]

    def planned_graph(self, model: ModelFacts) -> PlannedGraph:
        """Return the graph of the config's target, in which all dimensions vary."""
        decoder, integers = self.config.decoder, model.integers
        if decoder.int8_embeddings and integers is not None:
            integers |= {"int8"}
        is_standard = decoder.target == "portable"
        return PlannedGraph(DECODER_OPSETS[decoder.target], integers, is_standard=is_standard)

    def check_model(self, model: ModelDescription) -> None:
        """Check that the operators take the widths and the integers of a checkpoint.

        Raises:
            RequirementError: they do not; the message names every offender.
        """
        from compressor.graphs.decoder.weights import CheckpointWeights

        decoder = self.config.decoder
        problems = embedding_problems(decoder, self.tree)
        if is_packed(self.tree):
            weights = CheckpointWeights(model.folder, self.tree)

            def grids_of(name: str) -> tuple[WeightGrid, ...]:
                grid = weights.grid(weights.stored_layer(name))
                return () if grid is None else (grid,)

            problems += packing_problems(decoder, self.tree, grids_of)
        check_no_problems(problems)

    def export(self, model: ModelDescription, out: Path, context: PassContext) -> PassOutput:
        """Build, save and compare the graph; see ``Exporter.export``."""
        from passes.export_onnx.decoder.run import export_decoder

        return export_decoder(self.config, self.tree, model, out, context)
