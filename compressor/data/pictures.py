"""Read picture files as 8-bit RGB: orientation, 16 bits, transparency; name what is broken."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.errors import CompressError, DataError, MissingExtraError
from compressor.foreign_files.limits import PICTURE
from compressor.foreign_files.opening import check_file, open_file

if TYPE_CHECKING:
    from PIL import Image, ImageFile

WHITE = "#ffffff"
MOST_PIXELS = 1 << 26
"""Pixels of a picture, and of all that are decoded at once; each takes up to 16 bytes."""
HEIC_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""Brands in the first box of a HEIC file, after the letters ``ftyp``."""
_OTHER_SUFFIXES = frozenset({".mpo"})
"""Suffixes that Pillow reads without registering them: MPO is opened as JPEG."""
_NOT_DECODED = frozenset({"EPS", "MPEG"})
"""Formats that Pillow opens but does not decode itself: EPS runs Ghostscript, a program."""
_SINGLE_PICTURE = frozenset({"MPO", "PSD"})
"""Formats whose further frames are previews or layers of the first."""
_WIDE_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_BITS_TAG, _PHOTOMETRIC_TAG = 258, 262
"""Tags of TIFF: bits per value, and 0 for a photometric interpretation in which 0 is white."""
_KEY_SCALES = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}
"""Factor from the transparent colour of a PNG to the values that Pillow decodes, by raw mode."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture."""

    image: Image.Image
    """RGB, upright."""
    had_transparency: bool
    """True if pixels were transparent, and the background shows through them."""
    has_more_frames: bool
    """True if the file is an animation or has several pages; ``image`` is the first."""


def open_picture(file: Path, background: str = WHITE) -> Picture:
    """Decode a picture as it is meant to be seen, as 8-bit RGB.

    The content decides the format, not the suffix. The orientation in EXIF is applied. The first
    frame or page is used. Transparent pixels are composited onto the background. Values wider than
    8 bits are scaled by their full range and rounded: integers from 0–65535 (0–4095 in TIFF files
    of 12 bits) and floats from 0–1 to 0–255. Values beyond these ranges are refused, since nothing
    in the file states which value is white.

    Args:
        file: any format that Pillow decodes; HEIC needs the extra ``heic``.
        background: colour behind transparent pixels, as ``parse_colour`` returns it.

    Raises:
        DataError: the file is missing, unreadable, empty, no picture, truncated, too large, or has
            values of unknown range; the message names it.
        MissingExtraError: the file is HEIC, and pillow-heif is not installed.
    """
    if problem := file_problem(file):
        raise DataError(problem)
    with _opened(file, str(file)) as picture:
        return _decoded(picture, background)


def picture_from_bytes(
    content: bytes, name: str, background: str = WHITE, *, max_pixels: int = MOST_PIXELS
) -> Picture:
    """Decode the content of a picture file; as ``open_picture``.

    Args:
        content: the bytes of the file.
        name: its name, for messages.
        background: colour behind transparent pixels, as ``parse_colour`` returns it.
        max_pixels: the largest number of pixels; at most ``MOST_PIXELS``.

    Raises:
        DataError: as ``open_picture``, or the picture has more pixels.
        MissingExtraError: as ``open_picture``.
    """
    if not content:
        raise DataError(f"{name} is empty")
    with _opened(BytesIO(content), name, max_pixels) as picture:
        return _decoded(picture, background)


def check_header(file: Path) -> None:
    """Check that a picture can be opened and is not too large, without decoding it.

    Raises:
        DataError: as ``open_picture``, as far as the header shows it.
        MissingExtraError: as ``open_picture``.
    """
    if problem := file_problem(file):
        raise DataError(problem)
    with _opened(file, str(file)):
        pass


def file_problem(file: Path) -> str | None:
    """Return the reason that a path is not a readable file with content; None if it is one."""
    try:
        is_empty = not check_file(file, DataError, PICTURE)
    except CompressError as error:
        return str(error)
    return f"{file} is empty" if is_empty else None


def heic_is_installed() -> bool:
    """Return True if HEIC can be read."""
    return find_spec("pillow_heif") is not None


@cache
def picture_suffixes() -> frozenset[str]:
    """Return the suffixes of all formats that can be read, and of HEIC, in lower case."""
    from PIL import Image

    formats = _formats()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    return frozenset(known | HEIC_SUFFIXES | _OTHER_SUFFIXES)


