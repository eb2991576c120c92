"""``python -m compressor.evaluation.worker``: measure one artifact in this process, which does nothing else.

Reads a ``Request`` from stdin (or from the file named as its argument) and writes ``Answer`` lines to stdout; whatever else
prints, prints to stderr. The order within the process: take the samples for latency and let go of the set, open the model,
time it, read the peak memory; then open the reference, if any, and measure accuracy. torch is loaded for torch models only. An
engine that cannot run here is not timed, and the graph that it was built from answers in its place, which the reports say.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

from compressor.artifacts.manifest import Metric
from compressor.config.discovery import SOURCES, load
from compressor.data.contract import Batch, Dataset, DataSource, SourceContext
from compressor.errors import CompressError, UsageError
from compressor.evaluation.accuracy import measure_accuracy
from compressor.evaluation.cost import cost_metrics
from compressor.evaluation.embeddings import answers_with_embeddings, measure_embeddings
from compressor.evaluation.latency import batches_for_latency, latency_metrics, measure_latency
from compressor.evaluation.machine import OtherLoad, peak_rss_bytes, restart_peak
from compressor.evaluation.protocol import Answer, Failure, Request
from compressor.evaluation.records import (
    AccuracyConfig,
    AccuracyReport,
    LatencyConfig,
    LatencyReport,
    Measurement,
)
from compressor.runtimes.session import Session

_PR_SET_PDEATHSIG = 1
_DEFAULT_THREADS = 2
_WARMUP_AGAIN = 3  # calls before a round after the first: another model has computed in between
Progress = Callable[[str, int, int], None]


def main() -> int:
    """Answer one request; 0 also when the answer is a failure, for then it says so itself."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    text = Path(sys.argv[1]).read_bytes() if len(sys.argv) > 1 else sys.stdin.buffer.readline()
    request = Request.model_validate_json(text)
    work = _play if request.task == "rounds" else _measure
    try:
        _die_with(request.parent)
        for answer in work(request, _reporter(answers)):
            answers.write(answer.model_dump_json() + "\n")
    except CompressError as error:
        answers.write(Answer(failure=Failure.of(error)).model_dump_json() + "\n")
    answers.close()
    return 0


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; leave Ctrl-C to the parent.

    Raises:
        CompressError: The platform is not Linux: it has no ``prctl(PR_SET_PDEATHSIG)`` and no ``/proc``.
    """
    if sys.platform != "linux":
        raise CompressError(
            f"measuring needs Linux (prctl and /proc); this is {sys.platform}",
            remedy="run on Linux; `plan`, `validate` and `show` work on every platform",
        )
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(1)


def _reporter(answers: TextIO) -> Progress:
    def report(what: str, done: int, total: int) -> None:
        answers.write(Answer(progress=(what, done, total)).model_dump_json() + "\n")

    return report


def _play(request: Request, progress: Progress) -> Iterator[Answer]:
    """Open the model and warm it up; then time some calls for each line that comes."""
    latency = request.evaluate.latency
    assert latency is not None  # noqa: S101 - whoever asks for rounds asks for latency
    batches = _batches(request, latency, progress)
    model, stand_in = request.stored.runnable()
    if stand_in is not None:
        yield Answer(milliseconds=())
        return
    with model.open_session(latency.threads) as session:
        yield Answer(milliseconds=measure_latency(session, batches, latency, progress))
        again = latency.model_copy(update={"warmup": min(latency.warmup, _WARMUP_AGAIN)})
        while sys.stdin.buffer.readline():
            yield Answer(milliseconds=measure_latency(session, batches, again, lambda *_: None))


def _batches(request: Request, latency: LatencyConfig, progress: Progress) -> list[Batch]:
    accuracy = request.evaluate.accuracy
    data = latency.data or (accuracy.data if accuracy else None)
    if data is None:
        raise UsageError(
            "evaluate.latency names no data to feed", remedy="add `data: <set>`, or `accuracy:`"
        )
    return batches_for_latency(_dataset(request, data, progress), latency)


def _measure(request: Request, progress: Progress) -> Iterator[Answer]:
    accuracy, latency = request.evaluate.accuracy, request.evaluate.latency
    batches: list[Batch] = []
    if latency is not None:
        batches = _batches(request, latency, progress)
        restart_peak()
    threads = latency.threads if latency else _DEFAULT_THREADS
    accuracy_report: AccuracyReport | None = None
    latency_report: LatencyReport | None = None
    model, stand_in = request.stored.runnable()
    with model.open_session(threads) as session:
        if latency is not None and stand_in is None:
            latency_report = _latency_report(session, batches, latency, progress)
        if accuracy is not None:
            dataset = _dataset(request, accuracy.data, progress)
            batches = batches or [dataset.batch(_first(dataset))]
            report = _accuracy_report(request, session, dataset, accuracy, threads, progress)
            accuracy_report = report.model_copy(update={"stand_in": stand_in})
        shapes = _sample_shapes(session, batches[0]) if batches else {}
    measurement = Measurement(
        accuracy=accuracy_report,
        latency=latency_report,
        metrics=(
            *(accuracy_report.metrics if accuracy_report else ()),
            *(latency_report.metrics if latency_report else ()),
            *cost_metrics(request.stored, shapes),
            *request.stored.format.execution_metrics(executed=stand_in is None),
        ),
        stand_in=stand_in,
    )
    yield Answer(measurement=measurement)


def _dataset(request: Request, name: str, progress: Progress) -> Dataset:
    config: dict[str, Any] = request.sources[name]
    source: DataSource[Any] = load(SOURCES, config["source"])
    context = SourceContext(request.base, request.allow_code, request.cache, progress)
    return source.load(source.Config.model_validate_json(json.dumps(config)), context)


def _latency_report(
    session: Session, batches: list[Batch], config: LatencyConfig, progress: Progress
) -> LatencyReport:
    others = OtherLoad()
    milliseconds = measure_latency(session, batches, config, progress)
    other_cores = others.cores()
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


def _accuracy_report(
    request: Request,
    session: Session,
    dataset: Dataset,
    config: AccuracyConfig,
    threads: int,
    progress: Progress,
) -> AccuracyReport:
    """A model that is its own reference is opened and asked once."""
    reference = request.reference
    measure = measure_embeddings if answers_with_embeddings(session) else measure_accuracy
    if reference is None:
        return measure(session, dataset, config, progress)
    same = reference.model == request.model
    compared, _ = reference.stored.runnable()
    with nullcontext(session) if same else compared.open_session(threads) as other:
        report = measure(session, dataset, config, progress, other)
    return report.model_copy(update={"reference": reference.id})


def _first(dataset: Dataset) -> Any:
    import numpy as np

    return np.arange(min(1, len(dataset)), dtype=np.int64)


def _sample_shapes(session: Session, batch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each input that the data has, for a batch of one."""
    return {name: (1, *batch[name].shape[1:]) for name in session.input_names if name in batch}


if __name__ == "__main__":
    sys.exit(main())
