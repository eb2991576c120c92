"""Export by tracing, step by step: trace, simplify, store integers, save, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.data.contract import Batch
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import DataError
from compressor.graphs.blocks import BLOCKS_OPSET, store_packed_layers
from compressor.graphs.files import read_graph
from compressor.graphs.layer_names import encode_layer_inputs, name_layers
from compressor.graphs.lint.targets import lint
from compressor.graphs.qdq import freeze_scales, rounding_translations, store_integer_weights
from compressor.graphs.saving import file_metadata, save_checked_model
from compressor.graphs.simplify import replace_reciprocals, simplify, strip_metadata
from compressor.models.capabilities.signature import InputSpec
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.packed_checkpoint import read_packed_layers
from compressor.models.quantized.quantization import Quantization
from compressor.runtimes.formats import open_session, recognize
from compressor.runtimes.layers import INPUTS_KEY
from compressor.runtimes.onnxruntime.integer_kernels import inspect_kernels
from compressor.runtimes.session import match_inputs
from compressor.runtimes.torch.layers import TorchLayers
from passes.export_onnx.config import ExportOnnxConfig
from passes.export_onnx.parity import compare
from passes.export_onnx.tracing import onnx_from_torch

if TYPE_CHECKING:
    import onnx_ir as ir

_SAMPLES = 64
"""Samples that are compared where the config does not say."""
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
    dataset = context.data(config.parity.data)
    count = config.parity.num_samples or _SAMPLES
    batches = list(dataset.batches(config.parity.batch_size, count))
    if not batches:
        raise DataError(
            f"the data set {config.parity.data!r} is empty: the export is traced and compared on "
            "its samples"
        )
    quantization = model.quantization()
    _report(context, 0)
    graph, layer_inputs = _trace(model, inputs, config.opset, batches[0])
    _report(context, 1)
    simplified = "not asked for"
    if config.simplify:
        result = simplify(graph)
        graph, simplified = result.model, result.summary
        if not result.applied:
            context.note(simplified)
    replace_reciprocals(graph)
    packed = _store_packed(graph, model, context)
    if quantization is not None:
        store_integer_weights(graph, quantization.target, _smallest_bits(quantization))
    _report(context, 2)
    metadata = file_metadata(context.artifact_id, model.family.name, dataset.class_names())
    metadata[INPUTS_KEY] = encode_layer_inputs(layer_inputs)
    external = save_checked_model(
        graph, out, metadata, config.external_data_threshold_mb * 1_000_000
    )
    _report(context, 3)
    is_quantized = quantization is not None or bool(packed.get("integer_layers"))
    with (
        recognize(model.folder).open_session(context.threads) as reference,
        open_session("onnx", out, threads=context.threads) as exported,
    ):
        parity = compare(reference, exported, batches, config.parity, quantized=is_quantized)
    _report(context, 4)
    integers = {} if quantization is None else _inspect_integers(quantization, out, context)
    return PassOutput(
        integers
        | packed
        | {
            "opset": config.opset,
            "nodes": graph.graph.num_nodes(),
            "simplify": simplified,
            "external_data": external,
            "parity": {f"batch_{result.batch_size}": asdict(result) for result in parity},
        }
    )


def _report(context: PassContext, done: int) -> None:
    context.progress(_STAGES[min(done, len(_STAGES) - 1)], done, len(_STAGES), {})


def _trace(
    model: ModelDescription, inputs: Sequence[InputSpec], opset: int, batch: Batch
) -> tuple[ir.Model, dict[str, str]]:
    """Return the traced graph, and the value that each layer reads."""
    signature, quantization = model.signature, model.quantization()
    module = load_module(model)
    translations = None
    if quantization is not None:
        freeze_scales(module)
        translations = rounding_translations(quantization.target)
    graph = onnx_from_torch(
        module,
        inputs,
        signature.outputs,
        match_inputs(batch, signature.required_inputs),
        opset,
        translations,
    )
    layers = TorchLayers(module, signature.inputs, signature.outputs)
    layers.trace({name: array[:1] for name, array in batch.items()})
    layer_inputs = name_layers(graph, layers.parts)
    strip_metadata(graph)
    return graph, layer_inputs


def _smallest_bits(quantization: Quantization) -> int:
    bits = {layer.weight.bits for layer in quantization.layers.values()}
    bits |= {grid.bits for grid in quantization.embeddings.values()}
    return min(bits, default=8)


def _store_packed(graph: ir.Model, model: ModelDescription, context: PassContext) -> dict[str, Any]:
    """Store the weights of packed layers as integers if the opset has blocks of them.

    Returns:
        Entries of the summary; none for a model without packed layers.
    """
    layers = read_packed_layers(model.folder)
    if not layers:
        return {}
    has_blocks = graph.opset_imports[""] >= BLOCKS_OPSET
    stored = store_packed_layers(graph, layers) if has_blocks else set()
    float_layers = sorted(layers.keys() - stored)
    if float_layers:
        reason = f"set `opset: {BLOCKS_OPSET}`"
        if has_blocks:
            reason = "DequantizeLinear reads 4 and 8 bits"
        context.note(
            f"the weights of {len(float_layers)} packed layers are stored as floats, which hold "
            f"them exactly: {reason}"
        )
    return {"integer_layers": len(stored), "packed_as_floats": float_layers}


def _inspect_integers(
    quantization: Quantization, out: Path, context: PassContext
) -> dict[str, Any]:
    """Return what ONNX Runtime computes with integers, and what the target would refuse."""
    kernels = inspect_kernels(out)
    problems = [str(problem) for problem in lint(read_graph(out), quantization.target)]
    for problem in problems:
        context.note(f"{quantization.target}: {problem}")
    return {
        "target": quantization.target,
        "integer_layers": len(quantization.layers),
        "onnxruntime_integer": kernels.integer,
        "onnxruntime_float": list(kernels.floating),
        "onnxruntime_roundings": kernels.rounding,
        "complaints": problems,
    }
