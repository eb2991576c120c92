"""Lay out gate results; shared by the console, the pages, JUnit XML and the CI step summary."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compressor.artifacts.runs import GateResult
from compressor.reports.rows import formatting

COLUMNS = (
    "gate",
    "step",
    "measured",
    "compared value",
    "95 % interval",
    "limit",
    "basis",
    "verdict",
)


@dataclass(frozen=True, slots=True)
class GateRow:
    """One gate as text."""

    gate: str
    step: str
    measured: str
    """The metric of the step, and that of the reference if there is one."""
    compared: str
    """The value, drop or ratio that is compared with the limit; or why there is none."""
    interval: str
    limit: str
    basis: str
    """The measurements that the interval rests on."""
    verdict: str
    """``passed``, ``failed``, or ``undecided`` with its consequence."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells in the order of ``COLUMNS``."""
        return (
            self.gate,
            self.step,
            self.measured,
            self.compared,
            self.interval,
            self.limit,
            self.basis,
            self.verdict,
        )


def gate_row(gate: GateResult) -> GateRow:
    """Return the row of one gate."""
    measured = formatting.optional_number(gate.value, gate.unit)
    if gate.reference is not None:
        measured += f" against {formatting.number(gate.reference, gate.unit)}"
    return GateRow(
        gate=gate.gate,
        step=gate.step,
        measured=measured,
        compared=gate.reason if gate.found is None else _in_notation(gate, gate.found),
        interval=_interval(gate),
        limit=_limit(gate),
        basis=gate.basis or formatting.DASH,
        verdict=_verdict(gate),
    )


def sentence(gate: GateResult) -> str:
    """Return what a gate allows, what was measured and the verdict, in one sentence.

    ``top-1 of onnx may fall 1.00 points against student: fell 0.35 (−0.28 … 0.98), passed``
    """
    subject = f"{formatting.label(gate.metric)} of {gate.step}"
    if gate.found is None or gate.limit is None:
        return f"{subject}: {gate.reason or 'not measured'}, {_verdict(gate)}"
    reference = gate.gate.rpartition(" against ")[2]
    match gate.bound:
        case "max_drop":
            limit = _in_notation(gate, gate.limit).replace(" pts", " points")
            rule = f"may fall {limit} against {reference}"
        case "max_ratio":
            rule = f"may be at most {_in_notation(gate, gate.limit)} of {reference}"
        case bound:
            word = "least" if bound == "min" else "most"
            rule = f"must be at {word} {_in_notation(gate, gate.limit)}"
    return f"{subject} {rule}: {_measured(gate, gate.found)}, {_consequence(gate)}"


def _measured(gate: GateResult, found: float) -> str:
    """Return the compared value with its interval; a negative drop is a rise."""
    interval = "" if _interval(gate) == formatting.DASH else _interval(gate)
    if gate.bound != "max_drop":
        return _in_notation(gate, found) + (f" ({interval})" if interval else "")
    rose = found < 0
    text = f"{'rose' if rose else 'fell'} {_in_notation(gate, abs(found))}"
    fall = f" ({'fall ' if rose else ''}{interval})" if interval else ""
    return (text + fall).replace(" pts", "")


def _consequence(gate: GateResult) -> str:
    if gate.verdict != "undecided":
        return gate.verdict
    effect = "passes" if gate.passed else "fails"
    return f"undecided, since the interval holds the limit: {effect}"


def _interval(gate: GateResult) -> str:
    if gate.found is None or gate.low is None or gate.high is None or gate.low == gate.high:
        return formatting.DASH
    return f"{_in_notation(gate, gate.low)} … {_in_notation(gate, gate.high)}"


def _limit(gate: GateResult) -> str:
    if gate.limit is None:
        return formatting.DASH
    sign = "≥" if gate.bound == "min" else "≤"
    return f"{sign} {_in_notation(gate, gate.limit)}"


def _verdict(gate: GateResult) -> str:
    if gate.verdict == "undecided":
        return "undecided, passes" if gate.passed else "undecided, fails"
    return gate.verdict


def _in_notation(gate: GateResult, value: float) -> str:
    """Format a value, drop or ratio in the notation of the gate's rule."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    match gate.bound, gate.unit:
        case "max_ratio", _:
            return f"×{value:.4g}"
        case "max_drop", "fraction":
            return f"{100 * value:.2f} pts".replace("-", "−")
        case _:
            return formatting.number(value, gate.unit)
