"""Measure a model in a fresh process, unaffected by earlier measurements' caches and memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from compressor.artifacts.fingerprint import digest_json
from compressor.config.record import with_former_names
from compressor.config.validation import references
from compressor.data.contract import SourceContext
from compressor.errors import UsageError
from compressor.evaluation.metrics import plugin_digests
from compressor.evaluation.process import MeasuringProcess
from compressor.evaluation.protocol import Answer, ReferenceModel, Request, Task
from compressor.evaluation.records import EvaluateConfig, Measurement, Progress
from compressor.runtimes.formats import StoredModel

EVALUATION_VERSION = 4
"""Increase it when the same model, data and ``evaluate:`` section may give different reports."""


def evaluation_digest(
    evaluate: EvaluateConfig, data: Mapping[str, str], reference: str | None
) -> str:
    """Return a digest of everything that determines the reports of a model.

    Args:
        evaluate: the ``evaluate:`` section.
        data: data set to the digest of its content.
        reference: id of the artifact to compare with; the name of its step does not matter.
    """
    section = with_former_names(evaluate, evaluate.model_dump(mode="json"))
    if evaluate.accuracy is not None:
        del section["accuracy"]["reference"]
    parts: dict[str, Any] = {
        "version": EVALUATION_VERSION,
        "evaluate": section,
        "data": dict(data),
        "reference": reference,
    }
    code = plugin_digests(evaluate.accuracy.metrics) if evaluate.accuracy is not None else {}
    return digest_json({**parts, "code": code} if code else parts)


def measure(
    model: StoredModel,
    evaluate: EvaluateConfig,
    sources: Mapping[str, Mapping[str, Any]],
    context: SourceContext,
    *,
    reference: ReferenceModel | None = None,
    progress: Progress = lambda *_: None,
) -> Measurement:
    """Measure accuracy, latency, generation, memory, size, parameters and MACs of a model.

    Generation has a process of its own, whose memory holds nothing else.

    Args:
        model: the model on disk and its format, which determines the runtime.
        evaluate: the ``evaluate:`` section; what it has is measured.
        sources: data set to the config of its source, in JSON values.
        context: base folder, cache and permissions of the data sources.
        reference: the model that ``agreement``, ``kl`` and ``cosine`` compare with.
        progress: called with a task, the number of samples or calls done, and their total.

    Raises:
        CompressError: an error of the measuring process, as the same class.
        UsageError: ``evaluate`` names a data set that is not in ``sources``.
        PassError: the process crashed; the message ends with the last lines that it printed.
    """
    request = make_request(model, evaluate, sources, context, reference=reference)
    measurement = _result(request, progress).measurement
    assert measurement is not None  # noqa: S101 - the answer to this task
    if evaluate.generation is None:
        return measurement
    generation = _result(request.model_copy(update={"task": "generation"}), progress).generation
    assert generation is not None  # noqa: S101 - the answer to this task
    metrics = (*measurement.metrics, *generation.metrics)
    return measurement.model_copy(update={"generation": generation, "metrics": metrics})


def _result(request: Request, progress: Progress) -> Answer:
    """Carry out a request in a fresh process, and return its last message."""
    with MeasuringProcess(request) as process:
        while (answer := process.receive()).progress is not None:
            progress(*answer.progress)
        return answer


def make_request(
    model: StoredModel,
    evaluate: EvaluateConfig,
    sources: Mapping[str, Mapping[str, Any]],
    context: SourceContext,
    *,
    reference: ReferenceModel | None = None,
    task: Task = "measure",
) -> Request:
    """Return the request to a measuring process; arguments and errors as for ``measure``."""
    used = {name for _, target, name in references(evaluate) if target.to == "data"}
    if missing := sorted(used - sources.keys()):
        raise UsageError(
            f"`evaluate:` names data sets that are not in `data:`: {', '.join(missing)}"
        )
    return Request(
        task=task,
        format=model.format.name,
        model=model.path.resolve(),
        evaluate=evaluate,
        sources={name: dict(sources[name]) for name in sorted(used)},
        reference=reference and reference.model_copy(update={"model": reference.model.resolve()}),
        base=context.base.resolve(),
        allow_code=context.allow_code,
        cache=context.cache.resolve(),
        parent=os.getpid(),
    )
