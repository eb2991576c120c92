"""Format the change of a metric; shared by the console and the pages."""

from __future__ import annotations

from compressor.reports.rows import formatting
from compressor.reports.rows.ladder import Change


def change_text(change: Change, unit: str) -> str:
    """Format a change: points for fractions, else a ratio, or a difference to 0; ``≈``: noise."""
    if change.verdict == "same":
        return "="
    text = (
        formatting.difference(change.absolute, unit)
        if unit == "fraction" or change.ratio is None
        else formatting.ratio(change.ratio)
    )
    return f"≈ {text}" if change.verdict == "noise" else text


def tone(change: Change) -> str:
    """Return the CSS class of a change: its verdict, or ``same`` if it rounds to ×1.00."""
    return "same" if formatting.ratio(change.ratio) == "×1.00" else change.verdict
