"""Check the gates of a run, and compare a run with a baseline that another run left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compressor.artifacts.artifact import Artifact, is_artifact
from compressor.artifacts.run_folders import run_folders
from compressor.artifacts.runs import GateResult, load_run
from compressor.artifacts.sessions import keep
from compressor.artifacts.trust import signatures_required
from compressor.data.contract import SourceContext
from compressor.engine import events
from compressor.engine.gates.measured_model import (
    MeasuredModel,
    find_counterpart,
    measured_models_at,
    require_trusted_models,
)
from compressor.engine.gates.rules import BOUNDS, Rule, rules_of
from compressor.engine.gates.verdicts import GateChecker, OpenTimer
from compressor.engine.plan.gate_problems import is_path
from compressor.engine.plan.pipeline import Pipeline
from compressor.errors import DamagedArtifactError, UsageError
from compressor.evaluation.interleaved import RoundTimer
from compressor.evaluation.measure import make_request
from compressor.runtimes.formats import StoredModel

_TAIL_PERCENTILES = ("latency_p90_ms", "latency_p99_ms")
_ROUND_FRACTION = 5
"""A round has 1/5 of ``repeats`` calls, but all of them for a percentile at the tail."""
_MIN_CALLS = 5
_NOT_COMPARED = frozenset(
    {
        *("peak_rss_bytes", "energy_mj", "executed"),
        *("first_token_ms", "tokens_per_second", "generation_peak_rss_bytes"),
    }
)
"""Metrics that one measurement does not settle, or that are no cost."""


@dataclass(frozen=True, slots=True)
class BaselineCheck:
    """Result of ``gate RUN --against BASELINE``."""

    run: str
    baseline: str
    gates: tuple[GateResult, ...]


def timer_opener(pipeline: Pipeline, context: SourceContext) -> OpenTimer | None:
    """Return a function that opens models to be timed as ``evaluate.latency`` states.

    None if the pipeline measures no latency, or names no data for it.
    """
    evaluate = pipeline.config.evaluate.without_accuracy()
    if evaluate.latency is None or evaluate.latency.data is None:
        return None
    sources = {name: data.config.model_dump(mode="json") for name, data in pipeline.data.items()}
    latency = evaluate.latency
    calls = max(_MIN_CALLS, latency.repeats // _ROUND_FRACTION)

    def open_timer(artifact: Artifact, metric: str) -> RoundTimer:
        repeats = latency.repeats if metric in _TAIL_PERCENTILES else calls
        per_round = latency.model_copy(update={"repeats": repeats})
        asked = evaluate.model_copy(update={"latency": per_round})
        model = StoredModel.of(artifact)
        return RoundTimer(make_request(model, asked, sources, context, task="rounds"))

    return open_timer


def earlier_verdicts(store: Path) -> tuple[dict[str, GateResult], list[str]]:
    """Return the decided verdicts of latency gates in earlier runs of a store, by key; and notes.

    Damaged records are left out, with a note.
    """
    verdicts: dict[str, GateResult] = {}
    notes = []
    for folder in run_folders(store):
        try:
            gates = load_run(folder).gates
        except DamagedArtifactError as error:
            notes.append(f"{error.what}: its verdicts are not used")
            continue
        verdicts |= {gate.key: gate for gate in gates if gate.key and gate.decided}
    return verdicts, notes


def gate_against(
    run: Path,
    baseline: Path,
    limits: Sequence[str],
    pipeline: Pipeline | None,
    context: SourceContext,
    listener: events.Listener,
) -> BaselineCheck:
    """Check a run (or an artifact) against a baseline (a run, a store, an artifact, a ladder).

    Args:
        run: the run to check.
        baseline: the reference.
        limits: rules such as ``top1:max_drop=0.01``, for every step that both have.
        pipeline: states how latency is measured again. Without ``limits``, its gates that are
            absolute or refer to a baseline (``against`` is a path) are checked against this one.
        context: what the pipeline's data sources may use.
        listener: receives progress events.

    Raises:
        UsageError: a limit cannot be parsed, or no limit applies.
        DamagedArtifactError: signatures are required, and an artifact has none.
    """
    checked, references = measured_models_at(run), measured_models_at(baseline)
    if signatures_required(pipeline is not None and pipeline.config.require_signatures):
        own_store = _store_of(checked, run)
        require_trusted_models(checked, own_store)
        require_trusted_models(references, own_store)
    pairs = _pair_steps(checked, references)
    rules: list[tuple[str | None, Rule]] = [(None, parse_limit(text)) for text in limits]
    if pipeline is not None and not limits:
        rules = _pipeline_rules(pipeline, default_step=list(checked)[-1])
    open_timer = timer_opener(pipeline, context) if pipeline is not None else None
    check = GateChecker(open_timer, {}, listener)
    with keep(_measured_artifacts(pairs) if open_timer is not None else {}):
        results = [
            check(rule, *pair)
            for pair in pairs
            for rule in (_applicable(rules, *pair) if rules else _not_worse(*pair))
        ]
    if not results:
        raise UsageError(
            f"no limit applies to the metrics of {run}", remedy=f"its steps: {', '.join(checked)}"
        )
    return BaselineCheck(str(run), str(baseline), tuple(results))


def _measured_artifacts(
    pairs: Sequence[tuple[MeasuredModel, MeasuredModel]],
) -> dict[Path, set[str]]:
    """Return the ids of the artifacts whose latency may be measured, by the folder of a store."""
    needed: dict[Path, set[str]] = {}
    for model in (model for pair in pairs for model in pair):
        if model.artifact is not None:
            root = model.artifact.path.resolve().parent
            needed.setdefault(root, set()).add(model.artifact.id)
    return needed


def _pipeline_rules(pipeline: Pipeline, default_step: str) -> list[tuple[str | None, Rule]]:
    """Return the pipeline's gates that are absolute or refer to a baseline, with their steps."""
    return [
        (gate.step or default_step, rule)
        for gate in pipeline.config.gates
        if gate.against is None or is_path(gate.against)
        for rule in rules_of(gate, "baseline")
    ]


