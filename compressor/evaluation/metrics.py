"""Accuracy metrics: means of values, one for each position, sample or transcript.

A request is the name of a metric, such as ``kl``, or that name and an output of the model, such as
``cosine:pred_boxes``. ``outputs.py`` chooses the output where a request names none.

Shapes: P positions (one per sample, or one per token), C classes, N samples, V values of a sample.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compressor.artifacts.fingerprint import digest_file, digest_tree
from compressor.config import discovery
from compressor.errors import PassError, UsageError
from compressor.evaluation.metric_plugin import MetricPlugin

Array = np.ndarray[Any, Any]
Scorer = Callable[[Array, Array], Array]
"""Maps logits [P, C] and the target to float64 [P].

The target is labels, int [P], or the logits of a reference, [P, C].
"""

_FRACTION, _SIGNED = (0.0, 1.0), (-1.0, 1.0)
_RECALL = re.compile(r"(reverse_)?recall@([1-9]\d{0,8})")
_PLUGIN_SCALES = ("classes", "values", "scalar")
IGNORED_LABEL = -100
"""Label of a position that is not scored, as in transformers."""
MAX_CHUNK_VALUES = 1 << 22
"""Logits that are scored at once."""


Scale = Literal["classes", "values", "scalar", "transcript"]
"""Kind of what a metric scores:

- ``classes``: logits [P, C] of each position; those of a model without logits are the products of
  a query's embedding with those of all passages;
