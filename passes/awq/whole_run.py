"""Quantization of a model that is in memory as a whole, one block after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import NumericalError
from compressor.models.capabilities.linear_groups import Block, LinearGroups
from compressor.models.capabilities.loaded_model import LoadedModel
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.checkpoint.layout import WEIGHTS
from compressor.models.checkpoint.loading import load_module
from compressor.models.checkpoint.weights import tensors_to_save
from compressor.models.families.transformers.conv1d import replace_conv1d, transpose
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.packing_schemes import TRANSPOSED_LAYERS
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid
from passes.awq.activations import CAPTURED_BYTES, Captures, load_samples
from passes.awq.block import BlockCalibration, BlockQuantizer
from passes.awq.config import AwqConfig
from passes.awq.contract import Parts
from passes.awq.float_reference import FloatReference, RunBatch
from passes.awq.linear_layers import find_linears, select_layers
from passes.awq.packed_file import cast_float, tensors_beside, write_packed_shard
from passes.awq.settings import QuantizationSettings
from passes.awq.valid_positions import CallMasks, TracedPositions, trace_positions
from passes.awq.whole_sensitivity import choose_grids, valid_outputs
from passes.common.changed_share import count_share
from passes.common.device import prepare_torch, tensors_from_batch


def quantize_module(
    config: AwqConfig,
    blocks: Sequence[Block],
    model: ModelDescription,
    out: Path,
    context: PassContext,
    parts: Parts,
) -> PassOutput:
    """Write the packed form of ``model`` into ``out``.

    Args:
        config: the pass's config.
        blocks: the model's blocks; if empty, they are discovered, or without need of them each
            linear layer is a site of its own.
        model: the model folder.
        out: an empty folder.
        context: services of the engine.
        parts: linear layers with other grids, and those that stay in float.
    """
    prepare_torch(context)
    context.progress("load the model", 0, 1, {})
    module = load_module(model)
    stored_dtype = next(value.dtype for value in module.parameters() if value.is_floating_point())
    module = module.float()
    transposed = replace_conv1d(module)
    settings = QuantizationSettings.of(config, stored_dtype)
    run = _WholeRun(config, settings, module, context)
    kept: dict[str, str] = dict(parts.kept_float)
    if not blocks:
        heads = [name for name in _vocabulary_heads(module) if name not in parts.grids]
        kept |= dict.fromkeys(heads, "its outputs are a vocabulary")
        blocks = _discover_blocks(config, model, run)
    selection = select_layers(blocks, module, config, kept, parts.grids)
    run.grids = dict(parts.grids)
    for name, reason in selection.kept_float.items():
        context.note(f"{name} is not quantized: {reason}")
    outputs = model.signature.outputs
    run.trace(outputs)
    if config.effective_bits is not None:
        run.grids |= choose_grids(
            module, selection.blocks, config, parts.grids, partial(run.outputs, outputs)
        )
    share = count_share(module, selection.names, batch=run.inputs[0])
    share.warn(context.note)
    run.quantize(selection.blocks)
    context.progress("write", 0, 1, {})
    quantization = _write_weights(run, model, out, transposed, sorted(selection.kept_float))
    dtype_name = str(settings.float_dtype).removeprefix("torch.")
    fields = {QUANTIZATION_CONFIG: quantization, "dtype": dtype_name}
    for note in model.family.write_packed_config(model.config, out, model.folder, fields):
        context.note(note)
    return PassOutput(run.summary(selection.kept_float) | share.summary())


def _write_weights(
    run: _WholeRun,
    model: ModelDescription,
    out: Path,
    transposed: frozenset[str],
    kept_float: Sequence[str],
) -> dict[str, Any]:
    """Write the packed weights by the names of the model's files.

    Args:
        run: the finished quantization.
        model: the model folder, whose class says how its files name tensors.
        out: a folder; made where it is missing.
        transposed: weights that the class has as [inputs, outputs].
        kept_float: linear layers that stay in float.

    Returns:
        The description of the quantization that config.json holds.
    """
    out.mkdir(parents=True, exist_ok=True)
    module, packed, settings = run.module, run.packed, run.settings
    names = model.family.file_names(module, model.config, model.folder)
    if names is None:
        floats = tensors_beside(packed, transpose(tensors_to_save(module), transposed, ""))
    else:
        state = {name: value for name, value in module.state_dict().items() if names.holds(name)}
        state = tensors_beside(packed, transpose(state, transposed, ""))
        # Copies, because no two tensors of a file may share their memory.
        floats = names.tensors({name: value.clone() for name, value in state.items()})
        packed = names.packed(packed)
    write_packed_shard(out / WEIGHTS, "", floats, packed, settings)
    (out / WEIGHTS).chmod(0o644)  # safetensors creates files with mode 0600
    names_by_grid: dict[WeightGrid, list[str]] = {}
    for name, layer in sorted({**run.packed, **packed}.items()):
        names_by_grid.setdefault(layer.grid, []).append(name)
    quantization = settings.format.config(names_by_grid, kept_float)
    layers = [name for name in run.packed if f"{name}.weight" in transposed]
    if layers:
        in_files = names.packed({name: run.packed[name] for name in layers}) if names else {}
        quantization[TRANSPOSED_LAYERS] = sorted({*layers, *in_files})
    return quantization


def _discover_blocks(
    config: AwqConfig, model: ModelDescription, run: _WholeRun
) -> tuple[Block, ...]:
    """Return the blocks found in the module on the first batch; none if no method needs them."""
    if not config.grouped_methods:
        return ()
    run.context.progress("find groups of layers", 0, 1, {})
    loaded = LoadedModel(run.module, run.inputs[0])
    groups = model.family.capability(LinearGroups, model.config, loaded)
    return () if groups is None else groups.blocks


def _vocabulary_heads(module: nn.Module) -> list[str]:
    """Return the linear layers with an output for each row of the embedding of tokens."""
    rows = {layer.num_embeddings for layer in module.modules() if isinstance(layer, nn.Embedding)}
    return [
        name
        for name, layer in find_linears(module).items()
        if layer.out_features in rows and layer.out_features > layer.in_features
    ]


def run_reproducibly(module: nn.Module, inputs: Mapping[str, Tensor], seed: int) -> Any:
    """Return the result of a module that draws the same random numbers in every run.

    ViLT draws the order of its patches: layers are compared in float and quantized, and the two
    would read the patches in different orders.

    Args:
        module: the module.
        inputs: arguments by name.
        seed: of the batch; the global generator is left as it was.
    """
    devices = {value.device for value in inputs.values() if value.is_cuda}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return module(**inputs)


class _WholeRun:
    """State of the quantization of one module."""

    def __init__(
        self,
        config: AwqConfig,
        settings: QuantizationSettings,
        module: nn.Module,
        context: PassContext,
    ) -> None:
        self.config, self.settings, self.context = config, settings, context
        self.grid = config.grids[0]
        self.grids: dict[str, WeightGrid] = {}
        """Grids of linear layers that do not have ``grid``."""
        self.module = module
        """The module, quantized block by block."""
        self.float_module: nn.Module | None = None
        """A copy in float; None if the error of earlier layers is not compensated."""
        samples = load_samples(config, context)
        self.inputs: list[dict[str, Tensor]] = []
        """Calibration batches."""
        for batch in samples.batches("calibrate"):
            tensors = tensors_from_batch(batch, torch.device("cpu"))
            self.inputs.append({name: tensors[name] for name in samples.dataset.input_names})
        self.digest = samples.digest
        self.masks: list[CallMasks] = []
        """Positions of each batch that affect an output."""
        self.packed: dict[str, PackedLinear] = {}
        """Packed layers by name."""
        self.report: list[dict[str, Any]] = []
        """A row for each linear layer."""

    def trace(self, outputs: tuple[str, ...]) -> None:
        """Find the positions that affect the outputs, and copy the float module."""
        linears = find_linears(self.module.requires_grad_(False))
        for linear in linears.values():
            linear.weight.requires_grad_()
        for number, inputs in enumerate(self.inputs):
            self.context.progress("find positions", number, len(self.inputs), {})
            self.masks.append(trace_positions(self.module, linears, outputs, inputs))
        self.module.requires_grad_(False)
        if self.config.error_compensation:
            self.float_module = deepcopy(self.module)

    def outputs(self, names: Sequence[str]) -> list[Tensor]:
        """Return the outputs of the module for the first batch, without padding."""
        inputs = self.inputs[0]
        return valid_outputs(run_reproducibly(self.module, inputs, seed=0), names, inputs)

    @torch.inference_mode()
    def quantize(self, blocks: tuple[Block, ...]) -> None:
        """Quantize all blocks; tensors that are not packed are rounded to their dtype first."""
        packed_weights = {
            f"{block.full(name)}.weight"
            for block in blocks
            for site in block.sites
            for name in site.linears
        }
        for name, value in self.module.state_dict().items():
            if name not in packed_weights and value.is_floating_point():
                value.copy_(cast_float(name, value, self.settings.float_dtype))
        self.context.progress("blocks", 0, len(blocks), {})
        for number, block in enumerate(blocks):
            quantizer = self._quantize_block(block)
            self.packed |= {block.full(name): layer for name, layer in quantizer.packed.items()}
            rows = quantizer.report
            self.report += [{"layer": number, "block": block.name, **row} for row in rows]
            error = sum(row["error"] for row in rows) / len(rows)
            self.context.progress("blocks", number + 1, len(blocks), {"error": error})

    def _quantize_block(self, block: Block) -> BlockQuantizer:
        captures = Captures(self.context.work / "captures", CAPTURED_BYTES)
        reference = None
        if self.float_module is not None:
            reference = FloatReference(captures)
            float_block = self.float_module.get_submodule(block.name)
            for batch, run in self._batches(self.float_module):
                reference.record(float_block, block.sites, batch, run)
        calibration = BlockCalibration(
            partial(self._batches, self.module),
            TracedPositions(block, self.masks),
            captures,
            reference,
        )
        quantizer = BlockQuantizer(
            self.module.get_submodule(block.name),
            block.sites,
            {s.name: self.grids.get(block.full(s.linears[0]), self.grid) for s in block.sites},
            self.settings,
            calibration,
        )
        if not block.name:  # its names are those of the model, and a source may be packed already
            quantizer.packed = self.packed
        try:
            quantizer.quantize()
        except NumericalError as error:
            raise NumericalError(
                f"{block.name or 'the model'}: {error.what}", remedy=error.remedy
            ) from error
        captures.close()
        return quantizer

    def _batches(self, module: nn.Module) -> Iterator[tuple[int, RunBatch]]:
        """Yield the number of each batch and what runs it through the whole module."""
        for batch, inputs in enumerate(self.inputs):
            yield batch, partial(run_reproducibly, module, inputs, seed=batch)

    def summary(self, kept_float: dict[str, str]) -> dict[str, Any]:
        """Return the summary for the manifest; ``kept_float`` maps layers to reasons."""
        shapes = [(layer.integers_OI.shape, layer.grid) for layer in self.packed.values()]
        weights = sum(shape.numel() for shape, _ in shapes)
        bits = sum(shape.numel() * grid.effective_bits(shape[1]) for shape, grid in shapes)
        nearest = [
            {"linear": f"{row['block']}.{row['linear']}".lstrip("."), "tokens": row["tokens"]}
            for row in self.report
            if row.get("rounded_to_nearest")
        ]
        return {
            "effective_bits": round(bits / weights, 4),
            "packed_weights": weights,
            "format": self.config.format,
            "samples_sha256": self.digest,
            "kept_float": [{"linear": name, "why": reason} for name, reason in kept_float.items()],
            "layers": self.report,
            **({"rounded_to_nearest": nearest} if nearest else {}),
        }
