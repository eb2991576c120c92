"""Accuracy of a model on a data set and on its slices, with confidence intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.artifacts.manifest import Metric
from compressor.data.contract import Batch, Dataset
from compressor.errors import DataError, NumericalError, UsageError
from compressor.evaluation.calls import Calls, plan_calls
from compressor.evaluation.embeddings import PairScorer, RetrievalScorer, ReverseScorer
from compressor.evaluation.intervals import bootstrap_mean_interval, proportion_interval
from compressor.evaluation.logits import LogitsScorer
from compressor.evaluation.metrics import (
    IGNORED_LABEL,
    Array,
    Scores,
    is_metric,
    known_metrics,
    metric_named,
    reference_metrics,
)
from compressor.evaluation.outputs import misfit, output_of, paired_output
from compressor.evaluation.records import AccuracyConfig, AccuracyReport, Progress
from compressor.evaluation.scoring import NOTHING, OutputScorer, ScoredBatch
from compressor.evaluation.text_generator import TextGenerator
from compressor.evaluation.transcripts import CtcScorer, GeneratedScorer, TranscriptScorer
from compressor.evaluation.values import ScalarScorer, ValuesScorer
from compressor.models.capabilities.embeddings import has_vectors
from compressor.runtimes.formats import StoredModel
from compressor.runtimes.session import Session


@dataclass(frozen=True, slots=True)
class GeneratingModel:
    """A model that may be opened to generate text."""

    stored: StoredModel
    threads: int


def measure_accuracy(
    session: Session,
    dataset: Dataset,
    config: AccuracyConfig,
    progress: Progress,
    reference: Session | None = None,
    generating: GeneratingModel | None = None,
) -> AccuracyReport:
    """Run a model on a data set and score its outputs.

    Args:
        session: the model.
        dataset: samples, with labels for metrics that need them.
        config: metrics, batch size and number of samples.
        progress: called with the number of samples done.
        reference: the model that metrics such as ``agreement``, ``kl`` and ``cosine`` compare
            with; ``session`` itself is run once.
        generating: the model of ``session``, to be opened once more for ``wer`` and ``cer`` of the
            texts that an encoder-decoder generates.

    Raises:
        DataError: the data set is empty, has no labels for metrics that need them, or its labels do
            not fit the model's outputs.
        NumericalError: a model outputs NaN, or a metric is infinite.
        UsageError: a metric is unknown, does not apply to the model's outputs, or needs a reference
            and there is none.
    """
    _check_request(session, dataset, config, reference)
    scorers = _scorers(session, dataset, config, generating)
    count = config.sample_count(len(dataset))
    models = (session,) if reference is None else (session, reference)
    sample = dataset.batch(np.zeros(1, dtype=np.int64))
    calls = plan_calls(models, sample, config.batch_size, count)
    done = 0
    for batch in dataset.batches(calls.batch_size, count):
        done += _score_batch(models, batch, scorers, calls, (done, config.data))
        progress("accuracy", done, count)
    notes = [calls.reason and f"accuracy is measured call by call: {calls.reason}"]
    notes += [scorer.note for scorer in scorers]
    report = _report(config, dataset, _merged([scorer.finish() for scorer in scorers], config.data))
    return report.model_copy(update={"notes": tuple(filter(None, notes))})


def _score_batch(
    models: tuple[Session, ...],
    batch: Batch,
    scorers: Sequence[OutputScorer],
    calls: Calls,
    place: tuple[int, str],
) -> int:
    """Score a batch, and return its number of samples; its outputs are freed on return.

    Args:
        models: the model, and the model to compare with if there is one.
        batch: the samples.
        scorers: scorers of the outputs.
        calls: whether outputs have a batch axis.
        place: samples before the batch, and name of the data set.
    """
    outputs: Batch = {}
    reference_outputs = None
    if any(scorer.needs_outputs for scorer in scorers):
        outputs = calls.add_batch_axis(models[0].run(batch))
        for reference in models[1:]:
            is_same = reference is models[0]
            reference_outputs = outputs if is_same else calls.add_batch_axis(reference.run(batch))
    scored = ScoredBatch(batch, outputs, reference_outputs, *place)
    for scorer in scorers:
        scorer.update(scored)
    return max(len(array) for array in (outputs or batch).values())


def _scorers(
    session: Session,
    dataset: Dataset,
    config: AccuracyConfig,
    generating: GeneratingModel | None,
) -> list[OutputScorer]:
    """Return one scorer for each output and kind of metrics, in the order of the metrics."""
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for name in config.metrics:
        metric, output = metric_named(name), output_of(name, session.output_names)
        groups.setdefault((metric.scale, output, metric.is_reverse), []).append(name)
    scorers: list[OutputScorer] = []
    for (scale, output, is_reverse), names in groups.items():
        metrics = tuple(names)
        if scale == "values":
            scorers.append(ValuesScorer(metrics, output))
        elif scale == "scalar":
            scorers.append(ScalarScorer(metrics, output, dataset.label_name))
        elif scale == "transcript":
            scorers.append(_transcript_scorer(metrics, output, dataset, config, generating))
        elif (other := paired_output(output, session.output_names)) is not None:
            scorers.append(PairScorer(metrics, (output, other), dataset.label_name, config.data))
        elif is_reverse:
            scorers.append(ReverseScorer(metrics, output, dataset.label_name, config.data))
        elif has_vectors(output):
            scorers.append(RetrievalScorer(metrics, output, dataset.label_name, config.data))
        else:
            scorers.append(LogitsScorer(metrics, output, dataset.label_name))
    return scorers


def _transcript_scorer(
    metrics: tuple[str, ...],
    output: str,
    dataset: Dataset,
    config: AccuracyConfig,
    generating: GeneratingModel | None,
) -> TranscriptScorer:
    """Return a scorer of CTC for a data set with a blank, and of generated text for others.

    Raises:
        DataError: the data set has no texts, or the model no encoder.
        UsageError: the model does not generate.
    """
    if dataset.blank_token is not None or dataset.texts is None:
        return CtcScorer(metrics, dataset, normalize=config.normalize, output=output)
    if generating is None:
        raise UsageError(
            f"{' and '.join(metrics)} of generated text need the whole model, not its layers",
            remedy="name a metric of the logits, such as perplexity",
        )
    generator = TextGenerator(
        generating.stored, dataset, max_tokens=config.max_tokens, threads=generating.threads
    )
    return GeneratedScorer(metrics, dataset, normalize=config.normalize, generator=generator)


def _merged(results: Sequence[Scores], data: str) -> Scores:
    """Return the scores of several scorers as one; a sample counts if any of them counts it.

    Raises:
        DataError: no sample counts.
    """
    for result in results:
        if not result.counted.any():
            raise DataError(
                f"all labels of the data set {data!r} are {IGNORED_LABEL}: nothing is scored",
                remedy="if its samples are cut before their answers, raise `sequence_length`",
            )
    values: dict[str, Array] = {}
    scored: dict[str, Array] = {}
    terms: dict[str, tuple[Array, Array]] = {}
    counted = np.zeros_like(results[0].counted)
    for result in results:
        values |= result.values
        scored |= result.scored
        terms |= result.terms
        counted |= result.counted
    single = next((result for result in results if len(result.labels)), None)
    if single is None:
        return Scores(values, scored, counted, NOTHING, NOTHING, terms)
    return Scores(values, scored, counted, single.predictions, single.labels, terms)


def _check_request(
    session: Session, dataset: Dataset, config: AccuracyConfig, reference: Session | None
) -> None:
    unknown = [name for name in config.metrics if not is_metric(name)]
    if unknown:
        raise UsageError(
            f"unknown metrics: {', '.join(unknown)}", remedy=f"known: {', '.join(known_metrics())}"
        )
    if len(dataset) == 0:
        raise DataError(f"the data set {config.data!r} is empty: accuracy cannot be measured")
    compared = reference_metrics(config.metrics)
    labelled = [name for name in config.metrics if name not in compared]
    if labelled and dataset.label_name is None:
        raise DataError(
            f"the data set {config.data!r} has no labels, required for {', '.join(labelled)}",
            remedy="use a data set with labels, or only metrics that compare with a reference, "
            "such as agreement and kl",
        )
    if compared and reference is None:
        raise UsageError(
            f"{' and '.join(compared)} compare with a reference, and there is none",
            remedy="name one as `evaluate.accuracy.reference`",
        )
    _check_outputs(session, config, reference)


def _check_outputs(session: Session, config: AccuracyConfig, reference: Session | None) -> None:
    """Check that the model, and the reference, have the outputs that metrics score.

    Raises:
        DataError: they have not.
    """
    misfits = [
        reason
        for name in config.metrics
        if (reason := misfit(name, session.output_names, None, session.outputs)) is not None
    ]
    if misfits:
        raise DataError(
            "; ".join(misfits),
            remedy="name metrics that fit, an output as in `cosine:NAME`, or measure latency only",
        )
    compared = {output_of(name, session.output_names) for name in reference_metrics(config.metrics)}
    missing = sorted(compared - set(reference.output_names)) if reference is not None else []
    if missing and reference is not None:
        raise DataError(
            f"the reference has no output {', '.join(f'`{name}`' for name in missing)}; it has "
            f"{', '.join(reference.output_names)}",
            remedy="name a reference of the same task as `evaluate.accuracy.reference`",
        )


def _report(config: AccuracyConfig, dataset: Dataset, scores: Scores) -> AccuracyReport:
    slices = {
        axis: np.asarray(labels)[: len(scores.counted)] for axis, labels in dataset.slices().items()
    }
    whole: list[Metric] = []
    by_slice: list[Metric] = []
    for name in config.metrics:
        values = scores.values[name]
        whole.append(_metric(name, name, values, config.bootstrap))
        scored_slices = {axis: labels[scores.scored[name]] for axis, labels in slices.items()}
        by_slice += _slice_metrics(
            name, values, scored_slices, config.bootstrap, scores.terms.get(name)
        )
    return AccuracyReport(
        data=config.data,
        samples=int(scores.counted.sum()),
        metrics=(*whole, *by_slice),
        slices={axis: _count_values(labels[scores.counted]) for axis, labels in slices.items()},
        predictions=tuple(scores.predictions.tolist()),
        labels=tuple(scores.labels.tolist()),
        values={name: tuple(scores.values[name].tolist()) for name in config.metrics},
    )


def _slice_metrics(
    name: str,
    values: Array,
    slices: Mapping[str, Array],
    resamples: int,
    terms: tuple[Array, Array] | None,
) -> Iterator[Metric]:
    """Yield a metric of each slice in which it is defined; from ``terms`` if there are any."""
    metric = metric_named(name)
    for axis, labels in slices.items():
        for label in np.unique(labels):
            chosen = labels == label
            part = values[chosen]
            if terms is not None:
                first, second = (array[chosen] for array in terms)
                if metric.scale == "transcript" and not second.any():
                    continue  # only empty texts
                part = metric.score(first, second)
            if len(part) >= metric.smallest_slice:
                yield _metric(name, f"{name}[{axis}={label}]", part, resamples)


def _metric(kind: str, name: str, values: Array, resamples: int) -> Metric:
    metric = metric_named(kind)
    value = metric.from_mean(float(values.mean()))
    low = high = None
    if np.isfinite(values).all():
        bound = proportion_interval if metric.unit == "fraction" else bootstrap_mean_interval
        interval = bound(values, resamples)
        low, high = map(metric.from_mean, interval) if interval else (None, None)
    if not np.isfinite([value, *(end for end in (low, high) if end is not None)]).all():
        raise NumericalError(
            f"{name} is not finite: the model gives probability 0 to the target of some samples"
        )
    return Metric(
        name=name,
        value=value,
        unit=metric.unit,
        better=metric.better,
        samples=len(values),
        low=low,
        high=high,
    )


def _count_values(values: Array) -> dict[str, int]:
    names, counts = np.unique(values, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}
