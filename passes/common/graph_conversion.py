"""Conversion of an ONNX graph by the converter of another program: its estimate and its failure."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from compressor.artifacts.causes import describe_ending, failed_child
from compressor.engine.contract import Estimate
from compressor.models.facts import ModelFacts

_BASE_MEMORY_BYTES = 400_000_000
_WEIGHT_COPIES = 4
"""The graph's, its converted form's, the file's and the runtime's packed weights."""
_TAIL_LINES = 8


def conversion_estimate(parent: ModelFacts, size_ratio: float) -> Estimate:
    """Return the estimate of a file that is written beside a copy of its graph.

    Args:
        parent: facts of the graph.
        size_ratio: size of the file as a part of the graph's.
    """
    size = parent.size_bytes
    if size is None:
        return Estimate(parent)
    written = int(size_ratio * size)
    return Estimate(
        replace(parent, size_bytes=written),
        peak_memory_bytes=_BASE_MEMORY_BYTES + _WEIGHT_COPIES * size,
        disk_bytes=size + written,
    )


def describe_failure(process: subprocess.CompletedProcess[str], folder: Path) -> str:
    """Return how a converter ended, and what it printed last: ``exited with code 1: …``.

    Args:
        process: the converter, which has ended.
        folder: the folder that it wrote to.

    Raises:
        ResourceError: it was killed, or memory ran out.
        StorageError: the disk is full, or the folder cannot be written.
    """
    lines = [line for line in (process.stdout + process.stderr).splitlines() if line.strip()]
    tail = "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:])
    subject = "the process that converts the graph"
    if (cause := failed_child(process.returncode, subject, tail, folder)) is not None:
        raise cause
    return f"{describe_ending(process.returncode)}:\n{tail}"
