"""Hidden states that distillation can match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.models.capabilities.capability import Capability


@dataclass(frozen=True, slots=True)
class FeatureTaps(Capability):
    """Outputs of ``forward`` beside the signature's that hold hidden states.

    ``distill`` matches them between student and teacher (``features:``).
    """

    label: ClassVar[str] = "feature taps"
    remedy: ClassVar[str] = (
        "return hidden states from the module's `forward`, and name them in the family's "
        "`capabilities`"
    )

    names: tuple[str, ...]
    """Each output is [B, width] or [B, positions, width]."""
