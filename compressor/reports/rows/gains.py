"""Lay out the savings that `gain` measured for each step; shared by the console and the pages."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.artifacts.gain_report import Gain
from compressor.reports.rows import formatting

COLUMNS = (
    "step",
    "compared with",
    "runtime",
    "size",
    "MACs",
    "integer weights",
    "integer MACs",
    "speed-up",
    "95 % interval",
)


def gain_cells(gain: Gain) -> tuple[str, ...]:
    """Return the cells of one step, in the order of ``COLUMNS``."""
    interval = formatting.DASH
    if gain.speedup_low is not None and gain.speedup_high is not None:
        low, high = formatting.ratio(gain.speedup_low), formatting.ratio(gain.speedup_high)
        interval = f"{low} … {high}"
    return (
        gain.step,
        gain.against,
        gain.runtime,
        formatting.ratio(gain.size_ratio),
        formatting.ratio(gain.macs_ratio),
        formatting.optional_number(gain.low_precision_weights, "fraction"),
        formatting.optional_number(gain.low_precision_macs, "fraction"),
        formatting.ratio(gain.speedup),
        interval,
    )


def reasons_not_faster(gains: Sequence[Gain]) -> list[tuple[str, str]]:
    """Return step and reason for every step whose speed-up is not significant."""
    return [
        (gain.step, f"not significantly faster than {gain.against}: {reason}")
        for gain in gains
        for reason in gain.why_not
    ]
