"""Score embeddings: by comparison with a reference, and by retrieval of the nearest passage.

Shapes: N texts, H embedding width, Q queries among the texts, P passages among the texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compressor.data.contract import Batch, Dataset
from compressor.errors import DataError, NumericalError
from compressor.evaluation.metrics import (
    IGNORED_LABEL,
    MAX_CHUNK_VALUES,
    METRICS,
    Array,
    Scores,
)
from compressor.evaluation.records import AccuracyConfig, Progress
from compressor.runtimes.session import Session

_OUTPUT = "embedding"


@dataclass(frozen=True, slots=True)
class _Embeddings:
    """Outputs on a whole data set; the arrays of a missing reference or label are empty."""

    model_NH: Array
    reference_NH: Array
    labels_N: Array


def outputs_only_embeddings(session: Session) -> bool:
    """Return True if a model outputs embeddings and no logits."""
    return _OUTPUT in session.output_names and "logits" not in session.output_names


def score_embeddings(
    session: Session,
    dataset: Dataset,
    config: AccuracyConfig,
    progress: Progress,
    reference: Session | None = None,
) -> Scores:
    """Run every text once and score the embeddings.

    Metrics of embeddings score every text. Metrics of logits score every query, on the products of
    its embedding with those of all passages, [Q, P]. The label of a query is the position in the
    data set of its passage; a text with the label -100 is a passage. Arguments as for
    ``measure_accuracy``.

    Raises:
        DataError: the data set has no labels for metrics that need them, labels are not positions
            of passages, or the embeddings of the reference have another width.
        NumericalError: a model outputs NaN.
    """
    by_logits = [name for name in config.metrics if METRICS[name].output == "logits"]
    if by_logits and dataset.label_name is None:
        raise DataError(
            f"the data set {config.data!r} has no labels, required for {', '.join(by_logits)}",
            remedy="name a data set that pairs queries and passages, such as one of `text-pairs`; "
            "or only `cosine`",
        )
    embeddings = _embed(session, reference, dataset, config, progress)
    everything = np.ones(len(embeddings.model_NH), dtype=np.bool_)
    values: dict[str, Array] = {}
    scored = dict.fromkeys(config.metrics, everything)
    for name in config.metrics:
        if name not in by_logits:
            values[name] = METRICS[name].score(embeddings.model_NH, embeddings.reference_NH)
    if by_logits:
        values |= _score_retrieval(by_logits, embeddings, config.data)
        scored |= dict.fromkeys(by_logits, embeddings.labels_N != IGNORED_LABEL)
    none = np.empty(0, dtype=np.int64)
    return Scores(values, scored, counted=everything, predictions=none, labels=none)


def _embed(
    session: Session,
    reference: Session | None,
    dataset: Dataset,
    config: AccuracyConfig,
    progress: Progress,
) -> _Embeddings:
    count = config.sample_count(len(dataset))
    outputs: list[Array] = []
    reference_outputs: list[Array] = []
    labels: list[Array] = []
    done = 0
    for batch in dataset.batches(config.batch_size, count):
        vectors = _run(session, batch, "the model")
        outputs.append(vectors)
        if reference is not None:
            same = reference is session
            expected = vectors if same else _run(reference, batch, "the reference")
            if expected.shape != vectors.shape:
                raise DataError(
                    f"the reference's embeddings have the width {expected.shape[1]}, "
                    f"the model's {vectors.shape[1]}",
                    remedy="name a reference of the same task as `evaluate.accuracy.reference`",
                )
            reference_outputs.append(expected)
        if dataset.label_name is not None:
            labels.append(batch[dataset.label_name])
        done += len(vectors)
        progress("accuracy", done, count)
    none = np.empty(0, dtype=np.int64)
    return _Embeddings(
        np.concatenate(outputs),
        np.concatenate(reference_outputs or [none]),
        np.concatenate(labels or [none]),
    )


def _run(session: Session, batch: Batch, model: str) -> Array:
    if _OUTPUT not in session.output_names:
        raise DataError(
            f"{model} has no output `{_OUTPUT}`; it has {', '.join(session.output_names)}",
            remedy="name a sentence encoder as `evaluate.accuracy.reference`",
        )
    vectors = session.run(batch)[_OUTPUT]
    if vectors.ndim != 2:
        raise DataError(f"{model} outputs embeddings {list(vectors.shape)}, expected [N, H]")
    if count := int(np.isnan(vectors).any(axis=1).sum()):
        raise NumericalError(
            f"{model} outputs NaN for {count} of {len(vectors)} samples of a batch"
        )
    return vectors


def _score_retrieval(names: list[str], embeddings: _Embeddings, data: str) -> dict[str, Array]:
    """Return one float64 per query for each metric; queries are scored in chunks."""
    labels_N = embeddings.labels_N
    queries_Q = np.flatnonzero(labels_N != IGNORED_LABEL)
    passages_P = np.flatnonzero(labels_N == IGNORED_LABEL)
    labels_Q = labels_N[queries_Q]
    if labels_N.ndim != 1 or not len(queries_Q) or not np.isin(labels_Q, passages_P).all():
        raise DataError(
            f"labels of {data!r} are not positions of passages; "
            f"passages must have the label {IGNORED_LABEL}",
            remedy="name a data set of `text-pairs`, or use only `cosine`, which needs no labels",
        )
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
            values[name].append(METRICS[name].score(logits_QP, targets[METRICS[name].target]))
    return {name: np.concatenate(chunks) for name, chunks in values.items()}
