"""WAV files: PCM of 8 to 32 bits and floats, as one channel of floats from -1 to 1."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.errors_from_os import reading
from compressor.errors import DataError

Array = np.ndarray[Any, Any]
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_HEADER_BYTES, _CHUNK_HEADER_BYTES = 12, 8
_REMEDY = "convert it with `ffmpeg -i FILE -ac 1 -ar RATE -c:a pcm_s16le NEW.wav`"


@dataclass(frozen=True, slots=True)
class Waveform:
    """A recording of one channel."""

    samples_N: Array
    """float32, from -1 to 1."""
    rate_hz: int


def read_waveform(file: Path) -> Waveform:
    """Read a WAV file; several channels are averaged.

    Raises:
        DataError: the file is no WAV file, is damaged or empty, or is compressed.
        StorageError: the file cannot be read.
    """
    with reading(file):
        content = file.read_bytes()
    chunks = _chunks(file, content)
    if b"fmt " not in chunks or b"data" not in chunks or len(chunks[b"fmt "]) < 16:
        raise DataError(f"{file} is a damaged WAV file: it has no format or no data")
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
    if kind == _EXTENSIBLE and len(chunks[b"fmt "]) >= 26:
        kind = struct.unpack_from("<H", chunks[b"fmt "], 24)[0]
    values = _values(chunks[b"data"], kind, bits)
    if values is None or not channels or not rate:
        raise DataError(
            f"{file} holds audio of format {kind} with {bits} bits; expected PCM or floats",
            remedy=_REMEDY,
        )
    frames = values[: len(values) // channels * channels].reshape(-1, channels)
    if not len(frames):
        raise DataError(f"{file} holds no sound")
    return Waveform(frames.mean(axis=1, dtype=np.float64).astype(np.float32), rate)


def require_rate(file: Path, waveform: Waveform, rate_hz: int) -> None:
    """Check the sampling rate of a recording.

    Raises:
        DataError: it is another one.
    """
    if waveform.rate_hz != rate_hz:
        raise DataError(
            f"{file} has {waveform.rate_hz} samples per second; the model takes {rate_hz}",
            remedy=_REMEDY.replace("RATE", str(rate_hz)),
        )


def _chunks(file: Path, content: bytes) -> dict[bytes, bytes]:
    """Return the chunks of a RIFF file by their names."""
    if content[:4] != b"RIFF" or content[8:_HEADER_BYTES] != b"WAVE":
        raise DataError(f"{file} is no WAV file", remedy=_REMEDY)
    chunks: dict[bytes, bytes] = {}
    position = _HEADER_BYTES
    while position + _CHUNK_HEADER_BYTES <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        start = position + _CHUNK_HEADER_BYTES
        chunks.setdefault(name, content[start : start + size])
        position = start + size + size % 2
    return chunks


def _values(data: bytes, kind: int, bits: int) -> Array | None:
    """Return samples as float64 from -1 to 1; None for an unknown format."""
    if kind == _FLOAT and bits in {32, 64}:
        dtype = np.dtype(f"<f{bits // 8}")
        return np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
    if kind != _PCM or bits not in {8, 16, 24, 32}:
        return None
    width = bits // 8
    octets = np.frombuffer(data[: len(data) // width * width], np.uint8).reshape(-1, width)
    if width == 1:
        return (octets[:, 0].astype(np.float64) - 128) / 128
    padded = np.zeros((len(octets), 4), np.uint8)
    padded[:, 4 - width :] = octets  # the most significant bytes of a little-endian int32
    return padded.view("<i4")[:, 0] / 2.0**31
