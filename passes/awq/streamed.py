"""Quantizer of transformers checkpoints, which are streamed one decoder layer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.engine.contract import Estimate, PassContext, PassOutput
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.facts import ModelFacts
from compressor.models.families.transformers.layouts import LM_HEAD, decoder_shape
from compressor.models.quantized.packing_schemes import PACKING_SCHEMES, PackingScheme
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.config import GROUP_SIZES, AwqConfig
from passes.awq.contract import ModelQuantizer
from passes.awq.linear_shapes import (
    effective_bits,
    linear_shapes,
    packed_size_bytes,
    peak_memory_bytes,
    quantized_share,
)
from passes.awq.planned_packing import packed_facts, vision_linear_shapes
from passes.common.field_problems import FieldProblem, check_no_problems

Shapes = Mapping[str, tuple[int, int]]
"""Linear layer to its outputs and inputs."""


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
                        f"that {min(config.candidate_bits)} bits in groups of {config.group_size} "
                        "take",
                        "increase `effective_bits` or `group_size`",
                    )
                )
        return problems

    def estimate(self, parent: ModelFacts) -> Estimate:
        """Return memory, disk space and size; time depends on the length of the samples."""
        size = packed_size_bytes(self.config, self.tree)
        return Estimate(
            replace(packed_facts(self.config, parent, self.tree), size_bytes=size),
            peak_memory_bytes=peak_memory_bytes(self.tree),
            disk_bytes=2 * size,
        )

    def planned_problems(self, parent: ModelFacts) -> list[FieldProblem]:
        """Return the linear layers that do not fit their grid; none where sizes are unknown."""
        return self._shape_problems() if parent.sizes_known else []

    def check_layers(self, model: ModelDescription) -> None:  # noqa: ARG002
        """Check every linear layer that is to be packed against its grid, from config.json alone.

        Raises:
            RequirementError: layers do not fit; the message names them and group sizes that do. Or
                less than `min_share` of the model is quantized.
        """
        check_no_problems(self._shape_problems())
        share = quantized_share(self.config, self.tree)
        share.check(self.config.min_share, "quantize more parts with `vision` and `lm_head`")

    def _shape_problems(self) -> list[FieldProblem]:
        decoder, config = decoder_shape(self.tree), self.config
        head = {LM_HEAD: (decoder.vocabulary, decoder.hidden)}
        checks = (
            ("", linear_shapes(self.tree), config.grids),
            ("vision", vision_linear_shapes(self.tree), _grids(config.vision)),
            ("lm_head", {} if decoder.tied else head, _grids(config.lm_head)),
        )
        return [
            problem
            for field, shapes, grids in checks
            for problem in _unfit_layers(PACKING_SCHEMES[config.format], field, shapes, grids)
        ]

    def quantize(self, model: ModelDescription, out: Path, context: PassContext) -> PassOutput:
        """Quantize layer by layer, resuming from ``context.work``; see ``ModelQuantizer``."""
        from passes.awq.streamed_run import quantize_checkpoint

        return quantize_checkpoint(self.config, self.tree, model.folder, out, context)


def _grids(grid: WeightGrid | None) -> tuple[WeightGrid, ...]:
    return () if grid is None else (grid,)


def _unfit_layers(
    scheme: PackingScheme, field: str, shapes: Shapes, grids: tuple[WeightGrid, ...]
) -> list[FieldProblem]:
    """Return a problem that names every layer that does not fit one of the grids."""
    lines = []
    for name, (outputs, inputs) in shapes.items():
        reasons = [reason for grid in grids for reason in scheme.problems(grid, outputs, inputs)]
        if reasons:
            lines.append(f"\n        {name}: {'; '.join(dict.fromkeys(reasons))}")
    if not lines:
        return []
    prefix = f"{field}." if field else ""
    return [
        FieldProblem(
            field or "group_size",
            f"these linear layers cannot be packed as {scheme.name}:{''.join(lines)}",
            _fitting_grids(scheme, prefix, shapes, grids),
        )
    ]


def _fitting_grids(
    scheme: PackingScheme, prefix: str, shapes: Shapes, grids: tuple[WeightGrid, ...]
) -> str:
    """Return the group sizes with which all layers fit, or a format in which they do."""

    def fits(candidate: PackingScheme, **changes: Any) -> bool:
        changed = [grid.model_copy(update=changes) for grid in grids]
        return not any(
            candidate.problems(grid, *shape) for grid in changed for shape in shapes.values()
        )

    sizes = (*GROUP_SIZES, -1)
    for changes, words in (({}, ""), ({"symmetric": True}, f" with `{prefix}symmetric: true`")):
        if fitting := [str(size) for size in sizes if fits(scheme, group_size=size, **changes)]:
            return f"set `{prefix}group_size` to one that fits{words}: {', '.join(fitting)}"
    for other in PACKING_SCHEMES.values():
        if fitting := [str(size) for size in sizes if fits(other, group_size=size)]:
            return f"set `format: {other.name}`, and `{prefix}group_size` to {', '.join(fitting)}"
    return "set `format: compressed-tensors`, `symmetric: true` and `group_size: -1`"
