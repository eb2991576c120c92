"""Show the events of a run: a live display on a terminal, plain lines in a log; both on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from compressor.engine import events
from compressor.errors import Interrupted
from compressor.reports.console.terminal import err
from compressor.reports.rows import formatting

_PLAIN_SECONDS = 15.0
"""Least seconds between two lines of progress in a log."""
_SILENT_SECONDS = 20.0
"""Seconds without a line after which a log repeats what is being done; longer than the time between
lines of progress, which state the time left."""
_OUTCOMES = {"built": "built", "cached": "cached, verified", "measured": "measured again"}


@contextmanager
def listener(*, quiet: bool) -> Iterator[events.Listener]:
    """Return a listener for a run.

    Args:
        quiet: Print plain lines even on a terminal.
    """
    if quiet or not sys.stderr.isatty():
        log = PlainLog(err)
        with _repeated(log):
            yield log
        return
    display = LiveDisplay(err)
    with display.progress:
        yield display


@contextmanager
def _repeated(log: PlainLog) -> Iterator[None]:
    """Let a log state what is being done also while no event arrives."""
    finished = threading.Event()

    def repeat() -> None:
        while not finished.wait(1.0):
            log.repeat()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def event_line(event: events.Event) -> Text | None:
    """Return the line that an event leaves in the output, or None."""
    match event:
        case events.RunStarted():
            steps = " → ".join(event.steps)
            return Text(f"{event.pipeline}: {steps}  (store {event.store})", style="bold")
        case events.Waiting():
            text = f"  … {event.step}: waiting for another run that is building {event.artifact}"
            return Text(text, style="yellow")
        case events.StepStarted():
            resumed = ", resuming" if event.resumed else ""
            return Text(f"  ▸ {event.step}: {event.pass_name}{resumed}")
        case events.StepNote():
            return Text(f"    {event.step}: {event.text}", style="yellow")
        case events.ArtifactDamaged():
            text = f"    {event.step}: {event.path.name} is damaged ({event.details}); "
            text += f"moved to {event.moved_to}, building it again"
            return Text(text, style="red")
        case events.StepFinished():
            return _finished_line(event)
        case events.StepFailed():
            outcome = "interrupted" if isinstance(event.error, Interrupted) else "failed"
            return Text(f"  ✗ {event.step} {outcome}", style="red")
        case _:
            return None


def _finished_line(event: events.StepFinished) -> Text:
    text = f"  ✓ {event.step} {_OUTCOMES[event.how]}"
    if event.how == "cached":
        return Text(f"{text}  {event.path.name}", style="dim")
    if event.how == "built":
        text += f" in {formatting.duration(event.pass_seconds)}"
        if event.estimated_seconds is not None:
            text += f" (estimated {formatting.duration(event.estimated_seconds)})"
        text += f", measured in {formatting.duration(event.seconds - event.pass_seconds)}"
    else:
        text += f" in {formatting.duration(event.seconds)}"
    if event.peak_rss_bytes:
        text += f", peak {formatting.size(event.peak_rss_bytes)}"
        if event.estimated_memory_bytes is not None:
            text += f" (estimated {formatting.size(event.estimated_memory_bytes)})"
    return Text(f"{text}  {event.path.name}", style="green")


class PlainLog:
    """Print every event as a line with its time; progress at most every 15 seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last = time.monotonic()
        self.rate = _Rate()
        self.activity: str | None = None
        """What is being done; None between steps."""
        self.count = ""
        """How much of it is done, where that is known."""
        self.since = self.last
        """When it began."""
        self.lock = threading.Lock()

    def __call__(self, event: events.Event) -> None:
        """Print the event's line."""
        with self.lock:
            if isinstance(event, events.StepProgress):
                self.rate.observe(f"{event.step}: {event.what}", event.done)
            self._note_activity(event)
            line = event_line(event) or self._progress_line(event)
            if line is not None:
                self._print(line)

    def repeat(self) -> None:
        """Print what is being done if nothing has been printed for a while."""
        with self.lock:
            now = time.monotonic()
            if self.activity is None or now - self.last <= _SILENT_SECONDS:
                return
            self._print(
                Text(
                    f"    {self.activity}{self.count}, "
                    f"for {formatting.duration(now - self.since)} so far"
                )
            )

    def _print(self, line: Text) -> None:
        self.last = time.monotonic()
        self.console.print(Text(time.strftime("%H:%M:%S ")) + line, soft_wrap=True)

    def _note_activity(self, event: events.Event) -> None:
        """Store what an event states to be going on."""
        count = ""
        match event:
            case events.StepStarted():
                activity: str | None = f"{event.step}: {event.pass_name}"
            case events.StepProgress():
                activity = f"{event.step}: {event.what}"
                if 0 < event.done < event.total:
                    count = f" {event.done}/{event.total}"
            case events.StepFinished() | events.StepFailed():
                activity = None
            case _:
                return
        self.count = count
        if activity != self.activity:
            self.activity, self.since = activity, time.monotonic()

    def _progress_line(self, event: events.Event) -> Text | None:
        if time.monotonic() - self.last <= _PLAIN_SECONDS:
            return None
        match event:
            case events.GateProgress():
                return Text(f"    {event.gate}: round {event.done} of at most {event.total}")
            case events.StepProgress():
                progress = f"{event.what} {event.done}/{event.total}{_metrics(event)}"
                left = self.rate.seconds_left(event.total)
                remaining = "" if left is None else f", about {formatting.duration(left)} left"
                return Text(f"    {event.step}: {progress}{remaining}")
            case _:
                return None


class _Rate:
    """Speed of one activity since its first report, in units a second."""

    def __init__(self) -> None:
        self.activity = ""
        self.start, self.first, self.done = 0.0, 0, 0

    def observe(self, activity: str, done: int) -> None:
        """Take a report; another activity, or one that starts again, is timed anew."""
        if activity != self.activity or done < self.done:
            self.activity, self.start, self.first = activity, time.monotonic(), done
        self.done = done

    def seconds_left(self, total: int) -> float | None:
        """Return the time that the rest takes at this speed; None before it is known."""
        if self.done <= self.first or total <= self.done:
            return None
        elapsed = time.monotonic() - self.start
        return elapsed / (self.done - self.first) * (total - self.done)


class LiveDisplay:
    """Print lines above one progress bar."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("    {task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}", style="dim"),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None
        self.description = ""

    def __call__(self, event: events.Event) -> None:
        """Advance the bar, or print the event's line."""
        match event:
            case events.StepProgress():
                description = f"{event.step}: {event.what}"
                self._advance(description, event.done, event.total, _metrics(event))
                return
            case events.GateProgress():
                self._advance(event.gate, event.done, event.total, "")
                return
            case events.StepNote():
                pass
            case _:
                self._remove_bar()
        if isinstance(event, events.StepStarted):
            self._advance(f"{event.step}: {event.pass_name}", 0, None, "")
        if (line := event_line(event)) is not None:
            self.progress.console.print(line)

    def _advance(self, description: str, done: int, total: int | None, metrics: str) -> None:
        if description != self.description:
            self._remove_bar()
        if self.task is None:
            self.task = self.progress.add_task(description, total=total, metrics="")
            self.description = description
        self.progress.update(self.task, completed=done, total=total, metrics=metrics)

    def _remove_bar(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task, self.description = None, ""


def _metrics(event: events.StepProgress) -> str:
    return "".join(f"  {name} {value:.4g}" for name, value in event.figures.items())
