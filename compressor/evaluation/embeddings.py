"""How well texts are found by their vectors: the vectors of a whole set, and of its queries the nearest passages.

Shapes: N texts, H the width of a vector; Q of the texts ask, P are what may answer.
"""

from __future__ import annotations

import numpy as np

from compressor.data.contract import Batch, Dataset
from compressor.errors import DataError, NumericalError
from compressor.evaluation.accuracy import (
    CHUNK_CELLS,
    IGNORED,
    Array,
    Progress,
    check,
    counts,
    metrics_of,
)
from compressor.evaluation.metrics import METRICS
from compressor.evaluation.records import AccuracyConfig, AccuracyReport
from compressor.runtimes.session import Session

_OUTPUT = "embedding"


def answers_with_embeddings(session: Session) -> bool:
    """Whether a model has vectors to judge, and no logits."""
    return _OUTPUT in session.output_names and "logits" not in session.output_names


def measure_embeddings(
    session: Session,
    dataset: Dataset,
    config: AccuracyConfig,
    progress: Progress,
    reference: Session | None = None,
) -> AccuracyReport:
    """Run every text once and judge the vectors, or the logits [Q, P] that they make: products of queries and passages.

    The label of a query is the place in the set of the passage that answers it; a text whose label is -100 is a passage. What
    judges vectors themselves judges all texts, what judges logits judges queries.

    Raises:
        DataError: the set is empty or has no labels for the metrics that need them, labels are no places of passages, or the
            reference's vectors have another width.
        NumericalError: a model answers with NaN.
        UsageError: a metric is unknown, or compares with a reference and there is none.
    """
    check(dataset, config, reference)
    by_logits = [name for name in config.metrics if METRICS[name].of == "logits"]
    if by_logits and dataset.label_name is None:
        raise DataError(
            f"the set {config.data!r} has no labels: {', '.join(by_logits)} cannot be measured on it",
            remedy="name a set whose queries know their passages, such as one of `text-pairs`; or `cosine` alone",
        )
    vectors, others, labels = _run(session, reference, dataset, config, progress)
    count = len(vectors)
    asks = np.ones(count, dtype=np.bool_)
    values: dict[str, Array] = {}
    for name in config.metrics:
        if METRICS[name].of == _OUTPUT:
            values[name] = METRICS[name].values(vectors, others)
    if by_logits:
        asks = labels != IGNORED
        values |= _retrieved(by_logits, vectors, others, labels, config)
    slices = {axis: np.asarray(of_axis)[:count] for axis, of_axis in dataset.slices().items()}
    queries = {axis: of_axis[asks] for axis, of_axis in slices.items()}
    metrics = [
        metric
        for name in config.metrics
        for metric in metrics_of(
            name, values[name], queries if name in by_logits else slices, config.bootstrap
        )
    ]
    whole = [metric for metric in metrics if "[" not in metric.name]
    return AccuracyReport(
        data=config.data,
        samples=count,
        metrics=(*whole, *(metric for metric in metrics if "[" in metric.name)),
        slices={axis: counts(of_axis) for axis, of_axis in slices.items()},
        predictions=(),
        labels=(),
        values={name: tuple(values[name].tolist()) for name in config.metrics},
    )


def _run(
    session: Session,
    reference: Session | None,
    dataset: Dataset,
    config: AccuracyConfig,
    progress: Progress,
) -> tuple[Array, Array, Array]:
    """The model's vectors and the reference's, [N, H], and the labels [N]; the last two are empty where there are none."""
    count = len(dataset) if config.num_samples is None else min(config.num_samples, len(dataset))
    found: list[Array] = []
    wanted: list[Array] = []
    labels: list[Array] = []
    done = 0
    for batch in dataset.batches(config.batch_size, count):
        found.append(_vectors(session, batch, "the model"))
        if reference is not None:
            wanted.append(
                found[-1] if reference is session else _vectors(reference, batch, "the reference")
            )
            if wanted[-1].shape != found[-1].shape:
                raise DataError(
                    f"the reference's vectors have the width {wanted[-1].shape[1]}, the model's {found[-1].shape[1]}",
                    remedy="name a reference of the same task as `evaluate.accuracy.reference`",
                )
        if dataset.label_name is not None:
            labels.append(batch[dataset.label_name])
        done += len(found[-1])
        progress("accuracy", done, count)
    none = np.empty(0, dtype=np.int64)
    return np.concatenate(found), np.concatenate(wanted or [none]), np.concatenate(labels or [none])


def _vectors(session: Session, batch: Batch, who: str) -> Array:
    if _OUTPUT not in session.output_names:
        raise DataError(
            f"{who} has no output `{_OUTPUT}`; it has {', '.join(session.output_names)}",
            remedy="name a sentence encoder as `evaluate.accuracy.reference`",
        )
    vectors = session.run(batch)[_OUTPUT]
    if vectors.ndim != 2:
        raise DataError(f"{who} answers with embeddings {list(vectors.shape)}, expected [N, H]")
    if bad := int(np.isnan(vectors).any(axis=1).sum()):
        raise NumericalError(f"{who} answers {bad} of {len(vectors)} samples of a batch with NaN")
    return vectors


def _retrieved(
    names: list[str], vectors_NH: Array, others_NH: Array, labels_N: Array, config: AccuracyConfig
) -> dict[str, Array]:
    """Each metric of logits, one float64 for each query."""
    queries_Q, passages_P = np.flatnonzero(labels_N != IGNORED), np.flatnonzero(labels_N == IGNORED)
    wanted_Q = labels_N[queries_Q]
    if labels_N.ndim != 1 or not len(queries_Q) or not np.isin(wanted_Q, passages_P).all():
        raise DataError(
            f"labels of {config.data!r} are not the places of passages, which must have the label {IGNORED}",
            remedy="name a set of `text-pairs`, or `cosine` alone, which needs no labels",
        )
    right_Q = np.searchsorted(passages_P, wanted_Q)
    values: dict[str, list[Array]] = {name: [] for name in names}
    step = max(1, CHUNK_CELLS // len(passages_P))
    for start in range(0, len(queries_Q), step):
        at = queries_Q[start : start + step]
        right = {"labels": right_Q[start : start + step]}
        if len(others_NH):
            right["reference"] = others_NH[at] @ others_NH[passages_P].T
        logits_QP = vectors_NH[at] @ vectors_NH[passages_P].T
        for name in names:
            values[name].append(METRICS[name].values(logits_QP, right[METRICS[name].right]))
    return {name: np.concatenate(parts) for name, parts in values.items()}
