"""Kill every command that writes before each of its file operations."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from tests.torture.operations import KILLED, Operations, end_before, watch
from tests.torture.registry import Attack, Case
from tests.torture.stores import (
    COMMANDS,
    Command,
    at_exit,
    content,
    copy_template,
    leftovers,
    problem_of,
    run_in,
)


@cache
def whole(command: Command) -> tuple[int, dict[str, str]]:
    """Return the number of operations of an uninterrupted command, and what it leaves."""
    home = Path(tempfile.mkdtemp(prefix="torture-whole-"))
    copy_template(command.template, home)
    operations, counted = Operations(), home.with_suffix(".count")

    def prepare() -> None:
        watch(home, operations)
        at_exit(lambda: counted.write_text(str(operations.count)))

    outcome = run_in(home, command.words, prepare)
    assert outcome.code == 0, outcome.printed
    return int(counted.read_text()), content(home)


def stop(command: Command, number: int, home: Path, *, power: bool) -> str | None:
    """Kill a command before an operation; return what is wrong then, and after it is repeated.

    Args:
        command: the command.
        number: the operation.
        home: an empty folder.
        power: True to lose what was written and not flushed as well.
    """
    copy_template(command.template, home)

    prepare = partial(end_before, number, home, power=power)
    outcome = run_in(home, command.words, prepare)
    if outcome.code != KILLED:
        return f"not killed, exit code {outcome.code}: {outcome.printed[-300:]}"
    return _check(command, home)


def _check(command: Command, home: Path) -> str | None:
    """Return what is wrong after a kill, and after the command has been run again."""
    if problem := problem_of(home):
        return problem
    again = run_in(home, command.words)
    if again.code not in command.again:
        return f"the next command ends with {again.code}: {again.printed[-300:]}"
    if (problem := problem_of(home)) or (problem := ", ".join(leftovers(home))):
        return f"after the next command: {problem}"
    expected, found = whole(command)[1], content(home)
    if found != expected:
        changed = {name for name in {*expected, *found} if expected.get(name) != found.get(name)}
        return f"the next command leaves something else: {', '.join(sorted(changed))}"
    return None


def all_points(source: random.Random, *, power: bool) -> Iterator[Case]:
    """Yield a case for every operation of every command, shuffled."""
    points = [(command, number) for command in COMMANDS for number in range(whole(command)[0])]
    source.shuffle(points)
    for command, number in points:
        yield f"{command.name}, operation {number}", partial(stop, command, number, power=power)


ATTACK = Attack(
    "kill points",
    "a command is killed before a file operation; the store verifies, and the command repeated "
    "leaves the same bytes and nothing else",
    partial(all_points, power=False),
)
