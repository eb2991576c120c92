"""``engine.json`` and ``bundle.json``: the contents of an engine artifact, with hashes.

An engine is code that a GPU executes. One whose hash is not in its engine.json is never passed to
TensorRT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.fingerprint import digest_file
from compressor.config.record import Record
from compressor.errors import DamagedArtifactError, ModelError
from compressor.foreign_files.json_files import read_json_record
from compressor.runtimes.tensorrt.backends import BackendName
from compressor.runtimes.tensorrt.profiles import Profile

ENGINE = "engine.json"
BUNDLE = "bundle.json"
Precision = Literal["fp32", "fp16", "int8", "int4"]
FloatType = Literal["fp32", "fp16"]


class TensorInfo(Record):
    """An input or output of an engine."""

    name: str
    dtype: str
    """TensorRT's name in lower case: ``float``, ``half``, ``int64``, ``uint8``."""
    shape: tuple[int, ...]
    """-1 for a dynamic dimension."""


class EngineFile(Record):
    """One engine."""

    file: str
    target: str
    """Compute capability that it was built for, such as ``sm86``."""
    sha256: str
    bytes: int
    warnings: tuple[str, ...]
    """Warnings of the parser and the builder."""
    executed: bool
    """True if the engine has run on a GPU. Otherwise its speed is unknown, and its accuracy is that
    of the graph in ONNX Runtime."""
    device: str | None = None
    """The GPU that it has run on."""


class BuildSettings(Record):
    """Inputs of the builder."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    """Version of this file's layout."""
    backend: BackendName
    precision: Precision
    floats: FloatType
    """Type of the computations that are not in integers."""
    workspace_mb: int
    """Upper limit of the memory for one layer, in MiB."""
    optimization_level: int | None
    """None for the backend's default."""
    profiles: dict[str, Profile]
    """Optimization profile of each dynamic input."""
    onnx: dict[str, str]
    """File name to sha256, for the graph and its external data."""


class EngineManifest(BuildSettings):
    """``engine.json``."""

    backend_version: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layer_types: dict[str, int]
    """Number of layers in the network, as passed to the builder, by the type of their first output.
    A strongly typed engine keeps these types."""
    engines: tuple[EngineFile, ...]


class BuildBundle(BuildSettings):
    """``bundle.json``: everything needed to build the engine on a machine with a GPU.

    There is no engine beside it.
    """

    command: str
    """Command that builds the engine in this folder."""


def read_engine_manifest(folder: Path) -> EngineManifest:
    """Read the engine.json of a folder.

    Raises:
        ModelError: the folder holds no engine, or a build bundle.
        DamagedArtifactError: engine.json is not valid.
    """
    file = folder / ENGINE
    if not file.is_file():
        if (folder / BUNDLE).is_file():
            raise ModelError(
                f"{folder} holds a build bundle, not an engine",
                remedy=f"run the command in {BUNDLE} on a machine with a GPU",
            )
        raise ModelError(f"{folder} holds no engine: {ENGINE} is missing")
    return read_json_record(
        file, EngineManifest, DamagedArtifactError, remedy="build the engine again"
    )


def read_verified_manifest(folder: Path) -> EngineManifest:
    """Read the engine.json of a folder after a check of every file's hash.

    Raises:
        ModelError: as ``read_engine_manifest``.
        DamagedArtifactError: as ``read_engine_manifest``; or files are missing, truncated or
            changed. The message names all of them.
    """
    manifest = read_engine_manifest(folder)
    sizes = {engine.file: engine.bytes for engine in manifest.engines}
    hashes = {engine.file: engine.sha256 for engine in manifest.engines} | manifest.onnx
    problems = [
        f"    {name}: {problem}"
        for name, sha256 in hashes.items()
        if (problem := _file_problem(folder, name, sizes.get(name), sha256))
    ]
    if problems:
        raise DamagedArtifactError(
            f"{folder} does not match its {ENGINE}:\n" + "\n".join(problems),
            remedy=f"build it again, or copy it again; an engine that does not match its {ENGINE} "
            "is not loaded",
        )
    return manifest


def _file_problem(folder: Path, name: str, size: int | None, sha256: str) -> str | None:
    """Return how a file differs from the manifest, or None if it does not."""
    file = folder / name
    if Path(name).name != name:
        return "outside the folder"
    if not file.is_file():
        return "missing"
    if size is not None and (actual := file.stat().st_size) < size:
        return f"truncated: {actual} bytes, {size} expected"
    return None if digest_file(file) == sha256 else "changed since it was built: its sha256 differs"


def write_record(record: Record, file: Path) -> None:
    """Write engine.json or bundle.json.

    Raises:
        StorageError: the disk is full, or the folder is not writable.
    """
    with writing(file):
        file.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
