"""The result of `gain` for one step, stored beside the run's record."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Gain(BaseModel):
    """Savings of one step over the nearest artifact of its runtime; None if unknown."""

    model_config = ConfigDict(frozen=True)

    step: str
    pass_name: str
    against: str
    """The step that is compared with."""
    runtime: str
    size_ratio: float
    parameters_ratio: float | None
    macs_ratio: float | None
    low_precision_weights: float | None
    """Fraction of weight values that integer kernels multiply."""
    low_precision_macs: float | None
    """Fraction of multiply-accumulates that integer kernels compute."""
    speedup: float | None
    """Time of ``against`` over the step's, in interleaved rounds; above 1 is faster."""
    speedup_low: float | None
    speedup_high: float | None
    why_not: tuple[str, ...]
    """Reasons why it is not shown to be faster."""
