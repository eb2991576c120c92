"""Decode many pictures into one array, and name all that cannot be decoded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calibration.sources.picture_folders import first_names
from calibration.sources.picture_processing import Fitting
from compressor.data.contract import SourceContext
from compressor.data.pictures import open_picture, without_pillow_warnings
from compressor.errors import DataError
from compressor.foreign_files.real_path import real_path

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class _Result:
    """Outcome of one picture."""

    file: Path
    had_transparency: bool = False
    has_more_frames: bool = False
    error: str | None = None


def decode_pictures(
    files: Sequence[Path], root: Path, fitting: Fitting, background: str, context: SourceContext
) -> Pixels:
    """Decode pictures and bring each to the same size.

    Pillow decodes outside Python's lock, so threads share the work.

    Args:
        files: the pictures.
        root: a folder above all of them, for messages.
        fitting: the size, and the way to it.
        background: colour behind transparent pixels.
        context: receives progress, and a note of transparent pictures and of further frames.

    Returns:
        uint8 [N, 3, H, W], RGB.

    Raises:
        DataError: pictures cannot be decoded; the message names all of them.
        MissingExtraError: pictures are HEIC, and pillow-heif is not installed.
    """
    images = np.empty((len(files), 3, *fitting.shape), dtype=np.uint8)
    results = []
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with without_pillow_warnings(), ThreadPoolExecutor(threads) as pool:
        decode = partial(_decode_into, fitting=fitting, background=background)
        for result in pool.map(decode, files, images):
            results.append(result)
            context.progress("pictures", len(results), len(files))
    if errors := [result.error for result in results if result.error is not None]:
        lines = "\n".join(f"    {error}" for error in errors)
        raise DataError(
            f"{len(errors)} pictures cannot be read:\n{lines}",
            remedy="repair or remove them",
        )
    _note_results(results, root, background, context)
    return images


def _decode_into(file: Path, row: Pixels, fitting: Fitting, background: str) -> _Result:
    """Decode a picture into ``row``, uint8 [3, H, W]."""
    try:
        picture = open_picture(file, background)
    except DataError as error:
        return _Result(file, error=error.what)
    row[:] = np.asarray(fitting.fit(picture.image)).transpose(2, 0, 1)
    return _Result(file, picture.had_transparency, picture.has_more_frames)


def _note_results(
    results: Sequence[_Result], root: Path, background: str, context: SourceContext
) -> None:
    transparent = [result.file for result in results if result.had_transparency]
    more_frames = [result.file for result in results if result.has_more_frames]
    for files, what in (
        (transparent, f"transparent pixels show the background {background}"),
        (more_frames, "several frames or pages, of which the first is used"),
    ):
        if files:
            count = f"{len(files)} of {len(results)} pictures"
            context.note(f"{real_path(root).name}: {what} ({count}): {first_names(files, root)}")
