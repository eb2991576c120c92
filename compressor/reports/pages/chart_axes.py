"""Set up axes for the charts: notation, logarithmic scales, legends, and labels beside points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compressor.artifacts.manifest import Metric
from compressor.reports.pages.svg import ACCENT, INK, MUTED, PAPER
from compressor.reports.rows import formatting

WIDTH = 4.7
"""Width of every figure in inches; the page scales it."""
LOG_SPAN = 8.0
"""An axis becomes logarithmic if its largest value exceeds the smallest by this factor."""
_MARKERS = "osD^vP"
_LABEL_OFFSETS = (
    (6, 9, "left"),
    (6, -9, "left"),
    (-6, 9, "right"),
    (-6, -9, "right"),
    (9, 0, "left"),
    (-9, 0, "right"),
    (6, 22, "left"),
    (6, -22, "left"),
    (-6, 22, "right"),
    (-6, -22, "right"),
    (0, 36, "center"),
    (0, -36, "center"),
)
"""Offsets of a label from its point, best first: x and y in typographic points, and alignment."""
_LABEL_OVERHANG = 30
"""Pixels by which a label may extend beyond the right edge of the axes."""


@dataclass(frozen=True, slots=True)
class Label:
    """A text beside the point (x, y), in data coordinates."""

    text: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle in pixels around a center."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, box: _Box) -> bool:
        """Return True if the two rectangles have a common area."""
        return (
            abs(self.x - box.x) < (self.width + box.width) / 2
            and abs(self.y - box.y) < (self.height + box.height) / 2
        )

    def fits(self, extent: Any) -> bool:
        """Return True if the rectangle lies within a Matplotlib bounding box."""
        return bool(
            extent.x0 <= self.x - self.width / 2
            and self.x + self.width / 2 <= extent.x1 + _LABEL_OVERHANG
            and extent.y0 <= self.y - self.height / 2
            and self.y + self.height / 2 <= extent.y1
        )


def new_figure(height: float) -> tuple[Any, Any]:
    """Return a figure of ``height`` inches and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def label_rows(axes: Any, positions: Sequence[float], labels: Sequence[str]) -> None:
    """Label the rows of a chart on the y axis, without horizontal grid lines."""
    axes.set_yticks(positions, labels)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False, axis="y")


def error_bars(metric: Metric) -> list[list[float]] | None:
    """Return the lengths of a metric's error bars below and above it; None without an interval."""
    if metric.low is None or metric.high is None:
        return None
    return [[max(0.0, metric.value - metric.low)], [max(0.0, metric.high - metric.value)]]


def scale_x(axes: Any, values: Sequence[float]) -> None:
    """Make the x axis logarithmic if the values span more than ``LOG_SPAN``."""
    if min(values) > 0 and max(values) / min(values) > LOG_SPAN:
        axes.set_xscale("log")


def format_ticks(axis: Any, unit: str) -> None:
    """Write the numbers of an axis in the notation of their unit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    logarithmic = axis.get_scale() == "log"
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5)) if logarithmic else MaxNLocator(nbins=5, min_n_ticks=3)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(value, unit)))
    axis.set_minor_formatter(NullFormatter())


def marker(index: int, count: int) -> str:
    """Return the marker of series ``index``: the last series always has the same one."""
    return _MARKERS[(count - 1 - index) % len(_MARKERS)]


def color(index: int, count: int) -> str:
    """Return the color of series ``index``: the accent color for the last one."""
    return ACCENT if index == count - 1 else MUTED


def add_legend(axes: Any, labels: Sequence[str]) -> None:
    """Put a legend with the markers of all series above the axes."""
    from matplotlib.lines import Line2D

    count = len(labels)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=marker(index, count),
            color=color(index, count),
            markeredgecolor=PAPER,
        )
        for index in range(count)
    ]
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4 if sum(map(len, labels)) < 32 else 2,
        frameon=False,
        borderpad=0,
        handletextpad=0.2,
    )


def place_labels(figure: Any, axes: Any, labels: Sequence[Label]) -> None:
    """Write each label beside its point, at the first offset free of other labels and points."""
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    centers = [axes.transData.transform((label.x, label.y)) for label in labels]
    occupied = [_Box(float(x), float(y), 9 * scale, 9 * scale) for x, y in centers]
    extent = axes.get_window_extent()
    for label, (x, y) in zip(labels, centers, strict=True):
        width, height = 5.6 * scale * len(label.text), 11 * scale
        for dx, dy, side in _LABEL_OFFSETS:
            shift = {"left": width / 2, "right": -width / 2, "center": 0.0}[side]
            box = _Box(x + dx * scale + shift, y + dy * scale, width, height)
            if box.fits(extent) and not any(box.overlaps(taken) for taken in occupied):
                break
        occupied.append(box)
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=9,
            color=INK,
        )
