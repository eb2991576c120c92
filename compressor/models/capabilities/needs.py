"""Capabilities that a pass needs and a model lacks, for plans and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compressor.config.record import Record
from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.discovery import is_discoverable
from compressor.models.contract import Family


@dataclass(frozen=True, slots=True)
class Missing:
    """A capability that a model lacks."""

    label: str
    remedy: str
    """Change that would provide the capability."""


def missing(
    family: Family[Any], config: Record, needs: Sequence[type[Capability]]
) -> list[Missing]:
    """Return the capabilities among ``needs`` that a model of the family lacks, without torch.

    A capability that may be discovered from the module once it is loaded counts as present.
    """
    return [
        Missing(need.label, need.remedy)
        for need in needs
        if not is_discoverable(need) and family.capability(need, config) is None
    ]
