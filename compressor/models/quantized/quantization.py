"""What is integer in a quantized model, as saved in ``quantization.json`` beside config.json; plain values, no torch.

The scales are tensors of model.safetensors, so that they can be learnt: ``<layer>.input_grid.scale`` and so on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from compressor.artifacts.errors_from_os import reading, writing
from compressor.config.record import Record
from compressor.errors import ModelError

QUANTIZATION = "quantization.json"
Bits = Literal[4, 8]
Target = Literal["onnxruntime", "tensorrt"]


class Grid(Record):
    """The integers that values are rounded to, times a scale; 0 is always one of them."""

    bits: Bits
    """How many each integer has."""
    nonnegative: bool = False
    """From 0 up, for values that are never negative, such as those after a ReLU; otherwise as many below 0 as above."""
    below: Annotated[int, Field(ge=0, le=255)] | None = None
    """So many integers lie below 0, where values reach further to one side of it than to the other."""

    @property
    def lowest(self) -> int:
        """The smallest integer, before a zero-point moves it."""
        if self.below is not None:
            return -self.below
        return 0 if self.nonnegative else -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest integer."""
        return self.lowest + (1 << self.bits) - 1


class QuantizedLayer(Record):
    """A linear or convolutional layer that multiplies integers."""

    weight: Grid
    """A scale for each output channel."""
    input: Grid | None
    """One scale; none where the module around it rounds its own input, which is the layer's."""
    output: Grid | None = None
    """One scale; none where what follows rounds anyway, or computes in float."""
    norm: str | None = None
    """The batch normalization that was folded into the layer, and is gone."""


class Quantization(Record):
    """A quantized model's layers by their names, and those that were left."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    """Of this file."""
    target: Target
    """Who is to compute: it decides which grids there are, and where."""
    layers: dict[str, QuantizedLayer]
    """Name of the module to what is integer there."""
    inputs: dict[str, Grid] = Field(default_factory=dict)
    """Modules that round their first input, for a layer and a sum within: both then read the same integers."""
    embeddings: dict[str, Grid] = Field(default_factory=dict)
    """Tables of embeddings that are stored as integers, with a scale for each column."""
    smoothed: tuple[str, ...] = ()
    """Layers, integer or not, that multiply their input by a factor for each channel, and whose weights are divided by it."""
    folded: dict[str, str] = Field(default_factory=dict)
    """Layers that stay in float, and the batch normalizations that were folded into them."""
    kept_float: dict[str, str] = Field(default_factory=dict)
    """Layers that could be integer and are not, and why."""


def read_quantization(folder: Path) -> Quantization:
    """The file of a model folder.

    Raises:
        ModelError: it is missing or damaged.
    """
    file = folder / QUANTIZATION
    if not file.is_file():
        raise ModelError(f"{folder} holds no quantized model: {QUANTIZATION} is missing")
    with reading(file):
        text = file.read_bytes()
    try:
        return Quantization.model_validate_json(text)
    except ValidationError as error:
        lines = [
            f"    {'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors(include_url=False)
        ]
        raise ModelError(
            f"{file} is damaged:\n" + "\n".join(lines), remedy="quantize again"
        ) from error


def write_quantization(quantization: Quantization, folder: Path) -> None:
    """Write the file."""
    with writing(folder):
        (folder / QUANTIZATION).write_text(
            quantization.model_dump_json(indent=1) + "\n", encoding="utf-8"
        )
