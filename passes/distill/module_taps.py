"""Outputs of submodules of student and teacher, as features to match.

Shapes: B batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.families.module.interface import tensors_in
from passes.common.field_problems import FieldProblem
from passes.common.unweighted import build_without_values

FIELD = "features.modules"
_VECTOR_RANK, _IMAGE_RANK = 2, 4
PAIR_REMEDY = (
    "name modules that every call runs, with outputs [batch, width], [batch, positions, width] or "
    "square maps [batch, width, height, width] of the same samples"
)
_NEAR = 3
"""Names that a message lists for an unknown one."""


@dataclass(frozen=True, slots=True)
class ModuleOutputs:
    """First tensor that each module returned in the last call, by the module's path."""

    tensors: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def record_outputs(model: nn.Module, paths: tuple[str, ...]) -> Iterator[ModuleOutputs]:
    """Keep the outputs of modules within the block; gradients flow through them."""
    outputs = ModuleOutputs()
    handles: list[Any] = [
        model.get_submodule(path).register_forward_hook(_recorder(outputs.tensors, path))
        for path in paths
    ]
    handles.append(model.register_forward_pre_hook(lambda *_: outputs.tensors.clear()))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _recorder(tensors: dict[str, Tensor], path: str) -> Any:
    def record(module: nn.Module, arguments: Any, returned: Any) -> None:
        del module, arguments
        found = next((tensor for _, tensor in tensors_in(returned)), None)
        if found is not None:
            tensors[path] = found

    return record


def path_problems(
    modules: Mapping[str, str], student: Architecture, teacher: Architecture
) -> list[FieldProblem]:
    """Return the paths that student or teacher lack, each with the names that are nearest to it."""
    problems = []
    models = (("student", student, modules.keys()), ("teacher", teacher, modules.values()))
    for role, architecture, paths in models:
        names = module_names(architecture)
        problems += [
            FieldProblem(FIELD, f"the {role} has no module {path!r}", _near(path, names))
            for path in dict.fromkeys(paths)
            if path not in names
        ]
    return problems


def module_names(architecture: Architecture) -> list[str]:
    """Return the paths of all submodules of a model, built without values where possible."""
    return [name for name, _ in build_without_values(architecture)[0].named_modules() if name]


def _near(path: str, names: list[str]) -> str:
    near = get_close_matches(path, names, n=_NEAR, cutoff=0.5)
    near = near or [name for name in names if name.endswith(f".{path}")][:_NEAR]
    if near:
        return f"near names: {', '.join(near)}"
    tops = [name for name in names if "." not in name]
    return f"name a path of `named_modules()`; the model has {', '.join(tops)} and what they hold"


@dataclass(frozen=True, slots=True)
class ModulePair:
    """A module of the student and one of the teacher whose outputs are matched."""

    student: str
    teacher: str
    width_axes: tuple[int, int]
    """Axes of the two outputs on which the widths lie, which may differ."""
    grid: tuple[int, ...] | None = None
    """Positions to which both outputs are averaged where theirs differ: height and width of two
    maps, or none for the mean of all. None if they have the same positions."""

    def features(self, outputs: ModuleOutputs, *, of_student: bool) -> Tensor:
        """Return the output of one of the modules, float32 [..., D].

        Raises:
            RequirementError: the last call did not run the module, as models with layer drop do.
        """
        path = self.student if of_student else self.teacher
        if path not in outputs.tensors:
            raise RequirementError(
                f"`{FIELD}`: a call in training did not run the module {path!r}",
                remedy="name modules that every call runs, or set the layer drop of the student's "
                "config to 0",
            )
        axis = self.width_axes[0 if of_student else 1]
        values = outputs.tensors[path].float().movedim(axis, -1)
        if self.grid is None:
            return values
        if not self.grid:
            return values if values.ndim == _VECTOR_RANK else values.flatten(1, -2).mean(1)
        height, width = self.grid
        pooled = functional.adaptive_avg_pool2d(values.movedim(-1, 1), (height, width))
        return pooled.movedim(1, -1)


def pair_modules(
    modules: Mapping[str, str], student: ModuleOutputs, teacher: ModuleOutputs
) -> list[ModulePair]:
    """Return the pairs of modules, from outputs of both models for the same samples.

    Raises:
        RequirementError: modules were not called or return no tensor, or their outputs do not
            fit; all are named.
    """
    pairs, problems = match_modules(modules, student, teacher)
    if problems:
        raise RequirementError(
            "; ".join(f"`{FIELD}`: {problem}" for problem in problems.values()), remedy=PAIR_REMEDY
        )
    return pairs


def match_modules(
    modules: Mapping[str, str], student: ModuleOutputs, teacher: ModuleOutputs
) -> tuple[list[ModulePair], dict[str, str]]:
    """Return the pairs that fit, and a problem for each other path of the student."""
    pairs, problems = [], {}
    for first, second in modules.items():
        missing = [
            f"{path!r} of the {role} returned no tensor: `forward` does not call it"
            for role, path, outputs in (("student", first, student), ("teacher", second, teacher))
            if path not in outputs.tensors
        ]
        if missing:
            problems[first] = "; ".join(missing)
            continue
        shapes = student.tensors[first].shape, teacher.tensors[second].shape
        pair = _paired(first, second, shapes)
        if pair is None:
            problems[first] = (
                f"{first!r} returns {list(shapes[0])} in the student, and {second!r} "
                f"{list(shapes[1])} in the teacher"
            )
        else:
            pairs.append(pair)
    return pairs, problems


def _paired(student: str, teacher: str, shapes: tuple[torch.Size, torch.Size]) -> ModulePair | None:
    """Return two modules whose outputs have these shapes as a pair; None if they do not fit."""
    if (axis := _width_axis(*shapes)) is not None:
        return ModulePair(student, teacher, (axis, axis))
    first, second = map(_channel_axis, shapes)
    if first is None or second is None or shapes[0][0] != shapes[1][0]:
        return None
    grid: tuple[int, ...] = ()
    if len(shapes[0]) == len(shapes[1]) == _IMAGE_RANK:
        sizes = [
            [size for axis, size in enumerate(shape) if axis not in (0, channels)]
            for shape, channels in zip(shapes, (first, second), strict=True)
        ]
        grid = tuple(map(min, *sizes))
    return ModulePair(student, teacher, (first, second), grid)


def _channel_axis(shape: torch.Size) -> int | None:
    """Return the axis of the widths of vectors, tokens or a map; None if it is not clear."""
    if len(shape) != _IMAGE_RANK:
        return len(shape) - 1 if _VECTOR_RANK <= len(shape) < _IMAGE_RANK else None
    is_first, is_last = shape[2] == shape[3], shape[1] == shape[2]
    if is_first == is_last:
        return None
    return 1 if is_first else _IMAGE_RANK - 1


def _width_axis(student: torch.Size, teacher: torch.Size) -> int | None:
    """Return the axis of the widths; None if the outputs differ in more.

    It is the axis that differs. Of equal shapes it is the last, or that of the channels of images.
    """
    if len(student) != len(teacher) or len(student) < 2:
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(student, teacher, strict=True)) if a != b]
    if len(differing) > 1 or differing == [0]:
        return None
    if differing:
        return differing[0]
    channels_last = student[1] == student[2] != student[3] if len(student) == _IMAGE_RANK else True
    return len(student) - 1 if channels_last else 1
