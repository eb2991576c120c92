"""The data source ``images``: a folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from calibration.sources.arrays import ArrayDataset, sampled
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import Dataset, DataSource, SourceConfig, SourceContext
from compressor.errors import DataError, MissingExtraError

_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})


class ImagesConfig(SourceConfig):
    """Where the pictures are, and how large they become."""

    path: str
    """A folder with one folder of pictures per class; relative to pipeline.yaml."""
    image_size: Annotated[int, Field(ge=1, le=4096)] = 224
    """Pictures are scaled to cover a square of this side, and cut to it at the centre."""
    numbered: bool = False
    """Folders are named by the number of their class, as `285`, where there need not be pictures of every class; otherwise
    classes are numbered in the order of their names."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """At most so many, drawn by `seed`; all of them by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the draw."""


class Images(DataSource[ImagesConfig]):
    """Pictures in a folder per class: `image` uint8 [N, 3, S, S] and `label`."""

    name = "images"
    Config = ImagesConfig

    def problems(self, config: ImagesConfig, context: SourceContext) -> list[str]:
        """A folder that is missing, classes that are empty, files that are empty."""
        root = context.base / config.path
        if not root.is_dir():
            return [
                f"{config.path} is not a directory ({root}); expected one folder of pictures per class"
            ]
        classes = _classes(root)
        if not classes:
            return [f"{config.path} holds no folder; expected one folder of pictures per class"]
        if config.numbered and (wrong := [name for name in classes if not _is_number(name)]):
            return [f"{config.path}: folders are not numbers of classes: {', '.join(wrong)}"]
        empty = [
            f"{config.path}/{name} holds no picture" for name, files in classes.items() if not files
        ]
        return empty + [
            f"{file} is empty"
            for files in classes.values()
            for file in files
            if not file.stat().st_size
        ]

    def digest(self, config: ImagesConfig, context: SourceContext) -> str:
        """Over the config, the names and the content of all pictures."""
        root = context.base / config.path
        files = {
            f.relative_to(root).as_posix(): digest_file(f)
            for fs in _classes(root).values()
            for f in fs
        }
        return digest_json(
            {
                "version": 1,
                "config": config.model_dump(mode="json", exclude={"path"}),
                "files": files,
            }
        )

    def load(self, config: ImagesConfig, context: SourceContext) -> Dataset:
        """Decode every picture that is drawn; all unreadable ones are named at once."""
        classes = _classes(context.base / config.path)
        numbers = [int(name) for name in classes] if config.numbered else range(len(classes))
        every = [
            (file, label)
            for label, files in zip(numbers, classes.values(), strict=True)
            for file in files
        ]
        chosen = [every[index] for index in sampled(len(every), config.num_samples, config.seed)]
        if not chosen:
            raise DataError(f"{config.path} holds no picture")
        images = np.empty((len(chosen), 3, config.image_size, config.image_size), dtype=np.uint8)
        broken = []
        for row, (file, _) in enumerate(chosen):
            try:
                images[row] = image_from_file(file, config.image_size)
            except (OSError, ValueError) as error:
                broken.append(f"    {file}: {error}")
            context.progress("pictures", row + 1, len(chosen))
        if broken:
            raise DataError(f"{len(broken)} pictures cannot be read:\n" + "\n".join(broken))
        labels = np.array([label for _, label in chosen], dtype=np.int64)
        names = None if config.numbered else tuple(classes)
        return ArrayDataset({"image": images, "label": labels}, ("image",), "label", names)


def image_from_file(file: Path, side: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """uint8 [3, side, side], RGB.

    Raises:
        MissingExtraError: Pillow is not installed.
        OSError: the file is no picture.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", "the data source images", "phone-bed") from error
    with Image.open(file) as opened:
        fitted = ImageOps.fit(opened.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _classes(root: Path) -> dict[str, list[Path]]:
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    return {
        folder.name: sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
        for folder in folders
    }
