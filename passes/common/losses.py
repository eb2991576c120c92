"""Cross-entropy of a model's heads with labels, and with the logits of a teacher.

A head is a tensor of logits [..., C] over C classes, by the name of its label: see
``compressor/models/capabilities/training_heads.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from compressor.errors import DataError, RequirementError
from passes.common.device import device_of, tensors_from_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from compressor.data.contract import Dataset


def hard_cross_entropy(
    heads: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the mean cross-entropy of each head whose label is in the batch, a scalar each.

    Args:
        heads: Logits [..., C] by name.
        batch: Labels [...] by the same names, among other tensors.

    Raises:
        DataError: A label is not below the number of classes.
    """
    losses = {}
    for name, logits in heads.items():
        if name not in batch:
            continue
        try:
            losses[name] = cross_entropy(logits.flatten(0, -2), batch[name].flatten())
        except IndexError as error:
            raise DataError(
                f"{name} {int(batch[name].max())} in the data, "
                f"but the model has {logits.shape[-1]} classes, counted from 0",
                remedy="name a data set that was made for this model",
            ) from error
    return losses


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · mean(−Σ p_teacher · log p_student), a scalar.

    Both distributions are softmaxes of logits [..., C] divided by the temperature T. The factor T²
    keeps the size of the gradient independent of T (Hinton et al. 2015, section 2).
    """
    target = torch.softmax(teacher / temperature, dim=-1)
    log = torch.log_softmax(student / temperature, dim=-1)
    return -(temperature**2) * (target * log).sum(dim=-1).mean()


def distillation_losses(
    heads: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    *,
    weight: float,
    temperature: float,
) -> dict[str, Tensor]:
    """Return (1 − w) · hard cross-entropy and w · soft cross-entropy of each head, as scalars.

    Args:
        heads: Logits [..., C] of the student by name.
        batch: Labels [...] by the same names, among other tensors.
        teacher: Logits of the teacher, of the heads that both models have; unused if ``weight`` is
            0.
        weight: Weight w of the soft labels, 0 to 1.
        temperature: Temperature T of the soft labels.

    Returns:
        The hard term of a head under its name, the soft one under ``soft_<name>``.

    Raises:
        DataError: A label is not below the number of classes.
    """
    losses: dict[str, Tensor] = {}
    if weight < 1:
        losses |= {
            name: (1 - weight) * term for name, term in hard_cross_entropy(heads, batch).items()
        }
    if weight > 0:
        losses |= {
            f"soft_{name}": weight * soft_cross_entropy(heads[name], logits.float(), temperature)
            for name, logits in teacher.items()
        }
    return losses


def probe_outputs(
    student: nn.Module, teacher: nn.Module, dataset: Dataset
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the outputs of student and teacher for the first two samples; sets eval mode."""
    indices = np.arange(min(2, len(dataset)), dtype=np.int64)
    batch = tensors_from_batch(dataset.batch(indices), device_of(student))
    inputs = {name: batch[name] for name in dataset.input_names}
    with torch.no_grad():
        return student.eval()(**inputs), teacher(**inputs)


def shared_heads(
    student: dict[str, Tensor], teacher: dict[str, Tensor], note: Callable[[str], None]
) -> tuple[str, ...]:
    """Return the names of the heads that have the same shape in student and teacher.

    The other heads get no soft labels; ``note`` is called with a line that lists them.

    Raises:
        RequirementError: The main head ``label`` has another number of classes in the teacher.
    """
    shared = tuple(
        name for name in student if name in teacher and student[name].shape == teacher[name].shape
    )
    if "label" not in shared:
        classes = student["label"].shape[-1], teacher["label"].shape[-1]
        raise RequirementError(
            f"the student has {classes[0]} classes and the teacher {classes[1]}",
            remedy="use a teacher and a student of the same number of classes",
        )
    if unshared := [name for name in student if name not in shared]:
        note(f"no soft labels for {', '.join(unshared)}: the teacher's have another shape")
    return shared
