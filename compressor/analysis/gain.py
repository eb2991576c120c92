"""Savings of every step of a run in bytes, arithmetic and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compressor.analysis.compare import load_batch
from compressor.artifacts.artifact import Artifact
from compressor.artifacts.gain_report import Gain
from compressor.artifacts.lineage import closest_relatives
from compressor.artifacts.runs import RunRecord, kept_run, verified_step
from compressor.data.contract import Batch, SourceContext
from compressor.engine import events
from compressor.engine.gates.baseline import timer_opener
from compressor.engine.gates.measured_model import MeasuredModel
from compressor.engine.gates.rules import Rule
from compressor.engine.gates.verdicts import GateChecker
from compressor.engine.plan.config import BudgetConfig
from compressor.engine.plan.pipeline import Pipeline
from compressor.errors import UsageError
from compressor.runtimes.formats import StoredModel, format_named

_LATENCY = "latency_p50_ms"


def measure_gains(
    run: Path,
    pipeline: Pipeline,
    context: SourceContext,
    budget: BudgetConfig,
    listener: events.Listener,
) -> tuple[Gain, ...]:
    """Compare every step of a run with the nearest earlier artifact of the same runtime.

    Args:
        run: a run, or a store (its last run).
        pipeline: its data is fed to the models as ``evaluate.latency`` states.
        context: base folder, cache and permissions of the data sources.
        budget: rounds and seconds of each comparison.
        listener: receives progress events.

    Raises:
        UsageError: the pipeline has no ``evaluate.latency`` with data.
    """
    open_timer = timer_opener(pipeline, context)
    if open_timer is None:
        raise UsageError(
            "the pipeline does not state how latency is measured", remedy="add `evaluate.latency`"
        )
    latency = pipeline.config.evaluate.without_accuracy().latency
    assert latency is not None  # noqa: S101 - there is a timer
    with kept_run(run) as (folder, record):
        artifacts = {
            step.name: verified_step(folder, step, as_measured=True) for step in record.steps
        }
        meter = _GainMeter(
            checker=GateChecker(open_timer, {}, listener),
            budget=budget,
            batch=load_batch(pipeline, context, latency.data, latency.batch_size),
            threads=latency.threads,
        )
        references = {name: _reference_step(name, record, artifacts) for name in artifacts}
        return tuple(
            meter.measure(
                MeasuredModel.of(artifacts[name], name),
                MeasuredModel.of(artifacts[reference], reference),
            )
            for name, reference in references.items()
            if reference is not None
        )


def _reference_step(step: str, record: RunRecord, artifacts: Mapping[str, Artifact]) -> str | None:
    """Return the closest relative whose latency was measured in the runtime of a step."""
    parents = {entry.name: entry.parent for entry in record.steps}
    runtime = StoredModel.of(artifacts[step]).format.runtime
    for name in closest_relatives(step, parents):
        if name not in artifacts:
            continue
        manifest = artifacts[name].manifest
        same_runtime = format_named(manifest.format).runtime == runtime
        if same_runtime and manifest.metric(_LATENCY) is not None:
            return name
    return None


@dataclass(frozen=True, slots=True)
class _GainMeter:
    """Measures the gain of one model over another."""

    checker: GateChecker
    budget: BudgetConfig
    batch: Batch
    threads: int

    def measure(self, model: MeasuredModel, reference: MeasuredModel) -> Gain:
        artifact, old = model.artifact, reference.artifact
        assert artifact is not None  # noqa: S101 - both are steps of a run
        assert old is not None  # noqa: S101
        low, high, ratio = None, None, None
        if artifact.manifest.metric(_LATENCY) is not None:
            rule = Rule(_LATENCY, "max_ratio", 1.0, reference.name, budget=self.budget)
            result = self.checker(rule, model, reference)
            ratio, low, high = result.found, result.low, result.high
        stored = StoredModel.of(artifact)
        precision = stored.format.low_precision(stored.path, self.batch, self.threads)
        return Gain(
            step=model.name,
            pass_name=artifact.manifest.pass_.name,
            against=reference.name,
            runtime=stored.format.runtime or "none",
            size_ratio=artifact.manifest.model_bytes / old.manifest.model_bytes,
            parameters_ratio=_ratio(artifact, old, "parameters"),
            macs_ratio=_ratio(artifact, old, "macs"),
            low_precision_weights=precision.weights,
            low_precision_macs=precision.macs,
            speedup=1 / ratio if ratio else None,
            speedup_low=1 / high if high else None,
            speedup_high=1 / low if low else None,
            why_not=precision.reasons if high is None or high >= 1 else (),
        )


def _ratio(new: Artifact, old: Artifact, name: str) -> float | None:
    new_metric, old_metric = new.manifest.metric(name), old.manifest.metric(name)
    if new_metric is None or old_metric is None or not old_metric.value:
        return None
    return new_metric.value / old_metric.value
