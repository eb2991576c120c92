"""Data source ``images``: pictures in one folder per class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from calibration.sources.arrays import Array, ArrayDataset, draw_indices, draw_problems
from calibration.sources.picture_checks import (
    folder_notes,
    folder_problems,
    header_problems,
    shared_pictures_note,
)
from calibration.sources.picture_decoding import decode_pictures
from calibration.sources.picture_folders import scan_picture_folders
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.config.record import LeftOutOfIds, with_former_names
from compressor.data.contract import (
    Batch,
    DataFacts,
    Dataset,
    DataSource,
    InputFacts,
    SourceConfig,
    SourceContext,
    StarterData,
    StarterInputs,
)
from compressor.data.pictures import WHITE, parse_colour
from compressor.errors import DataError

Channels = tuple[float, float, float]
"""A value for red, green and blue."""


class ImagesConfig(SourceConfig):
    """Config of the data source ``images``."""

    path: str
    """A folder that holds one folder of pictures per class; relative to pipeline.yaml. Folders
    within them belong to the same class. Hidden files, and files of formats that Pillow does not
    read, are skipped; the plan counts them."""
    image_size: Annotated[int, Field(ge=1, le=4096)] = 224
    """Height and width of the samples in pixels. Pictures are scaled to cover this square and
    cropped at the centre."""
    numbered: bool = False
    """Folder names are the numbers of the classes, such as `285`; then pictures of some classes may
    be missing. By default classes are numbered in the order of the folder names."""
    background: Annotated[str, AfterValidator(parse_colour)] = WHITE
    """Colour behind transparent pixels: a CSS name such as `black`, or `#rrggbb`."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of pictures, drawn at random; all pictures by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw of `num_samples` pictures."""
    input: Annotated[str, LeftOutOfIds()] = "image"
    """Name of the array of pictures, which is that of the model's input."""
    mean: Annotated[Channels | None, LeftOutOfIds()] = None
    """Mean of red, green and blue, of values from 0 to 1: `[0.485, 0.456, 0.406]` for ImageNet.
    With `mean` and `std` the samples are float32, (value / 255 - mean) / std; without them they are
    uint8, from 0 to 255."""
    std: Annotated[Channels | None, LeftOutOfIds()] = None
    """Standard deviation of red, green and blue, of values from 0 to 1:
    `[0.229, 0.224, 0.225]` for ImageNet."""

    @model_validator(mode="after")
    def _check_normalization(self) -> ImagesConfig:
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` go together: set both, or none")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("`std` divides: its values must be above 0")
        return self


_STARTER_DTYPES = frozenset({"uint8", "float32"})


class Images(DataSource[ImagesConfig]):
    """Pictures in one folder per class: RGB [N, 3, S, S], and `label`, int64 [N].

    Every format that Pillow decodes is read, and HEIC with the extra `heic`. The orientation in
    EXIF is applied, 16 bits are scaled to 8, transparent pixels show `background`, and the first
    frame of an animation is used.
    """

    name = "images"
    Config = ImagesConfig

    def starter(self, model: StarterInputs) -> StarterData | None:
        """Return square pictures for a model that takes them; floats as of ImageNet."""
        image = next((image for image in model.inputs if image.dtype in _STARTER_DTYPES), None)
        if image is None or len(image.shape) != 3:
            return None
        channels, height, width = image.shape
        if channels != 3 or height != width or height is None:
            return None
        fields: dict[str, Any] = {"path": "pictures", "image_size": height}
        if image.name != "image":
            fields["input"] = image.name
        if image.dtype == "float32":
            fields |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        return StarterData(fields, frozenset({image.name}), "a folder with one folder per class")

    def problems(self, config: ImagesConfig, context: SourceContext) -> list[str]:
        """Return wrong folders, empty and unreadable files, and unused fields.

        The headers of the first and last pictures of each class are read; ``load`` decodes all.
        """
        root = context.base / config.path
        if not root.is_dir():
            return [
                *draw_problems(config),
                f"{config.path} is not a directory ({root}); expected one folder of pictures per "
                "class",
            ]
        contents = scan_picture_folders(root)
        for note in (*contents.notes(), *folder_notes(contents, numbered=config.numbered)):
            context.note(note)
        return [
            *draw_problems(config),
            *contents.problems,
            *folder_problems(config.path, contents, numbered=config.numbered),
            *header_problems(contents),
        ]

    def facts(self, config: ImagesConfig, context: SourceContext) -> DataFacts:
        """Return the shape of the samples, their number, and the classes."""
        classes = scan_picture_folders(context.base / config.path).classes
        count = sum(len(files) for files in classes.values())
        side = config.image_size
        return DataFacts(
            inputs=(InputFacts(config.input, _dtype(config), (3, side, side)),),
            has_labels=True,
            num_samples=count if config.num_samples is None else min(count, config.num_samples),
            num_classes=max(_labels(config, classes)) + 1,
            class_names=None if config.numbered else tuple(classes),
        )

    def digest(self, config: ImagesConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the names and content of all pictures."""
        root = context.base / config.path
        classes = scan_picture_folders(root).classes
        digests = {file: digest_file(file) for pictures in classes.values() for file in pictures}
        if note := shared_pictures_note(root, classes, digests):
            context.note(note)
        return digest_json(
            {
                "version": 2,
                "config": _hashed(config),
                "files": {
                    file.relative_to(root).as_posix(): digest for file, digest in digests.items()
                },
            }
        )

    def load(self, config: ImagesConfig, context: SourceContext) -> Dataset:
        """Draw from the pictures and decode them.

        Raises:
            DataError: there are no pictures, or pictures are unreadable; the message names all.
            MissingExtraError: pictures are HEIC, and pillow-heif is not installed.
        """
        root = context.base / config.path
        contents = scan_picture_folders(root)
        if contents.problems:
            raise DataError("\n".join(contents.problems))
        for note in contents.notes():
            context.note(note)
        classes = contents.classes
        pool = [
            (file, label)
            for label, files in zip(_labels(config, classes), classes.values(), strict=True)
            for file in files
        ]
        drawn = [pool[index] for index in draw_indices(len(pool), config.num_samples, config.seed)]
        if not drawn:
            raise DataError(f"{config.path} holds no picture")
        files = [file for file, _ in drawn]
        images = decode_pictures(files, root, config.image_size, config.background, context)
        labels = np.array([label for _, label in drawn], dtype=np.int64)
        names = None if config.numbered else tuple(classes)
        arrays: dict[str, Array] = {config.input: images, "label": labels}
        if config.mean is None or config.std is None:
            return ArrayDataset(arrays, (config.input,), "label", names)
        return NormalizedDataset(arrays, (config.input,), "label", names).normalize(
            np.array(config.mean, np.float32), np.array(config.std, np.float32)
        )


def _dtype(config: ImagesConfig) -> str:
    """Return the type of the samples."""
    return "uint8" if config.mean is None else "float32"


def _hashed(config: ImagesConfig) -> dict[str, Any]:
    """Return the fields that can change a sample."""
    tree = with_former_names(config, config.model_dump(mode="json"))
    return {name: value for name, value in tree.items() if name != "path"}


class NormalizedDataset(ArrayDataset):
    """Pictures that are kept as uint8, and normalized batch by batch."""

    def normalize(self, mean_C: Array, std_C: Array) -> Self:
        """Set mean and standard deviation of the channels, of values from 0 to 1."""
        self._offset = (mean_C / std_C)[:, None, None]
        self._factor = (1 / (255 * std_C))[:, None, None]
        return self

    def batch(self, indices: Array, epoch: int = 0) -> Batch:
        """Return the rows at ``indices``, the pictures as float32."""
        batch = super().batch(indices, epoch)
        name = self.input_names[0]
        return batch | {name: batch[name].astype(np.float32) * self._factor - self._offset}


def _labels(config: ImagesConfig, classes: Iterable[str]) -> list[int]:
    """Return the label of each class."""
    return [int(name) if config.numbered else number for number, name in enumerate(classes)]
