"""Format numbers for people: three significant digits, the unit beside them, a true minus sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the records take longer to import than most outputs to print
    from collections.abc import Iterable

    from compressor.analysis.history import PastMetric
    from compressor.artifacts.manifest import Metric

DASH = "–"
"""Placeholder for a value that was not measured."""
STAND_IN = " †"
"""Mark behind a metric that was measured on a stand-in and not on the artifact itself."""
STAND_IN_NOTE = (
    "† measured on the ONNX graph that the engine was built from, with ONNX Runtime: "
    "the engine itself did not run on this machine"
)
COST_UNITS = frozenset({"ms", "s", "bytes", "count", "samples/s", "mJ", "tokens/s"})
"""Units of metrics that are costs, not accuracy."""
_LABELS = {
    "latency_p50_ms": "latency p50",
    "latency_p90_ms": "latency p90",
    "latency_p99_ms": "latency p99",
    "latency_mean_ms": "latency mean",
    "size_bytes": "size",
    "weight_bytes": "weights",
    "peak_rss_bytes": "peak memory",
    "energy_mj": "energy per sample",
    "first_token_ms": "first token",
    "tokens_per_second": "generation",
    "kv_cache_bytes": "key-value cache",
    "generation_peak_rss_bytes": "peak memory of generation",
    "macs": "MACs",
    "cross_entropy": "cross-entropy",
    "top1": "top-1",
    "kl": "KL divergence",
}


def label(name: str) -> str:
    """Return the heading of a metric; the slice of ``top1[input=speech]`` stays in brackets."""
    base, bracket, rest = name.partition("[")
    return _LABELS.get(base, base.replace("_", " ")) + bracket + rest


def size(count: float) -> str:
    """Format bytes in powers of 1000: ``4.20 MB``."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def count(number: float) -> str:
    """Format a count: exact below ten thousand, then ``4.20 M``."""
    if abs(number) < 10_000 and number == int(number):
        return f"{number:.0f}"
    return _scaled(number, ("", "k", "M", "G", "T"))


def milliseconds(value: float) -> str:
    """Format milliseconds: ``0.412 ms``, ``12.3 ms``, ``1.20 s``."""
    return f"{digits(value / 1000)} s" if abs(value) >= 1000 else f"{digits(value)} ms"


def duration(seconds: float) -> str:
    """Format a wall time in seconds: ``0.42 s``, ``12.3 s``, ``2 min 05 s``, ``1 h 12 min``."""
    if seconds < 99.95:
        return f"{digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def fraction(value: float) -> str:
    """Format a fraction as a percentage: ``81.3 %``."""
    return f"{_true_minus(f'{100 * value:.1f}')} %"


def number(value: float, unit: str) -> str:
    """Format a value in the notation of its unit."""
    match unit:
        case "fraction":
            return fraction(value)
        case "ms":
            return milliseconds(value)
        case "s":
            return duration(value)
        case "bytes":
            return size(value)
        case "count":
            return count(value)
        case "samples/s":
            return f"{digits(value)} /s"
        case _:
            return f"{digits(value)} {unit}".rstrip()


def optional_number(value: float | None, unit: str) -> str:
    """Format a value in the notation of its unit; a dash for None."""
    return DASH if value is None else number(value, unit)


def metric(measured: Metric | PastMetric | None) -> str:
    """Format a metric's value; a dash for None."""
    return DASH if measured is None else number(measured.value, measured.unit)


def interval(measured: Metric | PastMetric | None) -> str:
    """Format the 95 % interval of a metric as ``79.8–82.7 %``; empty if there is none."""
    if measured is None or measured.low is None or measured.high is None:
        return ""
    low, high = number(measured.low, measured.unit), number(measured.high, measured.unit)
    (bare, _, low_unit), (_, _, high_unit) = low.rpartition(" "), high.rpartition(" ")
    return f"{bare}–{high}" if bare and low_unit == high_unit else f"{low} – {high}"


def difference(absolute: float, unit: str) -> str:
    """Format a change with its sign; fractions change by percentage points."""
    text = (
        f"{_true_minus(f'{100 * absolute:.1f}')} pts"
        if unit == "fraction"
        else number(absolute, unit)
    )
    return text if text.startswith("−") else f"+{text}"


def ratio(value: float | None) -> str:
    """Format a ratio as ``×0.25``; a dash for None."""
    return DASH if value is None else f"×{digits(value)}"


def tick(value: float, unit: str) -> str:
    """Format a number for an axis, without trailing zeros."""
    text = number(value, unit)
    bare, space, rest = text.partition(" ")
    return (bare.rstrip("0").rstrip(".") if "." in bare else bare) + space + rest


def slice_name(name: str) -> str:
    """Format a slice: ``input×language=speech×zh`` as ``input speech · language zh``."""
    axis, equals, value = name.partition("=")
    axes, values = axis.split("×"), value.split("×")
    if not equals or len(axes) != len(values):
        return name.replace("=", " ")
    return " · ".join(f"{axis} {value}" for axis, value in zip(axes, values, strict=True))


def short_id(identifier: str) -> str:
    """Return the first twelve digits of an id, as in the names of artifact directories."""
    return identifier[:12]


def digits(value: float) -> str:
    """Format three significant digits, without an exponent between 0.0001 and 10 million."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return _true_minus(f"{value:.3g}")
    exponent = int(f"{abs(value):.2e}".split("e")[1])
    return _true_minus(f"{value:.{max(0, 2 - exponent)}f}")


def _scaled(value: float, units: tuple[str, ...]) -> str:
    scaled, index = value, 0
    while abs(scaled) >= 999.5 and index < len(units) - 1:
        scaled, index = scaled / 1000, index + 1
    text = _true_minus(f"{scaled:.0f}") if index == 0 and scaled == int(scaled) else digits(scaled)
    return f"{text} {units[index]}".rstrip()


def _true_minus(text: str) -> str:
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def accuracy_names(units: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the accuracy metrics of the whole set, without duplicates.

    Args:
        units: names of metrics with their units.
    """
    names = (name for name, unit in units if unit not in COST_UNITS and "[" not in name)
    return tuple(dict.fromkeys(names))
