"""A model's architecture: a family, and a config of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compressor.config.record import Record
from compressor.models.capabilities.capability import C
from compressor.models.capabilities.signature import Signature
from compressor.models.contract import Family


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model without weights, planned or on disk."""

    family: Family[Any]
    config: Record
    """An instance of ``family.Config``."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of the model."""
        return self.family.signature(self.config)

    def capability(self, kind: type[C]) -> C | None:
        """Return a capability; None if the model lacks it. See ``Family.capability``."""
        return self.family.capability(kind, self.config)

    def require(self, kind: type[C]) -> C:
        """Return a capability that the model must have.

        Raises:
            RequirementError: it lacks the capability.
        """
        return self.family.require(kind, self.config)
