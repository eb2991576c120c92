"""``python -m compressor.evaluation.worker``: measure one model in this process.

Reads a ``Request`` from stdin (or from the file named as its argument) and writes ``Answer`` lines
to stdout; everything else that prints, prints to stderr.

Order of a measurement: copy the samples for latency and free the data set, open the model, time it,
read the peak memory; then open the reference, if any, and measure accuracy. torch is imported only
for torch models. A model that cannot run on this machine is not timed; accuracy is measured on its
stand-in, and the reports state it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from compressor.artifacts.causes import describe_unexpected
from compressor.artifacts.manifest import Metric
from compressor.config.discovery import SOURCES, load
from compressor.config.permission import allow_code
from compressor.data.contract import Batch, Dataset, DataSource, SourceContext
from compressor.errors import CompressError, UsageError
from compressor.evaluation.accuracy import GeneratingModel, measure_accuracy
from compressor.evaluation.energy import energy_metrics, measure_energy
from compressor.evaluation.energy_meters import find_meter
from compressor.evaluation.generation import measure_generation
from compressor.evaluation.latency import latency_metrics, measure_latency, select_latency_batches
from compressor.evaluation.protocol import Answer, Failure, Request
from compressor.evaluation.records import (
    AccuracyConfig,
    AccuracyReport,
    LatencyConfig,
    LatencyReport,
    Measurement,
    Progress,
)
from compressor.evaluation.resources import (
    BackgroundLoad,
    cost_metrics,
    peak_rss_bytes,
    reset_peak_rss,
)
from compressor.runtimes.call_limit import (
    CallLimit,
    call_timeout_error,
    default_call_seconds,
)
from compressor.runtimes.session import Session, is_whole_sample

_PR_SET_PDEATHSIG = 1
_DEFAULT_THREADS = 2
_ROUND_WARMUP = 3
"""Most warm-up calls of a later round, after another model has used the caches."""


def main() -> int:
    """Carry out one request; return 0 also if the answer is a failure."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    text = Path(sys.argv[1]).read_bytes() if len(sys.argv) > 1 else sys.stdin.buffer.readline()
    request = Request.model_validate_json(text)
    limit = CallLimit(partial(_end_with_failure, answers, request))
    worker = _Worker(request, _reporter(answers, limit), limit)
    tasks = {
        "measure": worker.measure,
        "generation": worker.measure_generation,
        "rounds": worker.time_rounds,
    }
    try:
        _die_with(worker.request.parent)
        if worker.request.allow_code:
            allow_code()
        for answer in tasks[request.task]():
            answers.write(answer.model_dump_json() + "\n")
    except CompressError as error:
        answers.write(Answer(failure=Failure.from_error(error)).model_dump_json() + "\n")
    except Exception as error:  # noqa: BLE001  of any library, on models and data of any kind
        failure = Failure.from_error(describe_unexpected(error))
        answers.write(Answer(failure=failure).model_dump_json() + "\n")
    answers.close()
    return 0


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(1)


def _end_with_failure(answers: TextIO, request: Request, seconds: float) -> None:
    """Report that a call does not end, and end this process in the middle of it."""
    error = call_timeout_error(request.model, seconds)
    answers.write(Answer(failure=Failure.from_error(error)).model_dump_json() + "\n")
    os._exit(0)


def _reporter(answers: TextIO, limit: CallLimit) -> Progress:
    def report(task: str, done: int, total: int) -> None:
        if done < total:
            limit.next_call()
        else:
            limit.no_more_calls()
        answers.write(Answer(progress=(task, done, total)).model_dump_json() + "\n")

    return report


