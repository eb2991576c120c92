"""What `history` and `gain` print."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.analysis.history import PastRun, followed
from compressor.artifacts.gain import Gain
from compressor.reports.console.output import print_table, say
from compressor.reports.rows import formats
from compressor.reports.rows.gain_rows import COLUMNS, gain_cells, reasons
from compressor.reports.rows.ladder import accuracy_names

_COSTS = ("latency_p50_ms", "size_bytes")


def render_history(runs: Sequence[PastRun]) -> None:
    """Each run with its ladder."""
    for run in runs:
        gates = (
            f", {run.passed} of {run.passed + run.failed} gates passed"
            if run.passed + run.failed
            else ""
        )
        say(f"{run.when}  {run.run}{gates}")
        names = [
            *accuracy_names(one for step in run.steps for one in step.metrics.values()),
            *_COSTS,
        ]
        rows = [
            (step.step, *(formats.metric(step.metrics.get(name)) for name in names))
            for step in run.steps
        ]
        print_table(("step", *map(formats.label, names)), rows)
        say("")


def render_followed(runs: Sequence[PastRun], metric: str) -> None:
    """One metric over the runs."""
    rows = [
        (run.when, run.run, step.step, formats.metric(one), formats.interval(one))
        for run, step, one in followed(runs, metric)
    ]
    print_table(("when", "run", "step", formats.label(metric), "95 %"), rows)


def render_gains(found: Sequence[Gain]) -> None:
    """One row a step; below, why what is not shown to be faster is not."""
    print_table(COLUMNS, [gain_cells(one) for one in found])
    for step, line in reasons(found):
        say(f"{step} is {line}")
