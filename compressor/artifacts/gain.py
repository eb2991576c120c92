"""What a step won: kept beside a run's record."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Gain(BaseModel):
    """What one step won against the nearest artifact that the same runtime computes; None for what is not known."""

    model_config = ConfigDict(frozen=True)

    step: str
    pass_name: str
    against: str
    runtime: str
    size_ratio: float
    parameters_ratio: float | None
    macs_ratio: float | None
    low_precision_weights: float | None
    """Share of weight values that the runtime multiplies as integers."""
    low_precision_macs: float | None
    speedup: float | None
    """Time of ``against`` over time of the step, measured in turns; above 1 is faster."""
    speedup_low: float | None
    speedup_high: float | None
    why_not: tuple[str, ...]
    """Where it is not shown to be faster."""
