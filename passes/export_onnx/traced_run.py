"""Export by tracing, step by step: trace, simplify, store integers, save, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.data.contract import Batch, Dataset
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import DataError, ParityError, PassError
from compressor.graphs.files import read_graph
from compressor.graphs.layer_names import encode_layer_inputs, name_layers
from compressor.graphs.lint.targets import lint
from compressor.graphs.qdq import freeze_scales, rounding_translations, store_integer_weights
from compressor.graphs.saving import file_metadata, save_checked_model
from compressor.graphs.simplify import replace_reciprocals, simplify, strip_metadata
from compressor.models.capabilities.signature import InputSpec
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.quantization import Quantization
from compressor.runtimes.formats import open_session
from compressor.runtimes.layers import INPUTS_KEY
from compressor.runtimes.onnxruntime.integer_kernels import inspect_kernels
from compressor.runtimes.session import match_inputs
from compressor.runtimes.torch.layers import TorchLayers
from compressor.runtimes.torch.session import TorchSession
from passes.export_onnx.compute_types import (
    computes_in_bfloat16,
    computes_in_half,
    in_float32,
    outputs_in_float64,
)
from passes.export_onnx.config import HALF, ExportOnnxConfig
from passes.export_onnx.half import convert_to_half
from passes.export_onnx.packed import store_packed
from passes.export_onnx.parity import Limits, Parity, Tolerance, compare
from passes.export_onnx.repeated_choices import RepeatedChoices
from passes.export_onnx.rounding import explained
from passes.export_onnx.tracing import Tracer, has_library_classes, onnx_from_torch, trace

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

_SAMPLES = 64
"""Default number of compared samples."""
_HALF_BATCHES = 2
"""Batches on which the ranges of values are measured for float16."""
_IMAGE_SIZES = frozenset({"height", "width"})
"""Names of the variable sizes of images."""
_STAGES = ("trace", "simplify", "write", "compare")


def export_traced(
    config: ExportOnnxConfig,
    inputs: Sequence[InputSpec],
    model: ModelDescription,
    out: Path,
    context: PassContext,
) -> PassOutput:
    """Write the graph of a model into ``out`` and compare it with torch.

    Args:
        config: the pass's.
        inputs: inputs of the graph; the names in their shapes are variable dimensions.
        model: the parent.
        out: an empty folder.
        context: of the pass.

    Raises:
        DataError: the parity set is empty or does not fit the model.
        PassError: onnx's checker refuses the graph.
        ParityError: ONNX Runtime does not compute what torch does.
    """
    export = _TracedExport(config, model, model.quantization(), out, context)
    dataset = context.data(config.parity.data)
    batches = export.read_batches(dataset)
    export.report(0)
    graph, layer_inputs = export.trace(inputs, batches[0])
    export.report(1)
    graph, simplified = export.simplify(graph)
    packed = export.store_integers(graph)
    export.report(2)
    metadata = file_metadata(context.artifact_id, model.family.name, dataset.class_names())
    metadata[INPUTS_KEY] = encode_layer_inputs(layer_inputs)
    threshold = config.external_data_threshold_mb * 1_000_000
    saved = {"external_data": save_checked_model(graph, out, metadata, threshold)}
    if config.dtype == HALF:
        feeds = [match_inputs(batch, inputs) for batch in batches[:_HALF_BATCHES]]
        saved |= convert_to_half(out, feeds, threshold)
    export.report(3)
    parity = export.compare(batches, quantized=bool(packed.get("integer_layers")))
    export.report(4)
    return PassOutput(
        export.inspect_integers()
        | packed
        | {
            "opset": config.opset,
            "nodes": graph.graph.num_nodes(),
            "simplify": simplified,
            **saved,
            "parity": {f"batch_{result.batch_size}": asdict(result) for result in parity},
        }
    )


@dataclass(frozen=True, slots=True)
class _TracedExport:
    """Export of one traced model in progress."""

    config: ExportOnnxConfig
    model: ModelDescription
    quantization: Quantization | None
    out: Path
    context: PassContext

    def report(self, done: int) -> None:
        """Report progress after some of the stages."""
        stage = _STAGES[min(done, len(_STAGES) - 1)]
        self.context.progress(stage, done, len(_STAGES), {})

    def read_batches(self, dataset: Dataset) -> list[Batch]:
        """Return the samples on which the model is traced and compared.

        Raises:
            DataError: there are none.
        """
        parity = self.config.parity
        batches = list(dataset.batches(parity.batch_size, parity.num_samples or _SAMPLES))
        if not batches:
            raise DataError(
                f"the data set {parity.data!r} is empty: the export is traced and compared on its "
                "samples"
            )
        return batches

    def trace(self, inputs: Sequence[InputSpec], batch: Batch) -> tuple[ir.Model, dict[str, str]]:
        """Return the traced graph, and the value that each layer reads."""
        signature, wanted = self.model.signature, {spec.name for spec in inputs}
        specs = [spec for spec in signature.inputs if spec.name in wanted]
        samples = match_inputs(batch, signature.inputs)
        module = in_float32(load_module(self.model), self.model, samples)
        if computes_in_bfloat16(module):
            raise PassError(
                "the module's code casts to bfloat16, for which ONNX Runtime has no kernels",
                remedy="cast to the type of the weights, such as `x.to(self.layer.weight.dtype)`: "
                "the graph is exported in float32",
            )
        if self.quantization is not None:
            freeze_scales(module)
        graph = self._trace(module, inputs, match_inputs(batch, specs))
        layers = TorchLayers(module, signature.inputs, signature.outputs)
        layers.trace({name: array[:1] for name, array in batch.items()})
        layer_inputs = name_layers(graph, layers.parts)
        strip_metadata(graph)
        return graph, layer_inputs

    def _trace(self, module: nn.Module, inputs: Sequence[InputSpec], batch: Batch) -> ir.Model:
        """Trace the module; with images of one size if it cannot be traced with any size."""
        translations = None
        if self.quantization is not None:
            translations = rounding_translations(self.quantization.target)
        outputs, opset = self.model.signature.outputs, self.config.opset
        tracer = _tracer(module)
        try:
            return onnx_from_torch(module, inputs, outputs, batch, opset, translations, tracer)
        except PassError as error:
            fixed = [_with_fixed_images(spec, batch) for spec in inputs]
            if fixed == list(inputs) or self.config.dynamic is not None:
                raise
            self.context.note(
                "images are fixed to the size of the samples: with a variable size, " + error.what
            )
        return onnx_from_torch(module, fixed, outputs, batch, opset, translations, tracer)

    def simplify(self, graph: ir.Model) -> tuple[ir.Model, str]:
        """Return the simplified graph, and a line for the summary."""
        summary = "not asked for"
        if self.config.simplify:
            result = simplify(graph)
            graph, summary = result.model, result.summary
            if not result.applied:
                self.context.note(summary)
        replace_reciprocals(graph)
        return graph, summary

    def store_integers(self, graph: ir.Model) -> dict[str, Any]:
        """Store the weights of packed and quantized layers as integers, in place.

        Returns:
            Entries of the summary; none for a model without packed layers.
        """
        summary = store_packed([graph], self.model.folder, self.context.note)
        if self.quantization is not None:
            bits = _smallest_bits(self.quantization)
            store_integer_weights(graph, self.quantization.target, bits)
        return summary

    def compare(self, batches: list[Batch], *, quantized: bool) -> tuple[Parity, ...]:
        """Compare the written graph with the parent."""
        with (
            TorchSession(self.model.folder, self.context.threads, "cpu") as reference,
            open_session("onnx", self.out, threads=self.context.threads) as exported,
        ):
            samples = match_inputs(batches[0], reference.inputs)
            reference.module = in_float32(reference.module, self.model, samples)
            is_half = self.config.dtype == HALF or computes_in_half(reference.module)
            tolerance = Tolerance.HALF if is_half else Tolerance.FLOAT
            if quantized or self.quantization is not None:
                tolerance = Tolerance.QUANTIZED
            precise = partial(outputs_in_float64, reference)
            limits = Limits.from_config(self.config.parity, tolerance)
            repeated = RepeatedChoices(reference, self.out, exported.inputs, limits)
            try:
                return compare(
                    reference,
                    exported,
                    batches,
                    self.config.parity,
                    tolerance=tolerance,
                    precise=precise if tolerance is Tolerance.FLOAT else None,
                    repeated=repeated.outputs,
                )
            except ParityError as error:
                if tolerance is not Tolerance.QUANTIZED:
                    raise
                raise explained(error, self.out, reference, batches) from error

    def inspect_integers(self) -> dict[str, Any]:
        """Return what ONNX Runtime computes with integers, and what the target would refuse.

        Returns:
            Entries of the summary; none for a model that is not quantized.
        """
        if self.quantization is None:
            return {}
        target = self.quantization.target
        kernels = inspect_kernels(self.out)
        problems = [str(problem) for problem in lint(read_graph(self.out), target)]
        for problem in problems:
            self.context.note(f"{target}: {problem}")
        return {
            "target": target,
            "integer_layers": len(self.quantization.layers),
            "onnxruntime_integer": kernels.integer,
            "onnxruntime_float": list(kernels.floating),
            "onnxruntime_roundings": kernels.rounding,
            "complaints": problems,
        }


def _tracer(module: nn.Module) -> Tracer:
    """Return the function that traces a module of any library."""
    if not has_library_classes(module):
        return trace
    from passes.export_onnx.class_tracing import trace_class

    return trace_class


def _with_fixed_images(spec: InputSpec, batch: Batch) -> InputSpec:
    """Return an input whose height and width are those of the samples."""
    sizes = zip(spec.shape, batch[spec.name].shape, strict=True)
    return replace(
        spec, shape=tuple(found if size in _IMAGE_SIZES else size for size, found in sizes)
    )


def _smallest_bits(quantization: Quantization) -> int:
    bits = {layer.weight.bits for layer in quantization.layers.values()}
    bits |= {grid.bits for grid in quantization.embeddings.values()}
    return min(bits, default=8)
