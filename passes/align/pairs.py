"""Data sets as pairs, and the retrieval of pairs by an encoder in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.data.contract import Batch, Dataset
from compressor.errors import DataError
from compressor.evaluation.embeddings import PairScorer
from compressor.evaluation.metrics import IGNORED_LABEL
from compressor.evaluation.outputs import TEXTS
from compressor.evaluation.scoring import ScoredBatch
from passes.align.checks import NO_IMAGES, PAIRS_REMEDY, pair_problem
from passes.common.accuracy import Evaluation
from passes.common.device import device_of, tensors_from_batch

LABEL = "label"
"""Name of the labels in batches of pairs: equal labels share the first of the two kinds."""
_COUNTS = (1, 5)
_OUTPUTS = ("image_embeds", TEXTS)
"""Names of first and second kind to the scorer, which looks for shared items in the first."""
_TEXTS = frozenset({"input_ids", "attention_mask"})
"""Inputs by which the scorer finds equal texts."""
Indices = np.ndarray[Any, Any]


class PairedSamples(Dataset):
    """Queries with their passages, for one encoder of both: sample i is the i-th query's pair.

    A batch of N pairs has 2N rows: the passages, then their queries.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        """Find the pairs; labels of queries are positions of their passages.

        Raises:
            DataError: there are none.
        """
        self.dataset, self.name = dataset, name
        self.input_names, self.label_name = dataset.input_names, LABEL
        labels_N = labels_of(dataset, name, is_shared=True)
        self._queries = np.flatnonzero(labels_N != IGNORED_LABEL)
        self._passages = labels_N[self._queries]

    def __len__(self) -> int:
        return len(self._queries)

    def batch(self, indices: Indices, epoch: int = 0) -> Batch:
        """Return passages and queries, and as labels [N] the positions of the passages."""
        passages = self._passages[indices]
        rows = np.concatenate([passages, self._queries[indices]])
        batch = self.dataset.batch(rows, epoch)
        return {name: batch[name] for name in self.input_names} | {LABEL: passages}


class PairSamples(Dataset):
    """Samples that are pairs, such as an image with its caption, for a model of two kinds."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        """Take a data set.

        Raises:
            DataError: there are no labels.
        """
        if dataset.label_name is None:
            raise DataError(f"the data set {name!r} has no labels", remedy=PAIRS_REMEDY)
        self.dataset, self.name = dataset, name
        self.input_names, self.label_name = dataset.input_names, LABEL

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Indices, epoch: int = 0) -> Batch:
        """Return samples, and as labels [N] the position of the first one with the same image.

        Raises:
            DataError: labels are no such positions.
        """
        batch = self.dataset.batch(indices, epoch)
        labels = batch[str(self.dataset.label_name)]
        is_position = labels.dtype.kind in "iu" and labels.shape == indices.shape
        if not is_position or (labels < 0).any() or (labels > indices).any():
            raise DataError(f"the data set {self.name!r} {NO_IMAGES}", remedy=PAIRS_REMEDY)
        return {name: batch[name] for name in self.input_names} | {LABEL: labels}


def labels_of(dataset: Dataset, name: str, *, is_shared: bool) -> Indices:
    """Return the labels of all samples, int64 [N].

    Raises:
        DataError: they are not those of pairs.
    """
    label = dataset.label_name
    chunks = [] if label is None else [batch[label] for batch in dataset.batches(64)]
    labels = np.concatenate(chunks) if chunks else np.empty(0, dtype=np.int64)
    is_plain = labels.ndim == 1 and labels.dtype.kind in "iu"
    problem = (
        pair_problem(labels.tolist(), is_shared=is_shared)
        if is_plain
        else "has labels that are no positions of samples"
    )
    if problem is not None:
        raise DataError(f"the data set {name!r} {problem}", remedy=PAIRS_REMEDY)
    return labels


def evaluate_retrieval(
    encoder: nn.Module, pairs: Dataset, batch_size: int, names: tuple[str, str]
) -> Evaluation:
    """Return recall@1 of both directions together, and recall@1 and @5 of each as slices.

    They are computed as in `evaluate`, and embeddings are scaled as in the training.

    Args:
        encoder: returns ``first`` and ``second`` for a batch of pairs.
        pairs: a data set of pairs.
        batch_size: pairs per call.
        names: names of the metrics in `evaluate`, with `{}` for `recall@K`: of the first kind in
            search of the second, and of the second in search of the first.

    Raises:
        DataError: the labels are not those of pairs.
        NumericalError: an embedding is NaN.
    """
    outputs, batch = _encode(encoder, pairs, batch_size)
    _, index, inverse_N = np.unique(batch[LABEL], return_index=True, return_inverse=True)
    batch = {**batch, LABEL: index[inverse_N]}
    scored = ScoredBatch(batch, outputs, None, 0, "validation")
    recalls = tuple(f"recall@{count}" for count in _COUNTS if count < len(index))
    slices: dict[str, float] = {}
    hits = []
    for name, outputs_of in zip(names, (_OUTPUTS, _OUTPUTS[::-1]), strict=True):
        scorer = PairScorer(recalls, outputs_of, LABEL, "validation")
        scorer.update(scored)
        values = scorer.finish().values
        slices |= {name.format(recall): float(values[recall].mean()) for recall in recalls}
        hits.append(values["recall@1"])
    correct = np.concatenate(hits)
    return Evaluation(correct, (1.0 - correct).astype(np.float32), slices)


def _encode(encoder: nn.Module, pairs: Dataset, batch_size: int) -> tuple[Batch, Batch]:
    """Return the embeddings of all pairs by the names of a model of two kinds.

    Their labels, and the tokens of samples that are pairs, are the second result.
    """
    is_training, device = encoder.training, device_of(encoder)
    kept = (LABEL, *(_TEXTS & {*pairs.input_names} if isinstance(pairs, PairSamples) else ()))
    encoder.eval()
    parts: dict[str, list[Indices]] = {"first": [], "second": []}
    batches: dict[str, list[Indices]] = {name: [] for name in kept}
    with torch.inference_mode():
        for batch in pairs.batches(batch_size):
            tensors = tensors_from_batch(batch, device)
            outputs = encoder(**{name: tensors[name] for name in pairs.input_names})
            for name, chunks in parts.items():
                chunks.append(outputs[name].float().cpu().numpy())
            for name, arrays in batches.items():
                arrays.append(batch[name])
    encoder.train(is_training)
    embeddings = [np.concatenate(chunks) for chunks in parts.values()]
    return (
        dict(zip(_OUTPUTS, embeddings, strict=True)),
        {name: np.concatenate(arrays) for name, arrays in batches.items()},
    )
