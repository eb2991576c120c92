"""The gates of a run, and of a run against a baseline that another run left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compressor.artifacts.runs import GateResult, all_runs
from compressor.artifacts.store import Artifact
from compressor.data.contract import SourceContext
from compressor.engine.gates.metrics import Figures, counterpart, figures_at
from compressor.engine.gates.rules import BOUNDS, Rule, is_path, rules_of
from compressor.engine.gates.verdicts import NoiseAwareJudge, Open
from compressor.engine.plan.pipeline import Pipeline
from compressor.engine.run import events
from compressor.errors import UsageError
from compressor.evaluation.interleaved import Player
from compressor.evaluation.measure import request_of
from compressor.runtimes.formats import StoredModel

_TAILS = ("latency_p90_ms", "latency_p99_ms")
_PARTS = 5
_FEWEST = 5


@dataclass(frozen=True, slots=True)
class Gated:
    """What came of ``gate RUN --against BASELINE``."""

    run: str
    baseline: str
    gates: tuple[GateResult, ...]


def player_of(pipeline: Pipeline, context: SourceContext) -> Open | None:
    """Opens models to be timed as ``evaluate.latency`` says; None where it says nothing.

    A round has a fifth of ``repeats`` calls, all of them for a percentile at the tail.
    """
    evaluate = pipeline.config.evaluate.without_accuracy()
    if evaluate.latency is None or evaluate.latency.data is None:
        return None
    sources = {name: one.config.model_dump(mode="json") for name, one in pipeline.data.items()}
    latency = evaluate.latency
    few = max(_FEWEST, latency.repeats // _PARTS)

    def player(artifact: Artifact, metric: str) -> Player:
        repeats = latency.repeats if metric in _TAILS else few
        one = evaluate.model_copy(
            update={"latency": latency.model_copy(update={"repeats": repeats})}
        )
        request = request_of(StoredModel.of(artifact), one, sources, context, task="rounds")
        return Player(request)

    return player


def earlier_verdicts(store: Path) -> dict[str, GateResult]:
    """What latency gates of earlier runs of a store came to, where they came to something."""
    found = (gate for _, record in all_runs(store) for gate in record.gates)
    return {gate.key: gate for gate in found if gate.key and gate.decided}


def gate_against(
    run: Path,
    baseline: Path,
    limits: Sequence[str],
    pipeline: Pipeline | None,
    context: SourceContext,
    listener: events.Listener,
) -> Gated:
    """Judge a run (or an artifact) against a baseline (a run, a store, an artifact, a ladder).

    Args:
        run: what is judged.
        baseline: what it is compared with.
        limits: as ``top1:max_drop=0.01``, of every step that both have.
        pipeline: its ``evaluate.latency`` says how latency is measured again; without ``limits``, those of its ``gates:`` are
            judged that are absolute or meant for a baseline (their ``against`` is a path), held against this one.
        context: what its data sources may use.
        listener: told of rounds.

    Raises:
        UsageError: a limit is none, or nothing is there to judge.
    """
    judged, compared = figures_at(run), figures_at(baseline)
    pairs = _pairs(judged, compared)
    rules: list[tuple[str | None, Rule]] = [(None, parse_limit(text)) for text in limits]
    if pipeline is not None and not limits:
        last = list(judged)[-1]
        meant = [
            gate for gate in pipeline.config.gates if gate.against is None or is_path(gate.against)
        ]
        rules = [(gate.step or last, rule) for gate in meant for rule in rules_of(gate, "baseline")]
    player = player_of(pipeline, context) if pipeline is not None else None
    judge = NoiseAwareJudge(player, {}, listener)
    found = [
        judge(rule, *pair)
        for pair in pairs
        for rule in (_chosen(rules, *pair) if rules else _nothing_worse(*pair))
    ]
    if not found:
        raise UsageError(
            f"no limit is of what was measured of {run}", remedy=f"its steps: {', '.join(judged)}"
        )
    return Gated(str(run), str(baseline), tuple(found))


def _pairs(
    judged: Mapping[str, Figures], compared: Mapping[str, Figures]
) -> list[tuple[Figures, Figures]]:
    """Steps of the same name; a baseline of one artifact is held against the last step."""
    last = list(judged.values())[-1]
    if len(compared) == 1 and (only := counterpart(compared, last.name)) is not None:
        return [(last, only)]
    if pairs := [(one, compared[name]) for name, one in judged.items() if name in compared]:
        return pairs
    raise UsageError(
        f"the two have no step in common: {', '.join(judged)} and {', '.join(compared)}",
        remedy="name two artifacts instead",
    )


def _chosen(
    rules: Sequence[tuple[str | None, Rule]], step: Figures, reference: Figures
) -> list[Rule]:
    """Rules of this step, and those of any step where one side at least has the metric."""
    known = step.metrics.keys() | reference.metrics.keys()
    return [rule for at, rule in rules if at == step.name or (at is None and rule.metric in known)]


def _nothing_worse(step: Figures, reference: Figures) -> list[Rule]:
    """Without limits: nothing that both have may be shown to be worse."""
    found = []
    for name, metric in step.metrics.items():
        if "[" in name or name not in reference.metrics or name in {"peak_rss_bytes", "executed"}:
            continue
        if metric.unit in {"bytes", "count"} or metric.better == "lower":
            found.append(Rule(name, "max_ratio", 1.0, "baseline", undecided="pass"))
        else:
            found.append(Rule(name, "max_drop", 0.0, "baseline", undecided="pass"))
    return found


def parse_limit(text: str) -> Rule:
    """``top1:max_drop=0.01`` as a rule.

    Raises:
        UsageError: it is none.
    """
    metric, _, rest = text.rpartition(":")
    name, _, number = rest.partition("=")
    bound = next((bound for bound in BOUNDS if bound == name), None)
    with suppress(ValueError):
        if metric and bound is not None and math.isfinite(limit := float(number)):
            return Rule(metric, bound, limit, "baseline")
    raise UsageError(
        f"--limit {text}: expected METRIC:BOUND=NUMBER",
        remedy=f"as top1:max_drop=0.01; bounds: {', '.join(BOUNDS)}",
    )
