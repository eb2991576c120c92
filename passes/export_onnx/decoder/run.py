"""Export of a decoder, step by step: vision tower, cache scales, graph, comparison, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compressor.data.contract import Batch
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import ParityError
from compressor.graphs.decoder.adapter_slots import SLOTS_KEY, slots_as_json
from compressor.graphs.decoder.architecture import DecoderArchitecture
from compressor.graphs.decoder.cache_bounds import bounds_as_json
from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.graphs.decoder.graph import DecoderGraph
from compressor.graphs.decoder.interface import (
    BOUNDED_CACHES_KEY,
    CONTEXT_LENGTH_KEY,
    TARGET_KEY,
)
from compressor.graphs.decoder.onnxruntime_operators import OnnxRuntimeOperators
from compressor.graphs.decoder.operators import Operators
from compressor.graphs.decoder.portable_operators import PortableOperators
from compressor.graphs.decoder.read_architecture import read_architecture
from compressor.graphs.decoder.stacking_rule import is_large_group
from compressor.graphs.decoder.weights import CheckpointWeights
from compressor.graphs.matmul_nbits import FLOAT_LEVEL, INTEGER_LEVEL
from compressor.graphs.saving import file_metadata, save_checked_model
from compressor.graphs.values import Array
from compressor.models.adapters.base import BASE_KEY, model_digest
from compressor.models.attention_patterns.record import read_attention_pattern
from compressor.models.checkpoint.companions import copy_companions
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.quantized.weight_grid import is_packed
from compressor.runtimes.torch.session import TorchSession
from passes.export_onnx.config import DecoderConfig, ExportOnnxConfig
from passes.export_onnx.decoder.cache_scales import measure_cache_scales
from passes.export_onnx.decoder.genai import write_genai_config
from passes.export_onnx.decoder.parity import compare
from passes.export_onnx.decoder.windows import read_windows
from passes.export_onnx.parity import Tolerance

_WINDOWS = 4
"""Default number of compared windows."""
_STAGES = 3
_DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


@dataclass(frozen=True, slots=True)
class _SavedGraph:
    """Facts about a graph that was written."""

    opset: int
    nodes: int
    external: bool
    accuracy_level: int
    adapter_slots: int
    cache: KvCacheLayout

    def summary(self) -> dict[str, Any]:
        """Return its first entries of the summary."""
        slots = {"adapter_slots": self.adapter_slots} if self.adapter_slots else {}
        return {"opset": self.opset, "nodes": self.nodes, "external_data": self.external} | slots

    def cache_summary(self, context: int) -> dict[str, int]:
        """Return the bytes of the cache of one sequence as long as the context."""
        sizes = {"kv_cache_bytes": self.cache.size_bytes(1, context)}
        if self.cache.bounds:
            without = self.cache.without_bounds().size_bytes(1, context)
            sizes["kv_cache_bytes_without_bounds"] = without
        return sizes


@dataclass(frozen=True, slots=True)
class _DecoderExport:
    """Export of one decoder in progress."""

    config: ExportOnnxConfig
    model: ModelDescription
    architecture: DecoderArchitecture
    weights: CheckpointWeights
    out: Path
    context: PassContext

    def write(self, accuracy_level: int, cache_scales: Mapping[str, Array] | None) -> _SavedGraph:
        """Build the graph and write it, over an earlier one."""
        decoder = self.config.decoder
        graph = DecoderGraph(
            self.architecture,
            self.weights,
            self._operators(accuracy_level),
            int8_embeddings=decoder.int8_embeddings,
            cache_scales=cache_scales,
            adapter_targets=decoder.adapter_slots or (),
        )
        onnx_model = graph.build()
        nodes, opset = len(onnx_model.graph), onnx_model.graph.opset_imports[""]
        metadata = file_metadata(self.context.artifact_id, self.model.family.name, None) | {
            TARGET_KEY: decoder.target,
            CONTEXT_LENGTH_KEY: str(self.architecture.context),
        }
        if graph.bounded_caches:
            metadata[BOUNDED_CACHES_KEY] = bounds_as_json(graph.bounded_caches)
        if slots := graph.adapters.slots:
            metadata[SLOTS_KEY] = slots_as_json(slots)
            metadata[BASE_KEY] = model_digest(self.model.folder)
        threshold = self.config.external_data_threshold_mb * 1_000_000
        external = save_checked_model(onnx_model, self.out, metadata, threshold)
        self.weights.packed_layer.cache_clear()
        return _SavedGraph(opset, nodes, external, accuracy_level, len(slots), graph.cache_layout)

    def _operators(self, accuracy_level: int) -> Operators:
        dtype, decoder = self.weights.dtype, self.config.decoder
        if decoder.target == "portable":
            return PortableOperators(dtype)
        sizes, is_float = self.architecture.decoder, dtype == ir.DataType.FLOAT
        stacks = is_float and is_large_group(sizes.heads, sizes.key_heads)
        return OnnxRuntimeOperators(
            accuracy_level, dtype, stacks_heads=stacks and decoder.stacked_heads
        )

    def calibration_windows(self) -> list[Batch]:
        """Return the samples that an 8-bit cache is calibrated on; none for a float cache."""
        calibration = self.config.decoder.int8_kv_cache
        if calibration is None:
            return []
        return self.windows(calibration.data, calibration.num_samples, spread=True)

    def measure_scales(self, accuracy_level: int, windows: list[Batch]) -> dict[str, Array] | None:
        """Return the scales of an 8-bit cache, from a graph with a float cache; None if not set."""
        if not windows:
            return None
        self.context.progress("keys and values", 0, _STAGES, {})
        self.write(accuracy_level, None)
        return measure_cache_scales(self.out, self.architecture, windows, self.context.threads)

    def windows(self, name: str, count: int, *, spread: bool = False) -> list[Batch]:
        """Return samples of a data set that fit into the context."""
        dataset = self.context.data(name)
        return read_windows(dataset, name, count, self.architecture.context, spread=spread)

    def write_compared(
        self, levels: list[int], scales: Mapping[str, Array] | None, windows: list[Batch]
    ) -> tuple[_SavedGraph, list[dict[str, Any]]]:
        """Write the graph with the first accuracy level that passes the comparison."""
        for level in levels:
            self.context.progress("build", 0, _STAGES, {})
            saved = self.write(level, scales)
            self.context.progress("compare", 1, _STAGES, {})
            try:
                return saved, self._compare(windows, self._tolerance(scales))
            except ParityError as error:
                if level == levels[-1]:
                    raise
                self.context.note(f"accuracy_level {level} loses too much: {error.what}")
        raise AssertionError("there is always an accuracy level to try")

    def _tolerance(self, scales: Mapping[str, Array] | None) -> Tolerance:
        """Return the usual limits of the graph."""
        if scales is not None or self.has_packed_weights:
            return Tolerance.QUANTIZED_DECODER
        return Tolerance.FLOAT if self.config.dtype == "float32" else Tolerance.HALF

    def _compare(self, windows: list[Batch], tolerance: Tolerance) -> list[dict[str, Any]]:
        threads = self.context.threads
        with TorchSession(self.model.folder, threads, "cpu") as reference:
            reference.module.float()  # the graph computes in float32, whatever the file's dtype
            return compare(reference, self.out, windows, self.config.parity, threads, tolerance)

    @property
    def has_packed_weights(self) -> bool:
        """True if the graph has weights of at most 8 bits."""
        return is_packed(self.weights.tree) or self.config.decoder.int8_embeddings


def export_decoder(
    config: ExportOnnxConfig,
    tree: dict[str, Any],
    model: ModelDescription,
    out: Path,
    context: PassContext,
) -> PassOutput:
    """Build the graph of a decoder, write it into ``out``, and compare it with torch.

    Activations are rounded to integers only if the comparison holds with them.

    Args:
        config: the pass's.
        tree: the checkpoint's config.json.
        model: the checkpoint.
        out: an empty folder.
        context: of the pass.

    Raises:
        DataError: the data sets are empty, or hold no tokens.
        PassError: onnx's checker refuses the graph.
        ParityError: ONNX Runtime does not compute what torch does.
    """
    architecture = read_architecture(tree, config.decoder.context_length)
    pattern = read_attention_pattern(model.folder)
    if pattern is not None:
        architecture = replace(architecture, local_heads=pattern.layers)
    weights = CheckpointWeights(model.folder, tree, _DTYPES[config.dtype])
    export = _DecoderExport(config, model, architecture, weights, out, context)
    windows = export.windows(config.parity.data, config.parity.num_samples or _WINDOWS)
    calibration = export.calibration_windows()
    vision = None
    if architecture.images is not None:
        # Imported only here: transformers' module of the tower takes a second to import.
        from passes.export_onnx.decoder.vision import export_vision

        vision = export_vision(config, tree, model.folder, out, context)
    levels = _accuracy_levels(config.decoder, packed=export.has_packed_weights)
    scales = export.measure_scales(levels[0], calibration)
    saved, parity = export.write_compared(levels, scales, windows)
    # onnxruntime-genai requires ONNX Runtime's attention, and one cache for each layer.
    if config.decoder.target == "onnxruntime" and pattern is None:
        write_genai_config(tree, architecture, model.folder, out)
    copy_companions(model.folder, out)
    context.progress("done", _STAGES, _STAGES, {})
    summary = {
        **saved.summary(),
        "target": config.decoder.target,
        "accuracy_level": saved.accuracy_level,
        "kv_cache": config.dtype if scales is None else "int8",
        **saved.cache_summary(architecture.context),
        "context_length": architecture.context,
        "parity": parity,
    }
    return PassOutput(summary if vision is None else summary | {"vision": vision})


def _accuracy_levels(config: DecoderConfig, *, packed: bool) -> list[int]:
    """Return the accuracy levels of MatMulNBits to try, the preferred one first."""
    if config.accuracy_level is not None:
        return [config.accuracy_level]
    if packed and config.target == "onnxruntime":
        return [INTEGER_LEVEL, FLOAT_LEVEL]
    return [FLOAT_LEVEL]
