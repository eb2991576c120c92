import io

import pytest
from rich.console import Console

from compressor.engine import events
from compressor.reports.console import progress


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def strftime(self, _: str) -> str:
        return ""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_states_the_time_that_is_left_at_the_speed_so_far(clock: Clock) -> None:
    out = io.StringIO()
    log = progress.PlainLog(Console(file=out, width=200))
    for done in range(5):
        clock.now = 20.0 * done
        log(events.StepProgress("int4", "layers", done, 10, {}))
    lines = out.getvalue().splitlines()
    assert lines[-1].strip() == "int4: layers 4/10, about 2 min 00 s left"


def test_another_activity_is_timed_anew(clock: Clock) -> None:
    out = io.StringIO()
    log = progress.PlainLog(Console(file=out, width=200))
    for what, done, now in (("layers", 0, 0), ("layers", 9, 90), ("accuracy", 1, 120)):
        clock.now = float(now)
        log(events.StepProgress("int4", what, done, 10, {}))
    assert out.getvalue().splitlines()[-1].strip() == "int4: accuracy 1/10"


def test_measuring_is_told_apart_from_building(clock: Clock, tmp_path) -> None:
    done = events.StepFinished(
        "int4", tmp_path / "awq-1", "built", 100.0, 80.0, 0, estimated_seconds=75.0
    )
    line = progress.event_line(done)
    assert line is not None
    assert "built in 80.0 s (estimated 75.0 s), measured in 20.0 s" in line.plain


def test_a_log_repeats_what_is_being_done_while_no_event_arrives(clock: Clock) -> None:
    out = io.StringIO()
    log = progress.PlainLog(Console(file=out, width=200))
    log(events.StepStarted("cut", "prune", "prune-1", resumed=False))
    clock.now = 10.0
    log(events.StepProgress("cut", "load the model", 0, 1, {}))
    for seconds in range(11, 60):
        clock.now = float(seconds)
        log.repeat()
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines[1] == "cut: load the model, for 11.0 s so far"
    assert len(lines) == 3


def test_the_repeated_line_counts_from_the_start_of_the_activity(clock: Clock) -> None:
    out = io.StringIO()
    log = progress.PlainLog(Console(file=out, width=200))
    for done, now in ((0, 0), (40, 10)):
        clock.now = float(now)
        log(events.StepProgress("cut", "search sizes", done, 100, {}))
    clock.now = 30.5
    log.repeat()
    assert out.getvalue().strip() == "cut: search sizes 40/100, for 30.5 s so far"


def test_a_log_repeats_nothing_between_steps(clock: Clock, tmp_path) -> None:
    out = io.StringIO()
    log = progress.PlainLog(Console(file=out, width=200))
    log(events.StepStarted("cut", "prune", "prune-1", resumed=False))
    log(events.StepFinished("cut", tmp_path, "built", 1.0, 1.0, 0))
    before = out.getvalue()
    clock.now = 100.0
    log.repeat()
    assert out.getvalue() == before


def test_a_terminal_shows_a_step_from_its_start() -> None:
    display = progress.LiveDisplay(Console(file=io.StringIO()))
    display(events.StepStarted("cut", "prune", "prune-1", resumed=False))
    (task,) = display.progress.tasks
    assert task.description == "cut: prune"
