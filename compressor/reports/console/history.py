"""Print the runs of a store, or one metric over them."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.analysis.history import PastRun, metric_history
from compressor.reports.console.terminal import aligned_lines, print_lines
from compressor.reports.rows import formatting

_COSTS = ("latency_p50_ms", "size_bytes")


def render_history(runs: Sequence[PastRun]) -> None:
    """Print every run with its ladder."""
    lines: list[str] = []
    for run in runs:
        count = run.passed + run.failed
        verdicts = f", {run.passed} of {count} gates passed" if count else ""
        unchecked = "" if run.checked else ", written before records had digests"
        lines.append(f"{run.when}  {run.run}{verdicts}{unchecked}")
        first = {name: step for step in reversed(run.steps) for name in step.whole_metrics}
        metrics = ((name, step.metric(name)) for name, step in first.items())
        units = ((name, metric.unit) for name, metric in metrics if metric is not None)
        names = [*formatting.accuracy_names(units), *_COSTS]
        rows = [
            (step.step, *(formatting.metric(step.metric(name)) for name in names))
            for step in run.steps
        ]
        lines += [*aligned_lines(("step", *map(formatting.label, names)), rows), ""]
    print_lines(lines)


def render_metric_history(runs: Sequence[PastRun], name: str) -> None:
    """Print one metric of every step over the runs."""
    rows = [
        (run.when, run.run, step.step, formatting.metric(metric), formatting.interval(metric))
        for run, step, metric in metric_history(runs, name)
    ]
    print_lines(
        aligned_lines(("when", "run", "step", formatting.label(name), "95 % interval"), rows)
    )