- ``values``: all values [N, V] of an output, sample by sample;
- ``scalar``: one number [N] per sample, such as the score of a reranker;
- ``transcript``: the text that an encoder-decoder generates, or the logits of CTC [N, T, C] spell.
"""


@dataclass(frozen=True, slots=True)
class AccuracyMetric:
    """A mean of values, one for each position, sample or transcript."""

    unit: str
    better: Literal["higher", "lower"]
    score: Scorer
    target: Literal["labels", "reference"] = "labels"
    """Target of the comparison: labels, or the outputs of a reference model."""
    scale: Scale = "classes"
    """Kind of what is scored."""
    from_mean: Callable[[float], float] = float
    """Maps the mean to the metric; monotonically increasing, so it applies to intervals too."""
    of_distribution: bool = False
    """True if the logits of a position are a distribution over classes, and not only a ranking."""
    is_retrieval: bool = False
    """True if only embeddings are scored, on the retrieval of passages."""
    is_reverse: bool = False
    """True if passages look for their queries."""
    smallest_slice: int = 1
    """Number of samples from which the metric is defined."""
    bounds: tuple[float, float] = (0.0, math.inf)
    """Smallest and largest value that the metric can have."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a model on the N samples of a data set.

    A sample is counted if it has a label that is scored, or if there are no labels.
    """

    values: Mapping[str, Array]
    """Metric to one float64 for each sample that it scores."""
    scored: Mapping[str, Array]
    """Metric to bool [N], True for the samples that it scores."""
    counted: Array
    """bool [N]."""
    predictions: Array
    """Class of the largest logit of each counted sample; empty unless a sample has one label."""
    labels: Array
    """Label of each counted sample; empty unless a sample has one label."""
    terms: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    """Metric to the arrays that its ``score`` takes, one entry for each sample, where values depend
    on other samples: a slice is scored again."""


def reference_metrics(metrics: Iterable[str]) -> tuple[str, ...]:
    """Return those of the named metrics that compare with a reference model."""
    return tuple(
        name for name in metrics if is_metric(name) and metric_named(name).target == "reference"
    )


def is_metric(name: str) -> bool:
    """Return True if a request names a metric, with or without an output."""
    base, colon, output = name.partition(":")
    known = (
        base in (*METRICS, *discovery.names(discovery.METRICS)) or recall_count(base) is not None
    )
    return known and bool(output) == bool(colon)


def known_metrics() -> list[str]:
    """Return the names of all metrics, for messages."""
    retrieval = ("recall@1", "recall@10", "reverse_recall@1")
    return [*METRICS, *retrieval, *discovery.names(discovery.METRICS)]


def metric_named(name: str) -> AccuracyMetric:
    """Return the metric of a request such as ``kl`` or ``cosine:pred_boxes``."""
    count = recall_count(name)
    base = name.partition(":")[0]
    if count is None:
        return METRICS[base] if base in METRICS else _plugin_metric(base)
    return AccuracyMetric(
        "fraction",
        "higher",
        partial(_recall, count=count),
        is_retrieval=True,
        is_reverse=name.startswith("reverse_"),
        bounds=_FRACTION,
    )


@cache
def _plugin_metric(name: str) -> AccuracyMetric:
    """Return a metric of another package.

    Raises:
        UsageError: it cannot be imported, or does not follow the contract.
    """
    plugin = discovery.load(discovery.METRICS, name)
    if not isinstance(plugin, MetricPlugin) or plugin.scale not in _PLUGIN_SCALES:
        raise UsageError(
            f"the metric {name!r} ({type(plugin).__module__}) is no MetricPlugin of the scale "
            f"{' or '.join(_PLUGIN_SCALES)}",
            remedy="see docs/extending/metric.md",
        )
    return AccuracyMetric(
        plugin.unit,
        plugin.better,
        partial(_checked_score, plugin, name),
        plugin.target,
        plugin.scale,
        of_distribution=plugin.of_distribution,
        bounds=plugin.bounds,
    )


def _checked_score(plugin: MetricPlugin, name: str, outputs: Array, targets: Array) -> Array:
    """Return what a metric of another package gives, one float64 for each position or sample.

    Raises:
        PassError: it fails, or returns something else.
    """
    try:
        values: Array = np.asarray(plugin.score(outputs, targets), dtype=np.float64)
    except Exception as error:
        raise PassError(f"the metric {name!r} failed: {type(error).__name__}: {error}") from error
    if values.shape != (len(outputs),) or np.isnan(values).any():
        found = "NaN" if values.shape == (len(outputs),) else f"the shape {list(values.shape)}"
        raise PassError(
            f"the metric {name!r} returned {found} for {len(outputs)} outputs",
            remedy="return one number for each of the first axis",
        )
    if plugin.unit == "fraction" and values.size and (values.min() < 0 or values.max() > 1):
        raise PassError(f"the metric {name!r} has the unit fraction, and values beyond 0 to 1")
    return values


def plugin_digests(metrics: Iterable[str]) -> dict[str, str]:
    """Return the metrics of other packages, each with a sha256 of its source code."""
    bases = {name.partition(":")[0] for name in metrics}
    found = sorted(bases & set(discovery.names(discovery.METRICS)) - set(METRICS))
    return {name: _code_digest(discovery.load(discovery.METRICS, name)) for name in found}


def _code_digest(plugin: object) -> str:
    module = sys.modules[type(plugin).__module__]
    file = Path(str(module.__file__))
    return digest_tree(file.parent, "*.py") if module.__package__ else digest_file(file)


def recall_count(name: str) -> int | None:
    """Return K of the metric ``recall@K`` or ``reverse_recall@K``; None for other metrics."""
    recall = _RECALL.fullmatch(name.partition(":")[0])
    return None if recall is None else int(recall[2])


def _top1(logits_PC: Array, labels_P: Array) -> Array:
    """Return 1 where the label has the largest logit, else 0; of equal logits the first counts."""
    correct_P: Array = (logits_PC.argmax(axis=1) == labels_P).astype(np.float64)
    return correct_P


def _cross_entropy(logits_PC: Array, labels_P: Array) -> Array:
    """Return the negative log-probability of the label, in nats."""
    shifted_PC, normalizer_P = _log_softmax_terms(logits_PC)
    entropy_P: Array = normalizer_P - shifted_PC[np.arange(len(labels_P)), labels_P]
    return entropy_P


def _reciprocal_rank(logits_PC: Array, labels_P: Array) -> Array:
    """Return 1 / rank of the label among the logits, largest first; of equal logits the first."""
    inverse_P: Array = 1.0 / _ranks_of_labels(logits_PC, labels_P)
    return inverse_P


def _recall(logits_PC: Array, labels_P: Array, count: int) -> Array:
    """Return 1 where the label is among the ``count`` largest logits, else 0."""
    found_P: Array = (_ranks_of_labels(logits_PC, labels_P) <= count).astype(np.float64)
    return found_P


def _ranks_of_labels(logits_PC: Array, labels_P: Array) -> Array:
    """Return the rank of each label from 1, largest logit first; of equal logits the first."""
    own_P1 = logits_PC[np.arange(len(labels_P)), labels_P][:, None]
    before_PC = np.arange(logits_PC.shape[1]) < labels_P[:, None]
    rank_P: Array = 1 + ((logits_PC > own_P1) | ((logits_PC == own_P1) & before_PC)).sum(axis=1)
    return rank_P


def _cosine(vectors_PC: Array, reference_PC: Array) -> Array:
    """Return the cosine similarity of each vector and the reference's; 0 where one is zero."""
    a_PC, b_PC = vectors_PC.astype(np.float64), reference_PC.astype(np.float64)
    lengths_P = np.linalg.norm(a_PC, axis=1) * np.linalg.norm(b_PC, axis=1)
    cosine_P: Array = (a_PC * b_PC).sum(axis=1) / np.where(lengths_P > 0, lengths_P, 1.0)
    return cosine_P


