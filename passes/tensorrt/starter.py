"""Fields of a first ``tensorrt`` step for a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.engine.contract import StarterModel
from compressor.models.capabilities.signature import REST, InputSpec
from compressor.runtimes.tensorrt.backends import BACKENDS
from compressor.runtimes.tensorrt.cuda import list_gpus
from compressor.runtimes.working_inputs import SIZES

_COMMON_TARGET = "sm86"
_BATCH = (1, 1, 8)
"""Smallest, best and largest batch."""
_OTHERS = ((1, 128, 512), (16, 128, 512), (32, 224, 640))
"""Candidates for smallest, best and largest size of every other dynamic dimension; the first that
the model runs with is taken."""


def starter_fields(model: StarterModel) -> Mapping[str, Any]:
    """Return targets, precision, samples and profiles of a first step.

    Without samples that show what would overflow, the engine computes in FP32.
    """
    profiles = _profiles(model)
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


def _profiles(model: StarterModel) -> dict[str, dict[str, list[int]]]:
    """Return a profile of each input of the graph with dynamic dimensions.

    Dimensions of one name have one range: that of a batch, or the size that the samples have.
    """
    sampled = model.inputs or ()
    stated = None if model.facts.graph_inputs is None else model.facts.graph_inputs()
    declared = {spec.name: spec for spec in stated or sampled if REST not in spec.shape}
    pairs = [(declared.get(spec.name, spec), spec) for spec in sampled]
    dimensions = [
        (size, known, axis)
        for spec, sample in pairs
        for axis, (size, known) in enumerate(zip(spec.shape, sample.shape, strict=True))
        if isinstance(size, str)
    ]
    ranges: dict[str, tuple[int, int, int]] = {}
    for size, known, axis in sorted(dimensions, key=_precedence):
        if size not in ranges:
            ranges[size] = _range(model, known, axis)
    return {spec.name: _profile(spec, ranges) for spec, _ in pairs if _is_dynamic(spec)}


def _is_dynamic(spec: InputSpec) -> bool:
    return any(isinstance(size, str) for size in spec.shape)


def _precedence(dimension: tuple[str, int | str, int]) -> int:
    """Return 0 for a batch, 1 for a known size and 2 for others."""
    _, known, axis = dimension
    if isinstance(known, int):
        return 1
    return 2 if axis else 0


def _range(model: StarterModel, known: int | str, axis: int) -> tuple[int, int, int]:
    if isinstance(known, int):
        return (known, known, known)
    return _working_range(model) if axis else _BATCH


def _working_range(model: StarterModel) -> tuple[int, int, int]:
    """Return the sizes of a dimension without samples: a range, or else one size, that works."""
    runs = model.runs
    if runs is None:
        return _OTHERS[0]
    singles = ((size, size, size) for size in SIZES)
    return next((each for each in (*_OTHERS, *singles) if all(map(runs, each))), _OTHERS[0])


def _profile(spec: InputSpec, ranges: Mapping[str, tuple[int, int, int]]) -> dict[str, list[int]]:
    sizes = [(size,) * 3 if isinstance(size, int) else ranges[size] for size in spec.shape]
    low, best, high = zip(*sizes, strict=True)
    return {"min": list(low), "opt": list(best), "max": list(high)}
