"""Gates as rows of text; the console, the pages and the step summary only lay them out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compressor.artifacts.runs import GateResult
from compressor.reports.rows import formats

COLUMNS = ("gate", "step", "measured", "judged", "95 % interval", "limit", "rests on", "verdict")


@dataclass(frozen=True, slots=True)
class GateRow:
    """One gate, in words."""

    gate: str
    step: str
    measured: str
    """The metric, and that of what it is compared with."""
    judged: str
    """The value, the drop or the ratio that is held against the limit; or why there is none."""
    interval: str
    limit: str
    basis: str
    verdict: str
    """``passed``, ``failed`` or ``undecided``, and what becomes of the last."""

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of ``COLUMNS``."""
        return (
            self.gate,
            self.step,
            self.measured,
            self.judged,
            self.interval,
            self.limit,
            self.basis,
            self.verdict,
        )


def gate_row(gate: GateResult) -> GateRow:
    """The row of one gate."""
    measured = formats.DASH if gate.value is None else formats.number(gate.value, gate.unit)
    if gate.reference is not None:
        measured += f" against {formats.number(gate.reference, gate.unit)}"
    judged, interval = gate.reason, formats.DASH
    if gate.found is not None:
        judged = _held(gate, gate.found)
        if gate.low is not None and gate.high is not None and gate.low != gate.high:
            interval = f"{_held(gate, gate.low)} … {_held(gate, gate.high)}"
    limit = (
        formats.DASH
        if gate.limit is None
        else ("≥ " if " min " in gate.gate else "≤ ") + _held(gate, gate.limit)
    )
    verdict: str = gate.verdict
    if verdict == "undecided":
        verdict += ", passes" if gate.passed else ", fails"
    return GateRow(
        gate.gate, gate.step, measured, judged, interval, limit, gate.basis or formats.DASH, verdict
    )


def _held(gate: GateResult, value: float) -> str:
    """What is held against the limit, in its notation."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    if " max_ratio " in gate.gate:
        return f"×{value:.4g}"
    if " max_drop " in gate.gate and gate.unit == "fraction":
        return f"{100 * value:.2f} pts".replace("-", "−")
    return formats.number(value, gate.unit)
