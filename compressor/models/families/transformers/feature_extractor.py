"""Feature extractor of a speech checkpoint: waveforms to the arrays that its class takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import DataError
from compressor.foreign_files.libraries import library_errors
from compressor.models.families.transformers.pretrained import from_pretrained
from compressor.models.waveforms import read_waveform, require_rate

Array = np.ndarray[Any, Any]
_REMEDY = "copy the checkpoint's files again"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"


class FeatureExtractor:
    """Turn recordings into ``input_features`` or ``input_values``.

    Attributes:
        rate_hz: samples per second that recordings must have.
    """

    def __init__(self, folder: Path) -> None:
        """Open the extractor that lies beside a checkpoint.

        Raises:
            DataError: files are missing, or transformers cannot open them.
        """
        from transformers import AutoFeatureExtractor

        if not any((folder / name).is_file() for name in (PREPROCESSOR, PROCESSOR)):
            raise DataError(
                f"{folder} holds no feature extractor: there is no {PREPROCESSOR}",
                remedy="copy the checkpoint's files beside its weights",
            )
        classes: Any = AutoFeatureExtractor
        self._extractor = from_pretrained(classes, folder, "feature extractor")
        self._failure = f"the feature extractor of {folder} cannot encode a recording"
        with library_errors(self._failure, DataError, _REMEDY):
            self.rate_hz = int(self._extractor.sampling_rate)

    def encode(self, files: Sequence[Path]) -> dict[str, Array]:
        """Return the arrays of recordings; waveforms are padded with zeros to the longest.

        Raises:
            DataError: a file is no WAV file, has another sampling rate, or is longer than the
                model takes.
        """
        waveforms = []
        longest = getattr(self._extractor, "n_samples", None)  # of Whisper, which cuts the rest
        for file in files:
            waveform = read_waveform(file)
            require_rate(file, waveform, self.rate_hz)
            seconds = len(waveform.samples_N) / self.rate_hz
            if longest is not None and len(waveform.samples_N) > longest:
                raise DataError(
                    f"{file} has {seconds:.1f} seconds; the model takes "
                    f"{longest / self.rate_hz:g} at once",
                    remedy="divide the recording into shorter files",
                )
            waveforms.append(waveform.samples_N)
        with library_errors(self._failure, DataError, _REMEDY):
            encoding = self._extractor(
                waveforms, sampling_rate=self.rate_hz, padding=self._padding(), return_tensors="np"
            )
            return {name: np.asarray(array) for name, array in encoding.items()}

    def _padding(self) -> str:
        """Return the padding: to a fixed length where the extractor has one, as Whisper's 30 s."""
        return "max_length" if hasattr(self._extractor, "nb_max_frames") else "longest"
