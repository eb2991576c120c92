"""Build the model that a package results in: as a folder that ends in the announced digest."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.fingerprint import digest_file
from compressor.errors import ModelError, NumericalError, StorageError
from compressor.models.adapters.layout import ADAPTER_WEIGHTS
from compressor.models.checkpoint.finite import check_files_finite
from compressor.runtimes.delta.manifest import FileRecord, ResultIdentity
from compressor.runtimes.delta.package import Package, digest_of_files, refused
from compressor.runtimes.delta.patch import decode_block
from compressor.runtimes.delta.tensors import UnpackedPayload, decode_tensor, safetensors_header

_COPY_BYTES = 1 << 20


def build_result(package: Package, base_files: Mapping[str, Path], out: Path) -> None:
    """Write the result of a package into ``out``, an empty folder, and compare its digest.

    Args:
        package: the package.
        base_files: files of the base by name; its digest has been compared.
        out: an empty folder.

    Raises:
        DamagedArtifactError: the payload is damaged, or the result is not the announced one.
        StorageError: it does not fit on the disk.
        MissingExtraError: `zstandard` is not installed.
    """
    check_space(package.manifest.result.bytes, out)
    write_files(package, base_files, out)
    check_result(package.manifest.result, out, package.file)


def write_files(package: Package, base_files: Mapping[str, Path], out: Path) -> None:
    """Write the files of a package's result; arguments and errors as ``build_result``."""
    manifest = package.manifest
    try:
        with package.payload() as source, writing(out):
            for name, text in manifest.texts.items():
                _write(out / name, text.encode())
            if manifest.tensors:
                _write_tensors(package, source, out / ADAPTER_WEIGHTS)
            for file in manifest.files:
                _write_file(file, source, base_files, out / file.name)
    except ValueError as error:
        raise refused(package.file, str(error)) from error


def check_result(result: ResultIdentity, folder: Path, file: Path) -> None:
    """Compare a folder with the announced result, and check that its tensors are finite.

    Raises:
        DamagedArtifactError: it is another, or it holds NaN, infinity or damaged safetensors files.
    """
    actual = result_of(folder, result.format)
    if actual != result:
        raise refused(
            file,
            f"it ends in {actual.digest[:12]}… of {actual.bytes} bytes, and announces "
            f"{result.digest[:12]}… of {result.bytes}",
        )
    try:
        check_files_finite(folder, sorted(folder.rglob("*.safetensors")))
    except (ModelError, NumericalError) as error:
        raise refused(file, error.what) from error


def result_of(folder: Path, format_name: str) -> ResultIdentity:
    """Return the identity of a folder as the result of a package."""
    files = files_below(folder)
    digests = {name: digest_file(path) for name, path in files.items()}
    size = sum(path.stat().st_size for path in files.values())
    return ResultIdentity(digest=digest_of_files(digests), bytes=size, format=format_name)


def files_below(folder: Path) -> dict[str, Path]:
    """Return the regular files below a folder by their relative POSIX path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def check_space(needed: int, folder: Path) -> None:
    """Check that the disk has room for a result.

    Raises:
        StorageError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"the result has {needed / 1e9:.2f} GB; {folder} has {free / 1e9:.2f} GB free",
            remedy="free some space, or choose another --out",
        )


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _write_tensors(package: Package, source: IO[bytes], file: Path) -> None:
    manifest = package.manifest
    payload = UnpackedPayload(source, manifest.payload)
    with file.open("xb") as target:
        target.write(safetensors_header(manifest.tensors))
        for record in manifest.tensors:
            for values in decode_tensor(record, payload.read):
                target.write(values.astype("<f4").tobytes())
    payload.close()


def _write_file(
    record: FileRecord, source: IO[bytes], base_files: Mapping[str, Path], target: Path
) -> None:
    """Write one file.

    Raises:
        ValueError: it refers to a file that the base lacks, or is not the announced one.
    """
    if record.base is not None and record.base not in base_files:
        raise ValueError(f"it refers to {record.base!r}, which the base lacks")
    base = None if record.base is None else base_files[record.base]
    if base is not None and not record.blocks and base.stat().st_size != record.bytes:
        raise ValueError(f"{record.name}: {record.base} of the base has another size")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("xb") as out:
        if base is not None and not record.blocks:
            with base.open("rb") as unchanged:
                while chunk := unchanged.read(_COPY_BYTES):
                    digest.update(chunk)
                    out.write(chunk)
        for block in record.blocks:
            content = decode_block(block, source.read(block.stored), base)
            digest.update(content)
            out.write(content)
    if digest.hexdigest() != record.sha256:
        raise ValueError(f"{record.name} is not the announced one (sha256 differs)")
