"""From a checkpoint's folder to a packed one's, one decoder layer after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressor.artifacts.files import write_atomic
from compressor.artifacts.store import Artifact
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import NumericalError
from compressor.models.capabilities.linear_groups import Block, Site
from compressor.models.checkpoint.files import read_description
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.layouts import HEAD
from compressor.models.families.transformers.linears import blocks_of
from compressor.models.families.transformers.streaming import (
    Arguments,
    StreamedCheckpoint,
    result_of,
)
from compressor.models.quantized.description import WeightGrid
from compressor.models.quantized.packed_formats import FORMATS
from compressor.models.quantized.packed_linear import PackedLinear
from passes.awq.layer import Exact, LayerRounding
from passes.awq.outside import pack_head, pack_vision, vision_linears
from passes.awq.samples import CAPTURED_BYTES, Captures, Hidden, samples_of
from passes.awq.sensitivity import allocate, rate
from passes.awq.shapes import shapes_of, weights_of
from passes.awq.shards import assemble, write_others, write_packed
from passes.awq.site import Choices
from passes.awq.step import AwqConfig
from passes.common.accuracy import tensors_from_batch
from passes.common.memory import give_back_memory
from passes.common.setup import prepare_torch


def quantize(config: AwqConfig, parent: Artifact, out: Path, context: PassContext) -> PassOutput:
    """Write the packed form of ``parent`` into ``out``, going on from ``context.work``."""
    prepare_torch(context)
    _, described = read_description(parent.model)
    assert isinstance(described, CheckpointConfig)  # noqa: S101  `requires` has looked
    tree = described.tree
    run = _Run(config, StreamedCheckpoint(parent.model, tree), blocks_of(tree), tree, context)
    shards = run.shards()
    grids = run.names_by_grid()
    if config.vision is not None:
        grids.setdefault(config.vision, []).extend(run.vision)
    if config.head is not None:
        grids.setdefault(config.head, []).append(HEAD)
    packed = {name for names in grids.values() for name in names}
    plain = [
        name
        for name, one in run.checkpoint.module.named_modules()
        if isinstance(one, nn.Linear) and name not in packed
    ]
    assemble(
        shards,
        out,
        tree,
        FORMATS[config.format].config(grids, plain),
        run.choices.other,
        parent.model,
    )
    return PassOutput(run.summary())


class _Unpadded:
    """Every site of a decoder layer sees the tokens of a batch once, those that count without padding."""

    def __init__(self, meant: Sequence[Tensor | None]) -> None:
        self._meant = meant

    def calls(self, site: Site, batch: int) -> int:  # noqa: ARG002
        """One."""
        return 1

    def meant(self, site: Site, batch: int) -> Tensor | None:  # noqa: ARG002
        """Of the mask."""
        return self._meant[batch]


class _Run:
    """One checkpoint on its way."""

    def __init__(
        self,
        config: AwqConfig,
        checkpoint: StreamedCheckpoint,
        blocks: tuple[Block, ...],
        tree: dict[str, Any],
        context: PassContext,
    ) -> None:
        self.config, self.checkpoint, self.blocks, self.context = (
            config,
            checkpoint,
            blocks,
            context,
        )
        self.kind = FORMATS[config.format]
        self.hidden = Hidden(context.work, context.artifact_id)
        self.tree, self.digest = tree, ""
        self.meant: list[Tensor | None] = []
        """By batch, the positions that are no padding, bool [B·T]; None where all are."""
        self.grids: list[dict[str, WeightGrid]] = []
        """By layer and site."""
        self.vision: list[str] = []
        """The linear layers of a vision tower that are packed."""
        self.choices = Choices.of(config, _dtype(config, tree))
        self.samples = samples_of(config, context)

    def shards(self) -> list[Path]:
        """The files of the result, complete."""
        arguments = self._enter()
        layers = self.blocks
        self._choose_grids(arguments)
        started = self.hidden.done()
        if started:
            self.context.note(f"going on after layer {started} of {len(layers)}")
        for number in range(started, len(layers)):
            report = self._layer(number, arguments)
            self.hidden.finish(number + 1, [{"layer": number, **row} for row in report])
            figures = {"error": sum(row["error"] for row in report) / len(report)}
            self.context.progress("layers", number + 1, len(layers), figures)
        work, parts = self.context.work, [f"{self.checkpoint.layers_name}."]
        files = [self._file(one) for one in range(len(layers))]
        if self.config.vision is not None:
            found = vision_linears(self.checkpoint)
            self.vision = [f"{part}.{name}" for part, names in found.items() for name in names]
            parts += [f"{part}." for part in found]
            files += pack_vision(
                self.checkpoint,
                self.config.vision,
                self.kind,
                self.choices.scales,
                self.choices.other,
                work,
                lambda done, total: self.context.progress("vision", done, total, {}),
            )
        if self.config.head is not None:
            parts.append(f"{HEAD}.")
            files.append(
                pack_head(self.checkpoint, self.config.head, self.kind, self.choices.scales, work)
            )
        names = sorted(
            name for name in self.checkpoint.entries if not name.startswith(tuple(parts))
        )
        write_others(work, self.checkpoint, names, self.choices.other)
        return [*files, *sorted(work.glob("others-*.safetensors"))]

    def names_by_grid(self) -> dict[WeightGrid, list[str]]:
        """Every packed layer by its name in the model."""
        found: dict[WeightGrid, list[str]] = {}
        for block, grids in zip(self.blocks, self.grids, strict=True):
            for site in block.sites:
                found.setdefault(grids[site.name], []).extend(
                    block.full(name) for name in site.linears
                )
        return found

    def summary(self) -> dict[str, Any]:
        """What the manifest tells."""
        shapes, stack = shapes_of(self.tree), f"{self.checkpoint.layers_name}."
        bits = 0.0
        for grid, names in self.names_by_grid().items():
            for name in names:
                outputs, inputs = shapes[f"{stack}*.{name.removeprefix(stack).partition('.')[2]}"]
                bits += outputs * inputs * grid.effective_bits(inputs)
        return {
            "effective_bits": round(bits / weights_of(self.tree), 4),
            "packed_weights": weights_of(self.tree),
            "format": self.config.format,
            "calibrated_on": ["text", "image"]
            if "pixel_values" in self.samples.dataset.input_names
            else ["text"],
            "samples_sha256": self.digest,
            "vision_layers": len(self.vision),
            "layers": self.hidden.reports(),
        }

    def _choose_grids(self, arguments: list[list[Arguments]]) -> None:
        """By site of each layer: the one that there is, or by how much rounding changes on the first batch."""
        if self.config.effective_bits is None:
            self.grids = [
                {site.name: self.config.grids[0] for site in block.sites} for block in self.blocks
            ]
            return
        kept = self.context.work / "grids.json"
        if self.hidden.done() == 0 or not kept.is_file():

            def progress(done: int, total: int) -> None:
                self.context.progress("sensitivity", done, total, {})

            first = self.hidden.read(0, 0)
            rated = rate(
                self.checkpoint,
                self.blocks[0].sites,
                self.config.grids,
                first,
                arguments[0],
                self.meant[0],
                progress,
            )
            chosen = allocate(rated, self.config.effective_bits * weights_of(self.tree))
            write_atomic(kept, json.dumps([grid.bits for grid in chosen]).encode())
        by_bits = {grid.bits: grid for grid in self.config.grids}
        bits = iter(json.loads(kept.read_bytes()))
        self.grids = [
            {site.name: by_bits[next(bits)] for site in block.sites} for block in self.blocks
        ]

    def _file(self, number: int) -> Path:
        return self.context.work / f"layer-{number:05d}.safetensors"

    def _enter(self) -> list[list[Arguments]]:
        """By batch, what each layer is called with; the hidden states are on disk where this run has not begun yet."""
        arguments: list[list[Arguments]] = []

        def batches() -> Iterator[dict[str, Tensor]]:
            for batch in self.samples.batches("calibrate"):
                tensors = tensors_from_batch(batch, torch.device("cpu"))
                mask = tensors.get("attention_mask")
                self.meant.append(
                    None if mask is None or bool(mask.all()) else mask.flatten().bool()
                )
                yield {name: tensors[name] for name in self.samples.dataset.input_names}

        entering = self.checkpoint.entering(batches)
        fresh = self.hidden.done() == 0

        def states() -> Iterator[Tensor]:
            for hidden, given in entering:
                arguments.append(given)
                yield hidden

        if fresh:
            self.hidden.start(states(), exact=self.config.drift > 0)
        else:
            for _ in states():
                pass
        self.digest = self.samples.digest
        return arguments

    def _layer(self, number: int, arguments: list[list[Arguments]]) -> list[dict[str, Any]]:
        name, sites = self.blocks[number].name, self.blocks[number].sites
        layer = self.checkpoint.load(name)
        captures = Captures(self.context.work / "captures", CAPTURED_BYTES)
        exact = Exact(captures) if self.config.drift else None

        def batches(
            what: Literal["rounded", "exact"] = "rounded",
        ) -> Iterator[tuple[int, Callable[[], Tensor]]]:
            for batch, given in enumerate(arguments):
                yield (
                    batch,
                    partial(result_of, layer, self.hidden.read(number, batch, what), given[number]),
                )

        if exact is not None:
            for batch, run in batches("exact"):
                captures.put(f"exact result {batch}", exact.remember(layer, sites, batch, run))
        rounding = LayerRounding(
            layer,
            sites,
            batches,
            _Unpadded(self.meant),
            captures,
            exact,
            self.grids[number],
            self.choices,
        )
        try:
            rounding.run()
        except NumericalError as error:
            raise NumericalError(
                f"decoder layer {number}: {error.what}", remedy=error.remedy
            ) from error
        self._write(number, name, layer, rounding.packed)
        for batch, run in batches():
            whole = captures.get(f"exact result {batch}") if exact is not None else None
            self.hidden.write(number + 1, batch, rounding.result(batch, run), whole)
        captures.close()
        self.checkpoint.unload(name)
        give_back_memory()
        return rounding.report

    def _write(
        self, number: int, name: str, layer: nn.Module, packed: dict[str, PackedLinear]
    ) -> None:
        others = {
            key: value
            for key, value in layer.state_dict().items()
            if key.removesuffix(".weight") not in packed
        }
        write_packed(self._file(number), f"{name}.", others, self.choices.other, packed, self.kind)


def _dtype(config: AwqConfig, tree: dict[str, Any]) -> torch.dtype:
    """Of all that is not packed."""
    if config.dtype is not None:
        found: torch.dtype = getattr(torch, config.dtype)
    elif config.format == "awq":
        found = torch.float16
    else:
        found = getattr(torch, str(tree.get("dtype") or tree.get("torch_dtype") or "float32"))
    return found
