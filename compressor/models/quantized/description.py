"""What is packed and how, as config.json tells it; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from compressor.config.record import Record

QUANTIZATION_CONFIG = "quantization_config"
"""The field of config.json."""
FormatName = Literal["awq", "compressed-tensors"]
"""The ``quant_method`` of the formats that this program reads and writes."""
FORMAT_NAMES: tuple[str, ...] = get_args(FormatName)
WeightBits = Literal[2, 3, 4, 8]


class WeightGrid(Record):
    """How the weights of a linear layer are rounded; w ≈ (q − z) · s with q and z in 0 … 2^bits − 1."""

    bits: WeightBits = 4
    """Of each weight."""
    group_size: Annotated[int, Field(ge=-1)] = 128
    """Inputs that share a scale and a zero-point; -1: all of a row."""
    symmetric: bool = False
    """The zero-point is the middle of the integers, and is not stored."""

    @model_validator(mode="after")
    def _fits(self) -> WeightGrid:
        if self.group_size == 0:
            raise ValueError("a group has at least one weight; -1 stands for a whole row")
        return self

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero-point of a symmetric grid."""
        return 1 << (self.bits - 1)

    def width(self, inputs: int) -> int:
        """Inputs of a group, in a layer with so many."""
        return inputs if self.group_size == -1 else self.group_size

    def effective_bits(self, inputs: int) -> float:
        """Bits for each weight, its share of scales of 16 bits and of zero-points counted."""
        return self.bits + (16 + (0 if self.symmetric else self.bits)) / self.width(inputs)


def is_packed(tree: Mapping[str, Any]) -> bool:
    """Whether a config.json tells of weights that are quantized."""
    return QUANTIZATION_CONFIG in tree
