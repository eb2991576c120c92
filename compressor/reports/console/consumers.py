"""Print the verdicts of consumers on the layers of a packed checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compressor.analysis.consumer_lint import pattern_of
from compressor.models.consumers.findings import Checked, Finding, Verdict, grid_words
from compressor.models.consumers.kernels import describe
from compressor.reports.console.terminal import print_line, print_notes, print_table


def render_checked(checked: Checked) -> None:
    """Print the layers, those that differ in their number alone as one row."""
    print_line(checked.consumer)
    if rows := _rows(checked.findings):
        print_table(("layers", "linear layer", "grid", "", "kernel"), rows)
    for line in [*checked.problems, *_reasons(checked.findings)]:
        print_line(line)
    print_notes(checked.notes)
    if checked.loads:
        print_line(f"no problems for {checked.consumer}")


def _rows(findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    counts: dict[tuple[str, ...], int] = {}
    for finding in findings:
        layer = finding.layer
        grid = "" if layer.grid is None else describe(layer.grid)
        name = f"{pattern_of(layer.name)} [{layer.outputs}, {layer.inputs}]"
        row = (name, grid, finding.verdict.value, finding.kernel or "")
        counts[row] = counts.get(row, 0) + 1
    return [(str(count), *row) for row, count in counts.items()]


def _reasons(findings: Sequence[Finding]) -> list[str]:
    """Return why layers do not load, each pattern of names once."""
    lines = []
    for finding in findings:
        if finding.verdict is Verdict.LOADS:
            continue
        line = f"{pattern_of(finding.layer.name)}: {finding.reason}"
        if finding.nearest is not None:
            line += f"; nearest grid that loads: {grid_words(finding.nearest)}"
        lines.append(line)
    return list(dict.fromkeys(lines))


def checked_as_json(checked: Checked) -> dict[str, Any]:
    """Return everything that was found, layer by layer."""
    return {
        "consumer": checked.consumer,
        "loads": checked.loads,
        "complaints": [*checked.problems, *_reasons(checked.refused)],
        "notes": list(checked.notes),
        "layers": [_finding_as_json(finding) for finding in checked.findings],
    }


def _finding_as_json(finding: Finding) -> dict[str, Any]:
    layer, nearest = finding.layer, finding.nearest
    return {
        "name": layer.name,
        "outputs": layer.outputs,
        "inputs": layer.inputs,
        "grid": None if layer.grid is None else layer.grid.model_dump(mode="json"),
        "verdict": finding.verdict.value,
        "kernel": finding.kernel,
        "reason": finding.reason,
        "nearest": None if nearest is None else nearest.model_dump(mode="json"),
    }
