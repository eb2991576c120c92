"""Exporter of decoders whose graph is traced, with the key-value cache as inputs and outputs."""

from __future__ import annotations

from pathlib import Path

from compressor.engine.contract import PassContext, PassOutput
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.facts import ModelFacts, PlannedGraph
from passes.common.field_problems import FieldProblem, set_fields
from passes.export_onnx.config import HALF, ExportOnnxConfig
from passes.export_onnx.contract import Exporter

_BUILT_ONLY = (
    *("target", "int8_embeddings", "int8_kv_cache", "accuracy_level"),
    *("stacked_heads", "adapter_slots"),
)
"""Fields of `decoder` that choose operators of a graph that is built."""
_REASONS = {
    "dynamic": "batch and tokens always vary in the graph of a language model",
    "parity.batch_size": "a language model is compared window by window",
    "simplify": "the graph of a language model is not simplified: it would store shared weights "
    "twice",
}
"""Fields that do not apply to a traced decoder."""


class CachedExporter(Exporter):
    """Export of a generating class of transformers whose decoder graph cannot be built.

    The graph has the same inputs and outputs as a built one, and is run by the same code; it
    consists of ONNX's own operators, and its cache grows with each call.
    """

    def __init__(self, config: ExportOnnxConfig, generation: CachedGeneration) -> None:
        self.config, self.generation = config, generation

    def field_problems(self) -> list[FieldProblem]:
        """Return fields of built graphs and of models that do not generate."""
        fields = set_fields(self.config)
        if self.generation.encoder_inputs:  # its samples are compared in batches
            fields = [name for name in fields if name != "parity.batch_size"]
        problems = [
            FieldProblem(name, reason, f"remove `{name}`")
            for name, reason in _REASONS.items()
            if name in fields
        ]
        problems += [
            FieldProblem(
                f"decoder.{name}",
                "only for graphs that are built; the graph of this class is traced from torch",
                f"remove `decoder.{name}`",
            )
            for name in _BUILT_ONLY
            if name in set_fields(self.config.decoder)
        ]
        if self.generation.encoder_inputs and self.config.dtype == HALF:
            problems.append(
                FieldProblem(
                    "dtype",
                    "the graphs of an encoder-decoder compute in float32",
                    "remove `dtype`",
                )
            )
        longest, context = self.generation.context_length, self.config.decoder.context_length
        if context is not None and context > longest:
            problems.append(
                FieldProblem(
                    "decoder.context_length",
                    f"{context} is more than the {longest} positions of the model",
                    "lower `decoder.context_length`, or remove it",
                )
            )
        return problems

    def planned_graph(self, model: ModelFacts) -> PlannedGraph:
        """Return a graph of standard operators in which all dimensions vary."""
        return PlannedGraph(self.config.opset, model.integers, is_standard=True)

    def check_model(self, model: ModelDescription) -> None:
        """Accept every model: what cannot be traced is known when it is tried."""

    def export(self, model: ModelDescription, out: Path, context: PassContext) -> PassOutput:
        """Trace, save and compare; see ``Exporter.export``."""
        if self.generation.encoder_inputs:
            from passes.export_onnx.cached.encoder_decoder_run import export_encoder_decoder

            return export_encoder_decoder(self.config, self.generation, model, out, context)
        from passes.export_onnx.cached_run import export_cached

        return export_cached(self.config, self.generation, model, out, context)
