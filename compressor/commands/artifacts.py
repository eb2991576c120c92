"""Commands on artifacts: show, verify, gc, sign, archive, restore, sbom."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from compressor.commands.common import print_json
from compressor.commands.options import (
    DEFAULT_STORE,
    ArtifactPath,
    AsJson,
    PublicKey,
    RequireSignature,
    StoreDir,
)
from compressor.errors import DamagedArtifactError, ModelError

PANEL = "Artifacts"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def show(
    target: Annotated[
        str,
        typer.Argument(
            help="Artifact, store, model file or folder, or family:preset.",
            metavar="TARGET",
        ),
    ] = str(DEFAULT_STORE),
    as_json: AsJson = False,
) -> None:
    """Show what any file or folder is, or the size of a preset.

    For a model, `show` lists its parts and the passes that it can go through, with the reasons
    against the others and their remedies. Nothing is executed or unpickled. Exits with code 2 if
    nothing is recognized, or if the model is damaged.
    """
    from compressor.artifacts.artifact import is_artifact
    from compressor.artifacts.store import Store

    path = Path(target)
    if is_artifact(path):
        _show_artifact(path, as_json)
    elif Store(path).was_used():
        _show_store(path, as_json)
    elif path.exists():
        _show_model(path, as_json)
    else:
        _show_preset(target, as_json)


def _show_artifact(path: Path, as_json: bool) -> None:
    from compressor.analysis.model_report import report_passes
    from compressor.artifacts.artifact import verified_artifact
    from compressor.runtimes.formats import StoredModel

    artifact = verified_artifact(path)
    passes = report_passes(StoredModel.of(artifact))
    if as_json:
        tables = {"passes": [pass_.model_dump(mode="json") for pass_ in passes]}
        print_json({**artifact.manifest.model_dump(mode="json"), **tables})
        return
    from compressor.reports.console.artifacts import render_artifact
    from compressor.reports.console.models import render_suitability

    render_artifact(artifact)
    render_suitability(passes, artifact.name)


def _show_store(path: Path, as_json: bool) -> None:
    from compressor.artifacts.artifact import open_artifact
    from compressor.artifacts.store import Store
    from compressor.errors import CompressError

    artifacts, problems = [], []
    for folder in Store(path).artifacts():
        try:
            artifacts.append(open_artifact(folder))
        except CompressError as error:
            problems.append(error.what)
    if as_json:
        print_json([artifact.manifest.model_dump(mode="json") for artifact in artifacts])
    else:
        from compressor.reports.console.artifacts import render_store

        render_store(path, artifacts)
    if problems:
        raise DamagedArtifactError("\n".join(problems))


def _show_model(path: Path, as_json: bool) -> None:
    from compressor.analysis.model_report import report_path

    report = report_path(path)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        from compressor.reports.console.models import render_model

        render_model(report)
    if report.damaged:
        raise ModelError(f"{path} is damaged", remedy="copy or download it again")


def _show_preset(name: str, as_json: bool) -> None:
    from compressor.analysis.model_sizes import compute_model_sizes

    sizes = compute_model_sizes(name)
    if as_json:
        print_json(sizes.model_dump())
        return
    from compressor.reports.console.models import render_sizes

    render_sizes(sizes)


@app.command(rich_help_panel=PANEL)
def verify(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Artifacts, stores or runs.", metavar="PATH")
    ] = None,
    signature: RequireSignature = False,
    key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Check artifacts against their hashes and ids.

    With `--key`, each must be signed with that key, or with one of that keyring. Exits with code 4
    if an artifact is damaged.
    """
    from compressor.artifacts.verifying import verify_all
    from compressor.reports.console.artifacts import render_verification

    check = partial(_check_identity, signature=signature or key is not None, key=key)
    problems = verify_all(paths or [DEFAULT_STORE], check)
    if as_json:
        print_json({str(path): problem for path, problem in problems.items()})
    else:
        render_verification(problems)
    if any(problem is not None for problem in problems.values()):
        raise typer.Exit(DamagedArtifactError.exit_code)


def _check_identity(folder: Path, signature: bool, key: Path | None) -> None:
    """Check the id, and the signature if it is required, of the artifact in a folder."""
    from compressor.artifacts.artifact import open_artifact
    from compressor.artifacts.signing import check_signature
    from compressor.engine.plan.recomputed_id import id_problem

    if (problem := id_problem(open_artifact(folder).manifest)) is not None:
        raise DamagedArtifactError(f"{folder} is damaged: {problem}")
    if signature:
        check_signature(folder, key)


