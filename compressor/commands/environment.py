"""Commands on this installation: doctor, passes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.commands.common import print_json
from compressor.commands.options import DEFAULT_STORE, AsJson, StoreDir
from compressor.errors import CompressError

if TYPE_CHECKING:
    from compressor.analysis.model_report import ModelReport

PANEL = "Environment"
app = typer.Typer()
passes_app = typer.Typer(invoke_without_command=True)
app.add_typer(passes_app, name="passes", rich_help_panel=PANEL)

ModelToCheck = Annotated[
    Path | None, typer.Option("--model", help="Model to check against the passes.")
]


@app.command(rich_help_panel=PANEL)
def doctor(
    output_dir: StoreDir = DEFAULT_STORE, model: ModelToCheck = None, as_json: AsJson = False
) -> None:
    """Check this machine, its libraries and the plugins.

    Exits with code 1 if something is missing that every pipeline needs.
    """
    from compressor.analysis.doctor import diagnose
    from compressor.reports.console.environment import render_doctor
    from compressor.reports.console.models import render_suitability

    report = _report_model(model)
    diagnosis = diagnose(output_dir)
    if as_json:
        passes = [] if report is None else [pass_.model_dump() for pass_ in report.passes]
        print_json({**diagnosis.model_dump(), "passes": passes})
    else:
        render_doctor(diagnosis)
        if report is not None:
            render_suitability(report.passes, report.path)
    if not diagnosis.ok:
        raise typer.Exit(CompressError.exit_code)


@passes_app.callback()
def passes(context: typer.Context, as_json: AsJson = False) -> None:
    """List the installed passes, or explain one of them."""
    if context.invoked_subcommand is None:
        list_passes(as_json)


@passes_app.command("list")
def list_passes(as_json: AsJson = False) -> None:
    """List passes, data sources, model families and formats."""
    from compressor.analysis.catalogue import list_entries
    from compressor.reports.console.environment import render_catalogue

    entries = list_entries()
    if as_json:
        print_json([entry.model_dump() for entry in entries])
    else:
        render_catalogue(entries)


@passes_app.command("explain")
def explain(
    name: Annotated[
        str, typer.Argument(help="Pass, data source, family or format.", metavar="NAME")
    ],
    model: ModelToCheck = None,
    as_json: AsJson = False,
) -> None:
    """Describe a pass and its fields: type, default, effect."""
    from compressor.analysis.catalogue import find_entry
    from compressor.reports.console.environment import render_entry
    from compressor.reports.console.models import render_suitability

    entry = find_entry(name)
    report = _report_model(model)
    if report is not None:
        passes = tuple(pass_ for pass_ in report.passes if pass_.name == entry.name)
        report = report.model_copy(update={"passes": passes})
    if as_json:
        suitable = [] if report is None else [pass_.model_dump() for pass_ in report.passes]
        print_json({**entry.model_dump(), "suitable": suitable})
        return
    render_entry(entry)
    if report is not None and report.passes:
        render_suitability(report.passes, report.path)


def _report_model(path: Path | None) -> ModelReport | None:
    from compressor.analysis.model_report import report_model
    from compressor.runtimes.formats import recognize_model

    return None if path is None else report_model(recognize_model(path))
