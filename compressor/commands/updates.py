"""Commands on update packages: apply."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.commands.common import print_json
from compressor.commands.options import AsJson, PublicKey, RequireSignature
from compressor.errors import UsageError

PANEL = "Artifacts"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def apply(
    package: Annotated[
        Path | None,
        typer.Argument(help="Update package, or `delta` artifact.", metavar="[DELTA]"),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Argument(
            help="Model that it applies to: artifact, folder or file.", metavar="[BASE]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result; its last one is replaced at once.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an (IA)³ adapter into its base's packed scales.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Return to the model before the last update.")
    ] = False,
    signature: RequireSignature = False,
    key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Apply an update package to its base, or undo the last one.

    The signature, the base, the counter and the expiry are checked, and the result has exactly the
    digest that the package announces. The folder `--out` is replaced as a whole or not at all; the
    model before is kept in `OUT.updates` for `--undo`. Exits with code 4 if the package is damaged
    or not signed as required, and with 2 if it is for another base, older than one that was
    applied, or expired.
    """
    from compressor.reports.console.terminal import print_line
    from compressor.runtimes.delta.apply import Application, apply_package, undo_package
    from compressor.runtimes.delta.slot import now

    if out is None:
        raise UsageError("--out is missing", remedy="name the folder of the result: --out FOLDER")
    if undo:
        if package is not None or merge:
            raise UsageError(
                "--undo takes no package, and nothing is merged", remedy="give --undo and --out"
            )
        state = undo_package(out)
        current = state.current
        if as_json:
            print_json(state.model_dump(mode="json"))
        else:
            which = "nothing is" if current is None else f"{current.name} {current.counter} is"
            print_line(f"{out}: {which} in use; updates before {state.highest} are refused")
        return
    if package is None or base is None:
        raise UsageError(
            "the package and its base are missing",
            remedy="autoglm-compress apply DELTA BASE --out FOLDER",
        )
    update, new = apply_package(Application(package, base, out, key, signature, merge, now()))
    if as_json:
        print_json({**update.model_dump(mode="json"), "new": new, "path": str(out)})
        return
    origin = f"signed by {update.signer}" if update.signer else "its signature was not checked"
    print_line(
        f"{out}: {update.name} {update.counter}{'' if new else ' was in use already'}, "
        f"digest {update.digest[:12]}; {origin}"
    )