@app.command(rich_help_panel=PANEL)
def gc(
    output_dir: StoreDir = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts that no pipeline's last run needs.

    Unfinished and damaged artifacts are removed as well. What a running command needs is kept.
    Exits with code 4 if the record of a last run is damaged: no artifact is removed then.
    """
    from compressor.artifacts.collecting import collect
    from compressor.artifacts.store import Store
    from compressor.reports.console.artifacts import render_garbage

    garbage = collect(Store(output_dir), dry_run=dry_run)
    if as_json:
        sizes = {str(path): size for path, size in garbage.removed.items()}
        print_json({"removed": not dry_run, "paths": sizes, "notes": garbage.notes})
    else:
        render_garbage(garbage, dry_run=dry_run)
    if garbage.blocked:
        raise typer.Exit(DamagedArtifactError.exit_code)


@app.command(rich_help_panel=PANEL)
def sign(
    artifact: Annotated[
        Path, typer.Argument(help="Artifact directory, or update package.", metavar="ARTIFACT")
    ],
    key: Annotated[
        Path | None,
        typer.Option(help="Private Ed25519 key (PEM); default: AUTOGLM_COMPRESS_PRIVATE_KEY."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the signed update package here.", metavar="FILE")
    ] = None,
) -> None:
    """Sign an artifact or an update package.

    The key is an Ed25519 key. The manifest of either holds the hash of every file, so the signature
    covers all of them. With `--out`, the package of a `delta` artifact is copied, with the
    signature in the file.
    """
    from compressor.artifacts import signing
    from compressor.engine.run.runner import load_given
    from compressor.reports.console.terminal import print_line
    from compressor.runtimes.delta.package import is_package
    from compressor.runtimes.delta.signatures import sign_package

    if out is not None or is_package(artifact):
        print_line(f"wrote {sign_package(artifact, key, out)}")
    else:
        print_line(f"wrote {signing.sign(load_given(artifact).path, key)}")


@app.command("export", hidden=True)
@app.command(rich_help_panel=PANEL)
def archive(
    artifact: ArtifactPath,
    file: Annotated[Path, typer.Argument(help="Archive to write.", metavar="FILE.TAR.ZST")],
) -> None:
    """Pack a verified artifact into one .tar.zst file.

    `export` is the former name of this command and still works.
    """
    from compressor.artifacts.archive import archive_artifact
    from compressor.reports.console.terminal import print_line

    print_line(f"wrote {file}, {archive_artifact(artifact, file)} bytes")


@app.command("import", hidden=True)
@app.command(rich_help_panel=PANEL)
def restore(
    file: Annotated[Path, typer.Argument(help="Archive to read.", metavar="FILE.TAR.ZST")],
    output_dir: StoreDir = DEFAULT_STORE,
    signature: RequireSignature = False,
    key: PublicKey = None,
) -> None:
    """Unpack an archive into a store, with all checks.

    With `--key`, it must be signed with that key, or with one of that keyring. The artifact is
    marked as imported, and by whom it was signed. Exits with code 4 if anything differs from the
    archive's manifest. `import` is the former name of this command and still works.
    """
    from compressor.artifacts.archive import Demands, restore_artifact
    from compressor.artifacts.store import Store
    from compressor.artifacts.trust import import_of
    from compressor.engine.plan.recomputed_id import id_problem
    from compressor.reports.console.terminal import print_line

    demands = Demands(signed=signature, key=key, check=id_problem)
    artifact, new = restore_artifact(file, Store(output_dir), demands)
    origin = import_of(artifact)
    state = "" if new else " exists already, verified"
    print_line(f"{artifact.path}{state}" + (f"; {origin}" if origin else ""))


@app.command(rich_help_panel=PANEL)
def sbom(
    file: Annotated[Path, typer.Argument(help="File to write.", metavar="FILE")] = Path(
        "sbom.cdx.json"
    ),
) -> None:
    """Write a CycloneDX list of the installed packages."""
    from compressor.analysis.sbom import environment_sbom
    from compressor.artifacts.errors_from_os import writing
    from compressor.artifacts.files import write_atomic
    from compressor.reports.console.terminal import print_line

    bill = environment_sbom()
    with writing(file):
        write_atomic(file, json.dumps(bill, indent=1).encode())
    print_line(f"wrote {file}, {len(bill['components'])} packages")
