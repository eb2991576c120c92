"""The two formats of checkpoints with weights of a few bits: AutoAWQ's GEMM, and ``pack-quantized`` of compressed-tensors.

Shapes: O outputs, I inputs, G groups of a row.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.models.quantized.bits import packed_bits, unpacked_bits
from compressor.models.quantized.description import QUANTIZATION_CONFIG, WeightGrid
from compressor.models.quantized.packed_linear import PackedLinear

Grids = Mapping[WeightGrid, Sequence[str]]
"""The linear layers that are packed on each grid."""


class Format(ABC):
    """How packed layers lie in safetensors, and what config.json says of them."""

    name: ClassVar[str]
    """``quant_method`` in config.json."""
    suffixes: ClassVar[tuple[str, ...]]
    """The tensors of a packed layer, after its name; one without any of these is plain."""

    @abstractmethod
    def tensors(self, packed: PackedLinear) -> dict[str, Tensor]:
        """Suffix to tensor, contiguous."""

    @abstractmethod
    def linear(self, tensors: Mapping[str, Tensor], grid: WeightGrid) -> PackedLinear:
        """What ``tensors`` made, bit for bit."""

    @abstractmethod
    def config(self, grids: Grids, plain: Sequence[str]) -> dict[str, Any]:
        """``quantization_config``; ``plain`` are the linear layers that are not packed."""

    @abstractmethod
    def grids(self, config: Mapping[str, Any]) -> Callable[[str], WeightGrid]:
        """The grid of each packed layer, by its name, as a ``quantization_config`` tells.

        Raises:
            ModelError: it is of a kind that this program does not read.
        """

    @abstractmethod
    def problems(self, grid: WeightGrid, outputs: int, inputs: int) -> list[str]:
        """Why a layer of this shape cannot be packed so."""


class Gemm(Format):
    """AutoAWQ's GEMM: ``w = (q − z) · s``, 4 bits, eight outputs to an int32 in the order of the CUDA kernel."""

    name = "awq"
    suffixes = ("qweight", "qzeros", "scales")
    _ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
    """The nibble i, the lowest first, holds this output of eight."""

    def tensors(self, packed: PackedLinear) -> dict[str, Tensor]:
        """``qweight`` int32 [I, O/8], ``qzeros`` int32 [G, O/8], ``scales`` float16 [G, O]."""
        return {
            "qweight": self._packed(packed.integers_OI.T),
            "qzeros": self._packed(packed.zeros_OG.T),
            "scales": packed.scales_OG.T.contiguous(),
        }

    def linear(self, tensors: Mapping[str, Tensor], grid: WeightGrid) -> PackedLinear:
        """Out of them."""
        return PackedLinear(
            self._unpacked(tensors["qweight"]).T.contiguous(),
            tensors["scales"].T.contiguous(),
            self._unpacked(tensors["qzeros"]).T.contiguous(),
            grid,
        )

    def config(self, grids: Grids, plain: Sequence[str]) -> dict[str, Any]:
        """As transformers and vLLM read it; of one grid."""
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
        """4 bits, with zero-points, everywhere."""
        if config.get("bits") != 4 or config.get("version", "gemm") != "gemm":
            raise ModelError(
                f"an AWQ checkpoint of version {config.get('version')!r} with {config.get('bits')} bits"
            )
        grid = WeightGrid(bits=4, group_size=_told(config, "group_size"))
        return lambda _: grid

    def problems(self, grid: WeightGrid, outputs: int, inputs: int) -> list[str]:
        """4 bits, whole groups, whole int32."""
        some = [] if grid.bits == 4 else [f"the format awq holds 4 bits, not {grid.bits}"]
        if outputs % 8:
            some.append(
                f"{outputs} outputs are no multiple of 8, which the format awq packs together"
            )
        return some + _group_problems(grid, inputs)

    def _packed(self, values_NM: Tensor) -> Tensor:
        eights = values_NM.reshape(len(values_NM), -1, 8)[:, :, list(self._ORDER)]
        return packed_bits(eights.flatten(1), 4)

    def _unpacked(self, words: Tensor) -> Tensor:
        eights = unpacked_bits(words, 4, 8 * words.shape[1]).view(len(words), -1, 8)
        return eights[:, :, torch.tensor(self._ORDER).argsort()].flatten(1)


