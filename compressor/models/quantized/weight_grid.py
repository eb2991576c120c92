"""Grids of packed weights, and their entry in config.json; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from compressor.config.record import Record

QUANTIZATION_CONFIG = "quantization_config"
"""Field of config.json that describes packed weights."""
FormatName = Literal["awq", "compressed-tensors"]
"""``quant_method`` of the formats that can be read and written."""
FORMAT_NAMES: tuple[str, ...] = get_args(FormatName)
WeightBits = Literal[2, 3, 4, 8]


class WeightGrid(Record):
    """Quantization of the weights of a linear layer: w ≈ (q − z) · s, q and z in 0 … 2^bits − 1."""

    bits: WeightBits = 4
    """Bits per weight."""
    group_size: Annotated[int, Field(ge=-1)] = 128
    """Inputs that share a scale and a zero-point; -1: all inputs of a row."""
    symmetric: bool = False
    """The zero-point is 2^(bits − 1) everywhere and is not stored."""

    @model_validator(mode="after")
    def _check_group_size(self) -> WeightGrid:
        if self.group_size == 0:
            raise ValueError("a group has at least one weight; -1 stands for a whole row")
        return self

    @property
    def highest(self) -> int:
        """Largest integer."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """Zero-point of a symmetric grid."""
        return 1 << (self.bits - 1)

    def width(self, inputs: int) -> int:
        """Return the inputs of a group, in a layer with ``inputs`` inputs."""
        return inputs if self.group_size == -1 else self.group_size

    def effective_bits(self, inputs: int) -> float:
        """Return the bits per weight including its share of 16-bit scales and of zero-points."""
        return self.bits + (16 + (0 if self.symmetric else self.bits)) / self.width(inputs)


def is_packed(tree: Mapping[str, Any]) -> bool:
    """Return True if config.json describes packed weights."""
    return tree.get(QUANTIZATION_CONFIG) is not None
