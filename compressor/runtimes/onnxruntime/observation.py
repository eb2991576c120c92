"""Values inside a graph, computed by ONNX Runtime on real samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
from onnxscript import ir

from compressor.data.contract import Batch
from compressor.errors import PassError
from compressor.graphs.files import MODEL, PROTOBUF_LIMIT_BYTES
from compressor.graphs.saving import initializer_bytes, save_model
from compressor.runtimes.onnxruntime.inference import CPU, ERRORS, run_limited, session_options
from compressor.runtimes.onnxruntime.integer_kernels import EMULATED_PRODUCTS
from compressor.runtimes.onnxruntime.remedies import first_line, remedy_of

Array = np.ndarray[Any, Any]
_BYTES_AT_ONCE = 512 << 20
"""Bytes that one call returns, once sizes are known."""
_VALUES_AT_FIRST = 32
"""Values that one call returns before sizes are known."""


def open_graph(
    model: ir.Model, threads: int | None = None, *, optimize: bool = True
) -> onnxruntime.InferenceSession:
    """Open a graph in memory; beyond 2 GB it is written into a temporary folder.

    Rounded products are computed in float: what is observed depends on the graph alone, and not on
    whether the processor saturates integer products.

    Raises:
        PassError: ONNX Runtime cannot open it.
    """
    if initializer_bytes(model) <= PROTOBUF_LIMIT_BYTES:
        return _open(ir.to_proto(model).SerializeToString(), threads, optimize)
    with TemporaryDirectory() as folder:
        save_model(model, Path(folder), external=True)
        return open_file(Path(folder) / MODEL, threads, optimize=optimize)


def open_file(
    file: Path, threads: int | None = None, *, optimize: bool = True
) -> onnxruntime.InferenceSession:
    """Open a file as ``open_graph`` opens a graph.

    Raises:
        PassError: ONNX Runtime cannot open it.
    """
    return _open(str(file), threads, optimize)


def _open(
    content: str | bytes, threads: int | None, optimize: bool
) -> onnxruntime.InferenceSession:
    options = session_options(threads, optimize=optimize, frees_early=True)
    for key, setting in EMULATED_PRODUCTS.items():
        options.add_session_config_entry(key, setting)
    try:
        return onnxruntime.InferenceSession(content, options, providers=CPU)
    except ERRORS as error:
        raise PassError(
            f"ONNX Runtime cannot open the graph: {first_line(error)}", remedy=remedy_of(error)
        ) from error


def observe_values(
    model: ir.Model,
    names: Sequence[str],
    batches: Iterable[Batch],
    observe: Callable[[str, Array, Batch], None],
    threads: int | None = None,
) -> None:
    """Compute values inside a graph on samples, and pass each on.

    Args:
        model: the graph; it is not changed.
        names: names of values that are inputs of the main graph, or that its nodes compute.
        batches: feeds of the graph's inputs.
        observe: called as ``observe(name, values, feeds)`` for each value and batch.
        threads: threads of one operator; None for ONNX Runtime's default.

    Raises:
        PassError: ONNX Runtime cannot run the graph.
    """
    inputs = {str(value.name) for value in model.graph.inputs}
    computed = [name for name in names if name not in inputs]
    session = open_graph(_with_outputs(model, computed), threads)
    groups = [
        computed[start : start + _VALUES_AT_FIRST]
        for start in range(0, len(computed), _VALUES_AT_FIRST)
    ]
    for number, feeds in enumerate(batches):
        for name in names:
            if name in inputs:
                observe(name, feeds[name], feeds)
        sizes: dict[str, int] = {}
        for group in groups:
            for name, values in zip(group, run_graph(session, group, feeds), strict=True):
                sizes[name] = values.nbytes
                observe(name, values, feeds)
        if not number:
            groups = _groups(sizes)


def _groups(sizes: dict[str, int]) -> list[list[str]]:
    """Return names in groups whose values have at most ``_BYTES_AT_ONCE`` together."""
    groups: list[list[str]] = []
    held = _BYTES_AT_ONCE + 1
    for name, size in sizes.items():
        if held + size > _BYTES_AT_ONCE:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


def run_graph(
    session: onnxruntime.InferenceSession, outputs: Sequence[str] | None, feeds: Batch
) -> list[Array]:
    """Return outputs of a graph for a batch.

    Raises:
        PassError: ONNX Runtime failed inside the graph.
        CallTimeoutError: the call did not end in time.
    """
    try:
        return run_limited(session, outputs, feeds)
    except ERRORS as error:
        raise PassError(
            f"ONNX Runtime cannot run the graph: {first_line(error)}", remedy=remedy_of(error)
        ) from error


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy of a graph with these values as outputs too."""
    copy = model.clone()
    present = {value.name for value in copy.graph.outputs}
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(values[name] for name in names if name not in present)
    return copy
