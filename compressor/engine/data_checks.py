"""Compare data sets with the models that run on them: as planned, and by their first samples.

Every function returns pairs of a problem and its remedy; the caller adds the place in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from compressor.data.contract import DataFacts, Dataset, InputFacts
from compressor.engine.contract import DataNeed
from compressor.evaluation.embeddings import passage_count, whole_recall
from compressor.evaluation.metrics import metric_named, recall_count, reference_metrics
from compressor.evaluation.outputs import fitting_metrics, misfit, output_of
from compressor.evaluation.records import (
    TEXT_METRICS,
    AccuracyConfig,
    EvaluateConfig,
    GenerationConfig,
)
from compressor.models.architecture import Architecture
from compressor.models.capabilities.cached_generation import CachedGeneration
from compressor.models.capabilities.signature import REST, InputSpec, Signature, describe_shape
from compressor.runtimes.session import input_problems, is_whole_sample, sample_specs

Finding = tuple[str, str]
"""A problem, and its remedy."""
_DECODER_TOKENS = "decoder_input_ids"


def evaluation_needs(evaluate: EvaluateConfig) -> tuple[DataNeed, ...]:
    """Return the data sets on which ``evaluate:`` measures a model."""
    needs = []
    accuracy, latency, generation = evaluate.accuracy, evaluate.latency, evaluate.generation
    if accuracy is not None:
        compared = reference_metrics(accuracy.metrics)
        labelled = [name for name in accuracy.metrics if name not in compared]
        metrics = f"metrics: [{', '.join(labelled)}]" if labelled else None
        unlabelled = "metrics: [agreement, kl]"
        need = DataNeed(
            "accuracy.data", accuracy.data, "", metrics, unlabelled, ignores_inputs=True
        )
        needs.append(need)
    if latency is not None and latency.data is not None:
        needs.append(
            DataNeed("latency.data", latency.data, "", ignores_inputs=True, any_values=True)
        )
    if generation is not None and generation.data is not None:
        needs.append(
            DataNeed("generation.data", generation.data, "", ignores_inputs=True, any_values=True)
        )
    return tuple(needs)


def accuracy_problems(
    accuracy: AccuracyConfig, facts: DataFacts, signature: Signature
) -> Iterator[tuple[str, Finding]]:
    """Yield fields of ``evaluate.accuracy`` that do not fit a model, each with a problem."""
    for finding in (
        *_metric_problems(accuracy.metrics, signature),
        *_recall_problems(accuracy, facts, signature),
    ):
        yield "metrics", finding
    is_default = accuracy.max_tokens == AccuracyConfig.model_fields["max_tokens"].default
    if not is_default and not _has_decoder(signature):
        yield (
            "max_tokens",
            (
                "no effect of `max_tokens`: the model has no decoder, and texts are spelled from "
                "its logits",
                "leave `max_tokens` out",
            ),
        )


def generation_problems(
    accuracy: AccuracyConfig, signature: Signature
) -> Iterator[tuple[str, Finding]]:
    """Yield the metrics of generated text, which a graph that rounds activations does not have."""
    metrics = [name for name in accuracy.metrics if name.partition(":")[0] in TEXT_METRICS]
    if metrics and _has_decoder(signature):
        yield (
            "metrics",
            (
                f"{' and '.join(metrics)} are of generated text; `export-onnx` writes a model "
                "whose activations are rounded (`qat`) without a cache, and it does not generate",
                "quantize weights alone (`awq` with `bits: 8`), or give the step `measure: false`",
            ),
        )


def timed_generation_problems(config: GenerationConfig, model: Architecture) -> Iterator[Finding]:
    """Yield why the generation of a model cannot be timed as ``evaluate.generation`` states."""
    cached = model.capability(CachedGeneration)
    if cached is None:
        yield (
            f"this model of the family {model.family.name} generates no text",
            "remove `evaluate.generation`",
        )
    elif cached.encoder_inputs:
        yield (
            "the model has an encoder, and only decoders are timed",
            "remove `evaluate.generation`",
        )
    else:
        yield from config.context_problems(cached.context_length)


def _has_decoder(signature: Signature) -> bool:
    return any(spec.name == _DECODER_TOKENS for spec in signature.inputs)


def _recall_problems(
    accuracy: AccuracyConfig, facts: DataFacts, signature: Signature
) -> Iterator[Finding]:
    """Yield the metrics ``recall@K`` that find all passages of the samples, whatever the model."""
    if facts.retrieval_labels is None:
        return
    labels = facts.retrieval_labels[: accuracy.num_samples]
    whole: dict[tuple[int, bool], list[str]] = {}
    for name in accuracy.metrics:
        count = recall_count(name)
        is_reverse = metric_named(name).is_reverse
        output = output_of(name, signature.outputs)
        passages = passage_count(labels, output, is_reverse=is_reverse)
        if count is not None and count >= passages:
            whole.setdefault((passages, is_reverse), []).append(name)
    for (passages, _), names in whole.items():
        yield whole_recall(names, passages, accuracy.data)


def _metric_problems(metrics: Sequence[str], signature: Signature) -> Iterator[Finding]:
    """Yield the metrics that do not apply to the outputs of a model."""
    outputs, classes = signature.outputs, signature.classes
    misfits = {
        name: reason
        for name in metrics
        if (reason := misfit(name, outputs, classes, signature.output_specs)) is not None
    }
    rest = [name for name in metrics if name not in misfits]
    fitting = ", ".join(rest or fitting_metrics(outputs, classes, signature.output_specs))
    for reason in dict.fromkeys(misfits.values()):
        yield reason, f"set `metrics: [{fitting}]`"


def planned_problems(
    need: DataNeed, facts: DataFacts, signature: Signature | None
) -> Iterator[Finding]:
    """Yield everything in which a data set does not fit a model, as far as both are known."""
    if facts.is_random and not need.any_values:
        yield (
            f"data set {need.data!r} is random, and nothing but latency can be measured on it",
            f"name real samples in `{need.field}`, or measure `latency` alone",
        )
        return
    yield from _content_problems(need, facts.has_labels, facts.num_samples)
    if signature is not None and need.labels is not None:
        yield from _class_problems(need, facts, signature)
    if signature is None or facts.inputs is None:
        return
    inputs = {input_.name: input_ for input_ in facts.inputs}
    yield from _name_problems(need, tuple(inputs), signature, facts.more_inputs)
    for spec in signature.inputs:
        if spec.name in inputs:
            yield from _input_problems(need, inputs[spec.name], spec)


def sample_problems(
    need: DataNeed, dataset: Dataset, signature: Signature | None
) -> Iterator[Finding]:
    """Yield everything in which the first and the last sample of a data set do not fit a model."""
    has_labels = dataset.label_name is not None
    yield from _content_problems(need, has_labels, len(dataset))
    if not len(dataset):
        return
    findings: dict[str, None] = {}
    for index in sorted({0, len(dataset) - 1}):
        batch = dataset.batch(np.array([index], dtype=np.int64))
        if need.labels is not None and has_labels and dataset.label_name not in batch:
            yield from _content_problems(need, has_labels=False, num_samples=None)
        if signature is not None:
            arrays = {name: batch[name] for name in dataset.input_names}
            findings |= dict.fromkeys(
                input_problems(arrays, sample_specs(arrays, signature.inputs))
            )
    if signature is not None and not need.ignores_inputs:
        yield from _unknown_inputs(need, dataset.input_names, signature)
    remedy = f"name a data set in `{need.field}` that was made for this model"
    for problem in findings:
        yield f"data set {need.data!r}: {problem}", remedy


def _content_problems(
    need: DataNeed, has_labels: bool | None, num_samples: int | None
) -> Iterator[Finding]:
    if num_samples == 0:
        yield f"data set {need.data!r} is empty", f"name another data set in `{need.field}`"
    elif num_samples is not None and num_samples < need.min_samples:
        yield (
            f"data set {need.data!r} has {num_samples} samples, fewer than "
            f"`{need.min_samples_field}` ({need.min_samples})",
            f"set `{need.min_samples_field}: {num_samples}`, or name a larger data set",
        )
    if need.labels is not None and has_labels is False:
        alternative = "" if need.unlabelled is None else f", or set `{need.unlabelled}`"
        yield (
            f"data set {need.data!r} has no labels, which `{need.labels}` needs",
            f"name a data set with labels in `{need.field}`{alternative}",
        )


def _class_problems(need: DataNeed, facts: DataFacts, signature: Signature) -> Iterator[Finding]:
    classes, outputs = facts.num_classes, signature.classes
    if classes is not None and outputs is not None and classes > outputs:
        names = facts.class_names
        named = f"{classes} classes" if names else f"labels up to {classes - 1}"
        yield (
            f"data set {need.data!r} has {named}; the model has {outputs} outputs",
            f"name a data set of at most {outputs} classes in `{need.field}`, or start from a "
            "model with more outputs",
        )


def _name_problems(
    need: DataNeed, names: tuple[str, ...], signature: Signature, more: Mapping[str, str]
) -> Iterator[Finding]:
    if not need.ignores_inputs:
        yield from _unknown_inputs(need, names, signature)
    missing = [spec.name for spec in signature.required_inputs if spec.name not in names]
    if missing:
        added = [f"`{more[name]}`" for name in missing if name in more]
        remedy = f"set {' and '.join(added)} in `data.{need.data}`"
        yield (
            f"data set {need.data!r} lacks inputs of the model: {', '.join(missing)}; "
            f"it has {', '.join(names)}",
            remedy if len(added) == len(missing) else _source_remedy(need),
        )


def _unknown_inputs(
    need: DataNeed, names: tuple[str, ...], signature: Signature
) -> Iterator[Finding]:
    taken = [spec.name for spec in signature.inputs]
    if unknown := sorted(set(names) - set(taken)):
        yield (
            f"data set {need.data!r} has inputs that the model does not take: "
            f"{', '.join(unknown)}; it takes {', '.join(taken)}",
            _source_remedy(need),
        )


def _source_remedy(need: DataNeed) -> str:
    return f"name a data set in `{need.field}` whose source gives the inputs of this model"


def _input_problems(need: DataNeed, facts: InputFacts, spec: InputSpec) -> Iterator[Finding]:
    if problem := _shape_problem(facts, spec):
        remedy = f"change `data.{need.data}`, or name another data set in `{need.field}`"
        yield f"data set {need.data!r}: {spec.name}: {problem}", remedy
    if spec.below is not None and facts.largest is not None and facts.largest >= spec.below:
        origin = facts.largest_from or f"data set {need.data!r}"
        yield (
            f"{origin} has ids up to {facts.largest}; the table of the model for {spec.name} has "
            f"{spec.below} rows",
            f"use the tokenizer of this model for `data.{need.data}`; if it is, resize the "
            "embedding in transformers: `model.resize_token_embeddings(len(tokenizer))`",
        )


def _shape_problem(facts: InputFacts, spec: InputSpec) -> str | None:
    """Return what is wrong with the shape of a sample; sizes that are not known fit."""
    has_batch_axis = not is_whole_sample(spec, (None, *facts.shape))
    names_batch = has_batch_axis and spec.shape != (REST,)
    dimensions = spec.shape[1:] if names_batch else spec.shape
    sizes = ", ".join("?" if size is None else str(size) for size in facts.shape)
    expected = describe_shape(dimensions)
    is_open = dimensions[-1:] == (REST,)
    known = dimensions[:-1] if is_open else dimensions
    if len(facts.shape) < len(known) or (len(facts.shape) > len(known) and not is_open):
        return f"a sample has the shape [{sizes}], expected {expected}"
    for size, dimension in zip(facts.shape, known, strict=False):
        if size is None:
            continue
        if isinstance(dimension, int):
            if size != dimension:
                return f"a sample has the shape [{sizes}], expected {expected}"
        elif spec.longest is not None and size > spec.longest:
            return f"{dimension} is {size}; the model takes at most {spec.longest}"
    return None
