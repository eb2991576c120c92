"""Size and normalization of pictures: a square, or those of a checkpoint's image processor.

``preprocessor_config.json`` is read without transformers. Processors of transformers that resize,
crop, rescale and normalize and do nothing else are followed exactly; all others are refused by
name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compressor.errors import DataError
from compressor.foreign_files.json_files import read_json_object

if TYPE_CHECKING:
    from PIL import Image

FILE = "preprocessor_config.json"
"""File of a checkpoint with the config of its image processor."""
_WARPED_FROM = 384
"""Smallest size from which ConvNeXT's processor resizes without cropping."""
_CROP = 224 / 256
"""Part of the sides that ConvNeXT's processor keeps, where the file names none."""
_REMEDY = "leave `processor` out and set `image_size`, `mean` and `std`, or use the source python"


class Fitting(Protocol):
    """A way to bring pictures to one size."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the result."""

    def fit(self, image: Image.Image) -> Image.Image:
        """Return a picture of that size."""


@dataclass(frozen=True, slots=True)
class CoveredSquare:
    """A square that the scaled picture covers; the rest is cropped."""

    side: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.side, self.side

    def fit(self, image: Image.Image) -> Image.Image:
        """Return a picture of that size."""
        from PIL import Image, ImageOps

        return ImageOps.fit(image, (self.side, self.side), Image.Resampling.BICUBIC)


@dataclass(frozen=True, slots=True)
class Processing:
    """Processing of an RGB picture by an image processor of transformers."""

    shape: tuple[int, int]
    """Height and width of the result, cropped at the centre."""
    size: tuple[int, int]
    """Height and width to resize to; zeros to keep the ratio of the sides."""
    shortest_edge: int
    """Length of the shorter side after resizing, if the ratio is kept."""
    resample: int
    """Number of Pillow's filter."""
    factor: float
    """Factor of the values from 0 to 255, before mean and standard deviation."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def fit(self, image: Image.Image) -> Image.Image:
        """Return a picture of that size."""
        resized = image.resize(self._resized(image), self.resample)
        height, width = self.shape
        left, top = (resized.width - width) // 2, (resized.height - height) // 2
        return resized.crop((left, top, left + width, top + height))

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """Return width and height after resizing."""
        if all(self.size):
            return self.size[1], self.size[0]
        edge = self.shortest_edge
        if image.width <= image.height:
            return edge, int(edge * image.height / image.width)
        return int(edge * image.width / image.height), edge

    def tree(self) -> dict[str, Any]:
        """Return the fields as JSON values, for digests."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Defaults of a class of processors, for fields that its files may leave out."""

    square: bool = True
    """A size of one number is a square; otherwise the length of the shorter side."""
    crops: bool = False
    crops_part: bool = False
    """A part of the resized picture is cropped (``crop_pct`` of ConvNeXT)."""


_KINDS: Mapping[str, _Kind] = {
    "Bit": _Kind(square=False, crops=True),
    "Blip": _Kind(),
    "CLIP": _Kind(square=False, crops=True),
    "ChineseCLIP": _Kind(square=False, crops=True),
    "ConvNext": _Kind(square=False, crops_part=True),
    "DeiT": _Kind(crops=True),
    "MobileNetV1": _Kind(square=False, crops=True),
    "MobileNetV2": _Kind(square=False, crops=True),
    "Pvt": _Kind(),
    "Siglip": _Kind(),
    "ViT": _Kind(),
}
"""Classes of processors that only resize, crop, rescale and normalize, without their endings."""
_ENDINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
_USED = frozenset(
    {
        *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale"),
        *("rescale_factor", "do_normalize", "image_mean", "image_std", "crop_pct"),
    }
)
_WITHOUT_EFFECT = frozenset(
    {
        *("image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb"),
        *("data_format", "input_data_format", "return_tensors", "default_to_square", "device"),
        *("disable_grouping",),
    }
)
"""Fields that change no value of a picture that is RGB already."""


def read_processing(folder: Path) -> Processing:
    """Read what the image processor of a checkpoint does.

    Args:
        folder: the checkpoint's folder.

    Raises:
        DataError: there is no processor, it is of an unknown class, or fields of it cannot be
            followed; the message names all of them.
    """
    file = folder / FILE
    if not file.is_file():
        raise DataError(f"no {FILE} in {folder}", remedy=_REMEDY)
    tree = read_json_object(file, DataError, remedy="copy the file again")
    name = str(tree.get("image_processor_type") or tree.get("feature_extractor_type") or "ViT")
    kind = next((_KINDS[base] for base in _bases(name) if base in _KINDS), None)
    if kind is None:
        raise DataError(f"{file}: processors of the class {name} are not known", remedy=_REMEDY)
    problems = list(_field_problems(tree, kind)) or list(_size_problems(tree, kind))
    if problems:
        raise DataError(f"{file}: {'; '.join(problems)}", remedy=_REMEDY)
    return _processing(tree, kind)


