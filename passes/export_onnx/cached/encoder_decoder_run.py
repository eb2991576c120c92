"""Export of an encoder-decoder, step by step: trace both graphs, save them, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from compressor.artifacts.files import copy_file
from compressor.data.contract import Batch
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import DataError
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    CONTEXT_LENGTH_KEY,
    CROSS_PREFIX,
    DECODER_TOKENS,
    ENCODER_MASK,
    ENCODER_MODEL,
    TARGET_KEY,
    TRACED,
)
from compressor.graphs.files import MODEL
from compressor.graphs.saving import file_metadata, save_checked_model
from compressor.graphs.simplify import strip_metadata
from compressor.models.capabilities.cached_generation import CachedGeneration, CachedTensor
from compressor.models.capabilities.signature import RECORDING_AXES, InputSpec
from compressor.models.checkpoint.companions import copy_companions
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.session import match_inputs
from compressor.runtimes.torch.session import TorchSession
from passes.export_onnx.cached.encoder_decoder import CrossDecoder, CrossEncoder
from passes.export_onnx.cached.encoder_decoder_parity import compare_encoder_decoder
from passes.export_onnx.cached.graph import ExtraInput, trace_decoder
from passes.export_onnx.cached.probe import NO_CACHE, continues_from_cache
from passes.export_onnx.class_tracing import trace_class
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.packed import store_packed
from passes.export_onnx.parity import Limits, Tolerance
from passes.export_onnx.traced_run import export_traced
from passes.export_onnx.tracing import GraphInterface

if TYPE_CHECKING:
    import onnx_ir as ir

_SAMPLES = 4
"""Default number of compared samples."""
_STAGES = ("trace the encoder", "trace the decoder", "compare")
_SOURCE = "source"
_SOURCE_POSITIONS, _BATCH = 7, 2
_DECODER_TOKENS = 10
"""Tokens of the decoder that are compared where the data have none."""


def export_encoder_decoder(
    config: ExportOnnxConfig,
    generation: CachedGeneration,
    model: ModelDescription,
    out: Path,
    context: PassContext,
) -> PassOutput:
    """Write ``encoder.onnx`` and the decoder ``model.onnx`` into ``out``, and compare with torch.

    A class that does not continue from its cache, such as FSMT, is one graph without one.

    Raises:
        DataError: the parity set is empty or does not fit the model.
        PassError: the class cannot be traced, or onnx's checker refuses a graph.
        ParityError: ONNX Runtime does not compute what torch does.
    """
    export = _Export(config, generation, model, out, context)
    batches = export.read_batches()
    module: Any = load_module(model).float()
    if not export.continues_from_cache(module, batches[0]):
        context.note(NO_CACHE)
        return export_traced(config, model.signature.required_inputs, model, out, context)
    export.report(0)
    encoder = export.trace_encoder(module, batches[0])
    export.report(1)
    decoder = export.trace_decoder(module)
    del module
    packed = store_packed([encoder, decoder], model.folder, context.note)
    export.save(encoder, ENCODER_MODEL)
    export.save(decoder, MODEL)
    export.report(2)
    parity = export.compare(batches, quantized=bool(packed))
    copy_companions(model.folder, out)
    copy_file(model.folder / CONFIG, out / CONFIG)  # names the decoder's first token
    export.report(3)
    return PassOutput(
        packed
        | {
            "opset": decoder.opset_imports[""],
            "nodes": decoder.graph.num_nodes(),
            "encoder_nodes": encoder.graph.num_nodes(),
            "target": TRACED,
            "kv_cache": "float32",
            "context_length": export.context_length,
            "parity": parity,
        }
    )


@dataclass(frozen=True, slots=True)
class _Export:
    """Export of one encoder-decoder in progress."""

    config: ExportOnnxConfig
    generation: CachedGeneration
    model: ModelDescription
    out: Path
    context: PassContext

    @property
    def context_length(self) -> int:
        """Positions that the decoder's graph is used for."""
        return self.config.decoder.context_length or self.generation.context_length

    @property
    def mask(self) -> InputSpec | None:
        """The mask of the encoder's inputs."""
        specs = self.generation.encoder_inputs
        return next((spec for spec in specs if spec.name == ATTENTION_MASK), None)

    @property
    def is_recording(self) -> bool:
        """True if the mask has samples or frames, of which the encoder makes fewer positions."""
        return self.mask is not None and self.mask.shape[-1] in RECORDING_AXES

    def report(self, done: int) -> None:
        """Report progress after some of the stages."""
        self.context.progress(_STAGES[min(done, len(_STAGES) - 1)], done, len(_STAGES), {})

    def read_batches(self) -> list[Batch]:
        """Return the compared samples in batches of `parity.batch_size`, with decoder tokens.

        Raises:
            DataError: there are none, or they do not fit the model.
        """
        parity = self.config.parity
        dataset, count = self.context.data(parity.data), parity.num_samples or _SAMPLES
        size = min(parity.batch_size, count)
        batches = [self._with_decoder_tokens(batch) for batch in dataset.batches(size, count)]
        if not batches:
            raise DataError(
                f"the data set {parity.data!r} is empty: the export is compared on its samples"
            )
        return batches

    def _with_decoder_tokens(self, batch: Batch) -> Batch:
        """Return the arrays that the model takes; random tokens where the data have none."""
        inputs = self.model.signature.required_inputs
        if DECODER_TOKENS not in batch:
            [spec] = [spec for spec in inputs if spec.name == DECODER_TOKENS]
            samples = len(next(iter(batch.values())))
            tokens = min(_DECODER_TOKENS, self.context_length)
            rng = np.random.default_rng(0)
            ids = rng.integers(0, spec.below or 2, (samples, tokens))
            batch = {**batch, DECODER_TOKENS: ids}
        return match_inputs(batch, inputs)

    def continues_from_cache(self, module: Any, batch: Batch) -> bool:
        """Return True if a class decodes from its cache as it does from all tokens."""
        sample = {name: array[:1] for name, array in batch.items()}
        names = [spec.name for spec in self.generation.encoder_inputs]
        encoder_inputs = {name: torch.from_numpy(sample[name]) for name in names}
        return continues_from_cache(module, sample, tokens=DECODER_TOKENS, **encoder_inputs)

    def trace_encoder(self, module: Any, batch: Batch) -> ir.Model:
        """Return the encoder's graph, traced with the shapes of a batch."""
        inputs = self.generation.encoder_inputs
        names = [spec.name for spec in inputs]
        samples = [_first_samples(batch[name]) for name in names]
        outputs = [CROSS_PREFIX + tensor.name for tensor in self.generation.cross_tensors]
        if self.is_recording:
            outputs.append(ENCODER_MASK)
        interface = GraphInterface(
            inputs=names,
            outputs=outputs,
            dynamic=(tuple(_variable_sizes(spec) for spec in inputs),),
            opset=self.config.opset,
        )
        encoder = CrossEncoder(module, names, returns_mask=self.is_recording)
        graph = trace_class(encoder, tuple(samples), interface)
        strip_metadata(graph)
        return graph

    def trace_decoder(self, module: Any) -> ir.Model:
        """Return the decoder's graph."""
        cross = self.generation.cross_tensors
        is_masked = self.mask is not None
        decoder = CrossDecoder(
            module,
            self.generation.tensors,
            cross,
            is_masked=is_masked,
            is_recording=self.is_recording,
        )
        extra = [_cross_input(tensor) for tensor in cross]
        if is_masked:
            mask = torch.ones(_BATCH, _SOURCE_POSITIONS, dtype=torch.int64)
            extra.insert(0, ExtraInput(ENCODER_MASK, mask, {0: "batch", 1: _SOURCE}))
        graph = trace_decoder(decoder, self.config.opset, extra)
        strip_metadata(graph)
        return graph

    def save(self, graph: ir.Model, name: str) -> None:
        """Write a graph."""
        metadata = file_metadata(self.context.artifact_id, self.model.family.name, None)
        metadata |= {TARGET_KEY: TRACED, CONTEXT_LENGTH_KEY: str(self.context_length)}
        threshold = self.config.external_data_threshold_mb * 1_000_000
        save_checked_model(graph, self.out, metadata, threshold, name)

    def compare(self, batches: Sequence[Batch], *, quantized: bool) -> list[dict[str, Any]]:
        """Compare both graphs with torch in float32."""
        tolerance = Tolerance.QUANTIZED_DECODER if quantized else Tolerance.FLOAT
        limits = Limits.from_config(self.config.parity, tolerance)
        threads = self.context.threads
        with TorchSession(self.model.folder, threads, "cpu") as reference:
            reference.module.float()
            ways = compare_encoder_decoder(
                reference, self.out, batches, self.config.parity, limits, threads
            )
        return [asdict(way) for way in ways]


def _first_samples(array: np.ndarray[Any, Any]) -> Tensor:
    """Return the first samples; a single one is repeated."""
    return torch.from_numpy(np.ascontiguousarray(array[np.arange(_BATCH) % len(array)]))


def _variable_sizes(spec: InputSpec) -> dict[int, str]:
    return {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}


def _cross_input(tensor: CachedTensor) -> ExtraInput:
    sizes = {"batch": _BATCH, "past": _SOURCE_POSITIONS}
    shape = [size if isinstance(size, int) else sizes[size] for size in tensor.shape]
    named = replace(tensor, name=CROSS_PREFIX + tensor.name)
    return ExtraInput(named.name, torch.zeros(shape), {0: "batch", 2: _SOURCE})
