"""Problems of pictures in one folder per class that show without decoding them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from calibration.sources.picture_folders import PictureFolders, first_names
from compressor.data.pictures import (
    HEIC_SUFFIXES,
    check_header,
    heic_is_installed,
    without_pillow_warnings,
)
from compressor.errors import CompressError
from compressor.foreign_files.real_path import real_path

_LARGEST_CLASS = 1 << 31
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
"""Names of the parts of a data set, in lower case."""
_HEADERS = 512
"""About the largest number of headers that are read."""
_HEADERS_PER_CLASS = 6


def folder_problems(path: str, contents: PictureFolders, *, numbered: bool) -> Iterator[str]:
    """Yield everything that is wrong with the folders of the classes."""
    outside = contents.outside
    if not contents.classes:
        beside = f", but pictures ({len(outside)})" if outside else ""
        yield f"{path} holds no folder{beside}; expected one folder of pictures per class"
        return
    if outside:
        yield (
            f"{path}: pictures outside the folders of the classes ({len(outside)}): "
            f"{first_names(outside, contents.root)}; move each into the folder of its class"
        )
    if numbered:
        yield from _number_problems(path, contents.classes)
    yield from _split_problems(path, contents)
    yield from _equal_name_problems(path, contents.classes)
    skipped = Counter(file.relative_to(contents.root).parts[0] for file in contents.skipped)
    for name, files in contents.classes.items():
        if not files:
            others = f", but other files ({skipped[name]})" if skipped[name] else ""
            yield f"{path}/{name} holds no picture{others}"


def _number_problems(path: str, classes: Iterable[str]) -> Iterator[str]:
    """Yield the folders whose names are no numbers of classes, and those of equal number."""
    names = [name for name in classes if not _is_number(name)]
    if names:
        yield f"{path}: folders are not numbers of classes: {', '.join(names)}"
    by_number: dict[int, list[str]] = {}
    for name in classes:
        if _is_number(name):
            by_number.setdefault(int(name), []).append(name)
    for number, equal in by_number.items():
        if len(equal) > 1:
            yield f"{path}: the folders {', '.join(equal)} are all class {number}; merge them"


def _split_problems(path: str, contents: PictureFolders) -> Iterator[str]:
    """Yield the folders that are the parts of a data set, with the classes inside of them."""
    splits = [
        name
        for name, files in contents.classes.items()
        if name.lower() in _SPLITS and files and all(_is_nested(file, contents) for file in files)
    ]
    if splits and len(splits) == len(contents.classes):
        yield (
            f"{path} holds parts of a data set, not classes ({', '.join(splits)}); name one of "
            f"them: `path: {path.rstrip('/')}/{splits[0]}`"
        )


def _is_nested(file: Path, contents: PictureFolders) -> bool:
    """Return True if a picture is in a folder inside of its class folder."""
    return len(file.relative_to(contents.root).parts) > 2


def _equal_name_problems(path: str, classes: Iterable[str]) -> Iterator[str]:
    """Yield the folders whose names look the same: blanks around them, or forms of Unicode."""
    by_name: dict[str, list[str]] = {}
    for name in classes:
        by_name.setdefault(unicodedata.normalize("NFC", name).strip(), []).append(name)
    for equal in by_name.values():
        if len(equal) > 1:
            names = " and ".join(map(ascii, equal))
            yield f"{path}: the folders {names} differ only in blanks or Unicode form; merge them"


def folder_notes(contents: PictureFolders, *, numbered: bool) -> Iterator[str]:
    """Yield lines about folders that are classes, though they may not be meant to be."""
    name = real_path(contents.root).name
    if not numbered and contents.classes and all(map(_is_number, contents.classes)):
        others = [
            (label, text) for label, text in enumerate(contents.classes) if label != int(text)
        ]
        if others:
            label, folder = others[0]
            yield (
                f"{name}: the folders are numbers, and the order of their names gives the labels: "
                f"folder {folder} has label {label}; set `numbered: true` if the numbers are the "
                "labels"
            )
    if len(contents.classes) == 1 and (files := next(iter(contents.classes.values()))):
        only = next(iter(contents.classes))
        folders = {file.relative_to(contents.root).parts[1] for file in files}
        if len(folders) > 1 and all(_is_nested(file, contents) for file in files):
            yield (
                f"{name}: the only class is {only!r}, with all pictures in folders of its own; if "
                f"those are the classes, name {only!r} in `path`"
            )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 20 and int(name) < _LARGEST_CLASS


def header_problems(contents: PictureFolders) -> Iterator[str]:
    """Yield missing packages, and the first and last pictures of each class that do not open."""
    pictures = [file for files in contents.classes.values() for file in files]
    unreadable: set[Path] = set()
    if not heic_is_installed():
        unreadable = {file for file in pictures if file.suffix.lower() in HEIC_SUFFIXES}
    if unreadable:
        heic = sorted(unreadable)
        yield (
            f"{contents.root}: HEIC ({len(heic)} of {len(pictures)} pictures: "
            f"{first_names(heic, contents.root)}) needs pillow-heif: "
            "pip install 'autoglm-compress[heic]'"
        )
    with without_pillow_warnings():
        for file in _first_and_last(contents):
            if file not in unreadable:
                try:
                    check_header(file)
                except CompressError as error:
                    yield str(error)


def _first_and_last(contents: PictureFolders) -> list[Path]:
    """Return the first and last pictures of each class, fewer of each if there are many classes."""
    per_class = min(_HEADERS_PER_CLASS, _HEADERS // max(1, len(contents.classes)))
    count = max(1, per_class // 2)
    files_of_classes = list(contents.classes.values())[:_HEADERS]
    chosen = [file for files in files_of_classes for file in (*files[:count], *files[-count:])]
    return list(dict.fromkeys(chosen))


def shared_pictures_note(
    root: Path, classes: Mapping[str, list[Path]], digests: Mapping[Path, str]
) -> str | None:
    """Return a line about files of equal content in several classes; None if there are none."""
    owners: dict[str, dict[str, Path]] = {}
    for name, files in classes.items():
        for file in files:
            owners.setdefault(digests[file], {}).setdefault(name, file)
    shared = [file for names in owners.values() if len(names) > 1 for file in names.values()]
    if not shared:
        return None
    count = sum(len(names) > 1 for names in owners.values())
    names = first_names(shared, root)
    return f"{real_path(root).name}: equal files in several classes ({count}): {names}"
