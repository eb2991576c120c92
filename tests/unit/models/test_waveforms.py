"""Tests of reading WAV files."""

import struct

import numpy as np
import pytest

from compressor.errors import DataError
from compressor.models.waveforms import read_waveform

VALUES = np.array([0.0, 0.5, -0.5, -1.0])


def wav(kind, bits, data, channels=1, rate=16000):
    header = struct.pack("<HHIIHH", kind, channels, rate, 0, 0, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(header)) + header
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def pcm24(values):
    return b"".join(int(value * 2**23).to_bytes(3, "little", signed=True) for value in values)


FORMATS = {
    "pcm8": (1, 8, (VALUES * 128 + 128).clip(0, 255).astype(np.uint8).tobytes()),
    "pcm16": (1, 16, (VALUES * 2**15).astype("<i2").tobytes()),
    "pcm24": (1, 24, pcm24(VALUES)),
    "pcm32": (1, 32, (VALUES * 2**31).astype("<i4").tobytes()),
    "float32": (3, 32, VALUES.astype("<f4").tobytes()),
    "float64": (3, 64, VALUES.astype("<f8").tobytes()),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_width_gives_the_same_samples(name, tmp_path):
    file = tmp_path / "a.wav"
    file.write_bytes(wav(*FORMATS[name]))
    waveform = read_waveform(file)
    assert waveform.samples_N.dtype == np.float32
    np.testing.assert_allclose(waveform.samples_N, VALUES, atol=1e-2 if name == "pcm8" else 1e-6)
    assert waveform.rate_hz == 16000


def test_channels_are_averaged(tmp_path):
    file = tmp_path / "a.wav"
    file.write_bytes(wav(3, 32, np.array([1, 0, 0, -1], "<f4").tobytes(), channels=2))
    np.testing.assert_array_equal(read_waveform(file).samples_N, [0.5, -0.5])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ID3 nothing", "is no WAV file"),
        (b"RIFF\0\0\0\0WAVE", "damaged WAV file"),
        (wav(1, 16, b""), "holds no sound"),
        (wav(85, 0, b"1234"), "format 85"),
    ],
    ids=["other", "damaged", "empty", "compressed"],
)
def test_what_is_no_sound_is_refused(content, message, tmp_path):
    file = tmp_path / "a.wav"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_waveform(file)
