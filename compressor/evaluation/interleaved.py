"""Interleaved latency rounds: each model open in its own process, only one computing at a time.

Whatever slows the machine for a while slows both sides of a round alike, so the ratio within a
round stays valid while absolute values drift.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from compressor.errors import GpuError
from compressor.evaluation.latency import latency_metrics
from compressor.evaluation.process import MeasuringProcess
from compressor.evaluation.protocol import Request


class RoundTimer:
    """One model in a measuring process, timed in rounds.

    Args:
        request: the model to open and the data to feed; its ``task`` is ``rounds``.
    """

    def __init__(self, request: Request) -> None:
        self._process = MeasuringProcess(request)
        assert request.evaluate.latency is not None  # noqa: S101 - rounds measure latency
        self._batch_size = request.evaluate.latency.batch_size

    def ready(self) -> None:
        """Wait until the model is open and warm.

        Raises:
            CompressError: as ``MeasuringProcess.receive``.
            GpuError: the model cannot run on this machine.
        """
        while (answer := self._process.receive()).milliseconds is None:
            continue
        if not answer.milliseconds:
            raise GpuError("a model that cannot run on this machine has no latency")

    def measure_round(self, metric: str) -> float:
        """Return a latency metric (``latency_p50_ms``, ``throughput``, …) of one round of calls."""
        self._process.send("")
        milliseconds = self._process.receive().milliseconds
        assert milliseconds  # noqa: S101 - the reply to a round lists its calls
        metrics = latency_metrics(milliseconds, self._batch_size)
        return next(candidate.value for candidate in metrics if candidate.name == metric)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.__exit__(error_type, error, trace)