def _max_abs(values_NV: Array, reference_NV: Array) -> Array:
    """Return the largest |Δ| of each sample."""
    difference_NV = np.abs(values_NV.astype(np.float64) - reference_NV.astype(np.float64))
    largest_N: Array = difference_NV.max(axis=1, initial=0.0)
    return largest_N


def _equal_share(values_NV: Array, reference_NV: Array) -> Array:
    """Return the share of equal values of each sample; 1 for no values."""
    if not values_NV.shape[1]:
        return np.ones(len(values_NV))
    share_N: Array = (values_NV == reference_NV).mean(axis=1)
    return share_N


def _relative_error(values_NV: Array, reference_NV: Array) -> Array:
    """Return the length of Δ relative to that of the reference's values; 0 where both are zero."""
    reference_NV = reference_NV.astype(np.float64)
    error_N = np.linalg.norm(values_NV.astype(np.float64) - reference_NV, axis=1)
    length_N = np.linalg.norm(reference_NV, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_N: Array = np.where(error_N > 0, error_N / length_N, 0.0)
    return relative_N


def _squared_error(values_N: Array, labels_N: Array) -> Array:
    """Return the squared difference from the label."""
    error_N: Array = (values_N.astype(np.float64) - labels_N.astype(np.float64)) ** 2
    return error_N


def _correlation_terms(values_N: Array, target_N: Array) -> Array:
    """Return products of standardized values, whose mean is Pearson's correlation coefficient."""
    a_N, b_N = _standardized(values_N), _standardized(target_N)
    terms_N: Array = a_N * b_N
    return terms_N


def _rank_correlation_terms(values_N: Array, target_N: Array) -> Array:
    """Return products of standardized ranks, whose mean is Spearman's correlation coefficient."""
    return _correlation_terms(_ranks(values_N), _ranks(target_N))


def _standardized(values_N: Array) -> Array:
    """Return values of mean 0 and standard deviation 1; zeros if all values are equal."""
    centred_N = values_N.astype(np.float64) - values_N.astype(np.float64).mean()
    deviation = centred_N.std()
    standardized_N: Array = centred_N / deviation if deviation > 0 else np.zeros(len(values_N))
    return standardized_N


def _ranks(values_N: Array) -> Array:
    """Return the rank of each value from 0; equal values share the mean of their ranks."""
    _, group_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    ranks_N: Array = (last - (counts - 1) / 2)[group_N]
    return ranks_N


def _error_rate(errors_N: Array, lengths_N: Array) -> Array:
    """Return errors of each transcript by the mean length, whose mean is the error rate."""
    rate_N: Array = errors_N.astype(np.float64) / max(float(lengths_N.mean()), 1e-300)
    return rate_N


def _agreement(logits_PC: Array, reference_PC: Array) -> Array:
    """Return 1 where model and reference have their largest logit at the same class, else 0."""
    return _top1(logits_PC, reference_PC.argmax(axis=1))


def _kl_divergence(logits_PC: Array, reference_PC: Array) -> Array:
    """Return KL(reference || model) in nats (Kullback & Leibler 1951).

    Classes to which the reference gives probability 0 contribute 0.
    """
    target_PC, model_PC = _log_softmax(reference_PC), _log_softmax(logits_PC)
    with np.errstate(invalid="ignore"):  # -inf - -inf, and 0 * inf, where the reference is 0
        terms_PC = np.exp(target_PC) * (target_PC - model_PC)
    total_P = np.where(np.isneginf(target_PC), 0.0, terms_PC).sum(axis=1)
    divergence_P: Array = np.maximum(total_P, 0.0)  # rounding may give values slightly below 0
    return divergence_P


def _log_softmax(logits_PC: Array) -> Array:
    shifted_PC, normalizer_P = _log_softmax_terms(logits_PC)
    return shifted_PC - normalizer_P[:, None]


def _log_softmax_terms(logits_PC: Array) -> tuple[Array, Array]:
    """Return logits minus their row's maximum, against overflow, and the log-sum-exp of these."""
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller reports
        shifted_PC = logits_PC.astype(np.float64) - logits_PC.max(axis=1, keepdims=True)
    return shifted_PC, np.log(np.exp(shifted_PC).sum(axis=1))


def _exponential(mean: float) -> float:
    """Return e**mean; infinite where it overflows, as perplexity does for a mean above 709 nats."""
    with np.errstate(over="ignore"):
        return float(np.exp(mean))


METRICS: dict[str, AccuracyMetric] = {
    "top1": AccuracyMetric("fraction", "higher", _top1, bounds=_FRACTION),
    "cross_entropy": AccuracyMetric("nats", "lower", _cross_entropy, of_distribution=True),
    "perplexity": AccuracyMetric(
        "", "lower", _cross_entropy, from_mean=_exponential, of_distribution=True
    ),
    "mrr": AccuracyMetric("", "higher", _reciprocal_rank, bounds=_FRACTION),
    "agreement": AccuracyMetric("fraction", "higher", _agreement, "reference", bounds=_FRACTION),
    "kl": AccuracyMetric("nats", "lower", _kl_divergence, "reference", of_distribution=True),
    "cosine": AccuracyMetric("", "higher", _cosine, "reference", "values", bounds=_SIGNED),
    "max_abs": AccuracyMetric("", "lower", _max_abs, "reference", "values"),
    "equal": AccuracyMetric(
        "fraction", "higher", _equal_share, "reference", "values", bounds=_FRACTION
    ),
    "relative_error": AccuracyMetric("", "lower", _relative_error, "reference", "values"),
    "correlation": AccuracyMetric(
        "", "higher", _correlation_terms, "reference", "scalar", smallest_slice=2, bounds=_SIGNED
    ),
    "mse": AccuracyMetric("", "lower", _squared_error, scale="scalar"),
    "spearman": AccuracyMetric(
        "", "higher", _rank_correlation_terms, scale="scalar", smallest_slice=2, bounds=_SIGNED
    ),
    "wer": AccuracyMetric("", "lower", _error_rate, scale="transcript"),
    "cer": AccuracyMetric("", "lower", _error_rate, scale="transcript"),
}
"""The metrics of this project that ``evaluate.accuracy.metrics`` may name, beside ``recall@K`` and
``reverse_recall@K`` of any K; other packages add theirs."""
