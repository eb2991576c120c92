"""Quantization of a transformers checkpoint, one decoder layer in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.artifacts.files import write_atomic
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import NumericalError
from compressor.models.families.transformers.layouts import LM_HEAD
from compressor.models.families.transformers.linear_groups import decoder_blocks
from compressor.models.families.transformers.streaming import (
    LayerArguments,
    StreamedCheckpoint,
    run_layer,
)
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.activations import CAPTURED_BYTES, Branch, Captures, HiddenStates, load_samples
from passes.awq.block import BlockCalibration, BlockQuantizer
from passes.awq.config import AwqConfig
from passes.awq.float_reference import FloatReference, RunBatch
from passes.awq.linear_layers import find_linears
from passes.awq.linear_shapes import count_decoder_weights, linear_shapes, quantized_share
from passes.awq.nearest_layers import find_vision_linears, pack_head, pack_vision
from passes.awq.sensitivity import FirstBatch, allocate_bits, measure_sensitivity
from passes.awq.settings import QuantizationSettings
from passes.awq.shards import (
    assemble_checkpoint,
    tensors_beside,
    write_float_shards,
    write_packed_shard,
)
from passes.awq.valid_positions import MaskedPositions
from passes.common.device import prepare_torch, tensors_from_batch, trim_heap


def quantize_checkpoint(
    config: AwqConfig, tree: dict[str, Any], parent: Path, out: Path, context: PassContext
) -> PassOutput:
    """Write the packed form of ``parent`` into ``out``, resuming from ``context.work``.

    Args:
        config: the pass's config.
        tree: the parent's config.json.
        parent: the folder of the checkpoint.
        out: an empty folder.
        context: services of the engine.
    """
    prepare_torch(context)
    run = _StreamedRun(config, tree, StreamedCheckpoint(parent, tree), context)
    share = quantized_share(config, tree)
    share.warn(context.note)
    shards = run.write_shards()
    grids = run.names_by_grid()
    if config.vision is not None:
        grids.setdefault(config.vision, []).extend(run.vision_linears)
    if config.lm_head is not None:
        grids.setdefault(config.lm_head, []).append(LM_HEAD)
    packed = {name for names in grids.values() for name in names}
    unpacked = [name for name in find_linears(run.checkpoint.module) if name not in packed]
    quantization = run.settings.format.config(grids, unpacked)
    assemble_checkpoint(shards, out, tree, quantization, run.settings.float_dtype, parent)
    return PassOutput(run.summary() | share.summary())


class _StreamedRun:
    """State of the quantization of one checkpoint."""

    def __init__(
        self,
        config: AwqConfig,
        tree: dict[str, Any],
        checkpoint: StreamedCheckpoint,
        context: PassContext,
    ) -> None:
        self.config, self.tree, self.checkpoint, self.context = config, tree, checkpoint, context
        self.blocks = decoder_blocks(tree)
        self.settings = QuantizationSettings.of(config, checkpoint.dtype)
        self.hidden = HiddenStates(context.work, context.artifact_id)
        self.samples = load_samples(config, context)
        self.digest = ""
        """sha256 of the calibration samples."""
        self.masks: list[Tensor | None] = []
        """Valid positions of each batch, bool [B·T]; None where all are valid."""
        self.grids: list[dict[str, WeightGrid]] = []
        """Grids of each layer's sites by name."""
        self.vision_linears: list[str] = []
        """Packed linear layers of the vision tower."""

    def write_shards(self) -> list[Path]:
        """Write and return the shards of the packed checkpoint."""
        arguments = self._enter_decoder()
        self._choose_grids(arguments)
        self._quantize_layers(arguments)
        config, settings, work = self.config, self.settings, self.context.work
        files = [self._layer_file(number) for number in range(len(self.blocks))]
        packed_parts = [f"{self.checkpoint.layers_name}."]
        if config.vision is not None:
            linears = find_vision_linears(self.checkpoint)
            self.vision_linears = [f"{part}.{name}" for part in linears for name in linears[part]]
            packed_parts += [f"{part}." for part in linears]
            progress = partial(self._report_progress, "vision")
            files += pack_vision(self.checkpoint, config.vision, settings, work, progress)
        if config.lm_head is not None:
            packed_parts.append(f"{LM_HEAD}.")
            files.append(pack_head(self.checkpoint, config.lm_head, settings, work))
        names = [name for name in self.checkpoint.names if not name.startswith(tuple(packed_parts))]
        write_float_shards(work, self.checkpoint, names, settings.float_dtype)
        return [*files, *sorted(work.glob("others-*.safetensors"))]

    def names_by_grid(self) -> dict[WeightGrid, list[str]]:
        """Return the names of the decoder's linear layers by their grid."""
        names: dict[WeightGrid, list[str]] = {}
        for block, grids in zip(self.blocks, self.grids, strict=True):
            for site in block.sites:
                full_names = [block.full(name) for name in site.linears]
                names.setdefault(grids[site.name], []).extend(full_names)
        return names

    def summary(self) -> dict[str, Any]:
        """Return the summary for the manifest."""
        shapes, stack = linear_shapes(self.tree), f"{self.checkpoint.layers_name}."
        bits = 0.0
        for grid, names in self.names_by_grid().items():
            for name in names:
                outputs, inputs = shapes[f"{stack}*.{name.removeprefix(stack).partition('.')[2]}"]
                bits += outputs * inputs * grid.effective_bits(inputs)
        has_images = "pixel_values" in self.samples.dataset.input_names
        return {
            "effective_bits": round(bits / count_decoder_weights(self.tree), 4),
            "packed_weights": count_decoder_weights(self.tree),
            "format": self.config.format,
            "calibrated_on": ["text", "image"] if has_images else ["text"],
            "samples_sha256": self.digest,
            "vision_layers": len(self.vision_linears),
            "layers": self.hidden.reports(),
        }

    def _report_progress(self, activity: str, done: int, total: int) -> None:
        self.context.progress(activity, done, total, {})

    def _layer_file(self, number: int) -> Path:
        return self.context.work / f"layer-{number:05d}.safetensors"

    def _enter_decoder(self) -> list[list[LayerArguments]]:
        """Run the batches as far as the first decoder layer.

        Writes the hidden states, unless this run is resumed, and stores the masks.

        Returns:
            The further arguments of each layer, by batch.
        """
        arguments: list[list[LayerArguments]] = []

        def batches() -> Iterator[dict[str, Tensor]]:
            for batch in self.samples.batches("calibrate"):
                tensors = tensors_from_batch(batch, torch.device("cpu"))
                mask = tensors.get("attention_mask")
                is_padded = mask is not None and not bool(mask.all())
                self.masks.append(mask.flatten().bool() if mask is not None and is_padded else None)
                yield {name: tensors[name] for name in self.samples.dataset.input_names}

        def hidden_states() -> Iterator[Tensor]:
            for hidden, layer_arguments in self.checkpoint.first_layer_inputs(batches):
                arguments.append(layer_arguments)
                yield hidden

        if self.hidden.layers_done() == 0:
            self.hidden.start(hidden_states(), exact=self.config.error_compensation > 0)
        else:
            for _ in hidden_states():
                pass
        self.digest = self.samples.digest
        return arguments

    def _choose_grids(self, arguments: list[list[LayerArguments]]) -> None:
        """Set the grid of every site; for mixed precision, by its sensitivity on the first batch.

        The choice is written to disk, so that a resumed run makes the same.
        """
        if self.config.effective_bits is None:
            (grid,) = self.config.grids
            self.grids = [{site.name: grid for site in block.sites} for block in self.blocks]
            return
        file = self.context.work / "grids.json"
        if self.hidden.layers_done() == 0 or not file.is_file():
            sensitivities = measure_sensitivity(
                self.checkpoint,
                self.blocks[0].sites,
                self.config.grids,
                FirstBatch(self.hidden.read(0, 0), arguments[0], self.masks[0]),
                partial(self._report_progress, "sensitivity"),
            )
            budget = self.config.effective_bits * count_decoder_weights(self.tree)
            chosen = allocate_bits(sensitivities, budget)
            write_atomic(file, json.dumps([grid.bits for grid in chosen]).encode())
        by_bits = {grid.bits: grid for grid in self.config.grids}
        bits = iter(json.loads(file.read_bytes()))
        self.grids = [
            {site.name: by_bits[next(bits)] for site in block.sites} for block in self.blocks
        ]

    def _quantize_layers(self, arguments: list[list[LayerArguments]]) -> None:
        """Quantize the decoder layers that are not done yet."""
        first, total = self.hidden.layers_done(), len(self.blocks)
        if first:
            self.context.note(f"resuming after layer {first} of {total}")
        for number in range(first, total):
            report = self._quantize_layer(number, arguments)
            self.hidden.finish(number + 1, [{"layer": number, **row} for row in report])
            figures = {"error": sum(row["error"] for row in report) / len(report)}
            self.context.progress("layers", number + 1, total, figures)

    def _quantize_layer(
        self, number: int, arguments: list[list[LayerArguments]]
    ) -> list[dict[str, Any]]:
        """Quantize a decoder layer, write its shard and the next layer's inputs.

        Returns:
            A report row for each linear layer.
        """
        block = self.blocks[number]
        layer = self.checkpoint.load(block.name)
        captures = Captures(self.context.work / "captures", CAPTURED_BYTES)
        reference = FloatReference(captures) if self.config.error_compensation else None

        def batches(branch: Branch = "rounded") -> Iterator[tuple[int, RunBatch]]:
            for batch, layer_arguments in enumerate(arguments):
                hidden = self.hidden.read(number, batch, branch)
                yield batch, partial(run_layer, layer, hidden, layer_arguments[number])

        if reference is not None:
            for batch, run in batches("exact"):
                result = reference.record(layer, block.sites, batch, run)
                captures.put(f"exact result {batch}", result)
        calibration = BlockCalibration(batches, MaskedPositions(self.masks), captures, reference)
        quantizer = BlockQuantizer(
            layer, block.sites, self.grids[number], self.settings, calibration
        )
        try:
            quantizer.quantize()
        except NumericalError as error:
            raise NumericalError(
                f"decoder layer {number}: {error.what}", remedy=error.remedy
            ) from error
        self._write_layer(number, layer, quantizer)
        for batch, run in batches():
            exact = captures.get(f"exact result {batch}") if reference is not None else None
            self.hidden.write(number + 1, batch, quantizer.run(batch, run), exact)
        captures.close()
        self.checkpoint.unload(block.name)
        trim_heap()
        return quantizer.report

    def _write_layer(self, number: int, layer: nn.Module, quantizer: BlockQuantizer) -> None:
        prefix = f"{self.blocks[number].name}."
        floats = tensors_beside(quantizer.packed, layer.state_dict())
        file = self._layer_file(number)
        write_packed_shard(file, prefix, floats, quantizer.packed, self.settings)
