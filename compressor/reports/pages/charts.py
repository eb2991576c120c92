"""The charts of the reports: records in, SVG text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.artifacts.manifest import Metric
from compressor.reports.pages.svg import ACCENT, INK, MUTED, PAPER, drawing, svg
from compressor.reports.rows import formats
from compressor.reports.rows.facts import Range

_WIDTH = 4.7
_LABEL_PLACES = (
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
"""Where a point's label may stand, the best first: across, up (in typographic points), and the side it is tied to."""
_LOG_FROM = 8.0  # a span of values wider than this factor gets a logarithmic axis


@dataclass(frozen=True, slots=True)
class Point:
    """One artifact in a trade-off."""

    label: str
    cost: Metric
    gain: Metric


def trade_off(name: str, points: Sequence[Point]) -> str:
    """Gain (more is better) against cost (less is better), intervals as bars, the Pareto front in the accent colour."""
    with drawing():
        figure, axes = _figure(3.0)
        front = pareto_front(points)
        _logarithmic(axes, [point.cost.value for point in points])
        if len(front) > 1:
            xs, ys = zip(*((point.cost.value, point.gain.value) for point in front), strict=True)
            axes.plot(
                xs, ys, color=ACCENT, linewidth=1.2, alpha=0.55, drawstyle="steps-post", zorder=2
            )
        for point in points:
            colour = ACCENT if point in front else MUTED
            x, y = point.cost.value, point.gain.value
            axes.errorbar(
                [x],
                [y],
                xerr=_bars(point.cost),
                yerr=_bars(point.gain),
                color=colour,
                elinewidth=1.1,
                alpha=0.45,
                fmt="none",
            )
            axes.plot(
                [x], [y], "o", markersize=7, markerfacecolor=colour, markeredgecolor=PAPER, zorder=3
            )
        axes.margins(x=0.16, y=0.16)
        axes.set_xlabel(f"{formats.label(points[0].cost.name)}  (less is better)")
        axes.set_title(
            f"{formats.label(points[0].gain.name)}  (more is better)", color=MUTED, fontsize=9
        )
        _notation(axes.xaxis, points[0].cost.unit)
        _notation(axes.yaxis, points[0].gain.unit)
        _place_labels(figure, axes, points)
        described = "; ".join(
            f"{p.label}: {formats.metric(p.gain)} at {formats.metric(p.cost)}" for p in points
        )
        return svg(figure, name, described)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats on both axes, by rising cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost.value, -p.gain.value)):
        if not front or point.gain.value > front[-1].gain.value:
            front.append(point)
    return front


def intervals(name: str, rows: Mapping[str, Sequence[tuple[str, Metric]]]) -> str:
    """For each slice one dot per artifact with its interval; the last artifact in the accent colour."""
    labels = list(dict.fromkeys(label for entries in rows.values() for label, _ in entries))
    step = 1.0 / (len(labels) + 1)
    with drawing():
        figure, axes = _figure(0.7 + 0.18 * len(rows) * (len(labels) + 0.7))
        for at, entries in enumerate(rows.values()):
            for label, metric in entries:
                index = labels.index(label)
                y = at + step * (index - (len(labels) - 1) / 2)
                colour = ACCENT if index == len(labels) - 1 else MUTED
                marker = "osD^vP"[(len(labels) - 1 - index) % 6]
                axes.errorbar(
                    [metric.value],
                    [y],
                    xerr=_bars(metric),
                    color=colour,
                    elinewidth=1.6,
                    alpha=0.4,
                    fmt="none",
                )
                axes.plot(
                    [metric.value],
                    [y],
                    marker,
                    markersize=5.5,
                    markerfacecolor=colour,
                    markeredgecolor=PAPER,
                )
        axes.set_yticks(
            range(len(rows)), [formats.readable_slice(one).replace(" · ", "\n") for one in rows]
        )
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
        unit = next(metric.unit for entries in rows.values() for _, metric in entries)
        _notation(axes.xaxis, unit)
        if len(labels) > 1:
            _legend(axes, labels)
        return svg(
            figure,
            name,
            "A dot and its 95 % interval for each slice; the table below has the figures",
        )


