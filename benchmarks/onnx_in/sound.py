"""Speech of espeak-ng and music, as samples in [-1, 1]."""

from __future__ import annotations

import ctypes
import json
from functools import cache
from typing import Any

import numpy as np

from benchmarks.onnx_in.wheels import Wheels
from benchmarks.onnx_in.words import english
from calibration.sources.phone_bed.espeak import Speaker, resample

Array = np.ndarray[Any, Any]
VOICES = {
    "calibration": ("en-us+m1", "en-us+f2", "en-us+m3"),
    "evaluation": ("en-us+f1", "en-us+m5", "en-us+m7", "en-us+f3"),
}
SONGS = {"calibration": "1918.mp3", "evaluation": "funkyrobot.mp3"}
_RATE = 16_000


@cache
def speaker() -> Speaker:
    """Return the one speaker of this process."""
    return Speaker()


def speech(wheels: Wheels, split: str, seconds: float) -> Array:
    """Return sentences in several voices with pauses and faint noise, 16 kHz, float32."""
    random = np.random.default_rng(2 if split == "calibration" else 3)
    sentences, parts, length = english(wheels, split), [], 0
    while length < seconds * _RATE:
        index = len(parts)
        text = sentences[int(random.integers(len(sentences)))]
        voice = VOICES[split][index // 2 % len(VOICES[split])]
        pitch, speed = int(random.integers(30, 70)), int(random.integers(140, 200))
        spoken = speaker().synthesize(text, voice, speed, pitch)
        spoken = resample(spoken, speaker().sample_rate) * random.uniform(0.3, 0.9)
        pause = np.zeros(int(random.uniform(0.2, 1.2) * _RATE), dtype=np.float32)
        parts += [spoken, pause]
        length += len(spoken) + len(pause)
    samples = np.concatenate(parts)[: int(seconds * _RATE)]
    noise = random.standard_normal(len(samples)) * random.uniform(0.0005, 0.005)
    return (samples + noise).astype(np.float32)


def music(wheels: Wheels, split: str, rate: int) -> Array:
    """Return a song as mono samples at ``rate``; needs the package soundfile."""
    import soundfile

    file = wheels.unpack("arcade") / "arcade/resources/assets/music" / SONGS[split]
    stereo, own_rate = soundfile.read(str(file), dtype="float32", always_2d=True)
    mono = stereo.mean(axis=1)
    if own_rate != 2 * rate:
        raise ValueError(f"{file} has {own_rate} Hz; expected {2 * rate}")
    spectrum = np.fft.rfft(mono[: len(mono) // 2 * 2])
    halved = np.fft.irfft(spectrum[: len(spectrum) // 2 + 1], len(mono) // 2) / 2
    return halved.astype(np.float32)


def windows(samples: Array, size: int, count: int) -> Array:
    """Return ``count`` windows spread evenly over the samples: [count, size]."""
    starts = np.linspace(0, len(samples) - size, count).astype(int)
    return np.stack([samples[start : start + size] for start in starts])


def phonemes(text: str, voice: str = "en-us") -> str:
    """Return the phonemes of a text in the International Phonetic Alphabet."""
    library = speaker()._library
    if not speaker().has_voice(voice):
        raise ValueError(f"espeak-ng has no voice {voice!r}")
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    content = ctypes.c_char_p(text.encode())
    parts = []
    while content.value:
        # 1: the text is UTF-8; 2: phonemes as IPA.
        parts.append(library.espeak_TextToPhonemes(ctypes.byref(content), 1, 2).decode())
    return " ".join(parts)


def phoneme_ids(config: str, text: str) -> list[int]:
    """Return the ids of the phonemes of a text, as piper encodes them."""
    table = json.loads(config)["phoneme_id_map"]
    ids = [*table["^"], *table["_"]]
    for symbol in phonemes(text) + text[-1]:
        if symbol in table:
            ids += [*table[symbol], *table["_"]]
    return [*ids, *table["$"]]
