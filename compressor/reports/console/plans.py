"""Print plans, and the decisions that a pass would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from compressor.engine.plan.plan import Plan, PlannedStep
from compressor.reports.console.terminal import new_table, out, print_line, print_notes
from compressor.reports.rows import formatting

_COLUMNS = (
    "step",
    "pass",
    "reads",
    "artifact",
    "state",
    "parameters",
    "MACs",
    "time",
    "memory",
    "disk",
)


def render_plan(plan: Plan) -> None:
    """Print the steps of a plan with their state and estimated cost."""
    table = new_table(*_COLUMNS)
    for step in plan.steps:
        table.add_row(*_step_cells(step))
    out.print(table)
    print_notes(plan.notes)
    print_line(
        f"store: {plan.store.root}, seed {plan.seed}, device {plan.device}; "
        "time, memory and disk are estimates"
    )


def _step_cells(step: PlannedStep) -> list[str | Text]:
    inputs = (name if role == "parent" else f"{role}: {name}" for role, name in step.inputs.items())
    estimate = step.estimate
    return [
        Text(step.name),
        step.pass_name,
        Text(", ".join(inputs) or formatting.DASH),
        step.directory,
        step.state,
        formatting.optional_number(estimate.model.parameters, "count"),
        formatting.optional_number(estimate.model.macs, "count"),
        formatting.optional_number(estimate.seconds, "s"),
        formatting.optional_number(estimate.peak_memory_bytes, "bytes"),
        formatting.optional_number(estimate.disk_bytes, "bytes"),
    ]


def render_decisions(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what a pass would decide; records with equal keys, such as the cut of each width."""
    if not rows:
        return
    table = new_table(*(name.replace("_", " ") for name in rows[0]), title="decisions of the pass")
    for row in rows:
        table.add_row(*(_format_value(value) for value in row.values()))
    out.print(table)


def _format_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
