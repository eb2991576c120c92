"""Operators of ONNX that MNN's converter reads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from passes.common.reproducible_child import run_module

_START, _END = "Dump ONNX support Ops", "Total:"


def missing_operators(operators: Mapping[str, int]) -> dict[str, int]:
    """Return the operators that the installed converter lacks, with their number."""
    supported = _supported()
    return {name: count for name, count in operators.items() if name not in supported}


@cache
def _supported() -> frozenset[str]:
    """Return the operators that the converter lists."""
    with TemporaryDirectory() as folder:
        process = run_module("passes.export_mnn.converter", ["-f", "ONNX", "--OP"], Path(folder))
    listed = process.stdout.partition(_START)[2].partition(_END)[0].split()
    assert listed, f"MNN's converter lists no operators: {process.stderr}"  # noqa: S101 - as 3.6.1
    return frozenset(listed)
