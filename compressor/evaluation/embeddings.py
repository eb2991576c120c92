"""Score embeddings on retrieval of the nearest passage.

Shapes: N texts, T tokens, H embedding width, Q queries among the texts, P passages among the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import DataError
from compressor.evaluation.metrics import (
    IGNORED_LABEL,
    MAX_CHUNK_VALUES,
    Array,
    Scores,
    metric_named,
    recall_count,
)
from compressor.evaluation.outputs import TEXTS
from compressor.evaluation.scoring import (
    NOTHING,
    OutputScorer,
    ScoredBatch,
    output_array,
    raise_nan,
    reference_array,
    samples_with_nan,
    valid_positions,
)

_VECTOR_RANK, _HIDDEN_RANK = 2, 3
_TOKENS, _MASK = "input_ids", "attention_mask"


@dataclass(frozen=True, slots=True)
class _Embeddings:
    """Outputs on a whole data set; the array of a missing reference is empty."""

    model_NH: Array
    reference_NH: Array
    labels_N: Array


class RetrievalScorer(OutputScorer):
    """Scores embeddings [N, H], or hidden states [N, T, H] by their mean over valid positions.

    Every query is scored on the products of its embedding with those of all passages, [Q, P]. The
    label of a query is the position in the data set of its passage; a text with the label -100 is
    a passage.
    """

    def __init__(
        self, metrics: tuple[str, ...], output: str, label_name: str | None, data: str
    ) -> None:
        """Create a scorer.

        Raises:
            DataError: the data set has no labels.
        """
        if label_name is None:
            raise DataError(
                f"the data set {data!r} has no labels, required for {', '.join(metrics)}",
                remedy="name a data set that pairs queries and passages, such as one of "
                "`text-pairs`; or only `cosine`",
            )
        self.metrics, self.output, self.label_name, self.data = metrics, output, label_name, data
        self.vectors: list[Array] = []
        self.reference: list[Array] = []
        self.labels: list[Array] = []

    def update(self, scored: ScoredBatch) -> None:
        """Keep the embeddings of a batch.

        Raises:
            DataError: the embeddings have another shape, or differ from the reference's in width.
            NumericalError: a model outputs NaN.
        """
        values = output_array(scored.outputs, self.output, "the model")
        expected = reference_array(scored, self.output, values)
        self.vectors.append(embed(values, self.output, scored, "the model"))
        if expected is not None:
            self.reference.append(embed(expected, self.output, scored, "the reference"))
        self.labels.append(scored.batch[self.label_name])

    def finish(self) -> Scores:
        """Return the scores of all queries.

        Raises:
            DataError: labels are not positions of passages, or a metric finds all passages.
        """
        embeddings = _Embeddings(
            np.concatenate(self.vectors),
            np.concatenate(self.reference or [NOTHING]),
            np.concatenate(self.labels),
        )
        values = _score_retrieval(list(self.metrics), embeddings, self.data)
        return Scores(
            values,
            scored=dict.fromkeys(self.metrics, embeddings.labels_N != IGNORED_LABEL),
            counted=np.ones(len(embeddings.model_NH), dtype=np.bool_),
            predictions=NOTHING,
            labels=NOTHING,
        )


class ReverseScorer(RetrievalScorer):
    """Scores the other direction: each passage that has a query is scored on finding one.

    The products are those of the passage's embedding with those of all queries; any query of the
    passage answers it.
    """

    def finish(self) -> Scores:
        """Return the scores of all passages that have a query.

        Raises:
            DataError: labels are not positions of passages, or a metric finds all queries.
        """
        vectors_NH, labels_N = np.concatenate(self.vectors), np.concatenate(self.labels)
        queries_Q, passages_P = split_labels(labels_N, self.data)
        _check_counts(self.metrics, len(queries_Q), self.data)
        searching = np.intersect1d(passages_P, labels_N[queries_Q])
        chunks: dict[str, list[Array]] = {name: [] for name in self.metrics}
        step = max(1, MAX_CHUNK_VALUES // len(queries_Q))
        for start in range(0, len(searching), step):
            at = searching[start : start + step]
            products = vectors_NH[at] @ vectors_NH[queries_Q].T
            # The query that is found first.
            own = np.where(labels_N[queries_Q] == at[:, None], products, -np.inf).argmax(axis=1)
            for name in self.metrics:
                chunks[name].append(metric_named(name).score(products, own))
        values = {name: np.concatenate(parts) for name, parts in chunks.items()}
        scored = dict.fromkeys(self.metrics, np.isin(np.arange(len(labels_N)), searching))
        everything = np.ones(len(labels_N), dtype=np.bool_)
        return Scores(values, scored, everything, NOTHING, NOTHING)


class PairScorer(OutputScorer):
    """Scores the embeddings of two kinds, such as images and their captions, [N, H] each.

    Every query of one kind is scored on its products with all passages of the other. The label of a
    sample is the position of the first sample with the same image, so several captions may belong
    to an image: it counts once, as a query and as a passage, and any of its captions answers it.
    Likewise a text that several images have counts once, and any of these images answers it; with
    names of classes as captions, recall@1 of images is the accuracy of zero-shot classification.
    """

    def __init__(
        self,
        metrics: tuple[str, ...],
        outputs: tuple[str, str],
        label_name: str | None,
        data: str,
    ) -> None:
        """Create a scorer.

        Args:
            metrics: the metrics.
            outputs: the outputs of queries and of passages.
            label_name: name of the array of labels.
            data: name of the data set, for messages.

        Raises:
            DataError: the data set has no labels.
        """
        if label_name is None:
            raise DataError(
                f"the data set {data!r} has no labels, required for {', '.join(metrics)}",
                remedy="name a data set that pairs images and texts, such as one of "
                "`image-captions`; or only `cosine`",
            )
        self.metrics, self.outputs, self.label_name, self.data = metrics, outputs, label_name, data
        self.vectors: tuple[list[Array], list[Array]] = ([], [])
        self.reference: tuple[list[Array], list[Array]] = ([], [])
        self.labels: list[Array] = []
        self.texts: list[bytes] = []

    def update(self, scored: ScoredBatch) -> None:
        """Keep the embeddings of a batch; errors as ``RetrievalScorer``."""
        self.texts += text_keys(scored.batch)
        for kind, output in enumerate(self.outputs):
            values = output_array(scored.outputs, output, "the model")
            expected = reference_array(scored, output, values)
            self.vectors[kind].append(embed(values, output, scored, "the model"))
            if expected is not None:
                self.reference[kind].append(embed(expected, output, scored, "the reference"))
        self.labels.append(scored.batch[self.label_name])

    def finish(self) -> Scores:
        """Return the scores of all queries.

        Raises:
            DataError: labels are not positions of samples, or a metric finds all passages.
        """
        labels_N = np.concatenate(self.labels)
        order_N = np.arange(len(labels_N))
        if labels_N.ndim != 1 or (labels_N < 0).any() or (labels_N > order_N).any():
            raise DataError(
                f"labels of {self.data!r} are not positions of samples with the same image",
                remedy="name a data set of `image-captions`, or use only `cosine`",
            )
        # Samples without tokens have texts of their own.
        keys = self.texts or [str(position).encode() for position in order_N]
        images = np.flatnonzero(labels_N == order_N)
        _, texts, text_N = np.unique(np.array(keys, object), return_index=True, return_inverse=True)
        of_images = self.outputs[0] != TEXTS
        queries, passages = (images, np.sort(texts)) if of_images else (np.sort(texts), images)
        pairs = np.unique(labels_N * len(texts) + text_N)
        _check_counts(self.metrics, len(passages), self.data)
        model = tuple(map(np.concatenate, self.vectors))
        reference = tuple(map(np.concatenate, self.reference)) if self.reference[0] else None
        chunks: dict[str, list[Array]] = {name: [] for name in self.metrics}
        step = max(1, MAX_CHUNK_VALUES // len(passages))
        for start in range(0, len(queries), step):
            at = queries[start : start + step]
            products_QP = model[0][at] @ model[1][passages].T
            image_of, text_of = (at[:, None], passages) if of_images else (passages, at[:, None])
            relevant_QP = np.isin(labels_N[image_of] * len(texts) + text_N[text_of], pairs)
            # The relevant passage that is found first.
            targets = {"labels": np.where(relevant_QP, products_QP, -np.inf).argmax(axis=1)}
            if reference is not None:
                targets["reference"] = reference[0][at] @ reference[1][passages].T
            for name in self.metrics:
                metric = metric_named(name)
                chunks[name].append(metric.score(products_QP, targets[metric.target]))
        values = {name: np.concatenate(parts) for name, parts in chunks.items()}
        is_query_N = np.isin(order_N, queries)
        everything = np.ones(len(labels_N), dtype=np.bool_)
        scored = dict.fromkeys(self.metrics, is_query_N)
        return Scores(values, scored, everything, NOTHING, NOTHING)


def text_keys(batch: Batch) -> list[bytes]:
    """Return a key for each text of a batch, equal for equal tokens; none without tokens."""
    if _TOKENS not in batch:
        return []
    tokens_BT = batch[_TOKENS]
    mask_BT = batch.get(_MASK, np.ones_like(tokens_BT)) != 0
    return [
        np.ascontiguousarray(row[kept], np.int64).tobytes()
        for row, kept in zip(tokens_BT, mask_BT, strict=True)
    ]


def _check_counts(names: Sequence[str], passages: int, data: str) -> None:
    """Check that no ``recall@K`` finds all passages, whatever the model.

    Raises:
        DataError: a metric does; all are named.
    """
    if whole := [name for name in names if (recall_count(name) or 0) >= passages]:
        what, remedy = whole_recall(whole, passages, data)
        raise DataError(what, remedy=remedy)


def whole_recall(names: Sequence[str], passages: int, data: str) -> tuple[str, str]:
    """Return the problem of metrics of one direction that find everything, and its remedy."""
    found, plural, seeker = "passage", "passages", "query"
    if metric_named(names[0]).is_reverse:
        found, plural, seeker = "query", "queries", "passage"
    return (
        f"{', '.join(names)} is 1 for every model: the data set {data!r} has {passages} "
        f"{found if passages == 1 else plural} that a {seeker} can find",
        f"name a smaller K in `metrics`, or a data set with more {plural}",
    )


def passage_count(labels: Sequence[int], output: str, *, is_reverse: bool = False) -> int:
    """Return the number of passages that a query can find, or of queries that a passage can find.

    Args:
        labels: labels of the samples, of texts or of pairs of images and texts.
        output: the output of the queries.
        is_reverse: True if passages look for queries.
    """
    if is_reverse:
        return sum(label != IGNORED_LABEL for label in labels)
    if IGNORED_LABEL in labels:
        return sum(label == IGNORED_LABEL for label in labels)
    if output != TEXTS:
        return len(labels)
    return sum(label == position for position, label in enumerate(labels))


def embed(values: Array, output: str, scored: ScoredBatch, model: str) -> Array:
    """Return one vector for each sample, [N, H].

    Raises:
        DataError: the output is neither [N, H] nor [N, T, H].
        NumericalError: it holds NaN.
    """
    if values.ndim not in {_VECTOR_RANK, _HIDDEN_RANK}:
        raise DataError(
            f"{model} outputs {output} {list(values.shape)}, expected [N, H] or [N, T, H]"
        )
    if values.ndim == _HIDDEN_RANK:
        values = _mean_over_positions(values, scored.batch)
    raise_nan(model, samples_with_nan(values), values, scored)
    return values


def _mean_over_positions(values_NTH: Array, batch: Batch) -> Array:
    """Return the mean of the hidden states at valid positions, as sentence encoders do."""
    valid_NT = valid_positions(batch, values_NTH.shape)
    if valid_NT is None:
        mean_NH: Array = values_NTH.mean(axis=1)
        return mean_NH
    weight_NT1 = valid_NT[:, :, None].astype(values_NTH.dtype)
    total_NH: Array = np.where(valid_NT[:, :, None], values_NTH, 0).sum(axis=1)
    weighted_NH: Array = total_NH / np.maximum(weight_NT1.sum(axis=1), 1)
    return weighted_NH


def split_labels(labels_N: Array, data: str) -> tuple[Array, Array]:
    """Return the positions of queries and of passages.

    Raises:
        DataError: labels are not positions of passages.
    """
    queries_Q = np.flatnonzero(labels_N != IGNORED_LABEL)
    passages_P = np.flatnonzero(labels_N == IGNORED_LABEL)
    is_plain = labels_N.ndim == 1 and len(queries_Q) > 0
    if not is_plain or not np.isin(labels_N[queries_Q], passages_P).all():
        raise DataError(
            f"labels of {data!r} are not positions of passages; "
            f"passages must have the label {IGNORED_LABEL}",
            remedy="name a data set of `text-pairs`, or use only `cosine`, which needs no labels",
        )
    return queries_Q, passages_P


def _score_retrieval(names: list[str], embeddings: _Embeddings, data: str) -> dict[str, Array]:
    """Return one float64 per query for each metric; queries are scored in chunks."""
    labels_N = embeddings.labels_N
    queries_Q, passages_P = split_labels(labels_N, data)
    labels_Q = labels_N[queries_Q]
    _check_counts(names, len(passages_P), data)
    target_Q = np.searchsorted(passages_P, labels_Q)
    values: dict[str, list[Array]] = {name: [] for name in names}
    model_NH, reference_NH = embeddings.model_NH, embeddings.reference_NH
    step = max(1, MAX_CHUNK_VALUES // len(passages_P))
    for start in range(0, len(queries_Q), step):
        at = queries_Q[start : start + step]
        targets = {"labels": target_Q[start : start + step]}
        if len(reference_NH):
            targets["reference"] = reference_NH[at] @ reference_NH[passages_P].T
        logits_QP = model_NH[at] @ model_NH[passages_P].T
        for name in names:
            values[name].append(
                metric_named(name).score(logits_QP, targets[metric_named(name).target])
            )
    return {name: np.concatenate(chunks) for name, chunks in values.items()}
