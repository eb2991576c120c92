"""Commands on pipelines: run, plan, validate, init, pass, schema."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.commands.common import (
    open_draft,
    plan_pipeline,
    print_json,
    require_passed,
    source_context,
)
from compressor.commands.options import (
    DEFAULT_STORE,
    AllowCode,
    AsJson,
    Device,
    OptionalDataPipeline,
    Overrides,
    PipelineFile,
    Seed,
    StoreDir,
)
from compressor.errors import UsageError

if TYPE_CHECKING:
    from compressor.engine.plan.plan import Plan

PANEL = "Pipelines"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def run(
    file: PipelineFile,
    output_dir: StoreDir = DEFAULT_STORE,
    overrides: Overrides = None,
    start: Annotated[
        str | None, typer.Option("--from", help="First step to build; earlier ones must exist.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Last step to build.")] = None,
    only: Annotated[str | None, typer.Option(help="Build only this step.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build the selected steps again.")] = False,
    seed: Seed = None,
    device: Device = "cpu",
    allow_code: AllowCode = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and build nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline: build, measure, report and check the gates.

    Steps whose artifacts are in the store are verified and reused.
    """
    from compressor.engine.run.runner import select

    planned = plan_pipeline(
        open_draft(file, overrides, allow_code), output_dir, seed, device, allow_code
    )
    selected = select(planned, start=start, until=until, only=only)
    if dry_run:
        _print_plan(planned, as_json)
        return
    _execute(planned, selected, force=force, as_json=as_json)


