"""Files of a model: those that it uses, and those that nothing reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compressor.artifacts.files import size_bytes
from compressor.runtimes.foreign.identify import identify
from compressor.runtimes.formats import StoredModel

_TRAINER_FILES = (
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "scaler*",
    "training_args.bin",
    "trainer_state.json",
    "global_step*",
    "checkpoint-*",
    "zero_to_fp32.py",
)
_DOCUMENTATION = ("README*", "*.md", "LICENSE*", "NOTICE*", "USE_POLICY*")


class FileReport(BaseModel):
    """One file of a model, or one folder below it that nothing reads."""

    model_config = ConfigDict(frozen=True)

    name: str
    size_bytes: int
    used: bool
    """False if nothing reads it."""
    note: str | None = None
    """Content of an unused file."""


def report_files(model: StoredModel) -> tuple[FileReport, ...]:
    """Return the files of a model, the used ones first; others are listed at the top level."""
    used = set(model.format.files(model.path).values())
    folder = model.path if model.path.is_dir() else model.path.parent
    reports = [
        FileReport(
            name=file.relative_to(folder).as_posix(), size_bytes=file.stat().st_size, used=True
        )
        for file in sorted(used)
        if file.is_file()
    ]
    return (*reports, *(_unused(folder, used) if model.path.is_dir() else ()))


def list_files(path: Path) -> tuple[FileReport, ...]:
    """Return the entries of a folder, or a file itself, of a model that no pass reads."""
    entries = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple(
        FileReport(
            name=f"{entry.name}/" if entry.is_dir() else entry.name,
            size_bytes=size_bytes(entry),
            used=True,
        )
        for entry in entries
        if entry.is_file() or entry.is_dir()
    )


def _unused(folder: Path, used: Collection[Path]) -> Iterator[FileReport]:
    """Yield the entries of a folder that are not used; a folder if nothing in it is."""
    for child in sorted(folder.iterdir()):
        is_used = child in used or any(child in file.parents for file in used)
        if not is_used and (child.is_file() or child.is_dir()):
            name = f"{child.name}/" if child.is_dir() else child.name
            yield FileReport(
                name=name, size_bytes=size_bytes(child), used=False, note=_explain(child)
            )


def _explain(path: Path) -> str | None:
    if any(fnmatchcase(path.name, pattern) for pattern in _TRAINER_FILES):
        return "state of a trainer"
    if any(fnmatchcase(path.name, pattern) for pattern in _DOCUMENTATION):
        return "documentation"
    if path.suffix == ".safetensors":
        return "weights that do not count: no index names them"
    foreign = identify(path)
    return None if foreign is None else foreign.title
