"""A decoder's graph in ONNX Runtime, with the arrays that it reads and writes: what stays from call to call is bound once.

Shapes: B samples, T tokens, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from compressor.errors import PassError
from compressor.graphs.decoder.interface import IDS, KEEP, LOGITS, Caches
from compressor.runtimes.onnxruntime.inference import ERRORS, first_line

Array = np.ndarray[Any, Any]


class BoundSession:
    """One session."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        """Nothing is bound yet."""
        self._session, self._binding = session, session.io_binding()
        self._keeps = KEEP in {one.name for one in session.get_overridable_initializers()}
        [words] = [one.shape[-1] for one in session.get_outputs() if one.name == LOGITS]
        self._words = int(words)
        self._ids_BT: Array = np.empty((0, 0), dtype=np.int64)
        self._scored: tuple[int, int, int] | None = None
        """Of how many samples and tokens the scores are bound, and what `logits_to_keep` is."""

    def share(self, buffers: Mapping[str, Array]) -> None:
        """Keys and values that are written where they are read."""
        # On a CPU an OrtValue is a view of the array: what the runtime writes is seen there, and nothing is copied.
        self.read(buffers)
        self.write(buffers)

    def read(self, buffers: Mapping[str, Array]) -> None:
        """Keys and values, and whatever else the graph takes."""
        for name, array in buffers.items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def write(self, buffers: Mapping[str, Array]) -> None:
        """Where keys and values go, by the names of the inputs that take them next."""
        for name, array in buffers.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            self._binding.bind_ortvalue_output(Caches.present(name), value)

    def forget(self) -> None:
        """The scores of the last call, which may be large."""
        self._scored = None
        self._write_scores(
            np.empty((1, 1, self._words), dtype=np.float32)
        )  # or the binding keeps them

    def run(self, ids_BT: Array, keep: int) -> Array:
        """The scores of the ``keep`` last tokens (0: all), [B, keep or T, V]; the next call writes over them.

        Raises:
            PassError: ONNX Runtime failed inside the graph.
        """
        self._bind_ids(ids_BT)
        logits = self._bind_scores(ids_BT, keep)
        try:
            self._session.run_with_iobinding(self._binding)
        except (*ERRORS, RuntimeError) as error:
            raise PassError(f"ONNX Runtime failed: {first_line(error)}") from error
        return logits[:, -keep:] if keep else logits

    def _bind_ids(self, ids_BT: Array) -> None:
        """A step's token goes where that of the step before stood."""
        if self._ids_BT.shape != ids_BT.shape:
            self._ids_BT = np.empty(ids_BT.shape, dtype=np.int64)
            self.read({IDS: self._ids_BT})
        np.copyto(self._ids_BT, ids_BT)

    def _bind_scores(self, ids_BT: Array, keep: int) -> Array:
        """Where scores go: what a step writes over is what the step before wrote."""
        samples, tokens = ids_BT.shape
        count = min(keep, tokens) if self._keeps and keep else tokens
        if (samples, count, keep) != self._scored:
            self._write_scores(np.empty((samples, count, self._words), dtype=np.float32))
            if self._keeps:
                self._kept = np.array([keep], dtype=np.int64)
                self.read({KEEP: self._kept})
            self._scored = samples, count, keep
        return self._logits

    def _write_scores(self, logits: Array) -> None:
        self._logits = logits
        self._binding.bind_ortvalue_output(LOGITS, onnxruntime.OrtValue.ortvalue_from_numpy(logits))
