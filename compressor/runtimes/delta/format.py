"""Packages that turn one model into another: described and checked, never executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.runtimes.delta.package import FILE, is_package, read_package
from compressor.runtimes.formats import Format

if TYPE_CHECKING:
    from compressor.runtimes.delta.manifest import DeltaManifest
    from compressor.runtimes.tensor_listing import ListedTensor

_DTYPES = {"int8": "I8", "float16": "F16"}


class Delta(Format):
    """A package with which ``apply`` turns a base into an adapter or a new model."""

    name = "delta"
    summary = f"an update package: {FILE}, for `autoglm-compress apply`"
    precedence = 3
    default_remedy = "apply it to its base with `autoglm-compress apply`, and name the result"

    def recognizes(self, path: Path) -> bool:
        """Return True for a package, or a folder with one under its usual name."""
        return is_package(path / FILE if path.is_dir() else path)

    def model_path(self, path: Path) -> Path:
        """Return the package itself."""
        return path / FILE if path.is_dir() else path

    def title(self, path: Path) -> str:
        """Return the series and the counter."""
        manifest = self._manifest(path)
        return f"an update package: {manifest.name}, counter {manifest.counter}"

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return the package under its usual name."""
        return {FILE: self.model_path(path)}

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return the tensors of an adapter; None for a patch between files."""
        from compressor.runtimes.tensor_listing import ListedTensor

        tensors = self._manifest(path).tensors
        return tuple(
            ListedTensor(tensor.name, _DTYPES[tensor.encoding], tensor.shape) for tensor in tensors
        )

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return what the package applies to and ends in, its encoding, loss and expiry."""
        package = read_package(self.model_path(path))
        manifest = package.manifest
        artifact = manifest.base.artifact
        rows = [
            ("series", manifest.name),
            ("counter", str(manifest.counter)),
            ("expires", manifest.expires or "never"),
            ("base", manifest.base.name + (f" ({artifact[:12]})" if artifact else "")),
            ("base digest", manifest.base.digest),
            ("result", f"{manifest.result.format}, {manifest.result.bytes} bytes"),
            ("result digest", manifest.result.digest),
            ("encoding", manifest.encoding),
            ("signature", "not signed" if package.signature is None else "signed, not checked"),
        ]
        if (loss := manifest.loss) is not None:
            rows.append(("largest relative error", f"{loss.relative_error:.3g} ({loss.update})"))
        if manifest.merged is not None:
            rows.append(("merged digest", manifest.merged.digest))
        return rows

    def check(self, path: Path) -> None:
        """Check the manifest and the sha256 of the payload.

        Raises:
            DamagedArtifactError: the package is damaged.
        """
        with read_package(self.model_path(path)).payload():
            pass

    def _manifest(self, path: Path) -> DeltaManifest:
        return read_package(self.model_path(path)).manifest
