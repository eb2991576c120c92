"""Inputs and outputs of a model, and the unit of its MACs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.models.capabilities.capability import Capability

RECORDING_AXES = frozenset({"samples", "frames"})
"""Names of the variable dimension of a recording."""
REST = "..."
"""Last dimension of a shape: any number of further dimensions of any size."""
_LONGEST_NAME = 24
"""Characters of a name of a dimension from which it is an expression, as exporters write."""


def describe_shape(shape: Iterable[int | str]) -> str:
    """Return the sizes of a shape; an expression such as ``floor(height/2 - 1/2) + 1`` is a `?`."""
    sizes = (str(size) for size in shape)
    return f"[{', '.join('?' if len(size) > _LONGEST_NAME else size for size in sizes)}]"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model."""

    name: str
    dtype: str
    """NumPy dtype name: float32, int64, uint8."""
    shape: tuple[int | str, ...]
    """An int for a fixed dimension, a name for a variable one: ``("batch", 3, 96, 96)``.
    ``REST`` at the end stands for the dimensions that are not known."""
    below: int | None = None
    """Exclusive upper bound of the values, such as the vocabulary size for token ids."""
    longest: int | None = None
    """Largest size of the variable dimensions other than the batch, such as the number of
    positions for tokens."""
    last: int | None = None
    """Last value of every sequence that the model takes, such as the token that ends a text, which
    some classes look for; None if any will do."""
    optional: bool = False
    """True if the model runs without it, such as the images of a vision-language model."""


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of a model."""

    name: str
    dtype: str
    """NumPy dtype name."""
    shape: tuple[int | str, ...] | None = None
    """Sizes as in ``InputSpec``; None if the number of dimensions is not known."""


@dataclass(frozen=True, slots=True)
class Signature(Capability):
    """Inputs and outputs of ``forward``.

    Every family has one. Sessions check batches against it, ``export-onnx`` and ``tensorrt`` name
    the inputs and outputs of graphs after it, and estimates read the unit of the MACs.
    """

    label: ClassVar[str] = "inputs and outputs"
    remedy: ClassVar[str] = "return them from the family's `signature`"

    inputs: tuple[InputSpec, ...]
    """Inputs in the order of ``forward``, named as in data sets."""
    outputs: tuple[str, ...]
    """Outputs of an exported model. A classifier or language model has ``logits``
    [B, ..., classes]; a model without classes has ``embedding`` [B, width]."""
    unit: Literal["sample", "token"] = "sample"
    """Unit of ``Family.macs``: one sample, or one token of a language model."""
    classes: int | None = None
    """Number of classes of ``logits``, the exclusive upper bound of labels; None if not known."""
    output_specs: tuple[OutputSpec, ...] = ()
    """Dtypes and shapes of the outputs, where they are known: those that an ONNX graph declares."""

    @property
    def required_inputs(self) -> tuple[InputSpec, ...]:
        """The inputs that are not optional."""
        return tuple(spec for spec in self.inputs if not spec.optional)
