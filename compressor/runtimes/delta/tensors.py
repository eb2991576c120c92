"""The tensors of an adapter in a package: rounded, and written again as a safetensors file.

Neither direction holds more than one tensor (writing) or a few rows (reading) in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts.fingerprint import canonical_json
from compressor.runtimes.delta.manifest import PayloadRecord, TensorRecord
from compressor.runtimes.delta.rows import dequantize_rows, quantize_rows

_CHUNK_VALUES = 1 << 20
_READ_BYTES = 1 << 18
_ALIGNMENT = 8


def encode_tensor(record: TensorRecord, values: NDArray[np.float32]) -> bytes:
    """Return the bytes of a tensor in the payload.

    Args:
        record: its encoding.
        values: finite values, of the record's shape.
    """
    if record.encoding == "float16":
        return values.astype("<f2").tobytes()
    matrix = values.reshape(record.rows, record.width)
    rows = matrix.T if record.axis else matrix
    scales, integers = quantize_rows(np.ascontiguousarray(rows))
    in_order = integers.T if record.axis else integers
    return scales.astype("<f4").tobytes() + np.ascontiguousarray(in_order).tobytes()


def decode_tensor(
    record: TensorRecord, read: Callable[[int], bytes]
) -> Iterator[NDArray[np.float32]]:
    """Yield the values of a tensor in order, in float32, some rows at a time.

    Args:
        record: its encoding.
        read: returns the next bytes of the unpacked payload, exactly as many as requested.

    Raises:
        ValueError: a scale or value is not finite, or an integer is -128.
    """
    scales = np.frombuffer(read(4 * record.scales), "<f4").astype(np.float32)
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise ValueError(f"{record.name} has scales that are negative or not finite")
    at_once = max(1, _CHUNK_VALUES // record.width)
    for first in range(0, record.rows, at_once):
        rows = min(at_once, record.rows - first)
        if record.encoding == "float16":
            halves = np.frombuffer(read(2 * rows * record.width), "<f2")
            values = halves.astype(np.float32).reshape(rows, record.width)
        else:
            integers = np.frombuffer(read(rows * record.width), np.int8)
            if (integers == np.int8(-128)).any():
                raise ValueError(f"{record.name} has the integer -128")
            values = _dequantized(record, scales, integers.reshape(rows, record.width), first)
        if not np.isfinite(values).all():
            raise ValueError(f"{record.name} has values that are not finite")
        yield values


def _dequantized(
    record: TensorRecord, scales: NDArray[np.float32], integers: NDArray[np.int8], first: int
) -> NDArray[np.float32]:
    if record.axis:
        return dequantize_rows(scales, integers.T).T
    return dequantize_rows(scales[first : first + len(integers)], integers)


def safetensors_header(records: Sequence[TensorRecord]) -> bytes:
    """Return length and header of a safetensors file with the tensors in order, in float32."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for record in records:
        end = position + record.result_bytes
        shape, offsets = list(record.shape), [position, end]
        header[record.name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        position = end
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class UnpackedPayload:
    """The payload as it was before zlib: never more bytes than the manifest states."""

    def __init__(self, source: IO[bytes], record: PayloadRecord) -> None:
        self._left = record.unpacked
        self._stream = _Inflated(source, record.bytes) if record.zlib else source
        self._inflated = self._stream if isinstance(self._stream, _Inflated) else None

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes.

        Raises:
            ValueError: there are fewer, or the zlib stream is damaged.
        """
        self._left -= size
        parts = []
        while size:
            part = self._stream.read(size)
            if not part:
                raise ValueError("its payload is truncated")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Check that the whole payload has been read, and the zlib stream has ended.

        Raises:
            ValueError: it has not.
        """
        if self._left or (self._inflated is not None and not self._inflated.has_ended()):
            raise ValueError("its payload is longer than its tensors")


class _Inflated:
    """A zlib stream of a known length, inflated no further than what is read."""

    def __init__(self, source: IO[bytes], stored: int) -> None:
        self._source, self._stored = source, stored
        self._inflate = zlib.decompressobj()
        self._pending = b""

    def read(self, most: int) -> bytes:
        """Return at most ``most`` bytes; none at the end of the stream.

        Raises:
            ValueError: the stream is damaged.
        """
        while not self._inflate.eof:
            packed = self._pending or self._fetch()
            try:
                content = self._inflate.decompress(packed, most)
            except zlib.error as error:
                raise ValueError(f"its payload is no zlib stream ({error})") from error
            self._pending = self._inflate.unconsumed_tail
            if content or not packed:
                return content
        return b""

    def has_ended(self) -> bool:
        """Return True if nothing is left to inflate, and nothing follows the stream."""
        # The checksum at the end may still be unread; it yields no byte.
        return (
            not self.read(1)
            and self._inflate.eof
            and not (self._stored or self._pending or self._inflate.unused_data)
        )

    def _fetch(self) -> bytes:
        content = self._source.read(min(_READ_BYTES, self._stored))
        self._stored -= len(content)
        return content
