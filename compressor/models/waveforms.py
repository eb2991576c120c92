"""WAV files: PCM of 8 to 32 bits and floats, as one channel of floats from -1 to 1."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import DataError
from compressor.foreign_files.limits import AUDIO
from compressor.foreign_files.opening import read_bytes

Array = np.ndarray[Any, Any]
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_BLOCK_BYTES = 1 << 22
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
        DataError: the file cannot be read, is no WAV file, is damaged, empty or too large, or is
            compressed.
        StorageError: the machine cannot read it.
    """
    chunks = _chunks(file, memoryview(read_bytes(file, AUDIO, DataError)))
    if b"fmt " not in chunks or b"data" not in chunks or len(chunks[b"fmt "]) < 16:
        raise DataError(f"{file} is a damaged WAV file: it has no format or no data")
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
    if kind == _EXTENSIBLE and len(chunks[b"fmt "]) >= 26:
        kind = struct.unpack_from("<H", chunks[b"fmt "], 24)[0]
    if not _is_known(kind, bits) or not channels or not rate:
        raise DataError(
            f"{file} holds audio of format {kind} with {bits} bits; expected PCM or floats",
            remedy=_REMEDY,
        )
    frame_bytes = channels * bits // 8
    frames = len(chunks[b"data"]) // frame_bytes
    if not frames:
        raise DataError(f"{file} holds no sound")
    samples_N = np.empty(frames, np.float32)
    step = max(1, _BLOCK_BYTES // frame_bytes)  # a block at a time: values are read as float64
    for start in range(0, frames, step):
        block = chunks[b"data"][start * frame_bytes : min(start + step, frames) * frame_bytes]
        values = _values(block, kind, bits).reshape(-1, channels)
        samples_N[start : start + step] = values.mean(axis=1, dtype=np.float64)
    if not np.isfinite(samples_N).all():
        raise DataError(f"{file} holds NaN or infinity", remedy="record or convert it again")
    return Waveform(samples_N, rate)


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


def _chunks(file: Path, content: memoryview) -> dict[bytes, memoryview]:
    """Return the chunks of a RIFF file by their names."""
    if bytes(content[:4]) != b"RIFF" or bytes(content[8:_HEADER_BYTES]) != b"WAVE":
        raise DataError(f"{file} is no WAV file", remedy=_REMEDY)
    chunks: dict[bytes, memoryview] = {}
    position = _HEADER_BYTES
    while position + _CHUNK_HEADER_BYTES <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        start = position + _CHUNK_HEADER_BYTES
        chunks.setdefault(name, content[start : start + size])
        position = start + size + size % 2
    return chunks


def _is_known(kind: int, bits: int) -> bool:
    return bits in {32, 64} if kind == _FLOAT else kind == _PCM and bits in {8, 16, 24, 32}


def _values(data: memoryview, kind: int, bits: int) -> Array:
    """Return samples from -1 to 1."""
    if kind == _FLOAT:
        return np.frombuffer(data, np.dtype(f"<f{bits // 8}"))
    width = bits // 8
    octets = np.frombuffer(data, np.uint8).reshape(-1, width)
    if width == 1:
        return (octets[:, 0].astype(np.float64) - 128) / 128
    padded = np.zeros((len(octets), 4), np.uint8)
    padded[:, 4 - width :] = octets  # the most significant bytes of a little-endian int32
    return padded.view("<i4")[:, 0] / 2.0**31
