"""Architecture and initial weights of the student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.config import discovery
from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.capabilities.feature_taps import FeatureTaps
from compressor.models.facts import ModelFacts, planned_facts
from passes.common.config import training_problems
from passes.common.field_problems import FieldProblem, check_no_problems
from passes.distill.config import DistillConfig, Features, Student

if TYPE_CHECKING:
    from torch import nn


def student_architecture(student: Student, parent: Architecture) -> Architecture:
    """Return the architecture of the student.

    Raises:
        RequirementError: The family has no such preset, or the replaced fields are invalid.
    """
    family = parent.family
    preset = student.slim if isinstance(student.slim, str) else student.preset
    if preset is not None:
        if preset not in family.presets:
            raise RequirementError(
                f"`student`: {family.name} has no preset {preset!r}",
                remedy=discovery.suggestion(preset, list(family.presets)),
            )
        return Architecture(family, family.presets[preset])
    fields = student.config if student.config is not None else student.slim
    if not isinstance(fields, dict):
        return parent
    try:
        return Architecture(family, family.slim(parent.config, **fields))
    except ValueError as error:
        raise RequirementError(
            f"`student`: these fields do not fit a config of {family.name}: {error}"
        ) from error


def student_facts(student: Student, parent: ModelFacts) -> ModelFacts:
    """Return the facts of the student; those of the parent if its architecture is unknown.

    Raises:
        RequirementError: As ``student_architecture``.
    """
    architecture = parent.architecture()
    if architecture is None or student.parent is not None:
        return parent
    return planned_facts(student_architecture(student, architecture))


def check_models(config: DistillConfig, student: ModelFacts, teacher: ModelFacts) -> None:
    """Check that the teacher has the student's family, and that the fields apply to the student.

    Raises:
        RequirementError: The message names every field that does not apply. Unknown facts are not
            checked.
    """
    problems = training_problems(config.training, "training", student)
    if None not in (student.family, teacher.family) and student.family != teacher.family:
        problems.append(
            FieldProblem(
                "teacher",
                f"it is of the family {teacher.family}, and the student of {student.family}",
                "name a teacher of the student's family",
            )
        )
    if config.features is not None:
        problems += _feature_problems(config.features, student, teacher)
    check_no_problems(problems)


def _feature_problems(
    features: Features, student: ModelFacts, teacher: ModelFacts
) -> list[FieldProblem]:
    """Return the hidden states and modules that the models lack, as far as they are known."""
    problems = []
    architectures = student.architecture(), teacher.architecture()
    if features.modules and None not in architectures:
        from passes.distill.module_shapes import shape_problems
        from passes.distill.module_taps import path_problems

        first, second = architectures
        assert first is not None and second is not None  # noqa: S101 - checked above
        problems += path_problems(features.modules, first, second)
        problems = problems or shape_problems(features.modules, first, second)
    if student.config is None or (features.modules and not features.names):
        return problems
    taps = student.capability(FeatureTaps)
    return problems + _name_problems(features, () if taps is None else taps.names)


def _name_problems(features: Features, names: tuple[str, ...]) -> list[FieldProblem]:
    if not names:
        return [
            FieldProblem(
                "features",
                "the student has no hidden states with names",
                "name modules of student and teacher in `features.modules`, or leave `features` "
                "out",
            )
        ]
    if unknown := [name for name in features.names if name not in names]:
        return [
            FieldProblem(
                "features.names",
                f"the student has no hidden state {', '.join(map(repr, unknown))}",
                f"its hidden states are {', '.join(names)}",
            )
        ]
    return []


def copy_matching(student: nn.Module, teacher: nn.Module) -> int:
    """Copy each tensor of the teacher that has the same name and shape in the student.

    Returns:
        The number of tensors copied.
    """
    source, target = teacher.state_dict(), student.state_dict()
    matching = {
        name: source[name]
        for name, tensor in target.items()
        if name in source and source[name].shape == tensor.shape
    }
    student.load_state_dict(target | matching)
    return len(matching)
