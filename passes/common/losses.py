"""Losses over a family's heads: tensors in, tensors out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from compressor.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def hard_cross_entropy(
    heads: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The mean cross-entropy of each head, [..., classes], whose label, [...], the batch has; a scalar each.

    Raises:
        DataError: a label is none of the classes.
    """
    losses = {}
    for name, logits in heads.items():
        if name in batch:
            try:
                losses[name] = cross_entropy(logits.flatten(0, -2), batch[name].flatten())
            except IndexError as error:
                raise DataError(
                    f"{name} {int(batch[name].max())} in the data, but the model tells {logits.shape[-1]} apart",
                    remedy="name a data set that was made for this model",
                ) from error
    return losses


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · mean of −Σ p_teacher · log p_student over logits [..., C], both softened by T (Hinton et al. 2015, section 2)."""
    target = torch.softmax(teacher / temperature, dim=-1)
    log = torch.log_softmax(student / temperature, dim=-1)
    return -(temperature**2) * (target * log).sum(dim=-1).mean()


def taught_cross_entropy(
    heads: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    taught: Mapping[str, Tensor],
    *,
    weight: float,
    temperature: float,
) -> dict[str, Tensor]:
    """For each head: w·(T²·soft cross-entropy) + (1 − w)·(hard cross-entropy), each term a scalar.

    Args:
        heads: what the student says, [..., classes] each.
        batch: the labels.
        taught: what the teacher says of the heads that both have; not looked at where the weight is 0.
        weight: of the soft labels, 0 to 1.
        temperature: of the soft labels.
    """
    losses: dict[str, Tensor] = {}
    if weight < 1:
        losses |= {
            name: (1 - weight) * term for name, term in hard_cross_entropy(heads, batch).items()
        }
    if weight > 0:
        losses |= {
            f"soft_{name}": weight * soft_cross_entropy(heads[name], logits.float(), temperature)
            for name, logits in taught.items()
        }
    return losses
