"""Metrics of a server in the format of Prometheus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from compressor.generation.requests import Usage

_PREFIX = "autoglm"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_MOST_FIELD_NAMES = 100
"""Names of unknown fields that are counted apart; clients choose them."""


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._unknown_names: set[str] = set()
        self.requests = self._counter("requests", "Requests by route and status", "route", "status")
        self.rejected = self._counter("rejected", "Requests refused by code", "code")
        self.cancelled = self._counter("cancelled", "Answers whose client left")
        self._unknown_fields = self._counter("unknown_fields", "Unknown request fields", "field")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self._cached_tokens = self._counter(
            "cached_tokens", "Prompt tokens taken from the prefix cache"
        )
        self._read_tokens = self._counter("read_tokens", "Prompt tokens that were computed")
        self._generated_tokens = self._counter("generated_tokens", "Tokens of answers")
        self._proposed_tokens = self._counter("proposed_tokens", "Tokens guessed from the prompt")
        self._accepted_tokens = self._counter("accepted_tokens", "Guessed tokens that were right")
        self._first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "Time to first token"
        )
        self._token_seconds = self._histogram(
            "time_per_token_seconds", "Mean time of the further tokens", _TOKEN_SECONDS
        )
        self._queue_seconds = self._histogram("queue_seconds", "Time in the queue")
        self._answer_seconds = self._histogram("answer_seconds", "Time of an answer")

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", help_text, labels, registry=self._registry)

    def _histogram(
        self, name: str, help_text: str, buckets: Iterable[float] = _SECONDS
    ) -> Histogram:
        return Histogram(
            f"{_PREFIX}_{name}", help_text, registry=self._registry, buckets=tuple(buckets)
        )

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when the metrics are; NaN where that raises ``OSError``."""

        def value_or_nan() -> float:
            try:
                return value()
            except OSError:
                return math.nan

        gauge = Gauge(f"{_PREFIX}_{name}", help_text, registry=self._registry)
        gauge.set_function(value_or_nan)

    def counter(self, name: str, help_text: str) -> Counter:
        """Add a counter."""
        return self._counter(name, help_text)

    def histogram(self, name: str, help_text: str, buckets: Iterable[float]) -> Histogram:
        """Add a histogram with the given bucket bounds."""
        return self._histogram(name, help_text, buckets)

    def count_unknown(self, names: Iterable[str]) -> None:
        """Count unknown fields of a request; the names beyond the first hundred count as one."""
        for name in names:
            known = name in self._unknown_names or len(self._unknown_names) < _MOST_FIELD_NAMES
            label = name[:64] if known else "other"
            if known:
                self._unknown_names.add(name)
            self._unknown_fields.labels(label).inc()

    def record_answer(self, usage: Usage) -> None:
        """Record the tokens and times of an answer that has ended."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._read_tokens.inc(max(0, usage.prompt_tokens - usage.cached_tokens))
        self._generated_tokens.inc(usage.completion_tokens)
        self._proposed_tokens.inc(usage.proposed_tokens)
        self._accepted_tokens.inc(usage.accepted_tokens)
        self._queue_seconds.observe(usage.queue_seconds)
        self._answer_seconds.observe(usage.total_seconds)
        if usage.first_token_seconds is not None:
            self._first_token_seconds.observe(usage.first_token_seconds)
            if usage.completion_tokens > 1:
                rest = usage.total_seconds - usage.first_token_seconds
                self._token_seconds.observe(rest / (usage.completion_tokens - 1))

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)

    def value(self, name: str, **labels: str) -> float:
        """Return one value, 0 if it was never recorded."""
        found: Any = self._registry.get_sample_value(f"{_PREFIX}_{name}", labels or None)
        return float(found or 0.0)
