"""Two listeners of a run: a live display where a person looks on, plain lines where a program does."""

from __future__ import annotations

import sys
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

from compressor.engine.run import events
from compressor.reports.rows import formats

_PLAIN_SECONDS = 15.0


def line_of(event: events.Event) -> Text | None:
    """The line that an event leaves behind, if it leaves one."""
    match event:
        case events.RunStarted():
            return Text(
                f"{event.pipeline}: {' → '.join(event.steps)}  (store {event.store})", style="bold"
            )
        case events.Waiting():
            return Text(
                f"  … {event.step}: another run is building {event.artifact}; waiting for it",
                style="yellow",
            )
        case events.StepStarted():
            resumed = ", going on from where it stopped" if event.resumed else ""
            return Text(f"  ▸ {event.step}: {event.pass_name}{resumed}")
        case events.StepNote():
            return Text(f"    {event.step}: {event.text}", style="yellow")
        case events.ArtifactDamaged():
            what = f"    {event.step}: {event.path.name} is damaged ({event.details}); moved to {event.moved_to}, built again"
            return Text(what, style="red")
        case events.StepFinished():
            return _finished(event)
        case events.StepFailed():
            return Text(f"  ✗ {event.step} failed", style="red")
        case _:
            return None


def _finished(event: events.StepFinished) -> Text:
    how = {"built": "built", "cached": "is there, verified", "measured": "measured again"}[
        event.how
    ]
    text = f"  ✓ {event.step} {how}"
    if event.how != "cached":
        text += f" in {formats.duration(event.seconds)}"
        if event.estimated_seconds is not None and event.how == "built":
            text += f" (pass estimated {formats.duration(event.estimated_seconds)})"
        if event.peak_rss_bytes:
            text += f", peak {formats.size(event.peak_rss_bytes)}"
            if event.estimated_memory_bytes is not None:
                text += f" (estimated {formats.size(event.estimated_memory_bytes)})"
    return Text(text + f"  {event.path.name}", style="green" if event.how != "cached" else "dim")


class PlainLines:
    """For logs: every line with its time; progress now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last = time.monotonic()

    def __call__(self, event: events.Event) -> None:
        """Print the event's line."""
        line = line_of(event)
        if isinstance(event, events.GateProgress) and time.monotonic() - self.last > _PLAIN_SECONDS:
            line = Text(f"    {event.gate}: round {event.done} of at most {event.total}")
        if isinstance(event, events.StepProgress) and time.monotonic() - self.last > _PLAIN_SECONDS:
            line = Text(
                f"    {event.step}: {event.what} {event.done}/{event.total}{_figures(event)}"
            )
        if line is not None:
            self.last = time.monotonic()
            self.console.print(Text(time.strftime("%H:%M:%S ")) + line, soft_wrap=True)


class LiveDisplay:
    """For a terminal: lines above, one bar below."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("    {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", style="dim"),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None
        self.what = ""

    def __call__(self, event: events.Event) -> None:
        """Show the event."""
        if isinstance(event, events.StepProgress):
            self._advance(f"{event.step}: {event.what}", event.done, event.total, _figures(event))
            return
        if isinstance(event, events.GateProgress):
            self._advance(event.gate, event.done, event.total, "")
            return
        if self.task is not None and not isinstance(event, events.StepNote):
            self.progress.remove_task(self.task)
            self.task, self.what = None, ""
        if (line := line_of(event)) is not None:
            self.progress.console.print(line)

    def _advance(self, what: str, done: int, total: int, figures: str) -> None:
        if self.task is None or what != self.what:
            if self.task is not None:
                self.progress.remove_task(self.task)
            self.task, self.what = self.progress.add_task(what, total=total, figures=""), what
        self.progress.update(self.task, completed=done, total=total, figures=figures)


def _figures(event: events.StepProgress) -> str:
    return "".join(f"  {name} {value:.4g}" for name, value in event.figures.items())


@contextmanager
def listener(console: Console) -> Iterator[events.Listener]:
    """A live display on a terminal, plain lines elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield PlainLines(console)
        return
    display = LiveDisplay(console)
    with display.progress:
        yield display
