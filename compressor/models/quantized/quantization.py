"""Integer grids of a quantized model, saved as ``quantization.json``; plain values, no torch.

Scales are tensors, because they can be trained: ``<layer>.input_grid.log2_scale`` and so on. They
are in model.safetensors, or in a file apart (``class_layout.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from compressor.artifacts.errors_from_os import writing
from compressor.config.record import Record
from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_record

QUANTIZATION = "quantization.json"
SCALES = "quantization.safetensors"
"""Scales of a model that is stored in the layout of its float class (``class_layout.py``)."""
Bits = Literal[4, 8]
Target = Literal["onnxruntime", "tensorrt"]


class Grid(Record):
    """The integers that values are rounded to, times a scale; 0 is always among them."""

    bits: Bits
    """Bits per integer."""
    nonnegative: bool = False
    """True: the integers start at 0, for values that are never negative, such as those after a
    ReLU. False: as many integers lie below 0 as above."""
    below: Annotated[int, Field(ge=0, le=255)] | None = None
    """Number of integers below 0, for values that reach further to one side of 0 than to the
    other; None leaves it to `nonnegative`."""

    @property
    def lowest(self) -> int:
        """Smallest integer, before a zero-point is added."""
        if self.below is not None:
            return -self.below
        return 0 if self.nonnegative else -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """Largest integer."""
        return self.lowest + (1 << self.bits) - 1


class QuantizedLayer(Record):
    """A linear or convolutional layer that multiplies integers."""

    weight: Grid
    """Grid of the weight, with one scale per output channel."""
    input: Grid | None
    """Grid of the input, with one scale; None if the module around the layer rounds its own
    first input, which is the layer's."""
    output: Grid | None = None
    """Grid of the output, with one scale; None if every consumer rounds it, or computes in
    float."""
    norm: str | None = None
    """Batch normalization that was folded into the layer and removed."""


class Quantization(Record):
    """The integer and the float layers of a quantized model, by module name."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    """Version of the file."""
    target: Target
    """Runtime that computes with the integers; it decides the kind and the place of the grids."""
    layers: dict[str, QuantizedLayer]
    """Layers that multiply integers."""
    inputs: dict[str, Grid] = Field(default_factory=dict)
    """Modules that round their first input, so that a layer and a residual sum inside read the
    same integers."""
    embeddings: dict[str, Grid] = Field(default_factory=dict)
    """Embeddings stored as integers, with one scale per column."""
    smoothed: tuple[str, ...] = ()
    """Layers, integer or float, that multiply their input by a factor per channel, and whose
    weights are divided by it."""
    folded: dict[str, str] = Field(default_factory=dict)
    """Float layers, and the batch normalizations that were folded into them."""
    kept_float: dict[str, str] = Field(default_factory=dict)
    """Layers that could multiply integers but do not, and the reasons."""

    def activation_bits(self) -> int | None:
        """Return the smallest number of bits of a layer's input; None if no layer rounds its own.

        Inputs that the module around a layer rounds have the same bits as the others.
        """
        grids = [layer.input for layer in self.layers.values() if layer.input is not None]
        return min((grid.bits for grid in (*grids, *self.inputs.values())), default=None)

    def norms(self) -> dict[str, str]:
        """Return the layers with a folded batch normalization, and its name."""
        return {name: layer.norm for name, layer in self.layers.items() if layer.norm} | self.folded


def read_quantization(folder: Path) -> Quantization:
    """Read the file of a model folder.

    Raises:
        ModelError: it is missing or damaged.
    """
    file = folder / QUANTIZATION
    if not file.is_file():
        raise ModelError(f"{folder} holds no quantized model: {QUANTIZATION} is missing")
    return read_json_record(file, Quantization, ModelError, remedy="quantize again")


def write_quantization(quantization: Quantization, folder: Path) -> None:
    """Write the file into a model folder.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with writing(folder):
        (folder / QUANTIZATION).write_text(
            quantization.model_dump_json(indent=1) + "\n", encoding="utf-8"
        )