def _store_of(models: Mapping[str, MeasuredModel], path: Path) -> Path | None:
    """Return the store of the run that is checked; None for an artifact that is given alone."""
    if is_artifact(path):
        return None
    roots = (model.artifact.path.parent for model in models.values() if model.artifact)
    return next(roots, None)


def _pair_steps(
    checked: Mapping[str, MeasuredModel], references: Mapping[str, MeasuredModel]
) -> list[tuple[MeasuredModel, MeasuredModel]]:
    """Pair steps of the same name; a baseline of one artifact is paired with the last step."""
    last = list(checked.values())[-1]
    if len(references) == 1 and (only := find_counterpart(references, last.name)) is not None:
        return [(last, only)]
    pairs = [(model, references[name]) for name, model in checked.items() if name in references]
    if pairs:
        return pairs
    raise UsageError(
        f"the two have no step in common: {', '.join(checked)} and {', '.join(references)}",
        remedy="name two artifacts instead",
    )


def _applicable(
    rules: Sequence[tuple[str | None, Rule]], model: MeasuredModel, reference: MeasuredModel
) -> list[Rule]:
    """Return the rules of this step, and rules of any step whose metric either side has."""
    measured = model.metrics.keys() | reference.metrics.keys()
    return [
        rule
        for step, rule in rules
        if step == model.name or (step is None and rule.metric in measured)
    ]


def _not_worse(model: MeasuredModel, reference: MeasuredModel) -> list[Rule]:
    """Return the default rules: no metric that both have may be shown to be worse."""
    rules = []
    for name, metric in model.metrics.items():
        if "[" in name or name not in reference.metrics or name in _NOT_COMPARED:
            continue
        if metric.unit in {"bytes", "count"} or metric.better == "lower":
            rules.append(Rule(name, "max_ratio", 1.0, "baseline", undecided="pass"))
        else:
            rules.append(Rule(name, "max_drop", 0.0, "baseline", undecided="pass"))
    return rules


def parse_limit(text: str) -> Rule:
    """Parse a limit such as ``top1:max_drop=0.01``.

    Raises:
        UsageError: the text is not ``METRIC:BOUND=NUMBER``.
    """
    metric, _, condition = text.rpartition(":")
    name, _, number = condition.partition("=")
    bound = next((bound for bound in BOUNDS if bound == name), None)
    with suppress(ValueError):
        if metric and bound is not None and math.isfinite(limit := float(number)):
            return Rule(metric, bound, limit, "baseline")
    raise UsageError(
        f"--limit {text}: expected METRIC:BOUND=NUMBER",
        remedy=f"as top1:max_drop=0.01; bounds: {', '.join(BOUNDS)}",
    )
