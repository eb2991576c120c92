"""Graphs as sessions of ONNX Runtime, and what it raises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from compressor.errors import ModelError, UsageError
from compressor.graphs.files import MODEL, read_graph

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SILENT = 4  # severity: fatal only; what matters is raised
ERRORS = (
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)


def opened(
    folder: Path,
    threads: int,
    device: str = "cpu",
    name: str = MODEL,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> onnxruntime.InferenceSession:
    """A folder's ``model.onnx``, or another of its graphs, with all optimizations, and settings of the session by their keys.

    Raises:
        ModelError: it cannot be opened.
        UsageError: ONNX Runtime cannot compute on the device.
    """
    read_graph(folder / name)
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
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(str(folder / name), options, providers=[provider])
    except ERRORS as error:
        raise ModelError(
            f"ONNX Runtime cannot open {folder / name}: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """Of what ONNX Runtime says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
