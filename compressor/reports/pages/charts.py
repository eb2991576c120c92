"""Draw the charts of the reports: records in, SVG text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from compressor.artifacts.manifest import Metric
from compressor.reports.pages import chart_axes
from compressor.reports.pages.svg import ACCENT, INK, MUTED, PAPER, page_style, svg
from compressor.reports.rows import formatting
from compressor.reports.rows.artifact import HeatMap
from compressor.reports.rows.model_files import Range

_MOST_PANELS = 8
"""Number of values of a training history that get a panel."""
_ROW = 0.82
"""Height of a latency distribution, in units of the distance between two rows."""


@dataclass(frozen=True, slots=True)
class Point:
    """One artifact in a trade-off chart."""

    label: str
    cost: Metric
    gain: Metric


def trade_off(name: str, points: Sequence[Point]) -> str:
    """Draw gain (high is better) against cost (low is better), with intervals and Pareto front."""
    with page_style():
        figure, axes = chart_axes.new_figure(3.0)
        front = pareto_front(points)
        chart_axes.scale_x(axes, [point.cost.value for point in points])
        if len(front) > 1:
            xs = [point.cost.value for point in front]
            ys = [point.gain.value for point in front]
            style = {"linewidth": 1.2, "alpha": 0.55, "drawstyle": "steps-post", "zorder": 2}
            axes.plot(xs, ys, color=ACCENT, **style)
        for point in points:
            _draw_point(axes, point, ACCENT if point in front else MUTED)
        cost, gain = points[0].cost, points[0].gain
        axes.margins(x=0.16, y=0.16)
        axes.set_xlabel(f"{formatting.label(cost.name)}  (lower is better)")
        axes.set_title(
            f"{formatting.label(gain.name)}  (higher is better)", color=MUTED, fontsize=9
        )
        chart_axes.format_ticks(axes.xaxis, cost.unit)
        chart_axes.format_ticks(axes.yaxis, gain.unit)
        labels = [
            chart_axes.Label(point.label, point.cost.value, point.gain.value) for point in points
        ]
        chart_axes.place_labels(figure, axes, labels)
        description = "; ".join(
            f"{point.label}: {formatting.metric(point.gain)} at {formatting.metric(point.cost)}"
            for point in points
        )
        return svg(figure, name, description)


def _draw_point(axes: Any, point: Point, color: str) -> None:
    x, y = [point.cost.value], [point.gain.value]
    xerr, yerr = chart_axes.error_bars(point.cost), chart_axes.error_bars(point.gain)
    style = {"color": color, "elinewidth": 1.1, "alpha": 0.45, "fmt": "none"}
    axes.errorbar(x, y, xerr=xerr, yerr=yerr, **style)
    axes.plot(x, y, "o", markersize=7, markerfacecolor=color, markeredgecolor=PAPER, zorder=3)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point beats on both axes, by increasing cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost.value, -point.gain.value)):
        if not front or point.gain.value > front[-1].gain.value:
            front.append(point)
    return front


def intervals(name: str, rows: Mapping[str, Sequence[tuple[str, Metric]]]) -> str:
    """Draw the metrics of each slice with their intervals, one marker per artifact.

    Args:
        name: Prefix of the ids in the SVG; unique on the page.
        rows: Slice name to pairs of artifact label and metric.
    """
    labels = list(dict.fromkeys(label for entries in rows.values() for label, _ in entries))
    count = len(labels)
    step = 1.0 / (count + 1)
    with page_style():
        figure, axes = chart_axes.new_figure(0.7 + 0.18 * len(rows) * (count + 0.7))
        for row, entries in enumerate(rows.values()):
            for label, metric in entries:
                index = labels.index(label)
                x, y = [metric.value], [row + step * (index - (count - 1) / 2)]
                color, marker = chart_axes.color(index, count), chart_axes.marker(index, count)
                style = {"color": color, "elinewidth": 1.6, "alpha": 0.4, "fmt": "none"}
                axes.errorbar(x, y, xerr=chart_axes.error_bars(metric), **style)
                face = {"markerfacecolor": color, "markeredgecolor": PAPER}
                axes.plot(x, y, marker, markersize=5.5, **face)
        row_names = [formatting.slice_name(row).replace(" · ", "\n") for row in rows]
        chart_axes.label_rows(axes, range(len(rows)), row_names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.08)
        unit = next(metric.unit for entries in rows.values() for _, metric in entries)
        chart_axes.format_ticks(axes.xaxis, unit)
        if count > 1:
            chart_axes.add_legend(axes, labels)
        return svg(figure, name, "Value and 95 % interval for each slice, as in the table below")


def latencies(name: str, rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Draw the distribution of timed calls per artifact: p50 as a line, p90 and p99 as ticks.

    Args:
        name: Prefix of the ids in the SVG; unique on the page.
        rows: Pairs of artifact label and milliseconds of each call.
    """
    import numpy as np

    with page_style():
        figure, axes = chart_axes.new_figure(0.75 + 0.62 * len(rows))
        arrays = [np.asarray(samples, dtype=float) for _, samples in rows]
        low = min(float(samples.min()) for samples in arrays) * 0.96
        high = max(float(np.percentile(samples, 99)) for samples in arrays) * 1.04
        logarithmic = low > 0 and high / low > chart_axes.LOG_SPAN
        edges = np.geomspace(low, high, 80) if logarithmic else np.linspace(low, high, 80)
        for index, samples in enumerate(arrays):
            color = chart_axes.color(index, len(arrays))
            _draw_distribution(axes, samples, edges, len(rows) - 1 - index, color)
        if logarithmic:
            axes.set_xscale("log")
        positions = [len(rows) - 1 - index + 0.3 for index in range(len(rows))]
        chart_axes.label_rows(axes, positions, [label for label, _ in rows])
        axes.set_ylim(-0.15, len(rows))
        axes.set_xlabel("time per call")
        chart_axes.format_ticks(axes.xaxis, "ms")
        return svg(figure, name, "Distribution of the timed calls of each artifact")


