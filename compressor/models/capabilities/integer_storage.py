"""Storage of integer grids beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.models.capabilities.capability import Capability


@dataclass(frozen=True, slots=True)
class IntegerStorage(Capability):
    """Model folders of the family may hold a quantization.json.

    ``qat`` writes the grids of quantized layers there. Families that save through ``Family.save``
    have the capability. Of transformers, classes have it whose graphs are traced: the graphs that
    are built for decoders have no integer activations.
    """

    label: ClassVar[str] = "storage for integer grids"
    remedy: ClassVar[str] = "use `awq` for weight-only quantization"
