"""Fields of a first ``tensorrt`` step for a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.engine.contract import StarterModel
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.tensorrt.backends import BACKENDS
from compressor.runtimes.tensorrt.cuda import list_gpus

_COMMON_TARGET = "sm86"
_BATCH = (1, 1, 8)
"""Smallest, best and largest batch."""
_OTHER = (1, 128, 512)
"""Smallest, best and largest size of every other dynamic dimension."""


def starter_fields(model: StarterModel) -> Mapping[str, Any]:
    """Return targets, precision, samples and profiles of a first step.

    Without samples that show what would overflow, the engine computes in FP32.
    """
    profiles = {spec.name: _profile(spec) for spec in model.inputs or () if _is_dynamic(spec)}
    precision: dict[str, Any] = {"precision": "fp32"}
    if model.data is not None:
        precision = {"calibration": {"data": model.data}}
    return {**_targets(), **precision, **({"profiles": profiles} if profiles else {})}


def _targets() -> dict[str, Any]:
    """Return backend and targets: the GPU of this machine, or a common one."""
    rtx, trt = BACKENDS["rtx"], BACKENDS["trt"]
    if trt.installed and not rtx.installed:
        return {}
    present = [gpu.target for gpu in list_gpus() if gpu.target in rtx.targets]
    targets = {"targets": [present[0] if present else _COMMON_TARGET]}
    return {"backend": "rtx", **targets} if trt.installed else targets


def _is_dynamic(spec: InputSpec) -> bool:
    return any(isinstance(size, str) for size in spec.shape)


def _profile(spec: InputSpec) -> dict[str, list[int]]:
    ranges = [
        (size, size, size) if isinstance(size, int) else _OTHER if axis else _BATCH
        for axis, size in enumerate(spec.shape)
    ]
    low, best, high = zip(*ranges, strict=True)
    return {"min": list(low), "opt": list(best), "max": list(high)}
