"""Capabilities that a pass needs and a model lacks, for plans and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.models.architecture import Architecture
from compressor.models.capabilities.capability import Capability


@dataclass(frozen=True, slots=True)
class Missing:
    """A capability that a model lacks."""

    label: str
    remedy: str
    """Change that would provide the capability."""


def missing(architecture: Architecture, needs: Sequence[type[Capability]]) -> list[Missing]:
    """Return the capabilities among ``needs`` that a model lacks, without torch.

    A capability that may be discovered from the module once it is loaded counts as present.
    """
    return [
        Missing(need.label, architecture.family.remedy(need, architecture.config))
        for need in needs
        if not architecture.family.can_discover(need, architecture.config)
        and architecture.capability(need) is None
    ]
