"""Quantizer of transformers checkpoints, which are streamed one decoder layer at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.engine.contract import Estimate, PassContext, PassOutput
from compressor.models.architecture import Architecture
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.checkpoint.description import ModelDescription
from compressor.models.facts import ModelFacts
from compressor.models.quantized.packing_schemes import PACKING_SCHEMES, PackingScheme
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.config import GROUP_SIZES, AwqConfig
from passes.awq.contract import ModelQuantizer, transposed_notes
from passes.awq.linear_shapes import (
    MIN_WEIGHTS,
    Shapes,
    effective_bits,
    fitted_grids,
    packed_size_bytes,
    peak_memory_bytes,
    quantized_share,
)
from passes.awq.planned_packing import packed_facts
from passes.awq.serving import Serving
from passes.awq.whole import WholeQuantizer
from passes.common.field_problems import FieldProblem, check_no_problems


class StreamedQuantizer(ModelQuantizer):
    """Quantization of a transformers checkpoint, described without its weights."""

    def __init__(self, config: AwqConfig, model: Architecture, layers: StreamedLayers) -> None:
        architecture: Any = model.config
        self.tree: dict[str, Any] = architecture.tree
        self.config = Serving(config, self.tree, layers).resolved()
        self.layers = layers

    def field_problems(self) -> list[FieldProblem]:
        """Return problems of `vision`, `lm_head` and `effective_bits`."""
        config, layers = self.config, self.layers
        problems = []
        if config.vision is not None and not layers.towers:
            problems.append(
                FieldProblem(
                    "vision", f"{self.tree['model_type']} has no vision tower", "remove `vision`"
                )
            )
        if config.lm_head is not None and layers.is_head_tied:
            problems.append(
                FieldProblem(
                    "lm_head",
                    "the head is tied to the embedding, which stays in float",
                    "remove `lm_head`",
                )
            )
        if config.effective_bits is not None:
            least = min(effective_bits(config, grid, layers) for grid in config.grids)
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
        size = packed_size_bytes(self.config, self.layers)
        return Estimate(
            replace(packed_facts(self.config, parent, self.tree, self.layers), size_bytes=size),
            peak_memory_bytes=peak_memory_bytes(self.layers),
            disk_bytes=2 * size + self._tower_bytes(),
            notes=transposed_notes(self.layers.transposed),
        )

    def _tower_bytes(self) -> int:
        """Return the size of the quantized tower in float32, from which decoder inputs come."""
        is_packed = self.config.vision is not None
        return 4 * self.layers.parameters.get("vision", 0) if is_packed else 0

    def planned_problems(self, parent: ModelFacts) -> list[FieldProblem]:
        """Return parts that do not fit their grid or their consumers; none without sizes."""
        if not parent.sizes_known:
            return []
        return self._shape_problems() + Serving(self.config, self.tree, self.layers).problems()

    def check_layers(self, model: ModelDescription) -> None:  # noqa: ARG002
        """Check that each part that is to be packed has layers that fit, and that it loads.

        Raises:
            RequirementError: none fits; the message names them and group sizes that do. Or less
                than `min_share` of the model is quantized.
        """
        serving = Serving(self.config, self.tree, self.layers)
        check_no_problems(self._shape_problems() + serving.problems())
        share = quantized_share(self.config, self.layers)
        share.check(self.config.min_share, "quantize more parts with `vision` and `lm_head`")

    def _shape_problems(self) -> list[FieldProblem]:
        layers, config = self.layers, self.config
        has_head = layers.head_name is not None and not layers.is_head_tied
        checks: tuple[tuple[str, Shapes, tuple[WeightGrid, ...]], ...] = (
            ("", layers.by_pattern(), config.grids),
            ("vision", layers.towers, _grids(config.vision)),
            (
                "lm_head",
                {str(layers.head_name): layers.head} if has_head else {},
                _grids(config.lm_head),
            ),
        )
        return [
            problem
            for field, shapes, grids in checks
            if shapes and not all(_fits_any(config, grid, shapes) for grid in grids)
            for problem in _unfit_layers(PACKING_SCHEMES[config.format], field, shapes, grids)
        ]

    def quantize(self, model: ModelDescription, out: Path, context: PassContext) -> PassOutput:
        """Quantize layer by layer, resuming from ``context.work``; see ``ModelQuantizer``."""
        from compressor.models.families.transformers.layer_recording import NotStreamableError
        from passes.awq.streamed_run import quantize_checkpoint

        try:
            return quantize_checkpoint(self.config, self.layers, model, out, context)
        except NotStreamableError as error:
            whole = WholeQuantizer(self.config, model.family, model.config, self.layers)
            if problems := whole.field_problems():
                check_no_problems(
                    replace(problem, reason=f"{problem.reason}, and here {error.what}")
                    for problem in problems
                )
            context.note(f"loading the whole model: {error.what}")
            whole.check_layers(model)
            return whole.quantize(model, out, context)


def _grids(grid: WeightGrid | None) -> tuple[WeightGrid, ...]:
    return () if grid is None else (grid,)


def _fits_any(config: AwqConfig, grid: WeightGrid, shapes: Shapes) -> bool:
    """Return True if at least one layer can be packed on the grid as it is."""
    return any(fit.reason is None for fit in fitted_grids(config, grid, shapes).values())


def _unfit_layers(
    scheme: PackingScheme, field: str, shapes: Shapes, grids: tuple[WeightGrid, ...]
) -> list[FieldProblem]:
    """Return a problem that names every layer that does not fit one of the grids."""
    lines = []
    for name, (outputs, inputs) in shapes.items():
        reasons = [reason for grid in grids for reason in scheme.problems(grid, outputs, inputs)]
        if outputs * inputs < MIN_WEIGHTS:
            reasons.append(f"{outputs * inputs} weights are too few to win anything")
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
