"""Accuracy of a module on a labelled data set, for training and for choosing layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compressor.errors import DataError
from compressor.evaluation.metrics import IGNORED_LABEL
from passes.common.device import device_of, tensors_from_batch
from passes.common.losses import classes_last

if TYPE_CHECKING:
    from compressor.data.contract import Dataset


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Correctness and loss of N samples."""

    correct: np.ndarray[Any, Any]
    """[N]: True where the predicted class is the label; the part of correct tokens for language
    models."""
    loss: np.ndarray[Any, np.dtype[np.float32]]
    """[N]: cross-entropy with the label; its mean over the tokens for language models."""
    slices: dict[str, float]
    """Accuracy by slice, such as ``{"input=speech": 0.75}``."""

    @property
    def accuracy(self) -> float:
        """Part of the samples that is correct, 0 to 1."""
        return float(self.correct.mean())


def evaluate_accuracy(
    model: nn.Module, dataset: Dataset, batch_size: int, limit: int | None = None
) -> Evaluation:
    """Evaluate a model on every sample of a labelled data set, or on the first ``limit``.

    The model runs in eval mode; its mode is restored afterwards.
    """
    training, device = model.training, device_of(model)
    model.eval()
    correct, losses = [], []
    with torch.inference_mode():
        for batch in dataset.batches(batch_size, limit):
            tensors = tensors_from_batch(batch, device)
            label = tensors[str(dataset.label_name)]
            outputs = model(**{name: tensors[name] for name in dataset.input_names})
            logits = classes_last(outputs["logits"].float(), label)
            loss = cross_entropy(logits.flatten(0, -2), label.flatten(), reduction="none")
            correct.append(_mean_by_sample(logits.argmax(dim=-1) == label, label))
            losses.append(_mean_by_sample(loss.view(label.shape), label))
    model.train(training)
    all_correct = np.concatenate(correct)
    slices = {
        f"{axis}={value}": float(all_correct[labels[: len(all_correct)] == value].mean())
        for axis, labels in dataset.slices().items()
        for value in np.unique(labels[: len(all_correct)]).tolist()
    }
    return Evaluation(all_correct, np.concatenate(losses), slices)


def _mean_by_sample(values: Tensor, label: Tensor) -> np.ndarray[Any, Any]:
    """Reduce [N, ...] to [N], without positions of the label -100; [N] keeps its dtype."""
    if values.ndim == 1:
        return values.cpu().numpy()
    means = values.float().flatten(1).mean(dim=1)
    counted = (label != IGNORED_LABEL).flatten(1)
    if not bool(counted.all()):
        total = (values.float().flatten(1) * counted).sum(dim=1)
        means = total / counted.sum(dim=1).clamp(min=1)
    return means.cpu().numpy()


def check_labels(dataset: Dataset) -> None:
    """Check that the labels of a validation set are numbers of classes.

    Raises:
        DataError: they are scores.
    """
    label = dataset.batch(np.arange(min(1, len(dataset))))[str(dataset.label_name)]
    if label.dtype.kind == "f":
        raise DataError(
            "a validation measures the share of right classes, and the labels are scores",
            remedy="set `validation: null`, and measure `mse` or `spearman` in `evaluate:`",
        )
