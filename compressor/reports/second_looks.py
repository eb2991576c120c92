"""What `history` and `gain` print."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.engine.gaining import Gain
from compressor.engine.history import PastRun, followed
from compressor.reports import formats
from compressor.reports.console import print_table, say
from compressor.reports.ladder import accuracy_names

_COLUMNS = ("latency_p50_ms", "size_bytes")


def render_history(runs: Sequence[PastRun]) -> None:
    """Each run with its ladder."""
    for run in runs:
        gates = f", {run.passed} of {run.passed + run.failed} gates passed" if run.passed + run.failed else ""
        say(f"{run.when}  {run.run}{gates}")
        names = [*accuracy_names(one for step in run.steps for one in step.metrics.values()), *_COLUMNS]
        rows = [(step.step, *(formats.metric(step.metrics.get(name)) for name in names)) for step in run.steps]
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
    columns = ("step", "against", "in", "size", "MACs", "integer weights", "integer MACs", "speed-up", "95 %")
    print_table(columns, [gain_cells(one) for one in found])
    for one in found:
        for line in one.why_not:
            say(f"{one.step} is not shown to be faster than {one.against}: {line}")


def gain_cells(one: Gain) -> tuple[str, ...]:
    """The row of one step."""
    interval = formats.DASH
    if one.speedup_low is not None and one.speedup_high is not None:
        interval = f"{formats.ratio(one.speedup_low)} … {formats.ratio(one.speedup_high)}"
    shares = (one.low_precision_weights, one.low_precision_macs)
    return (
        one.step, one.against, one.runtime, formats.ratio(one.size_ratio), formats.ratio(one.macs_ratio),
        *(formats.DASH if share is None else formats.fraction(share) for share in shares),
        formats.ratio(one.speedup), interval,
    )  # fmt: skip
