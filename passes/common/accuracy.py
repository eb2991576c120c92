"""How well a module answers on a data set, as the training loop sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from passes.common.device import device_of, tensors_from_batch

if TYPE_CHECKING:
    from compressor.data.contract import Dataset


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Right or wrong, sample by sample."""

    correct: np.ndarray[Any, Any]
    """[N]: whether the answer was right; of a language model, the part of the tokens that were."""
    loss: np.ndarray[Any, np.dtype[np.float32]]
    """[N]: cross-entropy with the label, or the labels' mean."""
    slices: dict[str, float]
    """Accuracy by slice, as ``{"input=speech": 0.75}``."""

    @property
    def accuracy(self) -> float:
        """The part of all samples that was right."""
        return float(self.correct.mean())


def _of_samples(values: Tensor) -> np.ndarray[Any, Any]:
    """One value for each sample: where a sample has an answer for each token, their mean."""
    return (values if values.ndim == 1 else values.float().flatten(1).mean(dim=1)).cpu().numpy()


def evaluate_accuracy(
    model: nn.Module, dataset: Dataset, batch_size: int, limit: int | None = None
) -> Evaluation:
    """Answer every sample (or the first ``limit``) of a labelled set in evaluation mode; the model's mode is left as it was."""
    training, device = model.training, device_of(model)
    model.eval()
    correct, losses = [], []
    with torch.inference_mode():
        for batch in dataset.batches(batch_size, limit):
            tensors = tensors_from_batch(batch, device)
            label = tensors[str(dataset.label_name)]
            logits = model(**{name: tensors[name] for name in dataset.input_names})[
                "logits"
            ].float()
            loss = cross_entropy(logits.flatten(0, -2), label.flatten(), reduction="none").view(
                label.shape
            )
            correct.append(_of_samples(logits.argmax(dim=-1) == label))
            losses.append(_of_samples(loss))
    model.train(training)
    right = np.concatenate(correct)
    slices = {
        f"{axis}={value}": float(right[labels[: len(right)] == value].mean())
        for axis, labels in dataset.slices().items()
        for value in np.unique(labels[: len(right)]).tolist()
    }
    return Evaluation(right, np.concatenate(losses), slices)