def parse_colour(text: str) -> str:
    """Return a colour as ``#rrggbb``.

    Args:
        text: a CSS name such as `white`, or `#rgb` or `#rrggbb`.

    Raises:
        ValueError: it is neither.
    """
    from PIL import ImageColor

    wrong = f"{text!r} is no colour: write a name such as white, or #rrggbb"
    try:
        colour = ImageColor.getrgb(text)
    except ValueError as error:
        raise ValueError(wrong) from error
    if len(colour) != 3:
        raise ValueError(wrong)
    return "#{:02x}{:02x}{:02x}".format(*colour)


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Silence Pillow's warnings within the block; what matters is raised as an error.

    Warning filters belong to the process, so enter it before threads that open pictures start.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.|pillow_heif")
        yield


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that are decoded, in the order in which they are tried."""
    from PIL import Image, ImageFile

    if heic_is_installed():
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(
        name
        for name, (factory, _) in Image.OPEN.items()
        if name not in _NOT_DECODED
        and not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))
    )


def _decoded(picture: ImageFile.ImageFile, background: str) -> Picture:
    has_more_frames = (
        getattr(picture, "is_animated", False) and picture.format not in _SINGLE_PICTURE
    )
    image, had_transparency = _to_rgb(_upright_8_bits(picture), background)
    return Picture(image, had_transparency, has_more_frames)


@contextmanager
def _opened(
    source: Path | BytesIO, name: str, max_pixels: int = MOST_PIXELS
) -> Iterator[ImageFile.ImageFile]:
    """Open a picture, and raise what goes wrong within the block as an error that names it.

    Raises:
        DataError: as ``open_picture``.
        MissingExtraError: as ``open_picture``.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source, formats=_formats()) as picture:
            pixels = _check_size(picture, max_pixels)
            with _IN_MEMORY.of(pixels):
                yield picture
    except UnidentifiedImageError as error:
        if not heic_is_installed() and _is_heic(source):
            raise MissingExtraError("pillow-heif", f"{name} is HEIC, which", "heic") from error
        raise DataError(f"{name} is no picture in a format that Pillow reads") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} is too large: {error}", remedy="scale it down") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders raise any class on broken files, such as struct.error
        reason = str(error) or type(error).__name__
        raise DataError(f"{name} cannot be decoded: {reason}") from error


def _check_size(picture: Image.Image, max_pixels: int) -> int:
    """Return the number of pixels.

    Raises:
        ValueError: there are none.
        DecompressionBombError: there are more than decode in bounded memory.
    """
    from PIL import Image

    pixels = picture.width * picture.height
    if not pixels:
        raise ValueError(f"it has {picture.width} × {picture.height} pixels")
    if pixels > max_pixels:
        raise Image.DecompressionBombError(
            f"{picture.width} × {picture.height} pixels exceed the limit of {max_pixels} against "
            "decompression bombs"
        )
    return pixels


class _PixelBudget:
    """Lets threads decode pictures at once while all of them have at most ``MOST_PIXELS``."""

    def __init__(self) -> None:
        self._pixels, self._changed = 0, threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for a picture, and hold it within the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._pixels + pixels <= MOST_PIXELS)
            self._pixels += pixels
        try:
            yield
        finally:
            with self._changed:
                self._pixels -= pixels
                self._changed.notify_all()


_IN_MEMORY = _PixelBudget()


def _is_heic(source: Path | BytesIO) -> bool:
    if isinstance(source, BytesIO):
        start = source.getvalue()[:12]
    else:
        with open_file(source, DataError) as stream:
            start = stream.read(12)
    return start[4:8] == b"ftyp" and start[8:] in _HEIC_BRANDS


def _upright_8_bits(picture: ImageFile.ImageFile) -> Image.Image:
    """Decode a picture, apply its orientation, and scale wide values to 8 bits."""
    from PIL import ImageOps

    raw_mode = picture.tile[0].args if picture.tile else None
    largest, inverted = _range_of(picture)
    picture.load()
    if isinstance(raw_mode, str) and raw_mode in _KEY_SCALES and "transparency" in picture.info:
        key, scale = picture.info["transparency"], _KEY_SCALES[raw_mode]
        picture.info["transparency"] = (
            tuple(int(value * scale) for value in key)
            if isinstance(key, tuple)
            else int(key * scale)
        )
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in _WIDE_MODES:
        return _scaled_to_8_bits(upright, largest, inverted)
    return upright


def _range_of(picture: Image.Image) -> tuple[float, bool]:
    """Return the value of full brightness in a wide mode, and True if 0 is white."""
    if picture.mode == "F":
        return 1.0, False
    tags: Any = getattr(picture, "tag_v2", {})
    bits = tags.get(_BITS_TAG, (16,))[0]
    is_grey_16 = picture.mode.startswith("I;16")
    largest = 4095.0 if is_grey_16 and bits == 12 else 65535.0
    return largest, is_grey_16 and tags.get(_PHOTOMETRIC_TAG) == 0


def _scaled_to_8_bits(image: Image.Image, largest: float, inverted: bool) -> Image.Image:
    """Return a grey image, with alpha if the image names a transparent value.

    Raises:
        ValueError: values are not within 0 and ``largest``.
    """
    from PIL import Image

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= largest):  # True for NaN
        raise ValueError(
            f"its values are from {low:g} to {high:g}, and only 0 to {largest:g} has a defined "
            "range; save it with 8 or 16 bits per value"
        )
    scaled = np.rint(values.astype(np.float64) * (255 / largest)).astype(np.uint8)
    grey = Image.fromarray(255 - scaled if inverted else scaled)
    if "transparency" not in image.info:
        return grey
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(alpha)))


def _to_rgb(image: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """Composite an image onto the background; return it and True if the background shows."""
    from PIL import Image

    if image.mode == "La":  # alpha is multiplied in; Pillow converts it only to LA
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    layer = image.convert("RGBA")
    lowest_alpha = int(np.asarray(layer.getchannel("A")).min())
    canvas = Image.new("RGBA", layer.size, background)
    return Image.alpha_composite(canvas, layer).convert("RGB"), lowest_alpha < 255
