"""Files of a new model as differences from those of the base: zstd frames with a prefix.

Each block of 16 MiB is one frame. Its prefix (``zstd --patch-from``) is the part of the base's file
around the block's own place, so memory is bounded however large the files are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from compressor.artifacts.fingerprint import digest_file
from compressor.errors import MissingExtraError, StorageError
from compressor.foreign_files.opening import open_file
from compressor.runtimes.delta.manifest import (
    BLOCK_BYTES,
    MARGIN_BYTES,
    PREFIX_BYTES,
    BlockRecord,
    FileRecord,
)

_LEVEL = 10
_WINDOW_LOG = 26
"""2²⁶ bytes: a block and its prefix."""
_SMALLEST_LOG = 12
_CLEAR_GAIN = 4
"""A patch that is smaller than the block by this factor is not compared with the block alone."""
_SHORTEST_HELP = 64
"""Smallest prefix worth a reference."""


def encode_file(
    name: str, file: Path, base_files: Mapping[str, Path], payload: IO[bytes]
) -> FileRecord:
    """Append the blocks of a file to the payload, and return its record.

    Args:
        name: its name in the new model.
        file: the file.
        base_files: files of the base by name.
        payload: the payload, open for writing.

    Raises:
        MissingExtraError: `zstandard` is not installed.
        StorageError: a file cannot be read.
    """
    digest, size = digest_file(file), file.stat().st_size
    for other, path in sorted(base_files.items(), key=lambda item: (item[0] != name, item[0])):
        if path.stat().st_size == size and digest_file(path) == digest:
            return FileRecord(name=name, bytes=size, sha256=digest, base=other, blocks=())
    partner = _partner(name, size, base_files)
    blocks = []
    with open_file(file, StorageError) as source:
        position = 0
        while content := source.read(BLOCK_BYTES):
            start = max(0, position - MARGIN_BYTES)
            prefix = b"" if partner is None else _part(base_files[partner], start, PREFIX_BYTES)
            frame, used = _smallest(content, prefix)
            payload.write(frame)
            place = (start, used) if used else (0, 0)
            blocks.append(
                BlockRecord(bytes=len(content), stored=len(frame), start=place[0], prefix=place[1])
            )
            position += len(content)
    return FileRecord(name=name, bytes=size, sha256=digest, base=partner, blocks=tuple(blocks))


def decode_block(block: BlockRecord, frame: bytes, base_file: Path | None) -> bytes:
    """Return the content of a block.

    Raises:
        ValueError: the frame is damaged or holds another number of bytes, or the base's file is
            too short.
    """
    zstandard = require_zstandard()
    prefix = b"" if base_file is None else _part(base_file, block.start, block.prefix)
    if len(prefix) != block.prefix:
        raise ValueError("a block refers to bytes that the base does not have")
    try:
        # The stream never holds more than its window and what is read of it, whatever it claims.
        with zstandard.ZstdDecompressor(
            dict_data=_prefix_dictionary(prefix), max_window_size=1 << _WINDOW_LOG
        ).stream_reader(frame) as reader:
            content: bytes = reader.read(block.bytes + 1)
    except zstandard.ZstdError as error:
        raise ValueError(f"a block is no zstd frame ({error})") from error
    if len(content) != block.bytes:
        raise ValueError(f"a block does not hold {block.bytes} bytes")
    return content


def require_zstandard() -> Any:
    """Return the module `zstandard`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "a patch between files", "provenance") from error
    return zstandard


def _smallest(content: bytes, prefix: bytes) -> tuple[bytes, int]:
    """Return the smallest frame of a block, and the bytes of the prefix that it needs."""
    if len(prefix) < _SHORTEST_HELP:
        return _compressed(content, b""), 0
    patch = _compressed(content, prefix)
    if _CLEAR_GAIN * len(patch) < len(content):
        return patch, len(prefix)
    alone = _compressed(content, b"")
    return (patch, len(prefix)) if len(patch) < len(alone) else (alone, 0)


def _compressed(content: bytes, prefix: bytes) -> bytes:
    zstandard = require_zstandard()
    # A table with an entry for every position: a smaller one forgets most of a large prefix, and
    # long-distance matching does not see prefixes that are given as dictionaries.
    table = {"hash_log": (len(prefix) + len(content) - 1).bit_length()} if prefix else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        source_size=len(content),
        dict_size=len(prefix),
        window_log=_WINDOW_LOG,
        write_content_size=True,
        **{name: max(_SMALLEST_LOG, log) for name, log in table.items()},
    )
    compressor = zstandard.ZstdCompressor(
        compression_params=parameters, dict_data=_prefix_dictionary(prefix)
    )
    frame: bytes = compressor.compress(content)
    return frame


def _prefix_dictionary(prefix: bytes) -> Any:
    zstandard = require_zstandard()
    if not prefix:
        return None
    return zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _partner(name: str, size: int, base_files: Mapping[str, Path]) -> str | None:
    """Return the base's file of the same name, or that of the same type and the nearest size."""
    if name in base_files:
        return name
    alike = [other for other in base_files if Path(other).suffix == Path(name).suffix]
    return min(
        alike, key=lambda other: (abs(base_files[other].stat().st_size - size), other), default=None
    )


def _part(file: Path, start: int, most: int) -> bytes:
    with open_file(file, StorageError) as handle:
        handle.seek(start)
        return handle.read(most)
