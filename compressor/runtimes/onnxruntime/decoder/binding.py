"""A decoder's session in ONNX Runtime with bound arrays: arrays that persist are bound once.

Shapes: B sequences, T tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from compressor.errors import PassError
from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.graphs.decoder.interface import INPUT_IDS, LOGITS, LOGITS_TO_KEEP
from compressor.runtimes.onnxruntime.inference import ERRORS
from compressor.runtimes.onnxruntime.remedies import first_line

Array = np.ndarray[Any, Any]


class BoundSession:
    """An inference session of a decoder's graph with one I/O binding.

    On a CPU an OrtValue is a view of its array: the runtime writes into the array, and nothing is
    copied.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        """Create an empty binding."""
        self._session, self._binding = session, session.io_binding()
        self._takes_keep = LOGITS_TO_KEEP in {
            value.name for value in session.get_overridable_initializers()
        }
        [outputs] = [value for value in session.get_outputs() if value.name == LOGITS]
        self.vocabulary_size = int(outputs.shape[-1])
        self._ids_BT: Array = np.empty((0, 0), dtype=np.int64)
        self._logits_key: tuple[int, int, int] | None = None
        """Sequences, tokens, and `logits_to_keep` of the bound logits."""

    def bind_in_place(self, buffers: Mapping[str, Array]) -> None:
        """Bind keys and values that are updated in place: as inputs and as outputs."""
        self.bind_inputs(buffers)
        self.bind_present(buffers)

    def bind_inputs(self, arrays: Mapping[str, Array]) -> None:
        """Bind inputs by their names."""
        for name, array in arrays.items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def bind_present(self, buffers: Mapping[str, Array]) -> None:
        """Bind the outputs for new keys and values, by the names of the inputs they become."""
        for name, array in buffers.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            self._binding.bind_ortvalue_output(KvCacheLayout.present_name(name), value)

    def release_logits(self) -> None:
        """Free the logits of the last call, which may be large."""
        self._logits_key = None
        # The binding holds its array until another one is bound.
        self._bind_logits(np.empty((1, 1, self.vocabulary_size), dtype=np.float32))

    def run(self, ids_BT: Array, logits_to_keep: int) -> Array:
        """Run the graph and return the logits of the last tokens, float32 [B, kept tokens, V].

        The next call overwrites the result.

        Args:
            ids_BT: int64 token ids.
            logits_to_keep: number of last tokens; 0 for all T.

        Raises:
            PassError: ONNX Runtime failed inside the graph.
        """
        self._set_ids(ids_BT)
        logits = self._prepare_logits(ids_BT, logits_to_keep)
        try:
            self._session.run_with_iobinding(self._binding)
        except (*ERRORS, RuntimeError) as error:
            raise PassError(f"ONNX Runtime failed: {first_line(error)}") from error
        return logits[:, -logits_to_keep:] if logits_to_keep else logits

    def _set_ids(self, ids_BT: Array) -> None:
        """Copy the token ids into the bound array; bind a new one if the shape changed."""
        if self._ids_BT.shape != ids_BT.shape:
            self._ids_BT = np.empty(ids_BT.shape, dtype=np.int64)
            self.bind_inputs({INPUT_IDS: self._ids_BT})
        np.copyto(self._ids_BT, ids_BT)

    def _prepare_logits(self, ids_BT: Array, logits_to_keep: int) -> Array:
        """Return the bound array for the logits; it is reused while its shape stays the same."""
        batch, tokens = ids_BT.shape
        rows = min(logits_to_keep, tokens) if self._takes_keep and logits_to_keep else tokens
        key = batch, rows, logits_to_keep
        if key != self._logits_key:
            self._bind_logits(np.empty((batch, rows, self.vocabulary_size), dtype=np.float32))
            if self._takes_keep:
                self._keep = np.array([logits_to_keep], dtype=np.int64)
                self.bind_inputs({LOGITS_TO_KEEP: self._keep})
            self._logits_key = key
        return self._logits

    def _bind_logits(self, logits: Array) -> None:
        self._logits = logits
        self._binding.bind_ortvalue_output(LOGITS, onnxruntime.OrtValue.ortvalue_from_numpy(logits))
