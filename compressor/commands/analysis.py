"""Commands that analyse artifacts and runs: compare, gate, gain, bisect, report, …."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.commands.common import (
    open_optional_pipeline,
    open_pipeline,
    print_json,
    require_passed,
    source_context,
)
from compressor.commands.options import (
    DEFAULT_STORE,
    AllowCode,
    ArtifactPath,
    AsJson,
    DataPipeline,
    OptionalDataPipeline,
    Overrides,
    RunPath,
    StoreDir,
)
from compressor.errors import DamagedArtifactError

if TYPE_CHECKING:
    pass

PANEL = "Analysis"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def compare(
    a: ArtifactPath,
    b: Annotated[Path, typer.Argument(help="Artifact to compare with.", metavar="ARTIFACT")],
    pipeline: OptionalDataPipeline = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Compare the weights.")] = False,
    data: Annotated[
        str | None, typer.Option(help="Data set; default: that of `evaluate.accuracy`.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of samples to compare on.", min=1)] = 16,
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare two artifacts: metrics, config, tensors, layers.

    With --pipeline, both models run on samples of its data, and their layers are compared.
    """
    from compressor.analysis.compare import compare_artifacts, compare_samples
    from compressor.analysis.tensors import compare_tensors
    from compressor.engine.run.runner import kept_artifact
    from compressor.runtimes.formats import StoredModel

    with kept_artifact(a) as first, kept_artifact(b) as second:
        comparison = compare_artifacts(first, second)
        if tensors:
            differences = compare_tensors(StoredModel.of(first), StoredModel.of(second))
            comparison = comparison.model_copy(update={"tensors": differences})
        if (loaded := open_optional_pipeline(pipeline, overrides)) is not None:
            context = source_context(loaded, allow_code)
            layers = compare_samples(first, second, loaded, context, data, samples)
            comparison = comparison.model_copy(update={"layers": layers})
    if as_json:
        print_json(comparison.model_dump(mode="json"))
        return
    from compressor.reports.console.comparisons import render_comparison

    render_comparison(comparison)


@app.command(rich_help_panel=PANEL)
def gate(
    target: Annotated[
        Path, typer.Argument(help="Run, store (its last run), or artifact.", metavar="RUN")
    ],
    against: Annotated[
        Path,
        typer.Option(help="Run, store, artifact, or a run's ladder.json.", metavar="BASELINE"),
    ],
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--limit", help="Limit such as top1:max_drop=0.01.", metavar="METRIC:RULE=VALUE"
        ),
    ] = None,
    pipeline: OptionalDataPipeline = None,
    junit: Annotated[Path | None, typer.Option(help="File for JUnit XML.")] = None,
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Check a run against a baseline run.

    Without --limit, the pipeline's gates apply, and without --pipeline, no metric may be
    significantly worse. With --pipeline, latency is measured again on this machine. Exits with code
    3 if a gate fails.
    """
    from compressor.engine.gates.baseline import gate_against
    from compressor.engine.gates.measured_model import unchecked_record
    from compressor.reports.console.progress import listener
    from compressor.reports.console.runs import render_gates
    from compressor.reports.console.terminal import print_notes
    from compressor.reports.pages.write import write_gate_reports

    loaded = open_optional_pipeline(pipeline, overrides)
    context = source_context(loaded, allow_code)
    with listener(quiet=as_json) as on_event:
        checked = gate_against(target, against, limits or (), loaded, context, on_event)
    write_gate_reports(f"{checked.run} against {checked.baseline}", checked.gates, junit)
    if as_json:
        print_json([result.model_dump(mode="json") for result in checked.gates])
    else:
        render_gates(checked.gates)
        print_notes(filter(None, map(unchecked_record, (target, against))))
    require_passed(checked.gates)


@app.command(rich_help_panel=PANEL)
def gain(
    target: RunPath,
    pipeline: DataPipeline,
    seconds: Annotated[float, typer.Option(help="Time limit for each pair of models.", min=1)] = 30,
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure each step's gain in size, MACs and latency.

    Each step is timed in interleaved rounds with the nearest artifact of the same runtime. For
    steps that are not significantly faster, the reasons are listed.
    """
    from compressor.analysis.gain import measure_gains
    from compressor.engine.plan.config import BudgetConfig
    from compressor.reports.console.progress import listener
    from compressor.reports.console.runs import render_gains
    from compressor.reports.pages.runs import record_gains

    loaded = open_pipeline(pipeline, overrides)
    context, budget = source_context(loaded, allow_code), BudgetConfig(seconds=seconds)
    with listener(quiet=as_json) as on_event:
        results = measure_gains(target, loaded, context, budget, on_event)
    record_gains(target, results)
    if as_json:
        print_json([result.model_dump(mode="json") for result in results])
    else:
        render_gains(results)


