"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STORE = Path("artifacts")

PipelineFile = Annotated[Path, typer.Argument(help="Pipeline file.", metavar="PIPELINE.YAML")]
ArtifactPath = Annotated[Path, typer.Argument(help="Artifact directory.", metavar="ARTIFACT")]
RunPath = Annotated[
    Path, typer.Argument(help="Run directory, or a store: its last run.", metavar="RUN")
]
StoreDir = Annotated[
    Path, typer.Option("--output-dir", "-o", help="Store that holds the artifacts.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value, e.g. threads=4.", metavar="KEY=VALUE"),
]
Seed = Annotated[int | None, typer.Option(help="Random seed in place of the file's.", min=0)]
Device = Annotated[str, typer.Option(help="Device to run on: cpu or cuda.")]


def _allow_code(allowed: bool) -> bool:
    """Permit code in the whole process, as soon as the option is read."""
    if allowed:
        from compressor.config.permission import allow_code

        allow_code()
    return allowed


AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Run Python files that the pipeline or the model names.",
        callback=_allow_code,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataPipeline = Annotated[
    Path, typer.Option("--pipeline", "-p", help="Pipeline file with `data:` and `evaluate:`.")
]
OptionalDataPipeline = Annotated[
    Path | None,
    typer.Option("--pipeline", "-p", help="Pipeline file with `data:` and `evaluate:`."),
]
RequireSignature = Annotated[
    bool, typer.Option("--signature", help="Require a valid signature as well.")
]
PublicKey = Annotated[
    Path | None,
    typer.Option(
        "--key", help="Public key (PEM) or keyring; default: AUTOGLM_COMPRESS_PUBLIC_KEY."
    ),
]
