"""Cross-entropy of a model's heads with labels, and with the logits of a teacher.

A head is a tensor of logits [..., C] over C classes, or [N, C, H, W] of images, by the name of its
label: see ``compressor/models/capabilities/training_heads.py``. A head of one class is a score: its
loss is the squared error. The cross-entropy is that of ``contrastive.py``: with the phone model's
concepts, whose logits are cosines by a temperature, it is InfoNCE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import mse_loss

from compressor.errors import DataError, RequirementError
from passes.common.contrastive import directed_infonce
from passes.common.device import device_of, tensors_from_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from compressor.data.contract import Dataset

_IMAGE_RANK = 4


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
            losses[name] = _hard_loss(name, logits, batch[name])
        except IndexError as error:
            raise DataError(
                f"{name} {int(batch[name].max())} in the data, "
                f"but the model has {logits.shape[-1]} classes, counted from 0",
                remedy="name a data set that was made for this model",
            ) from error
    return losses


def _hard_loss(name: str, logits: Tensor, label: Tensor) -> Tensor:
    """Return the mean cross-entropy over the positions whose label is not -100.

    Of scores it is the mean squared error.

    Raises:
        DataError: labels are scores and logits are of classes, or the reverse.
    """
    logits = classes_last(logits, label)
    is_score = logits.shape[-1] == 1
    if label.is_floating_point() != is_score:
        kinds = ("scores", "numbers of classes")
        given, expected = kinds if label.is_floating_point() else kinds[::-1]
        raise DataError(
            f"the data has {given} as {name}, and the model expects {expected}: its logits are "
            f"{list(logits.shape)}",
            remedy="name a data set that was made for this model; scores are written with a "
            "decimal point",
        )
    if label.numel() * logits.shape[-1] != logits.numel():
        raise DataError(
            f"logits {list(logits.shape)} and {name} {list(label.shape)} do not fit",
            remedy="name a data set with one label per position of the model's output",
        )
    if is_score:
        return mse_loss(logits.flatten(), label.flatten().to(logits.dtype))
    return directed_infonce(logits.flatten(0, -2), label.flatten())


def classes_last(logits: Tensor, label: Tensor) -> Tensor:
    """Return logits [..., C]; those of images [N, C, H, W] are permuted."""
    if logits.ndim == _IMAGE_RANK and label.shape != logits.shape[:-1]:
        return logits.movedim(1, -1)
    return logits


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · mean(−Σ p_teacher · log p_student), a scalar.

    Both distributions are softmaxes of logits [..., C] divided by the temperature T. The factor T²
    keeps the size of the gradient independent of T (Hinton et al. 2015, section 2). Of scores,
    logits of one class, the mean squared error is returned.
    """
    if student.shape[-1] == 1:
        return mse_loss(student, teacher)
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
