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
from calibration.sources.picture_processing import (
    FILE,
    CoveredSquare,
    Processing,
    class_numbers,
    read_processing,
)
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
from compressor.errors import CompressError, DataError

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
    processor: Annotated[str | None, LeftOutOfIds()] = None
    """A checkpoint's folder with `preprocessor_config.json`, relative to pipeline.yaml. Pictures
    are resized, cropped and normalized as the checkpoint's image processor does it, in place of
    `image_size`, `mean` and `std`, and classes are numbered as in `label2id` of its config.json
    where all folders are named there."""

    @model_validator(mode="after")
    def _check_normalization(self) -> ImagesConfig:
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` go together: set both, or none")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("`std` divides: its values must be above 0")
        fields = type(self).model_fields
        replaced = [
            f"`{name}`"
            for name in ("image_size", "mean", "std")
            if getattr(self, name) != fields[name].default
        ]
        if self.processor is not None and replaced:
            names = " and ".join(replaced)
            raise ValueError(f"`processor` gives size, mean and std: leave {names} out")
        return self


_LARGEST = 255
"""Value of a pixel that counts as 1 before mean and standard deviation."""
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
        """Return pictures for a model that takes them: as its processor makes them, if it has one.

        Otherwise they are square, and floats are normalized as for ImageNet.
        """
        image = next((image for image in model.inputs if image.dtype in _STARTER_DTYPES), None)
        if image is None or len(image.shape) != 3:
            return None
        channels, height, width = image.shape
        has_processor = image.dtype == "float32" and (model.folder / FILE).is_file()
        if channels != 3 or not (has_processor or height == width is not None):
            return None
        fields: dict[str, Any] = {"path": "pictures"}
        fields |= {"processor": model.folder} if has_processor else {"image_size": height}
        if image.name != "image":
            fields["input"] = image.name
        if image.dtype == "float32" and not has_processor:
            fields |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        return StarterData(fields, frozenset({image.name}), "a folder with one folder per class")

    def problems(self, config: ImagesConfig, context: SourceContext) -> list[str]:
        """Return wrong folders, empty and unreadable files, and unused fields.

        The headers of the first and last pictures of each class are read; ``load`` decodes all.
        """
        root = context.base / config.path
        own = [*draw_problems(config), *_processor_problems(config, context)]
        if not root.is_dir():
            return [
                *own,
                f"{config.path} is not a directory ({root}); expected one folder of pictures per "
                "class",
            ]
        contents = scan_picture_folders(root)
        for note in (*contents.notes(), *folder_notes(contents, numbered=config.numbered)):
            context.note(note)
        return [
            *own,
            *contents.problems,
            *folder_problems(config.path, contents, numbered=config.numbered),
            *header_problems(contents),
        ]

    def facts(self, config: ImagesConfig, context: SourceContext) -> DataFacts:
        """Return the shape of the samples, their number, and the classes."""
        classes = scan_picture_folders(context.base / config.path).classes
        count = sum(len(files) for files in classes.values())
        processing = _processing(config, context)
        shape = (processing or CoveredSquare(config.image_size)).shape
        dtype = "float32" if processing is not None or config.mean is not None else "uint8"
        numbers, names = _numbering(config, classes, context)
        return DataFacts(
            inputs=(InputFacts(config.input, dtype, (3, *shape)),),
            has_labels=True,
            num_samples=count if config.num_samples is None else min(count, config.num_samples),
            num_classes=max(numbers) + 1,
            class_names=names,
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
                "config": _hashed(config, context),
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
        numbers, names = _numbering(config, classes, context)
        pool = [
            (file, label)
            for label, files in zip(numbers, classes.values(), strict=True)
            for file in files
        ]
        drawn = [pool[index] for index in draw_indices(len(pool), config.num_samples, config.seed)]
        if not drawn:
            raise DataError(f"{config.path} holds no picture")
        files = [file for file, _ in drawn]
        processing = _processing(config, context)
        fitting = processing or CoveredSquare(config.image_size)
        images = decode_pictures(files, root, fitting, config.background, context)
        labels = np.array([label for _, label in drawn], dtype=np.int64)
        arrays: dict[str, Array] = {config.input: images, "label": labels}
        mean, std = config.mean, config.std
        scale: float = _LARGEST
        if processing is not None:
            mean, std, scale = processing.mean, processing.std, 1 / processing.factor
        if mean is None or std is None:
            return ArrayDataset(arrays, (config.input,), "label", names)
        return NormalizedDataset(arrays, (config.input,), "label", names).normalize(
            np.array(mean, np.float32), np.array(std, np.float32), scale
        )


def _processing(config: ImagesConfig, context: SourceContext) -> Processing | None:
    """Return what the named processor does; None if there is none.

    Raises:
        DataError: it is missing, or not supported.
    """
    return None if config.processor is None else read_processing(context.base / config.processor)


def _processor_problems(config: ImagesConfig, context: SourceContext) -> list[str]:
    try:
        _processing(config, context)
    except CompressError as error:
        return [str(error)]
    return []


def _hashed(config: ImagesConfig, context: SourceContext) -> dict[str, Any]:
    """Return the fields that can change a sample, and what the named processor does."""
    tree = with_former_names(config, config.model_dump(mode="json"))
    fields = {name: value for name, value in tree.items() if name not in {"path", "processor"}}
    processing = _processing(config, context)
    if config.processor is None or processing is None:
        return fields
    numbers = class_numbers(context.base / config.processor)
    return {**fields, "processing": processing.tree(), "label2id": numbers}


class NormalizedDataset(ArrayDataset):
    """Pictures that are kept as uint8, and normalized batch by batch."""

    def normalize(self, mean_C: Array, std_C: Array, scale: float) -> Self:
        """Set mean and standard deviation of the channels, of values divided by ``scale``."""
        self._offset = (mean_C / std_C)[:, None, None]
        self._factor = (1 / (scale * std_C))[:, None, None]
        return self

    def batch(self, indices: Array, epoch: int = 0) -> Batch:
        """Return the rows at ``indices``, the pictures as float32."""
        batch = super().batch(indices, epoch)
        name = self.input_names[0]
        return batch | {name: batch[name].astype(np.float32) * self._factor - self._offset}


def _numbering(
    config: ImagesConfig, classes: Iterable[str], context: SourceContext
) -> tuple[list[int], tuple[str, ...] | None]:
    """Return the label of each folder, and the names of the classes in the order of labels."""
    folders = tuple(classes)
    if config.numbered:
        return [int(name) for name in folders], None
    if config.processor is not None:
        numbers = class_numbers(context.base / config.processor)
        if set(folders) <= numbers.keys():
            return [numbers[name] for name in folders], tuple(
                sorted(numbers, key=numbers.__getitem__)
            )
        if numbers:
            context.note(
                f"{config.path}: folders are numbered in the order of their names; config.json of "
                f"{config.processor} does not name "
                f"{', '.join(sorted(set(folders) - numbers.keys())[:3])}"
            )
    return list(range(len(folders))), folders
