"""Shapes of the outputs of modules that ``distill`` matches, before there is data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from compressor.models.architecture import Architecture
from compressor.models.capabilities.signature import REST, InputSpec
from compressor.models.families.transformers.generic.sample import sample_batch
from passes.common.field_problems import FieldProblem
from passes.common.unweighted import build_without_values
from passes.distill.module_taps import (
    FIELD,
    PAIR_REMEDY,
    ModuleOutputs,
    match_modules,
    record_outputs,
)

_MOST_PARAMETERS_TO_RUN = 20_000_000
"""Models that do not run on meta tensors are run while planning up to this size."""
_SCALES = (1, 2)
"""Factors of the variable sizes of the samples."""


def shape_problems(
    modules: Mapping[str, str], student: Architecture, teacher: Architecture
) -> list[FieldProblem]:
    """Return the pairs of modules whose outputs do not fit, as far as runs without data show it.

    Both models run on samples of two sizes, since an axis of one size may look like another. A
    model that does not run on them, such as one that is large and reads values, is not checked.
    """
    models = [build_without_values(architecture) for architecture in (student, teacher)]
    architectures = (student, teacher)
    if any(
        device == "cpu" and _parameters(architecture) > _MOST_PARAMETERS_TO_RUN
        for (_, device), architecture in zip(models, architectures, strict=True)
    ):
        return []
    found: list[dict[str, str]] = []
    for scale in _SCALES:
        outputs = [
            _sample_outputs(module.eval(), architecture, paths, device, scale)
            for (module, device), architecture, paths in zip(
                models, architectures, (tuple(modules), tuple(modules.values())), strict=True
            )
        ]
        if None in outputs:
            return []
        first, second = (output for output in outputs if output is not None)
        found.append(match_modules(modules, first, second)[1])
    return [
        FieldProblem(FIELD, problem, PAIR_REMEDY)
        for path, problem in found[0].items()
        if all(path in problems for problems in found)
    ]


def _parameters(architecture: Architecture) -> int:
    return sum(architecture.family.parameters(architecture.config).values())


def _sample_outputs(
    model: nn.Module, architecture: Architecture, paths: tuple[str, ...], device: str, scale: int
) -> ModuleOutputs | None:
    """Return the outputs of modules for samples whose variable sizes are multiplied by a scale.

    None if the model does not run on them.
    """
    inputs = architecture.signature.required_inputs
    if any(REST in spec.shape for spec in inputs):
        return None
    usual = sample_batch(inputs)
    scaled = [_scaled(spec, tuple(usual[spec.name].shape), scale) for spec in inputs]
    try:
        with torch.no_grad(), record_outputs(model, tuple(dict.fromkeys(paths))) as outputs:
            model(**sample_batch(scaled, device=device))
            return ModuleOutputs(dict(outputs.tensors))
    except Exception:  # noqa: BLE001  it reads values, or takes samples of other sizes
        return None


def _scaled(spec: InputSpec, shape: tuple[int, ...], scale: int) -> InputSpec:
    """Return an input of the shape with its variable sizes, but the batch's, multiplied."""
    sizes = [
        size if isinstance(size, int) else min(scale * found, spec.longest or scale * found)
        for size, found in zip(spec.shape[1:], shape[1:], strict=True)
    ]
    return replace(spec, shape=(spec.shape[0], *sizes))