def latencies(name: str, rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Where the timed calls fall, one band an artifact: its shape, p50 as a line, p90 and p99 as ticks."""
    import numpy as np

    with drawing():
        figure, axes = _figure(0.75 + 0.62 * len(rows))
        arrays = [np.asarray(samples, dtype=float) for _, samples in rows]
        low = min(float(one.min()) for one in arrays) * 0.96
        high = max(float(np.percentile(one, 99)) for one in arrays) * 1.04
        logarithmic = low > 0 and high / low > _LOG_FROM
        edges = np.geomspace(low, high, 80) if logarithmic else np.linspace(low, high, 80)
        centres = (edges[:-1] + edges[1:]) / 2
        for at, samples in enumerate(arrays):
            colour = ACCENT if at == len(rows) - 1 else MUTED
            counts = np.histogram(np.clip(samples, low, high), edges)[0].astype(float)
            shape = np.convolve(counts, [0.06, 0.24, 0.4, 0.24, 0.06], mode="same")
            base = len(rows) - 1 - at
            height = base + 0.82 * shape / shape.max()
            axes.fill_between(centres, base, height, color=colour, alpha=0.25, linewidth=0)
            axes.plot(centres, np.where(shape > 0, height, np.nan), color=colour, linewidth=1.1)
            p50, p90, p99 = np.percentile(samples, [50, 90, 99])
            axes.plot([p50, p50], [base, base + 0.82], color=colour, linewidth=2)
            axes.plot(
                [p90, p99], [base, base], "|", color=colour, markersize=9, markeredgewidth=1.6
            )
        if logarithmic:
            axes.set_xscale("log")
        axes.set_yticks(
            [len(rows) - 1 - at + 0.3 for at in range(len(rows))], [label for label, _ in rows]
        )
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(-0.15, len(rows))
        axes.set_xlabel("time of one call")
        _notation(axes.xaxis, "ms")
        return svg(figure, name, "How the timed calls of each artifact are distributed")


def calls(name: str, samples: Sequence[float]) -> str:
    """The timed calls in their order: drift, warm-up and hiccups show here."""
    with drawing():
        figure, axes = _figure(1.9)
        axes.plot(range(1, len(samples) + 1), samples, ".", color=ACCENT, markersize=4, alpha=0.75)
        axes.axhline(sorted(samples)[len(samples) // 2], color=INK, linewidth=0.8, alpha=0.6)
        axes.set_xlabel("call")
        _notation(axes.yaxis, "ms")
        return svg(figure, name, "Time of each call in order")


def history(name: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Every figure that training recorded, one small panel each, against the step."""
    from matplotlib.figure import Figure

    keys = history_keys(entries)
    rows = (len(keys) + 1) // 2
    with drawing():
        figure = Figure(figsize=(_WIDTH, 1.75 * rows), layout="constrained")
        for at, key in enumerate(keys):
            axes = figure.add_subplot(rows, 1 if len(keys) == 1 else 2, at + 1)
            known = [
                (index, entry) for index, entry in enumerate(entries) if _is_number(entry.get(key))
            ]
            xs = [
                entry["step"] if _is_number(entry.get("step")) else index for index, entry in known
            ]
            axes.plot(xs, [entry[key] for _, entry in known], color=ACCENT, linewidth=1.4)
            axes.set_title(key.replace("_", " "))
            axes.locator_params(nbins=4)
        return svg(figure, name, f"Training history: {', '.join(keys)}")


def heat_map(
    name: str, rows: Sequence[str], columns: Sequence[int], values: Mapping[tuple[str, int], float]
) -> str:
    """An error for each row and column, from the smallest to the largest on a logarithmic scale: the darker, the larger."""
    from math import log

    from matplotlib.patches import Rectangle

    known = [log(value) for value in values.values() if value > 0]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    with drawing():
        figure, axes = _figure(0.75 + 0.24 * len(rows))
        for (row, column), value in values.items():
            shade = (log(value) - low) / span if value > 0 and span > 0 else 0.0
            place = (columns.index(column) - 0.5, rows.index(row) - 0.5)
            axes.add_patch(
                Rectangle(
                    place,
                    1,
                    1,
                    facecolor=ACCENT,
                    alpha=0.08 + 0.92 * shade,
                    edgecolor=PAPER,
                    linewidth=0.6,
                )
            )
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        step = max(1, len(columns) // 10)
        axes.set_xticks(range(0, len(columns), step), [str(one) for one in columns[::step]])
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlabel("layer")
        axes.grid(visible=False)
        least, most = min(values.values()), max(values.values())
        return svg(
            figure,
            name,
            f"Error of each linear layer in each decoder layer, from {least:.2g} to {most:.2g}",
        )


def ranges(name: str, rows: Sequence[Range]) -> str:
    """For each tensor the magnitudes that were seen, and in the accent colour where its integers end."""
    with drawing():
        figure, axes = _figure(0.7 + 0.17 * len(rows))
        for at, row in enumerate(rows):
            most = max(abs(row.minimum), abs(row.maximum))
            axes.plot(
                [0, most], [at, at], color=MUTED, linewidth=5, alpha=0.3, solid_capstyle="butt"
            )
            axes.plot([row.bound], [at], "|", color=ACCENT, markersize=8, markeredgewidth=2)
        axes.set_yticks(range(len(rows)), [row.tensor for row in rows])
        axes.tick_params(axis="y", labelcolor=INK, labelsize=6.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("largest magnitude")
        return svg(
            figure,
            name,
            "The largest magnitude of each calibrated tensor, and where its integers end",
        )


def history_keys(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The recorded figures worth a panel: the loss first, those that never change left out, eight at most."""
    axes = {"step", "epoch", "seconds"}
    keys = dict.fromkeys(
        key for entry in entries for key in entry if key not in axes and _is_number(entry[key])
    )
    moving = [key for key in keys if len({entry[key] for entry in entries if key in entry}) > 1]
    return sorted(moving, key=lambda key: key != "loss")[:8]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _bars(metric: Metric) -> list[list[float]] | None:
    if metric.low is None or metric.high is None:
        return None
    return [[max(0.0, metric.value - metric.low)], [max(0.0, metric.high - metric.value)]]


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) / min(values) > _LOG_FROM:
        axes.set_xscale("log")


def _notation(axis: Any, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    logarithmic = axis.get_scale() == "log"
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5)) if logarithmic else MaxNLocator(nbins=5, min_n_ticks=3)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: formats.tick(value, unit)))
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: Any, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    last = len(labels) - 1
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="osD^vP"[(last - i) % 6],
            color=ACCENT if i == last else MUTED,
            markeredgecolor=PAPER,
        )
        for i in range(len(labels))
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


def _place_labels(figure: Any, axes: Any, points: Sequence[Point]) -> None:
    """Beside each point, on the first side where no other label or point is in the way."""
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    centres = [axes.transData.transform((point.cost.value, point.gain.value)) for point in points]
    taken = [_box(float(x), float(y), 9 * scale, 9 * scale) for x, y in centres]
    inside = axes.get_window_extent()
    for point, (x, y) in zip(points, centres, strict=True):
        width, height = 5.6 * scale * len(point.label), 11 * scale
        for dx, dy, side in _LABEL_PLACES:
            left = x + dx * scale - {"left": 0.0, "right": width, "center": width / 2}[side]
            box = _box(left + width / 2, y + dy * scale, width, height)
            fits = (
                inside.x0 <= box[0]
                and box[2] <= inside.x1 + 30
                and inside.y0 <= box[1]
                and box[3] <= inside.y1
            )
            if fits and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        at = (point.cost.value, point.gain.value)
        axes.annotate(
            point.label,
            at,
            xytext=(dx, dy),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=9,
            color=INK,
        )


def _box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
