"""The log file of a step: its events with timestamps, written to staging, then published."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

from compressor.engine import events

_PROGRESS_SECONDS = 5.0


class StepLog:
    """Appends one line per event; progress at most every few seconds, and at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0.0

    def __call__(self, event: events.Event) -> None:
        """Write the event's line, if it has one."""
        text = self._text(event)
        if text is not None:
            stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{stamp} {text}\n")

    def _text(self, event: events.Event) -> str | None:
        match event:
            case events.StepStarted():
                suffix = ", resumed" if event.resumed else ""
                return f"started {event.pass_name} for {event.artifact}{suffix}"
            case events.StepProgress():
                now = time.monotonic()
                if event.done < event.total and now - self._last < _PROGRESS_SECONDS:
                    return None
                self._last = now
                figures = "".join(f" {name}={value:.4g}" for name, value in event.figures.items())
                return f"{event.what} {event.done}/{event.total}{figures}"
            case events.StepNote():
                return f"note: {event.text}"
            case events.StepMeasured():
                return "measured " + " ".join(
                    f"{metric.name}={metric.value:.6g}" for metric in event.metrics
                )
            case events.StepFailed():
                return f"failed: {event.error}"
            case _:
                return None
