"""The encoder of an encoder-decoder in ONNX Runtime; its output is computed once.

Shapes: B sequences, N key heads of width H, S encoder positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from compressor.data.contract import Batch
from compressor.errors import PassError
from compressor.graphs.decoder.interface import ATTENTION_MASK, ENCODER_MASK, ENCODER_MODEL
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.onnxruntime.inference import ERRORS, open_inference_session
from compressor.runtimes.onnxruntime.remedies import first_line
from compressor.runtimes.session import match_inputs

Array = np.ndarray[Any, Any]
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


class Encoder:
    """``encoder.onnx``.

    Attributes:
        inputs: its inputs.
    """

    def __init__(self, folder: Path, threads: int, device: str = "cpu") -> None:
        """Open the graph.

        Raises:
            ModelError: the graph cannot be opened.
        """
        self._session = open_inference_session(folder, threads, device, name=ENCODER_MODEL)
        self.inputs = tuple(
            InputSpec(value.name, _DTYPES[value.type], tuple(value.shape))
            for value in self._session.get_inputs()
        )
        self._outputs = tuple(value.name for value in self._session.get_outputs())

    @classmethod
    def open_if_present(cls, folder: Path, threads: int, device: str = "cpu") -> Encoder | None:
        """Open the encoder of a folder; None if it has none."""
        return cls(folder, threads, device) if (folder / ENCODER_MODEL).is_file() else None

    def encode(self, batch: Mapping[str, Array], taken: frozenset[str]) -> Batch:
        """Return the decoder's inputs for an input of the encoder.

        Args:
            batch: arrays by the names of ``inputs``.
            taken: names of the decoder's inputs.

        Returns:
            Keys and values of cross-attention, [B, N, S, H], and the encoder's attention mask
            [B, S], if the decoder takes it.

        Raises:
            DataError: arrays are missing or do not fit.
            PassError: ONNX Runtime failed inside the graph.
        """
        feeds = match_inputs(batch, self.inputs)
        try:
            values = self._session.run(self._outputs, feeds)
        except (*ERRORS, RuntimeError) as error:
            raise PassError(f"ONNX Runtime failed: {first_line(error)}") from error
        encoded = dict(zip(self._outputs, values, strict=True))
        if ENCODER_MASK in taken and ENCODER_MASK not in encoded:
            encoded[ENCODER_MASK] = feeds[ATTENTION_MASK]
        return encoded


def input_names(session: onnxruntime.InferenceSession) -> frozenset[str]:
    """Return the names of the inputs of a session."""
    return frozenset(value.name for value in session.get_inputs())
