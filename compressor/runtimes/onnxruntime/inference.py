"""Inference sessions of ONNX Runtime: their options, and the exceptions that they raise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from compressor.data.contract import Batch
from compressor.errors import ModelError, UsageError
from compressor.graphs.files import MODEL, read_graph
from compressor.runtimes.call_limit import limited_call
from compressor.runtimes.onnxruntime.remedies import first_line, remedy_of

Array = np.ndarray[Any, Any]

CPU = ["CPUExecutionProvider"]
ERRORS = (
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)
"""Exceptions of ONNX Runtime, which have no common base class."""
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FATAL_ONLY = 4  # log severity: errors are raised anyway


def session_options(
    threads: int | None = None, *, optimize: bool = True, frees_early: bool = False
) -> onnxruntime.SessionOptions:
    """Return session options that log nothing but fatal errors.

    Args:
        threads: threads of one operator; None for ONNX Runtime's default.
        optimize: False disables all graph optimizations.
        frees_early: True computes what reduces a value right after it. By default ONNX Runtime
            computes added outputs last, and keeps all values until then (3.5 GB for a text
            recognizer of 11 MB, 0.3 GB with this).
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if frees_early:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def open_inference_session(
    folder: Path,
    threads: int,
    device: str = "cpu",
    name: str = MODEL,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> onnxruntime.InferenceSession:
    """Open a graph with all graph optimizations, one operator at a time.

    In a folder of the format ``ort``, the ``.ort`` file beside the graph is opened in its place.

    Args:
        folder: the model's folder.
        threads: threads of one operator.
        device: ``cpu`` or ``cuda``.
        name: file name of the graph.
        settings: session config entries, key to value.

    Raises:
        ModelError: the graph cannot be opened.
        UsageError: the installed ONNX Runtime does not support the device.
    """
    read_graph(folder / name)
    provider = _PROVIDERS.get(device.partition(":")[0])
    if provider not in onnxruntime.get_available_providers():
        raise UsageError(
            f"the installed ONNX Runtime does not support the device {device!r}",
            remedy="use --device cpu, or install onnxruntime-gpu",
        )
    options = session_options(threads)
    options.inter_op_num_threads = 1
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    converted = (folder / name).with_suffix(".ort")
    file = converted if converted.is_file() else folder / name
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=[provider])
    except ERRORS as error:
        raise ModelError(
            f"ONNX Runtime cannot open {file}: {first_line(error)}", remedy=remedy_of(error)
        ) from error


def run_limited(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[str] | None,
    feeds: Batch,
    graph: Path | None = None,
) -> list[Array]:
    """Return outputs of an open graph for a batch, within the limit of ``limit_calls``.

    Args:
        session: the open graph.
        outputs: names of outputs; None for all.
        feeds: arrays of the graph's inputs.
        graph: the file that an error names; default: that of ``limit_calls``.

    Raises:
        CallTimeoutError: the call did not end in time.
    """
    options = onnxruntime.RunOptions()

    def stop() -> None:
        options.terminate = True

    with limited_call(feeds, stop=stop, model=graph):
        results: list[Array] = session.run(outputs, feeds, options)
    return results
