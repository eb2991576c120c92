"""Layers that can be computed with integers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.models.capabilities.capability import Capability


@dataclass(frozen=True, slots=True)
class LayerContext:
    """Use of one layer in the graph of its model."""

    norm: str | None
    """Batch normalization that is the only consumer of the layer's output, and can be folded."""
    nonnegative: bool
    """True if no value of the layer's input is below 0."""
    rounded: bool
    """True if every consumer of the output is a quantized layer, at most behind a ReLU: they
    round it."""
    clipped: bool
    """True if every consumer of the output is a ReLU."""
    around: str | None
    """Module whose first input is both the layer's input and a residual, added to the output of a
    quantized layer in that module."""


class QuantizableLayers(Capability):
    """Linear and convolutional layers whose weight no other layer shares, and their use.

    ``qat`` chooses the layers that it quantizes among ``names``, and places their grids by
    ``contexts``. By default the layers are discovered from the exported graph of the module
    (``traced_layers.py``).
    """

    __slots__ = ()
    label: ClassVar[str] = "quantizable layers"
    remedy: ClassVar[str] = "use a module that torch.export can trace"

    names: tuple[str, ...]
    """Module names, in the order of computation."""
    left_out: Mapping[str, str]
    """Modules that multiply by a weight that is shared, or not a layer's own, and the reason why
    they stay in float."""

    @abstractmethod
    def contexts(self, quantized: Collection[str]) -> dict[str, LayerContext]:
        """Return the use of every layer if the layers ``quantized`` are computed with integers."""