@app.command(rich_help_panel=PANEL)
def plan(
    file: PipelineFile,
    output_dir: StoreDir = DEFAULT_STORE,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = "cpu",
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Print the steps of a run, their state and estimated cost."""
    pipeline = open_draft(file, overrides, allow_code)
    _print_plan(plan_pipeline(pipeline, output_dir, seed, device, allow_code), as_json)


@app.command(rich_help_panel=PANEL)
def validate(
    files: Annotated[
        list[Path], typer.Argument(help="Pipeline files.", metavar="PIPELINE.YAML...")
    ],
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Check pipeline files and the files that they name.

    All problems of all files are reported at once. Weights are checked by their headers, and data
    by its first and last records: neither is read as a whole.
    """
    from compressor.engine.plan.plan import CheckedPipeline
    from compressor.engine.plan.planner import check_pipeline
    from compressor.engine.plan.validation import check_files

    def check(file: Path) -> CheckedPipeline:
        pipeline = open_draft(file, overrides, allow_code)
        return check_pipeline(pipeline, source_context(pipeline, allow_code))

    checked = check_files(files, check)
    if as_json:
        print_json({str(file): list(pipeline.steps) for file, pipeline in checked.items()})
        return
    from compressor.reports.console.terminal import print_line, print_notes

    for file, pipeline in checked.items():
        print_line(f"{file} is valid: {' → '.join(pipeline.steps)}")
        print_notes(pipeline.notes)


@app.command(rich_help_panel=PANEL)
def init(
    folder: Annotated[
        Path, typer.Argument(help="Folder for pipeline.yaml.", metavar="FOLDER")
    ] = Path(),
    starter: Annotated[
        str | None,
        typer.Option(
            help="Start from a goal: llm-int4, module …; `list` shows all.", metavar="GOAL"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Write a pipeline for a model: PATH, my_model.py[:build], timm:NAME.",
            metavar="MODEL",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --from: your samples.", metavar="PATH")
    ] = None,
    allow_code: AllowCode = False,  # noqa: ARG001 - the option itself allows it
) -> None:
    """Write a pipeline.yaml to start from, and its JSON Schema.

    `init --starter list` lists the starters by goal.

    With `--from`, the pipeline fits a model: its steps are those that the model can go through, and
    its data set has the inputs of the model. A Python file is read, and run only with
    `--allow-code`: what it does not state is listed as `set …`. Exits with code 2 if no pass reads
    the model.
    """
    from compressor.engine.plan.module_starter import write_starter_for
    from compressor.engine.plan.starter import starters, write_starter
    from compressor.reports.console.terminal import print_line

    if model is not None and starter is not None:
        raise UsageError(
            "`--from` and `--starter` exclude each other", remedy="leave one of them out"
        )
    if model is None and data is not None:
        raise UsageError("`--data` belongs to `--from`", remedy="name the model with --from")
    if starter == "list":
        for name, summary in starters().items():
            print_line(f"{name:<13} {summary}")
        return
    if model is None:
        written = write_starter(folder, starter or "phone")
    else:
        written = write_starter_for(model, folder, data)
    for line in written.missing:
        print_line(f"set {line}")
    command = "plan" if model is not None or written.missing else "run"
    option = " --allow-code" if written.needs_code else ""
    print_line(f"wrote {written.file}; next: autoglm-compress {command} {written.file}{option}")
    if model is None and starter is None:
        print_line("starters for other goals: autoglm-compress init --starter list")


@app.command("pass", rich_help_panel=PANEL)
def run_pass(
    pass_type: Annotated[str, typer.Argument(help="Name of the pass.", metavar="PASS")],
    artifact: Annotated[
        Path, typer.Argument(help="Artifact, or directory of a model.", metavar="ARTIFACT")
    ],
    pipeline: OptionalDataPipeline = None,
    output_dir: StoreDir = DEFAULT_STORE,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Set a field of the pass: opset=20; or evaluate.FIELD.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    seed: Seed = None,
    device: Device = "cpu",
    allow_code: AllowCode = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan and decisions; write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a single pass on an artifact or a model directory."""
    from compressor.engine.run.runner import select
    from compressor.engine.run.single_pass import single_pass

    one_step_pipeline = single_pass(pass_type, artifact, pipeline, overrides or ())
    planned = plan_pipeline(one_step_pipeline, output_dir, seed, device, allow_code)
    if dry_run:
        _print_preview(planned, as_json)
        return
    selected = select(planned, start=None, until=None, only=None)
    _execute(planned, selected, force=False, as_json=as_json)


@app.command(rich_help_panel=PANEL)
def schema() -> None:
    """Print the JSON Schema of pipeline.yaml.

    It covers every installed pass and data source, for completion in editors.
    """
    from compressor.engine.plan.schema import pipeline_schema

    print_json(pipeline_schema())


def _print_plan(planned: Plan, as_json: bool) -> None:
    if as_json:
        from compressor.engine.plan.plan import plan_to_json

        print_json(plan_to_json(planned))
        return
    from compressor.reports.console.plans import render_plan

    render_plan(planned)


def _print_preview(planned: Plan, as_json: bool) -> None:
    """Print a plan of one pass, and the decisions that the pass would make."""
    from compressor.engine.plan.plan import plan_to_json
    from compressor.engine.run.single_pass import preview
    from compressor.reports.console.plans import render_decisions, render_plan
    from compressor.reports.console.progress import listener

    with listener(quiet=as_json) as on_event:
        decisions = preview(planned, on_event)
    if as_json:
        print_json({**plan_to_json(planned), "decisions": decisions})
        return
    render_plan(planned)
    render_decisions(decisions)


def _execute(planned: Plan, selected: frozenset[str], *, force: bool, as_json: bool) -> None:
    """Build the selected steps, record the run, print its report and check its gates."""
    from compressor.engine.run.runner import Runner, protected
    from compressor.reports.console.progress import listener
    from compressor.reports.console.runs import render_run
    from compressor.reports.pages.runs import record_run, run_as_json
    from compressor.reports.pages.write import write_artifact_reports

    command = shlex.join(["autoglm-compress", *sys.argv[1:]])
    reporter = partial(write_artifact_reports, command=command)
    with protected(planned):
        with listener(quiet=as_json) as on_event:
            result = Runner(planned, on_event, reporter, selected=selected, force=force).run()
        folder, report = record_run(planned, result, command)
    if as_json:
        print_json(run_as_json(folder, report))
    else:
        render_run(report, folder)
    require_passed(result.gates)