def class_numbers(folder: Path) -> dict[str, int]:
    """Return ``label2id`` of a checkpoint's config.json; nothing if it is missing or not valid."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    numbers = read_json_object(file, DataError, remedy="copy the file again").get("label2id")
    if not isinstance(numbers, dict):
        return {}
    is_valid = all(isinstance(number, int) and number >= 0 for number in numbers.values())
    return numbers if is_valid and len(set(numbers.values())) == len(numbers) else {}


def _bases(name: str) -> Iterator[str]:
    """Yield the name of a class without its endings."""
    return (name.removesuffix(ending) for ending in ("", *_ENDINGS) if name.endswith(ending))


def _field_problems(tree: Mapping[str, Any], kind: _Kind) -> Iterator[str]:
    """Yield the fields that cannot be followed, are missing, or are no numbers."""
    known = _USED if kind.crops_part else _USED - {"crop_pct"}
    for name, value in tree.items():
        if name not in known | _WITHOUT_EFFECT and not name.startswith("_") and value:
            yield f"`{name}: {value}` is not supported"
    if tree.get("do_resize", True) is not True:
        yield "`do_resize: false` is not supported: samples need one size"
    if _size(tree.get("size"), kind) is None:
        yield "`size` is neither a number, height and width, nor `shortest_edge` alone"
    if _crops(tree, kind) and _size(tree.get("crop_size"), _Kind()) is None:
        yield "`crop_size` is neither a number nor height and width"
    if tree.get("resample") not in range(6):
        yield "`resample` is not the number of a filter of Pillow, 0 to 5"
    if tree.get("do_normalize", True):
        for name in ("image_mean", "image_std"):
            if not _is_channels(tree.get(name)):
                yield f"`{name}` is not a list of three numbers"
        if _is_channels(tree.get("image_std")) and min(tree["image_std"]) <= 0:
            yield "`image_std` divides: its values must be above 0"
    for name, default in (("rescale_factor", 1 / 255), ("crop_pct", _CROP)):
        value = tree.get(name, default)
        if not isinstance(value, int | float) or value <= 0:
            yield f"`{name}` is not a number above 0"


def _processing(tree: Mapping[str, Any], kind: _Kind) -> Processing:
    """Return what valid fields state."""
    sizes = _sizes(tree, kind)
    normalizes = tree.get("do_normalize", True)
    return Processing(
        sizes.shape,
        sizes.size,
        sizes.shortest_edge,
        tree["resample"],
        tree.get("rescale_factor", 1 / 255) if tree.get("do_rescale", True) else 1.0,
        tuple(tree["image_mean"]) if normalizes else (0.0, 0.0, 0.0),
        tuple(tree["image_std"]) if normalizes else (1.0, 1.0, 1.0),
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes in valid fields; zeros for those that the fields leave open."""

    shape: tuple[int, int]
    size: tuple[int, int]
    shortest_edge: int


def _sizes(tree: Mapping[str, Any], kind: _Kind) -> _Sizes:
    size = _size(tree["size"], kind) or (0, 0)
    exact, edge = (size, 0) if size[0] else ((0, 0), size[1])
    if kind.crops_part and edge >= _WARPED_FROM:
        exact, edge = (edge, edge), 0
    elif kind.crops_part and edge:
        return _Sizes((edge, edge), exact, int(edge / tree.get("crop_pct", _CROP)))
    crop = _size(tree["crop_size"], _Kind()) if _crops(tree, kind) else None
    return _Sizes(crop or exact, exact, edge)


def _size_problems(tree: Mapping[str, Any], kind: _Kind) -> Iterator[str]:
    """Yield why results differ in size, or are padded."""
    sizes = _sizes(tree, kind)
    if not all(sizes.shape):
        yield "`size.shortest_edge` without `do_center_crop` gives pictures of many sizes"
    edge = sizes.shortest_edge
    resized = sizes.size if all(sizes.size) else (edge, edge)
    if any(kept > side for kept, side in zip(sizes.shape, resized, strict=True)):
        yield "`crop_size` is larger than `size`"


def _crops(tree: Mapping[str, Any], kind: _Kind) -> bool:
    return bool(tree.get("do_center_crop", kind.crops))


def _size(value: Any, kind: _Kind) -> tuple[int, int] | None:
    """Return height and width, or 0 and the shorter side; None for other values."""
    if _is_length(value):
        return (value, value) if kind.square else (0, value)
    if isinstance(value, list) and len(value) == 2 and all(map(_is_length, value)):
        return value[0], value[1]
    if not isinstance(value, dict):
        return None
    given = {name: side for name, side in value.items() if side is not None}
    if not all(map(_is_length, given.values())):
        return None
    if given.keys() == {"height", "width"}:
        return given["height"], given["width"]
    return (0, given["shortest_edge"]) if given.keys() == {"shortest_edge"} else None


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 4096


def _is_channels(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
    )
