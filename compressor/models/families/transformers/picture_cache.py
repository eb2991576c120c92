"""A cache of an image processor's results, for pictures that are sent again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


def picture_digest(picture: Image.Image) -> bytes:
    """Return a digest of a picture's size, mode and pixels."""
    digest = hashlib.sha256(f"{picture.mode} {picture.size}".encode())
    digest.update(picture.tobytes())
    return digest.digest()


class CachedImageProcessor:
    """An image processor of transformers that keeps its results for single pictures.

    Attributes and other methods are those of the processor.
    """

    def __init__(self, processor: Any, capacity_bytes: int) -> None:
        """Wrap a processor.

        Args:
            processor: the image processor.
            capacity_bytes: bytes of results to keep; the least recently used are dropped, but for
                the last one.
        """
        self._processor, self._capacity_bytes = processor, capacity_bytes
        self._results: OrderedDict[tuple[bytes, str], Any] = OrderedDict()
        self._size_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, images: Any, *args: Any, **options: Any) -> Any:
        """Return the arrays of pictures; those of a single picture are kept."""
        pictures = list(_flat(images))
        if len(pictures) != 1 or args or not hasattr(pictures[0], "tobytes"):
            return self._processor(images, *args, **options)
        key = picture_digest(pictures[0]), repr(sorted(options.items()))
        if key not in self._results:
            self._keep(key, self._processor(images, **options))
        self._results.move_to_end(key)
        result = self._results[key]
        # Processors take entries out of the result.
        return type(result)(dict(result))

    def _keep(self, key: tuple[bytes, str], result: Any) -> None:
        self._results[key] = result
        self._size_bytes += _size_bytes(result)
        while self._size_bytes > self._capacity_bytes and len(self._results) > 1:
            _, dropped = self._results.popitem(last=False)
            self._size_bytes -= _size_bytes(dropped)


def _flat(images: Any) -> Iterator[Any]:
    """Yield the pictures of nested lists."""
    if isinstance(images, list | tuple):
        for image in images:
            yield from _flat(image)
    else:
        yield images


def _size_bytes(result: Any) -> int:
    return sum(np.asarray(value).nbytes for value in result.values())
