"""Speech of espeak-ng through ctypes, and its log-mel features.

The library and its data come from the package ``espeakng-loader`` (espeak-ng, GPL-3.0; loaded at
run time, not copied here).
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
"""Number of mel bands."""
FRAMES: Final = 192
"""Number of frames of 10 ms. Longer speech is truncated, shorter speech padded with 0."""
_WINDOW: Final = 400
_HOP: Final = 160
_FFT: Final = 512
# Constants of espeak/speak_lib.h.
_SYNCHRONOUS, _UTF8, _NO_EXIT, _RATE, _PITCH = 2, 1, 0x8000, 1, 3

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Speaker:
    """The espeak-ng library; create one per process, since the library keeps global state.

    Raises:
        MissingExtraError: espeakng-loader is not installed.
        DataError: the library cannot be initialized.
    """

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
        self.sample_rate = int(
            self._library.espeak_Initialize(
                _SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), _NO_EXIT
            )
        )
        if self.sample_rate <= 0:
            raise DataError(f"espeak-ng cannot start (code {self.sample_rate})")
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:  # noqa: ARG002
        if count > 0 and samples:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def has_voice(self, voice: str) -> bool:
        """Return True if a voice, with its variant, exists; it is then selected."""
        return int(self._library.espeak_SetVoiceByName(voice.encode())) == 0

    def synthesize(self, text: str, voice: str, words_per_minute: int, pitch: int) -> Samples:
        """Return the speech of a text at ``sample_rate``, float32 in [-1, 1].

        Raises:
            DataError: the voice does not exist, or espeak-ng returns no samples.
        """
        self._chunks.clear()
        if not self.has_voice(voice):
            raise DataError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        content = text.encode()
        code = self._library.espeak_Synth(content, len(content) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if code != 0 or not self._chunks:
            raise DataError(
                f"espeak-ng returned no samples for {text!r} (voice {voice}, code {code})"
            )
        return (np.concatenate(self._chunks).astype(np.float32)) / 32768.0


def resample(samples: Samples, rate: int) -> Samples:
    """Resample from ``rate`` to 16 kHz by truncating the spectrum, which is exact below 8 kHz.

    The samples are padded so that the lengths of both transforms have small factors.
    """
    unit_in, unit_out = rate // 10, SAMPLE_RATE // 10
    units = -(-len(samples) // unit_in)
    spectrum = np.fft.rfft(samples, units * unit_in)
    resampled = np.zeros(units * unit_out // 2 + 1, dtype=spectrum.dtype)
    shared = min(len(spectrum), len(resampled))
    resampled[:shared] = spectrum[:shared]
    padded = np.fft.irfft(resampled, units * unit_out) * (unit_out / unit_in)
    return padded[: round(len(samples) * SAMPLE_RATE / rate)].astype(np.float32)


@cache
def mel_filters() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return triangular filters on the HTK mel scale, 2595 · log10(1 + f / 700): [MELS, bins]."""
    edges_mel = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), MELS + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(samples: Samples) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return log-mel bands in frames of 10 ms, uint8 [MELS, at most FRAMES].

    The values 1 to 255 are −80 to 0 dB relative to the loudest band; 0 is left for padding.
    """
    if len(samples) < _WINDOW:
        samples = np.pad(samples, (0, _WINDOW - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32), _FFT)) ** 2
    mel = 10 * np.log10(np.maximum(power @ mel_filters().T, 1e-10)).T
    level = np.clip((mel - mel.max() + 80) / 80, 0, 1)
    bands: np.ndarray[Any, np.dtype[np.uint8]] = np.round(1 + 254 * level).astype(np.uint8)
    return bands[:, :FRAMES]
