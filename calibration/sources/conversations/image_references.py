"""Images that records refer to: paths, file: and data: URLs, base64, and bytes."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from calibration.sources.conversations.conversation import ImagePart
from calibration.sources.records.record import RecordError, json_type
from compressor.foreign_files.real_path import real_path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SHOWN = 80


def image_part(reference: Any, folder: Path) -> ImagePart:
    """Return the image that a value of a record refers to.

    Args:
        reference: a path, relative to ``folder``; a ``file://`` or ``data:`` URL; or
            ``{"path": …, "bytes": …}``, as Hugging Face data sets store images.
        folder: folder of the record's file.

    Raises:
        RecordError: it is something else, an image on the network, or a file that is missing.
    """
    if isinstance(reference, Mapping):
        return _stored_image(reference, folder)
    if not isinstance(reference, str) or not reference.strip():
        found = "an empty string" if isinstance(reference, str) else json_type(reference)
        raise RecordError(f"an image is {found}, not a path")
    if reference[:5].lower() == "data:":
        return ImagePart(_data_url_bytes(reference))
    return ImagePart(_existing_file(_path_of(reference), folder))


def base64_image(text: Any) -> ImagePart:
    """Return the image whose file is encoded in base64.

    Raises:
        RecordError: the text is not base64.
    """
    if not isinstance(text, str):
        raise RecordError(f"the base64 of an image is {json_type(text)}, not text")
    return ImagePart(_base64_bytes(text))


def _base64_bytes(text: str) -> bytes:
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError(f"an image is not base64: {error}") from error
    if not content:
        raise RecordError("an image in base64 is empty")
    return content


class RecordImages:
    """The images of a record that placeholders in its messages stand for, in order."""

    def __init__(self, parts: list[ImagePart]) -> None:
        self._count = len(parts)
        self._left: Iterator[ImagePart] = iter(parts)
        self._placeholders = 0

    def take(self) -> ImagePart | None:
        """Return the image of the next placeholder; None if there is none."""
        self._placeholders += 1
        return next(self._left, None)

    def check_counts(self) -> None:
        """Check that every image has a placeholder, and every placeholder an image.

        Raises:
            RecordError: the counts differ.
        """
        if self._placeholders != self._count:
            raise RecordError(
                f"{self._placeholders} placeholders such as <image> in the messages, but "
                f"{self._count} images"
            )


def _stored_image(reference: Mapping[str, Any], folder: Path) -> ImagePart:
    if isinstance(reference.get("bytes"), bytes) and set(reference) <= {"bytes", "path"}:
        return ImagePart(reference["bytes"])
    if set(reference) == {"path"} and isinstance(reference["path"], str):
        return image_part(reference["path"], folder)
    raise RecordError(f"an image is an object with the keys {', '.join(map(str, reference))}")


def _data_url_bytes(url: str) -> bytes:
    header, comma, data = url[5:].partition(",")
    if not comma:
        raise RecordError(f"no data follows in {url[:_SHOWN]!r}")
    if header.rstrip().lower().endswith(";base64"):
        return _base64_bytes(unquote(data))
    return unquote_to_bytes(data)


def _path_of(reference: str) -> str:
    scheme = _SCHEME.match(reference)
    if scheme is None:
        return reference
    if scheme[1].lower() != "file":
        raise RecordError(
            f"the image {reference[:_SHOWN]} is not on this machine: nothing is downloaded; "
            "save it, and write its path"
        )
    parts = urlsplit(reference)
    if parts.netloc not in {"", "localhost"}:
        raise RecordError(f"{reference[:_SHOWN]} names another machine; write file:///folder/file")
    return unquote(reference.split(scheme[0] + parts.netloc, 1)[1])


def _existing_file(path: str, folder: Path) -> Path:
    try:
        file = real_path(folder / path)
        if file.is_file():
            return file
        is_folder = file.is_dir()
    except (OSError, ValueError) as error:  # too long for a path, or with the character U+0000
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RecordError(
            f"there is no image {path[:_SHOWN]}: {reason}; an image in base64 needs "
            "data:image/png;base64, before it"
        ) from error
    if is_folder:
        raise RecordError(f"{file} is a folder, not an image")
    relative = (
        "" if Path(path).is_absolute() else " (paths start from the folder of the record's file)"
    )
    raise RecordError(f"there is no image {file}{relative}")
