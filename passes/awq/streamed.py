"""Quantizer of transformers checkpoints, which are streamed one decoder layer at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.engine.contract import Estimate, PassContext, PassOutput
from compressor.errors import RequirementError
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.facts import ModelFacts
from compressor.models.families.transformers.layouts import LM_HEAD, decoder_shape
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.config import GROUP_SIZES, AwqConfig
from passes.awq.contract import ModelQuantizer
from passes.awq.linear_shapes import (
    effective_bits,
    linear_shapes,
    packed_size_bytes,
    peak_memory_bytes,
)
from passes.common.field_problems import FieldProblem


class StreamedQuantizer(ModelQuantizer):
    """Quantization of a transformers checkpoint, described by its config.json."""

    def __init__(self, config: AwqConfig, tree: dict[str, Any]) -> None:
        self.config, self.tree = config, tree

    def field_problems(self) -> list[FieldProblem]:
        """Return problems of `vision`, `lm_head` and `effective_bits`."""
        config, decoder = self.config, decoder_shape(self.tree)
        problems = []
        if config.vision is not None and decoder.layout.vision is None:
            problems.append(
                FieldProblem(
                    "vision", f"{self.tree['model_type']} has no vision tower", "remove `vision`"
                )
            )
        if config.lm_head is not None and decoder.tied:
            problems.append(
                FieldProblem(
                    "lm_head",
                    "the head is tied to the embedding, which stays in float",
                    "remove `lm_head`",
                )
            )
        if config.effective_bits is not None:
            least = min(effective_bits(self.tree, grid) for grid in config.grids)
            if config.effective_bits < least:
                problems.append(
                    FieldProblem(
                        "effective_bits",
                        f"{config.effective_bits} is less than the {least:.3f} "
                        f"that 2 bits in groups of {config.group_size} take",
                        "increase `effective_bits` or `group_size`",
                    )
                )
        return problems

    def estimate(self, parent: ModelFacts) -> Estimate:
        """Return memory, disk space and size; time depends on the length of the samples."""
        size = packed_size_bytes(self.config, self.tree)
        return Estimate(
            replace(parent, size_bytes=size),
            peak_memory_bytes=peak_memory_bytes(self.tree),
            disk_bytes=2 * size,
        )

    def check_layers(self, model: ModelDescription) -> None:  # noqa: ARG002
        """Check every linear layer that is to be packed against its grid, from config.json alone.

        Raises:
            RequirementError: layers do not fit; the message names them and group sizes that do.
        """
        shapes = linear_shapes(self.tree)
        sizes = [
            size for size in GROUP_SIZES if all(inputs % size == 0 for _, inputs in shapes.values())
        ]
        suggested = ", ".join(map(str, sizes)) or f"none of {', '.join(map(str, GROUP_SIZES))}"
        checks = [
            (shapes, self.config.grids, f"group sizes that fit: {suggested}, or -1"),
            (
                self._vision_shapes(),
                _grids(self.config.vision),
                "set `vision.group_size: -1` or `vision.symmetric: true`",
            ),
            (
                self._head_shape(),
                _grids(self.config.lm_head),
                "set another `lm_head.group_size` or `lm_head.symmetric: true`",
            ),
        ]
        problems, remedies = [], []
        for layer_shapes, grids, remedy in checks:
            layer_problems = self._layer_problems(layer_shapes, grids)
            problems += layer_problems
            remedies += [remedy] if layer_problems else []
        if problems:
            raise RequirementError(
                f"these linear layers cannot be packed as {self.config.format}:\n"
                + "\n".join(f"    {problem}" for problem in problems),
                remedy="; ".join(remedies),
            )

    def _layer_problems(
        self, shapes: dict[str, tuple[int, int]], grids: tuple[WeightGrid, ...]
    ) -> list[str]:
        """Return a line for each layer that does not fit one of the grids."""
        from compressor.models.quantized.packed_formats import PACKED_FORMATS

        checkpoint_format = PACKED_FORMATS[self.config.format]
        problems = []
        for name, (outputs, inputs) in shapes.items():
            reasons = [
                reason
                for grid in grids
                for reason in checkpoint_format.problems(grid, outputs, inputs)
            ]
            if reasons:
                problems.append(f"{name}: {'; '.join(dict.fromkeys(reasons))}")
        return problems

    def _vision_shapes(self) -> dict[str, tuple[int, int]]:
        """Return outputs and inputs of the vision tower's linear layers, if it is quantized."""
        if self.config.vision is None:
            return {}
        from torch import nn

        from compressor.models.families.transformers.modules import build_on_meta

        tower_name = str(decoder_shape(self.tree).layout.vision)
        tower = build_on_meta(self.tree).get_submodule(tower_name)
        return {
            f"{tower_name}.{name}": (layer.out_features, layer.in_features)
            for name, layer in tower.named_modules()
            if isinstance(layer, nn.Linear)
        }

    def _head_shape(self) -> dict[str, tuple[int, int]]:
        """Return outputs and inputs of the language-model head, if it is quantized."""
        if self.config.lm_head is None:
            return {}
        decoder = decoder_shape(self.tree)
        return {LM_HEAD: (decoder.vocabulary, decoder.hidden)}

    def quantize(self, model: ModelDescription, out: Path, context: PassContext) -> PassOutput:
        """Quantize layer by layer, resuming from ``context.work``; see ``ModelQuantizer``."""
        from passes.awq.streamed_run import quantize_checkpoint

        return quantize_checkpoint(self.config, self.tree, model.folder, out, context)


def _grids(grid: WeightGrid | None) -> tuple[WeightGrid, ...]:
    return () if grid is None else (grid,)
