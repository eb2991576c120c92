"""The manifest of a package: its identity, the model that it applies to, and what it results in.

``docs/update-packages.md`` documents the bytes. Every limit here keeps the memory of a hostile
package small: sizes are checked before anything is allocated or written.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.config.record import Record

VERSION = 1
BLOCK_BYTES = 16 << 20
"""Bytes of a file that one block holds; the last one may be shorter."""
PREFIX_BYTES = 48 << 20
"""Largest part of a file of the base that a block refers to."""
MARGIN_BYTES = (PREFIX_BYTES - BLOCK_BYTES) // 2
"""Bytes of the base before and after a block's own place that it may refer to."""
MOST_ROW_VALUES = 1 << 24
"""Values of one row, and number of scales, of a tensor."""
MOST_AXES = 5
"""Axes of one tensor: those of a kernel of a convolution in three dimensions."""
MOST_VALUES = 1 << 31
"""Values of one tensor."""
MOST_NAME = 255
_SHA256 = r"^[0-9a-f]{64}$"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_FORBIDDEN = re.compile(r"[\\:\x00-\x1f\x7f]")
_VALUE_BYTES = {"int8": 1, "float16": 2}
_SCALE_BYTES = 4
_RESULT_BYTES = 4

Sha256 = Annotated[str, Field(pattern=_SHA256)]
Size = Annotated[int, Field(ge=0, lt=1 << 53)]
Encoding = Literal["int8", "float16", "exact"]


class BaseModelIdentity(Record):
    """The model that a package applies to."""

    artifact: str | None
    """Id of the artifact; None for a folder."""
    digest: Sha256
    """sha256 of the canonical JSON of file name to the sha256 of each file."""
    name: str
    """Name for messages; not checked."""
    tokenizer: Sha256 | None
    """As ``digest``, over the files of the tokenizer; None if the model has none."""


class ResultIdentity(Record):
    """The folder that applying a package ends in."""

    digest: Sha256
    """As the digest of the base."""
    bytes: Size
    format: str
    """Name of the model format."""


class TensorRecord(Record):
    """One tensor of an adapter, at the next place of the payload."""

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    shape: tuple[Size, ...]
    encoding: Literal["int8", "float16"]
    axis: Literal[0, 1] | None
    """Axis of the scales: 0 for a scale for each row, 1 for each column; None for float16."""

    @property
    def rows(self) -> int:
        """Number of rows of the tensor as a matrix; a vector is one row, a kernel [O, I · …]."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def width(self) -> int:
        """Values of one row."""
        return math.prod(self.shape[1:] if len(self.shape) > 1 else self.shape)

    @property
    def scales(self) -> int:
        """Number of scales."""
        if self.axis is None:
            return 0
        return self.width if self.axis else self.rows

    @property
    def payload_bytes(self) -> int:
        """Bytes in the unpacked payload: scales in float32, then the values."""
        return _SCALE_BYTES * self.scales + _VALUE_BYTES[self.encoding] * math.prod(self.shape)

    @property
    def result_bytes(self) -> int:
        """Bytes in the result, in float32."""
        return _RESULT_BYTES * math.prod(self.shape)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 1 <= len(self.shape) <= MOST_AXES or not all(self.shape):
            raise ValueError(f"{self.name!r} has {len(self.shape)} axes or no values")
        if math.prod(self.shape) > MOST_VALUES or max(self.width, self.scales) > MOST_ROW_VALUES:
            raise ValueError(f"{self.name!r} is larger than any tensor of an adapter")
        if (self.axis is None) != (self.encoding == "float16"):
            raise ValueError(f"{self.name!r}: int8 needs an axis, and float16 has none")
        return self


class BlockRecord(Record):
    """A part of a file: one zstd frame of the payload, with a part of the base as its prefix."""

    bytes: Annotated[int, Field(ge=1, le=BLOCK_BYTES)]
    stored: Annotated[int, Field(ge=1, le=2 * BLOCK_BYTES)]
    """Bytes of the frame."""
    start: Size = 0
    """First byte of the prefix in the file of the base."""
    prefix: Annotated[int, Field(ge=0, le=PREFIX_BYTES)] = 0
    """Bytes of the prefix."""


class FileRecord(Record):
    """A file of the result."""

    name: Annotated[str, Field(min_length=1, max_length=MOST_NAME)]
    bytes: Size
    sha256: Sha256
    base: str | None
    """File of the base that its blocks refer to, or that it equals; None for neither."""
    blocks: tuple[BlockRecord, ...]
    """None for a file that equals ``base``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not is_safe(self.name):
            raise ValueError(f"{self.name!r} is no path inside a folder")
        if self.blocks and sum(block.bytes for block in self.blocks) != self.bytes:
            raise ValueError(f"{self.name!r}: its blocks do not have {self.bytes} bytes")
        if self.base is None and (any(b.prefix for b in self.blocks) or self.bytes != self.packed):
            raise ValueError(f"{self.name!r} refers to no file of the base")
        return self

    @property
    def packed(self) -> int:
        """Bytes that the blocks hold."""
        return sum(block.bytes for block in self.blocks)


