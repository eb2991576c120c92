"""Export of a traced decoder, step by step: probe, trace, store integers, save, compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.data.contract import Batch
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import PassError
from compressor.graphs.decoder.interface import (
    CONTEXT_LENGTH_KEY,
    INPUT_IDS,
    TARGET_KEY,
    TRACED,
)
from compressor.graphs.saving import file_metadata, save_checked_model
from compressor.graphs.simplify import strip_metadata
from compressor.models.capabilities.cached_generation import CachedGeneration, CachedTensor
from compressor.models.checkpoint.companions import copy_companions
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.generic.generation import cached_generation
from compressor.runtimes.onnxruntime.session import OnnxSession
from compressor.runtimes.torch.session import TorchSession
from passes.common.field_problems import set_fields
from passes.export_onnx.cached.decoder import CachedDecoder
from passes.export_onnx.cached.graph import trace_decoder
from passes.export_onnx.cached.probe import (
    NO_CACHE,
    WITHOUT_CACHE,
    continues_from_cache,
    loops_over_tokens,
)
from passes.export_onnx.config import HALF, ExportOnnxConfig
from passes.export_onnx.decoder.parity import compare
from passes.export_onnx.decoder.windows import read_windows
from passes.export_onnx.half import convert_to_half
from passes.export_onnx.images.plain import export_with_images
from passes.export_onnx.images.run import (
    ImageParts,
    SeparateTowerError,
    split_class,
)
from passes.export_onnx.images.tower_export import export_tower
from passes.export_onnx.packed import store_packed
from passes.export_onnx.parity import Tolerance

if TYPE_CHECKING:
    import onnx_ir as ir

_WINDOWS = 4
"""Default number of compared windows."""
_STAGES = ("trace", "write", "compare")
_LOOPS = "several tokens are computed by a loop"
_PACKED_OPSET = 21
"""The first opset with blocks of packed weights."""


@dataclass(frozen=True, slots=True)
class _CachedExport:
    """Export of one decoder in progress."""

    config: ExportOnnxConfig
    generation: CachedGeneration
    model: ModelDescription
    out: Path
    context: PassContext

    @property
    def context_length(self) -> int:
        """Positions that the graph is used for."""
        return self.config.decoder.context_length or self.generation.context_length

    def report(self, done: int) -> None:
        """Report progress after some of the stages."""
        self.context.progress(_STAGES[min(done, len(_STAGES) - 1)], done, len(_STAGES), {})

    def windows(self) -> list[Batch]:
        """Return the samples that the graph is compared on."""
        parity = self.config.parity
        dataset, count = self.context.data(parity.data), parity.num_samples or _WINDOWS
        return read_windows(dataset, parity.data, count, self.context_length)

    def opset(self) -> int:
        """Return the opset: that of the config, or the first that stores packed weights."""
        packed = self.model.config.model_dump().get("quantization_config") is not None
        if packed and "opset" not in set_fields(self.config):
            return max(self.config.opset, _PACKED_OPSET)
        return self.config.opset

    def parts(self, module: Any, windows: list[Batch]) -> ImageParts | None:
        """Return the tower and the decoder of a class with images.

        Raises:
            SeparateTowerError: the class computes its images in another way.
        """
        if not self.generation.image_inputs:
            return None
        return split_class(module, self.generation, windows, self.model.folder)

    def trace_with_images(self, module: Any, parts: ImageParts, window: Batch) -> ir.Model | None:
        """Return the graph of a decoder that takes image embeddings; None, with a note, otherwise.

        A class whose recurrent layers take one token per call gets no images.
        """
        if not continues_from_cache(module, window):
            return None
        reason = _LOOPS
        if not loops_over_tokens(module, window):
            decoder = parts.decoder(self.generation.tensors)
            try:
                return trace_decoder(decoder, self.opset(), parts.extra_inputs(decoder))
            except PassError as error:
                reason = error.what
        self.context.note(f"exported for texts alone, without images: {reason}")
        return None

    def trace(self, module: Any, window: Batch) -> ir.Model | None:
        """Return the traced graph; None, with a note, if the class has to do without a cache."""
        tensors = _tensors(self.generation, self.model)
        if not tensors or not continues_from_cache(module, window):
            self.context.note(NO_CACHE)
            return None
        decoder = CachedDecoder(module, tensors)
        reason = _LOOPS
        if not loops_over_tokens(module, window):
            try:
                return trace_decoder(decoder, self.opset())
            except PassError as error:
                reason = error.what
        if any(tensor.is_state for tensor in tensors):
            try:
                graph = trace_decoder(decoder, self.opset(), single=True)
            except PassError as error:
                reason = error.what
            else:
                self.context.note(f"the graph takes one token per call: {reason}")
                return graph
        self.context.note(f"{WITHOUT_CACHE}: with one, {reason}")
        return None

    def save(self, graph: ir.Model) -> dict[str, Any]:
        """Write the graph; return the entries of the summary about its files."""
        metadata = file_metadata(self.context.artifact_id, self.model.family.name, None) | {
            TARGET_KEY: TRACED,
            CONTEXT_LENGTH_KEY: str(self.context_length),
        }
        return {"external_data": save_checked_model(graph, self.out, metadata, self.threshold)}

    @property
    def threshold(self) -> int:
        """Bytes of weights beyond which they are stored beside the graph."""
        return self.config.external_data_threshold_mb * 1_000_000

    def convert_to_half(self, windows: list[Batch]) -> dict[str, Any]:
        """Convert the written graph to float16; keys and values stay float32."""
        with OnnxSession(self.out, self.context.threads, "cpu") as session:
            feeds = [session.complete_feeds(window) for window in windows]
        return convert_to_half(self.out, feeds, self.threshold)

    def compare(self, windows: list[Batch], *, quantized: bool) -> list[dict[str, Any]]:
        """Compare the written graph with torch in float32."""
        tolerance = Tolerance.HALF if self.config.dtype == HALF else Tolerance.FLOAT
        if quantized:
            tolerance = Tolerance.QUANTIZED_DECODER
        threads = self.context.threads
        with TorchSession(self.model.folder, threads, "cpu") as reference:
            reference.module.float()
            return compare(reference, self.out, windows, self.config.parity, threads, tolerance)


def export_cached(
    config: ExportOnnxConfig,
    generation: CachedGeneration,
    model: ModelDescription,
    out: Path,
    context: PassContext,
) -> PassOutput:
    """Trace a decoder with its cache, write it into ``out``, and compare it with torch.

    A class that keeps a part of its state outside of its cache is traced without one, and reported.

    Raises:
        DataError: the parity set is empty, or holds no tokens.
        PassError: the class cannot be traced, or onnx's checker refuses the graph.
        ParityError: ONNX Runtime does not compute what torch does.
    """
    export = _CachedExport(config, generation, model, out, context)
    windows = export.windows()
    export.report(0)
    module: Any = load_module(model).float()
    try:
        parts = export.parts(module, windows)
    except SeparateTowerError as error:
        parts = None
        if plain := export_with_images(config, model, windows, out, context):
            context.note(f"{WITHOUT_CACHE}: {error.what}")
            return plain
        context.note(f"exported for texts alone, without images: {error.what}")
    graph = None if parts is None else export.trace_with_images(module, parts, windows[0])
    if graph is None:
        parts, graph = None, export.trace(module, windows[0])
    if graph is None:
        return _export_plain(config, model, out, context)
    strip_metadata(graph)
    vision = {}
    if parts is None:
        windows = [{INPUT_IDS: window[INPUT_IDS]} for window in windows]
    else:
        vision = {"vision": export_tower(parts, config, out, context)}
        windows = parts.fitting(windows, vision["vision"].get("fixed", {}))
    del module, parts
    packed = store_packed([graph], model.folder, context.note)
    export.report(1)
    saved = export.save(graph)
    if config.dtype == HALF:
        saved |= export.convert_to_half(windows)
    export.report(2)
    parity = export.compare(windows, quantized=bool(packed))
    copy_companions(model.folder, out)
    export.report(3)
    return PassOutput(
        packed
        | vision
        | {
            "opset": graph.opset_imports[""],
            "nodes": graph.graph.num_nodes(),
            **saved,
            "target": TRACED,
            "kv_cache": "float32",
            "context_length": export.context_length,
            "parity": parity,
        }
    )


def _tensors(generation: CachedGeneration, model: ModelDescription) -> tuple[CachedTensor, ...]:
    """Return the tensors of a cache; the tables of a tabulated class do not name them."""
    if generation.tensors:
        return generation.tensors
    discovered = cached_generation(model.config.model_dump(mode="json"))
    return () if discovered is None else discovered.tensors


def _export_plain(
    config: ExportOnnxConfig, model: ModelDescription, out: Path, context: PassContext
) -> PassOutput:
    from passes.export_onnx.traced_run import export_traced

    return export_traced(config, model.signature.required_inputs, model, out, context)
