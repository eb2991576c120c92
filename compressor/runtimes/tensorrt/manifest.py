"""``engine.json``: what lies in an engine artifact's folder, and the check that it still does.

An engine is code that a GPU runs: one whose hash is not in its engine.json is never handed to TensorRT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from compressor.artifacts.errors_from_os import reading, writing
from compressor.artifacts.fingerprint import digest_file
from compressor.config.record import Record
from compressor.errors import DamagedArtifactError, ModelError
from compressor.runtimes.tensorrt.backends import BackendName
from compressor.runtimes.tensorrt.profiles import Profile

ENGINE = "engine.json"
BUNDLE = "bundle.json"
Precision = Literal["fp32", "fp16", "int8", "int4"]
Floats = Literal["fp32", "fp16"]


class Tensor(Record):
    """An input or output."""

    name: str
    dtype: str
    """As the backend calls it, in lower case: ``float``, ``half``, ``int64``, ``uint8``."""
    shape: tuple[int, ...]
    """-1 for a dimension that varies."""


class EngineFile(Record):
    """One engine."""

    file: str
    target: str
    """The compute capability that it was built for, such as ``sm86``."""
    sha256: str
    bytes: int
    warnings: tuple[str, ...]
    """What the parser and the builder warned of."""
    executed: bool
    """Whether it has run on a GPU. Where not, nothing is known of its speed, and of its accuracy only what the graph says."""
    device: str | None = None
    """The GPU that it ran on."""


class BuildSettings(Record):
    """What was given to the builder."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    """Of this file."""
    backend: BackendName
    precision: Precision
    floats: Floats
    """What computes what is not integer."""
    workspace_mb: int
    optimization_level: int | None
    """None for the backend's own."""
    profiles: dict[str, Profile]
    onnx: dict[str, str]
    """File to sha256: the graph, and its external data."""


class EngineManifest(BuildSettings):
    """``engine.json``."""

    backend_version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layer_types: dict[str, int]
    """Type to how many layers of the network, as given to the builder, have it for their first result; engines keep to it."""
    engines: tuple[EngineFile, ...]


class Bundle(BuildSettings):
    """``bundle.json``: all that a machine with a GPU needs to build the engine. There is no engine beside it."""

    command: str
    """Builds it there."""


def read_engine_manifest(folder: Path) -> EngineManifest:
    """The engine.json of a folder.

    Raises:
        ModelError: the folder holds no engine, or a build bundle.
        DamagedArtifactError: engine.json cannot be understood.
    """
    file = folder / ENGINE
    if not file.is_file():
        if (folder / BUNDLE).is_file():
            raise ModelError(
                f"{folder} holds a build bundle, not an engine",
                remedy=f"run the command in {BUNDLE} where there is a GPU",
            )
        raise ModelError(f"{folder} holds no engine: {ENGINE} is missing")
    with reading(file):
        text = file.read_bytes()
    try:
        return EngineManifest.model_validate_json(text)
    except ValidationError as error:
        lines = [
            f"    {'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors(include_url=False)
        ]
        raise DamagedArtifactError(
            f"{file} is damaged:\n" + "\n".join(lines), remedy="build the engine again"
        ) from error


def read_verified_manifest(folder: Path) -> EngineManifest:
    """The engine.json of a folder, every file that it names being there, byte for byte.

    Raises:
        ModelError: as ``read_engine_manifest``.
        DamagedArtifactError: files are missing, truncated or changed: all are named. Or as ``read_engine_manifest``.
    """
    manifest = read_engine_manifest(folder)
    sizes = {one.file: one.bytes for one in manifest.engines}
    hashes = {one.file: one.sha256 for one in manifest.engines} | manifest.onnx
    wrong = [
        f"    {name}: {told}"
        for name in hashes
        if (told := _wrong(folder, name, sizes.get(name), hashes[name]))
    ]
    if wrong:
        raise DamagedArtifactError(
            f"{folder} does not hold what its {ENGINE} tells of:\n" + "\n".join(wrong),
            remedy="build it again, or copy it again; an engine that is not in its engine.json is not loaded",
        )
    return manifest


def _wrong(folder: Path, name: str, size: int | None, sha256: str) -> str | None:
    file = folder / name
    if Path(name).name != name:
        return "outside the folder"
    if not file.is_file():
        return "missing"
    if size is not None and (found := file.stat().st_size) < size:
        return f"truncated: {found} bytes, {size} expected"
    return (
        None if digest_file(file) == sha256 else "changed since it was built: its sha256 is another"
    )


def write_record(record: Record, file: Path) -> None:
    """Write engine.json or bundle.json.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    with writing(file):
        file.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
