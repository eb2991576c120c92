"""Grids with which the consumers of `serve_with` load the packed checkpoint; no torch.

Ids cover the values of fields, not whether the user set them. So a value that is the default comes
first where the user left it open: set or left open, the same values give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.consumers.findings import Checked, Finding, StoredLinear, grid_words
from compressor.models.consumers.transformers import check_transformers
from compressor.models.consumers.vllm import check_vllm
from compressor.models.quantized.packing_schemes import TRANSPOSED_LAYERS
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid
from passes.awq.config import AwqConfig
from passes.awq.linear_shapes import Shapes, fitted_grids
from passes.common.field_problems import FieldProblem

_GROUP_SIZES = (128, 64, 32)
_R = TypeVar("_R", AwqConfig, WeightGrid)


class Serving:
    """The consumers of a config and the model that they have to load."""

    def __init__(self, config: AwqConfig, tree: Mapping[str, Any], layers: StreamedLayers) -> None:
        self.config, self.tree, self.layers = config, tree, layers

    def resolved(self) -> AwqConfig:
        """Return the config with groups and symmetry that load, where the user left them open."""
        config, layers = self.config, self.layers
        if config.serve_with is None:
            return config
        config = self._resolve(config, config, layers.decoder)
        changes = {
            name: self._resolve(config, grid, shapes)
            for name, grid, shapes in self._parts()
            if grid is not None
        }
        return config.model_copy(update=changes)

    def problems(self) -> list[FieldProblem]:
        """Return what does not load, by the field that would change it."""
        config = self.config
        if config.serve_with is None:
            return []
        problems = [
            FieldProblem(
                "serve_with.vllm.tp",
                f"{checked.consumer}: {line}",
                "set `tp` to a number of GPUs that divides the heads",
            )
            for checked in self._check(config, config.grids[0], self.layers.decoder)
            for line in checked.problems
        ]
        for grid in config.grids:
            problems += self._refusals("", grid, self.layers.decoder)
        for name, part, shapes in self._parts():
            if part is not None:
                problems += self._refusals(name, part, shapes)
        return problems

    def _parts(self) -> Iterator[tuple[str, WeightGrid | None, Shapes]]:
        """Yield the parts beside the decoder: field, grid and layers."""
        layers = self.layers
        yield "vision", self.config.vision, layers.towers
        head = {} if layers.head_name is None else {layers.head_name: layers.head}
        yield "lm_head", self.config.lm_head, head

    def _resolve(self, config: AwqConfig, part: _R, shapes: Shapes) -> _R:
        """Return a config or grid whose groups and symmetry load; unchanged if none does."""

        def loads(symmetric: bool, size: int) -> bool:
            change = {"symmetric": symmetric, "group_size": size}
            changed = part.model_copy(update=change)
            grids = changed.grids if isinstance(changed, AwqConfig) else (changed,)
            return all(self._loads(config, grid, shapes) for grid in grids)

        is_open = {name: name not in part.model_fields_set for name in ("symmetric", "group_size")}
        may_be_symmetric = is_open["symmetric"] and config.format != "awq"
        sizes = tuple(dict.fromkeys((part.group_size, *_GROUP_SIZES)))
        for symmetric in (False, True) if may_be_symmetric else (part.symmetric,):
            fitting = [size for size in sizes if loads(symmetric, size)]
            if fitting:
                size = fitting[0] if is_open["group_size"] else part.group_size
                return part.model_copy(update={"symmetric": symmetric, "group_size": size})
        return part

    def _loads(self, config: AwqConfig, grid: WeightGrid, shapes: Shapes) -> bool:
        """Return True if a layer can be packed on the grid, and all that are packed load."""
        fitted = fitted_grids(config, grid, shapes, self.layers.one_grid).values()
        return any(fit.grid is not None for fit in fitted) and not any(
            checked.refused for checked in self._check(config, grid, shapes)
        )

    def _check(self, config: AwqConfig, grid: WeightGrid, shapes: Shapes) -> list[Checked]:
        """Return what each consumer does with a part of the model on a grid."""
        fitted = fitted_grids(config, grid, shapes, self.layers.one_grid)
        linears = [StoredLinear(name, *shape, fitted[name].grid) for name, shape in shapes.items()]
        consumers, checked = config.serve_with, []
        if consumers is not None and consumers.vllm is not None:
            checked.append(check_vllm(linears, self._served_tree(), config.format, consumers.vllm))
        if consumers is not None and consumers.transformers:
            checked.append(check_transformers(linears, self._packed_tree(), config.format))
        return checked

    def _packed_tree(self) -> dict[str, Any]:
        """Return config.json with the packed layers that the class stores as [inputs, outputs]."""
        transposed = [name.removesuffix(".weight") for name in self.layers.transposed]
        return {**self.tree, QUANTIZATION_CONFIG: {TRANSPOSED_LAYERS: transposed}}

    def _served_tree(self) -> dict[str, Any]:
        """Return config.json with the dtype of the tensors that are not packed."""
        default = "float16" if self.config.format == "awq" else self.tree.get("dtype")
        return {**self.tree, "dtype": self.config.dtype or default}

    def _refusals(self, field: str, grid: WeightGrid, shapes: Shapes) -> Iterator[FieldProblem]:
        """Yield a problem for each consumer that does not load a part."""
        for checked in self._check(self.config, grid, shapes):
            if checked.refused:
                yield _refusal(field, checked.consumer, checked.refused)


def _refusal(field: str, consumer: str, refused: Sequence[Finding]) -> FieldProblem:
    lines = [f"\n        {finding.layer.name}: {finding.reason}" for finding in refused[:3]]
    if len(refused) > len(lines):
        lines.append(f"\n        and {len(refused) - len(lines)} more")
    nearest = [finding.nearest for finding in refused if finding.nearest is not None]
    # The finest groups fit all layers: the nearest grids of others have wider ones.
    vllm = consumer.startswith("vLLM")
    remedy = "use another `gpu` or `tp`" if vllm else "remove `serve_with.transformers`"
    if nearest:
        grid = min(nearest, key=lambda grid: (grid.group_size == -1, grid.group_size))
        remedy = f"the nearest grid that loads: {grid_words(grid)}"
        remedy = f"{remedy} under `{field}`" if field else remedy
    return FieldProblem(
        field or "group_size", f"{consumer} does not load these layers:{''.join(lines)}", remedy
    )
