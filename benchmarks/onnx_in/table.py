"""Markdown tables of the results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.onnx_in.model import Model

Rows = list[dict[str, Any]]


def table(model: Model, rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of a model."""
    float_row = rows[0]
    head = f"tool | size | {model.measure} | error (median) | cosine | latency (range) | s"
    lines = [
        f"**{model.name}**: {model.field}, exported by {model.exporter}, "
        f"{Path(float_row['file']).stat().st_size / 1e6:.1f} MB; "
        + (f"float {float_row['milliseconds']:.2f} ms\n" if "median" in float_row else "\n"),
        f"| {head} |",
        "|" + "---|" * (head.count("|") + 1),
    ]
    for row in rows[1:]:
        if "failed" in row:
            lines.append(f"| {row['tool']} | failed: {row['failed'][:150]} | | | | | |")
            continue
        name = f"{row['tool']} ({row['note']})" if row.get("note") else row["tool"]
        ratio = "–"
        if "median" in row:
            ratio = f"×{row['median']:.2f} ({row['least']:.2f}–{row['most']:.2f})"
        error = f"{row['relative_error']:.4f} ({row['sample_error']:.4f})"
        lines.append(
            f"| {name} | ×{row['size']:.3f} | {row['agreement']:.4f} | {error} "
            f"| {row['cosine']:.5f} | {ratio} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def summary(results: Mapping[str, Rows]) -> str:
    """Return a Markdown table of the tools over all models; those that failed are only counted."""
    tools = list(dict.fromkeys(row["tool"] for rows in results.values() for row in rows[1:]))
    lines = [
        f"**{len(results)} models**: geometric mean of sizes and latencies, median of the others\n",
        "| tool | failed | size | error | agreement | latency |",
        "|---|---|---|---|---|---|",
    ]
    for tool in tools:
        own = [row for rows in results.values() for row in rows[1:] if row["tool"] == tool]
        good = [row for row in own if "failed" not in row]
        if not good:
            lines.append(f"| {tool} | {len(own)} | | | | |")
            continue
        size = statistics.geometric_mean(row["size"] for row in good)
        error = statistics.median(row["relative_error"] for row in good)
        agreement = statistics.median(row["agreement"] for row in good)
        ratios = [row["median"] for row in good if "median" in row]
        latency = f"×{statistics.geometric_mean(ratios):.2f}" if ratios else "–"
        lines.append(
            f"| {tool} | {len(own) - len(good)} | ×{size:.3f} | {error:.4f} | {agreement:.4f} "
            f"| {latency} |"
        )
    return "\n".join(lines) + "\n"
