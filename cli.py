"""The program ``autoglm-compress``: builds the app from the groups of commands."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

from compressor.interrupts import handle_signals

handle_signals()  # before the imports below, which take most of the time of a short command

import typer

from compressor.commands import (
    analysis,
    artifacts,
    environment,
    linting,
    models,
    pipelines,
    serving,
    updates,
)
from compressor.commands.main import run_app
from compressor.commands.supervision import supervised

app = typer.Typer(
    name="autoglm-compress",
    help="Compress multimodal models step by step, and measure every step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (pipelines, artifacts, updates, analysis, linting, models, serving, environment):
    app.add_typer(group.app)


def main() -> NoReturn:
    """Run the program in a child, and exit with its exit code."""
    supervised(partial(run_app, app))


if __name__ == "__main__":
    main()
