"""An ONNX file in ONNX Runtime as a Session; torch is never loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from compressor.data.contract import Batch
from compressor.errors import ModelError, PassError
from compressor.graphs.decoder.interface import EMBEDS, IDS, MASK, OFFSETS, PAST, PRESENT, Caches
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.onnxruntime.decoder.vision import VisionTower
from compressor.runtimes.onnxruntime.inference import ERRORS, first_line, opened
from compressor.runtimes.session import Session

_DTYPES = {"float": "float32", "double": "float64"}


class OnnxSession(Session):
    """``model.onnx`` with all of ONNX Runtime's graph optimizations, one operator at a time on ``threads`` threads."""

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        self._session = opened(folder, threads, device)
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self._caches = Caches.of(self._session.get_inputs())
        self.inputs = tuple(
            InputSpec(
                one.name,
                _dtype(one.type),
                tuple(_dimension(one.name, axis, d) for axis, d in enumerate(one.shape)),
            )
            for one in self._session.get_inputs()
            if self._caches is None or (one.name != MASK and not one.name.startswith(PAST))
        )
        self._tower = None if self._caches is None else VisionTower.beside(folder, threads, device)
        if self._tower is not None:
            self.inputs += self._tower.inputs
        self.output_names = tuple(
            one.name
            for one in self._session.get_outputs()
            if self._caches is None or not one.name.startswith(PRESENT)
        )

    def compute(self, feeds: Batch) -> Batch:
        """See ``Session.compute``.

        Raises:
            PassError: ONNX Runtime failed inside the graph.
        """
        try:
            values = self._session.run(self.output_names, self.completed(feeds))
        except ERRORS as error:
            raise PassError(f"ONNX Runtime failed: {first_line(error)}") from error
        return dict(zip(self.output_names, values, strict=True))

    def completed(self, feeds: Batch) -> Batch:
        """All that the graph takes: a decoder is given whole windows, with the images in them, and nothing before them."""
        if self._caches is None:
            return feeds
        ids = feeds[IDS]
        found = {IDS: ids, MASK: np.ones_like(ids), **self._caches.nothing(len(ids))}
        if self._tower is not None and (shown := self._tower.encode_batch(feeds)) is not None:
            found |= {EMBEDS: shown.embeds_WH, OFFSETS: shown.offsets_3BT}
        return found

    def close(self) -> None:
        """Free the session's memory."""
        del self._session


def _dtype(tensor_type: str) -> str:
    """``tensor(float)`` as NumPy's ``float32``."""
    inner = tensor_type.removeprefix("tensor(").removesuffix(")")
    if tensor_type == inner:
        raise ModelError(f"an input of type {tensor_type} cannot be fed: tensors only")
    return _DTYPES.get(inner, inner)


def _dimension(name: str, axis: int, dimension: int | str | None) -> int | str:
    """A dimension without a name gets one of its own."""
    return f"{name}.{axis}" if dimension is None else dimension
