"""Verdicts of a consumer on the linear layers of a packed checkpoint; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from compressor.models.quantized.weight_grid import WeightGrid


@dataclass(frozen=True, slots=True)
class StoredLinear:
    """A linear layer of a checkpoint."""

    name: str
    outputs: int
    inputs: int
    grid: WeightGrid | None
    """None for a float layer."""


class Verdict(Enum):
    """Outcome of the rules for one layer."""

    LOADS = "loads"
    REFUSED = "does not load"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Finding:
    """Verdict of a consumer on one layer."""

    layer: StoredLinear
    verdict: Verdict
    kernel: str | None = None
    """Kernel that computes the layer, where it loads."""
    reason: str | None = None
    """Why it does not load, or is not known to."""
    nearest: WeightGrid | None = None
    """The grid closest to the layer's own with which it loads; None if none is known."""


@dataclass(frozen=True, slots=True)
class Checked:
    """All that the rules of a consumer found."""

    consumer: str
    """The consumer with its version and settings."""
    problems: Sequence[str] = ()
    """What keeps the model as a whole from loading."""
    notes: Sequence[str] = ()
    """What else a user has to know."""
    findings: Sequence[Finding] = ()

    @property
    def loads(self) -> bool:
        """True if nothing is known to keep the model from loading."""
        return not self.problems and not self.refused

    @property
    def refused(self) -> list[Finding]:
        """Layers that do not load."""
        return [finding for finding in self.findings if finding.verdict is Verdict.REFUSED]


def grid_words(grid: WeightGrid) -> str:
    """Return a grid as a user writes it in a pipeline."""
    symmetric = ", symmetric: true" if grid.symmetric else ""
    return f"{{bits: {grid.bits}, group_size: {grid.group_size}{symmetric}}}"
