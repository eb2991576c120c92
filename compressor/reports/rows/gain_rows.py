"""Gains as rows of text; the console and the pages only lay them out."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.artifacts.gain import Gain
from compressor.reports.rows import formats

COLUMNS = (
    "step",
    "against",
    "in",
    "size",
    "MACs",
    "integer weights",
    "integer MACs",
    "speed-up",
    "95 %",
)


def gain_cells(one: Gain) -> tuple[str, ...]:
    """The row of one step, in the order of ``COLUMNS``."""
    interval = formats.DASH
    if one.speedup_low is not None and one.speedup_high is not None:
        interval = f"{formats.ratio(one.speedup_low)} … {formats.ratio(one.speedup_high)}"
    shares = (one.low_precision_weights, one.low_precision_macs)
    return (
        one.step,
        one.against,
        one.runtime,
        formats.ratio(one.size_ratio),
        formats.ratio(one.macs_ratio),
        *(formats.DASH if share is None else formats.fraction(share) for share in shares),
        formats.ratio(one.speedup),
        interval,
    )


def reasons(gains: Sequence[Gain]) -> list[tuple[str, str]]:
    """Step and why it is not shown to be faster, a line each."""
    return [
        (one.step, f"not shown to be faster than {one.against}: {line}")
        for one in gains
        for line in one.why_not
    ]
