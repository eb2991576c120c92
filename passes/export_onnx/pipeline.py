"""The whole export: from a torch artifact's folder to an ONNX artifact's, compared and summed up."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.data.contract import Batch
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import DataError, ParityError, RequirementError
from compressor.graphs.blocks import BLOCKS_OPSET, store_packed_layers
from compressor.graphs.files import read_graph
from compressor.graphs.layer_names import encode_layer_inputs, name_layers
from compressor.graphs.lint.targets import lint
from compressor.graphs.qdq import freeze_scales, rounding_translations, store_integer_weights
from compressor.graphs.saving import file_metadata, save_checked_model
from compressor.graphs.simplify import replace_reciprocals, simplify, strip_metadata
from compressor.models.capabilities.signature import InputSpec
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.packed_checkpoint import read_packed_layers
from compressor.models.quantized.quantization import QUANTIZATION, Quantization, read_quantization
from compressor.runtimes.formats import open_session
from compressor.runtimes.layers import INPUTS_KEY
from compressor.runtimes.onnxruntime.integer_kernels import inspect_kernels
from compressor.runtimes.session import match_inputs
from compressor.runtimes.torch.layers import TorchLayers
from passes.export_onnx.parity import Parity, compare
from passes.export_onnx.tracing import onnx_from_torch

if TYPE_CHECKING:
    from onnxscript import ir

    from passes.export_onnx.step import ExportOnnxConfig, ParityConfig

_SAMPLES = 64
_STAGES = ("trace", "simplify", "write", "compare")


def export(config: ExportOnnxConfig, model: Path, out: Path, context: PassContext) -> PassOutput:
    """Write the ONNX form of the model in folder ``model`` into ``out`` and hold it against torch.

    Raises:
        DataError: the parity set is empty or does not fit the model.
        PassError: the checker refuses the graph.
        ParityError: ONNX Runtime does not compute what torch does.
    """
    dataset = context.data(config.parity.data)
    batches = list(dataset.batches(config.parity.batch_size, config.parity.num_samples or _SAMPLES))
    if not batches:
        raise DataError(
            f"the set {config.parity.data!r} is empty: the export is traced and compared on its samples"
        )
    description = read_description(model)
    family, model_config = description.family, description.config
    inputs = traced_inputs(config, model)

    quantization = read_quantization(model) if (model / QUANTIZATION).is_file() else None
    _tell(context, 0)
    module = load_module(model)
    sample = match_inputs(batches[0], family.signature(model_config).required_inputs)
    if quantization is not None:
        freeze_scales(module)
    traced = onnx_from_torch(
        module,
        inputs,
        family.signature(model_config).outputs,
        sample,
        config.opset,
        rounding_translations(quantization.target) if quantization is not None else None,
    )
    layers = TorchLayers(
        module, family.signature(model_config).inputs, family.signature(model_config).outputs
    )
    layers.trace({name: array[:1] for name, array in batches[0].items()})
    reads = name_layers(traced, layers.parts)
    strip_metadata(traced)
    _tell(context, 1)
    told = "not asked for"
    if config.simplify:
        result = simplify(traced)
        traced, told = result.model, result.summary
        if not result.applied:
            context.note(told)
    replace_reciprocals(traced)
    packed = _store_packed(traced, model, context)
    if quantization is not None:
        bits = {one.weight.bits for one in quantization.layers.values()}
        bits |= {one.bits for one in quantization.embeddings.values()}
        store_integer_weights(traced, quantization.target, min(bits, default=8))
    _tell(context, 2)
    metadata = file_metadata(context.artifact_id, family.name, dataset.class_names()) | {
        INPUTS_KEY: encode_layer_inputs(reads)
    }
    external = save_checked_model(
        traced, out, metadata, config.external_data_threshold_mb * 1_000_000
    )
    _tell(context, 3)
    parity = _compared(
        config.parity, model, out, batches, context, integers=bool(packed.get("integer_layers"))
    )
    _tell(context, 4)
    return PassOutput(
        ({} if quantization is None else _integers(quantization, out, context))
        | packed
        | {
            "opset": config.opset,
            "nodes": traced.graph.num_nodes(),
            "simplify": told,
            "external_data": external,
            "parity": {f"batch_{one.batch_size}": asdict(one) for one in parity},
        }
    )


def traced_inputs(config: ExportOnnxConfig, model: Path) -> tuple[InputSpec, ...]:
    """The family's inputs; a dimension that is not to vary has the size -1 instead of its name.

    Raises:
        ModelError: the model cannot be opened.
        RequirementError: ``dynamic`` names dimensions that the model does not have.
    """
    description = read_description(model)
    name, family, model_config = description.family.name, description.family, description.config
    inputs = family.signature(model_config).required_inputs
    known = sorted({size for spec in inputs for size in spec.shape if isinstance(size, str)})
    if config.dynamic is None:
        return inputs
    if unknown := [one for one in config.dynamic if one not in known]:
        raise RequirementError(
            f"`dynamic` names dimensions that a model of the family {name} does not have: {', '.join(unknown)}",
            remedy=f"its dimensions are {', '.join(known)}",
        )
    return tuple(
        replace(
            spec,
            shape=tuple(
                -1 if isinstance(s, str) and s not in config.dynamic else s for s in spec.shape
            ),
        )
        for spec in inputs
    )


def _tell(context: PassContext, done: int) -> None:
    context.progress(_STAGES[min(done, len(_STAGES) - 1)], done, len(_STAGES), {})


def check_integers(model: Path) -> None:
    """Every layer of a quantized model has integers that a file can hold.

    Raises:
        RequirementError: some have 4-bit activations, for which there are no kernels.
    """
    if not (model / QUANTIZATION).is_file():
        return
    layers = read_quantization(model).layers
    if few := [
        name for name, one in layers.items() if one.input is not None and one.input.bits < 8
    ]:
        raise RequirementError(
            f"no runtime computes with 4-bit activations: {', '.join(few)}",
            remedy="quantize with activation_bits: 8",
        )


def _integers(quantization: Quantization, out: Path, context: PassContext) -> dict[str, Any]:
    """What ONNX Runtime computes with integers, and what the target would refuse."""
    found = inspect_kernels(out)
    complaints = [str(problem) for problem in lint(read_graph(out), quantization.target)]
    for complaint in complaints:
        context.note(f"{quantization.target}: {complaint}")
    return {
        "target": quantization.target,
        "integer_layers": len(quantization.layers),
        "onnxruntime_integer": found.integer,
        "onnxruntime_float": list(found.floating),
        "onnxruntime_roundings": found.rounding,
        "complaints": complaints,
    }


def _store_packed(traced: ir.Model, model: Path, context: PassContext) -> dict[str, Any]:
    """The packed layers of an ``awq`` artifact as integers, where the opset has them; and what is told of it."""
    layers = read_packed_layers(model)
    if not layers:
        return {}
    opset = traced.opset_imports[""]
    found = store_packed_layers(traced, layers) if opset >= BLOCKS_OPSET else set()
    if left := sorted(layers.keys() - found):
        why = (
            f"set `opset: {BLOCKS_OPSET}`"
            if opset < BLOCKS_OPSET
            else "DequantizeLinear reads 4 and 8 bits"
        )
        context.note(
            f"the weights of {len(left)} packed layers are stored as floats, which hold them exactly: {why}"
        )
    return {"integer_layers": len(found), "packed_as_floats": left}


def _compared(
    config: ParityConfig,
    model: Path,
    out: Path,
    batches: list[Batch],
    context: PassContext,
    *,
    integers: bool,
) -> tuple[Parity, ...]:
    kind = "quantized" if (model / QUANTIZATION).is_file() else "torch"
    with (
        open_session(kind, model, threads=context.threads) as reference,
        open_session("onnx", out, threads=context.threads) as exported,
    ):
        return compare(
            reference, exported, batches, config, integers=integers or kind == "quantized"
        )


def check_interface(model: Path, out: Path, threads: int) -> None:
    """ONNX Runtime opens what was written, and it takes and gives what the family does.

    Raises:
        ModelError: it cannot be opened.
        ParityError: inputs or outputs have other names.
    """
    description = read_description(model)
    name, family, config = description.family.name, description.family, description.config
    wanted = (
        tuple(spec.name for spec in family.signature(config).required_inputs),
        tuple(family.signature(config).outputs),
    )
    with open_session("onnx", out, threads=threads) as session:
        found = (
            tuple(spec.name for spec in session.inputs if not spec.optional),
            session.output_names,
        )
    if found != wanted:
        raise ParityError(f"the exported graph takes and gives {found}; the family {name} {wanted}")
