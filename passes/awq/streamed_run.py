"""Quantization of a transformers checkpoint, one decoder layer in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from compressor.artifacts.files import write_atomic
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import NumericalError
from compressor.models.capabilities.linear_groups import LinearGroups
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.consumers.vllm_names import with_vllm_names
from compressor.models.families.transformers.layer_recording import LayerArguments, run_layer
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from compressor.models.quantized.packing_schemes import TRANSPOSED_LAYERS
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid
from passes.awq.activations import CAPTURED_BYTES, Branch, Captures
from passes.awq.block import BlockCalibration, BlockQuantizer
from passes.awq.config import AwqConfig
from passes.awq.decoder_entry import DecoderEntry
from passes.awq.expert_scaling import find_expert_inputs, scale_expert_inputs
from passes.awq.float_reference import FloatReference, RunBatch
from passes.awq.layer_sites import GriddedSite, LayerSites, run_observed
from passes.awq.linear_layers import find_linears
from passes.awq.linear_shapes import (
    decoder_grids,
    packed_weights,
    quantized_share,
)
from passes.awq.nearest_layers import find_tower_linears, pack_head, pack_towers
from passes.awq.packed_file import tensors_beside
from passes.awq.sensitivity import FirstBatch, allocate_bits, measure_sensitivity
from passes.awq.settings import QuantizationSettings
from passes.awq.shards import ShardWriter, assemble_checkpoint
from passes.awq.valid_positions import MaskedPositions
from passes.common.device import prepare_torch, trim_heap


def quantize_checkpoint(
    config: AwqConfig,
    layers: StreamedLayers,
    model: ModelDescription,
    out: Path,
    context: PassContext,
) -> PassOutput:
    """Write the packed form of ``model`` into ``out``, resuming from ``context.work``.

    Args:
        config: the pass's config.
        layers: linear layers and sizes of the model.
        model: the checkpoint.
        out: an empty folder.
        context: services of the engine.

    Raises:
        NotStreamableError: the decoder layers cannot run one after another.
    """
    prepare_torch(context)
    architecture: Any = model.config
    checkpoint = StreamedCheckpoint(model.folder, architecture.tree)
    run = _StreamedRun(config, layers, checkpoint, context, model.capability(LinearGroups))
    share = quantized_share(config, layers)
    share.warn(context.note)
    shards = run.write_shards()
    grids = run.names_by_grid()
    packed = {name for names in grids.values() for name in names}
    unpacked = [name for name in find_linears(run.checkpoint.module) if name not in packed]
    quantization = run.settings.format.config(run.stored_names(grids), run.all_names(unpacked))
    if config.serve_with is not None and config.serve_with.vllm is not None:
        model_type = architecture.tree.get("model_type")
        quantization = with_vllm_names(quantization, model_type, run.all_names(packed))
    transposed = [name for name in packed if f"{name}.weight" in checkpoint.transposed]
    if transposed:
        quantization[TRANSPOSED_LAYERS] = run.all_names(transposed)
    assemble_checkpoint(shards, out)
    dtype_name = str(run.settings.float_dtype).removeprefix("torch.")
    fields = {QUANTIZATION_CONFIG: quantization, "dtype": dtype_name}
    for note in model.family.write_packed_config(model.config, out, model.folder, fields):
        context.note(note)
    return PassOutput(run.summary() | share.summary())


class _StreamedRun:
    """State of the quantization of one checkpoint."""

    def __init__(
        self,
        config: AwqConfig,
        layers: StreamedLayers,
        checkpoint: StreamedCheckpoint,
        context: PassContext,
        stated: LinearGroups | None,
    ) -> None:
        self.config, self.layers = config, layers
        self.checkpoint, self.context = checkpoint, context
        self.settings = QuantizationSettings.of(config, checkpoint.dtype)
        by_grid = {grid: decoder_grids(config, grid, layers) for grid in config.grids}
        self.sites = LayerSites(by_grid, stated, context.note)
        names = None if stated is not None else checkpoint.file_names(checkpoint.module)
        if names is not None and (fused := names.experts_unknown_to_transformers()):
            context.note(
                f"from_pretrained of transformers does not fill packed experts of this class, such "
                f"as {fused[0]}: it fails, or leaves random weights there; use autoglm-compress or "
                "vLLM"
            )
        self.writer = ShardWriter(checkpoint, context.work, self.settings, names)
        self.entry = DecoderEntry(config, layers, checkpoint, self.writer, context)
        self.hidden = self.entry.hidden
        self.bits: Iterator[int] | None = None
        """Bits of the sites of the layers that are not done, in order; None for the config's."""

    def write_shards(self) -> list[Path]:
        """Write and return the shards of the packed checkpoint."""
        arguments = self.entry.enter()
        self._choose_grids(arguments)
        self._quantize_layers(arguments)
        config, checkpoint = self.config, self.checkpoint
        files = [self._layer_file(number) for number in range(self.layers.layers)]
        packed_parts = [f"{checkpoint.layers_name}."]
        if config.vision is not None:
            packed_parts += [f"{part}." for part in find_tower_linears(checkpoint)]
            progress = partial(self._report_progress, "vision")
            files += pack_towers(checkpoint, self.entry.tower_grids, self.writer, progress)
        if config.lm_head is not None and self.layers.head_name is not None:
            packed_parts.append(f"{self.layers.head_name}.")
            head = self.layers.head_name
            self._report_progress("lm_head", 0, 1)
            files.append(pack_head(checkpoint, head, config.lm_head, self.writer))
        names = [name for name in checkpoint.names if not name.startswith(tuple(packed_parts))]
        self._report_progress("write", 0, 1)
        self.writer.write_others(names)
        return [*files, *sorted(self.context.work.glob("others-*.safetensors"))]

    def names_by_grid(self) -> dict[WeightGrid, list[str]]:
        """Return the names of the packed linear layers by their grid."""
        names: dict[WeightGrid, list[str]] = {}
        for name, grid in self.hidden.packed().items():
            names.setdefault(grid, []).append(name)
        for name, fit in self.entry.tower_grids.items():
            if fit.grid is not None:
                names.setdefault(fit.grid, []).append(name)
        if self.config.lm_head is not None and self.layers.head_name is not None:
            names.setdefault(self.config.lm_head, []).append(self.layers.head_name)
        # Consumers take the first group for that of the experts.
        experts_first = sorted(names, key=lambda grid: self.layers.one_grid.isdisjoint(names[grid]))
        return {grid: names[grid] for grid in experts_first}

    def stored_names(self, grids: Mapping[WeightGrid, list[str]]) -> dict[WeightGrid, list[str]]:
        """Return grids with the names in the files beside those of the class."""
        return {grid: self.all_names(names) for grid, names in grids.items()}

    def all_names(self, names: Iterable[str]) -> list[str]:
        """Return names of linear layers in the class, and those in the files that differ."""
        return list(
            dict.fromkeys(n for name in names for n in (name, *self.writer.stored_layers(name)))
        )

    def summary(self) -> dict[str, Any]:
        """Return the summary for the manifest."""
        bits = weights = 0.0
        for name, grid in self.hidden.packed().items():
            outputs, inputs = self.layers.decoder[name]
            weights += outputs * inputs
            bits += outputs * inputs * grid.effective_bits(inputs)
        has_images = "pixel_values" in self.entry.samples.dataset.input_names
        towers = [name for name, fit in self.entry.tower_grids.items() if fit.grid is not None]
        searched = [] if self.entry.towers is None else self.entry.towers.result.rows
        summary: dict[str, Any] = {
            "effective_bits": round(bits / weights, 4),
            "packed_weights": int(weights),
            "format": self.config.format,
            "calibrated_on": ["text", "image"] if has_images else ["text"],
            "samples_sha256": self.entry.digest,
            "vision_layers": len(towers),
            "layers": self.hidden.reports(),
        }
        if searched:
            summary["vision"] = searched
        exceptions = self.hidden.exceptions()
        exceptions["kept_float"] |= {
            name: str(fit.reason)
            for name, fit in self.entry.tower_grids.items()
            if fit.grid is None
        }
        for kind, reasons in exceptions.items():
            if reasons:
                summary[kind] = [{"linear": k, "why": reason} for k, reason in reasons.items()]
        few: list[Any] = [row for row in self.hidden.reports() if row.get("rounded_to_nearest")]
        if few:
            summary["rounded_to_nearest"] = [
                {"linear": f"{self.checkpoint.layers_name}.{row['layer']}.{row['linear']}"}
                | {"tokens": row["tokens"]}
                for row in few
            ]
        return summary

    def _report_progress(self, activity: str, done: int, total: int) -> None:
        self.context.progress(activity, done, total, {})

    def _layer_file(self, number: int) -> Path:
        return self.context.work / f"layer-{number:05d}.safetensors"

    def _choose_grids(self, arguments: list[list[LayerArguments]]) -> None:
        """Set the bits of every site for mixed precision, by its sensitivity on the first batch.

        The choice is written to disk, so that a resumed run makes the same.
        """
        if self.config.effective_bits is None:
            return
        file = self.context.work / "grids.json"
        if self.hidden.layers_done() == 0 or not file.is_file():
            sensitivities = measure_sensitivity(
                self.checkpoint,
                self.sites,
                FirstBatch(self.hidden.read(0, 0), arguments[0], self.entry.masks[0]),
                partial(self._report_progress, "sensitivity"),
            )
            weights = packed_weights(self.config, self.layers)
            chosen = allocate_bits(sensitivities, self.config.effective_bits * weights)
            bits: list[list[int]] = [[] for _ in range(self.layers.layers)]
            for site, grid in zip(sensitivities, chosen, strict=True):
                bits[site.layer].append(grid.bits)
            write_atomic(file, json.dumps(bits).encode())
        done = self.hidden.layers_done()
        self.bits = (bits for layer in json.loads(file.read_bytes())[done:] for bits in layer)

    def _quantize_layers(self, arguments: list[list[LayerArguments]]) -> None:
        """Quantize the decoder layers that are not done yet."""
        first, total = self.hidden.layers_done(), self.layers.layers
        if first:
            self.context.note(f"resuming after layer {first} of {total}")
        self._report_progress("layers", first, total)
        for number in range(first, total):
            report = self._quantize_layer(number, arguments)
            figures = {"error": sum(row["error"] for row in report) / max(len(report), 1)}
            self.context.progress("layers", number + 1, total, figures)

    def _grids_of(self, found: Sequence[GriddedSite]) -> dict[str, WeightGrid]:
        """Return the grid of each site of the next layer by its name."""
        by_bits: dict[int, WeightGrid] = {grid.bits: grid for grid in self.config.grids}
        return {
            gridded.site.name: gridded.grids[
                self.config.grids[0] if self.bits is None else by_bits[next(self.bits)]
            ]
            for gridded in found
        }

    def _quantize_layer(
        self, number: int, arguments: list[list[LayerArguments]]
    ) -> list[dict[str, Any]]:
        """Quantize a decoder layer, write its shard and the next layer's inputs.

        Returns:
            A report row for each linear layer.
        """
        name = self._layer_name(number)
        layer = self.checkpoint.load(name)
        captures = Captures(self.context.work / "captures", CAPTURED_BYTES)
        reference = FloatReference(captures) if self.config.error_compensation else None

        def batches(branch: Branch = "rounded") -> Iterator[tuple[int, RunBatch]]:
            for batch, layer_arguments in enumerate(arguments):
                hidden, call = self.hidden.read(number, batch, branch), layer_arguments[number]
                if branch == "exact" and self.entry.exact_additions:
                    call = replace(call, added=self.entry.exact_additions[batch][number])
                yield batch, partial(run_layer, layer, hidden, call)

        first = run_observed(layer, self.hidden.read(number, 0), arguments[0][number])
        found = self.sites.find(name, layer, first)
        sites = tuple(gridded.site for gridded in found)
        grids = self._grids_of(found)
        expert_inputs = find_expert_inputs(layer, sites, first) if self.settings.scaling else None
        if expert_inputs is not None:
            exponent = scale_expert_inputs(
                layer, expert_inputs, batches, self.entry.masks, grids, self.settings
            )
        if reference is not None:
            for batch, run in batches("exact"):
                result = reference.record(layer, sites, batch, run)
                captures.put(f"exact result {batch}", result)
        calibration = BlockCalibration(
            batches, MaskedPositions(self.entry.masks), captures, reference
        )
        quantizer = BlockQuantizer(layer, sites, grids, self.settings, calibration)
        try:
            quantizer.quantize()
        except NumericalError as error:
            raise NumericalError(
                f"decoder layer {number}: {error.what}", remedy=error.remedy
            ) from error
        if expert_inputs is not None:
            for row in quantizer.report:
                if row["linear"] in expert_inputs.linears:
                    row["scale_exponent"] = exponent
        for batch, run in batches():
            exact = captures.get(f"exact result {batch}") if reference is not None else None
            self.hidden.write(number + 1, batch, quantizer.run(batch, run), exact)
        captures.close()
        self._finish_layer(number, quantizer)
        self.checkpoint.unload(name)
        trim_heap()
        return quantizer.report

    def _layer_name(self, number: int) -> str:
        return f"{self.checkpoint.layers_name}.{number}"

    def _finish_layer(self, number: int, quantizer: BlockQuantizer) -> None:
        """Write the shard of a layer, and record that it is done, with report and exceptions."""
        prefix = f"{self._layer_name(number)}."
        floats = tensors_beside(quantizer.packed, quantizer.layer.state_dict())
        self.writer.write(self._layer_file(number), prefix, floats, quantizer.packed)

        def of_layer(reasons: Mapping[str, str]) -> dict[str, str]:
            return {k: reason for k, reason in reasons.items() if k.startswith(prefix)}

        nearest = {
            f"{prefix}{row['linear']}": f"{row['tokens']} calibration tokens reach it"
            for row in quantizer.report
            if row.get("rounded_to_nearest")
        }
        exceptions = {
            "kept_float": of_layer(self.sites.kept_float),
            "smaller_groups": of_layer(self.sites.changed_grids),
            "rounded_to_nearest": nearest,
        }
        rows = [{"layer": number, **row} for row in quantizer.report]
        grids = {f"{prefix}{name}": layer.grid for name, layer in quantizer.packed.items()}
        self.hidden.finish(number + 1, rows, grids, exceptions)
