"""On-disk formats of packed weights: AutoAWQ's GEMM, and compressed-tensors' ``pack-quantized``.

Shapes: O outputs, I inputs, G groups of a row, N rows, M values of a row.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.models.quantized.bit_packing import pack_bits, unpack_bits
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid

Grids = Mapping[WeightGrid, Sequence[str]]
"""Grid to the linear layers that are packed on it."""


class PackedFormat(ABC):
    """Tensors of packed layers in safetensors, and their description in config.json."""

    name: ClassVar[str]
    """``quant_method`` in config.json."""
    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of the tensors of a packed layer; a tensor with none of them is not packed."""

    @abstractmethod
    def tensors(self, packed: PackedLinear) -> dict[str, Tensor]:
        """Return the layer as contiguous tensors by suffix."""

    @abstractmethod
    def linear(self, tensors: Mapping[str, Tensor], grid: WeightGrid) -> PackedLinear:
        """Return the layer that ``tensors`` were made of, bit for bit."""

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
    def problems(self, grid: WeightGrid, outputs: int, inputs: int) -> list[str]:
        """Return the reasons why a layer of this shape cannot be packed on ``grid``."""


class AutoAwqGemm(PackedFormat):
    """AutoAWQ's GEMM: 4 bits, eight outputs per int32 in the order of the CUDA kernel."""

    name = "awq"
    suffixes = ("qweight", "qzeros", "scales")
    _ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
    """Output, of eight, that each nibble holds, lowest nibble first."""

    def tensors(self, packed: PackedLinear) -> dict[str, Tensor]:
        """Return ``qweight`` int32 [I, O/8], ``qzeros`` int32 [G, O/8], ``scales`` [G, O]."""
        return {
            "qweight": self._pack(packed.integers_OI.T),
            "qzeros": self._pack(packed.zeros_OG.T),
            "scales": packed.scales_OG.T.contiguous(),
        }

    def linear(self, tensors: Mapping[str, Tensor], grid: WeightGrid) -> PackedLinear:
        """Return the layer; see ``PackedFormat.linear``."""
        return PackedLinear(
            self._unpack(tensors["qweight"]).T.contiguous(),
            tensors["scales"].T.contiguous(),
            self._unpack(tensors["qzeros"]).T.contiguous(),
            grid,
        )

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

    def problems(self, grid: WeightGrid, outputs: int, inputs: int) -> list[str]:
        """Check for 4 bits, whole groups and whole int32 values."""
        problems = [] if grid.bits == 4 else [f"the format awq holds 4 bits, not {grid.bits}"]
        if outputs % 8:
            problems.append(
                f"{outputs} outputs are no multiple of 8, which the format awq packs together"
            )
        return problems + _group_problems(grid, inputs)

    def _pack(self, values_NM: Tensor) -> Tensor:
        eights = values_NM.reshape(len(values_NM), -1, 8)[:, :, list(self._ORDER)]
        return pack_bits(eights.flatten(1), 4)

    def _unpack(self, words: Tensor) -> Tensor:
        eights = unpack_bits(words, 4, 8 * words.shape[1]).view(len(words), -1, 8)
        return eights[:, :, torch.tensor(self._ORDER).argsort()].flatten(1)


class CompressedTensors(PackedFormat):
    """``pack-quantized``: rows of signed integers, shifted by half the range, as a bit stream."""

    name = "compressed-tensors"
    suffixes = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")

    def tensors(self, packed: PackedLinear) -> dict[str, Tensor]:
        """Return the layer's tensors.

        ``weight_packed`` int32 [O, I·bits/32], ``weight_scale`` [O, G], ``weight_shape`` [2], and
        unless the grid is symmetric ``weight_zero_point`` int32 [O·bits/32, G].
        """
        grid = packed.grid
        tensors = {
            "weight_packed": pack_bits(packed.integers_OI, grid.bits),
            "weight_scale": packed.scales_OG.contiguous(),
            "weight_shape": torch.tensor(packed.integers_OI.shape),
        }
        if not grid.symmetric:
            tensors["weight_zero_point"] = pack_bits(packed.zeros_OG.T, grid.bits).T.contiguous()
        return tensors

    def linear(self, tensors: Mapping[str, Tensor], grid: WeightGrid) -> PackedLinear:
        """Return the layer; see ``PackedFormat.linear``."""
        outputs, inputs = tensors["weight_shape"].tolist()
        scales = tensors["weight_scale"]
        zeros = torch.full(scales.shape, grid.middle, dtype=torch.uint8)
        if not grid.symmetric:
            zeros = unpack_bits(tensors["weight_zero_point"].T, grid.bits, outputs).T.contiguous()
        return PackedLinear(
            unpack_bits(tensors["weight_packed"], grid.bits, inputs), scales, zeros, grid
        )

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
            raise ModelError(f"`{QUANTIZATION_CONFIG}` has no group that contains the layer {name}")

        return grid_of

    def problems(self, grid: WeightGrid, outputs: int, inputs: int) -> list[str]:
        """Check for whole groups, and for whole int32 values where zero-points are packed."""
        problems = _group_problems(grid, inputs)
        if not grid.symmetric and outputs * grid.bits % 32:
            problems.append(
                f"the zero-points of {outputs} outputs of {grid.bits} bits fill no whole int32"
            )
        return problems


PACKED_FORMATS: Mapping[str, PackedFormat] = {
    format_.name: format_ for format_ in (AutoAwqGemm(), CompressedTensors())
}
"""``quant_method`` to its format."""


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
            f"`{QUANTIZATION_CONFIG}` describes unsupported weights: {fields}"
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
