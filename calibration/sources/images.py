"""Data source ``images``: pictures in one folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from calibration.sources.arrays import ArrayDataset, draw_indices, draw_problems
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import Dataset, DataSource, SourceConfig, SourceContext
from compressor.errors import DataError, MissingExtraError

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})


class ImagesConfig(SourceConfig):
    """Config of the data source ``images``."""

    path: str
    """A folder that holds one folder of pictures per class; relative to pipeline.yaml."""
    image_size: Annotated[int, Field(ge=1, le=4096)] = 224
    """Height and width of the samples in pixels. Pictures are scaled to cover this square and
    cropped at the centre."""
    numbered: bool = False
    """Folder names are the numbers of the classes, such as `285`; then pictures of some classes may
    be missing. By default classes are numbered in the order of the folder names."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of pictures, drawn at random; all pictures by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw of `num_samples` pictures."""


class Images(DataSource[ImagesConfig]):
    """Pictures in one folder per class: `image`, RGB uint8 [N, 3, S, S], and `label`, int64 [N]."""

    name = "images"
    Config = ImagesConfig

    def problems(self, config: ImagesConfig, context: SourceContext) -> list[str]:
        """Return missing folders, classes without pictures, empty files, and unused fields."""
        return draw_problems(config) + _folder_problems(config, context)

    def digest(self, config: ImagesConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the names and content of all pictures."""
        root = context.base / config.path
        files = {
            file.relative_to(root).as_posix(): digest_file(file)
            for files in _pictures_by_class(root).values()
            for file in files
        }
        return digest_json(
            {
                "version": 1,
                "config": config.model_dump(mode="json", exclude={"path"}),
                "files": files,
            }
        )

    def load(self, config: ImagesConfig, context: SourceContext) -> Dataset:
        """Draw from the pictures and decode them.

        Raises:
            DataError: there are no pictures, or pictures are unreadable; the message names all.
            MissingExtraError: Pillow is not installed.
        """
        classes = _pictures_by_class(context.base / config.path)
        numbers = [int(name) for name in classes] if config.numbered else range(len(classes))
        pool = [
            (file, label)
            for label, files in zip(numbers, classes.values(), strict=True)
            for file in files
        ]
        drawn = [pool[index] for index in draw_indices(len(pool), config.num_samples, config.seed)]
        if not drawn:
            raise DataError(f"{config.path} holds no picture")
        side = config.image_size
        images = np.empty((len(drawn), 3, side, side), dtype=np.uint8)
        unreadable = []
        for row, (file, _) in enumerate(drawn):
            try:
                images[row] = image_from_file(file, side)
            except (OSError, ValueError) as error:
                unreadable.append(f"    {file}: {error}")
            context.progress("pictures", row + 1, len(drawn))
        if unreadable:
            raise DataError(f"{len(unreadable)} pictures cannot be read:\n" + "\n".join(unreadable))
        labels = np.array([label for _, label in drawn], dtype=np.int64)
        names = None if config.numbered else tuple(classes)
        return ArrayDataset({"image": images, "label": labels}, ("image",), "label", names)


def _folder_problems(config: ImagesConfig, context: SourceContext) -> list[str]:
    root = context.base / config.path
    if not root.is_dir():
        return [
            f"{config.path} is not a directory ({root}); expected one folder of pictures per class"
        ]
    classes = _pictures_by_class(root)
    if not classes:
        return [f"{config.path} holds no folder; expected one folder of pictures per class"]
    if config.numbered and (names := [name for name in classes if not _is_number(name)]):
        return [f"{config.path}: folders are not numbers of classes: {', '.join(names)}"]
    problems = [
        f"{config.path}/{name} holds no picture" for name, files in classes.items() if not files
    ]
    return problems + [
        f"{file} is empty"
        for files in classes.values()
        for file in files
        if not file.stat().st_size
    ]


def image_from_file(file: Path, side: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Read a picture and fit it to a square: uint8 [3, side, side], RGB.

    Raises:
        MissingExtraError: Pillow is not installed.
        OSError: the file is not a picture.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", "the data source images", "phone-bed") from error
    with Image.open(file) as picture:
        square = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _pictures_by_class(root: Path) -> dict[str, list[Path]]:
    """Return the pictures in each folder, sorted, by the name of the folder."""
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    return {
        folder.name: sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        for folder in folders
    }
