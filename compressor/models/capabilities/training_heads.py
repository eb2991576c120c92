"""Logits that training compares with labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.models.capabilities.capability import Capability
from compressor.models.capabilities.signature import Signature

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class TrainingHeads(Capability):
    """Logits by the name of their label.

    ``train``, ``distill``, ``prune`` and ``qat`` compute the cross-entropy of each head with the
    labels of the batch, and with the same head of a teacher.
    """

    label: ClassVar[str] = "training heads"
    remedy: ClassVar[str] = "train a model with an output `logits`"

    logits: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
    """Map the module and the outputs of ``forward`` to logits [..., classes] by label name.

    ``label`` is the task itself. Other heads are auxiliary: they count where the batch, or the
    teacher, has labels of their name.
    """


def main_head(module: nn.Module, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``logits`` as the head ``label``."""
    del module
    return {"label": outputs["logits"]}


def heads_from_signature(signature: Signature) -> TrainingHeads | None:
    """Return the head of a model with an output ``logits``; None for other models."""
    return TrainingHeads(main_head) if "logits" in signature.outputs else None