@app.command(rich_help_panel=PANEL)
def bisect(
    target: RunPath,
    pipeline: DataPipeline,
    metric: Annotated[
        str | None,
        typer.Option(help="Metric that got worse; default: the pipeline's first with labels."),
    ] = None,
    step: Annotated[
        str | None, typer.Option(help="Last step to look at; default: the run's last.")
    ] = None,
    within: Annotated[
        str | None, typer.Option(help="Step whose layers are searched; default: the worst.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of samples to measure on.", min=1)] = 256,
    each: Annotated[
        bool, typer.Option("--each", help="Restore layers one by one, not by halves.")
    ] = False,
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Find the pass, then the layer, that lost accuracy.

    Layers of the step that lost most are replaced by those of its parent, and accuracy is measured
    again. Metrics without labels, such as kl, compare with the model that the chain starts from.
    """
    from compressor.analysis.bisect import BisectOptions
    from compressor.analysis.bisect import bisect as bisect_run
    from compressor.engine.events import StepProgress
    from compressor.reports.console.comparisons import render_bisection
    from compressor.reports.console.progress import listener

    loaded = open_pipeline(pipeline, overrides)
    with listener(quiet=as_json) as on_event:
        bisection = bisect_run(
            target,
            loaded,
            source_context(loaded, allow_code),
            BisectOptions(metric, step=step, within=within, samples=samples, each=each),
            lambda task, done, total: on_event(StepProgress("bisect", task, done, total)),
        )
    if as_json:
        print_json(bisection.model_dump(mode="json"))
    else:
        render_bisection(bisection)


@app.command(rich_help_panel=PANEL)
def report(
    target: RunPath = DEFAULT_STORE,
    svg: Annotated[
        Path | None, typer.Option(help="Write the printed ladder as a picture.", metavar="FILE")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a run again and print its ladder."""
    from compressor.reports.pages.runs import rewrite_report

    folder, run_report = rewrite_report(target)
    if svg is not None:
        from compressor.reports.console.ladder import write_picture

        write_picture(run_report, svg)
    if as_json:
        print_json(run_report.ladder.model_dump(mode="json"))
        return
    from compressor.reports.console.runs import render_run

    render_run(run_report, folder)


@app.command(rich_help_panel=PANEL)
def history(
    output_dir: StoreDir = DEFAULT_STORE,
    name: Annotated[
        str | None, typer.Option("--name", help="Pipeline whose runs are listed.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Metric to list over the runs.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs of a store, or one metric over them.

    Exits with code 4 if the record of a run is damaged; the others are listed.
    """
    from compressor.analysis.history import read_history

    history = read_history(output_dir, name, slices=as_json or "[" in (metric or ""))
    if as_json:
        print_json([run.to_json() for run in history.runs])
    else:
        from compressor.reports.console.history import render_history, render_metric_history

        if metric is not None and history.runs:
            render_metric_history(history.runs, metric)
        else:
            render_history(history.runs)
    if history.damaged:
        raise DamagedArtifactError("\n".join(history.damaged), remedy="these runs are left out")


@app.command("eval", rich_help_panel=PANEL)
def evaluate(
    artifact: ArtifactPath,
    pipeline: DataPipeline,
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy and latency of an artifact.

    The metrics are those of the pipeline's `evaluate:` section; nothing is written.
    """
    _measure(artifact, pipeline, overrides, allow_code, as_json, accuracy=True)


@app.command(rich_help_panel=PANEL)
def bench(
    artifact: ArtifactPath,
    pipeline: DataPipeline,
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure latency and generation of an artifact.

    The settings are those of the pipeline's `evaluate:` section; nothing is written.
    """
    _measure(artifact, pipeline, overrides, allow_code, as_json, accuracy=False)


def _measure(
    path: Path,
    pipeline: Path,
    overrides: list[str] | None,
    allow_code: bool,
    as_json: bool,
    *,
    accuracy: bool,
) -> None:
    from compressor.engine.run.runner import kept_artifact
    from compressor.engine.run.single_pass import measure_artifact
    from compressor.reports.console.artifacts import render_metrics
    from compressor.reports.console.progress import listener

    with kept_artifact(path) as artifact, listener(quiet=as_json) as on_event:
        measurement = measure_artifact(
            artifact, pipeline, overrides or (), on_event, allow_code=allow_code, accuracy=accuracy
        )
    if as_json:
        print_json(measurement.model_dump(mode="json"))
    else:
        render_metrics(artifact.name, measurement.metrics)
