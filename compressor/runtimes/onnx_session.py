"""An ONNX file in ONNX Runtime as a Session; torch is never loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from compressor.data.contract import Batch
from compressor.errors import ModelError, PassError, UsageError
from compressor.models.contract import InputSpec
from compressor.runtimes.onnx_caches import IDS, MASK, PAST, PRESENT, Caches
from compressor.runtimes.onnx_files import MODEL, read_graph
from compressor.runtimes.session import Session

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SILENT = 4  # severity: fatal only; what matters is raised
_DTYPES = {"float": "float32", "double": "float64"}
ERRORS = (
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)


class OnnxSession(Session):
    """``model.onnx`` with all of ONNX Runtime's graph optimizations, one operator at a time on ``threads`` threads."""

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        self._session = opened(folder, threads, device)
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self._caches = Caches.of(self._session.get_inputs())
        self.inputs = tuple(
            InputSpec(
                one.name, _dtype(one.type), tuple(_dimension(one.name, axis, d) for axis, d in enumerate(one.shape))
            )
            for one in self._session.get_inputs()
            if self._caches is None or (one.name != MASK and not one.name.startswith(PAST))
        )
        self.output_names = tuple(
            one.name for one in self._session.get_outputs() if self._caches is None or not one.name.startswith(PRESENT)
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
        """All that the graph takes: a decoder is given whole windows, and nothing before them."""
        if self._caches is None:
            return feeds
        ids = feeds[IDS]
        return {**feeds, MASK: np.ones_like(ids), **self._caches.nothing(len(ids))}

    def close(self) -> None:
        """Free the session's memory."""
        del self._session


def opened(folder: Path, threads: int, device: str = "cpu") -> onnxruntime.InferenceSession:
    """``model.onnx`` with all optimizations.

    Raises:
        ModelError: it cannot be opened.
        UsageError: ONNX Runtime cannot compute on the device.
    """
    read_graph(folder)
    provider = _PROVIDERS.get(device.partition(":")[0])
    if provider not in onnxruntime.get_available_providers():
        raise UsageError(
            f"this ONNX Runtime cannot compute on {device!r}",
            remedy="use --device cpu, or install onnxruntime-gpu",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    try:
        return onnxruntime.InferenceSession(str(folder / MODEL), options, providers=[provider])
    except ERRORS as error:
        raise ModelError(f"ONNX Runtime cannot open {folder / MODEL}: {first_line(error)}") from error


def _dtype(tensor_type: str) -> str:
    """``tensor(float)`` as NumPy's ``float32``."""
    inner = tensor_type.removeprefix("tensor(").removesuffix(")")
    if tensor_type == inner:
        raise ModelError(f"an input of type {tensor_type} cannot be fed: tensors only")
    return _DTYPES.get(inner, inner)


def _dimension(name: str, axis: int, dimension: int | str | None) -> int | str:
    """A dimension without a name gets one of its own."""
    return f"{name}.{axis}" if dimension is None else dimension


def first_line(error: Exception) -> str:
    """Of what ONNX Runtime says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
