"""The output of a model that a metric scores, and the metrics that do not fit an output."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.evaluation.class_outputs import LOGITS, shape_problem
from compressor.evaluation.metrics import METRICS, metric_named
from compressor.models.capabilities.embeddings import EMBEDDING, Embeddings, has_vectors
from compressor.models.capabilities.signature import OutputSpec

TEXTS = "text_embeds"
"""Embeddings of texts, the queries by default where a model embeds images too."""
_NO_SCORES = frozenset({"bool", "int16", "int32", "int64", "uint16", "uint32", "uint64", "string"})
"""Dtypes of class ids and flags."""


def output_of(request: str, outputs: Sequence[str]) -> str:
    """Return the output that a metric scores.

    It is the one that the request names. Otherwise metrics of classes score `logits`, or else
    embeddings, or else the only output; metrics of values score embeddings, or else the first
    output.

    Args:
        request: a metric, such as ``kl`` or ``cosine:pred_boxes``.
        outputs: the outputs of the model, in its order.
    """
    named = request.partition(":")[2]
    if named:
        return named
    if metric_named(request).scale == "values":
        return EMBEDDING if EMBEDDING in outputs and LOGITS not in outputs else outputs[0]
    is_retrieval = metric_named(request).is_retrieval
    if (LOGITS in outputs and not is_retrieval) or not outputs:
        return LOGITS
    classes = [name for name in outputs if has_classes(name)]
    vectors = [name for name in outputs if has_vectors(name)]
    first_vector = [name for name in (EMBEDDING, TEXTS) if name in outputs] or vectors
    if is_retrieval:
        return (first_vector or list(outputs))[0]
    only = list(outputs) if len(outputs) == 1 else [LOGITS]
    return (first_vector or classes or only)[0]


def has_classes(output: str) -> bool:
    """Return True if an output has a logit for each class."""
    return LOGITS in output


def paired_output(output: str, outputs: Sequence[str]) -> str | None:
    """Return the embeddings of the other kind, such as the images of a model of images and texts.

    A model has exactly two outputs that end in ``_embeds``; None for others.
    """
    pair = Embeddings(tuple(outputs)).pair
    if pair is None or output not in pair:
        return None
    return pair[1 - pair.index(output)]


def misfit(
    request: str,
    outputs: Sequence[str],
    classes: int | None,
    specs: Sequence[OutputSpec] = (),
) -> str | None:
    """Return why a metric does not fit the outputs of a model; None if it does.

    Args:
        request: the metric.
        outputs: the outputs of the model.
        classes: number of classes of ``logits``; None if not known.
        specs: shapes of the outputs, where the model declares them.
    """
    output = output_of(request, outputs)
    scale, base = metric_named(request).scale, request.partition(":")[0]
    listed = ", ".join(outputs)
    if output not in outputs:
        missing = f"{request} scores `{output}`, and the model has the outputs {listed}"
        if ":" not in request and not metric_named(request).is_retrieval:
            return f"{missing}; name one, as in `{base}:{outputs[0]}`"
        return missing
    if scale == "classes" and output == LOGITS and classes == 1:
        return f"{base} compares classes, and the model's `logits` are one score per sample"
    if scale == "classes" and not metric_named(request).is_retrieval and not has_vectors(output):
        spec = next((spec for spec in specs if spec.name == output), None)
        if spec is not None and (problem := _class_problem(request, spec)) is not None:
            return problem
    if metric_named(request).is_retrieval and not has_vectors(output):
        return f"{base} is of retrieval by embeddings, and `{output}` holds none"
    if metric_named(request).is_reverse and (other := paired_output(output, outputs)) is not None:
        count = base.removeprefix("reverse_")
        return f"{base} is of one encoder of queries and passages; name `{count}:{other}`"
    if scale == "scalar" and output == LOGITS and classes is not None and classes > 1:
        return f"{base} compares one score per sample, and the model has {classes} classes"
    if scale == "transcript" and not has_classes(output) and ":" not in request:
        return (
            f"{base} compares texts, which follow from logits; the model has the outputs {listed}"
        )
    return None


def _class_problem(request: str, spec: OutputSpec) -> str | None:
    """Return why an output of a declared shape and dtype has no classes; None if it may."""
    base = request.partition(":")[0]
    if spec.dtype in _NO_SCORES:
        return (
            f"{base} compares classes, and `{spec.name}` holds {spec.dtype} values; "
            f"`equal:{spec.name}` compares these"
        )
    if spec.shape is None:
        return None
    is_named = ":" in request or has_classes(spec.name)
    return shape_problem(base, spec.name, spec.shape, named=is_named)


def fitting_metrics(
    outputs: Sequence[str], classes: int | None, specs: Sequence[OutputSpec] = ()
) -> tuple[str, ...]:
    """Return the metrics that compare the outputs of a model with those of a reference, and fit.

    Integers, such as class ids, are equal or not.
    """
    integers = {spec.name for spec in specs if spec.dtype in _NO_SCORES}
    metrics = _fitting_metrics(outputs, classes if integers.isdisjoint(outputs[:1]) else None)
    return tuple(
        f"equal:{name}" if request.startswith("cosine") and name in integers else request
        for request in metrics
        for name in [output_of(request, outputs)]
    )


def _fitting_metrics(outputs: Sequence[str], classes: int | None) -> tuple[str, ...]:
    if LOGITS in outputs:
        candidates: tuple[str, ...] = ("agreement", "kl") if classes != 1 else ("correlation",)
        return (*candidates, *(f"cosine:{name}" for name in outputs if name != LOGITS))
    if EMBEDDING in outputs:
        return ("cosine",)
    if len(outputs) == 1 and classes is not None and classes > 1:
        return ("agreement", "cosine")
    return tuple(f"cosine:{name}" for name in outputs) if len(outputs) > 1 else ("cosine",)


def labelled_metrics() -> tuple[str, ...]:
    """Return the names of the metrics that compare with labels."""
    return tuple(name for name, metric in METRICS.items() if metric.target == "labels")
