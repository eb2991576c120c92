"""Schemes of packed weights: layers that fit, and their description in config.json; no torch.

The tensors of each scheme are in ``packed_formats``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from compressor.errors import ModelError
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid

TRANSPOSED_LAYERS = "transposed_layers"
"""Field of our ``quantization_config``: packed layers whose float weight is [inputs, outputs], as
that of ``Conv1D``. They are packed like any linear layer of the same function."""
Grids = Mapping[WeightGrid, Sequence[str]]
"""Grid to the linear layers that are packed on it."""


class PackingScheme(ABC):
    """Limits of a scheme, and its ``quantization_config`` in config.json."""

    name: ClassVar[str]
    """``quant_method`` in config.json."""
    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of the tensors of a packed layer; a tensor with none of them is not packed."""
    has_several_grids: ClassVar[bool] = True
    """False if all packed layers of a model share one grid."""
    shape_suffix: ClassVar[str]
    """Suffix of the tensor that tells the size of the layer."""
    words: ClassVar[frozenset[str]]
    """Suffixes of the tensors that hold several values in each int32."""

    @abstractmethod
    def config(self, grids: Grids, plain: Sequence[str]) -> dict[str, Any]:
        """Return the ``quantization_config``.

        Args:
            grids: the packed layers by grid.
            plain: the linear layers that are not packed.
        """

    @abstractmethod
    def grids(self, config: Mapping[str, Any]) -> Callable[[str], WeightGrid]:
        """Return a function from the name of a packed layer to its grid.

        Args:
            config: a ``quantization_config``.

        Raises:
            ModelError: the variant of the format is not supported.
        """

    @abstractmethod
    def shapes(self, grid: WeightGrid, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors of a packed layer by suffix."""

    @abstractmethod
    def outputs_and_inputs(self, sizes: tuple[int, int]) -> tuple[int, int]:
        """Return the outputs and inputs of a packed layer.

        Args:
            sizes: the shape of ``shape_suffix``, or what is stored in ``weight_shape``.
        """

    @abstractmethod
    def problems(self, grid: WeightGrid, outputs: int, inputs: int) -> list[str]:
        """Return the reasons why a layer of this shape cannot be packed on ``grid``."""


class AutoAwqScheme(PackingScheme):
    """AutoAWQ's GEMM: 4 bits with zero-points, eight outputs per int32."""

    name = "awq"
    suffixes = ("qweight", "qzeros", "scales")
    has_several_grids = False
    shape_suffix = "qweight"
    words = frozenset({"qweight", "qzeros"})

    def config(self, grids: Grids, plain: Sequence[str]) -> dict[str, Any]:
        """Return the description that transformers and vLLM read; all layers share one grid."""
        (grid,) = grids
        return {
            "quant_method": "awq",
            "bits": grid.bits,
            "group_size": grid.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(plain),
        }

    def grids(self, config: Mapping[str, Any]) -> Callable[[str], WeightGrid]:
        """Return the one grid of all layers: 4 bits with zero-points."""
        if config.get("bits") != 4 or config.get("version", "gemm") != "gemm":
            raise ModelError(
                f"an AWQ checkpoint of version {config.get('version')!r} with "
                f"{config.get('bits')} bits",
                remedy="only 4 bits in the version 'gemm' are supported",
            )
        grid = WeightGrid(bits=4, group_size=_required_field(config, "group_size"))
        return lambda _: grid

    def shapes(self, grid: WeightGrid, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of ``qweight``, ``qzeros`` and ``scales``."""
        groups = inputs // grid.width(inputs)
        return {
            "qweight": (inputs, outputs // 8),
            "qzeros": (groups, outputs // 8),
            "scales": (groups, outputs),
        }

    def outputs_and_inputs(self, sizes: tuple[int, int]) -> tuple[int, int]:
        """Return the outputs and inputs: ``qweight`` holds eight outputs in each int32."""
        inputs, words = sizes
        return 8 * words, inputs

    def problems(self, grid: WeightGrid, outputs: int, inputs: int) -> list[str]:
        """Check for 4 bits, whole groups and whole int32 values."""
        problems = [] if grid.bits == 4 else [f"the format awq holds 4 bits, not {grid.bits}"]
        if outputs % 8:
            problems.append(
                f"{outputs} outputs are no multiple of 8, which the format awq packs together"
            )
        return problems + _group_problems(grid, inputs)


class PackQuantizedScheme(PackingScheme):
    """``pack-quantized`` of compressed-tensors: rows of integers as a bit stream."""

    name = "compressed-tensors"
    suffixes = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
    shape_suffix = "weight_shape"
    words = frozenset({"weight_packed", "weight_zero_point"})

    def config(self, grids: Grids, plain: Sequence[str]) -> dict[str, Any]:
        """Return the description that compressed-tensors, vLLM and transformers read.

        With several grids, each group names its layers.
        """
        groups = {
            f"group_{number}": {
                "targets": ["Linear"] if len(grids) == 1 else sorted(names),
                "weights": _weights_config(grid),
            }
            for number, (grid, names) in enumerate(grids.items())
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(plain),
        }

    def grids(self, config: Mapping[str, Any]) -> Callable[[str], WeightGrid]:
        """Return the grid of the first group with a target that matches the layer.

        A target is a name, an expression ``re:…``, or ``Linear`` for every linear layer.
        """
        groups = list(config.get("config_groups", {}).values())
        if config.get("format") != "pack-quantized" or any(
            group.get("input_activations") for group in groups
        ):
            raise ModelError(
                f"a compressed-tensors checkpoint of format {config.get('format')!r}",
                remedy="only pack-quantized is supported, with quantized weights alone",
            )
        targets_and_grids = [
            (_required_field(group, "targets"), _parse_grid(_required_field(group, "weights")))
            for group in groups
        ]

        def grid_of(name: str) -> WeightGrid:
            for targets, grid in targets_and_grids:
                if any(_matches(name, target) for target in targets):
                    return grid
            raise ModelError(
                f"`{QUANTIZATION_CONFIG}` has no group that contains the layer {name}",
                remedy="copy the checkpoint again",
            )

        return grid_of

    def shapes(self, grid: WeightGrid, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes; a symmetric grid stores no zero-points."""
        groups = inputs // grid.width(inputs)
        shapes: dict[str, tuple[int, ...]] = {
            "weight_packed": (outputs, -(-inputs * grid.bits // 32)),
            "weight_scale": (outputs, groups),
            "weight_shape": (2,),
        }
        if not grid.symmetric:
            shapes["weight_zero_point"] = (-(-outputs * grid.bits // 32), groups)
        return shapes

    def outputs_and_inputs(self, sizes: tuple[int, int]) -> tuple[int, int]:
        """Return the outputs and inputs, which are stored."""
        return sizes

    def problems(self, grid: WeightGrid, outputs: int, inputs: int) -> list[str]:
        """Check for whole groups, and for whole int32 values where zero-points are packed."""
        problems = _group_problems(grid, inputs)
        if not grid.symmetric and outputs * grid.bits % 32:
            problems.append(
                f"the zero-points of {outputs} outputs of {grid.bits} bits fill no whole int32"
            )
        return problems


PACKING_SCHEMES: Mapping[str, PackingScheme] = {
    scheme.name: scheme for scheme in (AutoAwqScheme(), PackQuantizedScheme())
}
"""``quant_method`` to its scheme."""


def planned_grids(
    config: Mapping[str, Any], candidates: tuple[WeightGrid, ...], head: str | None
) -> Callable[[str], tuple[WeightGrid, ...]]:
    """Return a function from a linear layer to its grid, or to those that it may get.

    Args:
        config: the ``quantization_config`` of a planned checkpoint.
        candidates: grids from which a run chooses; none if the config names the grids.
        head: the language-model head, which has none of the candidates.
    """
    if candidates:
        return lambda name: () if name == head else candidates
    plain = (*(config.get("ignore") or ()), *(config.get("modules_to_not_convert") or ()))
    grid_of = PACKING_SCHEMES[config["quant_method"]].grids(config)
    return lambda name: () if _is_named(name, plain) else (grid_of(name),)


def _is_named(layer: str, patterns: Iterable[str]) -> bool:
    """Return True if one of the patterns of layers that are not packed may match a layer."""
    return any(
        re.match(pattern[3:], layer) if pattern.startswith("re:") else pattern in layer
        for pattern in patterns
    )


def _weights_config(grid: WeightGrid) -> dict[str, Any]:
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": "channel" if grid.group_size == -1 else "group",
        "group_size": None if grid.group_size == -1 else grid.group_size,
        "dynamic": False,
    }


def _parse_grid(weights: Mapping[str, Any]) -> WeightGrid:
    fields = {
        "bits": _required_field(weights, "num_bits"),
        "group_size": weights.get("group_size") or -1,
        "symmetric": weights.get("symmetric", True),
    }
    try:
        return WeightGrid.model_validate(fields)
    except ValueError as error:
        raise ModelError(
            f"`{QUANTIZATION_CONFIG}` describes unsupported weights: {fields}",
            remedy="start from the checkpoint before quantization",
        ) from error


def _matches(name: str, target: str) -> bool:
    return target in {"Linear", name} or (
        target.startswith("re:") and re.match(target[3:], name) is not None
    )


def _required_field(config: Mapping[str, Any], name: str) -> Any:
    if name not in config:
        raise ModelError(
            f"`{QUANTIZATION_CONFIG}` in config.json has no `{name}`",
            remedy="copy the checkpoint again",
        )
    return config[name]


def _group_problems(grid: WeightGrid, inputs: int) -> list[str]:
    if inputs % grid.width(inputs):
        return [f"{inputs} inputs are no multiple of the group size {grid.group_size}"]
    return []
