"""Images of ``data:`` addresses: bounded in bytes and pixels before they are decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from compressor.data.pictures import picture_from_bytes
from compressor.serving.api_errors import bad_request, unsupported
from compressor.serving.base64_text import decode_base64

if TYPE_CHECKING:
    from PIL import Image

_SCHEME, _BASE64 = "data:", ";base64"


def open_image_url(url: str, param: str, max_pixels: int) -> Image.Image:
    """Return the image of a ``data:`` address as RGB.

    Args:
        url: the address.
        param: the field that holds it, for messages.
        max_pixels: the largest number of pixels.

    Raises:
        ApiError: 400 for other addresses, since a server that fetches them can be made to read
            its own network and files, and for bytes that are no base64.
        DataError: the image is broken, too large, or of no known format.
    """
    content = _content(url, param)
    return picture_from_bytes(content, f"{param}: the image", max_pixels=max_pixels).image


def _content(url: str, param: str) -> bytes:
    if url[: len(_SCHEME)].lower() != _SCHEME:
        scheme = url.partition(":")[0][:20] if ":" in url[:20] else "no scheme"
        raise unsupported(
            param,
            f"{param}: only data: addresses are read, and this one has {scheme!r}: send the image "
            "as data:image/png;base64,…",
        )
    header, comma, data = url[len(_SCHEME) :].partition(",")
    if not comma:
        raise bad_request(f"{param}: the data: address has no comma before its content", param)
    if not header.lower().endswith(_BASE64):
        return unquote_to_bytes(data)
    try:
        return decode_base64(data)
    except ValueError as error:
        raise bad_request(f"{param}: the image is no valid base64: {error}", param) from error