class PayloadRecord(Record):
    """The bytes after the manifest."""

    sha256: Sha256
    bytes: Size
    unpacked: Size
    """Bytes after inflating; of zstd frames the same as ``bytes``."""
    zlib: bool
    """True if the whole payload is one zlib stream (RFC 1950)."""


class LossRecord(Record):
    """Difference between the updates of the package and those of the adapter."""

    relative_error: Annotated[float, Field(ge=0)]
    """Largest, over the updates, of the norm of the difference divided by the norm."""
    update: str
    """The update with this error."""


class DeltaManifest(Record):
    """The whole manifest."""

    format: Literal["autoglm-compress delta"]
    version: Literal[1]
    name: Annotated[str, Field(pattern=_NAME)]
    """Name of the series of updates that the counter counts."""
    counter: Annotated[int, Field(ge=1, lt=1 << 53)]
    expires: str | None
    """UTC, ``2027-01-31T00:00:00Z``; None for never."""
    encoding: Encoding
    base: BaseModelIdentity
    result: ResultIdentity
    merged: ResultIdentity | None
    """Result of ``--merge``; None if the update cannot be merged exactly."""
    loss: LossRecord | None
    payload: PayloadRecord
    texts: dict[str, str]
    """Files of the result that are stored here, by name."""
    tensors: tuple[TensorRecord, ...]
    files: tuple[FileRecord, ...]

    @property
    def expiry(self) -> datetime.datetime | None:
        """The moment from which the package is refused."""
        return None if self.expires is None else parse_moment(self.expires)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.expires is not None:
            parse_moment(self.expires)
        names = [*self.texts, *(file.name for file in self.files)]
        if wrong := [name for name in names if not is_safe(name)]:
            raise ValueError(f"{wrong[0]!r} is no path inside a folder")
        _check_unique(names)
        _check_unique(tensor.name for tensor in self.tensors)
        if self.tensors and self.files:
            raise ValueError("it has both tensors and files")
        is_exact = self.encoding == "exact"
        if is_exact != (not self.tensors) or (is_exact and not self.files):
            raise ValueError(f"it has no content in the encoding {self.encoding}")
        self._check_sizes()
        return self

    def _check_sizes(self) -> None:
        stored = sum(tensor.payload_bytes for tensor in self.tensors)
        stored += sum(block.stored for file in self.files for block in file.blocks)
        if self.payload.unpacked != stored:
            raise ValueError(f"its payload has {self.payload.unpacked} bytes; {stored} are listed")
        same = self.payload.bytes == self.payload.unpacked
        if bool(self.files) if self.payload.zlib else not same:
            raise ValueError("its payload has another length packed than unpacked")
        if sum(file.bytes for file in self.files) > self.result.bytes:
            raise ValueError(f"its files do not have {self.result.bytes} bytes")


def parse_moment(text: str) -> datetime.datetime:
    """Return the moment of ``2027-01-31T00:00:00Z``.

    Raises:
        ValueError: it is not written so.
    """
    moment = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    return moment.replace(tzinfo=datetime.UTC)


def is_safe(name: str) -> bool:
    """Return True for a relative path that stays inside its folder on every platform."""
    path = PurePosixPath(name)
    return (
        0 < len(name) <= MOST_NAME
        and not _FORBIDDEN.search(name)
        and not path.is_absolute()
        and ".." not in path.parts
        and path.as_posix() == name != "."
    )


def _check_unique(names: Iterable[str]) -> None:
    """Raise ValueError for names that are equal where upper and lower case are."""
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            raise ValueError(f"the name {name!r} occurs twice")
        seen.add(name.casefold())
