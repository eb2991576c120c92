"""Feature extractor of a speech checkpoint: waveforms to the arrays that its class takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import DataError
from compressor.models.waveforms import read_waveform, require_rate

Array = np.ndarray[Any, Any]
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
        try:
            classes: Any = AutoFeatureExtractor
            self._extractor = classes.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers raises classes of several libraries
            raise DataError(
                f"{folder} holds no feature extractor that transformers opens: {error}"
            ) from error
        self.rate_hz = int(self._extractor.sampling_rate)

    def encode(self, files: Sequence[Path]) -> dict[str, Array]:
        """Return the arrays of recordings; waveforms are padded with zeros to the longest.

        Raises:
            DataError: a file is no WAV file, or has another sampling rate.
        """
        waveforms = []
        for file in files:
            waveform = read_waveform(file)
            require_rate(file, waveform, self.rate_hz)
            waveforms.append(waveform.samples_N)
        encoding = self._extractor(
            waveforms, sampling_rate=self.rate_hz, padding=self._padding(), return_tensors="np"
        )
        return {name: np.asarray(array) for name, array in encoding.items()}

    def _padding(self) -> str:
        """Return the padding: to a fixed length where the extractor has one, as Whisper's 30 s."""
        return "max_length" if hasattr(self._extractor, "nb_max_frames") else "longest"
