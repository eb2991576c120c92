"""Latency of models in turns: each open in a process of its own, and only one of them computes at a time.

What slows the machine for a while slows both sides of a round alike, so that the ratio of a round holds where the figures drift.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from compressor.artifacts.manifest import Metric
from compressor.errors import GpuError
from compressor.evaluation.latency import latency_metrics
from compressor.evaluation.process import MeasuringProcess
from compressor.evaluation.protocol import Request


class Player:
    """One model that is timed in rounds.

    Args:
        request: what to open and feed; its ``task`` is ``rounds``.
    """

    def __init__(self, request: Request) -> None:
        self._process = MeasuringProcess(request)
        assert request.evaluate.latency is not None  # noqa: S101 - whoever asks for rounds asks for latency
        self._batch_size = request.evaluate.latency.batch_size

    def ready(self) -> None:
        """Wait until the model is open and warm.

        Raises:
            CompressError: as ``MeasuringProcess.answer``.
            GpuError: the model is an engine that cannot run here.
        """
        while (answer := self._process.answer()).milliseconds is None:
            continue
        if not answer.milliseconds:
            raise GpuError("an engine that cannot run here has no latency")

    def round(self, metric: str) -> float:
        """The metric (``latency_p50_ms``, ``throughput`` …) of one round of calls."""
        self._process.send("")
        milliseconds = self._process.answer().milliseconds
        assert milliseconds  # noqa: S101 - a round answers with its calls
        found: dict[str, Metric] = {
            one.name: one for one in latency_metrics(milliseconds, self._batch_size)
        }
        return found[metric].value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.__exit__(kind, error, trace)
