"""Cut the power before each file operation of a command, on an ordered file system.

The model is that of ext4 and XFS: operations on names reach the disk in order, contents only when
they are flushed. So every file that was written and not flushed (fsync) is emptied. Not covered:
disks that lose what was flushed, and names that reach the disk out of order.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.torture.attacks.kill_points import check, whole
from tests.torture.operations import KILLED, Operations, UnsyncedFiles, watch
from tests.torture.registry import Attack, Case
from tests.torture.stores import COMMANDS, Command, copy_template, run_in


def cut_power(command: Command, number: int, home: Path) -> str | None:
    """Lose what is not flushed before an operation; return what is wrong then, and after it."""
    copy_template(command.template, home)

    def prepare() -> None:
        unsynced = UnsyncedFiles()

        def lose() -> None:
            unsynced.lose()
            os._exit(KILLED)

        operations = Operations(number, lose)

        def follow(event: str, arguments: tuple[Any, ...]) -> None:
            operations(event, arguments)
            unsynced(event, arguments)

        watch(home, follow)

    outcome = run_in(home, command.words, prepare)
    if outcome.code != KILLED:
        return f"not cut, exit code {outcome.code}: {outcome.printed[-300:]}"
    return check(command, home)


def _cases(source: random.Random) -> Iterator[Case]:
    points = [(command, number) for command in COMMANDS for number in range(whole(command)[0])]
    source.shuffle(points)
    for command, number in points:
        yield f"{command.name}, operation {number}", partial(cut_power, command, number)


ATTACK = Attack(
    "power loss",
    "the power fails before a file operation; the store verifies, and the command repeated leaves "
    "the same bytes and nothing else",
    _cases,
)
