"""Pictures in one folder per class: what is a sample, what is skipped, and what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compressor.data.pictures import file_problem, picture_suffixes
from compressor.foreign_files.real_path import real_path

_SYSTEM_NAMES = frozenset(
    {
        "__macosx",
        "@eadir",
        "@recycle",
        "#recycle",
        "$recycle.bin",
        "desktop.ini",
        "ehthumbs.db",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)
"""Names that archivers and operating systems leave in folders, in lower case."""
_NAMED_FILES = 3
"""Number of skipped files that a note names."""


@dataclass(slots=True)
class PictureFolders:
    """Content of a folder that holds one folder of pictures per class."""

    root: Path
    classes: dict[str, list[Path]] = field(default_factory=dict)
    """Name of each class, sorted, to its pictures at any depth, sorted."""
    outside: list[Path] = field(default_factory=list)
    """Pictures beside the class folders, which have no class."""
    skipped: list[Path] = field(default_factory=list)
    """Files whose suffix no readable format has."""
    hidden: list[Path] = field(default_factory=list)
    """Hidden files and folders, and those that systems leave behind."""
    problems: list[str] = field(default_factory=list)
    """Links to missing targets, unreadable files and folders, and the like."""

    def notes(self) -> list[str]:
        """Return one line per kind of skipped files, with their number and the first of them."""
        kinds = (
            (self.skipped, "not of a format that Pillow reads, skipped"),
            (self.hidden, "hidden, skipped"),
        )
        return [
            f"{real_path(self.root).name}: {reason} ({len(files)}): {first_names(files, self.root)}"
            for files, reason in kinds
            if files
        ]


def scan_picture_folders(root: Path) -> PictureFolders:
    """Return the content of a folder, without opening files.

    Links are followed. Folders in a class folder belong to its class.
    """
    contents = PictureFolders(root)
    folders = []
    for entry in _entries(root, contents):
        if _is_folder_link_to_nowhere(entry):
            contents.problems.append(str(file_problem(Path(entry.path))))
        elif _is_directory(entry):
            folders.append(Path(entry.path))
        elif _has_picture_suffix(entry.name):
            contents.outside.append(Path(entry.path))
        else:
            contents.skipped.append(Path(entry.path))
    for folder in folders:
        contents.classes[folder.name] = list(_pictures(folder, contents, (os.path.realpath(root),)))
    return contents


def first_names(files: Sequence[Path], root: Path) -> str:
    """Return the first names of a list of files, relative to ``root``."""
    names = [_printable(file.relative_to(root).as_posix()) for file in files[:_NAMED_FILES]]
    return ", ".join(names) + (", …" if len(files) > _NAMED_FILES else "")


def _pictures(folder: Path, contents: PictureFolders, above: tuple[str, ...]) -> Iterator[Path]:
    """Yield the pictures at any depth; ``above`` are the real paths of the folders above."""
    real = os.path.realpath(folder)
    if real in above:
        contents.problems.append(f"{folder} is a link to a folder that holds it")
        return
    for entry in _entries(folder, contents):
        path = Path(entry.path)
        if _is_folder_link_to_nowhere(entry):
            contents.problems.append(str(file_problem(path)))
        elif _is_directory(entry):
            if _has_picture_suffix(entry.name):
                contents.problems.append(f"{path} is a directory, not a picture")
            else:
                yield from _pictures(path, contents, (*above, real))
        elif not _has_picture_suffix(entry.name):
            contents.skipped.append(path)
        elif problem := file_problem(path):
            contents.problems.append(problem)
        else:
            yield path


def _entries(folder: Path, contents: PictureFolders) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not hidden, sorted by name."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        contents.problems.append(f"{folder} cannot be read: {error.strerror or error}")
        return []
    contents.hidden += [Path(entry.path) for entry in entries if _is_hidden(entry.name)]
    visible = [entry for entry in entries if not _is_hidden(entry.name)]
    unnamed = [entry for entry in visible if not _is_utf8(entry.name)]
    contents.problems += [f"{_printable(entry.path)}: the name is not UTF-8" for entry in unnamed]
    return [entry for entry in visible if entry not in unnamed] if unnamed else visible


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Return True for a directory or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # links that form a loop
        return False


def _is_folder_link_to_nowhere(entry: os.DirEntry[str]) -> bool:
    """Return True for a link without a picture's suffix whose target is missing, or a loop."""
    if not entry.is_symlink() or _has_picture_suffix(entry.name):
        return False
    return not os.path.exists(entry.path)  # noqa: PTH110 - False for loops, where Path raises


def _is_utf8(name: str) -> bool:
    return _printable(name) == name


def _printable(name: str) -> str:
    """Return a name in which bytes that are not UTF-8 are replaced by question marks."""
    return name.encode(errors="replace").decode()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _has_picture_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in picture_suffixes()  # noqa: PTH122 - no Path needed
