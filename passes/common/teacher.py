"""What a student can learn from a teacher of its family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from compressor.data.contract import Dataset
from compressor.errors import RequirementError
from passes.common.accuracy import device_of, tensors_from_batch


def probe(
    student: nn.Module, teacher: nn.Module, train: Dataset
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What student and teacher say of two samples."""
    batch = tensors_from_batch(
        train.batch(np.arange(min(2, len(train)), dtype=np.int64)), device_of(student)
    )
    inputs = {name: batch[name] for name in train.input_names}
    with torch.no_grad():
        return student.eval()(**inputs), teacher(**inputs)


def soft_heads(
    student: dict[str, Tensor], teacher: dict[str, Tensor], note: Callable[[str], None]
) -> tuple[str, ...]:
    """The heads that a student can learn from its teacher: those with as many classes, for the same things.

    ``note`` is told of the others.

    Raises:
        RequirementError: the answers themselves differ.
    """
    shared = tuple(
        name for name in student if name in teacher and student[name].shape == teacher[name].shape
    )
    if "label" not in shared:
        ours, theirs = student["label"].shape[-1], teacher["label"].shape[-1]
        raise RequirementError(
            f"the teacher has {theirs} answers and the student {ours}: they must be the same"
        )
    if left_out := [name for name in student if name not in shared]:
        note(f"no soft labels for {', '.join(left_out)}: the teacher's are of another shape")
    return shared
