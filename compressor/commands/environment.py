"""Commands on this installation: doctor, passes."""

from __future__ import annotations

from typing import Annotated

import typer

from compressor.commands.common import print_json
from compressor.commands.options import DEFAULT_STORE, AsJson, StoreDir
from compressor.errors import CompressError

PANEL = "Environment"
app = typer.Typer()
passes_app = typer.Typer(invoke_without_command=True)
app.add_typer(passes_app, name="passes", rich_help_panel=PANEL)


@app.command(rich_help_panel=PANEL)
def doctor(output_dir: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Check this machine, its libraries and the plugins.

    Exits with code 1 if something is missing that every pipeline needs.
    """
    from compressor.analysis.doctor import diagnose
    from compressor.reports.console.environment import render_doctor

    diagnosis = diagnose(output_dir)
    if as_json:
        print_json(diagnosis.model_dump())
    else:
        render_doctor(diagnosis)
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
    from compressor.analysis.catalogue import catalogue
    from compressor.reports.console.environment import render_catalogue

    entries = catalogue()
    if as_json:
        print_json([entry.model_dump() for entry in entries])
    else:
        render_catalogue(entries)


@passes_app.command("explain")
def explain(
    name: Annotated[str, typer.Argument(help="Pass, data source, family or format.")],
    as_json: AsJson = False,
) -> None:
    """Describe a pass and its fields: type, default, effect."""
    from compressor.analysis.catalogue import entry as find_entry
    from compressor.reports.console.environment import render_entry

    entry = find_entry(name)
    if as_json:
        print_json(entry.model_dump())
    else:
        render_entry(entry)