def _draw_distribution(axes: Any, samples: Any, edges: Any, base: float, color: str) -> None:
    """Draw a smoothed histogram above the line ``base``."""
    import numpy as np

    centers = (edges[:-1] + edges[1:]) / 2
    counts = np.histogram(np.clip(samples, edges[0], edges[-1]), edges)[0].astype(float)
    shape = np.convolve(counts, [0.06, 0.24, 0.4, 0.24, 0.06], mode="same")
    height = base + _ROW * shape / shape.max()
    axes.fill_between(centers, base, height, color=color, alpha=0.25, linewidth=0)
    axes.plot(centers, np.where(shape > 0, height, np.nan), color=color, linewidth=1.1)
    p50, p90, p99 = np.percentile(samples, [50, 90, 99])
    axes.plot([p50, p50], [base, base + _ROW], color=color, linewidth=2)
    axes.plot([p90, p99], [base, base], "|", color=color, markersize=9, markeredgewidth=1.6)


def calls(name: str, samples: Sequence[float]) -> str:
    """Draw the timed calls in order, in milliseconds; drift and outliers show here."""
    with page_style():
        figure, axes = chart_axes.new_figure(1.9)
        axes.plot(range(1, len(samples) + 1), samples, ".", color=ACCENT, markersize=4, alpha=0.75)
        axes.axhline(sorted(samples)[len(samples) // 2], color=INK, linewidth=0.8, alpha=0.6)
        axes.set_xlabel("call")
        chart_axes.format_ticks(axes.yaxis, "ms")
        return svg(figure, name, "Time of each call in order")


def history(name: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Draw every value of a training history against the step, one small panel each."""
    from matplotlib.figure import Figure

    keys = history_keys(entries)
    rows, columns = (len(keys) + 1) // 2, 1 if len(keys) == 1 else 2
    with page_style():
        figure = Figure(figsize=(chart_axes.WIDTH, 1.75 * rows), layout="constrained")
        for position, key in enumerate(keys, start=1):
            axes = figure.add_subplot(rows, columns, position)
            points = [
                (entry["step"] if _is_number(entry.get("step")) else index, entry[key])
                for index, entry in enumerate(entries)
                if _is_number(entry.get(key))
            ]
            axes.plot(*zip(*points, strict=True), color=ACCENT, linewidth=1.4)
            axes.set_title(key.replace("_", " "))
            axes.locator_params(nbins=4)
        return svg(figure, name, f"Training history: {', '.join(keys)}")


def history_keys(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the values of a history that get a panel: the loss first, constant values omitted."""
    x_values = {"step", "epoch", "seconds"}
    keys = dict.fromkeys(
        key for entry in entries for key in entry if key not in x_values and _is_number(entry[key])
    )
    moving = [key for key in keys if len({entry[key] for entry in entries if key in entry}) > 1]
    return sorted(moving, key=lambda key: key != "loss")[:_MOST_PANELS]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def heat_map(name: str, data: HeatMap) -> str:
    """Draw errors by linear layer and decoder layer; darker is larger, on a logarithmic scale."""
    from matplotlib.patches import Rectangle

    errors = data.errors.values()
    logarithms = [log(error) for error in errors if error > 0]
    low = min(logarithms, default=0.0)
    span = max(logarithms, default=0.0) - low
    with page_style():
        figure, axes = chart_axes.new_figure(0.75 + 0.24 * len(data.linears))
        for (linear, layer), error in data.errors.items():
            shade = (log(error) - low) / span if error > 0 and span > 0 else 0.0
            corner = (data.layers.index(layer) - 0.5, data.linears.index(linear) - 0.5)
            style: dict[str, Any] = {"facecolor": ACCENT, "edgecolor": PAPER, "linewidth": 0.6}
            axes.add_patch(Rectangle(corner, 1, 1, alpha=0.08 + 0.92 * shade, **style))
        axes.set_xlim(-0.5, len(data.layers) - 0.5)
        axes.set_ylim(len(data.linears) - 0.5, -0.5)
        step = max(1, len(data.layers) // 10)
        axes.set_xticks(
            range(0, len(data.layers), step), [str(layer) for layer in data.layers[::step]]
        )
        chart_axes.label_rows(axes, range(len(data.linears)), data.linears)
        axes.set_xlabel("layer")
        axes.grid(visible=False)
        extent = f"from {min(errors):.2g} to {max(errors):.2g}"
        return svg(figure, name, f"Error of each linear layer in each decoder layer, {extent}")


def ranges(name: str, rows: Sequence[Range]) -> str:
    """Draw the observed magnitude of each tensor, and the largest value its integers represent."""
    with page_style():
        figure, axes = chart_axes.new_figure(0.7 + 0.17 * len(rows))
        for index, row in enumerate(rows):
            style = {"color": MUTED, "linewidth": 5, "alpha": 0.3, "solid_capstyle": "butt"}
            axes.plot([0, row.magnitude], [index, index], **style)
            axes.plot([row.bound], [index], "|", color=ACCENT, markersize=8, markeredgewidth=2)
        chart_axes.label_rows(axes, range(len(rows)), [row.tensor for row in rows])
        axes.tick_params(axis="y", labelsize=6.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("largest magnitude")
        return svg(figure, name, "Largest observed magnitude and integer range of each tensor")
