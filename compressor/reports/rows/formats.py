"""Numbers as people read them: three significant digits, the unit beside them, a true minus sign."""

from __future__ import annotations

from compressor.artifacts.manifest import Metric

DASH = "–"
STAND_IN = " †"
"""Behind a figure that is not the engine's own."""
STAND_IN_EXPLAINED = "† of the ONNX graph that the engine was built from, in ONNX Runtime: the engine itself did not run here"
_LABELS = {
    "latency_p50_ms": "latency p50",
    "latency_p90_ms": "latency p90",
    "latency_p99_ms": "latency p99",
    "latency_mean_ms": "latency mean",
    "size_bytes": "size",
    "peak_rss_bytes": "peak memory",
    "macs": "MACs",
    "cross_entropy": "cross-entropy",
    "top1": "top-1",
    "kl": "KL divergence",
}


def label(name: str) -> str:
    """What a column or an axis calls a metric; a slice keeps its bracket."""
    base, bracket, rest = name.partition("[")
    return _LABELS.get(base, base.replace("_", " ")) + bracket + rest


def size(count: float) -> str:
    """Bytes in powers of 1000, as disks and phones are sold: ``4.20 MB``."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def count(number: float) -> str:
    """A counted thing: exact below ten thousand, then ``4.20 M``."""
    return (
        f"{number:.0f}"
        if abs(number) < 10_000 and number == int(number)
        else _scaled(number, ("", "k", "M", "G", "T"))
    )


def milliseconds(value: float) -> str:
    """``0.412 ms``, ``12.3 ms``, ``1.20 s``."""
    return f"{digits(value / 1000)} s" if abs(value) >= 1000 else f"{digits(value)} ms"


def duration(seconds: float) -> str:
    """Wall time: ``0.42 s``, ``12.3 s``, ``2 min 05 s``, ``1 h 12 min``."""
    if seconds < 99.95:
        return f"{digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def fraction(value: float) -> str:
    """A share: ``81.3 %``."""
    return f"{_minus(f'{100 * value:.1f}')} %"


def number(value: float, unit: str) -> str:
    """A value in the notation of its unit."""
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


def metric(one: Metric | None) -> str:
    """A metric's value, or a dash where nothing was measured."""
    return DASH if one is None else number(one.value, one.unit)


def interval(one: Metric | None) -> str:
    """The 95 % interval as ``79.8–82.7 %``; empty where there is none."""
    if one is None or one.low is None or one.high is None:
        return ""
    low, high = number(one.low, one.unit), number(one.high, one.unit)
    (bare, _, low_unit), (_, _, high_unit) = low.rpartition(" "), high.rpartition(" ")
    return f"{bare}–{high}" if bare and low_unit == high_unit else f"{low} – {high}"


def difference(absolute: float, unit: str) -> str:
    """A change with its sign; shares change by points."""
    text = (
        f"{_minus(f'{100 * absolute:.1f}')} pts" if unit == "fraction" else number(absolute, unit)
    )
    return text if text.startswith("−") else f"+{text}"


def ratio(value: float | None) -> str:
    """``×0.25``; a dash where there is none."""
    return DASH if value is None else f"×{digits(value)}"


def tick(value: float, unit: str) -> str:
    """A number on an axis: no more digits than it needs."""
    text = number(value, unit)
    bare, space, rest = text.partition(" ")
    return (bare.rstrip("0").rstrip(".") if "." in bare else bare) + space + rest


def readable_slice(name: str) -> str:
    """``input=speech`` as ``input speech``, ``input×language=speech×zh`` as ``input speech · language zh``."""
    axis, equals, value = name.partition("=")
    axes, values = axis.split("×"), value.split("×")
    if not equals or len(axes) != len(values):
        return name.replace("=", " ")
    return " · ".join(f"{one} {what}" for one, what in zip(axes, values, strict=True))


def short(identifier: str) -> str:
    """The first twelve digits of an id, as directories are named."""
    return identifier[:12]


def digits(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return _minus(f"{value:.3g}")
    exponent = int(f"{abs(value):.2e}".split("e")[1])
    return _minus(f"{value:.{max(0, 2 - exponent)}f}")


def _scaled(value: float, units: tuple[str, ...]) -> str:
    scaled, index = value, 0
    while abs(scaled) >= 999.5 and index < len(units) - 1:
        scaled, index = scaled / 1000, index + 1
    text = _minus(f"{scaled:.0f}") if index == 0 and scaled == int(scaled) else digits(scaled)
    return f"{text} {units[index]}".rstrip()


def _minus(text: str) -> str:
    return text.replace("-", "−") if float(text) else text.replace("-", "")
