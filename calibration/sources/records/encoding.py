"""Text of files: UTF-8, or what a byte order mark declares; compressed by gzip or not."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, cast

from compressor.errors import DataError
from compressor.foreign_files.limits import DOCUMENT, LINE
from compressor.foreign_files.opening import LFS_POINTER, open_file, refuse_lfs_pointer

UTF8 = "utf-8"
SAMPLED_BYTES = 1 << 17
"""Bytes at the start, and at the end, of a large file that fast checks read."""
_UTF8_WITH_BOM = "utf-8-sig"
_MARKS = (  # UTF-32 first, since its mark starts with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, _UTF8_WITH_BOM),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GZIP = b"\x1f\x8b"
_OTHER_FORMATS = (
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it: zstd -d"),
    (b"BZh91AY&SY", "compressed by bzip2", "decompress it: bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", "decompress it: unxz"),
    (b"PK\x03\x04", "a zip archive, as .xlsx and .docx are", "extract or convert it to text"),
    (b"PAR1", "a parquet file", "name it with the suffix .parquet"),
    (b"%PDF-", "a PDF document", "convert it to text, such as by pdftotext"),
)
"""Starts of files that are often taken for text, their description, and the remedy."""


@contextmanager
def open_data(file: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, decompressed if it is a gzip file.

    Raises:
        StorageError: the file cannot be read.
        DataError: it is a damaged gzip file, or a pointer of Git LFS.
    """
    try:
        with open_file(file, DataError) as raw:
            start = raw.read(len(LFS_POINTER))
            raw.seek(0)
            refuse_lfs_pointer(start, str(file), DataError)
            if start.startswith(_GZIP):
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield cast(IO[bytes], stream)
            else:
                yield raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} is a damaged gzip file: {error}", remedy="copy the file again"
        ) from error


def is_compressed(file: Path) -> bool:
    """Return True if a file starts as gzip files do."""
    with open_file(file, DataError) as stream:
        return stream.read(len(_GZIP)) == _GZIP


def encoding_of(start: bytes) -> str:
    """Return the encoding that the start of a file declares; UTF-8 by default."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), UTF8)


def is_utf8(encoding: str) -> bool:
    """Return True for UTF-8 with or without a byte order mark."""
    return encoding in {UTF8, _UTF8_WITH_BOM}


def decode(content: bytes, where: str, encoding: str | None = None) -> str:
    """Return the text of bytes without its byte order mark; line ends are kept.

    Args:
        content: the bytes.
        where: their file, for messages.
        encoding: their encoding; by default that of their byte order mark.

    Raises:
        DataError: the bytes are not in the encoding, or hold the byte 0 as binary files do.
    """
    encoding = encoding or encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        _refuse_other_formats(content, where)
        raise DataError(
            f"{where} is not {encoding.removesuffix('-sig').upper()}: byte {error.start}",
            remedy="name a text file, or convert it: iconv -f ENCODING -t UTF-8",
        ) from error
    if "\0" in text:
        _refuse_other_formats(content, where)
        raise DataError(
            f"{where} holds the character U+0000: it is binary, or UTF-16 without its mark",
            remedy="name a text file, or convert it: iconv -f UTF-16LE -t UTF-8",
        )
    return text


def _refuse_other_formats(content: bytes, where: str) -> None:
    for start, description, remedy in _OTHER_FORMATS:
        if content.startswith(start):
            raise DataError(f"{where} is {description}, not text", remedy=remedy)


def decode_start(content: bytes, where: str) -> str:
    """Return the text of the first bytes of a file, which may end inside of a character.

    Raises:
        DataError: as ``decode``.
    """
    encoding = encoding_of(content)
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        text = decoder.decode(content)
    except UnicodeDecodeError:
        return decode(content, where, encoding)
    return decode(text.encode(), where, UTF8)


def read_text(file: Path) -> str:
    """Return the text of a file; its line ends are kept.

    Raises:
        DataError: the file is not text in UTF-8, or in the encoding of its byte order mark.
    """
    with open_data(file) as stream:
        content = read_document(stream, file)
    return decode(content, str(file))


def read_document(stream: IO[bytes], file: Path) -> bytes:
    """Return the rest of a stream, decompressed.

    Raises:
        DataError: it is too large for memory.
    """
    content = stream.read(DOCUMENT.most_bytes + 1)
    if len(content) > DOCUMENT.most_bytes:
        raise DataError(
            f"{file} has more than {DOCUMENT.most_bytes} bytes; {DOCUMENT.name} of at most that "
            "are read",
            remedy=DOCUMENT.remedy,
        )
    return content


def lines_of(stream: IO[bytes], file: Path) -> Iterator[bytes]:
    """Yield the lines of a stream.

    Raises:
        DataError: a line is too long for memory.
    """
    for number in count(1):
        line = stream.readline(LINE.most_bytes + 1)
        if len(line) > LINE.most_bytes:
            raise DataError(
                f"{file}:{number} has more than {LINE.most_bytes} bytes; {LINE.name} of at most "
                "that are read",
                remedy=LINE.remedy,
            )
        if not line:
            return
        yield line
