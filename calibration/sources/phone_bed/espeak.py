"""espeak-ng through ctypes, and the log-mel features of what it says.

The library and its data come from the package ``espeakng-loader`` (espeak-ng, GPL-3.0; loaded at run time, never copied here).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

import numpy as np

from compressor.errors import DataError, MissingExtraError

Samples = np.ndarray[Any, np.dtype[np.float32]]

SAMPLE_RATE: Final = 16_000
MELS: Final = 80
FRAMES: Final = 192
"""Frames of 10 ms: longer commands are cut, shorter ones padded with 0."""
_WINDOW: Final = 400
_HOP: Final = 160
_FFT: Final = 512
_SYNCHRONOUS, _UTF8, _NO_EXIT, _RATE, _PITCH = 2, 1, 0x8000, 1, 3  # espeak/speak_lib.h

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Speaker:
    """One espeak-ng in this process (the library keeps global state)."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise MissingExtraError(
                "espeakng-loader", "the data source phone-bed", "phone-bed"
            ) from error
        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self._chunks: list[np.ndarray[Any, Any]] = []
        self._callback = _Callback(self._receive)
        self.rate = int(
            self._library.espeak_Initialize(
                _SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), _NO_EXIT
            )
        )
        if self.rate <= 0:
            raise DataError(f"espeak-ng cannot start (code {self.rate})")
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:  # noqa: ARG002
        if count > 0 and samples:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def has(self, voice: str) -> bool:
        """Whether the voice (with its variant) exists."""
        return int(self._library.espeak_SetVoiceByName(voice.encode())) == 0

    def say(self, text: str, voice: str, words_per_minute: int, pitch: int) -> Samples:
        """The text as samples at ``self.rate``, float32 in [-1, 1].

        Raises:
            DataError: the voice is not there, or nothing was said.
        """
        self._chunks.clear()
        if not self.has(voice):
            raise DataError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        content = text.encode()
        code = self._library.espeak_Synth(content, len(content) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if code != 0 or not self._chunks:
            raise DataError(f"espeak-ng said nothing for {text!r} (voice {voice}, code {code})")
        return (np.concatenate(self._chunks).astype(np.float32)) / 32768.0


def resampled(samples: Samples, rate: int) -> Samples:
    """To 16 kHz by cutting the spectrum (exact for band-limited sound); padded so that both transforms have short factors."""
    unit_in, unit_out = rate // 10, SAMPLE_RATE // 10
    units = -(-len(samples) // unit_in)
    spectrum = np.fft.rfft(samples, units * unit_in)
    wanted = np.zeros(units * unit_out // 2 + 1, dtype=spectrum.dtype)
    shared = min(len(spectrum), len(wanted))
    wanted[:shared] = spectrum[:shared]
    whole = np.fft.irfft(wanted, units * unit_out) * (unit_out / unit_in)
    return whole[: round(len(samples) * SAMPLE_RATE / rate)].astype(np.float32)


@cache
def mel_filters() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Triangles on the HTK mel scale, [MELS, _FFT // 2 + 1]: 2595 · log10(1 + f / 700)."""
    edges_mel = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), MELS + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(samples: Samples) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """80 log-mel bands in frames of 10 ms, uint8 [MELS, frames <= FRAMES]: 1…255 is −80…0 dB below the loudest; 0 is no sound."""
    if len(samples) < _WINDOW:
        samples = np.pad(samples, (0, _WINDOW - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32), _FFT)) ** 2
    mel = 10 * np.log10(np.maximum(power @ mel_filters().T, 1e-10)).T
    level = np.clip((mel - mel.max() + 80) / 80, 0, 1)
    bands: np.ndarray[Any, np.dtype[np.uint8]] = np.round(1 + 254 * level).astype(np.uint8)
    return bands[:, :FRAMES]
