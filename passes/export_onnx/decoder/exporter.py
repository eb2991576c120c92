"""Exporter of language models, whose graph is built and not traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.engine.contract import PassContext, PassOutput
from compressor.graphs.decoder.block_sizes import BLOCK_SIZES, embedding_block_size
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.families.transformers.layouts import decoder_shape, text_config
from passes.common.field_problems import FieldProblem, set_fields
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.contract import Exporter

_POSITIONS = "max_position_embeddings"
"""Field of config.json; a class of transformers may have a default of its own."""


class DecoderExporter(Exporter):
    """Export of a transformers checkpoint, described by its config.json.

    Tracing a decoder with its key-value cache takes minutes and gives seven times the nodes that
    ONNX Runtime needs; so the graph is built from the architecture instead.
    """

    def __init__(
        self, config: ExportOnnxConfig, tree: dict[str, Any], generation: CachedGeneration
    ) -> None:
        self.config, self.tree, self.generation = config, tree, generation

    def field_problems(self) -> list[FieldProblem]:
        """Return problems of fields of traced models, and of sizes that do not fit."""
        return [*self._fields_of_traced_models(), *self._size_problems()]

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

    def _size_problems(self) -> list[FieldProblem]:
        problems = []
        decoder, longest = self.config.decoder, text_config(self.tree).get(_POSITIONS)
        context = decoder.context_length
        if context is not None and longest is not None and context > longest:
            problems.append(
                FieldProblem(
                    "decoder.context_length",
                    f"{context} is more than the {longest} positions of the model",
                    "lower `decoder.context_length`, or remove it",
                )
            )
        hidden = decoder_shape(self.tree).hidden
        if decoder.int8_embeddings and not embedding_block_size(hidden):
            problems.append(
                FieldProblem(
                    "decoder.int8_embeddings",
                    f"a hidden width of {hidden} is not a multiple of {BLOCK_SIZES[-1]}",
                    "remove `decoder.int8_embeddings`",
                )
            )
        return problems

    def check_model(self, model: ModelDescription) -> None:
        """Check that the architecture can be built, and that the operators take its integers.

        Raises:
            RequirementError: they do not; the message names every offender.
        """
        from passes.export_onnx.decoder.requirements import check_decoder

        check_decoder(self.config.decoder, self.tree, model.folder)

    def export(self, model: ModelDescription, out: Path, context: PassContext) -> PassOutput:
        """Build, save and compare the graph; see ``Exporter.export``."""
        from passes.export_onnx.decoder.run import export_decoder

        return export_decoder(self.config, self.tree, model, out, context)
