"""Proof of gain: of every step of a run, what it saved in bytes, in arithmetic and in time, and where it saved none, why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compressor.analysis.compare import samples_of_set
from compressor.artifacts.gain_report import Gain
from compressor.artifacts.runs import RunRecord, find_run
from compressor.artifacts.store import Artifact, open_artifact, verify
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


def gains(
    run: Path,
    pipeline: Pipeline,
    context: SourceContext,
    budget: BudgetConfig,
    listener: events.Listener,
) -> tuple[Gain, ...]:
    """Every step of a run that has something to be compared with.

    Args:
        run: a run, or a store (its last run).
        pipeline: whose data is fed, and whose ``evaluate.latency`` says how time is taken.
        context: what its data sources may use.
        budget: for each comparison in turns.
        listener: told of rounds.

    Raises:
        UsageError: the pipeline says nothing of latency.
    """
    player = timer_opener(pipeline, context)
    if player is None:
        raise UsageError(
            "the pipeline does not say how latency is measured", remedy="add `evaluate.latency`"
        )
    folder, record = find_run(run)
    root = folder.parent.parent
    artifacts = {step.name: open_artifact(root / step.artifact) for step in record.steps}
    judge = GateChecker(player, {}, listener)
    latency = pipeline.config.evaluate.without_accuracy().latency
    assert latency is not None  # noqa: S101 - there is a player
    batch = samples_of_set(pipeline, context, latency.data, latency.batch_size)
    found = []
    for name, artifact in artifacts.items():
        against = _compared_with(name, record, artifacts)
        if against is not None:
            verify(artifact)
            found.append(
                _gain(name, artifact, against, artifacts[against], judge, budget, batch, pipeline)
            )
    return tuple(found)


def _compared_with(step: str, record: RunRecord, artifacts: Mapping[str, Artifact]) -> str | None:
    """The nearest ancestor of the same runtime; else an artifact of that runtime that comes straight from an ancestor."""
    parents = {one.name: one.parent for one in record.steps}
    runtime = StoredModel.of(artifacts[step]).format.runtime
    before = parents[step]
    ancestors = []
    while before is not None and before in artifacts:
        ancestors.append(before)
        before = parents[before]
    candidates = [
        *ancestors,
        *(name for one in ancestors for name, parent in parents.items() if parent == one),
    ]
    for name in candidates:
        manifest = artifacts[name].manifest
        if (
            name != step
            and format_named(manifest.format).runtime == runtime
            and manifest.metric(_LATENCY) is not None
        ):
            return name
    return None


def _gain(
    name: str,
    artifact: Artifact,
    against: str,
    other: Artifact,
    judge: GateChecker,
    budget: BudgetConfig,
    batch: Batch,
    pipeline: Pipeline,
) -> Gain:
    model = StoredModel.of(artifact)
    low, high, ratio = None, None, None
    if artifact.manifest.metric(_LATENCY) is not None:
        rule = Rule(_LATENCY, "max_ratio", 1.0, against, budget=budget)
        found = judge(rule, MeasuredModel.of(artifact, name), MeasuredModel.of(other, against))
        ratio, low, high = found.found, found.low, found.high
    latency = pipeline.config.evaluate.latency
    threads = latency.threads if latency else pipeline.config.threads
    low_precision = model.format.low_precision(model.path, batch, threads)
    return Gain(
        step=name,
        pass_name=artifact.manifest.pass_.name,
        against=against,
        runtime=model.format.runtime or "none",
        size_ratio=artifact.manifest.model_bytes / other.manifest.model_bytes,
        parameters_ratio=_ratio(artifact, other, "parameters"),
        macs_ratio=_ratio(artifact, other, "macs"),
        low_precision_weights=low_precision.weights,
        low_precision_macs=low_precision.macs,
        speedup=1 / ratio if ratio else None,
        speedup_low=1 / high if high else None,
        speedup_high=1 / low if low else None,
        why_not=low_precision.reasons if high is None or high >= 1 else (),
    )


def _ratio(artifact: Artifact, other: Artifact, metric: str) -> float | None:
    new, old = artifact.manifest.metric(metric), other.manifest.metric(metric)
    return new.value / old.value if new is not None and old is not None and old.value else None
