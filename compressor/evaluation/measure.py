"""Measure an artifact in a fresh process, so that no runtime, cache or heap of another measurement warms it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from compressor.artifacts.fingerprint import digest_json
from compressor.config.validation import references
from compressor.data.contract import SourceContext
from compressor.errors import UsageError
from compressor.evaluation.process import MeasuringProcess
from compressor.evaluation.protocol import ReferenceModel, Request
from compressor.evaluation.records import EvaluateConfig, Measurement
from compressor.runtimes.formats import StoredModel

EVALUATION_VERSION = 3
"""Bump it when the same model, data and ``evaluate:`` section may give other reports."""


def evaluation_digest(
    evaluate: EvaluateConfig, data: Mapping[str, str], reference: str | None
) -> str:
    """What decides whether reports must be measured again.

    Args:
        evaluate: what is asked for.
        data: set to the digest of its content.
        reference: id of the artifact that is compared with; what its step is called cannot change a report.
    """
    asked = evaluate.model_dump(mode="json", exclude={"accuracy": {"reference"}})
    return digest_json(
        {
            "version": EVALUATION_VERSION,
            "evaluate": asked,
            "data": dict(data),
            "reference": reference,
        }
    )


def measure(
    model: StoredModel,
    evaluate: EvaluateConfig,
    sources: Mapping[str, Mapping[str, Any]],
    context: SourceContext,
    *,
    reference: ReferenceModel | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Measurement:
    """Accuracy, latency, memory, size, parameters and MACs of the model in a folder, as ``evaluate`` asks.

    Args:
        model: the model on disk and its format, which decides the runtime.
        evaluate: what is measured.
        sources: data set to the config of its source, in JSON values.
        context: what those sources may use.
        reference: what `agreement` and `kl` compare with.
        progress: called as (what, done, total).

    Raises:
        CompressError: whatever the measuring process raised, as the same class.
        UsageError: ``evaluate`` names a set that is not in ``sources``.
        PassError: the process crashed; the end of what it printed is told.
    """
    with MeasuringProcess(
        request_of(model, evaluate, sources, context, reference=reference)
    ) as process:
        while (answer := process.answer()).measurement is None:
            if answer.progress is not None:
                progress(*answer.progress)
        return answer.measurement


def request_of(
    model: StoredModel,
    evaluate: EvaluateConfig,
    sources: Mapping[str, Mapping[str, Any]],
    context: SourceContext,
    *,
    reference: ReferenceModel | None = None,
    task: Literal["measure", "rounds"] = "measure",
) -> Request:
    """What the measuring process is asked. Arguments and errors as of ``measure``."""
    used = {value for _, reference, value in references(evaluate) if reference.to == "data"}
    if missing := sorted(used - sources.keys()):
        raise UsageError(f"`evaluate:` names sets that `data:` does not have: {', '.join(missing)}")
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
