"""Energy of a model: joules of repeated calls, by a counter of the machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

from compressor.artifacts.manifest import Metric
from compressor.data.contract import Batch
from compressor.evaluation.energy_meters import Meter
from compressor.evaluation.records import EnergyConfig, EnergyReport, Progress
from compressor.runtimes.session import Session, match_inputs

_READ_SECONDS = 0.05
"""Time between two readings: a battery's power is integrated."""


def measure_energy(
    session: Session,
    batches: Sequence[Batch],
    config: EnergyConfig,
    meter: Meter | None,
    progress: Progress,
) -> EnergyReport:
    """Return the energy of calls that are repeated for ``config.seconds``.

    Args:
        session: the open model, warmed up.
        batches: samples of each call; repeated in turn.
        config: how long.
        meter: the machine's counter; None if it has none, and nothing is run.
        progress: called at the end.

    Raises:
        DataError: the data does not fit the model.
        OSError: the counter can no longer be read.
    """
    if meter is None:
        return EnergyReport(meter=None)
    feeds = [match_inputs(batch, session.inputs) for batch in batches]
    samples = [len(next(iter(batch.values()))) for batch in batches]
    before, start = meter.joules(), time.perf_counter()
    calls, done, read = 0, 0, start
    while (now := time.perf_counter()) - start < config.seconds or not calls:
        session.compute(feeds[calls % len(feeds)])
        done += samples[calls % len(feeds)]
        calls += 1
        if now - read > _READ_SECONDS:
            meter.joules()
            read = now
    joules, seconds = meter.joules() - before, time.perf_counter() - start
    progress("energy", calls, calls)
    return EnergyReport(meter=meter.name, joules=joules, seconds=seconds, samples=done)


def energy_metrics(report: EnergyReport | None) -> tuple[Metric, ...]:
    """Return the millijoules per sample; nothing if they were not measured."""
    if report is None or report.meter is None:
        return ()
    millijoules = 1e3 * report.joules / report.samples
    return (
        Metric(
            name="energy_mj", value=millijoules, unit="mJ", better="lower", samples=report.samples
        ),
    )