@dataclass(frozen=True, slots=True)
class _Worker:
    """Carries out one request; each task yields its results as messages."""

    request: Request
    progress: Progress
    limit: CallLimit

    def time_rounds(self) -> Iterator[Answer]:
        """Open the model and warm it up, then time one round of calls per line of stdin."""
        latency = self.request.evaluate.latency
        assert latency is not None  # noqa: S101 - requests for rounds have it
        batches = self._latency_batches(latency)
        model, stand_in = self.request.stored.runnable()
        if stand_in is not None:
            yield Answer(milliseconds=())
            return
        with model.open_session(latency.threads) as session:
            yield Answer(milliseconds=self._time(session, batches, latency))
            warmup = min(latency.warmup, _ROUND_WARMUP)
            later = latency.model_copy(update={"warmup": warmup})
            while sys.stdin.buffer.readline():
                yield Answer(milliseconds=self._time(session, batches, later))

    def measure(self) -> Iterator[Answer]:
        """Measure everything that the request's ``evaluate`` has, in the order of the module."""
        accuracy, latency = self.request.evaluate.accuracy, self.request.evaluate.latency
        batches: list[Batch] = []
        if latency is not None:
            batches = self._latency_batches(latency)
            reset_peak_rss()
        accuracy_report: AccuracyReport | None = None
        latency_report: LatencyReport | None = None
        model, stand_in = self.request.stored.runnable()
        with model.open_session(self._threads) as session:
            if latency is not None and stand_in is None:
                latency_report = self._latency_report(session, batches, latency)
                latency_report = self._with_energy(latency_report, session, batches)
            if accuracy is not None:
                dataset = self._load(accuracy.data)
                batches = batches or [dataset.batch(_first_index(dataset))]
                generating = GeneratingModel(model, self._threads)
                with self.limit.watch(self._call_seconds(accuracy.batch_size)):
                    report = self._accuracy_report(session, dataset, accuracy, generating)
                accuracy_report = report.model_copy(update={"stand_in": stand_in})
            shapes = _sample_shapes(session, batches[0]) if batches else {}
            macs = session.sample_macs(_first_sample(session, batches[0])) if batches else None
        measurement = Measurement(
            accuracy=accuracy_report,
            latency=latency_report,
            metrics=(
                *(accuracy_report.metrics if accuracy_report else ()),
                *(latency_report.metrics if latency_report else ()),
                *cost_metrics(self.request.stored, shapes, macs),
                *self.request.stored.format.execution_metrics(executed=stand_in is None),
            ),
            stand_in=stand_in,
        )
        yield Answer(measurement=measurement)

    def measure_generation(self) -> Iterator[Answer]:
        """Measure the generation of text."""
        evaluate = self.request.evaluate
        config = evaluate.generation
        assert config is not None  # noqa: S101 - requests for generation have it
        dataset = self._load(self._named_data("generation", config.data))
        with self.limit.watch(self._call_seconds(1)):
            report = measure_generation(self.request.stored, dataset, config, self.progress)
        yield Answer(generation=report)

    def _call_seconds(self, batch_size: int) -> float:
        """Return the longest time that a call may take."""
        request = self.request
        models = (
            [request.model]
            if request.reference is None
            else [request.model, request.reference.model]
        )
        return request.evaluate.call_timeout or sum(
            default_call_seconds(model, batch_size) for model in models
        )

    def _time(
        self, session: Session, batches: list[Batch], config: LatencyConfig
    ) -> tuple[float, ...]:
        """Return the milliseconds of each call, of which none may take longer than the limit."""
        with self.limit.watch(self._call_seconds(config.batch_size)):
            return measure_latency(session, batches, config, self.limit.next_call)

    def _latency_report(
        self, session: Session, batches: list[Batch], config: LatencyConfig
    ) -> LatencyReport:
        load_meter = BackgroundLoad()
        milliseconds = self._time(session, batches, config)
        other_cores = load_meter.cores()
        self.progress("latency", config.repeats, config.repeats)
        peak = Metric(
            name="peak_rss_bytes",
            value=float(peak_rss_bytes()),
            unit="bytes",
            better="lower",
            samples=1,
        )
        return LatencyReport(
            runtime=session.runtime,
            batch_size=config.batch_size,
            threads=config.threads,
            warmup=config.warmup,
            metrics=(*latency_metrics(milliseconds, config.batch_size), peak),
            milliseconds=milliseconds,
            other_cores=other_cores,
        )

    def _with_energy(
        self, report: LatencyReport, session: Session, batches: list[Batch]
    ) -> LatencyReport:
        """Return a report with the energy of the same calls, if the request has ``energy``."""
        config = self.request.evaluate.energy
        if config is None:
            return report
        energy = measure_energy(session, batches, config, find_meter(), self.progress)
        metrics = (*report.metrics, *energy_metrics(energy))
        return report.model_copy(update={"energy": energy, "metrics": metrics})

    @property
    def _threads(self) -> int:
        latency = self.request.evaluate.latency
        return latency.threads if latency else _DEFAULT_THREADS

    def _latency_batches(self, latency: LatencyConfig) -> list[Batch]:
        data = self._load(self._named_data("latency", latency.data))
        return select_latency_batches(data, latency)

    def _named_data(self, field: str, data: str | None) -> str:
        """Return the data set that a section names, or else that of accuracy."""
        accuracy = self.request.evaluate.accuracy
        data = data or (accuracy.data if accuracy else None)
        if data is None:
            raise UsageError(
                f"evaluate.{field} names no data set",
                remedy="add `data: <data set>` to it, or measure `accuracy:` too",
            )
        return data

    def _load(self, name: str) -> Dataset:
        request = self.request
        config: dict[str, Any] = request.sources[name]
        source: DataSource[Any] = load(SOURCES, config["source"])
        context = SourceContext(request.base, request.allow_code, request.cache, self.progress)
        return source.load(source.Config.model_validate_json(json.dumps(config)), context)

    def _accuracy_report(
        self,
        session: Session,
        dataset: Dataset,
        config: AccuracyConfig,
        generating: GeneratingModel,
    ) -> AccuracyReport:
        """Measure accuracy; a model that is its own reference is opened and run once."""
        reference = self.request.reference
        if reference is None:
            return measure_accuracy(session, dataset, config, self.progress, generating=generating)
        same = reference.model == self.request.model
        model, _ = reference.stored.runnable()
        with nullcontext(session) if same else model.open_session(self._threads) as compared:
            report = measure_accuracy(session, dataset, config, self.progress, compared, generating)
        return report.model_copy(update={"reference": reference.id})


def _first_index(dataset: Dataset) -> Any:
    return np.arange(min(1, len(dataset)), dtype=np.int64)


def _first_sample(session: Session, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch of one sample."""
    specs = {spec.name: spec for spec in session.inputs if spec.name in batch}
    return {
        name: batch[name] if is_whole_sample(spec, batch[name].shape) else batch[name][:1]
        for name, spec in specs.items()
    }


def _sample_shapes(session: Session, batch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input that the data has, for a batch of one."""
    shapes = {
        spec.name: (spec, batch[spec.name].shape) for spec in session.inputs if spec.name in batch
    }
    return {
        name: shape[1:] if is_whole_sample(spec, shape) else (1, *shape[1:])
        for name, (spec, shape) in shapes.items()
    }


if __name__ == "__main__":
    sys.exit(main())