class CompressedTensors(Format):
    """``pack-quantized``: each row of signed integers as a dense stream of bits, moved up by half the range."""

    name = "compressed-tensors"
    suffixes = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")

    def tensors(self, packed: PackedLinear) -> dict[str, Tensor]:
        """``weight_packed`` int32 [O, I·bits/32], ``weight_scale`` [O, G], ``weight_zero_point`` int32 [O·bits/32, G], shape."""
        grid = packed.grid
        found = {
            "weight_packed": packed_bits(packed.integers_OI, grid.bits),
            "weight_scale": packed.scales_OG.contiguous(),
            "weight_shape": torch.tensor(packed.integers_OI.shape),
        }
        if not grid.symmetric:
            found["weight_zero_point"] = packed_bits(packed.zeros_OG.T, grid.bits).T.contiguous()
        return found

    def linear(self, tensors: Mapping[str, Tensor], grid: WeightGrid) -> PackedLinear:
        """Out of them."""
        outputs, inputs = tensors["weight_shape"].tolist()
        scales = tensors["weight_scale"]
        zeros = torch.full(scales.shape, grid.middle, dtype=torch.uint8)
        if not grid.symmetric:
            zeros = unpacked_bits(tensors["weight_zero_point"].T, grid.bits, outputs).T.contiguous()
        return PackedLinear(
            unpacked_bits(tensors["weight_packed"], grid.bits, inputs), scales, zeros, grid
        )

    def config(self, grids: Grids, plain: Sequence[str]) -> dict[str, Any]:
        """As compressed-tensors, vLLM and transformers read it; where there are several grids, each names its layers."""
        groups = {
            f"group_{number}": {
                "targets": ["Linear"] if len(grids) == 1 else sorted(names),
                "weights": _weights(grid),
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
        """Of the first group of layers that names one, by itself, by an expression, or as any linear layer."""
        groups = list(config.get("config_groups", {}).values())
        if config.get("format") != "pack-quantized" or any(
            one.get("input_activations") for one in groups
        ):
            raise ModelError(
                f"a compressed-tensors checkpoint of format {config.get('format')!r}",
                remedy="this program reads pack-quantized ones, with weights alone quantized",
            )
        known = [(_told(one, "targets"), _grid(_told(one, "weights"))) for one in groups]

        def of(name: str) -> WeightGrid:
            for targets, grid in known:
                if any(_is_meant(name, target) for target in targets):
                    return grid
            raise ModelError(f"`{QUANTIZATION_CONFIG}` has no group of layers that {name} is in")

        return of

    def problems(self, grid: WeightGrid, outputs: int, inputs: int) -> list[str]:
        """Whole groups, and whole int32 where zero-points are packed."""
        some = _group_problems(grid, inputs)
        if not grid.symmetric and outputs * grid.bits % 32:
            some.append(
                f"the zero-points of {outputs} outputs of {grid.bits} bits fill no whole int32"
            )
        return some


FORMATS: Mapping[str, Format] = {one.name: one for one in (Gemm(), CompressedTensors())}
"""By ``quant_method``."""


def _weights(grid: WeightGrid) -> dict[str, Any]:
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": "channel" if grid.group_size == -1 else "group",
        "group_size": None if grid.group_size == -1 else grid.group_size,
        "dynamic": False,
    }


def _grid(weights: Mapping[str, Any]) -> WeightGrid:
    fields = {
        "bits": _told(weights, "num_bits"),
        "group_size": weights.get("group_size") or -1,
        "symmetric": weights.get("symmetric", True),
    }
    try:
        return WeightGrid.model_validate(fields)
    except ValueError as error:
        raise ModelError(
            f"`{QUANTIZATION_CONFIG}` tells of weights that are not read here: {fields}"
        ) from error


def _is_meant(name: str, target: str) -> bool:
    return target in {"Linear", name} or (
        target.startswith("re:") and re.match(target[3:], name) is not None
    )


def _told(config: Mapping[str, Any], name: str) -> Any:
    """A field that has to be there."""
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
